"""Reductions over real tokens. What stands in padding may be NaN or infinite and is never read."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def zero_padding(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x_t where the mask is True, 0 elsewhere.

    A masked reduction keeps NaN out of a loss, yet not out of its gradient: 0 * NaN is NaN on the way back.
    Whatever enters a per-token loss and may not be finite in padding goes through this function first.
    """
    return torch.where(mask, x, 0.0)


def masked_sum(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """sum_t m_t x_t over `dim`, or over everything; 0 where the mask selects nothing."""
    return zero_padding(x, mask).sum(dim=dim)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """sum_t m_t x_t / sum_t m_t over `dim`, or over everything.

    Raises:
        ValueError: the mask selects nothing in one of the means.
    """
    count = mask.sum(dim=dim)
    if bool((count == 0).any()):
        where = "at all" if dim is None else f"in some slice along dim {dim}"
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} selects nothing {where}, so there is no mean: "
            "leave empty responses out, or use masked_sum"
        )
    return masked_sum(x, mask, dim) / count


def masked_moments(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and population variance: mu = mean_t x_t, sigma^2 = mean_t (x_t - mu)^2.

    The population variance, divided by n and not by n - 1, is defined for a single token too.

    Raises:
        ValueError: the mask selects nothing.
    """
    mean = masked_mean(x, mask)
    return mean, masked_mean((x - mean).square(), mask)


def response_mask(tokens: Int[Tensor, "B T"], eos_token_id: int) -> Bool[Tensor, "B T"]:
    """True up to and including the first EOS; all True where there is none."""
    ends = tokens == eos_token_id
    return ends.cumsum(dim=1) <= ends


def last_index(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Index of the last True of each row: where a response's score lands.

    Raises:
        ValueError: a row has no True.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = torch.where(mask, positions, -1).amax(dim=1)
    empty = (index < 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"mask has no True in rows {empty}, so they have no last token: leave empty responses out")
    return index
