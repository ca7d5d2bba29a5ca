"""Weights in a lower precision, under autocast."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def casts_kept() -> Iterator[None]:
    """Within an autocast context, weights are cast once and kept until this one ends. Lightning's casts at each use.

    For what reads the same weights many times, such as decoding, which otherwise moves more bytes for the cast than for
    the product. Weights that are not trained are cast each time all the same.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
        torch.clear_autocast_cache()  # of weights that may change before the next use
