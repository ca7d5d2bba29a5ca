"""The transformer blocks of a model."""

from torch import nn
from transformers import PreTrainedModel


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """In their order; blocks are what transformers says must stay on one device."""
    names = {
        name
        for model in module.modules()
        if isinstance(model, PreTrainedModel)
        for name in model._no_split_modules or ()
    }
    return [block for block in module.modules() if type(block).__name__ in names]
