"""What a causal model makes of the states before each response token."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from klqlit.models.embedded_once import embedded_once
from klqlit.models.last_mlp import last_mlp_before_tokens
from klqlit.models.lengths import is_ragged, similar_lengths
from klqlit.models.packed import can_be_packed, packed, rows_apart
from klqlit.types import AlignedRows, Sequences, starts


def token_states(trunk: nn.Module, sequences: Sequences) -> Float[Tensor, "N H"]:
    """The trunk's last hidden state before each real response token, in the order of `sequences.mask`.

    Rows of different lengths are packed where the trunk allows it. Otherwise rows of similar length go through it
    together; they start at column 0, so that causal attention alone keeps padding out: no mask, no positions to give.
    """
    if _is_sharded(trunk):
        return _states(trunk, sequences.aligned())
    lengths = sequences.lengths.total.tolist()
    if is_ragged(lengths) and can_be_packed(trunk):
        aligned, where = packed(sequences)
        with rows_apart(trunk):
            return _states(trunk, aligned, **where)
    groups = similar_lengths(lengths)
    return _states(trunk, sequences.aligned()) if len(groups) == 1 else _states_in_groups(trunk, sequences, groups)


def token_logits(model: PreTrainedModel, sequences: Sequences) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N H"]]:
    """Logits of each real response token as the model itself computes them, and the states its LM head read.

    The head is given these tokens alone, whatever the model does to its logits afterwards.
    """
    aligned, read = sequences.aligned(), []

    def response_tokens(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        read.append(inputs[0][aligned.rows, aligned.columns])
        return (read[0][None],)

    with model.get_output_embeddings().register_forward_pre_hook(response_tokens):
        logits = model(input_ids=aligned.tokens, use_cache=False).logits
    return logits[0], read[0]


def few_logits(head: nn.Linear, states: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
    """The LM head on the states of a few tokens.

    On a CPU a large matrix by a few columns is up to three times as fast as a few rows by a large matrix.
    """
    if states.device.type != "cpu":
        return head(states)
    weight, columns = head.weight, states.T
    logits = weight @ columns if head.bias is None else torch.addmm(head.bias[:, None], weight, columns)
    return logits.T.contiguous()


def spread(values: Float[Tensor, "N *rest"], sequences: Sequences) -> Float[Tensor, "B T *rest"]:
    """One value a real response token, put where it stands; 0 elsewhere."""
    result = torch.zeros((*sequences.mask.shape, *values.shape[1:]), dtype=values.dtype, device=values.device)
    result[sequences.places] = values
    return result


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the LM head alone makes the logits of the trunk's last hidden state.

    Some models scale or cap their logits, which no attribute tells of: two tokens are tried.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model:
        return False
    tokens = torch.arange(2, device=model.device)[None]
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    if hidden.shape[-1] != head.in_features:
        return False
    return torch.equal(head(hidden), model(input_ids=tokens, use_cache=False).logits)


def _states(trunk: nn.Module, aligned: AlignedRows, **where: Any) -> Float[Tensor, "N H"]:
    with last_mlp_before_tokens(trunk, aligned):
        hidden = trunk(input_ids=aligned.tokens, use_cache=False, **where).last_hidden_state
    return hidden[aligned.rows, aligned.columns]


def _states_in_groups(trunk: nn.Module, sequences: Sequences, groups: list[list[int]]) -> Float[Tensor, "N H"]:
    order = torch.tensor([row for group in groups for row in group])
    parts = [sequences.select(rows).aligned() for rows in order.split([len(group) for group in groups])]
    with embedded_once(trunk, [part.tokens for part in parts]):
        states = torch.cat([_states(trunk, part) for part in parts])
    # Where each row's tokens begin, now that the rows stand in another order.
    first = torch.empty_like(order)
    first[order] = starts(sequences.lengths.responses[order])
    rows, steps = sequences.places
    return states.index_select(0, sequences.beside(first)[rows] + steps)


def _is_sharded(trunk: nn.Module) -> bool:
    # A pass gathers the weights from all ranks, which must therefore make as many passes.
    return dist.is_initialized() and any(isinstance(p, DTensor) for p in trunk.parameters())
