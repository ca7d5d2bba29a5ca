"""PPO's targets and losses by hand, its surrogates and its coefficient in runs."""

import pytest
import torch

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO, AdaptiveKL
from klqlit.algorithms.surrogates import ClippedSurrogate, PenalisedSurrogate
from klqlit.models.critic import SeparateCritic, SharedCritic
from runs import Watch, make_data, make_module, make_trainer, two_rows

SURROGATES = [ClippedSurrogate(), ClippedSurrogate(0.01), PenalisedSurrogate(0.1)]


def make(path, **options):
    return make_module(path, PPO, tau=0.4, **options)


def test_targets_by_hand(quitter_dir):
    """tau 0.4, gamma 1, lambda 0.5: the advantages are those of KLQ, the returns V + A.

    Row 0: rewards (-0.2, 1 + 0.1), deltas (-0.2 + 0.4 - 0.2, 1.1 - 0.4) = (0, 0.7); A = (0.35, 0.7).
    Row 1: reward 3 - 0.1, delta 2.9 - 0.6 = 2.3.
    """
    experience = make(quitter_dir, lam=0.5, whiten_advantages=False).targets(two_rows())
    mask = two_rows().mask
    assert experience.advantages[mask].tolist() == pytest.approx([0.35, 0.7, 2.3])
    assert experience.returns[mask].tolist() == pytest.approx([0.55, 1.1, 2.9])
    klq = make_module(quitter_dir, KLQ, tau=0.4, lam=0.5).targets(two_rows())
    torch.testing.assert_close(experience.advantages[mask], klq.advantages[mask])


