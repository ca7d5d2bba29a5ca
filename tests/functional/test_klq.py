from collections.abc import Callable
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import (
    double_clipped_error,
    huber_error,
    q_values,
    ratio_clipped_error,
    squared_error,
    value_clipped_error,
)

from .batches import examples, generators, masks, normal


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def test_squared_error_by_hand() -> None:
    assert_close(squared_error(row(3.0, 1.0), row(1.0, 4.0)), row(2.0, 4.5))


def test_huber_error_by_hand() -> None:
    errors = row(0.5, -0.5, 2.0, -2.0, 4.0)
    assert_close(huber_error(errors + 1, row(1.0, 1.0, 1.0, 1.0, 1.0), delta=1.0), row(0.125, 0.125, 1.5, 1.5, 3.5))
    assert_close(huber_error(errors, torch.zeros(1, 5), delta=2.0), row(0.125, 0.125, 2.0, 2.0, 6.0))


def test_value_clipped_error_by_hand() -> None:
    # tau logratio = 1. V = 3 is clipped to 1.5: Q = 4, Q_c = 2.5. V = -1 is clipped to 0.5: Q = 0, Q_c = 1.5.
    loss = value_clipped_error(
        row(2.0, 2.0, 2.0, 2.0),
        row(3.0, 3.0, -1.0, 1.25),
        row(1.0, 1.0, 1.0, 1.0),
        row(3.0, 4.0, 0.0, 2.0),
        tau=0.5,
        value_clip=0.5,
    )
    assert_close(loss, row(0.5, 1.125, 1.125, 0.03125))


def test_ratio_clipped_error_by_hand() -> None:
    # tau = 2, V = 1, log pi_old = log pi_b - 1. Ratio 2 is clipped to 1.5, ratio 1/4 to 1/2; 1.25 is left alone.
    ratios = row(2.0, 0.25, 1.25)
    ref_logprobs = row(-1.0, -1.0, -1.0)
    old_logprobs = ref_logprobs - 1
    q = 2 * (ratios.log() - 1) + 1
    loss = ratio_clipped_error(
        old_logprobs + ratios.log(), old_logprobs, ref_logprobs, row(1.0, 1.0, 1.0), q, tau=2.0, ratio_clip=0.5
    )
    assert_close(loss, row(2 * log(4 / 3) ** 2, 2 * log(2) ** 2, 0.0))
    # A target on the far side: the unclipped error is the larger.
    far = ratio_clipped_error(
        old_logprobs + ratios.log(), old_logprobs, ref_logprobs, row(1.0, 1.0, 1.0), q - 100, tau=2.0, ratio_clip=0.5
    )
    assert_close(far, row(5000.0, 0.5 * (100 + 2 * log(2)) ** 2, 5000.0))


def test_double_clipped_error_by_hand() -> None:
    # tau = 1: log pi / pi_b = log 2, clipped to log 1.5; V = 3, clipped to 1.5.
    args = (row(log(2) - 1), row(-1.0), row(-1.0), row(3.0), row(1.0))
    q, clipped = 3 + log(2), 1.5 + log(1.5)
    loss = double_clipped_error(*args, row(q), tau=1.0, ratio_clip=0.5, value_clip=0.5)
    assert_close(loss, row(0.5 * (q - clipped) ** 2))
    loss = double_clipped_error(*args, row(0.0), tau=1.0, ratio_clip=0.5, value_clip=0.5)
    assert_close(loss, row(0.5 * q**2))
    # The other way: ratio 1/4 clipped to 1/2, V = -1 to 1/2, tau = 2, log pi_old / pi_b = 1.
    q, clipped = 2 * (1 + log(0.25)) - 1, 2 * (1 + log(0.5)) + 0.5
    loss = double_clipped_error(
        row(log(0.25) - 1), row(-1.0), row(-2.0), row(-1.0), row(1.0), row(q), tau=2.0, ratio_clip=0.5, value_clip=0.5
    )
    assert_close(loss, row(0.5 * (q - clipped) ** 2))


Loss = Callable[..., Tensor]


