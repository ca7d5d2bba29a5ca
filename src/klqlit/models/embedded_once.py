"""Parts of a batch that go through a trunk one after the other are looked up in its embedding together.

The gradient of an embedding is as large as the vocabulary, however few tokens were read: each look-up would fill one
and add it to the others.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def embedded_once(trunk: nn.Module, parts: Sequence[Tensor]) -> Iterator[None]:
    """Within, the trunk's embedding gives what was looked up for all parts at once.

    Args:
        trunk: the model; one that is not of transformers is left as it is.
        parts: token ids, ``[B, L]`` of its own size each, in the order in which the trunk will read them. Other tokens
            it looks up as ever.
    """
    if not isinstance(trunk, PreTrainedModel):
        yield
        return
    embedding = trunk.get_input_embeddings()
    found = embedding(torch.cat([tokens.flatten() for tokens in parts])).split([tokens.numel() for tokens in parts])
    ahead = deque(zip(parts, found, strict=True))

    def skip(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        return (inputs[0][:0],) if inputs and ahead and torch.equal(inputs[0], ahead[0][0]) else None

    def give(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not inputs or len(inputs[0]):
            return None
        tokens, states = ahead.popleft()
        return states.view(*tokens.shape, -1)

    hooks = [embedding.register_forward_pre_hook(skip), embedding.register_forward_hook(give)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
