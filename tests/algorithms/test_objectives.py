"""What an objective of a user's own returns is checked where it returns it."""

from typing import Any

import pytest

from klqlit.algorithms.base import RLHFModule
from klqlit.functional import kl_penalised_rewards, monte_carlo_returns
from klqlit.types import Experience, Rollout
from runs import Watch, make_data, make_module, make_trainer


class Reinforce(RLHFModule):
    """What each test changes one thing of."""

    def targets(self, rollout: Rollout) -> Any:
        rewards = kl_penalised_rewards(
            rollout.rewards, rollout.logprobs, rollout.ref_logprobs, rollout.mask, tau=self.kl_coefficient
        )
        returns = monte_carlo_returns(rewards, rollout.mask, gamma=1.0)
        return Experience(
            sequences=rollout.sequences,
            logprobs=rollout.logprobs,
            ref_logprobs=rollout.ref_logprobs,
            values=rollout.values,
            advantages=returns,
            returns=returns,
        )

    def loss(self, experience: Experience, logprobs: Any, values: Any) -> Any:
        return -logprobs * experience.advantages, {}


class Meaned(Reinforce):
    def loss(self, experience, logprobs, values):
        return super().loss(experience, logprobs, values)[0].mean(), {}


class RowSums(Reinforce):
    def loss(self, experience, logprobs, values):
        return super().loss(experience, logprobs, values)[0].sum(dim=1, keepdim=True), {}


class Bare(Reinforce):
    def loss(self, experience, logprobs, values):
        return super().loss(experience, logprobs, values)[0]


class ScalarQuantity(Reinforce):
    def loss(self, experience, logprobs, values):
        return super().loss(experience, logprobs, values)[0], {"bonus": 0.5}


class RowAdvantages(Reinforce):
    def targets(self, rollout):
        experience = super().targets(rollout)
        experience.advantages = experience.advantages[:, :1]  # past the types, which only these tests check
        return experience


class NoExperience(Reinforce):
    def targets(self, rollout):
        return super().targets(rollout).returns


def fit(objective, quitter_dir, tmp_path):
    watch = Watch()
    make_trainer(tmp_path, watch, max_epochs=1).fit(make_module(quitter_dir, objective), make_data())
    return watch


def test_one_loss_a_token_trains(quitter_dir, tmp_path):
    assert len(fit(Reinforce, quitter_dir, tmp_path).gradients) == 4


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Meaned, r"Meaned\.loss: the losses must be .* shape \[4, \d\], one number a token, and is \[\]: ret"),
        (RowSums, r"RowSums\.loss: the losses must be a tensor of the shape \[4, \d\], .* and is \[4, 1\]"),
        (Bare, r"Bare\.loss must return losses and a dict of quantities to log: `losses, {}`"),
        (ScalarQuantity, r"ScalarQuantity\.loss: 'bonus' must be .* and is float"),
        (RowAdvantages, r"RowAdvantages\.targets: advantages must be .* shape \[8, \d\], .* and is \[8, 1\]"),
        (NoExperience, r"NoExperience\.targets must return an Experience, not a Tensor"),
    ],
)
def test_anything_else_is_refused_before_a_step(quitter_dir, tmp_path, objective, message):
    with pytest.raises(ValueError, match=message):
        fit(objective, quitter_dir, tmp_path)
