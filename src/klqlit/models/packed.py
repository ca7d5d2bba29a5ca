"""Rows of different lengths go through a trunk as one long row, without padding: attention alone takes them apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from klqlit.models.cache import ReservedCache
from klqlit.models.loading import embedding_rows
from klqlit.models.positions import takes_positions
from klqlit.models.recomputation import computes_again
from klqlit.types import AlignedRows, Sequences, starts

ROW_BY_ROW = "klqlit_row_by_row"
"""Name of `row_by_row` among the attention functions of transformers. None of its masks has that name: none is made."""

_keeps_rows_apart: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def row_by_row(
    module: nn.Module,
    query: Float[Tensor, "1 heads N D"],
    key: Float[Tensor, "1 groups N D"],
    value: Float[Tensor, "1 groups N D"],
    attention_mask: None,
    *,
    row_lengths: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "1 N heads D"], None]:
    """Causal attention within each of the rows that follow one another: an attention function of transformers.

    Args:
        module: the attention of a block.
        query: of all rows.
        key: of all rows.
        value: of all rows.
        attention_mask: none is needed.
        row_lengths: tokens of each row; they sum up to N. None where the model does not pass it on: a single row.
        options: of `sdpa_attention_forward`.

    Raises:
        ValueError: there is a mask, which says of the long row what would have to be said of each.
    """
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} makes a mask of its own, with which rows cannot be packed")
    sizes = row_lengths or [query.shape[2]]
    rows = zip(*(states.split(sizes, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows], dim=1), None


AttentionInterface.register(ROW_BY_ROW, row_by_row)


@contextmanager
def rows_apart(trunk: PreTrainedModel) -> Iterator[None]:
    """Within, the trunk reads what `packed` gives it."""
    config = trunk.config
    before, config._attn_implementation = config._attn_implementation, ROW_BY_ROW
    try:
        yield
    finally:
        config._attn_implementation = before


def packed(sequences: Sequences) -> tuple[AlignedRows, dict[str, Any]]:
    """All rows in a single one, and the arguments that tell a model where each begins."""
    rows, lengths = sequences.aligned(), sequences.lengths.total - 1
    columns = torch.arange(rows.tokens.shape[1])
    real = (columns < lengths[:, None]).nonzero(as_tuple=True)
    aligned = AlignedRows(
        tokens=rows.tokens[real][None],
        rows=torch.zeros_like(rows.rows),
        columns=starts(lengths)[rows.rows] + rows.columns,
    )
    return aligned, {"position_ids": real[1][None], "row_lengths": lengths.tolist()}


def can_be_packed(trunk: nn.Module) -> TypeGuard[PreTrainedModel]:
    """Whether packed rows do not see each other in `trunk`, and cost less than padded ones.

    On a GPU starting a kernel for each row would cost more than padding does.
    """
    return (
        isinstance(trunk, PreTrainedModel)
        and trunk.device.type == "cpu"
        and trunk.config._attn_implementation == "sdpa"
        # Blocks that are computed again on the way back would find the usual attention.
        and not computes_again(trunk)
        # For any number of rows they would be compiled anew.
        and all(part._compiled_call_impl is None for part in trunk.modules())
        and _are_apart(trunk)
    )


def _are_apart(trunk: PreTrainedModel) -> bool:
    if trunk not in _keeps_rows_apart:
        _keeps_rows_apart[trunk] = (
            trunk._supports_attention_backend
            and takes_positions(trunk)
            # Windows, states that go on from row to row, and whatever else has a cache of its own.
            and ReservedCache(trunk.config).reserved_layers is not None
            and _read_alike(trunk)
        )
    return _keeps_rows_apart[trunk]


@torch.no_grad()
def _read_alike(trunk: PreTrainedModel) -> bool:
    """Whether a row behind another is read as it is alone, whatever that holds: no attribute tells it of all models."""
    # Of any numbers, but that the first rows differ.
    ids = [i % embedding_rows(trunk) for i in range(5)]
    row, positions = ids[2:], torch.tensor([[0, 1, 0, 1, 2]])

    def behind(first: list[int]) -> Tensor:
        tokens = torch.tensor([[*first, *row]])
        output = trunk(input_ids=tokens, position_ids=positions, row_lengths=[len(first), len(row)], use_cache=False)
        return output.last_hidden_state[:, len(first) :]

    # Casts of weights that were made here, without gradients, would be kept for those who need them.
    with torch.autocast("cpu", enabled=False):
        alone = trunk(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
        try:
            with rows_apart(trunk):
                one, other = behind(ids[:2]), behind(ids[3:])
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # whatever attention of its own makes of another function
            return False
    eps = torch.finfo(alone.dtype).eps
    # With small weights little leaks from row to row, but more than rounding does.
    return _near(one, alone, eps**0.5) and _near(one, other, 8 * eps)


def _near(one: Tensor, other: Tensor, share: float) -> bool:
    return bool((one - other).abs().max() <= share * other.abs().max())
