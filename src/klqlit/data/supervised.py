"""Completions to imitate and preference pairs to learn from, as token batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from klqlit.data.batching import Batches, check_unchanged, plan_step, plan_steps, shard, splits
from klqlit.data.source import Row, Source, Split
from klqlit.seeding import derive_seed
from klqlit.tokenising import encode_completions, encode_prompts
from klqlit.types import Sequences


@dataclass(kw_only=True, slots=True)
class LabelledSequences:
    """Prompts with the completions to imitate.

    Attributes:
        sequences: prompts and completions as tokens.
        tokens: completion tokens of the whole optimizer step, over all micro-batches and ranks. The loss is divided by
            it, so that the gradient does not depend on how the step is split.
    """

    sequences: Sequences
    tokens: int

    def __len__(self) -> int:
        return len(self.sequences)


@dataclass(kw_only=True, slots=True)
class PreferencePairs:
    """Prompts, each with the completion that was preferred and the one that was not.

    Attributes:
        chosen: prompts with the preferred completions.
        rejected: the same prompts with the others.
        pairs: pairs of the whole optimizer step, over all micro-batches and ranks.
    """

    chosen: Sequences
    rejected: Sequences
    pairs: int

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(kw_only=True, slots=True)
class Example:
    """A row as token ids: the prompt, and one completion (to imitate) or two (chosen, rejected)."""

    prompt: list[int]
    completions: list[list[int]]

    @property
    def length(self) -> int:
        return len(self.prompt) + max(map(len, self.completions))


@runtime_checkable
class Trainee(Protocol):
    """What these data modules ask of the lightning module they feed."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model can read, in tokens; None where nothing limits it."""


