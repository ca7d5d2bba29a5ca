"""Metrics of a rollout of two completions, computed by hand.

Log-ratios 0.5 and -0.25 in the first, 0.25 in the second; so KL per sequence 0.25 and 0.25.
"""

import math
from dataclasses import replace

import pytest
import torch

from klqlit.metrics.rollout import RolloutMetrics
from runs import two_rows

EXPECTED = {
    "reward/score": 2.0,
    "reward/score_std": 1.0,
    "objective/J": 2.0 - 0.1 * 0.25,
    "kl/sequence": 0.25,
    "kl/token_k1": 0.5 / 3,
    "kl/token_k3": (math.exp(-0.5) - 0.5 + math.exp(0.25) - 1.25 + math.exp(-0.25) - 0.75) / 3,
    "policy/entropy": 3.0,
    "policy/length": 1.5,
    "policy/ended": 0.5,
}


def measured(*rollouts, gold=None):
    metrics = RolloutMetrics(tau=0.1)
    for rollout in rollouts:
        metrics.update(rollout, gold)
    return metrics.compute()


def test_every_number_by_hand():
    assert measured(two_rows()) == pytest.approx(EXPECTED, rel=1e-6)


def test_gold_scores_stand_beside():
    found = measured(two_rows(), gold=torch.tensor([0.0, 6.0]))
    assert (found["reward/gold"], found["reward/gold_std"]) == (3.0, 3.0)
    assert found["reward/score"] == 2.0


def test_two_updates_are_one_update_of_all_rows():
    """The second rollout scores 5 and 7: mean 4, variance (9 + 1 + 1 + 9) / 4."""
    other = replace(two_rows(), scores=torch.tensor([5.0, 7.0]))
    found = measured(two_rows(), other)
    assert found["reward/score"] == pytest.approx(4.0)
    assert found["reward/score_std"] == pytest.approx(math.sqrt(5.0))
    assert found["kl/token_k1"] == pytest.approx(EXPECTED["kl/token_k1"])


def test_the_objective_reads_the_score_before_shaping():
    shaped = replace(two_rows(), rewards=torch.full((2, 2), 100.0))
    assert measured(shaped) == pytest.approx(EXPECTED, rel=1e-6)


def test_deviation_survives_a_large_mean():
    """Scores 1000.0 and 1000.2 deviate by 0.1; squares of float32 differ by 0.06 at best."""
    rollout = replace(two_rows(), scores=torch.tensor([1000.0, 1000.2]))
    assert measured(rollout)["reward/score_std"] == pytest.approx(0.1, rel=1e-3)


def test_reset_forgets():
    metrics = RolloutMetrics(tau=0.1)
    metrics.update(replace(two_rows(), scores=torch.tensor([50.0, 60.0])))
    metrics.reset()
    metrics.update(two_rows())
    assert metrics.compute() == pytest.approx(EXPECTED, rel=1e-6)