def test_whitening_leaves_mean_0_and_variance_1_over_real_tokens(quitter_dir):
    experience = make(quitter_dir).targets(two_rows())
    white = experience.advantages[two_rows().mask]
    assert float(white.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(white.var(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert experience.advantages[~two_rows().mask].tolist() == [0.0]
    # Returns are of the advantages as they were.
    plain = make(quitter_dir, whiten_advantages=False).targets(two_rows())
    assert torch.equal(experience.returns, plain.returns)


def losses(module, shift, values):
    """Losses at log-probabilities `shift` above the rollout's."""
    rollout = two_rows()
    experience = module.targets(rollout)
    found, metrics = module.loss(experience, rollout.logprobs + shift, torch.full((2, 2), values))
    return found[rollout.mask].tolist(), {name: x[rollout.mask].tolist() for name, x in metrics.items()}


def test_loss_at_the_rollout_is_minus_the_advantage_plus_the_value_error(quitter_dir):
    """A = (0.35, 0.7, 2.3), V = 0.5, returns (0.55, 1.1, 2.9), no clipping of the value."""
    module = make(quitter_dir, lam=0.5, whiten_advantages=False, value_clip=None, value_coefficient=0.1)
    found, metrics = losses(module, 0.0, 0.5)
    errors = [0.5 * 0.05**2, 0.5 * 0.6**2, 0.5 * 2.4**2]
    assert metrics["value_loss"] == pytest.approx(errors)
    assert metrics["policy_loss"] == pytest.approx([-0.35, -0.7, -2.3])
    assert metrics["clip_fraction"] == [0.0, 0.0, 0.0]
    assert found == pytest.approx([-a + 0.1 * e for a, e in zip([0.35, 0.7, 2.3], errors, strict=True)])


def test_value_clipping_takes_the_larger_error(quitter_dir):
    """V = 0.5 is 0.3, 0.1 and -0.1 from V_old = (0.2, 0.4, 0.6); clipped at 0.2 the first one is 0.4."""
    module = make(quitter_dir, lam=0.5, whiten_advantages=False, value_clip=0.2)
    _, metrics = losses(module, 0.0, 0.5)
    assert metrics["value_loss"] == pytest.approx([0.5 * 0.15**2, 0.5 * 0.6**2, 0.5 * 2.4**2])


def test_clip_holds_the_ratio(quitter_dir):
    """Log-ratio 0.5: e^0.5 = 1.65 is held at 1.2 where the advantage is positive."""
    module = make(quitter_dir, lam=0.5, whiten_advantages=False)
    _, metrics = losses(module, 0.5, 0.5)
    assert metrics["policy_loss"] == pytest.approx([-1.2 * a for a in (0.35, 0.7, 2.3)])
    assert metrics["clip_fraction"] == [1.0, 1.0, 1.0]


def test_penalty_by_hand(quitter_dir):
    """-r A + beta (r log r - r + 1) at r = e^0.5 and beta 2."""
    ratio = 2.718281828**0.5
    module = make(quitter_dir, lam=0.5, whiten_advantages=False, surrogate=PenalisedSurrogate(2.0))
    _, metrics = losses(module, 0.5, 0.5)
    penalty = 2 * (ratio * 0.5 - ratio + 1)
    assert metrics["policy_loss"] == pytest.approx([-ratio * a + penalty for a in (0.35, 0.7, 2.3)], rel=1e-5)


@pytest.mark.parametrize("critic", [SeparateCritic, SharedCritic])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=["clip", "narrow", "penalty"])
def test_every_surrogate_trains(quitter_dir, tmp_path, surrogate, critic):
    watch = Watch()
    # The critic's momentum would carry it past its targets at the policy's rate.
    rates = Optimization(lr=0.3, critic_lr=0.03, eps=1.0)
    module = make_module(quitter_dir, PPO, surrogate=surrogate, critic=critic, optimization=rates)
    make_trainer(tmp_path, watch, max_epochs=1).fit(module, make_data(minibatches=1, epochs=6))
    first, last = (found(module, watch, state) for state in (watch.weights[0], watch.weights[-1]))
    assert last["policy_loss"] < first["policy_loss"]
    assert last["value_loss"] < first["value_loss"]
    assert all(bool(g.isfinite().all()) for gradients in watch.gradients for g in gradients.values())


def found(module, watch, state):
    """Mean metrics of the first minibatch under given weights."""
    module.load_state_dict(state)
    experience = watch.batches[0].experience
    with torch.no_grad():
        _, metrics = module.loss(experience, *module.evaluate(experience.sequences))
    return {name: float(x[experience.mask].mean()) for name, x in metrics.items()}


# The coefficient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "up"), [(0.1, True), (1.0, False)])
def test_adaptive_coefficient_moves_against_the_error(quitter_dir, target, up):
    """The two rows have KL 0.25: above a target of 0.1 tau rises by 20 % * 2 / 10, below 1.0 it falls by as much."""
    module = make(quitter_dir, adaptive_kl=AdaptiveKL(target, horizon=10))
    module.targets(two_rows())
    assert float(module.kl_coefficient) == pytest.approx(0.4 * (1.04 if up else 0.96))
    # A second phase goes on from there.
    module.targets(two_rows())
    assert float(module.kl_coefficient) == pytest.approx(0.4 * (1.04 if up else 0.96) ** 2)


def test_targets_are_made_with_the_coefficient_before_it_moves(quitter_dir):
    module = make(quitter_dir, lam=0.5, whiten_advantages=False, adaptive_kl=AdaptiveKL(0.1, horizon=10))
    first, second = module.targets(two_rows()), module.targets(two_rows())
    plain = make(quitter_dir, lam=0.5, whiten_advantages=False).targets(two_rows())
    assert torch.equal(first.returns, plain.returns)
    # Row 1: 3 - 0.416 * 0.25.
    assert second.returns[1, 0].item() == pytest.approx(3 - 0.416 * 0.25)


def test_a_fixed_coefficient_stays(quitter_dir):
    module = make(quitter_dir)
    module.targets(two_rows())
    assert float(module.kl_coefficient) == 0.4


def test_the_logged_objective_keeps_tau(quitter_dir, tmp_path):
    watch = Watch()
    module = make_module(quitter_dir, PPO, tau=0.2, adaptive_kl=AdaptiveKL(1e-6, horizon=2))
    make_trainer(tmp_path, watch, max_epochs=3).fit(module, make_data())
    assert float(module.kl_coefficient) != 0.2
    last = watch.metrics[-1]
    assert last["objective/J"] == pytest.approx(last["reward/score"] - 0.2 * last["kl/sequence"])


def test_a_horizon_too_short_for_the_phase_is_refused_before_sampling(quitter_dir, tmp_path, monkeypatch):
    """8 rollouts a phase: an error of 20 % would take tau to 0 at a horizon of 1.6 episodes."""
    monkeypatch.setattr(PPO, "roll_out", lambda *_: pytest.fail("it was sampled"))
    module = make(quitter_dir, adaptive_kl=AdaptiveKL(6.0, horizon=1))
    with pytest.raises(ValueError, match="horizon must exceed a fifth of the 8 episodes between changes, got 1"):
        make_trainer(tmp_path).fit(module, make_data())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": -0.1}, r"gamma must lie in \[0, 1\]"),
        ({"lam": 1.1}, r"lam must lie in \[0, 1\]"),
        ({"value_clip": 0.0}, "value_clip must be a finite number above 0"),
        ({"value_coefficient": -0.1}, "value_coefficient must be a finite number of at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(quitter_dir, option, message):
    with pytest.raises(ValueError, match=message):
        make(quitter_dir, **option)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: ClippedSurrogate(1.0), r"surrogate\.clip must lie strictly between 0 and 1"),
        (lambda: PenalisedSurrogate(-1.0), r"surrogate\.beta must be a finite number of at least 0"),
        (lambda: AdaptiveKL(0.0), "target must be a finite number above 0"),
        (lambda: AdaptiveKL(1.0, horizon=0), "horizon must exceed"),
    ],
)
def test_parts_check_their_arguments(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()
