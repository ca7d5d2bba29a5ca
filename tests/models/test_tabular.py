"""Tables as policy, critic and reward: the same interfaces as language models, with numbers one can look up."""

import pytest
import torch
from torch.testing import assert_close

from klqlit.data.exact import ExactProblem
from klqlit.models.policy import LanguagePolicy
from klqlit.models.tabular import ResponseTree, TabularCritic, TabularPolicy, letter_tokenizer
from klqlit.rewards.table import TableReward
from klqlit.rollout.sampling import Sampler
from klqlit.types import Sequences
from runs import make_completions, make_prompts

EOS = 2  # after the letters a and b


@pytest.fixture
def policy():
    """Two prompts, two letters, two tokens: 2 + 4 states and the end. State s prefers token 0 by s + 1."""
    logits = torch.zeros(7, 3)
    logits[:, 0] = torch.arange(1.0, 8.0)
    return TabularPolicy(logits, prompts=2, horizon=2)


def rows(prompts, responses, *, left=0, right=0, rubbish=1):
    """One-letter prompts and responses with columns of rubbish on both sides."""
    width = max(map(len, responses)) + right
    return Sequences(
        prompt_tokens=torch.tensor([[rubbish] * left + [x] for x in prompts]),
        prompt_mask=torch.tensor([[False] * left + [True] for _ in prompts]),
        tokens=torch.tensor([list(y) + [rubbish] * (width - len(y)) for y in responses]),
        mask=torch.tensor([[True] * len(y) + [False] * (width - len(y)) for y in responses]),
    )


def log_softmax(*logits):
    return torch.tensor(logits).log_softmax(-1)


def test_tokens_are_letters_and_eos():
    tokenizer = letter_tokenizer(5)
    assert tokenizer.get_vocab() == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "<eos>": 5}
    assert tokenizer(["ace", "b"])["input_ids"] == [[0, 2, 4], [1]]
    assert tokenizer.decode([3, 0, 3, 5], skip_special_tokens=True) == "dad"
    for letters in (0, 27):
        with pytest.raises(ValueError, match=f"letters={letters} must lie between 1 and 26"):
            letter_tokenizer(letters)


def test_log_probabilities_are_looked_up(policy):
    """Prompt a is state 0; after letter b it is state 2 + 0 * 2 + 1 = 3, whose logits are 4, 0, 0."""
    logprobs = policy(rows([0, 1], [[1, 0], [EOS]]), temperature=1.0).logprobs
    assert_close(logprobs[0], torch.stack([log_softmax(1.0, 0, 0)[1], log_softmax(4.0, 0, 0)[0]]))
    assert_close(logprobs[1, 0], log_softmax(2.0, 0, 0)[2])


def test_temperature_divides_the_logits(policy):
    hot = policy(rows([1], [[0, 0]]), temperature=2.0).logprobs
    # Prompt b is state 1, and letter a leads to state 2 + 1 * 2 + 0 = 4.
    assert_close(hot[0], torch.stack([log_softmax(1.0, 0, 0)[0], log_softmax(2.5, 0, 0)[0]]))


@pytest.mark.parametrize("rubbish", [0, 1, EOS])
def test_padding_does_not_matter(policy, rubbish):
    critic = TabularCritic(policy)
    critic.table.data = torch.arange(7.0)
    prompts, responses = [0, 1, 1], [[EOS], [1], [0]]
    tight = rows(prompts, responses)
    wide = rows(prompts, responses, left=2, right=1, rubbish=rubbish)
    assert torch.equal(policy(wide, temperature=1.0).logprobs[:, :1], policy(tight, temperature=1.0).logprobs)
    assert torch.equal(critic(wide, None)[:, :1], critic(tight, None))
    assert critic(tight, None).flatten().tolist() == [0, 1, 1]


def test_gradient_reaches_visited_states_only(policy):
    critic = TabularCritic(policy)
    sequences = rows([0, 0], [[0, 1], [EOS]], right=0)
    losses = policy(sequences, temperature=1.0).logprobs + critic(sequences, None)
    losses[sequences.mask].sum().backward()
    assert policy.logits.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 2]
    assert critic.table.grad.tolist() == [2, 0, 1, 0, 0, 0, 0]


