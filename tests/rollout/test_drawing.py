"""One token a row, and what is known of it, from one uniform number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.functional import entropy, token_logprobs
from klqlit.rollout.drawing import BLOCK, draw, draw_next, uniform_streams

examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)
SMALLEST_AND_LARGEST = [0.0, 1e-8, 0.5, 1 - 2**-23, 1 - 2**-24]


def same(logits):
    return logits


def test_draw_takes_the_first_token_at_which_the_cumulative_probability_passes_the_number():
    probs = torch.tensor([0.25, 0.5, 0.25]).expand(6, 3)
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-24])
    assert draw(probs, uniform).tolist() == [0, 0, 1, 1, 2, 2]


def test_draw_needs_no_normalised_probabilities():
    probs = torch.tensor([0.25, 0.5, 0.25]).expand(3, 3)
    uniform = torch.tensor([0.2, 0.7, 0.8])
    assert draw(20 * probs, uniform).tolist() == draw(probs, uniform).tolist() == [0, 1, 2]


@examples
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=40), st.data())
def test_tokens_of_probability_zero_are_never_drawn(logits, data):
    """The smallest and the largest number that a stream can give included."""
    zeros = data.draw(st.lists(st.sampled_from(range(len(logits))), max_size=len(logits) - 1))
    logits = torch.tensor(logits)
    logits[zeros] = -math.inf
    probs = logits.softmax(dim=0).expand(5, -1)
    assert bool((probs.gather(1, draw(probs, torch.tensor(SMALLEST_AND_LARGEST))[:, None]) > 0).all())


@pytest.mark.parametrize("vocab", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7])
def test_blocks_change_no_draw(vocab):
    """Against the cumulative sum over the whole vocabulary, in double precision so that rounding decides nothing."""
    generator = torch.Generator().manual_seed(vocab)
    probs = (3 * torch.randn(500, vocab, generator=generator, dtype=torch.float64)).softmax(dim=-1)
    uniform = torch.rand(500, generator=generator, dtype=torch.float64)
    plain = torch.searchsorted(probs.cumsum(dim=-1), uniform[:, None], right=True).squeeze(-1)
    assert torch.equal(draw(probs, uniform), plain)


@pytest.mark.parametrize("vocab", [3, BLOCK, 2 * BLOCK + 3])
def test_a_draw_from_what_is_no_number_is_a_token_all_the_same(vocab):
    """Whoever drew can then say what is wrong, before an index that is none does."""
    drawn = draw(torch.full((5, vocab), math.nan), torch.tensor(SMALLEST_AND_LARGEST))
    assert bool(((drawn >= 0) & (drawn < vocab)).all())


@pytest.mark.parametrize("token", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_a_certain_token_is_drawn_wherever_it_stands(token):
    probs = torch.zeros(5, 2 * BLOCK + 4)
    probs[:, token] = 1.0
    assert draw(probs, torch.tensor(SMALLEST_AND_LARGEST)).tolist() == [token] * 5


def test_frequencies_are_the_probabilities():
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = draw(probs.expand(20_000, -1), uniform).bincount(minlength=4) / 20_000
    torch.testing.assert_close(counts, probs, atol=0.01, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_logprobs_and_entropy_are_those_of_the_whole_distribution(temperature):
    logits = 4 * torch.randn(6, 700, generator=torch.Generator().manual_seed(1))
    logits[:, 3] = -math.inf
    drawn = draw_next(logits, torch.rand(6), temperature=temperature, truncate=lambda z: z.clamp(max=0.0))
    logprobs = token_logprobs(logits[:, None], drawn.tokens[:, None], temperature=temperature)
    torch.testing.assert_close(drawn.logprobs, logprobs[:, 0])
    torch.testing.assert_close(drawn.entropy, entropy(logits[:, None], temperature=temperature)[:, 0])


def test_logits_far_from_zero_are_no_trouble():
    """log Z of the second row is 1000, and its other token has a probability below the smallest float."""
    logits = torch.tensor([[-1000.0, -1000.0], [1000.0, 0.0]])
    drawn = draw_next(logits, torch.tensor([0.75, 0.75]), temperature=1.0, truncate=same)
    assert drawn.tokens.tolist() == [1, 0]
    assert drawn.logprobs.tolist() == pytest.approx([-math.log(2), 0.0])
    assert drawn.entropy.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-4)


def test_what_truncation_leaves_out_is_not_drawn():
    def only_the_last(logits):
        return logits.masked_fill(torch.tensor([True, True, False]), -math.inf)

    drawn = draw_next(torch.zeros(4, 3), torch.tensor([0.0, 0.3, 0.6, 0.9]), temperature=1.0, truncate=only_the_last)
    assert drawn.tokens.tolist() == [2] * 4
    assert drawn.logprobs.tolist() == pytest.approx([-math.log(3)] * 4)


def test_streams_depend_on_their_seed_alone():
    both = uniform_streams([3, 4], 5)
    assert torch.equal(both[1], uniform_streams([4], 5)[0])
    assert torch.equal(both[:, :2], uniform_streams([3, 4], 2))
    assert not torch.equal(both[0], both[1])


def test_streams_are_float32_whatever_the_default():
    """In bfloat16 a stream would have 256 different numbers."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert uniform_streams([0], 5).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
