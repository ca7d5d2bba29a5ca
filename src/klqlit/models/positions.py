"""Positions of tokens in rows that are padded on the left."""

from functools import cache
from inspect import signature
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn


def positions(mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Position of each real token among its row's real tokens, so that left padding does not shift a row."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def position_inputs(model: nn.Module, mask: Bool[Tensor, "B S"], last: int | None = None) -> dict[str, Tensor]:
    """The argument that tells `model` the positions of its tokens, or none where it reads them from the mask.

    Args:
        model: what is called.
        mask: True at real tokens.
        last: give the positions of so many tokens at the end; None for all.
    """
    if not takes_positions(model):
        return {}
    return {"position_ids": positions(mask)[:, -(last or mask.shape[1]) :]}


def padding_inputs(model: nn.Module, mask: Bool[Tensor, "B S"], last: int) -> dict[str, Tensor]:
    """The arguments that tell `model` of padding, or none where there is no padding: it then needs no mask.

    Args:
        model: what is called.
        mask: True at real tokens.
        last: tokens at the end that it reads now.
    """
    if bool(mask.all()):
        return {}
    return {"attention_mask": mask.long(), **position_inputs(model, mask, last)}


def takes_positions(model: nn.Module) -> bool:
    """Whether `model` can be told the positions of its tokens; ALiBi models, for one, cannot."""
    return _takes_positions(type(model))  # type: ignore[arg-type]  # classes can be hashed


@cache
def _takes_positions(kind: Any) -> bool:
    return "position_ids" in signature(kind.forward).parameters
