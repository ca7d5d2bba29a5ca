"""An interrupted run goes on bit for bit as if it had not been interrupted."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO, AdaptiveKL
from klqlit.algorithms.schedules import LinearSchedule
from klqlit.data.online import flatten
from klqlit.models.critic import SharedCritic
from klqlit.models.policy import LanguagePolicy
from klqlit.rewards.function import FunctionReward
from klqlit.rewards.shaping import RewardShaping
from runs import Watch, make_data, make_module, make_trainer, vowels, weights

FULL = {"lr": 1e-3, "critic_lr": 1e-2, "warmup_steps": 3, "decay": "linear"}


def module(path, algorithm):
    """With everything on that has a state: schedules, running statistics, optimizer moments, coefficients."""
    options = {"shaping": RewardShaping(normalise=True), "optimization": Optimization(**FULL)}
    if algorithm is KLQ:
        return make_module(path, KLQ, lam=LinearSchedule(0.5, 1.0, phases=3), rescale_targets=True, **options)
    return make_module(path, PPO, adaptive_kl=AdaptiveKL(0.01, horizon=50), critic=SharedCritic, **options)


def checkpoints(directory, **when):
    return ModelCheckpoint(dirpath=directory, filename="{step}", save_top_k=-1, **when)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(path, root, algorithm, *callbacks, ckpt=None, **options):
    watch, model = Watch(), module(path, algorithm)
    defaults = {"max_epochs": 3, "enable_checkpointing": True}
    make_trainer(root, watch, *callbacks, **(defaults | options)).fit(
        model, make_data(), ckpt_path=ckpt, weights_only=True
    )
    return watch, weights(model)


@pytest.fixture(scope="module", params=[KLQ, PPO])
def whole(request, quitter_dir, tmp_path_factory):
    """An uninterrupted run of three phases of 4 steps, with a checkpoint after every step."""
    root = tmp_path_factory.mktemp("whole")
    watch, end = run(quitter_dir, root, request.param, checkpoints(root / "steps", every_n_train_steps=1))
    return request.param, root / "steps", watch, end


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 11])
def test_resumed_after_any_step_gives_the_same_weights_and_metrics(whole, quitter_dir, tmp_path, step):
    algorithm, steps, watch, end = whole
    again, resumed = run(quitter_dir, tmp_path, algorithm, ckpt=steps / f"step={step}.ckpt", enable_checkpointing=False)
    assert len(again.weights) == 12 - step
    for mine, theirs in zip(again.weights, watch.weights[step:], strict=True):
        assert same(mine, theirs)
    assert same(resumed, end)
    for mine, theirs in zip(again.batches, watch.batches[step:], strict=True):
        assert (mine.step, mine.version, mine.tokens) == (theirs.step, theirs.version, theirs.tokens)
        assert same(flatten(mine.experience), flatten(theirs.experience))
    kept = watch.metrics[-len(again.metrics) :]
    for mine, theirs in zip(again.metrics, kept, strict=True):
        assert without_times(mine) == without_times(theirs)


def without_times(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize("step", [4, 8])
def test_resumed_at_a_phase_end_goes_on_the_same(whole, quitter_dir, tmp_path, step):
    """The checkpoint that Lightning writes when an epoch is over."""
    algorithm, _, _, end = whole
    ends = checkpoints(tmp_path / "ends", every_n_epochs=1, save_on_train_epoch_end=True)
    run(quitter_dir, tmp_path, algorithm, ends)
    again, resumed = run(
        quitter_dir, tmp_path, algorithm, ckpt=tmp_path / "ends" / f"step={step}.ckpt", enable_checkpointing=False
    )
    assert len(again.metrics) == 3 - step // 4
    assert len(again.weights) == 12 - step
    assert same(resumed, end)


def test_frozen_parts_are_absent_from_the_checkpoint_and_restored_all_the_same(whole, quitter_dir, tmp_path):
    _, steps, watch, _ = whole
    saved = torch.load(steps / "step=6.ckpt", weights_only=True)["state_dict"]
    kept = {name.split(".")[0] for name in saved}
    assert not kept & {"reference", "reward", "gold"}
    assert {"policy", "critic"} <= kept
    assert any(name.startswith("reference.") for name in watch.weights[0])


def test_averaged_weights_stand_beside_the_trained_ones_and_neither_brings_frozen_parts(quitter_dir, tmp_path):
    def averaged(root, *callbacks, **options):
        return run(quitter_dir, root, KLQ, EMAWeightAveraging(decay=0.9), *callbacks, **options)

    whole, end = averaged(tmp_path, checkpoints(tmp_path / "steps", every_n_train_steps=1))
    path = tmp_path / "steps" / "step=6.ckpt"
    saved = torch.load(path, weights_only=True)
    for state in (saved["state_dict"], saved["current_model_state"]):
        assert {name.split(".")[0] for name in state} == {"policy", "critic", "shaping"}
    again, resumed = averaged(tmp_path / "again", ckpt=path, enable_checkpointing=False)
    for mine, theirs in zip(again.weights, whole.weights[6:], strict=True):
        assert same(mine, theirs)
    assert same(resumed, end)
    assert not same(end, whole.weights[-1])


def test_a_checkpoint_is_loaded_without_a_trainer(whole, quitter_dir):
    algorithm, steps, watch, _ = whole
    options = {"critic": SharedCritic} if algorithm is PPO else {}
    parts = {"policy": LanguagePolicy(quitter_dir), "reward": FunctionReward(vowels), **options}
    loaded = algorithm.load_from_checkpoint(steps / "step=6.ckpt", weights_only=True, **parts)
    assert same(weights(loaded), watch.weights[5])


def test_a_run_stopped_by_its_steps_goes_on_when_it_gets_more(quitter_dir, tmp_path):
    """`max_steps` may fall into the middle of a phase."""
    whole, end = run(quitter_dir, tmp_path, KLQ, max_epochs=-1, max_steps=10)
    last = ModelCheckpoint(dirpath=tmp_path / "last", save_last=True, every_n_train_steps=1)
    # The length of the run is part of a linear schedule, so that the first part must know it.
    stop = Stop(after=6)
    run(quitter_dir, tmp_path, KLQ, last, stop, max_epochs=-1, max_steps=10)
    again, resumed = run(quitter_dir, tmp_path, KLQ, ckpt=tmp_path / "last" / "last.ckpt", max_epochs=-1, max_steps=10)
    assert (len(whole.weights), len(again.weights)) == (10, 4)
    assert same(resumed, end)


class Stop(L.Callback):
    """Ends a run early."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.after


def test_validation_and_its_sampling_leave_the_run_as_it_is(quitter_dir, tmp_path):
    _, without = run(quitter_dir, tmp_path, KLQ)
    _, with_validation = run(quitter_dir, tmp_path, KLQ, limit_val_batches=1.0, num_sanity_val_steps=2)
    assert same(without, with_validation)