def l2(logprobs: Tensor, old: Tensor, ref: Tensor, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
    return squared_error(q_values(logprobs, ref, values, tau=0.5), returns)


def huber(logprobs: Tensor, old: Tensor, ref: Tensor, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
    return huber_error(q_values(logprobs, ref, values, tau=0.5), returns, delta=1e6)


def value(logprobs: Tensor, old: Tensor, ref: Tensor, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
    return value_clipped_error(logprobs - ref.detach(), values, old_values, returns, tau=0.5, value_clip=0.2)


def ratio(logprobs: Tensor, old: Tensor, ref: Tensor, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
    return ratio_clipped_error(logprobs, old, ref, values, returns, tau=0.5, ratio_clip=0.2)


def double(logprobs: Tensor, old: Tensor, ref: Tensor, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
    return double_clipped_error(
        logprobs, old, ref, values, old_values, returns, tau=0.5, ratio_clip=0.2, value_clip=0.2
    )


@pytest.mark.parametrize("loss", [huber, value, ratio, double])
@examples
@given(mask=masks(), generator=generators)
def test_reduces_to_the_squared_error_near_the_old_parameters(
    loss: Loss, mask: Tensor, generator: torch.Generator
) -> None:
    """At the rollout parameters no clip is active: value and gradient are those of eq. (6)."""
    old, ref, old_values, returns = (normal(generator, *mask.shape) for _ in range(4))
    gradients = []
    for function in (loss, l2):
        logprobs, values = old.clone().requires_grad_(), old_values.clone().requires_grad_()
        losses = function(logprobs, old, ref, values, old_values, returns)
        gradients.append((losses, *torch.autograd.grad(losses.sum(), (logprobs, values))))
    assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("loss", [value, ratio, double])
@examples
@given(mask=masks(), generator=generators)
def test_clipping_never_lowers_the_loss(loss: Loss, mask: Tensor, generator: torch.Generator) -> None:
    args = [normal(generator, *mask.shape) for _ in range(6)]
    assert (loss(*args) >= l2(*args)).all()


@examples
@given(mask=masks(), generator=generators)
def test_double_clipping_contains_the_other_two(mask: Tensor, generator: torch.Generator) -> None:
    logprobs, old, ref, values, old_values, returns = (normal(generator, *mask.shape) for _ in range(6))
    assert_close(double(old, old, ref, values, old_values, returns), value(old, old, ref, values, old_values, returns))
    assert_close(
        double(logprobs, old, ref, values, values, returns), ratio(logprobs, old, ref, values, values, returns)
    )


@examples
@given(mask=masks(), generator=generators, delta=st.floats(0.1, 3))
def test_huber_error_against_torch(mask: Tensor, generator: torch.Generator, delta: float) -> None:
    q, returns = normal(generator, *mask.shape), normal(generator, *mask.shape)
    expected = torch.nn.functional.huber_loss(q, returns, reduction="none", delta=delta)
    assert_close(huber_error(q, returns, delta=delta), expected)


@pytest.mark.parametrize("loss", [l2, huber, value, ratio, double])
def test_gradients_reach_policy_and_value_only(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    args = [normal(generator, 2, 3).requires_grad_() for _ in range(6)]
    logprobs, old, _, values, old_values, returns = args
    loss(*args).sum().backward()
    assert logprobs.grad is not None
    assert values.grad is not None
    assert old.grad is None
    assert old_values.grad is None
    assert returns.grad is None


def test_reference_is_a_constant() -> None:
    x = [row(0.1), row(0.0), row(0.3).requires_grad_(), row(1.0).requires_grad_(), row(0.0)]
    ratio_clipped_error(*x, tau=0.5, ratio_clip=0.2).sum().backward()
    double_clipped_error(*x[:4], row(0.0), row(0.0), tau=0.5, ratio_clip=0.2, value_clip=0.2).sum().backward()
    assert x[3].grad is not None
    assert x[2].grad is None


def test_an_active_clip_stops_the_gradient() -> None:
    values = row(3.0).requires_grad_()
    value_clipped_error(row(0.0), values, row(1.0), row(3.0), tau=0.5, value_clip=0.5).sum().backward()
    assert values.grad is not None
    assert_close(values.grad, row(0.0))


def test_scalars_are_checked() -> None:
    x = row(1.0)
    with pytest.raises(ValueError, match=r"delta .* got 0\.0: it is the error"):
        huber_error(x, x, delta=0.0)
    with pytest.raises(ValueError, match=r"tau .* got 0\.0: choose a positive"):
        value_clipped_error(x, x, x, x, tau=0.0, value_clip=0.2)
    with pytest.raises(ValueError, match=r"value_clip .* got -0\.2: choose a width"):
        value_clipped_error(x, x, x, x, tau=0.5, value_clip=-0.2)
    with pytest.raises(ValueError, match=r"tau .* got -1\.0: choose a positive"):
        ratio_clipped_error(x, x, x, x, x, tau=-1.0, ratio_clip=0.2)
    with pytest.raises(ValueError, match=r"ratio_clip .* got 1\.0: choose a width"):
        ratio_clipped_error(x, x, x, x, x, tau=0.5, ratio_clip=1.0)
    with pytest.raises(ValueError, match=r"tau .* got 0\.0: choose a positive"):
        double_clipped_error(x, x, x, x, x, x, tau=0.0, ratio_clip=0.2, value_clip=0.2)
    with pytest.raises(ValueError, match=r"value_clip .* got 0\.0: choose a width"):
        double_clipped_error(x, x, x, x, x, x, tau=0.5, ratio_clip=0.2, value_clip=0.0)
