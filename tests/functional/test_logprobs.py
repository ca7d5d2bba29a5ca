from math import inf, log

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import entropy, token_logprobs
from klqlit.functional.logprobs import tempered

from .batches import examples, generators, masks, normal

# One state with probabilities 1/2, 1/4, 1/4; at temperature 1/2 they are 2/3, 1/6, 1/6.
LOGITS = (torch.tensor([[[0.5, 0.25, 0.25]]]).log() + 7).expand(1, 3, 3)
TOKENS = torch.tensor([[0, 1, 2]])


def test_token_logprobs_by_hand() -> None:
    assert_close(token_logprobs(LOGITS, TOKENS), torch.tensor([[-log(2), -log(4), -log(4)]]))
    assert_close(token_logprobs(LOGITS, TOKENS, temperature=0.5), torch.tensor([[-log(1.5), -log(6), -log(6)]]))


def test_entropy_by_hand() -> None:
    assert_close(entropy(LOGITS), torch.full((1, 3), 1.5 * log(2)))
    assert_close(entropy(LOGITS, temperature=0.5), torch.full((1, 3), (2 * log(1.5) + log(6)) / 3))


def test_uniform_policy() -> None:
    logits = torch.full((2, 3, 5), 4.0)
    assert_close(token_logprobs(logits, torch.ones(2, 3, dtype=torch.long)), torch.full((2, 3), -log(5)))
    assert_close(entropy(logits), torch.full((2, 3), log(5)))


def test_impossible_tokens_count_nothing() -> None:
    logits = torch.tensor([[[0.0, 0.0, -inf]]], requires_grad=True)
    assert_close(token_logprobs(logits, torch.tensor([[1]])), torch.tensor([[-log(2)]]))
    assert token_logprobs(logits, torch.tensor([[2]])).item() == -inf
    value = entropy(logits)
    assert_close(value, torch.tensor([[log(2)]]))
    value.sum().backward()
    assert logits.grad is not None
    assert_close(logits.grad, torch.zeros(1, 1, 3))


def test_half_precision_is_evaluated_in_float32() -> None:
    logits = LOGITS.bfloat16()
    assert_close(token_logprobs(logits, TOKENS), token_logprobs(logits.float(), TOKENS))
    assert_close(entropy(logits), entropy(logits.float()))
    assert token_logprobs(LOGITS.double(), TOKENS).dtype is torch.float64


def test_temperature_one_copies_nothing() -> None:
    assert tempered(LOGITS, 1.0) is LOGITS
    assert_close(tempered(LOGITS, 2.0), LOGITS / 2)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature .* got {temperature}: choose 1"):
        token_logprobs(LOGITS, TOKENS, temperature=temperature)
    with pytest.raises(ValueError, match=f"temperature .* got {temperature}: choose 1"):
        entropy(LOGITS, temperature=temperature)


@examples
@given(mask=masks(), generator=generators)
def test_properties_of_a_distribution(mask: Tensor, generator: torch.Generator) -> None:
    logits = 3 * normal(generator, *mask.shape, 5)
    tokens = torch.randint(0, 5, mask.shape, generator=generator)
    for temperature in (1.0, 0.7):
        reference = torch.distributions.Categorical(logits=logits / temperature)
        logprobs = token_logprobs(logits, tokens, temperature=temperature)
        assert_close(logprobs, reference.log_prob(tokens))
        assert_close(entropy(logits, temperature=temperature), reference.entropy())
        assert_close(token_logprobs(logits + 11, tokens, temperature=temperature), logprobs)
        every = [token_logprobs(logits, torch.full_like(tokens, v), temperature=temperature) for v in range(5)]
        assert_close(torch.stack(every).exp().sum(dim=0), torch.ones(mask.shape, dtype=torch.float64))
