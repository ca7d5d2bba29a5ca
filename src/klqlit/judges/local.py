"""What the judges share that compute here."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from klqlit.judges.base import Verdict

Item = TypeVar("Item")


def higher(first: int | float, second: int | float, margin: float = 0.0) -> Verdict:
    """The side with the higher number; a tie where they differ by no more than `margin`."""
    if abs(first - second) <= margin:
        return "tie"
    return "first" if first > second else "second"


def until_stopped(items: Sequence[Item], stopping: threading.Event | None) -> Iterator[Item]:
    """The items, up to the one before which `stopping` is set."""
    for item in items:
        if stopping is not None and stopping.is_set():
            return
        yield item


def chosen_device(device: str | None) -> torch.device:
    """`device`, or where there is none the GPU, or where there is none the CPU.

    Raises:
        ValueError: torch knows no such device.
    """
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is none that torch knows: give 'cpu' or 'cuda', for instance") from error


@torch.no_grad()
def weights_digest(module: nn.Module) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a module's weights: another training gives others."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} ".encode())
            _add(digest, value)
    return digest.hexdigest()[:12]


@torch.no_grad()
def tensor_digest(value: Tensor) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a tensor's type, shape and numbers."""
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()[:12]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Likewise of a tokenizer's vocabulary and chat template."""
    return digest_of(f"{sorted(tokenizer.get_vocab().items())} {tokenizer.chat_template}")


def _add(digest: "hashlib._Hash", value: Tensor) -> None:
    digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def digest_of(text: str) -> str:
    """The first 12 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
