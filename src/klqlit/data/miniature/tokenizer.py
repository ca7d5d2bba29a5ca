"""A small byte-level tokenizer trained on a task's own text."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from klqlit.data.source import Source

EOS, PAD = "<eos>", "<pad>"
_ROWS = 4_000
_TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains byte-level byte-pair encoding; the same texts give the same tokenizer.

    All 256 bytes are tokens, so no text is unknown and decoding gives every text back exactly.

    Args:
        texts: what to learn the merges from.
        vocab_size: upper bound of the number of tokens, the two special ones included; at least 258.

    Raises:
        ValueError: `vocab_size` is too small for the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 2:
        raise ValueError(f"vocab_size={vocab_size} leaves no room for 256 bytes and 2 special tokens: give 258 or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def task_texts(task: Source) -> list[str]:
    """Texts of a task's first training rows, for `train_tokenizer`."""
    return [row[column] for row in task.rows("train")[:_ROWS] for column in _TEXT_COLUMNS if column in row]
