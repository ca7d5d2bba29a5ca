"""One set of weights is one function: nothing is drawn at random, in train mode too."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from klqlit.models.loading import embedding_rows, max_positions

TOKENS = 48
"""Of the row that is read; some draws change few tokens."""


def make_deterministic(model: PreTrainedModel, path: str) -> None:
    """Turn off what makes a model random in train mode, and refuse one that stays so.

    Args:
        model: in train mode.
        path: where it came from, for the message.

    Raises:
        ValueError: as `check_deterministic`.
    """
    disable_dropout(model)
    check_deterministic(model, path)


def disable_dropout(model: nn.Module) -> None:
    """Set every rate of dropout and of experts' jitter to 0, in modules, in the numbers attention reads, and in the
    configuration.

    One set of weights is then one function, in train mode too.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_rates(vars(module))
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            _zero_rates(vars(module.config))


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


def _zero_rates(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if ("drop" in name or "jitter" in name) and isinstance(value, float | int) and not isinstance(value, bool):
            values[name] = 0.0
