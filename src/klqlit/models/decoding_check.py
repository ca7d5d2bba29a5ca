"""Whether a model can be decoded token by token."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from klqlit.models.loading import embedding_rows

Decode = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]
Select = Callable[[Any, Tensor], Any]

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest mean difference of log-probabilities that rounding explains, nats; in other precisions `ROUNDED`."""

ROUNDED = 0.3


@torch.no_grad()
def check_decoding(decode: Decode, select: Select, model: PreTrainedModel, path: str) -> None:
    """Refuse a model that says other things of a row read token by token than of the same row read at once.

    Some keep their state elsewhere than in `past_key_values`, or let padding into it, and transformers does not tell:
    three rows are tried, with padding on the left, a prompt that two of them share, and two tokens after it.

    Args:
        decode: as in `Policy`.
        select: likewise.
        model: what reads rows at once.
        path: where the model came from, for the message.

    Raises:
        ValueError: it cannot be decoded, or not rightly.
    """
    if model.device.type == "meta":
        return  # without numbers there is nothing to compare
    try:
        decoded, rows = _decoded(decode, select, model)
        whole = torch.stack([model(input_ids=row[None], use_cache=False).logits[0, -1].float() for row in rows])
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model makes of a cache that it does not know
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"policy.path={path!r}: {type(model).__name__} cannot be sampled from token by token ({reason}); if the "
            "model is at fault, choose another causal language model"
        ) from error
    expected = whole.log_softmax(dim=-1)
    # Some models rule tokens out; and weights that are no numbers are named when they are used.
    known = expected.isfinite()
    gap = float((decoded.log_softmax(dim=-1) - expected)[known].abs().mean()) if known.any() else 0.0
    if not gap <= TOLERANCE.get(model.dtype, ROUNDED):
        raise ValueError(
            f"policy.path={path!r}: {type(model).__name__} gives other log-probabilities, by {gap:.2g} nats on "
            "average, when it reads token by token than when it reads a row at once, so that it would not sample from "
            "the policy that is trained. Its state lies elsewhere than in `past_key_values`, padding on the left "
            "changes it, or it draws at random in training; choose another causal language model"
        )


def _decoded(decode: Decode, select: Select, model: PreTrainedModel) -> tuple[Float[Tensor, "B V"], list[Tensor]]:
    """Logits of the token that follows three rows, read as the sampler does; and the rows without padding."""
    device = model.device
    some = torch.arange(6, device=device) % embedding_rows(model)
    tokens = some.view(2, 3)
    mask = torch.tensor([[False, True, True], [True, True, True]], device=device)
    logits, cache = decode(tokens, mask, None)
    chosen = torch.tensor([1, 1, 0], device=device)
    cache = select(cache, chosen)
    tokens, mask = tokens[chosen], mask[chosen]
    for step in some.view(2, 3, 1):
        tokens = torch.cat([tokens, step], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        logits, cache = decode(step, mask, cache)
    return logits, [row[real] for row, real in zip(tokens, mask, strict=True)]
