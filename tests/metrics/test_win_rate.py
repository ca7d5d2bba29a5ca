"""Win rates: a tie is half a win."""

import torch

from klqlit.metrics.win_rate import WinRate


def test_wins_ties_and_losses():
    metric = WinRate()
    metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 5.0]))
    assert metric.compute().item() == 0.5
    metric.update(torch.tensor([1.0]), torch.tensor([0.0]))
    assert metric.compute().item() == 2.5 / 4


def test_both_sides_add_up_to_one():
    one, other = torch.tensor([1.0, 4.0, 2.0, 2.0]), torch.tensor([3.0, 1.0, 2.0, 0.0])
    metric, mirrored = WinRate(), WinRate()
    metric.update(one, other)
    mirrored.update(other, one)
    assert metric.compute().item() == 0.625
    assert mirrored.compute().item() == 0.375


def test_verdicts_are_scored_by_their_values():
    """Two wins, a tie and a loss."""
    values = torch.tensor([1.0, 1.0, 0.5, 0.0])
    metric = WinRate()
    metric.update(values, 1 - values)
    assert metric.compute().item() == 2.5 / 4


def test_reset_forgets():
    metric = WinRate()
    metric.update(torch.tensor([0.0]), torch.tensor([1.0]))
    metric.reset()
    metric.update(torch.tensor([1.0]), torch.tensor([0.0]))
    assert metric.compute().item() == 1.0
