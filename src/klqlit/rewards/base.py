"""What scores a response."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from klqlit.types import Completions


class Reward(nn.Module, ABC):
    """Scores completions. Subclass it, or give a function to `FunctionReward`."""

    @abstractmethod
    def forward(self, completions: Completions) -> Float[Tensor, " B"] | Float[Tensor, "B T"]:
        """One score a completion, or one a response token (entries beyond a response's mask are ignored)."""
