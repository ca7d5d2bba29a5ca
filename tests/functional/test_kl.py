from math import inf, log

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import full_kl, kl_k1, kl_k2, kl_k3

from .batches import examples, generators, masks, normal

LOG2 = log(2)


def test_estimators_by_hand() -> None:
    logratio = torch.tensor([[LOG2, -LOG2, 0.0]])  # pi_ref / pi = 1/2, 2, 1
    assert_close(kl_k1(logratio), logratio)
    assert_close(kl_k2(logratio), torch.tensor([[LOG2**2 / 2, LOG2**2 / 2, 0.0]]))
    assert_close(kl_k3(logratio), torch.tensor([[LOG2 - 0.5, 1 - LOG2, 0.0]]))


def test_full_kl_by_hand() -> None:
    logits = torch.tensor([[[0.5, 0.5]]]).log()
    ref_logits = torch.tensor([[[0.75, 0.25]]]).log() + 3
    assert_close(full_kl(logits, ref_logits), torch.tensor([[0.5 * log(4 / 3)]]))
    assert_close(full_kl(ref_logits, logits), torch.tensor([[0.75 * log(1.5) - 0.25 * LOG2]]))
    # At temperature 1/2 the reference is 9/10, 1/10.
    assert_close(full_kl(logits, ref_logits, temperature=0.5), torch.tensor([[0.5 * log(0.25 / 0.09)]]))


def test_impossible_tokens_count_nothing() -> None:
    logits = torch.tensor([[[0.0, 0.0, -inf]]], requires_grad=True)
    divergence = full_kl(logits, torch.zeros(1, 1, 3))
    assert_close(divergence, torch.tensor([[log(1.5)]]))
    divergence.sum().backward()
    assert logits.grad is not None
    assert_close(logits.grad, torch.zeros(1, 1, 3))
    assert_close(full_kl(logits, logits), torch.zeros(1, 1))


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"temperature .* got -1\.0: choose 1"):
        full_kl(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), temperature=-1.0)


def test_second_order_agreement() -> None:
    logratio = torch.tensor([[1e-8, -1e-8]], dtype=torch.float64)
    assert_close(kl_k2(logratio) / logratio.square(), torch.full_like(logratio, 0.5))


@examples
@given(mask=masks(), generator=generators)
def test_k1_and_k3_are_unbiased(mask: Tensor, generator: torch.Generator) -> None:
    logits, ref_logits = normal(generator, *mask.shape, 5), normal(generator, *mask.shape, 5)
    logprobs, ref_logprobs = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    exact = full_kl(logits, ref_logits)
    for estimator in (kl_k1, kl_k3):
        assert_close((logprobs.exp() * estimator(logprobs - ref_logprobs)).sum(-1), exact)
    assert (exact >= 0).all()
    assert (kl_k2(logprobs - ref_logprobs) >= 0).all()
    assert (kl_k3(logprobs - ref_logprobs) >= 0).all()
    assert_close(full_kl(logits, logits + 2), torch.zeros(mask.shape, dtype=torch.float64))
