from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from klqlit.functional import linear_logprobs, token_logprobs

from .batches import examples, generators, normal

# Logits log(1/2), log(1/4), log(1/4), once shifted by 7: the features choose the column of the head.
WEIGHT = torch.tensor([[0.5, 0.5], [0.25, 0.25], [0.25, 0.25]]).log() + torch.tensor([0.0, 7.0])
FEATURES = torch.eye(2)


def test_by_hand() -> None:
    assert_close(linear_logprobs(FEATURES, WEIGHT, torch.tensor([0, 2])), torch.tensor([-log(2), -log(4)]))
    halved = linear_logprobs(FEATURES, WEIGHT, torch.tensor([0, 2]), temperature=0.5)
    assert_close(halved, torch.tensor([-log(1.5), -log(6)]))


def test_bias_by_hand() -> None:
    """A bias of log 2 on the second token: weights 2, 2, 1."""
    bias = torch.tensor([0.0, log(2), 0.0])
    assert_close(linear_logprobs(FEATURES, WEIGHT, torch.tensor([1, 2]), bias=bias), torch.tensor([-log(2.5), -log(5)]))


def test_gradient_by_hand() -> None:
    """1[v = a] - p_v, times the features: tokens of probability 1/2 and 1/4 were chosen."""
    weight = WEIGHT.clone().requires_grad_()
    linear_logprobs(FEATURES, weight, torch.tensor([0, 2])).backward(torch.tensor([1.0, 2.0]))
    assert_close(weight.grad, torch.tensor([[0.5, -1.0], [-0.25, -0.5], [-0.25, 1.5]]))


@examples
@given(
    generator=generators,
    count=st.integers(1, 9),
    rows=st.sampled_from([None, 1, 2, 4, 9]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    with_bias=st.booleans(),
)
def test_equals_the_logits_way_in_value_and_gradient(
    generator: torch.Generator, count: int, rows: int | None, temperature: float, with_bias: bool
) -> None:
    h, w, b = (normal(generator, *shape).requires_grad_() for shape in [(count, 3), (5, 3), (5,)])
    tokens = torch.randint(0, 5, (count,), generator=generator)
    bias = b if with_bias else None
    chunked = linear_logprobs(h, w, tokens, bias=bias, temperature=temperature, rows=rows)
    logits = h @ w.T + (b if with_bias else 0)
    plain = token_logprobs(logits[None], tokens[None], temperature=temperature)[0]
    assert_close(chunked, plain)
    grad, inputs = normal(generator, count), (h, w, b) if with_bias else (h, w)
    assert_close(torch.autograd.grad(chunked, inputs, grad), torch.autograd.grad(plain, inputs, grad))


def test_a_second_way_back_gives_the_same() -> None:
    """The chunk that is kept is overwritten by the first."""
    w = WEIGHT.double().requires_grad_()
    value = linear_logprobs(FEATURES.double(), w, torch.tensor([0, 2]), rows=1).sum()
    (first,) = torch.autograd.grad(value, w, retain_graph=True)
    (second,) = torch.autograd.grad(value, w)
    assert_close(first, second)


def test_frozen_heads_and_features_get_no_gradient() -> None:
    h, w = FEATURES.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    linear_logprobs(h, WEIGHT, torch.tensor([0, 1])).sum().backward()
    assert h.grad is not None
    linear_logprobs(FEATURES, w, torch.tensor([0, 1])).sum().backward()
    assert w.grad is not None
    with torch.no_grad():
        assert not linear_logprobs(h, w, torch.tensor([0, 1])).requires_grad


def test_unlikely_tokens_keep_their_logarithm() -> None:
    """A probability of exp(-200) is 0 in float32, its logarithm is not."""
    weight = torch.tensor([[0.0], [-200.0]])
    assert_close(linear_logprobs(torch.ones(1, 1), weight, torch.tensor([1])), torch.tensor([-200.0]))


def test_products_are_taken_in_the_type_of_autocast_and_all_else_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    h, w = torch.randn(6, 8, generator=generator), torch.randn(50, 8, generator=generator)
    tokens = torch.arange(6)
    full, half = w.clone().requires_grad_(), w.clone().requires_grad_()
    exact = linear_logprobs(h, full, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = linear_logprobs(h, half, tokens)
        plain = token_logprobs(torch.nn.functional.linear(h, w)[None], tokens[None])[0]
    assert rounded.dtype == torch.float32
    assert_close(rounded, plain)
    assert not torch.equal(rounded, exact)
    exact.sum().backward()
    rounded.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float32
    assert_close(half.grad, full.grad, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("grad", [False, True])
def test_memory_does_not_grow_with_tokens_times_vocabulary(grad: bool) -> None:
    """Sixteen times the tokens need not twice the memory."""
    vocab, hidden, rows = 2_000, 4, 8

    def largest(count: int) -> int:
        h = torch.randn(count, hidden, requires_grad=grad)
        w = torch.randn(vocab, hidden, requires_grad=grad)
        tokens = torch.zeros(count, dtype=torch.long)
        with torch.profiler.profile(profile_memory=True) as profile:
            value = linear_logprobs(h, w, tokens, rows=rows).sum()
            if grad:
                value.backward()
        return peak(profile)

    # One chunk of logits, and on the way back the head's gradient with the part that is added to it.
    assert rows * vocab * 4 <= largest(rows) <= largest(16 * rows) < 2 * largest(rows)


@pytest.mark.parametrize(("grad", "logits"), [(False, 2**23), (True, 2**25)])
def test_fewer_logits_are_held_where_no_gradient_is_recorded(grad: bool, logits: int) -> None:
    """Of 2^25 logits all where they are needed once more, else a quarter."""
    h, w = torch.randn(2**10, 1), torch.randn(2**15, 1, requires_grad=True)
    tokens = torch.zeros(2**10, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as profile, torch.set_grad_enabled(grad):
        linear_logprobs(h, w, tokens)
    assert logits * 4 <= peak(profile) < 1.1 * logits * 4


def peak(profile: torch.profiler.profile) -> int:
    """Most bytes that were allocated at one time."""
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature .* got {temperature}: choose 1"):
        linear_logprobs(FEATURES, WEIGHT, torch.tensor([0, 1]), temperature=temperature)
