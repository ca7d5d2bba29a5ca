"""Three small tasks that the package makes from a seed, with gold scores to check a learned reward against.

Each task is a `Source` in a file of its own, beside the phrases it is made of and the gold score as a pure function of
text. The rewards in `klqlit.rewards.miniature` wrap these functions; `klqlit.models.scratch` makes a model to train.
"""

from klqlit.data.miniature.hh import MiniHH
from klqlit.data.miniature.sums import MiniSums
from klqlit.data.miniature.tldr import MiniTLDR

__all__ = ["MiniHH", "MiniSums", "MiniTLDR"]
