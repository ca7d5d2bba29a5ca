"""Standardisation over the real tokens of a batch; padding comes out as 0."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from klqlit.functional.masking import masked_moments, zero_padding


def whiten(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """(x_t - mu) / sigma, with mean mu and population standard deviation sigma over real tokens.

    A batch without spread, up to rounding, comes out as about 0 and is not divided.

    Raises:
        ValueError: the mask selects nothing.
    """
    mean, var = masked_moments(x, mask)
    return zero_padding((x - mean) / _spread(mean, var), mask)


def rescale(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """x_t / sigma: the mean is kept, in units of the population standard deviation sigma.

    A batch without spread, up to rounding, is left as it is.

    Raises:
        ValueError: the mask selects nothing.
    """
    mean, var = masked_moments(x, mask)
    return zero_padding(x / _spread(mean, var), mask)


def _spread(mean: Float[Tensor, ""], var: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Standard deviation, or 1 where it is no more than the rounding of the mean."""
    std = var.sqrt()
    rounding = 100 * torch.finfo(std.dtype).eps * mean.abs()
    return torch.where(std > rounding, std, 1.0)
