"""Text to token ids, the same way in every stage."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that a completion follows: with the BOS token where the tokenizer adds one, never with EOS.

    Raises:
        ValueError: a text has no token.
    """
    rows = tokenizer(list(texts), verbose=False)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if row and row[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
            row.pop()
        if not row:
            raise ValueError(f"the prompt {text!r} has no token; remove the row or give it text")
    return rows


def encode_completions(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Token ids of completions, closed by EOS; one with more than `limit` tokens is cut and stays open."""
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[*row, tokenizer.eos_token_id][:limit] for row in rows]
