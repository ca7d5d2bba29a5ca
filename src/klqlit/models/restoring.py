"""Whether the weights of a checkpoint belong to a model."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase


def check_fits(saved: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    """Refuse weights of other names or shapes before a library does, a line for each.

    Raises:
        ValueError: they differ.
    """
    shapes = [
        f"{name} is {list(saved[name].shape)} there and {list(present[name].shape)} here"
        for name in saved.keys() & present.keys()
        if saved[name].shape != present[name].shape
    ]
    names = [f"{name} is only there" for name in saved.keys() - present.keys()]
    names += [f"{name} is only here" for name in present.keys() - saved.keys()]
    faults = sorted(shapes) + sorted(names)
    if faults:
        raise ValueError(
            f"the checkpoint holds another model: {len(faults)} weights do not fit ({'; '.join(faults[:2])}). Give the "
            "model, critic and class it was saved with, or choose another run_dir"
        )


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of which token has which id."""
    tokens = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(tokens.encode()).hexdigest()


def check_vocabulary(checkpoint: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse to go on with weights that learned other tokens.

    Args:
        checkpoint: with what `vocabulary` returned under "vocabulary".
        tokenizer: of the model to be restored.

    Raises:
        ValueError: the tokenizer is another.
    """
    if checkpoint["vocabulary"] != vocabulary(tokenizer):
        raise ValueError(
            "the checkpoint was saved with another tokenizer, whose ids stand for other tokens: give the model and "
            "tokenizer it was saved with, or choose another run_dir"
        )
