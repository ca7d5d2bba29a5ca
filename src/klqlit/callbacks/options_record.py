"""The options of a run, in its checkpoints."""

from collections.abc import Mapping
from typing import Any, final

import lightning as L


@final
class OptionsRecord(L.Callback):
    """Puts the options of this start into each checkpoint, so that a later start can name what has changed.

    Args:
        options: values as text, by dotted name.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = dict(options)

    def state_dict(self) -> dict[str, Any]:
        return {"options": self.options}
