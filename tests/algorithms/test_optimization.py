"""Learning rates of policy and critic over a run."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.tuner import Tuner

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO
from klqlit.models.critic import NoCritic, SharedCritic
from runs import Watch, make_data, make_module, make_trainer, weights


@pytest.fixture
def fit(quitter_dir, tmp_path):
    def run(algorithm=KLQ, trainer=None, critic=None, **options):
        watch, extra = Watch(), {} if critic is None else {"critic": critic}
        module = make_module(quitter_dir, algorithm, optimization=Optimization(**options), **extra)
        start = weights(module)
        make_trainer(tmp_path, watch, **(trainer or {})).fit(module, make_data())
        return watch, start

    return run


def part(state, name):
    return {key: value for key, value in state.items() if key.startswith(f"{name}.")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_critic_warmup_leaves_the_policy_and_trains_the_critic(fit, algorithm):
    watch, start = fit(algorithm, lr=1e-2, critic_warmup_steps=5, weight_decay=0.1)
    for step, state in enumerate(watch.weights, start=1):
        assert same(part(state, "policy"), part(start, "policy")) == (step <= 5)
    assert not same(part(watch.weights[0], "critic"), part(start, "critic"))
    # The second phase's rollouts still come from the untouched policy.
    assert watch.metrics[1]["kl/token_k3"] < 1e-8
    assert [rates[0] for rates in watch.rates] == [0.0] * 5 + [1e-2] * 3


def test_each_part_has_its_rate(fit):
    watch, _ = fit(lr=1e-3, critic_lr=1e-2)
    assert watch.rates == [[1e-3, 1e-2]] * 8
    watch, _ = fit(lr=1e-3)
    assert watch.rates == [[1e-3, 1e-3]] * 8


def test_warmup_rises_to_the_rate(fit):
    """3 steps of warm-up: 1/4, 2/4, 3/4 of the rate, then all of it."""
    watch, _ = fit(lr=0.04, critic_lr=0.08, warmup_steps=3)
    assert [rates[0] for rates in watch.rates] == pytest.approx([0.01, 0.02, 0.03] + [0.04] * 5)
    assert [rates[1] for rates in watch.rates] == pytest.approx([0.02, 0.04, 0.06] + [0.08] * 5)


@pytest.mark.parametrize("trainer", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 8}])
def test_linear_decay_ends_at_zero(fit, trainer):
    watch, _ = fit(lr=0.08, decay="linear", trainer=trainer)
    assert [rates[0] for rates in watch.rates] == pytest.approx([0.08 - 0.01 * step for step in range(8)])


def test_linear_decay_counts_optimizer_steps_and_not_micro_batches(fit):
    watch, _ = fit(lr=0.08, decay="linear", trainer={"accumulate_grad_batches": 2})
    assert [rates[0] for rates in watch.rates] == pytest.approx([0.08 - 0.01 * step for step in range(8)])


def test_the_rate_after_the_last_step_is_zero(fit, quitter_dir, tmp_path):
    module, trainer = (
        make_module(quitter_dir, optimization=Optimization(lr=0.1, decay="linear")),
        make_trainer(tmp_path),
    )
    trainer.fit(module, make_data())
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.0, 0.0]


def test_linear_decay_needs_an_end(fit):
    with pytest.raises(ValueError, match=r"optimization\.decay='linear' needs an end"):
        fit(decay="linear", trainer={"max_epochs": -1})


def test_every_weight_is_in_one_group(quitter_dir):
    for critic in (SharedCritic, None):
        module = make_module(quitter_dir, **({} if critic is None else {"critic": critic}))
        optimizer = module.optimization.build(module.policy, module.critic, None)["optimizer"]
        listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(listed) == len(set(listed))
        assert set(listed) == {id(p) for p in module.parameters() if p.requires_grad}


def test_a_critic_without_weights_needs_no_group(quitter_dir):
    module = make_module(quitter_dir, critic=NoCritic)
    optimizer = module.optimization.build(module.policy, module.critic, None)["optimizer"]
    assert [group["name"] for group in optimizer.param_groups] == ["policy"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lr": 0.0}, r"optimization\.lr must be a finite number above 0, got 0\.0"),
        ({"lr": math.nan}, r"optimization\.lr must be a finite number above 0"),
        ({"critic_lr": -1.0}, r"optimization\.critic_lr must be a finite number above 0"),
        ({"warmup_steps": -1}, r"optimization\.warmup_steps must be a finite number of at least 0, got -1"),
        ({"critic_warmup_steps": -1}, r"optimization\.critic_warmup_steps must be"),
        ({"weight_decay": math.nan}, r"optimization\.weight_decay must be"),
        ({"decay": "cosine"}, r"optimization\.decay='cosine' is not one of constant, linear"),
        ({"decay": "Linear"}, r"optimization\.decay='Linear' is not one of constant, linear"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_arguments_out_of_range_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        Optimization(**option)


@pytest.fixture
def resumed(quitter_dir, tmp_path):
    """`resumed(**options)`: the rates at each step of a run that goes on with these, and its optimizer's groups."""
    given = {"lr": 1e-3, "critic_lr": 2e-3, "warmup_steps": 5}
    first = make_trainer(tmp_path, max_epochs=1)
    first.fit(make_module(quitter_dir, optimization=Optimization(**given)), make_data())
    first.save_checkpoint(tmp_path / "at.ckpt")

    def go_on(**options):
        watch, trainer = Watch(), None
        trainer = make_trainer(tmp_path, watch, max_epochs=2)
        module = make_module(quitter_dir, optimization=Optimization(**(given | options)))
        trainer.fit(module, make_data(), ckpt_path=tmp_path / "at.ckpt", weights_only=True)
        return watch.rates, trainer.optimizers[0].param_groups

    return go_on