class SupervisedDataModule(L.LightningDataModule, ABC):
    """Rows of a source as batches, reshuffled each epoch from (seed, epoch): a resumed run sees the same order.

    Prompts with more than `max_prompt_tokens` tokens are cut as the source cuts them, completions (closed by EOS) with
    more than `max_completion_tokens` lose their end and the EOS; how many, is reported.

    Args:
        source: where the rows come from.
        batch_size: rows of a micro-batch on each device. An optimizer step sees
            `batch_size * accumulate_grad_batches * devices` rows.
        max_prompt_tokens: longest prompt.
        max_completion_tokens: longest completion, EOS included.
        seed: of the order of rows.

    Raises:
        ValueError: a number is not positive; at set-up also: unusable rows, or sequences longer than the model reads.
    """

    columns: ClassVar[tuple[str, ...]]
    """The completions a row must have."""

    def __init__(
        self,
        source: Source,
        batch_size: int = 8,
        max_prompt_tokens: int = 512,
        max_completion_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        limits = {"batch_size": batch_size, "max_prompt_tokens": max_prompt_tokens}
        for name, value in (limits | {"max_completion_tokens": max_completion_tokens}).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be positive")
        self._source = source
        self._batch_size = batch_size
        self._max_prompt_tokens = max_prompt_tokens
        self._max_completion_tokens = max_completion_tokens
        self._seed = seed
        self._examples: dict[Split, list[Example]] = {}
        self._saved: dict[str, Any] | None = None

    @abstractmethod
    def weight(self, example: Example) -> int:
        """What an example counts in the loss of its step."""

    @abstractmethod
    def batch(self, examples: list[Example], weight: int) -> Any:
        """A batch of the given examples, in a step whose examples weigh `weight` in all."""

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        for split in splits(self.trainer, stage):
            self._read(split)

    def _read(self, split: Split) -> None:
        if split not in self._examples:
            self._examples[split] = self._encode(self._source.rows(split), split)

    def train_dataloader(self) -> Batches:
        return Batches(sum(map(len, self._plan(epoch=0))), self._training_batches)

    def val_dataloader(self) -> Batches:
        self._read("validation")  # Lightning's search for a learning rate turns validation on after `setup`
        return Batches(len(self._validation_plan()), self._validation_batches)

    def test_dataloader(self) -> Batches:
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Lightning knows the position; what is kept here is what the position means."""
        return {"dealing": self._dealing, "batches": len(self.train_dataloader())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    @property
    def _dealing(self) -> dict[str, int]:
        """Options that decide which rows the rest of an epoch consists of."""
        trainer = self.trainer
        assert trainer is not None
        return {
            "data.batch_size": self._batch_size,
            "data.seed": self._seed,
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
            "the number of ranks": shard(trainer)[1],
            "the number of training rows": len(self._examples["train"]),
        }

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._trainee.tokenizer

    def pack(self, examples: Sequence[Example], which: int) -> Sequences:
        """Prompts padded on the left, the chosen completion of each on the right."""
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        return pack([e.prompt for e in examples], [e.completions[which] for e in examples], pad)

    @property
    def _trainee(self) -> Trainee:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        if not isinstance(module, Trainee):
            raise ValueError(
                f"{type(self).__name__} feeds SupervisedFinetuning or RewardModelling, not {type(module).__name__}"
            )
        return module

    def _plan(self, epoch: int) -> list[list[Sequence[int]]]:
        assert self.trainer is not None
        examples = self._examples["train"]
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order of rows", epoch))
        return plan_steps(
            torch.randperm(len(examples), generator=generator).tolist(),
            [example.length for example in examples],
            batch_size=self._batch_size,
            accumulate=self.trainer.accumulate_grad_batches,
            ranks=shard(self.trainer)[1],
        )

    def _training_batches(self) -> Iterator[Any]:
        trainer, examples = self.trainer, self._examples["train"]
        assert trainer is not None
        rank, ranks = shard(trainer)
        done = trainer.fit_loop.batch_idx + 1
        if self._saved is not None and 0 < done < self._saved["batches"]:
            check_unchanged(self._saved["dealing"], self._dealing, "epoch")
        self._saved = None
        # Overfitting means the same batches again and again.
        epoch = 0 if trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]
        first = 0
        for step in self._plan(epoch):
            # Lightning may be told to end the epoch early, within a step.
            step = step[: max(0, int(min(trainer.num_training_batches, first + len(step))) - first)]
            weight = sum(self.weight(examples[row]) for rows in step for row in rows)
            for rows in step[max(0, done - first) :]:
                yield self.batch([examples[row] for row in rows[rank::ranks]], weight)
            first += len(step)

    def _validation_plan(self) -> list[Sequence[int]]:
        assert self.trainer is not None
        lengths = [example.length for example in self._examples["validation"]]
        ranks = shard(self.trainer)[1]
        return plan_step(range(len(lengths)), lengths, batch_size=self._batch_size, ranks=ranks)

    def _validation_batches(self) -> Iterator[Any]:
        assert self.trainer is not None
        rank, ranks = shard(self.trainer)
        examples = self._examples["validation"]
        for rows in self._validation_plan():
            weight = sum(self.weight(examples[row]) for row in rows)
            yield self.batch([examples[row] for row in rows[rank::ranks]], weight)

    def _encode(self, rows: list[Row], split: Split) -> list[Example]:
        self._check_columns(rows, split)
        prompts, shortened = self._encode_prompts([row["prompt"] for row in rows])
        tokenizer, limit = self.tokenizer, self._max_completion_tokens
        completions = [encode_completions(tokenizer, [row[name] for row in rows], limit) for name in self.columns]
        examples = [
            Example(prompt=prompt, completions=list(row)) for prompt, *row in zip(prompts, *completions, strict=True)
        ]
        cut = sum(row[-1] != tokenizer.eos_token_id for column in completions for row in column)
        if shortened or cut:
            rank_zero_info(
                f"{split}: of {len(rows)} rows, {shortened} prompts had more than {self._max_prompt_tokens} tokens and "
                f"were shortened, {cut} completions had more than {limit} and lost their end"
            )
        self._check_length(examples, split)
        return examples

    def _encode_prompts(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Token ids of the prompts, and how many of them had to be shortened."""
        limit, prompts = self._max_prompt_tokens, encode_prompts(self.tokenizer, texts)
        long = [i for i, prompt in enumerate(prompts) if len(prompt) > limit]
        for i in long:
            shorter = self._source.shorten(texts[i], lambda s: len(encode_prompts(self.tokenizer, [s])[0]), limit)
            prompts[i] = encode_prompts(self.tokenizer, [shorter])[0]
            assert len(prompts[i]) <= limit, f"{type(self._source).__name__}.shorten left {len(prompts[i])} tokens"
        return prompts, len(long)

    def _check_columns(self, rows: list[Row], split: Split) -> None:
        if not rows:
            raise ValueError(f"{type(self._source).__name__} has no {split} rows")
        for i, row in enumerate(rows, start=1):
            for name in self.columns:
                if not isinstance(row.get(name), str) or not row[name].strip():
                    raise ValueError(
                        f"{type(self).__name__} needs {' and '.join(map(repr, self.columns))} in every row, but "
                        f"{split} row {i} of {type(self._source).__name__} has only {', '.join(map(repr, row))}"
                    )

    def _check_length(self, examples: list[Example], split: Split) -> None:
        longest, limit = max(example.length for example in examples), self._trainee.max_positions
        if limit is not None and longest > limit:
            raise ValueError(
                f"a {split} row has {longest} tokens, but the model reads at most {limit}: lower "
                f"max_prompt_tokens={self._max_prompt_tokens} or max_completion_tokens={self._max_completion_tokens}"
            )


@final
class CompletionDataModule(SupervisedDataModule):
    """Completions to imitate, as `LabelledSequences`; see `SupervisedDataModule` for the arguments."""

    columns: ClassVar[tuple[str, ...]] = ("completion",)

    def weight(self, example: Example) -> int:
        return len(example.completions[0])

    def batch(self, examples: list[Example], weight: int) -> LabelledSequences:
        return LabelledSequences(sequences=self.pack(examples, 0), tokens=weight)


@final
class PreferenceDataModule(SupervisedDataModule):
    """Chosen and rejected completions, as `PreferencePairs`; see `SupervisedDataModule` for the arguments."""

    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def weight(self, example: Example) -> int:
        return 1

    def batch(self, examples: list[Example], weight: int) -> PreferencePairs:
        return PreferencePairs(chosen=self.pack(examples, 0), rejected=self.pack(examples, 1), pairs=weight)


def pack(prompts: list[list[int]], completions: list[list[int]], pad: int) -> Sequences:
    """Token lists as tensors: prompts padded on the left, completions on the right."""
    prompt_width, width = max(map(len, prompts)), max(map(len, completions))
    gaps = [prompt_width - len(row) for row in prompts]
    lengths = torch.tensor([len(row) for row in completions])
    return Sequences(
        prompt_tokens=torch.tensor([[pad] * gap + row for gap, row in zip(gaps, prompts, strict=True)]),
        prompt_mask=torch.arange(prompt_width) >= torch.tensor(gaps)[:, None],
        tokens=torch.tensor([row + [pad] * (width - len(row)) for row in completions]),
        mask=torch.arange(width) < lengths[:, None],
    )
