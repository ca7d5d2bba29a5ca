"""A causal language model with its tokenizer: what the two supervised stages start from."""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from klqlit.models.determinism import make_deterministic
from klqlit.models.loading import check_vocabulary, load_causal_lm, load_tokenizer
from klqlit.models.positions import position_inputs
from klqlit.types import Sequences


@final
class LanguageModel:
    """A causal language model and its tokenizer. Dropout is off.

    Args:
        path: local directory or hub name.
        dtype: of the weights. Small learning rates are lost in the rounding of bfloat16 weights, so fine-tune in
            "float32" and let the trainer's `precision: bf16-mixed` save the time.
        attn_implementation: as in transformers; None for its default.
        trust_remote_code: run code that comes with the model. Off unless you trust its author.
        revision: branch, tag or commit on the hub.

    Attributes:
        path: where the model came from; a description where it was built in memory.
        model: the model.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the model or tokenizer cannot be loaded, or they do not belong together.
    """

    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code, revision=revision)
        model = load_causal_lm(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision=revision,
        )
        self._assemble(model, tokenizer, path)

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str = "a new model"
    ) -> "LanguageModel":
        """From a model and a tokenizer already in memory; `path` says in words where they came from."""
        language_model = cls.__new__(cls)
        language_model._assemble(model.train(), tokenizer, path)
        return language_model

    def _assemble(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
        check_vocabulary(tokenizer, model, path)
        make_deterministic(model, path)
        self.model, self.tokenizer, self.path = model, tokenizer, path


def model_inputs(model: PreTrainedModel, sequences: Sequences) -> dict[str, Any]:
    """The arguments with which `model` reads whole sequences; padding on the left shifts no position."""
    inputs = {
        "input_ids": sequences.input_ids,
        "attention_mask": sequences.attention_mask.long(),
        "use_cache": False,
    }
    return inputs | position_inputs(model, sequences.attention_mask)


def completion_logits(model: PreTrainedModel, sequences: Sequences) -> Float[Tensor, "B T V"]:
    """Logits of the completion tokens: entry t scores the token at t. The LM head is skipped at prompt positions."""
    kept = sequences.tokens.shape[1] + 1
    return model(**model_inputs(model, sequences), logits_to_keep=kept).logits[:, :-1]
