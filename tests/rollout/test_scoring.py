"""What models and rewards say of completions, in chunks; and scores that cannot be used."""

import pytest
import torch

from klqlit.models.critic import SeparateCritic, SharedCritic
from klqlit.models.policy import LanguagePolicy
from klqlit.rewards.base import Reward
from klqlit.rollout.scoring import by_chunks, checked_scores, critic_values, reference_logprobs
from runs import make_completions, make_sequences

PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12], [13, 14]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]


@pytest.fixture(scope="module")
def policy(model_dir):
    return LanguagePolicy(model_dir("llama")).requires_grad_(False)


@pytest.fixture
def sequences():
    return make_sequences(PROMPTS, RESPONSES, left=2, right=3)


class Given(Reward):
    """Returns what it was made with."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, completions):
        return self.scores


def two_completions():
    return make_completions([("first?", "yes"), ("second?", "no")], make_sequences([[1], [2]], [[3, 4], [5]]))


def test_chunks_are_computed_without_their_common_padding(sequences):
    widths = []

    def positions(part):
        widths.append((part.prompt_tokens.shape[1], part.tokens.shape[1]))
        return part.tokens.double()

    found = by_chunks(positions, sequences, 2)
    assert widths == [(3, 4), (5, 3)]
    assert found.dtype == torch.float32
    assert found.tolist() == torch.where(sequences.mask, sequences.tokens, 0).tolist()


@pytest.mark.parametrize("size", [1, 3, 4, 64])
def test_reference_logprobs_do_not_depend_on_the_chunks(policy, sequences, size):
    expected = torch.where(sequences.mask, policy(sequences, temperature=0.7).logprobs, 0.0)
    torch.testing.assert_close(reference_logprobs(policy, sequences, temperature=0.7, size=size), expected)


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize("make", [SeparateCritic, SharedCritic])
def test_values_do_not_depend_on_the_chunks(policy, sequences, make, size):
    critic = make(policy).requires_grad_(False)
    torch.nn.init.ones_(critic.head.weight)
    whole = critic(sequences, policy(sequences, temperature=1.0, features=True).features)
    found = critic_values(critic, policy, sequences, temperature=1.0, size=size)
    torch.testing.assert_close(found, torch.where(sequences.mask, whole, 0.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_names_its_sample(bad):
    message = r"gold gave a score that is not finite to 1 of 2 .* prompt 'second\?', completion 'no'"
    with pytest.raises(ValueError, match=message):
        checked_scores(Given(torch.tensor([1.0, bad])), two_completions(), "gold")
    with pytest.raises(ValueError, match=message):
        checked_scores(Given(torch.tensor([[1.0, 1.0], [bad, 0.0]])), two_completions(), "gold")


def test_per_token_scores_in_padding_are_not_read():
    scores = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    assert torch.equal(checked_scores(Given(scores), two_completions())[0], scores[0])


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3), (2, 2, 1), ()])
def test_scores_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"reward returned scores of shape .* for 2 completions of 2 positions"):
        checked_scores(Given(torch.zeros(shape)), two_completions())


def test_scores_come_in_single_precision():
    assert checked_scores(Given(torch.tensor([1.0, 2.0]).double()), two_completions()).dtype == torch.float32
