import math

import pytest

from klqlit.functional.checks import (
    check_alpha,
    check_choice,
    check_fraction,
    check_gamma,
    check_not_negative,
    check_positive,
    check_tau,
    check_temperature,
    check_unit_interval,
)


def test_values_within_the_range_pass() -> None:
    for value in (1e-9, 0.05, 3.0):
        check_positive("x", value, "advice")
        check_not_negative("x", value, "advice")
        check_tau(value)
        check_temperature(value)
    check_not_negative("x", 0.0, "advice")
    for value in (0.0, 0.5, 1.0):
        check_unit_interval("x", value, "advice")
        check_gamma(value)
    check_fraction("x", 0.5, "advice")
    check_fraction("x", 1 - 1e-9, "advice")
    check_alpha(1e-9)
    check_alpha(1.0)
    check_choice("x", "b", ["a", "b"])


@pytest.mark.parametrize("value", [0.0, -1e-9, math.inf, math.nan])
def test_positive_refuses(value: float) -> None:
    with pytest.raises(ValueError, match=rf"x must be a finite number above 0, got {value}: advice"):
        check_positive("x", value, "advice")
    with pytest.raises(ValueError, match=rf"tau .* got {value}: choose a positive KL coefficient"):
        check_tau(value)
    with pytest.raises(ValueError, match=rf"temperature .* got {value}: choose 1"):
        check_temperature(value)


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_not_negative_refuses(value: float) -> None:
    with pytest.raises(ValueError, match=rf"x must be a finite number of at least 0, got {value}: advice"):
        check_not_negative("x", value, "advice")


@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, math.nan])
def test_unit_interval_refuses(value: float) -> None:
    with pytest.raises(ValueError, match=rf"x must lie in \[0, 1\], got {value}: advice"):
        check_unit_interval("x", value, "advice")
    with pytest.raises(ValueError, match=rf"gamma .* got {value}: choose 1"):
        check_gamma(value)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_fraction_refuses(value: float) -> None:
    with pytest.raises(ValueError, match=rf"x must lie strictly between 0 and 1, got {value}: advice"):
        check_fraction("x", value, "advice")


@pytest.mark.parametrize("value", [0.0, -0.5, 1 + 1e-9, math.nan])
def test_alpha_refuses(value: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must lie in \(0, 1\], got {value}: choose 1"):
        check_alpha(value)


@pytest.mark.parametrize("value", ["c", "A", "", "ab"])
def test_choice_refuses(value: str) -> None:
    with pytest.raises(ValueError, match=f"x={value!r} is not one of a, b"):
        check_choice("x", value, ["a", "b"])
