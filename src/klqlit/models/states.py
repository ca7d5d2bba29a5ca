"""What a causal model makes of the states before each response token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from klqlit.types import Sequences


def token_states(trunk: nn.Module, sequences: Sequences) -> Float[Tensor, "N H"]:
    """The trunk's last hidden state before each real response token, in the order of `sequences.mask`.

    Rows start at column 0, so that causal attention alone keeps padding out: no mask, no positions to give.
    """
    aligned = sequences.aligned()
    hidden = trunk(input_ids=aligned.tokens, use_cache=False).last_hidden_state
    return hidden[aligned.rows, aligned.columns]


def token_logits(model: PreTrainedModel, sequences: Sequences) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N H"]]:
    """Logits of each real response token as the model itself computes them, and the states they come from."""
    aligned = sequences.aligned()
    first = int(aligned.columns.min())
    output = model(
        input_ids=aligned.tokens,
        logits_to_keep=aligned.tokens.shape[1] - first,
        output_hidden_states=True,
        use_cache=False,
    )
    logits = output.logits[aligned.rows, aligned.columns - first]
    return logits, output.hidden_states[-1][aligned.rows, aligned.columns]


def spread(values: Float[Tensor, "N *rest"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T *rest"]:
    """One value a real token, put where the mask is True; 0 elsewhere."""
    result = torch.zeros((*mask.shape, *values.shape[1:]), dtype=values.dtype, device=values.device)
    result[mask] = values
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
    return torch.equal(head(hidden), model(input_ids=tokens, use_cache=False).logits)
