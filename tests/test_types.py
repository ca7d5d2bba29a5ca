"""The records: shapes are checked, and selecting rows takes away padding only."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from klqlit.types import Experience, Prompts, Sequences
from runs import make_sequences

tokens = st.lists(st.integers(1, 50), min_size=1, max_size=5)
rows = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5)
examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def experience(sequences):
    """Entries that say where they stand: 100 times the row plus the position, and a tenth for each name."""
    b, t = sequences.tokens.shape
    place = 100.0 * torch.arange(b)[:, None] + torch.arange(t)
    names = [field.name for field in fields(Experience) if field.name != "sequences"]
    return Experience(sequences=sequences, **{name: place + i / 10 for i, name in enumerate(names)})


def test_sequences_join_prompt_and_response():
    sequences = make_sequences([[1], [2, 3]], [[4, 5], [6]])
    assert sequences.input_ids.tolist() == [[5, 1, 4, 5], [2, 3, 6, 9]]
    assert sequences.attention_mask.tolist() == [[False, True, True, True], [True, True, True, False]]
    assert len(sequences) == 2


def test_select_drops_the_columns_that_are_padding_in_all_chosen_rows():
    chosen = make_sequences([[1], [2, 3], [4]], [[5], [6, 7], [8]], left=2, right=3).select(torch.tensor([2, 0]))
    assert chosen.prompt_tokens.tolist() == [[4], [1]]
    assert chosen.tokens.tolist() == [[8], [5]]
    assert bool(chosen.attention_mask.all())


@examples
@given(rows, st.integers(0, 3), st.integers(0, 3), st.data())
def test_select_keeps_every_real_token_in_its_place(rows, left, right, data):
    prompts, responses = [list(part) for part in zip(*rows, strict=True)]
    whole = experience(make_sequences(prompts, responses, left=left, right=right))
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, max_size=5))
    part = whole.select(torch.tensor(chosen))
    assert len(part) == len(chosen)
    assert part.sequences.prompt_tokens.shape[1] == max(len(prompts[i]) for i in chosen)
    assert part.mask.shape[1] == max(len(responses[i]) for i in chosen)
    for row, i in enumerate(chosen):
        assert part.sequences.prompt_tokens[row][part.sequences.prompt_mask[row]].tolist() == prompts[i]
        assert part.sequences.tokens[row][part.mask[row]].tolist() == responses[i]
        assert part.logprobs[row][part.mask[row]].tolist() == whole.logprobs[i][whole.mask[i]].tolist()
        assert part.returns[row][part.mask[row]].tolist() == whole.returns[i][whole.mask[i]].tolist()


@examples
@given(rows, st.integers(0, 3), st.integers(0, 3))
def test_aligned_rows_start_at_column_0_and_name_the_state_before_each_token(rows, left, right):
    prompts, responses = [list(part) for part in zip(*rows, strict=True)]
    sequences = make_sequences(prompts, responses, left=left, right=right)
    aligned = sequences.aligned()
    read = [prompt + response[:-1] for prompt, response in zip(prompts, responses, strict=True)]
    assert aligned.tokens.shape[1] == max(map(len, read))
    for row, tokens in enumerate(read):
        assert aligned.tokens[row, : len(tokens)].tolist() == tokens
    # The state before token t is that of the last token before it: the prompt's last one for the first.
    before = aligned.tokens[aligned.rows, aligned.columns].tolist()
    assert before == [token for p, r in zip(prompts, responses, strict=True) for token in [p[-1], *r[:-1]]]
    assert sequences.tokens[sequences.mask].tolist() == [token for response in responses for token in response]
    assert aligned.rows.tolist() == [row for row, response in enumerate(responses) for _ in response]


def test_shapes_that_disagree_are_refused():
    good = make_sequences([[1]], [[2, 3]])
    with pytest.raises(TypeCheckError):
        Sequences(
            prompt_tokens=good.prompt_tokens, prompt_mask=good.prompt_mask, tokens=good.tokens, mask=good.mask[:, :1]
        )


def test_prompts_count_their_rows():
    one = torch.ones(2, 3, dtype=torch.long)
    assert len(Prompts(texts=["a", "b"], tokens=one, mask=one.bool(), seeds=[0, 1], columns={})) == 2
