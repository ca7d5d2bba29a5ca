"""Drawing responses from a policy."""

from functools import lru_cache
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StopStringCriteria, TopKLogitsWarper, TopPLogitsWarper

from klqlit.functional.checks import check_positive
from klqlit.models.policy import Policy
from klqlit.models.precision import casts_kept
from klqlit.rollout.drawing import Drawn, draw_next, uniform_streams
from klqlit.types import Prompts, Sample

KEPT_SHARE = 7 / 8
"""Rows that have ended are dropped from the cache, which copies it, when no larger share of it is still read."""

KEPT_SHARE_ON_GPU = 1 / 2
"""The same on a GPU, where the step for so many rows is also recorded anew (see `FixedStep`)."""


@final
class Sampler:
    """Samples responses token by token at one temperature.

    Every row has a random stream of its own (inverse-transform sampling from one uniform number a token), so a row's
    response depends on its seed and the weights, not on the other rows, the rank or the chunk it is computed in.

    Args:
        response_length: tokens of a response at most.
        temperature: the policy *is* softmax(logits / temperature), here and in every loss.
        stop_strings: texts that end a response as EOS does.
        top_k: keep the k likeliest tokens; 0 keeps all. For `predict` only: in training it is refused, since the
            sampled tokens would come from another distribution than the log-probabilities.
        top_p: likewise; 1 keeps all.
        batch_size: rows decoded at once; None for all.

    Raises:
        ValueError: an argument is out of range, or a stop string is empty.
    """

    def __init__(
        self,
        *,
        response_length: int = 53,
        temperature: float = 1.0,
        stop_strings: list[str] | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        batch_size: int | None = None,
    ) -> None:
        if response_length < 1:
            raise ValueError(f"sampler.response_length={response_length} must be at least 1")
        check_positive("sampler.temperature", temperature, "1.0 samples from the model as it is")
        if top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(f"sampler.top_k={top_k}, sampler.top_p={top_p}: need top_k >= 0 and 0 < top_p <= 1")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"sampler.batch_size={batch_size} must be at least 1, or null for all rows at once")
        self.response_length = response_length
        self.temperature = temperature
        self.stop_strings = _usable(stop_strings or [])
        self.top_k = top_k
        self.top_p = top_p
        self.batch_size = batch_size

    def refuse_truncation(self) -> None:
        """Raise where responses would not come from the policy that is trained."""
        if self.top_k or self.top_p < 1:
            raise ValueError(
                f"sampler.top_k={self.top_k}, sampler.top_p={self.top_p}: truncated sampling draws from another "
                "distribution than the policy that is trained; set top_k: 0 and top_p: 1.0 (predict may use them)"
            )

    @torch.no_grad()
    def sample(self, policy: Policy, prompts: Prompts) -> Sample:
        """One response for each prompt."""
        size = self.batch_size or len(prompts)
        with casts_kept():
            parts = [self._sample_rows(policy, prompts, slice(i, i + size)) for i in range(0, len(prompts), size)]
        return Sample(
            tokens=torch.cat([part.tokens for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            entropy=torch.cat([part.entropy for part in parts]),
            ended=torch.cat([part.ended for part in parts]),
        )

    def texts(self, policy: Policy, sample: Sample) -> list[str]:
        """The responses as text, without EOS and from the first stop string on cut away."""
        rows = [tokens[mask].tolist() for tokens, mask in zip(sample.tokens.cpu(), sample.mask.cpu(), strict=True)]
        texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        for stop in self.stop_strings:
            texts = [text.split(stop, 1)[0] for text in texts]
        return texts

    def _sample_rows(self, policy: Policy, prompts: Prompts, rows: slice) -> Sample:
        tokens, seen = prompts.tokens[rows], prompts.mask[rows]
        response = _blank(len(tokens), self.response_length, policy.tokenizer.eos_token_id, tokens.device)
        uniforms = uniform_streams(prompts.seeds[rows], self.response_length).to(tokens.device)
        stop = _stopping(policy.tokenizer, tuple(self.stop_strings)) if self.stop_strings else None
        # `live` are the rows that are decoded. Finished ones among them are dropped when that spares enough work.
        live, finished = torch.arange(len(tokens), device=tokens.device), response.ended.clone()
        kept_share = KEPT_SHARE_ON_GPU if tokens.is_cuda else KEPT_SHARE
        logits, cache = _read_prompts(policy, tokens, seen)
        for t in range(self.response_length):
            drawn = draw_next(logits, uniforms[live, t], temperature=self.temperature, truncate=self._truncate)
            _record(response, t, drawn, live, finished)
            finished = finished | (drawn.tokens == policy.tokenizer.eos_token_id)
            if stop is not None:
                finished = finished | stop(response.tokens[live, : t + 1], None).to(finished.device)
            response.ended[live] = finished
            left = int((~finished).sum())
            if left == 0 or t + 1 == self.response_length:
                break
            step = drawn.tokens
            if left <= kept_share * len(live):
                rest = (~finished).nonzero().squeeze(-1)
                cache = policy.select(cache, rest)
                live, finished, step, seen = live[rest], finished[rest], step[rest], seen[rest]
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            logits, cache = policy.decode(step[:, None], seen, cache)
        return response

    def _truncate(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        if self.top_k:
            logits = TopKLogitsWarper(self.top_k)(None, logits)
        if self.top_p < 1:
            logits = TopPLogitsWarper(self.top_p)(None, logits)
        return logits


def _usable(stop_strings: list[str]) -> list[str]:
    if isinstance(stop_strings, str):
        raise ValueError(f"sampler.stop_strings={stop_strings!r} is a text, not a list: give [{stop_strings!r}]")
    if "" in stop_strings:
        raise ValueError(
            f"sampler.stop_strings={stop_strings} has an empty one, which every response holds at once: leave it out"
        )
    return list(stop_strings)


# Kept: it reads the whole vocabulary. Not in the samplers, which are copied with their module.
@lru_cache(maxsize=4)
def _stopping(tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...]) -> StopStringCriteria:
    """Tells the rows whose last token completes a stop string."""
    return StopStringCriteria(tokenizer, list(stop_strings))


def _blank(rows: int, length: int, eos: int, device: torch.device) -> Sample:
    """Responses of no token yet."""
    # Every token id is a valid one, whether the tokenizer has a pad token or not: masks say what is read.
    # Single precision whatever the trainer makes the default: half as many bits would round the ratio off.
    logprobs, entropy = torch.zeros((2, rows, length), dtype=torch.float32, device=device)
    return Sample(
        tokens=torch.full((rows, length), eos, device=device),
        mask=torch.zeros((rows, length), dtype=torch.bool, device=device),
        logprobs=logprobs,
        entropy=entropy,
        ended=torch.zeros(rows, dtype=torch.bool, device=device),
    )


def _read_prompts(policy: Policy, tokens: Int[Tensor, "B P"], mask: Bool[Tensor, "B P"]) -> tuple[Tensor, Any]:
    """Logits of the first tokens, and the cache; neighbours with the same prompt are read once."""
    _, row = torch.where(mask, tokens, -1).unique_consecutive(dim=0, return_inverse=True)
    distinct = int(row[-1]) + 1
    if distinct == len(tokens):
        return policy.decode(tokens, mask, None)
    first = torch.searchsorted(row, torch.arange(distinct, device=row.device))
    logits, cache = policy.decode(tokens[first], mask[first], None)
    return logits[row], policy.select(cache, row)


def _record(response: Sample, t: int, drawn: Drawn, live: Int[Tensor, " n"], finished: Bool[Tensor, " n"]) -> None:
    """Write token `t` of the rows that had not ended before it."""
    going = ~finished
    response.mask[live, t] = going
    pairs = ((response.tokens, drawn.tokens), (response.logprobs, drawn.logprobs), (response.entropy, drawn.entropy))
    for kept, new in pairs:
        # Not kept[live[going]]: a GPU would have to tell first how many there are.
        kept[live, t] = torch.where(going, new, kept[live, t])
