"""The exact laboratory: the algorithms as they are, on a problem whose optimum is known."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, final

import lightning as L
import pytest
import torch
from torch.testing import assert_close

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO
from klqlit.data.exact import ExactProblem
from klqlit.data.online import OnlineDataModule
from klqlit.models.tabular import TabularCritic, TabularPolicy
from klqlit.rewards.table import TableReward
from klqlit.rollout.sampling import Sampler
from klqlit.types import Experience
from runs import make_trainer

TAU = 0.5
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "exact_optimum.py"


def make(algorithm: Any, problem: ExactProblem, logits: torch.Tensor, **options: Any) -> Any:
    policy = TabularPolicy(logits, prompts=problem.prompts, horizon=problem.horizon)
    defaults = {
        "policy": policy,
        "critic": TabularCritic,
        "reward": TableReward(problem.rewards, policy.tree),
        "sampler": Sampler(response_length=problem.horizon),
        "optimization": Optimization(lr=0.05, decay="linear"),
        "tau": TAU,
    }
    return algorithm(**(defaults | options))


def make_data(problem: ExactProblem, **options: Any) -> OnlineDataModule:
    defaults = {"rollouts": 256, "minibatches": 1, "epochs": 4, "max_prompt_tokens": 1}
    return OnlineDataModule(problem, **(defaults | options))


@final
class Curve(L.Callback):
    """J(pi) at the start and after each phase."""

    def __init__(self, problem: ExactProblem, policy: TabularPolicy) -> None:
        self.problem, self.policy = problem, policy
        self.values = [self.measure()]

    def measure(self) -> float:
        return self.problem.objective(self.policy.logits, tau=TAU)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.values.append(self.measure())


def every_response(vocab_size: int, horizon: int) -> list[tuple[int, ...]]:
    letters, eos = range(vocab_size - 1), vocab_size - 1
    short = [(*word, eos) for length in range(horizon) for word in product(letters, repeat=length)]
    return short + list(product(letters, repeat=horizon))


def totals(table: torch.Tensor, problem: ExactProblem) -> torch.Tensor:
    """Sum of a table's entries over the tokens of each response to each prompt."""
    responses = every_response(problem.next_states.shape[1], problem.horizon)
    sums = torch.zeros(problem.prompts, len(responses), dtype=torch.float64)
    for (prompt, row), response in product(enumerate(sums), enumerate(responses)):
        state, (i, tokens) = prompt, response
        for token in tokens:
            row[i] += table[state, token]
            state = int(problem.next_states[state, token])
    return sums


def test_the_problem_is_as_described():
    """781 responses to each of 3 prompts, a reward of its own for each, drawn from the seed."""
    problem = ExactProblem(prompts=3, vocab_size=6, horizon=4, seed=1)
    responses = every_response(6, 4)
    assert len(set(responses)) == 1 + 5 + 25 + 125 + 625
    assert len(totals(problem.rewards, problem).unique()) == 3 * 781
    assert problem.rewards.count_nonzero() == 3 * 781
    assert problem.rows("train") == problem.rows("validation") == [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]
    assert problem.shorten("b", len, 1) == "b"
    assert torch.equal(problem.rewards, ExactProblem(seed=1, prompts=3).rewards)
    assert not torch.equal(problem.ref_logits, ExactProblem(seed=2, prompts=3).ref_logits)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_exact_quantities_are_sums_over_all_responses(tau):
    problem = ExactProblem(prompts=2, vocab_size=4, horizon=3, seed=3)
    logits = problem.ref_logits.roll(1, dims=1)
    policy, reference = (totals(table.log_softmax(-1), problem) for table in (logits, problem.ref_logits))
    scores = totals(problem.rewards, problem)
    optimum = (tau * (reference + scores / tau).logsumexp(-1)).mean()
    objective = (policy.exp() * (scores - tau * (policy - reference))).sum(-1).mean()
    assert_close(problem.optimum(tau=tau), float(optimum))
    assert_close(problem.objective(logits, tau=tau), float(objective))
    assert_close(problem.objective(problem.ref_logits, tau=tau), float((reference.exp() * scores).sum(-1).mean()))
    assert_close(problem.objective(problem.best_logits(tau=tau), tau=tau), float(optimum))
    assert objective < optimum


