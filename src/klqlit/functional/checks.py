"""Checks of the values that users choose. Each message names the argument, its value and the way out."""

import math
from collections.abc import Sequence


def check_positive(name: str, value: float | int, advice: str) -> None:
    """Refuse anything but a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}: {advice}")


def check_not_negative(name: str, value: float | int, advice: str) -> None:
    """Refuse anything but a finite number of at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}: {advice}")


def check_unit_interval(name: str, value: float, advice: str) -> None:
    """Refuse anything outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}: {advice}")


def check_fraction(name: str, value: float, advice: str) -> None:
    """Refuse anything outside (0, 1)."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}: {advice}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse anything but one of the choices: a misspelt one would act as another."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def check_tau(tau: float) -> None:
    """Refuse a KL coefficient that is not positive: Q would not determine the policy."""
    check_positive("tau", tau, "choose a positive KL coefficient, such as 0.05")


def check_gamma(gamma: float) -> None:
    """Refuse a discount outside [0, 1]."""
    check_unit_interval("gamma", gamma, "choose 1 for no discounting, or a discount below 1")


def check_alpha(alpha: float) -> None:
    """Refuse a step size outside (0, 1]."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must lie in (0, 1], got {alpha}: choose 1 for the full lambda-return, or less")


def check_temperature(temperature: float) -> None:
    """Refuse a sampling temperature that is not positive."""
    check_positive("temperature", temperature, "choose 1 to leave the logits as they are")
