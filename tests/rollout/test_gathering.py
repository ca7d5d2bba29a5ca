"""Rollouts of several ranks become one."""

from dataclasses import replace

import pytest
import torch

from klqlit.rollout.gathering import concatenate, gather
from runs import make_completions, make_sequences, two_rows


def other():
    """A rollout with longer prompts."""
    rollout = two_rows()
    sequences = make_sequences([[1, 2, 3], [4]], [[5], [6, 7]])
    completions = make_completions([("e", "f"), ("g", "h")], sequences, ended=[True, True])
    return replace(rollout, completions=completions, scores=torch.tensor([5.0, 6.0]))


def test_rows_keep_their_order_and_prompts_are_padded_on_the_left():
    whole = concatenate([two_rows(), other()])
    assert whole.sequences.prompt_mask.tolist() == [
        [False, False, True],
        [False, False, True],
        [True, True, True],
        [False, False, True],
    ]
    assert whole.sequences.prompt_tokens[:, -1].tolist() == [1, 1, 3, 4]
    assert whole.sequences.tokens[2:].tolist() == other().sequences.tokens.tolist()
    assert whole.scores.tolist() == [1.0, 3.0, 5.0, 6.0]
    assert whole.completions.prompts == ["a", "a", "e", "g"]
    assert whole.completions.completions == ["bc", "d", "f", "h"]
    assert whole.completions.ended.tolist() == [True, False, True, True]


def test_every_tensor_is_kept():
    whole = concatenate([two_rows(), other()])
    for name in ("logprobs", "ref_logprobs", "values", "entropy", "rewards"):
        both = torch.cat([getattr(two_rows(), name), getattr(other(), name)])
        torch.testing.assert_close(getattr(whole, name), both, equal_nan=True)


def test_columns_are_joined_by_name():
    parts = [two_rows(), other()]
    parts[0].completions.columns = {"topic": ["x", "y"]}
    parts[1].completions.columns = {"topic": ["z", None]}
    assert concatenate(parts).completions.columns == {"topic": ["x", "y", "z", None]}


def test_versions_cannot_be_mixed():
    with pytest.raises(AssertionError, match="several versions"):
        concatenate([two_rows(), replace(other(), version=1)])


def test_one_process_gathers_itself():
    rollout = gather(two_rows())
    torch.testing.assert_close(rollout.logprobs, two_rows().logprobs, equal_nan=True)
    assert rollout.sequences.tokens.tolist() == two_rows().sequences.tokens.tolist()
    assert rollout.completions.completions == ["bc", "d"]
    assert rollout.version == 0