@final
class Targets(L.Callback):
    """Keeps the experience of each phase."""

    def __init__(self) -> None:
        self.experience: list[Experience] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, i: int) -> None:
        self.experience.append(batch.experience)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_optimum_has_no_error(lam, tmp_path):
    """Identity 4: at pi*, V* every target is Q itself, for every sampled trajectory, and the loss stays 0."""
    problem = ExactProblem(seed=4)
    reference = TabularPolicy(problem.ref_logits, prompts=3, horizon=4)
    module = make(KLQ, problem, problem.best_logits(tau=TAU), lam=lam, alpha=0.5, reference=reference)
    module.critic.table.data = problem.best_values(tau=TAU).float()
    seen = Targets()
    make_trainer(tmp_path, seen, max_epochs=1).fit(module, make_data(problem, epochs=1))
    (experience,) = seen.experience
    assert experience.mask.sum(1).unique().tolist() == [1, 2, 3, 4]
    assert_close(experience.advantages, torch.zeros_like(experience.advantages), atol=1e-5, rtol=0)
    assert module.phase_metrics["kl/sequence"] > 0.1


def test_reference_policy_has_errors(tmp_path):
    """The counterpart: with V* but pi_b the same targets are off by about the spread of the rewards."""
    problem = ExactProblem(seed=4)
    module = make(KLQ, problem, problem.ref_logits)
    module.critic.table.data = problem.best_values(tau=TAU).float()
    seen = Targets()
    make_trainer(tmp_path, seen, max_epochs=1).fit(module, make_data(problem, epochs=1))
    assert seen.experience[0].advantages.std() > 0.3


def test_sampled_objective_is_the_exact_one(tmp_path):
    """What the rollout metrics estimate is J(pi): within 4 standard errors at 3072 samples, equal for each prompt."""
    problem = ExactProblem(seed=6)
    start = problem.ref_logits.roll(1, dims=1)
    policy, reference = (totals(table.log_softmax(-1), problem) for table in (start, problem.ref_logits))
    returns = totals(problem.rewards, problem) - TAU * (policy - reference)
    error = ((policy.exp() * returns.square()).sum(-1).mean() / 3072).sqrt()
    module = make(KLQ, problem, start, reference=TabularPolicy(problem.ref_logits, prompts=3, horizon=4))
    make_trainer(tmp_path, max_epochs=1).fit(module, make_data(problem, rollouts=3072, epochs=1))
    assert abs(module.phase_metrics["objective/J"] - problem.objective(start, tau=TAU)) < 4 * error


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_most_of_the_gap_closes_quickly(algorithm, tmp_path):
    """40 phases close more than 90 % of J* - J(pi_b), and J rises in all but a few of them."""
    problem = ExactProblem(prompts=1, seed=0)
    module = make(algorithm, problem, problem.ref_logits)
    curve = Curve(problem, module.policy)
    make_trainer(tmp_path, curve, max_epochs=40).fit(module, make_data(problem))
    first, last, best = curve.values[0], curve.values[-1], problem.optimum(tau=TAU)
    assert_close(first, problem.objective(problem.ref_logits, tau=TAU))
    assert 0.9 < (last - first) / (best - first) < 1
    rises = torch.tensor(curve.values).diff()
    assert len(rises) == 40
    assert (rises > 0).float().mean() > 0.8
    assert rises.min() > -0.02 * (best - first)


@pytest.mark.slow
def test_the_benchmark_reports_every_cell(tmp_path):
    command = [sys.executable, BENCHMARK, "--quick", "--out", tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "new" / "exact_optimum.json").read_text())
    names = {"KLQ, alpha 1", "PPO, clip", "PPO, penalty, alpha 1"}
    cells = {(row["variant"], row["tau"], row["seed"]) for row in result["rows"]}
    assert cells == set(product(names, [0.5], [0, 1]))
    assert len(result["rows"]) == len(cells)
    for row in result["rows"]:
        assert len(row["objective"]) == 11
        assert row["reference"] == row["objective"][0] < row["objective"][-1] < row["optimum"]
        assert_close(row["share"] * (row["optimum"] - row["reference"]), row["objective"][-1] - row["reference"])
    assert all(name in done.stdout for name in names)
    for suffix in ("png", "svg"):
        assert (tmp_path / "new" / f"exact_optimum.{suffix}").stat().st_size > 10_000
