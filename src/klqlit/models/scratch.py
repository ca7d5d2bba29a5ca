"""A small language model with random weights, for the miniature tasks."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from klqlit.data.miniature.tokenizer import task_texts, train_tokenizer
from klqlit.data.source import Source
from klqlit.functional.checks import check_positive
from klqlit.models.language_model import LanguageModel


def new_language_model(
    task: Source,
    *,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    vocab_size: int = 1024,
    max_positions: int = 256,
    seed: int = 0,
) -> LanguageModel:
    """A Llama-type model with tied embeddings, with a tokenizer trained on the task's text.

    The global random state is left as it was; the same arguments give the same weights.

    Args:
        task: whose training text the tokenizer is trained on.
        hidden_size: width of the residual stream; the feed-forward layers are 3 times as wide.
        layers: number of transformer blocks.
        heads: attention heads a layer.
        vocab_size: upper bound of the number of tokens, at least 258. Text of few words gives fewer.
        max_positions: longest prompt and response together, in tokens.
        seed: of the weights.

    Raises:
        ValueError: a size is not positive, `heads` does not divide `hidden_size` into even widths, or `vocab_size` is
            below 258.
    """
    sizes = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "max_positions": max_positions}
    for name, value in sizes.items():
        check_positive(name, value, "leave it out for a size that trains on a laptop")
    if hidden_size % (2 * heads):
        raise ValueError(
            f"hidden_size={hidden_size} is not a multiple of 2 * heads={2 * heads}, as rotary positions need: "
            f"give {2 * heads * max(1, round(hidden_size / (2 * heads)))}, or another number of heads"
        )
    tokenizer = train_tokenizer(task_texts(task), vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LanguageModel.of(model, tokenizer, f"a new model for {type(task).__name__}")
