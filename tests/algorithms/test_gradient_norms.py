"""The norm of all gradients: by hand, and where single precision is at its end."""

import math

import pytest
import torch
from torch import nn

from klqlit.algorithms.divergence import gradient_norms, total_norm


def test_the_norm_of_several_tensors_is_that_of_all_their_numbers():
    assert total_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]]), torch.tensor(12.0)]) == 13.0


def test_each_group_has_its_own_norm():
    first, second, third = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [first], "name": "policy"}, {"params": [second, third], "name": "critic"}])
    first.grad, second.grad = torch.tensor([0.0, -2.0]), torch.tensor([3.0, 4.0])
    assert gradient_norms(optimizer) == {"policy": 2.0, "critic": 5.0}


def test_a_group_without_a_name_is_called_by_its_place():
    named, nameless = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [named], "name": "policy"}, {"params": [nameless]}])
    named.grad, nameless.grad = torch.tensor([0.0, -2.0]), torch.tensor([3.0, 4.0])
    assert gradient_norms(optimizer) == {"policy": 2.0, "group 1": 5.0}


def test_without_gradients_the_norm_is_zero():
    assert total_norm([]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.T, lambda x: x[::2, 1:]], ids=["whole", "turned", "part"])
def test_any_strides_and_precision_will_do(dtype, view):
    gradients = [view(torch.randn(8, 6, generator=torch.Generator().manual_seed(i)).to(dtype)) for i in range(3)]
    expected = torch.cat([g.double().flatten() for g in gradients]).norm()
    assert total_norm(gradients) == pytest.approx(float(expected), rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_many_numbers_are_not_lost():
    """A gradient as large as a vocabulary: the squares added one to the other would be 6e-4 off."""
    gradient = torch.randn(2**24, generator=torch.Generator().manual_seed(0))
    assert total_norm([gradient]) == pytest.approx(float(gradient.double().norm()), rel=5e-4)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_shows(number):
    gradients = [torch.ones(5), torch.ones(4, 3)]
    gradients[1][2, 1] = number
    assert not math.isfinite(total_norm(gradients))
