"""Policy and critic side by side give what they give one after the other."""

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from builders import ARCHITECTURES
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.ppo import PPO
from klqlit.models import evaluation
from klqlit.models.critic import NoCritic, SeparateCritic, SharedCritic
from klqlit.models.evaluation import evaluate
from klqlit.models.policy import LanguagePolicy
from runs import make_data, make_module, make_sequences, make_trainer, weights

PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12], [13, 14]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]


@pytest.fixture(autouse=True)
def _two_threads(set_threads):
    set_threads(2)


@pytest.fixture
def calls(monkeypatch):
    """How many pairs went side by side."""
    made = []

    def counted(*pair):
        made.append(pair)
        return side_by_side(*pair)

    side_by_side = evaluation.side_by_side
    monkeypatch.setattr(evaluation, "side_by_side", counted)
    return made


@pytest.fixture
def sequences():
    return make_sequences(PROMPTS, RESPONSES, left=1, right=1)


@pytest.fixture
def policy(model_dir):
    return LanguagePolicy(model_dir("llama"))


def evaluated(policy, critic, sequences):
    for model in (policy, critic):
        model.zero_grad()
    logprobs, values = evaluate(policy, critic, sequences, temperature=0.7)
    # As in KLQ, the gradient of each depends on the other.
    (logprobs * values).sum().backward()
    named = {**dict(policy.named_parameters()), **{f"critic.{n}": p for n, p in critic.named_parameters()}}
    gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    return logprobs.detach(), values.detach(), gradients


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_values_and_gradients_are_those_of_one_after_the_other(
    architecture, precision, model_dir, sequences, calls
):
    policy = LanguagePolicy(model_dir(architecture))
    critic = SeparateCritic(policy)
    torch.nn.init.ones_(critic.head.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        together = evaluated(policy, critic, sequences)
        assert len(calls) == 1
        torch.set_num_threads(1)
        apart = evaluated(policy, critic, sequences)
    assert len(calls) == 1
    torch.testing.assert_close(together[:2], apart[:2])
    torch.testing.assert_close(together[2], apart[2], atol=1e-4, rtol=1e-4)
    assert any(name.startswith("critic.") for name in together[2])


def test_others_go_one_after_the_other(policy, sequences, calls):
    for critic in (SharedCritic(policy), NoCritic(policy)):
        evaluate(policy, critic, sequences, temperature=1.0)
    critic = SeparateCritic(policy)
    with torch.no_grad():
        evaluate(policy, critic, sequences, temperature=1.0)
    with FlopCounterMode(display=False):
        evaluate(policy, critic, sequences, temperature=1.0)
    policy.model.gradient_checkpointing_enable()
    evaluate(policy, critic, sequences, temperature=1.0)
    assert not calls
    policy.model.gradient_checkpointing_disable()
    evaluate(policy, critic, sequences, temperature=1.0)
    assert calls


def test_ranks_go_one_after_the_other(policy, sequences, calls, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        evaluate(policy, SeparateCritic(policy), sequences, temperature=1.0)
    finally:
        dist.destroy_process_group()
    assert not calls


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_a_run_learns_the_same_twice_and_what_it_learns_on_one_thread(algorithm, model_dir, tmp_path, calls):
    def learned():
        module = make_module(model_dir("gpt_neox"), algorithm)
        make_trainer(tmp_path).fit(module, make_data())
        return weights(module)

    one, two = learned(), learned()
    assert len(calls) == 2 * 2 * 4
    assert all(torch.equal(one[name], two[name]) for name in one)
    torch.set_num_threads(1)
    alone = learned()
    assert len(calls) == 2 * 2 * 4
    for name in one:
        torch.testing.assert_close(one[name], alone[name], atol=1e-4, rtol=1e-4)


class Counted(TorchDispatchMode):
    """How often the number of True entries of a mask is asked for, which a GPU must be waited for."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) else []
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        self.times += by_mask or func.overloadpacket == torch.ops.aten.nonzero
        return func(*args, **(kwargs or {}))


def test_response_tokens_are_not_looked_for(policy):
    """In a forward pass of both models and the way back, of rows that are not packed: on a GPU none are."""
    sequences = make_sequences([[3, 4, 5], [6]], [[20, 21], [22, 23, 24, 25]])
    with Counted() as found:
        evaluated(policy, SeparateCritic(policy), sequences)
    assert found.times == 0
    with Counted() as found:
        sequences.tokens[sequences.mask]
    assert found.times == 1
