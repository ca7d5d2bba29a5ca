"""Means and intervals, by hand and against other ways to the same number."""

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from klqlit.reports.intervals import crossed, over_seeds, plain, signed, with_error

Z = 1.959963984540054


def test_interval_over_seeds_by_hand():
    """1, 2, 3: mean 2, deviation 1, t with 2 degrees of freedom 4.3027; half 4.3027 / sqrt 3."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.302652729696142 / 3**0.5)
    assert (found.low, found.high) == (2.0 - found.half, 2.0 + found.half)


def test_interval_over_seeds_is_scipys():
    values = [0.3, -1.2, 2.2, 0.9]
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = over_seeds(values)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_no_interval():
    found = over_seeds([1.5])
    assert (found.mean, found.half, found.count, str(found)) == (1.5, None, 1, "1.50")
    with pytest.raises(ValueError, match="at least one value"):
        over_seeds([])


def verdicts(table):
    return [{f"p{j}": [value] for j, value in enumerate(map(float, row))} for row in table]


def test_crossed_by_hand():
    """Two seeds, two prompts: 1, 0 and 1, 1. Mean 3/4, deviations 1/4, -3/4 and 1/4, 1/4.

    Sums of seeds -1/2 and 1/2: 2/1 (1/4 + 1/4) = 1, over 16. Of prompts 1/2 and -1/2: likewise 1; less the squares,
    12/16, leaves 1/4, over 16.
    """
    found = crossed(verdicts([[1, 0], [1, 1]]))
    assert (found.mean, found.count) == (0.75, 2)
    assert found.of_seeds == pytest.approx(1 / 16)
    assert found.of_these_seeds == pytest.approx(1 / 16)
    assert found.of_prompts == pytest.approx(0.25 / 16)
    assert found.interval().half == pytest.approx(student.ppf(0.975, 1) * (1.25 / 16) ** 0.5)


def test_without_an_effect_of_prompts_it_is_the_interval_over_seeds():
    """Each seed has the same rate on every prompt: nothing that prompts share is left to add."""
    rates = [0.25, 0.5, 0.75]
    found = crossed(verdicts([[rate] * 50 for rate in rates]))
    assert found.of_prompts == 0
    assert found.interval().half == pytest.approx(over_seeds(rates).half)


def test_copies_of_one_seed_are_no_evidence():
    """Where seeds agree on every prompt, the interval is that over prompts of a single one, however many there are."""
    row = [1, 0, 1, 1, 0, 1, 0, 1, 1, 1]
    found = crossed(verdicts([row] * 4))
    assert found.of_seeds == pytest.approx(0)
    of_one = np.var(row, ddof=1) / len(row)
    assert found.of_these_seeds == pytest.approx(of_one)
    assert found.interval().half >= Z * of_one**0.5 - 1e-12


def test_two_seeds_that_agree_by_chance_are_not_sure():
    """Rates 1/2 and 1/2 on different prompts: no spread of seeds, and 8 verdicts of variance 1/4 all the same."""
    found = crossed(verdicts([[1, 0, 1, 0], [0, 1, 0, 1]]))
    assert found.of_seeds == found.of_prompts == 0
    assert found.interval().half == pytest.approx(Z * (0.25 / 8) ** 0.5)


@pytest.mark.parametrize("of_prompts", [0.0, 0.3])
def test_crossed_intervals_cover(of_prompts):
    """Of 300 experiments with 5 seeds and 100 prompts, about 95 % of the intervals hold the truth."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        seed, prompt = 0.05 * random.normal(size=(5, 1)), of_prompts * random.normal(size=(1, 100))
        table = 0.5 + seed + prompt + 0.4 * random.normal(size=(5, 100))
        found = crossed(verdicts(table)).interval()
        held += found.low <= 0.5 <= found.high
    assert 0.9 < held / 300 <= 1


def test_pairs_that_lack_a_verdict_are_left_out():
    found = crossed([{"a": [1.0], "b": [0.0, 1.0], "c": []}, {"a": [1.0]}])
    assert found.mean == pytest.approx((1 + 0.5 + 1) / 3)
    with pytest.raises(ValueError, match="at least one verdict"):
        crossed([{}, {"a": []}])


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (1.2345, 0.0678, "1.234 ± 0.068"),
        (-1234.5, 67.8, "−1234 ± 68"),
        (2.0, None, "2.00"),
        (2.0, 0.0, "2.00"),
        (-0.5, 3.2, "−0.5 ± 3.2"),
    ],
)
def test_numbers_are_shown_to_the_second_digit_of_their_error(mean, half, shown):
    assert with_error(mean, half) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1.5, "1.50"), (-123.4, "−123"), (0.01234, "0.0123"), (1e-5, "1e−05"), (1e6, "1e+06")],
)
def test_plain_numbers(value, shown):
    assert plain(value) == shown


def test_a_zero_has_no_sign():
    assert [signed(value, 2) for value in (-0.001, -0.01, 0.0, 0.004)] == ["0.00", "−0.01", "0.00", "0.00"]
