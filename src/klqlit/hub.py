"""The hub, which is asked for models and data only where it answers."""

import os
from functools import cache
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import get_session
from lightning.pytorch.utilities import rank_zero_info

SECONDS = 10


def can_only_be_a_path(name: str) -> bool:
    """Whether the hub can know no such name: its names have one slash at most, hardly behind a folder's name."""
    first, *rest = name.split("/")
    inside = len(rest) > 1 or (len(rest) == 1 and Path(first).is_dir())
    return inside or name.startswith((".", "/", "~", os.sep))


def go_offline_without_network() -> None:
    """Keep the hub's clients to their caches, as `HF_HUB_OFFLINE=1` does, where the hub does not answer at all.

    Left alone they ask for each file six times, over half a minute, and say so each time.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        _ask()
    except Exception as error:  # whatever the HTTP client makes of a network that is not there
        constants.HF_HUB_OFFLINE = True
        rank_zero_info(
            f"{constants.ENDPOINT} does not answer ({error}): of its models and data, only copies in the cache"
        )


@cache
def _ask() -> None:
    """Any answer will do. An error is not kept, and an answer is: it is asked once."""
    get_session().head(constants.ENDPOINT, timeout=SECONDS)
