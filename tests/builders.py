"""Tiny models and tokenizers for tests, built in memory from a seed."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SENTENCES = [
    "How do I bake bread? Mix flour, water, salt and yeast, then wait.",
    "What is the sum of two and two? The sum is four, as everybody knows.",
    "SUBREDDIT: r/cooking\n\nTITLE: My bread did not rise\n\nPOST: I waited for an hour.\n\nTL;DR: No yeast.",
    "\n\nHuman: Can you help me with the garden?\n\nAssistant: Of course, tell me what grows there.",
]
ARCHITECTURES = ("gpt_neox", "llama", "gpt2", "qwen2")


def tiny_tokenizer(*, pad_token: str | None = "<pad>", vocab_size: int = 320) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer: every text round-trips. `pad_token` may be None, or "<eos>"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<eos>"] + (["<pad>"] if pad_token == "<pad>" else [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token=pad_token)


def tiny_config(architecture: str, vocab_size: int, *, positions: int = 128) -> PretrainedConfig:
    """Hidden size 16, two layers. Where an architecture has dropout, it is on, so that tests see it turned off."""
    size = {"vocab_size": vocab_size, "max_position_embeddings": positions, "eos_token_id": 0, "bos_token_id": None}
    hidden = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**size, **hidden, attention_dropout=0.1, hidden_dropout=0.1)
    if architecture == "llama":
        return LlamaConfig(**size, **hidden, num_key_value_heads=1, attention_dropout=0.1)
    if architecture == "qwen2":
        return Qwen2Config(**size, **hidden, num_key_value_heads=1, attention_dropout=0.1, tie_word_embeddings=True)
    assert architecture == "gpt2", architecture
    return GPT2Config(
        vocab_size=vocab_size, n_positions=positions, n_embd=16, n_layer=2, n_head=2, eos_token_id=0, bos_token_id=None
    )


def tiny_language_model(
    architecture: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, positions: int = 128
) -> PreTrainedModel:
    """A random causal language model, large enough in weights that its logits differ between tokens."""
    torch.manual_seed(seed)
    config = tiny_config(architecture, len(tokenizer), positions=positions)
    config.initializer_range = 0.3
    return AutoModelForCausalLM.from_config(config)


def tiny_reward_model(
    architecture: str, tokenizer: PreTrainedTokenizerBase, *, labels: int = 1, seed: int = 0, positions: int = 128
) -> PreTrainedModel:
    """A random sequence-classification model."""
    torch.manual_seed(seed)
    config = tiny_config(architecture, len(tokenizer), positions=positions)
    config.initializer_range = 0.3
    config.num_labels = labels
    config.pad_token_id = tokenizer.pad_token_id
    return AutoModelForSequenceClassification.from_config(config)


def save(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Save both as a directory that transformers loads; returns its path."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)