def test_critic_starts_at_zero_and_has_no_weights_of_the_policy(policy):
    critic = TabularCritic(policy)
    assert {name: tuple(p.shape) for name, p in critic.named_parameters()} == {"table": (7,)}
    assert not critic.table.any()


@pytest.mark.parametrize("left", [0, 3])
def test_decoding_agrees_with_one_pass(left):
    """Log-probabilities as the tokens are drawn are those of the forward pass, at the same temperature."""
    problem = ExactProblem(seed=5)
    policy = TabularPolicy(problem.ref_logits, prompts=3, horizon=4)
    prompts = make_prompts(policy.tokenizer, ["a", "b", "c"] * 40)
    prompts.tokens = torch.nn.functional.pad(prompts.tokens, (left, 0), value=1)
    prompts.mask = torch.nn.functional.pad(prompts.mask, (left, 0), value=False)
    sample = Sampler(response_length=4, temperature=0.7).sample(policy, prompts)
    assert sample.mask.sum(1).unique().tolist() == [1, 2, 3, 4]
    sequences = Sequences(
        prompt_tokens=prompts.tokens, prompt_mask=prompts.mask, tokens=sample.tokens, mask=sample.mask
    )
    logprobs = policy(sequences, temperature=0.7).logprobs
    assert_close(sample.logprobs[sample.mask], logprobs[sample.mask])


def test_reward_sums_over_real_tokens():
    """EOS after b pays r(3, EOS) = 11; what stands in padding pays nothing."""
    tree = ResponseTree(prompts=2, vocab_size=3, horizon=2)
    reward = TableReward(torch.arange(21.0).view(7, 3), tree)
    scores = reward(make_completions([("a", "b"), ("b", "")], rows([0, 1], [[1, EOS], [EOS]])))
    # r(0, b) + r(3, EOS) = 1 + 11, and r(1, EOS) = 5.
    assert scores.tolist() == [12, 5]
    with pytest.raises(ValueError, match=r"rewards has shape \(6, 3\), but the tree has 7 states and 3 tokens"):
        TableReward(torch.zeros(6, 3), tree)


def test_save_and_load(policy, tmp_path):
    policy.save(str(tmp_path / "new" / "model"), "# A card\n", temperature=1.0)
    loaded = TabularPolicy.load(str(tmp_path / "new" / "model"))
    assert torch.equal(loaded.logits, policy.logits)
    sequences = rows([0, 1], [[1, 0], [EOS]])
    assert torch.equal(loaded(sequences, temperature=1.0).logprobs, policy(sequences, temperature=1.0).logprobs)
    assert (tmp_path / "new" / "model" / "README.md").read_text() == "# A card\n"


def test_limits(policy):
    assert (policy.vocab_size, policy.max_positions) == (3, 3)
    assert not any(p.requires_grad for p in policy.frozen_copy().parameters())


def test_what_is_no_part_of_the_problem_is_refused(policy, model_dir):
    with pytest.raises(ValueError, match="one of the letters 'ab'"):
        policy(rows([EOS], [[0]]), temperature=1.0)
    two_tokens = rows([0], [[0]], left=1)
    two_tokens.prompt_mask[:] = True
    with pytest.raises(ValueError, match="one of the letters 'ab'"):
        policy(two_tokens, temperature=1.0)
    with pytest.raises(
        ValueError, match=r"3 tokens is longer than the table's horizon 2: set sampler.response_length=2"
    ):
        policy(rows([0], [[0, 0, 0]]), temperature=1.0)
    with pytest.raises(ValueError, match="no hidden states"):
        policy(rows([0], [[0]]), temperature=1.0, features=True)
    with pytest.raises(ValueError, match="logits has 5 rows, but 2 prompts, 3 tokens and horizon 2 make 7 states"):
        TabularPolicy(torch.zeros(5, 3), prompts=2, horizon=2)
    with pytest.raises(ValueError, match="3 prompts need as many letters: give vocab_size at least 4"):
        ResponseTree(prompts=3, vocab_size=3, horizon=2)
    with pytest.raises(ValueError, match="TabularCritic needs a TabularPolicy, got LanguagePolicy"):
        TabularCritic(LanguagePolicy(model_dir("llama")))
