"""What a dataset offers to the three data modules."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

Split = Literal["train", "validation"]
Row = dict[str, Any]
TokenCounter = Callable[[str], int]


class Source(ABC):
    """A dataset as rows of text.

    A row is a dict with ``prompt``, formatted as the policy reads it, and whatever else the dataset knows:

    - ``completion``: text to imitate, with its leading space and without EOS (for supervised fine-tuning);
    - ``chosen`` and ``rejected``: completions, formatted likewise (for reward modelling);
    - any further column: handed to reward functions and sample tables by name.
    """

    @abstractmethod
    def rows(self, split: Split) -> list[Row]:
        """All rows of a split, in a fixed order.

        Raises:
            ValueError: a file or row is unusable; the message names file, line or row, and the way out.
        """

    @abstractmethod
    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        """`prompt` cut to at most `limit` tokens the way this dataset is cut; unchanged where it fits.

        Args:
            prompt: a row's prompt.
            count: number of tokens of a text.
            limit: tokens allowed, positive.
        """
