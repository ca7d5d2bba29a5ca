"""Whether one set of weights is one function."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from klqlit.models.loading import embedding_rows, max_positions

TOKENS = 48
"""Of the row that is read; some draws change few tokens."""


@torch.no_grad()
def check_deterministic(model: PreTrainedModel, path: str) -> None:
    """Refuse a model that draws at random in train mode, when dropout and jitter are off.

    What a policy sampled with would not be what is trained, and a score not that of the text.

    Args:
        model: in train mode.
        path: where it came from, for the message.

    Raises:
        ValueError: two readings of one row differ.
    """
    if model.device.type == "meta":
        return  # without numbers there is nothing to compare
    length = min(TOKENS, (max_positions(model.config) or TOKENS) // 2)
    tokens = torch.arange(length, device=model.device)[None] % embedding_rows(model)
    with torch.random.fork_rng(devices=[]):
        if model.device.type == "cpu" and not _draws(model, tokens[:, :2]):
            return
        once, again = _read(model, tokens), _read(model, tokens)
    rounding = max(1e-5, 4 * torch.finfo(once.dtype).eps) * once.abs().max()
    if bool(((once - again).abs() > rounding).any()):
        raise ValueError(
            f"{path!r}: {type(model).__name__} draws at random in train mode, besides dropout and jitter: two readings "
            "of one row differ. Choose a model that does not"
        )


def _draws(model: PreTrainedModel, tokens: Tensor) -> bool:
    before = torch.get_rng_state()
    _read(model, tokens)
    return not torch.equal(before, torch.get_rng_state())


def _read(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False)[0]
