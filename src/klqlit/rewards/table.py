"""A reward that is listed for every response."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from klqlit.functional.masking import masked_sum
from klqlit.models.tabular import ResponseTree
from klqlit.rewards.base import Reward
from klqlit.types import Completions


@final
class TableReward(Reward):
    r"""R(x, y) = \sum_t r(s_t, a_t).

    Args:
        rewards: r(s, a), one row a state of `tree`.
        tree: the problem's states.

    Raises:
        ValueError: `rewards` does not fit the tree.
    """

    rewards: Tensor

    def __init__(self, rewards: Float[Tensor, "N V"], tree: ResponseTree) -> None:
        super().__init__()
        if rewards.shape != tree.next_states.shape:
            raise ValueError(
                f"rewards has shape {tuple(rewards.shape)}, but the tree has {len(tree)} states and "
                f"{tree.next_states.shape[1]} tokens"
            )
        self.tree = tree
        self.register_buffer("rewards", rewards.float(), persistent=False)

    def forward(self, completions: Completions) -> Float[Tensor, " B"]:
        sequences = completions.sequences
        return masked_sum(self.rewards[self.tree(sequences), sequences.tokens], sequences.mask, dim=1)
