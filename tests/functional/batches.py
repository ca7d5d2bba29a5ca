"""Random batches for the property tests, in float64 and reproducible."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

examples = settings(max_examples=20, deadline=None, derandomize=True, database=None)


@st.composite
def masks(draw: st.DrawFn, max_rows: int = 4, max_tokens: int = 6) -> Tensor:
    """Responses of 1 to T tokens, padded on the right."""
    lengths = draw(st.lists(st.integers(1, max_tokens), min_size=1, max_size=max_rows))
    width = draw(st.integers(max(lengths), max_tokens + 2))
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


generators = st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def spoil(x: Tensor, mask: Tensor, rubbish: float = float("nan")) -> Tensor:
    """`x` with rubbish in padding."""
    return torch.where(mask, x, rubbish)