def test_options_given_on_resume_win_over_the_checkpoints(resumed, caplog):
    caplog.set_level("INFO")
    rates, groups = resumed(lr=1e-4, weight_decay=0.1, betas=(0.8, 0.99))
    # Step 4 of a warm-up over 5: the schedule goes on where it was.
    assert rates[0] == pytest.approx([1e-4 * 5 / 6, 2e-3 * 5 / 6])
    assert rates[1] == pytest.approx([1e-4, 2e-3])
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]
    assert groups[0]["betas"] == (0.8, 0.99)
    assert "the policy's lr is 0.0001 from here on; it was 0.001" in caplog.text
    assert "the critic's lr" not in caplog.text


@pytest.mark.parametrize(
    ("before", "after", "factors"),
    [
        # The run of one phase is given a second: step 4 of 8.
        ({"decay": "linear"}, {"decay": "linear"}, [4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"decay": "linear"}, {"decay": "constant"}, [1.0] * 4),
        ({"critic_warmup_steps": 100}, {}, [1.0] * 4),
        ({"warmup_steps": 9}, {"warmup_steps": 5, "lr": 0.02}, [10 / 6, 2.0, 2.0, 2.0]),
    ],
)
def test_another_schedule_on_resume_holds_from_the_first_step_on(quitter_dir, tmp_path, before, after, factors):
    first = make_trainer(tmp_path, max_epochs=1)
    first.fit(make_module(quitter_dir, optimization=Optimization(lr=0.01, **before)), make_data())
    first.save_checkpoint(tmp_path / "at.ckpt")
    watch, module = Watch(), make_module(quitter_dir, optimization=Optimization(**({"lr": 0.01} | after)))
    again = {"ckpt_path": tmp_path / "at.ckpt", "weights_only": True}
    make_trainer(tmp_path, watch, max_epochs=2).fit(module, make_data(), **again)
    assert [rates[0] for rates in watch.rates] == pytest.approx([0.01 * factor for factor in factors])


def test_unchanged_options_leave_the_checkpoints_as_they_are(resumed, caplog):
    caplog.set_level("INFO")
    rates, _ = resumed()
    assert rates[0] == pytest.approx([1e-3 * 5 / 6, 2e-3 * 5 / 6])
    assert "from here on" not in caplog.text


# An optimizer that is not ours ------------------------------------------------------------------------------------


def by_lambda(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)


def by_cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)


@pytest.mark.parametrize("schedule", [None, by_lambda, by_cosine])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_users_own_optimizer_keeps_its_options_on_resume_too(quitter_dir, tmp_path, kind, schedule):
    def fit(phases, **start):
        watch, module = Watch(), make_module(quitter_dir)
        optimizer = kind(module.policy.parameters(), lr=1e-5, weight_decay=0.2)
        schedules = [] if schedule is None else [{"scheduler": schedule(optimizer), "interval": "step"}]
        module.configure_optimizers = lambda: ([optimizer], schedules)
        trainer = make_trainer(tmp_path, watch, max_epochs=phases)
        trainer.fit(module, make_data(), **start)
        trainer.save_checkpoint(tmp_path / "at.ckpt")
        assert optimizer.param_groups[0]["weight_decay"] == 0.2
        return watch

    whole = fit(2)
    fit(1)
    again = fit(2, ckpt_path=tmp_path / "at.ckpt", weights_only=True)
    assert whole.rates[0] == [5e-6 if schedule is by_lambda else 1e-5]
    assert again.rates == whole.rates[4:]
    assert whole.metrics[0]["train/group 0_grad_norm"] > 0


def test_a_search_for_a_learning_rate_sets_the_rates(quitter_dir, tmp_path):
    search = {"min_lr": 1e-6, "max_lr": 1e-2, "num_training": 8, "update_attr": False}
    found = Tuner(make_trainer(tmp_path)).lr_find(make_module(quitter_dir), datamodule=make_data(), **search)
    rates = found.results["lr"]
    assert rates == sorted(set(rates))
    assert (rates[0], rates[-1]) == pytest.approx((1e-6, 1e-2))


def test_averaged_weights_keep_their_rate_on_resume(quitter_dir, tmp_path):
    def fit(phases, **start):
        watch = Watch()
        averaging = StochasticWeightAveraging(swa_lrs=1e-4, swa_epoch_start=1, annealing_epochs=1)
        trainer = make_trainer(tmp_path, watch, averaging, max_epochs=phases)
        trainer.fit(make_module(quitter_dir), make_data(), **start)
        trainer.save_checkpoint(tmp_path / "at.ckpt")
        return watch.rates

    whole = fit(3)
    fit(2)
    assert fit(3, ckpt_path=tmp_path / "at.ckpt", weights_only=True) == whole[8:]
