"""One token a row from logits: inverse-transform sampling from one uniform number a token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256
"""Neighbouring tokens whose probabilities are summed up first, so that no cumulative sum runs over a vocabulary."""


@dataclass(kw_only=True, slots=True)
class Drawn:
    """One token a row.

    Attributes:
        tokens: token ids.
        logprobs: their log-probabilities, nats.
        entropy: of the distribution, nats.
    """

    tokens: Int[Tensor, " B"]
    logprobs: Float[Tensor, " B"]
    entropy: Float[Tensor, " B"]


def draw_next(
    logits: Float[Tensor, "B V"],
    uniform: Float[Tensor, " B"],
    *,
    temperature: float,
    truncate: Callable[[Float[Tensor, "B V"]], Float[Tensor, "B V"]],
) -> Drawn:
    r"""A token from softmax(logits / temperature), with its log-probability and the entropy H = log Z - sum_v p_v z_v.

    Args:
        logits: in float32.
        uniform: numbers in [0, 1), one a row.
        temperature: the sampling temperature.
        truncate: gives minus infinity to logits that must not be drawn. Log-probability and entropy are those of the
            whole distribution all the same.
    """
    z = logits if temperature == 1 else logits / temperature
    probs = z.softmax(dim=-1)
    # The likeliest token's logarithm is exact; that of an unlikely one may not even be finite.
    highest, best = z.amax(dim=-1), probs.amax(dim=-1).log()
    kept = truncate(z)
    tokens = draw(probs if kept is z else kept.softmax(dim=-1), uniform)
    return Drawn(
        tokens=tokens,
        logprobs=z.gather(-1, tokens[:, None]).squeeze(-1) - highest + best,
        # A logit of minus infinity has probability 0, and 0 times it is no number.
        entropy=highest - best - torch.linalg.vecdot(probs, z.clamp(min=torch.finfo(z.dtype).min)),
    )


def draw(probs: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Inverse-transform sampling: the first token at which the cumulative probability passes `uniform`.

    The block that holds it is found first, then the token within the block. Probabilities need not be normalised; a
    token of probability 0 is never drawn.
    """
    vocab = probs.shape[-1]
    whole = vocab - vocab % BLOCK
    sums = [probs[:, :whole].unflatten(-1, (-1, BLOCK)).sum(dim=-1), probs[:, whole:].sum(dim=-1, keepdim=True)]
    cumulative = torch.cat(sums, dim=-1).cumsum(dim=-1)
    block, below = _passed(cumulative, uniform * cumulative[:, -1])
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=probs.device)
    inside = torch.where(columns < vocab, probs.gather(-1, columns.clamp(max=vocab - 1)), 0.0).cumsum(dim=-1)
    token, _ = _passed(inside, uniform * cumulative[:, -1] - below)
    # No sum is above a target that is no number; such a draw must not end in an index that is none.
    return (block * BLOCK + token).clamp(max=vocab - 1)


def _passed(cumulative: Float[Tensor, "B n"], target: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """Index of the first sum above `target`, and the sum before it.

    Rounding must not carry the target out of [0, total): an entry that adds nothing would be chosen.
    """
    total = cumulative[:, -1]
    target = target.clamp(min=0.0).minimum(total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, target[:, None], right=True)
    before = torch.where(index > 0, cumulative.gather(-1, (index - 1).clamp(min=0)), 0.0)
    return index.squeeze(-1), before.squeeze(-1)


def uniform_streams(seeds: list[int], length: int) -> Float[Tensor, "B T"]:
    """Uniform numbers in [0, 1), one stream a row."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(length, generator=g, dtype=torch.float32) for g in generators])
