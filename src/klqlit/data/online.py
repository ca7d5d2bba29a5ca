"""The online data module: one rollout phase is one Lightning epoch."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, final

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info

from klqlit.data.batching import Batches, check_unchanged, split, splits
from klqlit.data.source import Row, Source, Split
from klqlit.seeding import derive_seed
from klqlit.types import Collector, Experience, Minibatch, Prompts, Sequences


@final
class OnlineDataModule(L.LightningDataModule):
    """Draws prompts, has the algorithm collect a phase of rollouts, and deals it out in minibatches.

    A phase takes `epochs * minibatches` optimizer steps; each minibatch is split over the ranks and over
    `trainer.accumulate_grad_batches` micro-batches. The state is a phase counter and the rows of a phase under way:
    everything random comes from `seed` and counters. A new trainer or module begins with phase 0; with more
    `max_epochs` the same trainer goes on with the same module.

    Args:
        source: the prompts.
        rollouts: completions a phase, over all ranks.
        minibatches: optimizer steps per pass over the phase.
        epochs: passes over the phase.
        samples_per_prompt: completions of each prompt, neighbours in the rollout.
        max_prompt_tokens: longer prompts are shortened the way of their dataset, and counted.
        validation_prompts: held-out prompts per validation; fewer where the source has fewer.
        validation_batch_size: prompts per validation batch and rank.
        seed: of the prompt order and of the sampling.

    Raises:
        ValueError: the numbers do not divide, or the source has no usable prompts.
    """

    def __init__(
        self,
        source: Source,
        *,
        rollouts: int = 192,
        minibatches: int = 4,
        epochs: int = 4,
        samples_per_prompt: int = 1,
        max_prompt_tokens: int = 512,
        validation_prompts: int = 128,
        validation_batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {
            "rollouts": rollouts,
            "minibatches": minibatches,
            "epochs": epochs,
            "samples_per_prompt": samples_per_prompt,
            "max_prompt_tokens": max_prompt_tokens,
            "validation_prompts": validation_prompts,
            "validation_batch_size": validation_batch_size,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1")
        for name in ("minibatches", "samples_per_prompt"):
            if rollouts % sizes[name]:
                raise ValueError(
                    f"data.{name}={sizes[name]} does not divide data.rollouts={rollouts}: choose a multiple of "
                    f"{sizes[name]} as rollouts"
                )
        self.source = source
        self.rollouts = rollouts
        self.minibatches = minibatches
        self.epochs = epochs
        self.samples_per_prompt = samples_per_prompt
        self.max_prompt_tokens = max_prompt_tokens
        self.validation_prompts = validation_prompts
        self.validation_batch_size = validation_batch_size
        self.seed = seed
        self.phase = 0
        self._version = 0
        self._experience: Experience | None = None
        self._saved_dealing: dict[str, int] | None = None
        self._rows: dict[Split, list[Row]] = {}
        self._run: tuple[L.Trainer, L.LightningModule] | None = None

    # Lightning's side ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._begin()
            self._collector.check_phase(self.rollouts)
        self._check_limit()
        self._rows.clear()
        for name in splits(self._trainer, stage):
            self._read(name)
        if stage == "fit":
            self._check_split()
            self._check_whole_steps()

    def train_dataloader(self) -> Batches:
        # Sized, since Lightning prefetches one batch from a loader of unknown length: one sampled an update too early.
        return Batches(self.micro_batches, self.phase_batches)

    def val_dataloader(self) -> Batches:
        # All ranks have as many batches, since they exchange buffers in each; the sizes may differ by one.
        # (No torch DataLoader: Lightning would split this rank's share over the ranks once more.)
        ranks = self._world_size
        if "validation" not in self._rows:  # Lightning's search for a learning rate turns validation on after `setup`
            self._read("validation")
        whole = split(range(len(self._rows["validation"])), self.validation_batch_size * ranks, least=ranks)
        batches = [batch[self._rank :: ranks] for batch in whole]
        return Batches(len(batches), lambda: map(self._validation_batch, batches))

    def test_dataloader(self) -> Batches:
        return self.val_dataloader()

    def predict_dataloader(self) -> Batches:
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Phase counter and, in the middle of a phase, its rows: the same on every rank."""
        if self._experience is None or self._steps_done not in range(self.steps):
            return {"phase": self.phase + (self._experience is not None), "version": 0, "experience": None}
        under_way = {"experience": flatten(self._experience), "dealing": self._dealing}
        return {"phase": self.phase, "version": self._version} | under_way

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.phase, self._version = operator.index(state_dict["phase"]), operator.index(state_dict["version"])
        self._experience = None if state_dict["experience"] is None else unflatten(state_dict["experience"])
        # Checked when the rest is dealt: a validation may have other options.
        self._saved_dealing = None if self._experience is None else state_dict["dealing"]

    @property
    def _dealing(self) -> dict[str, int]:
        """Options that decide which rows the rest of a phase consists of."""
        return {
            "data.rollouts": self.rollouts,
            "data.minibatches": self.minibatches,
            "data.epochs": self.epochs,
            "data.seed": self.seed,
            "trainer.accumulate_grad_batches": self._trainer.accumulate_grad_batches,
        }

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, Minibatch) and batch.experience.mask.device == device:
            return batch
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if isinstance(batch, Minibatch):
            # Lightning drops what a record has cached, and a GPU would have to be asked for what is known here.
            moved.experience.sequences.lengths = batch.experience.sequences.lengths
        return moved

    # One phase -----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimizer steps a phase."""
        return self.epochs * self.minibatches

    @property
    def micro_batches(self) -> int:
        """Batches a phase on each rank."""
        return self.steps * self._trainer.accumulate_grad_batches

    def phase_batches(self) -> Iterator[Minibatch]:
        """The batches left of the phase under way, or else of the next."""
        if self._saved_dealing is not None:
            check_unchanged(self._saved_dealing, self._dealing, "phase")
            self._saved_dealing = None
        if self._experience is not None and self._steps_done not in range(self.steps):
            self.phase, self._experience = self.phase + 1, None
        if self._experience is None:
            self._version = self._trainer.global_step
            self._experience = self._collector.collect(self._phase_prompts())
        orders = [self._permutation(self.rollouts, "minibatches", self.phase, epoch) for epoch in range(self.epochs)]
        minibatches = [rows for order in orders for rows in order.chunk(self.minibatches)]
        for step in range(self._steps_done, self.steps):
            yield from self._deal(self._experience, minibatches[step], step)

    def _deal(self, experience: Experience, rows: torch.Tensor, step: int) -> Iterator[Minibatch]:
        """The micro-batches of one optimizer step, which takes the given rows."""
        tokens = int(experience.sequences.lengths.responses[rows].sum())
        mine = rows.chunk(self._world_size)[self._rank]
        for micro in mine.chunk(self._trainer.accumulate_grad_batches):
            part = experience.select(micro)
            yield Minibatch(experience=part, rows=micro, tokens=tokens, version=self._version, step=step)

    def _phase_prompts(self) -> Prompts:
        """This rank's prompts of the phase: the rows are reshuffled for each pass over them."""
        rows, count = self._rows["train"], self.rollouts // self.samples_per_prompt
        first = self.phase * count
        drawn = [row for row in self._shuffled_rows(rows, first, count) for _ in range(self.samples_per_prompt)]
        seeds = [derive_seed(self.seed, "sample", self.phase, i) for i in range(self.rollouts)]
        size = self.rollouts // self._world_size
        mine = slice(self._rank * size, (self._rank + 1) * size)
        return self._prompts(drawn[mine], seeds[mine])

    def _shuffled_rows(self, rows: list[Row], first: int, count: int) -> Iterator[Row]:
        """Rows `first` to `first + count` of the endless sequence of shuffled passes."""
        for shuffle in range(first // len(rows), (first + count - 1) // len(rows) + 1):
            start = shuffle * len(rows)
            order = self._permutation(len(rows), "prompts", shuffle)
            for index in order[max(first - start, 0) : first + count - start].tolist():
                yield rows[index]

    def _validation_batch(self, indices: Sequence[int]) -> Prompts:
        rows = self._rows["validation"]
        seeds = [derive_seed(self.seed, "validation", index) for index in indices]
        return self._prompts([rows[index] for index in indices], seeds)

    def _prompts(self, rows: list[Row], seeds: list[int]) -> Prompts:
        texts = [row["prompt"] for row in rows]
        tokens = self._collector.encode(texts)
        width = max(len(row) for row in tokens)
        # What fills the left is masked and never read; a row's own first token is a valid id whatever the tokenizer.
        padded = [[row[0]] * (width - len(row)) + row for row in tokens]
        lengths = torch.tensor([len(row) for row in tokens])
        return Prompts(
            texts=texts,
            tokens=torch.tensor(padded),
            mask=torch.arange(width)[None] >= width - lengths[:, None],
            seeds=seeds,
            columns={name: [row[name] for row in rows] for name in rows[0] if name != "prompt"},
        )

    def _permutation(self, size: int, *counters: int | str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *counters))
        return torch.randperm(size, generator=generator)

    def _begin(self) -> None:
        """Forget what another run has left. A checkpoint to resume from is read after this."""
        run = (self._trainer, self._trainer.lightning_module)
        if run != self._run:
            self.phase, self._experience, self._saved_dealing, self._run = 0, None, None, run

    # Checks before work starts -------------------------------------------------------------------------------------

    def _read(self, split: Split) -> None:
        self._rows[split] = self._usable_rows(split)
        if split == "validation" and len(self._rows[split]) < self._world_size:
            raise ValueError(
                f"{len(self._rows[split])} validation prompts cannot be dealt to {self._world_size} ranks: give "
                "a larger validation split, raise data.validation_prompts, or use fewer devices"
            )

    def _usable_rows(self, split: Split) -> list[Row]:
        rows = self.source.rows(split)
        if not rows:
            raise ValueError(f"data.source has no {split} prompts: give it a larger file or validation split")
        if split == "validation":
            rows = rows[: self.validation_prompts]
        names = dict.fromkeys(name for row in rows for name in row)
        rows = [{name: row.get(name) for name in names} for row in rows]
        lengths = [len(tokens) for tokens in self._collector.encode([row["prompt"] for row in rows])]
        short = [
            row if length <= self.max_prompt_tokens else row | {"prompt": self._shortened(row["prompt"])}
            for row, length in zip(rows, lengths, strict=True)
        ]
        if cut := sum(length > self.max_prompt_tokens for length in lengths):
            rank_zero_info(
                f"{cut} of {len(rows)} {split} prompts are longer than max_prompt_tokens={self.max_prompt_tokens} and "
                "were shortened"
            )
        return short

    def _shortened(self, prompt: str) -> str:
        return self.source.shorten(prompt, lambda text: len(self._collector.encode([text])[0]), self.max_prompt_tokens)

    def _check_limit(self) -> None:
        limit = self._collector.prompt_limit
        if limit is not None and self.max_prompt_tokens > limit:
            raise ValueError(
                f"data.max_prompt_tokens={self.max_prompt_tokens} does not fit: the positions of policy, reference and "
                f"critic leave room for {max(limit, 0)} prompt tokens beside the response; lower it, or "
                "sampler.response_length"
            )

    def _check_split(self) -> None:
        micro = self._world_size * self._trainer.accumulate_grad_batches
        size = self.rollouts // self.minibatches
        if size % micro:
            raise ValueError(
                f"a minibatch of {size} rows (data.rollouts / data.minibatches) cannot be split evenly over "
                f"{self._world_size} ranks times trainer.accumulate_grad_batches="
                f"{self._trainer.accumulate_grad_batches}: choose rollouts so that it is a multiple of {micro}"
            )

    def _check_whole_steps(self) -> None:
        trainer: Any = self._trainer
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            raise ValueError(
                "GradientAccumulationScheduler changes the micro-batches of a step after a phase was cut into them: "
                "take it out, and give one number as trainer.accumulate_grad_batches"
            )
        limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
        batches = min(limit, self.micro_batches) if isinstance(limit, int) else int(self.micro_batches * limit)
        # Each micro-batch is weighed as a part of its whole step. A trial run may end anywhere: nothing is kept of it.
        if batches % accumulate and not trainer.fast_dev_run:
            raise ValueError(
                f"trainer.limit_train_batches={limit} ends an epoch after {batches} micro-batches, in the middle of an "
                f"optimizer step: choose a multiple of trainer.accumulate_grad_batches={accumulate}"
            )

    @property
    def _trainer(self) -> L.Trainer:
        assert self.trainer is not None, "the data module works within a trainer"
        return self.trainer

    @property
    def _collector(self) -> Collector:
        module = self._trainer.lightning_module
        assert isinstance(module, Collector)
        return module

    @property
    def _steps_done(self) -> int:
        return self._trainer.global_step - self._version

    @property
    def _rank(self) -> int:
        return self._trainer.global_rank

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size


def flatten(experience: Experience) -> dict[str, torch.Tensor]:
    """An experience as named tensors, which a checkpoint may hold."""
    sequences = {f"sequences.{name}": getattr(experience.sequences, name) for name in _names(Sequences)}
    return sequences | {name: getattr(experience, name) for name in _names(Experience) if name != "sequences"}


def unflatten(tensors: dict[str, torch.Tensor]) -> Experience:
    """The inverse of `flatten`.

    Raises:
        KeyError, TypeError: something is missing, too much, or of another shape than the mask.
    """
    shape = tensors["sequences.mask"].shape
    for name, tensor in tensors.items():
        if tensor.shape[:1] != shape[:1] or (tensor.shape != shape and not name.startswith("sequences.prompt")):
            raise TypeError(f"{name} of the rows has the shape {list(tensor.shape)}, and their mask {list(shape)}")
    sequences = Sequences(**{name: tensors[f"sequences.{name}"] for name in _names(Sequences)})
    rest = {name: value for name, value in tensors.items() if not name.startswith("sequences.")}
    return Experience(sequences=sequences, **rest)


def _names(record: type[Sequences] | type[Experience]) -> list[str]:
    return [field.name for field in fields(record)]
