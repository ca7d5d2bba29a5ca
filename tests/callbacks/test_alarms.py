"""Alarms sound once per episode of trouble, are logged each phase, and remember across a resume."""

import lightning as L
import pytest
import torch

from klqlit.callbacks import alarms
from klqlit.callbacks.alarms import EntropyCollapse, OverLength
from runs import make_data, make_module, make_trainer


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(alarms, "rank_zero_info", lines.append)
    return lines


@pytest.fixture
def phases(quitter_dir, tmp_path):
    """`phases(alarm, name, values)` gives an alarm a metric of some phases; whether it was in trouble after each."""
    module, trainer = make_module(quitter_dir), make_trainer(tmp_path)

    def give(alarm, name, values):
        states = []
        for value in values:
            module.phase_metrics = {name: value}
            alarm.on_phase_end(trainer, module)
            states.append(alarm._in_trouble)
        return states

    return give


def test_entropy_alarm_sounds_once_an_episode(phases, said):
    found = phases(EntropyCollapse(share=0.5), "policy/entropy", [4.0, 2.0, 1.9, 1.0, 2.1, 1.5])
    assert found == [False, False, True, True, False, True]
    assert len(said) == 2
    assert "1.9 nats a token, below 2 (it began with 4)" in said[0]


def test_an_absolute_bound_holds_from_the_first_phase(phases, said):
    assert phases(EntropyCollapse(share=None, below=1.0), "policy/entropy", [0.5, 1.5, 0.9]) == [True, False, True]
    assert len(said) == 2


def test_of_two_bounds_the_higher_counts(phases, said):
    assert phases(EntropyCollapse(share=0.5, below=3.0), "policy/entropy", [4.0, 2.5]) == [False, True]
    assert phases(EntropyCollapse(share=0.5, below=1.0), "policy/entropy", [4.0, 1.5]) == [False, True]


def test_length_alarm_needs_phases_in_a_row(phases, said):
    ended = [0.05, 0.05, 0.5, 0.1, 0.0, 0.05, 0.0, 0.9, 0.0]
    found = phases(OverLength(share=0.9, phases=3), "policy/ended", ended)
    assert found == [False, False, False, False, False, True, True, False, False]
    assert len(said) == 1
    assert "95% of the responses reached sampler.response_length=6" in said[0]


@pytest.mark.parametrize("make", [EntropyCollapse, lambda: OverLength(share=0.9, phases=2)])
def test_an_episode_under_way_goes_on_after_a_resume(make, phases, said):
    name, values = ("policy/entropy", [4.0, 0.1]) if make is EntropyCollapse else ("policy/ended", [0.0, 0.0])
    first, second = make(), make()
    phases(first, name, values)
    assert len(said) == 1
    second.load_state_dict(first.state_dict())
    assert phases(second, name, values[1:]) == [True]
    assert len(said) == 1


def test_alarms_are_logged_in_a_run(quitter_dir, tmp_path):
    trainer = make_trainer(tmp_path, EntropyCollapse(share=None, below=100.0), OverLength(share=1.0, phases=1))
    trainer.fit(make_module(quitter_dir), make_data())
    assert trainer.callback_metrics["alarm/entropy_collapse"] == 1
    assert trainer.callback_metrics["alarm/over_length"] == 0


def test_alarms_need_rollouts(tmp_path):
    class Other(L.LightningModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader([0])

        def training_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return None

    with pytest.raises(ValueError, match="OverLength watches rollouts, and Other makes none"):
        make_trainer(tmp_path, OverLength()).fit(Other())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EntropyCollapse(share=None), "EntropyCollapse has no bound"),
        (lambda: EntropyCollapse(share=1.0), "EntropyCollapse share must lie strictly between 0 and 1"),
        (lambda: EntropyCollapse(below=0.0), "EntropyCollapse below must be a finite number above 0"),
        (lambda: OverLength(share=1.1), r"OverLength share=1.1 must lie in \(0, 1\]"),
        (lambda: OverLength(phases=0), "OverLength phases=0 must be at least 1"),
    ],
)
def test_thresholds_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
