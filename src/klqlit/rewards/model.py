"""A learned reward model."""

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from klqlit.functional.checks import check_positive
from klqlit.models.determinism import make_deterministic
from klqlit.models.lengths import similar_lengths
from klqlit.models.loading import (
    embedding_rows,
    load_reward_model,
    load_tokenizer,
    max_positions,
)
from klqlit.rewards.base import Reward
from klqlit.types import Completions


@final
class RewardModel(Reward):
    """A sequence-classification model with one output, on its own tokenizer.

    It reads prompt and completion as one text, tokenised by its own tokenizer, so the policy may use another one. The
    model itself picks the token it scores (in transformers: the last one that is not its pad token).

    Args:
        path: local directory or hub name.
        dtype: of the weights.
        max_tokens: longest text; longer ones lose their beginning. None for the model's own limit.
        batch_size: texts scored at once.
        append_eos: close a response that ended by itself with this tokenizer's EOS token, as reward models trained on
            EOS-terminated completions expect; one that the length limit cut stays open.
        trust_remote_code: run code that comes with the model. Off unless you trust its author.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: a number is not positive, or the model cannot be loaded or has no trained scalar head.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        max_tokens: int | None = None,
        batch_size: int = 32,
        append_eos: bool = True,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        check_positive("RewardModel batch_size", batch_size, "choose as many texts as fit in memory, such as 32")
        if max_tokens is not None:
            check_positive("RewardModel max_tokens", max_tokens, "leave it out for the model's own limit")
        self.path = path
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            path, trust_remote_code=trust_remote_code, revision=revision
        )
        self.model = load_reward_model(path, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision)
        make_deterministic(self.model, path)
        self.requires_grad_(False)
        self.max_tokens = max_positions(self.model.config) if max_tokens is None else max_tokens
        self._pad = self.model.config.get_text_config().pad_token_id
        self.model.config.get_text_config().use_cache = False  # nothing is decoded
        self.batch_size = batch_size
        self.append_eos = append_eos

    @torch.no_grad()
    def forward(self, completions: Completions) -> Float[Tensor, " B"]:
        texts = [p + c for p, c in zip(completions.prompts, completions.completions, strict=True)]
        tokens = self.tokenizer(texts, verbose=False)["input_ids"]
        rows = [self._closed(row, ended) for row, ended in zip(tokens, completions.ended.tolist(), strict=True)]
        groups = self._groups([len(row) for row in rows])
        # All are made before the first is read: a GPU would stand still while the next is made.
        batches = [batch for group in groups for batch in self._batches([rows[i] for i in group])]
        scores = torch.cat([self._score(*batch) for batch in batches]).to(completions.sequences.tokens.device)
        order = torch.tensor([i for group in groups for i in group], device=scores.device)
        return scores[order.argsort()]

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        """Rows of similar length, at most `batch_size`: less padding to compute."""
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        chunks = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return [[chunk[i] for i in group] for chunk in chunks for group in similar_lengths([lengths[i] for i in chunk])]

    def _closed(self, tokens: list[int], ended: bool) -> list[int]:
        eos = self.tokenizer.eos_token_id
        if self.append_eos and ended and (not tokens or tokens[-1] != eos):
            tokens = [*tokens, eos]
        return tokens if self.max_tokens is None else tokens[-self.max_tokens :]

    def _batches(self, rows: list[list[int]]) -> Iterator[tuple[int | None, dict[str, Tensor]]]:
        """What the model reads, padded on the right, with the token that pads: one batch unless no token can."""
        pad = self._pad_token(rows)
        if pad is None and len(rows) > 1:
            for row in rows:
                yield from self._batches([row])
            return
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        yield pad, {"input_ids": tokens.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    def _score(self, pad: int | None, inputs: dict[str, Tensor]) -> Float[Tensor, " B"]:
        self.model.config.get_text_config().pad_token_id = pad
        return self.model(**inputs).logits.squeeze(-1).float()

    def _pad_token(self, rows: list[list[int]]) -> int | None:
        """The model's pad token. Where it has none, a token that no row holds, so that none is hidden."""
        if self._pad is not None:
            return self._pad
        used = {token for row in rows for token in row}
        return next((token for token in range(embedding_rows(self.model)) if token not in used), None)
