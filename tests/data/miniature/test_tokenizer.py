"""The trained tokenizer, and the model made for it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.data.miniature import MiniHH
from klqlit.data.miniature.tokenizer import task_texts, train_tokenizer
from klqlit.models.scratch import new_language_model

TASK = MiniHH(size=300)
TOKENIZER = train_tokenizer(task_texts(TASK), 600)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_every_text_comes_back_exactly(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_the_tasks_own_text_comes_back_exactly_and_short():
    row = TASK.rows("train")[0]
    text = row["prompt"] + row["completion"]
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert len(TOKENIZER.encode(text)) < len(text) / 2


def test_special_tokens_are_two_and_no_text_is_unknown():
    assert TOKENIZER.eos_token_id != TOKENIZER.pad_token_id
    assert TOKENIZER.unk_token_id is None
    assert len(TOKENIZER) == 600
    assert TOKENIZER.padding_side == "left"


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer(task_texts(TASK), 600).get_vocab() == TOKENIZER.get_vocab()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = type(TOKENIZER).from_pretrained(tmp_path)
    text = TASK.rows("train")[1]["prompt"]
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=257 leaves no room"):
        train_tokenizer(["a"], 257)


def test_a_new_model_fits_its_tokenizer_and_seed():
    state = torch.get_rng_state()
    first, again, other = (new_language_model(TASK, layers=1, vocab_size=300, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first.tokenizer) == 300
    assert first.model.get_input_embeddings().weight.shape == (300, 128)
    assert first.model.get_output_embeddings().weight is first.model.get_input_embeddings().weight
    assert torch.equal(first.model.get_input_embeddings().weight, again.model.get_input_embeddings().weight)
    assert not torch.equal(first.model.get_input_embeddings().weight, other.model.get_input_embeddings().weight)
    assert first.model.config.eos_token_id == first.tokenizer.eos_token_id


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="hidden_size=100 is not a multiple"):
        new_language_model(TASK, hidden_size=100, heads=8)


@pytest.mark.parametrize("name", ["hidden_size", "layers", "heads", "max_positions"])
def test_a_size_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got 0: leave it out"):
        new_language_model(TASK, **{name: 0})
