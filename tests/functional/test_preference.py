from math import log, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from klqlit.functional import bradley_terry_loss, expected_calibration_error, preference_accuracy

from .batches import examples, generators, normal


def test_bradley_terry_loss_by_hand() -> None:
    """Odds of 3 to 1 are a probability of 3/4."""
    chosen, rejected = torch.tensor([log(3), 0.0, 2.0]), torch.tensor([0.0, log(3), 2.0])
    assert_close(bradley_terry_loss(chosen, rejected), torch.tensor([log(4 / 3), log(4), log(2)]))


def test_preference_accuracy_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])
    assert_close(preference_accuracy(chosen, rejected), torch.tensor([1.0, 0.0, 0.5]))


def test_calibration_error_by_hand() -> None:
    probabilities, outcomes = torch.tensor([0.9, 0.9, 0.1, 0.1]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert_close(expected_calibration_error(probabilities, outcomes), torch.tensor((0.8 + 0.2) / 4))
    assert_close(expected_calibration_error(probabilities, outcomes.bool()), torch.tensor(0.25))
    # One bin: |mean p - mean o|.
    assert_close(expected_calibration_error(probabilities, outcomes, bins=1), torch.tensor(0.25))
    assert_close(expected_calibration_error(probabilities, 1 - outcomes, bins=1), torch.tensor(0.25))


def test_bins_are_closed_below_and_the_last_one_above() -> None:
    def error(probabilities: list[float], outcomes: list[float]) -> torch.Tensor:
        return expected_calibration_error(torch.tensor(probabilities), torch.tensor(outcomes), bins=2)

    assert_close(error([0.5, 0.4], [0.0, 1.0]), torch.tensor((0.5 + 0.6) / 2))
    assert_close(error([0.5, 1.0], [0.0, 1.0]), torch.tensor(0.25))
    assert_close(error([0.0, 0.4], [1.0, 0.0]), torch.tensor(0.3))


def test_perfect_calibration() -> None:
    probabilities = torch.tensor([0.25, 0.25, 0.25, 0.25, 1.0, 0.0])
    outcomes = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert_close(expected_calibration_error(probabilities, outcomes), torch.tensor(0.0))


def test_calibration_checks_its_arguments() -> None:
    x = torch.tensor([0.5])
    with pytest.raises(ValueError, match=r"bins .* got 0: choose a number"):
        expected_calibration_error(x, x, bins=0)
    with pytest.raises(ValueError, match="probabilities is empty"):
        expected_calibration_error(x[:0], x[:0])
    for wrong in (-0.5, 1.5, nan):
        with pytest.raises(ValueError, match=r"probabilities must lie in \[0, 1\].*pass logits through sigmoid"):
            expected_calibration_error(torch.tensor([0.5, wrong]), torch.tensor([1.0, 0.0]))


@examples
@given(generator=generators, pairs=st.integers(1, 8), shift=st.floats(-3, 3))
def test_pairs_swap(generator: torch.Generator, pairs: int, shift: float) -> None:
    chosen, rejected = normal(generator, pairs), normal(generator, pairs)
    loss, swapped = bradley_terry_loss(chosen, rejected), bradley_terry_loss(rejected, chosen)
    assert_close((-loss).exp() + (-swapped).exp(), torch.ones(pairs, dtype=torch.float64))
    assert_close(bradley_terry_loss(chosen + shift, rejected + shift), loss)
    accuracy = preference_accuracy(chosen, rejected)
    assert_close(accuracy + preference_accuracy(rejected, chosen), torch.ones(pairs, dtype=torch.float64))
    assert torch.equal(accuracy > 0.5, loss < log(2))


@examples
@given(generator=generators, predictions=st.integers(1, 40), bins=st.integers(1, 12))
def test_calibration_error_lies_between_its_bounds(generator: torch.Generator, predictions: int, bins: int) -> None:
    probabilities = torch.rand(predictions, generator=generator, dtype=torch.float64)
    outcomes = (torch.rand(predictions, generator=generator) < 0.5).double()
    error = expected_calibration_error(probabilities, outcomes, bins=bins)
    gaps = probabilities - outcomes
    assert gaps.mean().abs() - 1e-9 <= error <= gaps.abs().mean() + 1e-9
