"""The hub, which is asked for models and data only where it answers."""

from functools import cache

from huggingface_hub import constants
from huggingface_hub.utils import get_session
from lightning.pytorch.utilities import rank_zero_info

SECONDS = 10


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
