"""The exact benchmark's cells as runs: the report draws the optimum's frontier beside theirs."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from klqlit.data.exact import ExactProblem
from klqlit.reports.experiment import read_experiment
from klqlit.reports.figures.frontier import optima

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def by_listing(problem: ExactProblem, logits: torch.Tensor) -> tuple[float, float]:
    """Score and KL of a policy by a sum over every response to the only prompt."""
    policy, reference = logits.log_softmax(-1), problem.ref_logits.log_softmax(-1)
    end, vocabulary = len(problem.next_states) - 1, problem.next_states.shape[1]
    score = kl = 0.0
    for tokens in product(range(vocabulary), repeat=problem.horizon):
        state, logprob, ratio, reward, used = 0, 0.0, 0.0, 0.0, 0
        for token in tokens:
            if state != end:
                used += 1
                logprob += float(policy[state, token])
                ratio += float(policy[state, token] - reference[state, token])
                reward += float(problem.rewards[state, token])
                state = int(problem.next_states[state, token])
        # A response that ended early is listed once for each way to fill the rest.
        probability = torch.tensor(logprob).exp().item() / vocabulary ** (problem.horizon - used)
        score += probability * reward
        kl += probability * ratio
    return score, kl


def test_score_and_kl_are_those_of_all_responses(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from exact_optimum import measure

    problem = ExactProblem(prompts=1, vocab_size=4, horizon=3, seed=5)
    logits = problem.ref_logits.roll(1, dims=1)
    found = measure(problem, logits, 0.3)
    score, kl = by_listing(problem, logits)
    assert found["score"] == pytest.approx(score, abs=1e-5)
    assert found["kl"] == pytest.approx(kl, abs=1e-5)
    assert found["J"] == pytest.approx(score - 0.3 * kl, abs=1e-5)
    assert measure(problem, problem.ref_logits, 0.3)["kl"] == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_the_benchmark_writes_runs(tmp_path):
    command = [sys.executable, BENCHMARKS / "exact_optimum.py", "--quick", "--run_folders", "--out", tmp_path]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    (task,) = read_experiment([tmp_path]).tasks
    assert (task.name, task.variants, task.taus) == (
        "ExactProblem",
        ["KLQ, alpha 1", "PPO, clip", "PPO, penalty, alpha 1"],
        [0.5],
    )
    assert [[run.seed for run in cell.runs] for cell in task.cells] == [[0, 1]] * 3
    assert task.notes == []
    for run in task.runs:
        assert run.finished
        assert not run.problems
        scores, kls, objectives = (run.series(name) for name in ("reward/score", "kl/sequence", "objective/J"))
        assert list(scores) == list(range(11))
        for phase in scores:
            assert objectives[phase] == pytest.approx(scores[phase] - 0.5 * kls[phase], abs=1e-9)
        best = ExactProblem(prompts=1, seed=run.seed).optimum(tau=0.5)
        assert run.optimum["J"] == pytest.approx(best)
        assert run.optimum["score"] - 0.5 * run.optimum["kl"] == pytest.approx(best)
        assert run.optimum["reference"] == objectives[0] < objectives[10] < run.optimum["J"]
        assert kls[0] == pytest.approx(0, abs=1e-9)
    assert list(optima(task.runs)) == [0.5]
