"""KLQ's targets and losses by hand, and every variant in a run."""

import math
from dataclasses import replace

import pytest
import torch

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.q_losses import (
    DoubleClippedError,
    HuberError,
    RatioClippedError,
    SquaredError,
    ValueClippedError,
)
from klqlit.algorithms.schedules import LinearSchedule
from klqlit.models.critic import SeparateCritic, SharedCritic
from runs import Watch, make_data, make_module, make_trainer, two_rows

Q_LOSSES = [
    SquaredError(),
    HuberError(0.5),
    ValueClippedError(0.1),
    RatioClippedError(0.1),
    DoubleClippedError(0.1, 0.1),
]


def targets(path, **options):
    """Targets of the two rows at tau 0.4; the module needs no trainer for them where lambda is fixed."""
    return make_module(path, KLQ, tau=0.4, **options).targets(two_rows())


def test_targets_by_hand(quitter_dir):
    """tau 0.4, gamma 1, lambda 0.5, alpha 1.

    Row 0: Q = (0.2 + 0.2, -0.1 + 0.4) = (0.4, 0.3); delta_1 = 1 - 0.3 = 0.7 and delta_0 = 0 + 0.4 - 0.4 = 0; so
    G = (0.4 + 0 + 0.5 * 0.7, 0.3 + 0.7) = (0.75, 1.0).
    Row 1: Q = 0.1 + 0.6 = 0.7; delta = 3 - 0.7 = 2.3; G = 3.
    """
    experience = targets(quitter_dir, lam=0.5)
    mask = two_rows().mask
    assert experience.returns[mask].tolist() == pytest.approx([0.75, 1.0, 3.0])
    assert experience.advantages[mask].tolist() == pytest.approx([0.35, 0.7, 2.3])
    assert experience.values[mask].tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_alpha_and_gamma_by_hand(quitter_dir):
    """alpha 0.5 halves the way; with gamma 0.5, delta_0 = 0.5 * 0.4 - 0.4 = -0.2 and the decay is 0.25."""
    half = targets(quitter_dir, lam=0.5, alpha=0.5)
    assert half.returns[two_rows().mask].tolist() == pytest.approx([0.575, 0.65, 1.85])
    discounted = targets(quitter_dir, lam=0.5, gamma=0.5)
    assert discounted.returns[two_rows().mask].tolist() == pytest.approx([0.4 - 0.2 + 0.25 * 0.7, 1.0, 3.0])


def test_targets_read_nothing_in_padding(quitter_dir):
    experience = targets(quitter_dir)
    assert experience.returns[~two_rows().mask].tolist() == [0.0]
    assert bool(experience.returns.isfinite().all())


def test_rescaling_divides_targets_by_their_deviation(quitter_dir):
    """0.75, 1, 3 have mean 19/12 and population variance (0.8333^2 + 0.5833^2 + 1.4167^2) / 3."""
    deviation = math.sqrt(((0.75 - 19 / 12) ** 2 + (1 - 19 / 12) ** 2 + (3 - 19 / 12) ** 2) / 3)
    rescaled = targets(quitter_dir, lam=0.5, rescale_targets=True).returns[two_rows().mask]
    assert rescaled.tolist() == pytest.approx([x / deviation for x in (0.75, 1.0, 3.0)])


def test_rescaling_leaves_the_advantages(quitter_dir):
    mask = two_rows().mask
    rescaled, plain = (targets(quitter_dir, rescale_targets=choice).advantages[mask] for choice in (True, False))
    assert torch.equal(rescaled, plain)


def test_loss_is_half_the_squared_distance_by_hand(quitter_dir):
    """At new log-probabilities (-0.7, -1) and values (0, 0): Q = 0.4 (0.3, 0) = (0.12, 0), G = (0.75, 1)."""
    module = make_module(quitter_dir, KLQ, tau=0.4, lam=0.5)
    experience = module.targets(two_rows())
    losses, metrics = module.loss(
        experience, torch.full((2, 2), -1.0).index_fill(1, torch.tensor(0), -0.7), torch.zeros(2, 2)
    )
    assert losses[two_rows().mask].tolist() == pytest.approx([0.5 * 0.63**2, 0.5, 0.5 * (0.12 - 3) ** 2])
    assert metrics == {}


