"""A reward model grown on a language model: its trunk under a new scalar head."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from klqlit.functional.masking import last_index
from klqlit.models.determinism import disable_dropout
from klqlit.models.language_model import LanguageModel, model_inputs
from klqlit.models.loading import embedding_rows
from klqlit.types import Sequences

PAD_TOKEN = "<|padding|>"


def grow_reward_model(language_model: LanguageModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence-classification model with one output on a copy of the trunk, and a tokenizer that has a pad token.

    The head starts as N(0, 1 / (H + 1)), so that scores start at order one whatever the width.

    transformers scores the last token that is not the pad token. Where the pad token is the EOS token, it would skip
    the EOS that closes a completion and score the token before it: such a tokenizer gets a pad token of its own.

    Raises:
        ValueError: transformers has no sequence classification with a linear `score` head for this architecture.
    """
    config = copy.deepcopy(language_model.model.config)
    config.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=language_model.model.dtype)
        head = model.get_submodule("score")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"no reward model can be grown on {language_model.path!r}: transformers has no sequence classification "
            f"with a `score` head for {type(config).__name__}; start from another, such as GPT-NeoX or Llama"
        ) from error
    assert isinstance(head, nn.Linear)
    model.base_model.load_state_dict(language_model.model.base_model.state_dict())
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    disable_dropout(model)
    tokenizer = copy.deepcopy(language_model.tokenizer)
    _set_pad_token(model, tokenizer)
    return model.train(), tokenizer


def sequence_scores(model: PreTrainedModel, sequences: Sequences) -> Float[Tensor, " B"]:
    """R(x, y): the `score` head at each row's last real token."""
    hidden = model.base_model(**model_inputs(model, sequences)).last_hidden_state
    last = sequences.prompt_tokens.shape[1] + last_index(sequences.mask)
    rows = torch.arange(len(sequences), device=hidden.device)
    return model.get_submodule("score")(hidden[rows, last]).squeeze(-1).float()


def _set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if tokenizer.pad_token_id >= embedding_rows(model):
        # The new row is never attended to, so what stands in it does not matter.
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
