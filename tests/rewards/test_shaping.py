"""A score lands on the last real token, and shaping changes it as it says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.rewards.shaping import RewardShaping, place_scores, total_scores

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def shape(shaping, scores, ended=(True, True, True)):
    return shaping(place_scores(torch.tensor(scores), MASK), torch.tensor(ended), MASK)


def test_scores_land_on_the_last_real_token():
    assert place_scores(torch.tensor([1.0, 2.0, 3.0]), MASK).tolist() == [[0, 0, 1], [0, 2, 0], [3, 0, 0]]


def test_scores_per_token_stay_where_they_are_and_padding_is_cleared():
    nan = float("nan")
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, nan], [6.0, nan, 7.0]])
    assert place_scores(scores, MASK).tolist() == [[1, 2, 3], [4, 5, 0], [6, 0, 0]]


def test_totals_sum_over_real_tokens():
    nan = float("nan")
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, nan], [6.0, nan, 7.0]])
    assert total_scores(scores, MASK).tolist() == [6.0, 9.0, 6.0]
    assert total_scores(torch.tensor([1.0, 2.0, 3.0]), MASK).tolist() == [1.0, 2.0, 3.0]


@examples
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_placing_and_summing_are_inverse(lengths):
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    scores = torch.arange(1.0, len(lengths) + 1)
    rewards = place_scores(scores, mask)
    assert total_scores(rewards, mask).tolist() == scores.tolist()
    assert [int(row.nonzero()) for row in rewards] == [length - 1 for length in lengths]


def test_nothing_is_shaped_by_default():
    assert torch.equal(shape(RewardShaping(), [5.0, -7.0, 100.0]), place_scores(torch.tensor([5.0, -7.0, 100.0]), MASK))
    assert torch.equal(shape(RewardShaping(), [5.0, -7.0, 1.0], (False,) * 3), shape(RewardShaping(), [5.0, -7.0, 1.0]))


def test_clip_bounds_each_reward():
    assert shape(RewardShaping(clip=2.0), [5.0, -7.0, 1.0]).sum(dim=1).tolist() == [2.0, -2.0, 1.0]


def test_scale_multiplies_after_the_clip():
    assert shape(RewardShaping(clip=2.0, scale=10.0), [5.0, -7.0, 1.0]).sum(dim=1).tolist() == [20.0, -20.0, 10.0]


def test_penalty_falls_on_the_last_token_of_cut_responses_alone():
    """The middle one ended, be it by EOS or by a stop string: it keeps its score."""
    shaped = shape(RewardShaping(missing_eos_penalty=1.5), [1.0, 2.0, 3.0], ended=(False, True, False))
    assert shaped.tolist() == [[0, 0, -0.5], [0, 2, 0], [1.5, 0, 0]]


def test_penalty_is_not_scaled():
    shaped = shape(RewardShaping(scale=10.0, missing_eos_penalty=1.5), [1.0, 2.0, 3.0], ended=(False, True, True))
    assert shaped.sum(dim=1).tolist() == [8.5, 20.0, 30.0]


def test_penalty_joins_rewards_per_token():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0], [6.0, 0.0, 0.0]])
    shaped = RewardShaping(missing_eos_penalty=1.0)(rewards, torch.tensor([False, False, True]), MASK)
    assert shaped.tolist() == [[1, 2, 2], [4, 4, 0], [6, 0, 0]]


batches = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


@examples
@given(batches)
def test_normalisation_divides_by_the_deviation_of_all_scores_so_far(batches):
    """Against numpy over the whole history; the mean is not taken away."""
    shaping, seen = RewardShaping(normalise=True), []
    for scores in batches:
        seen += scores
        spread = np.std(np.array(seen, dtype=np.float64), ddof=1)
        divisor = spread if spread > 1e-6 else None
        shaped = shape(shaping, scores).sum(dim=1)
        if divisor is not None:
            torch.testing.assert_close(shaped, torch.tensor(scores) / np.float32(divisor), rtol=1e-4, atol=1e-5)
        elif len(set(seen)) == 1:
            torch.testing.assert_close(shaped, torch.tensor(scores))


def test_normalisation_survives_a_large_mean():
    """Scores about 1e6 with deviation 1: squares minus squared mean would lose it all."""
    shaping = RewardShaping(normalise=True)
    shaped = shape(shaping, [999_999.0, 1_000_000.0, 1_000_001.0]).sum(dim=1)
    assert shaped[1].item() == pytest.approx(1e6, rel=1e-6)


def test_the_first_score_and_equal_scores_are_left_as_they_are():
    one = RewardShaping(normalise=True)(torch.tensor([[4.0]]), torch.tensor([True]), torch.tensor([[True]]))
    assert one.tolist() == [[4.0]]
    assert shape(RewardShaping(normalise=True), [4.0, 4.0, 4.0]).sum(dim=1).tolist() == [4.0, 4.0, 4.0]


def test_running_statistics_are_state():
    shaping = RewardShaping(normalise=True)
    shape(shaping, [1.0, 2.0, 6.0])
    copy = RewardShaping(normalise=True)
    copy.load_state_dict(shaping.state_dict())
    assert torch.equal(shape(copy, [3.0, 4.0, 5.0]), shape(shaping, [3.0, 4.0, 5.0]))


def test_order_of_the_changes_is_clip_normalise_scale_penalty():
    """Scores 3, 0, -9 are clipped to 3, 0, -3, of deviation 3; then doubled; then 1 is taken from the cut one."""
    shaping = RewardShaping(clip=3.0, normalise=True, scale=2.0, missing_eos_penalty=1.0)
    assert shape(shaping, [3.0, 0.0, -9.0], ended=(True, False, True)).sum(dim=1).tolist() == [2.0, -1.0, -2.0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"clip": 0.0}, r"shaping\.clip must be a finite number above 0, got 0\.0"),
        ({"clip": math.nan}, r"shaping\.clip must be a finite number above 0, got nan"),
        ({"scale": -1.0}, r"shaping\.scale must be a finite number above 0, got -1\.0"),
        ({"scale": math.nan}, r"shaping\.scale must be a finite number above 0, got nan"),
        ({"missing_eos_penalty": -1.0}, r"missing_eos_penalty must be .* at least 0, got -1\.0: it is subtracted"),
        ({"missing_eos_penalty": math.nan}, r"missing_eos_penalty must be .* at least 0, got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        RewardShaping(**option)
