"""The KL budget: stop and say why, or raise tau, which survives a resume exactly."""

import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.ppo import PPO
from klqlit.callbacks.export import Export
from klqlit.callbacks.kl_budget import KLBudget, RaiseTau, StopRun
from klqlit.callbacks.run_record import RunRecord
from runs import Watch, make_data, make_module, make_trainer, weights

SMALL = 1e-4  # nats: every phase after the first is over it


def run(path, root, algorithm, *callbacks, ckpt=None, phases=4, **options):
    watch, module = Watch(), make_module(path, algorithm, tau=0.1, **options)
    trainer = make_trainer(root, watch, *callbacks, max_epochs=phases, enable_checkpointing=True)
    trainer.fit(module, make_data(), ckpt_path=ckpt, weights_only=True)
    return watch, module


def every_step(root):
    return ModelCheckpoint(dirpath=root, filename="{step}", save_top_k=-1, every_n_train_steps=1)


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_tau_is_multiplied_after_each_phase_over_the_budget_and_logged(algorithm, quitter_dir, tmp_path):
    watch, module = run(quitter_dir, tmp_path, algorithm, KLBudget(SMALL, RaiseTau(2.0)))
    over = [metrics["kl/sequence"] > SMALL for metrics in watch.metrics]
    assert over == [False, True, True, True]
    assert [metrics["kl/coefficient"] for metrics in watch.metrics] == pytest.approx([0.1, 0.1, 0.2, 0.4])
    assert module.kl_coefficient == pytest.approx(0.8)
    assert module.tau == 0.1


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_targets_and_losses_take_the_raised_tau_and_the_logged_objective_keeps_the_first(
    algorithm, quitter_dir, tmp_path
):
    raised, _ = run(quitter_dir, tmp_path / "raised", algorithm, KLBudget(SMALL, RaiseTau(8.0)), phases=3)
    plain, _ = run(quitter_dir, tmp_path / "plain", algorithm, phases=3)
    for one, other in zip(raised.batches[:8], plain.batches[:8], strict=True):
        assert torch.equal(one.experience.returns, other.experience.returns)
    assert not torch.equal(raised.batches[8].experience.returns, plain.batches[8].experience.returns)
    # The third phase's rollout is the same in both, so that J, which keeps tau, is too.
    assert raised.metrics[2]["objective/J"] == plain.metrics[2]["objective/J"]


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
@pytest.mark.parametrize("step", [7, 8, 10])
def test_the_raised_tau_survives_a_resume_exactly(algorithm, step, quitter_dir, tmp_path):
    budget = KLBudget(SMALL, RaiseTau(2.0))
    whole, module = run(quitter_dir, tmp_path, algorithm, budget, every_step(tmp_path / "steps"))
    again, resumed = run(
        quitter_dir,
        tmp_path / "again",
        algorithm,
        KLBudget(SMALL, RaiseTau(2.0)),
        ckpt=tmp_path / f"steps/step={step}.ckpt",
    )
    assert resumed.kl_coefficient == module.kl_coefficient
    end, other = weights(module), weights(resumed)
    assert all(torch.equal(end[name], other[name]) for name in end)
    assert again.metrics[-1]["kl/coefficient"] == whole.metrics[-1]["kl/coefficient"]


def test_another_tau_than_the_checkpoints_wins(quitter_dir, tmp_path):
    run(quitter_dir, tmp_path, KLQ, KLBudget(SMALL, RaiseTau(2.0)), every_step(tmp_path), phases=2)
    module = make_module(quitter_dir, tau=0.3)
    make_trainer(tmp_path, max_epochs=2).fit(module, make_data(), ckpt_path=tmp_path / "step=8.ckpt", weights_only=True)
    assert module.kl_coefficient == 0.3


def test_tau_stops_at_its_maximum(quitter_dir, tmp_path, capsys):
    _, module = run(quitter_dir, tmp_path, KLQ, KLBudget(SMALL, RaiseTau(2.0, maximum=0.3)))
    assert module.kl_coefficient == 0.3


def test_within_the_budget_nothing_happens(quitter_dir, tmp_path):
    with_budget, module = run(quitter_dir, tmp_path, KLQ, KLBudget(1e6), phases=2)
    without, _ = run(quitter_dir, tmp_path, KLQ, phases=2)
    assert module.kl_coefficient == 0.1
    assert all(
        torch.equal(one[n], other[n])
        for one, other in zip(with_budget.weights, without.weights, strict=True)
        for n in one
    )


def test_the_run_stops_with_a_checkpoint_and_says_why_and_again_when_it_is_started_again(quitter_dir, tmp_path):
    def callbacks():
        return KLBudget(SMALL, StopRun()), RunRecord(), Export(), every_step(tmp_path)

    watch, _ = run(quitter_dir, tmp_path, KLQ, *callbacks())
    assert len(watch.metrics) == 2
    assert (tmp_path / "model" / "config.json").exists()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["state"] == "stopped"
    assert "nats per completion are over the limit of 0.0001" in record["reason"]
    again, _ = run(quitter_dir, tmp_path, KLQ, *callbacks(), ckpt=tmp_path / "step=8.ckpt")
    assert again.weights == []
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "stopped"
    # A higher limit lets it go on.
    further, _ = run(quitter_dir, tmp_path, KLQ, KLBudget(1e6), RunRecord(), ckpt=tmp_path / "step=8.ckpt")
    assert len(further.weights) == 8
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    "make",
    [
        lambda: KLBudget(0.0),
        lambda: KLBudget(math.nan),
        lambda: RaiseTau(1.0),
        lambda: RaiseTau(math.inf),
        lambda: RaiseTau(2.0, maximum=0.0),
    ],
)
def test_limits_are_checked(make):
    with pytest.raises(ValueError, match=r"KLBudget limit must be|RaiseTau (factor=|maximum must)"):
        make()