@pytest.mark.parametrize("q_loss", Q_LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_loss_is_the_squared_error_near_its_rollout(quitter_dir, q_loss):
    """Clipping and Huber's corner are far away, so they change neither loss nor gradient."""
    module = make_module(quitter_dir, KLQ, tau=0.4, q_loss=q_loss)
    rollout = two_rows()
    near = replace(module.targets(rollout), returns=torch.tensor([[0.41, 0.29], [0.72, 0.0]]))
    found = []
    for loss in (q_loss, SquaredError()):
        logprobs = (rollout.logprobs.nan_to_num() + 0.01).requires_grad_()
        values = (rollout.values.nan_to_num() - 0.01).requires_grad_()
        losses = loss(near, logprobs, values, tau=0.4)
        torch.where(rollout.mask, losses, 0.0).sum().backward()
        found.append([losses[rollout.mask], logprobs.grad[rollout.mask], values.grad[rollout.mask]])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("q_loss", Q_LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("critic", [SeparateCritic, SharedCritic])
def test_every_loss_trains(quitter_dir, tmp_path, q_loss, critic):
    """Four passes over a phase bring Q nearer to its targets, which is what all of them measure."""
    watch = Watch()
    module = make_module(quitter_dir, KLQ, q_loss=q_loss, critic=critic, tau=0.5)
    make_trainer(tmp_path, watch, max_epochs=1).fit(module, make_data(minibatches=1, epochs=6))
    losses = []
    for state in (watch.weights[0], watch.weights[-1]):
        module.load_state_dict(state)
        experience = watch.batches[0].experience
        with torch.no_grad():
            error, _ = module.loss(experience, *module.evaluate(experience.sequences))
        losses.append(float(error[experience.mask].mean()))
    assert losses[1] < losses[0]
    assert all(bool(g.isfinite().all()) for gradients in watch.gradients for g in gradients.values())


def test_lambda_follows_its_schedule(quitter_dir, tmp_path):
    """0, 0.5, 1, 1 over four phases: in each the targets are those of that lambda."""
    module = make_module(quitter_dir, KLQ, lam=LinearSchedule(0.0, 1.0, phases=2))
    targets, seen = module.targets, []

    def watched(rollout):
        experience = targets(rollout)
        fixed = {lam: make_module(quitter_dir, KLQ, lam=lam).targets(rollout).returns for lam in (0.0, 0.5, 1.0)}
        seen.append([lam for lam, returns in fixed.items() if torch.equal(returns, experience.returns)])
        return experience

    module.targets = watched
    make_trainer(tmp_path, max_epochs=4).fit(module, make_data())
    assert seen == [[0.0], [0.5], [1.0], [1.0]]


def test_a_schedule_is_a_line_and_then_constant():
    schedule = LinearSchedule(1.0, 0.5, phases=5)
    assert [schedule(phase) for phase in (0, 1, 5, 9)] == pytest.approx([1.0, 0.9, 0.5, 0.5])
    with pytest.raises(ValueError, match="phases=0 must be at least 1"):
        LinearSchedule(1.0, 0.5, phases=0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1\.1"),
        ({"lam": -0.1}, r"lam must lie in \[0, 1\], got -0\.1"),
        ({"lam": LinearSchedule(0.5, 1.5, phases=3)}, r"lam must lie in \[0, 1\], got 1\.5"),
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\], got 0\.0"),
    ],
)
def test_arguments_out_of_range_are_refused(quitter_dir, option, message):
    with pytest.raises(ValueError, match=message):
        make_module(quitter_dir, KLQ, **option)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HuberError(0.0), r"q_loss\.delta must be a finite number above 0"),
        (lambda: ValueClippedError(-1.0), r"q_loss\.value_clip must be a finite number above 0"),
        (lambda: RatioClippedError(1.0), r"q_loss\.ratio_clip must lie strictly between 0 and 1"),
        (lambda: DoubleClippedError(0.2, 0.0), r"q_loss\.value_clip must be a finite number above 0"),
        (lambda: DoubleClippedError(0.0, 0.2), r"q_loss\.ratio_clip must lie strictly between 0 and 1"),
    ],
)
def test_losses_check_their_widths(make, message):
    with pytest.raises(ValueError, match=message):
        make()
