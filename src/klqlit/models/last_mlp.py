"""Nothing reads what the last block makes of a prompt: its MLP is computed before response tokens only."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from klqlit.models.recomputation import computes_again
from klqlit.types import AlignedRows

NAME = "mlp"
"""What transformers calls the part of a block that reads one position at a time."""


@contextmanager
def last_mlp_before_tokens(trunk: nn.Module, aligned: AlignedRows) -> Iterator[None]:
    """Within, the MLP of the trunk's last block gives 0 at all states but those before response tokens.

    With prompts as long as responses that is a third of a block's work. Models of which it is not known to be safe are
    left as they are: with experts, with blocks that are computed again on the way back, or sharded.
    """
    mlp = last_mlp(trunk)
    if mlp is None:
        yield
        return
    before = mlp.register_forward_pre_hook(lambda _, inputs: _gather(inputs, aligned))
    after = mlp.register_forward_hook(lambda _, inputs, output: _scatter(output, aligned))
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _gather(inputs: tuple[Any, ...], aligned: AlignedRows) -> tuple[Tensor]:
    (hidden,) = inputs
    return (hidden[aligned.rows, aligned.columns],)


def _scatter(output: Tensor, aligned: AlignedRows) -> Tensor:
    whole = output.new_zeros((*aligned.tokens.shape, output.shape[-1]))
    return whole.index_put((aligned.rows, aligned.columns), output)


def last_mlp(trunk: nn.Module) -> nn.Module | None:
    """The MLP of the trunk's last block; None where it must compute all positions."""
    if not isinstance(trunk, PreTrainedModel) or computes_again(trunk):
        return None
    for child in trunk.children():
        # A block that is wrapped or sharded has another class.
        if isinstance(child, nn.ModuleList) and type(child[-1]).__name__ in (trunk._no_split_modules or ()):
            mlp = dict(child[-1].named_children()).get(NAME)
            return mlp if mlp is not None and _reads_one_position(mlp) else None
    return None


def _reads_one_position(mlp: nn.Module) -> bool:
    if len(signature(mlp.forward).parameters) != 1:
        return False  # BLOOM's adds the residual stream
    parts = list(mlp.children())
    with_weights = [part for part in parts if any(True for _ in part.parameters())]
    return all(not list(part.children()) for part in parts) and all(
        isinstance(part, nn.Linear | Conv1D) for part in with_weights
    )
