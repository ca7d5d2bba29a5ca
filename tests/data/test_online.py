"""Prompts, phases and minibatches of the online data module."""

from typing import final

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO
from klqlit.data.online import flatten, unflatten
from klqlit.rewards.function import FunctionReward
from klqlit.rollout.sampling import Sampler
from runs import ListSource, Watch, make_data, make_module, make_trainer, questions


class Asked(L.Callback):
    """Keeps the prompts that were collected."""

    def __init__(self):
        self.prompts = []

    def setup(self, trainer, module, stage):
        collect = module.collect

        def asked(prompts):
            self.prompts.append(prompts)
            return collect(prompts)

        module.collect = asked


@pytest.fixture
def fit(quitter_dir, tmp_path):
    """Runs a fit and returns what was asked, what was seen, and the data module."""

    def run(phases=2, module=None, trainer=None, **options):
        asked, watch, data = Asked(), Watch(), make_data(**options)
        small = {"sampler": Sampler(response_length=2)}
        runner = make_trainer(tmp_path, asked, watch, **({"max_epochs": phases} | (trainer or {})))
        runner.fit(make_module(quitter_dir, KLQ, **(small | (module or {}))), data)
        return asked.prompts, watch, data

    return run


def numbers(prompts):
    return prompts.columns["number"]


def test_a_phase_is_epochs_times_minibatches_optimizer_steps(fit):
    _, watch, data = fit(rollouts=12, minibatches=3, epochs=2)
    assert data.steps == 6
    assert len(watch.gradients) == 12
    assert [batch.step for batch in watch.batches] == [*range(6), *range(6)]
    assert [batch.version for batch in watch.batches] == [0] * 6 + [6] * 6


def test_each_pass_over_a_phase_uses_each_row_once_in_another_order(fit):
    _, watch, _ = fit(phases=1, rollouts=12, minibatches=3, epochs=2)
    rows = [tuple(row.tolist()) for batch in watch.batches for row in batch.experience.logprobs.round(decimals=4)]
    sums = [round(sum(row), 3) for row in rows]
    assert sorted(sums[:12]) == sorted(sums[12:])
    assert sums[:12] != sums[12:]
    assert len(set(sums)) > 6


def test_tokens_are_those_of_the_whole_step(fit):
    _, watch, _ = fit(rollouts=8, minibatches=2, trainer={"accumulate_grad_batches": 2})
    assert len(watch.gradients) == 8
    assert len(watch.batches) == 16
    for one, other in zip(watch.batches[::2], watch.batches[1::2], strict=True):
        assert (len(one.experience), len(other.experience)) == (2, 2)
        assert one.tokens == other.tokens == int(one.experience.mask.sum() + other.experience.mask.sum())
        assert (one.step, one.version) == (other.step, other.version)


def test_each_prompt_is_used_once_a_pass_and_the_order_changes(fit):
    """20 prompts, 8 a phase: five phases are two passes, and a phase may straddle them."""
    asked, _, _ = fit(phases=5)
    order = [number for prompts in asked for number in numbers(prompts)]
    assert sorted(order[:20]) == list(range(20))
    assert sorted(order[20:40]) == list(range(20))
    assert order[:20] != order[20:40]
    assert order[:20] != list(range(20))


def test_samples_of_a_prompt_are_neighbours_with_seeds_of_their_own(fit):
    asked, _, _ = fit(samples_per_prompt=4)
    for prompts in asked:
        assert prompts.texts == [text for text in prompts.texts[::4] for _ in range(4)]
        assert len(set(prompts.seeds)) == 8
    first, second = (set(prompts.texts) for prompts in asked)
    assert len(first | second) == 4


def test_no_seed_is_used_twice(fit):
    asked, _, _ = fit(phases=3)
    assert len({seed for prompts in asked for seed in prompts.seeds}) == 24


def test_the_seed_decides(fit):
    one, again, other = fit(seed=1)[0], fit(seed=1)[0], fit(seed=2)[0]
    assert [p.texts for p in one] == [p.texts for p in again]
    assert [p.seeds for p in one] == [p.seeds for p in again]
    assert [p.texts for p in one] != [p.texts for p in other]
    assert not {s for p in one for s in p.seeds} & {s for p in other for s in p.seeds}


def test_prompts_are_padded_on_the_left(fit):
    asked, _, _ = fit(phases=1)
    for prompts in asked:
        assert bool(prompts.mask[:, -1].all())
        assert bool((prompts.mask.long().diff(dim=1) >= 0).all())
        assert prompts.mask.any(dim=0).all()
        assert len(set(prompts.mask.sum(dim=1).tolist())) > 1


def test_columns_reach_the_reward(quitter_dir, tmp_path):
    seen = []

    def reward(prompts, completions, number, **columns):
        seen.extend(zip(prompts, number, strict=True))
        return [0.0] * len(prompts)

    make_trainer(tmp_path, max_epochs=1).fit(make_module(quitter_dir, reward=FunctionReward(reward)), make_data())
    texts = questions(20)
    assert len(seen) == 8
    assert all(texts[number] == prompt for prompt, number in seen)


def test_rows_need_not_have_the_same_columns(quitter_dir, tmp_path):
    """A column that one row lacks is None there, whichever row stands first."""
    source = ListSource(questions(8))
    rows = source.rows("train")
    for row in rows[:-1]:
        del row["number"]
    source.rows = lambda split: rows
    asked = Asked()
    make_trainer(tmp_path, asked, max_epochs=3).fit(make_module(quitter_dir), make_data(source=source))
    for prompts in asked.prompts:
        assert sorted(prompts.columns["number"], key=str) == [7, *[None] * 7]


# Limits -------------------------------------------------------------------------------------------------------------


def test_long_prompts_are_shortened_and_counted(quitter_dir, tmp_path, caplog):
    asked = Asked()
    source = ListSource(["what?", "a very long question about nothing in particular?", *["ok?"] * 6], ["why?"])
    data = make_data(source=source, max_prompt_tokens=5)
    module = make_module(quitter_dir)
    with caplog.at_level("INFO"):
        make_trainer(tmp_path, asked, max_epochs=1).fit(module, data)
    assert "1 of 8 train prompts are longer than max_prompt_tokens=5 and were shortened" in caplog.text
    assert "validation prompts are longer" not in caplog.text
    texts = asked.prompts[0].texts
    shortened = [text for text in texts if text not in ("what?", "ok?")]
    assert len(shortened) == 1
    assert source.texts["train"][1].endswith(shortened[0])
    assert max(len(tokens) for tokens in module.encode(texts)) == 5


def test_prompt_and_response_beyond_the_models_positions_are_refused(quitter_dir, tmp_path):
    module = make_module(quitter_dir, sampler=Sampler(response_length=100))
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens=32 does not fit: .* room for 28 prompt tokens"):
        make_trainer(tmp_path).fit(module, make_data())
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(max_prompt_tokens=28))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollouts": 10, "minibatches": 4}, r"data\.minibatches=4 does not divide data\.rollouts=10"),
        ({"samples_per_prompt": 3}, r"data\.samples_per_prompt=3 does not divide data\.rollouts=8"),
        ({"rollouts": 0}, r"data\.rollouts=0 must be at least 1"),
        ({"epochs": 0}, r"data\.epochs=0 must be at least 1"),
        ({"max_prompt_tokens": -1}, r"data\.max_prompt_tokens=-1 must be at least 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_data(**options)


def test_micro_batches_that_do_not_divide_are_refused(quitter_dir, tmp_path):
    with pytest.raises(ValueError, match=r"a minibatch of 4 rows .* trainer\.accumulate_grad_batches=3"):
        make_trainer(tmp_path, accumulate_grad_batches=3).fit(make_module(quitter_dir), make_data())


@pytest.mark.parametrize(("limit", "batches"), [(3, 3), (0.4, 3), (0.9, 7)])
def test_an_epoch_that_would_end_within_a_step_is_refused(fit, limit, batches):
    message = (
        rf"trainer\.limit_train_batches={limit} ends an epoch after {batches} micro-batches, .* multiple of "
        r"trainer\.accumulate_grad_batches=2"
    )
    with pytest.raises(ValueError, match=message):
        fit(trainer={"limit_train_batches": limit, "accumulate_grad_batches": 2})


@pytest.mark.parametrize("limit", [4, 9, 0.5, 1.0])
def test_an_epoch_that_ends_between_two_steps_is_taken(fit, limit):
    _, watch, _ = fit(phases=1, trainer={"limit_train_batches": limit, "accumulate_grad_batches": 2})
    assert len(watch.batches) == (4 if limit in (4, 0.5) else 8)


def test_a_trial_run_may_end_within_a_step(fit):
    _, watch, _ = fit(trainer={"fast_dev_run": 1, "accumulate_grad_batches": 2})
    assert len(watch.batches) == 1


@pytest.mark.parametrize("scheduling", [{0: 1, 1: 3}, {0: 2}])
def test_micro_batches_that_change_during_a_run_are_refused(quitter_dir, tmp_path, scheduling):
    trainer = make_trainer(tmp_path, GradientAccumulationScheduler(scheduling))
    with pytest.raises(ValueError, match=r"GradientAccumulationScheduler .* trainer\.accumulate_grad_batches"):
        trainer.fit(make_module(quitter_dir), make_data())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_source_without_prompts_is_refused(quitter_dir, tmp_path, split):
    source = ListSource(questions(8))
    source.texts[split] = []
    with pytest.raises(ValueError, match=rf"data\.source has no {split} prompts"):
        make_trainer(tmp_path, limit_val_batches=1).fit(make_module(quitter_dir), make_data(source=source))


# Validation ---------------------------------------------------------------------------------------------------------


def test_validation_uses_each_held_out_prompt_once_with_seeds_that_stay(quitter_dir, tmp_path):
    batches = []

    class Seen(L.Callback):
        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            batches.append(batch)

    source = ListSource(questions(8), [f"held out {i}" for i in range(7)])
    data = make_data(source=source, validation_prompts=5, validation_batch_size=2)
    make_trainer(tmp_path, Seen(), limit_val_batches=1.0).fit(make_module(quitter_dir), data)
    assert [numbers(batch) for batch in batches] == [[0, 1], [2, 3], [4]] * 2
    assert [batch.seeds for batch in batches[:3]] == [batch.seeds for batch in batches[3:]]
    assert batches[0].texts == ["held out 0", "held out 1"]


def test_a_run_that_never_validates_needs_no_held_out_prompts(quitter_dir, tmp_path):
    source, module = ListSource(questions(8)), make_module(quitter_dir)
    source.texts["validation"] = []
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, make_data(source=source))
    assert trainer.global_step == 4
    with pytest.raises(ValueError, match=r"data\.source has no validation prompts"):
        trainer.validate(module, make_data(source=source))


def test_fewer_held_out_prompts_than_ranks_are_refused(quitter_dir):
    data = make_data(source=ListSource(questions(8), ["why?"]))
    data.trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    data.trainer.strategy.connect(make_module(quitter_dir))
    with pytest.raises(ValueError, match="1 validation prompts cannot be dealt to 2 ranks"):
        data.setup("fit")


# State --------------------------------------------------------------------------------------------------------------


def test_experience_survives_a_checkpoint(fit, tmp_path):
    _, watch, _ = fit(phases=1)
    experience = watch.batches[0].experience
    torch.save(flatten(experience), tmp_path / "phase.pt")
    again = unflatten(torch.load(tmp_path / "phase.pt", weights_only=True))
    for name, value in flatten(experience).items():
        assert torch.equal(flatten(again)[name], value)


def test_state_between_phases_is_a_counter(fit):
    _, _, data = fit(phases=3)
    assert data.state_dict() == {"phase": 3, "version": 0, "experience": None}


def test_state_within_a_phase_holds_its_rows(fit):
    _, _, data = fit(trainer={"max_steps": 6, "max_epochs": -1})
    state = data.state_dict()
    assert (state["phase"], state["version"]) == (1, 4)
    assert len(unflatten(state["experience"])) == 8


@pytest.mark.parametrize(
    ("options", "trainer", "change"),
    [
        ({"rollouts": 16}, {}, r"data\.rollouts was 8 and is 16"),
        ({"epochs": 3}, {}, r"data\.epochs was 2 and is 3"),
        ({"seed": 5}, {}, r"data\.seed was 0 and is 5"),
        ({}, {"accumulate_grad_batches": 2}, r"trainer\.accumulate_grad_batches was 1 and is 2"),
    ],
)
def test_the_rest_of_a_phase_is_dealt_as_it_began(quitter_dir, tmp_path, options, trainer, change):
    def fit(phases, trainer, ckpt_path=None, **options):
        runner = make_trainer(tmp_path, Save(tmp_path), max_epochs=phases, **trainer)
        module = make_module(quitter_dir, KLQ, sampler=Sampler(response_length=2))
        runner.fit(module, make_data(**options), ckpt_path=ckpt_path, weights_only=True)
        return runner.global_step

    fit(2, {})
    with pytest.raises(ValueError, match=rf"in the middle of its phase, the rest of which cannot .* {change}"):
        fit(2, trainer, tmp_path / "3.ckpt", **options)
    # From the end of a phase it goes on.
    assert fit(2, trainer, tmp_path / "4.ckpt", **options) > 4


@final
class Save(L.Callback):
    """Saves after the first phase and within it."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.folder / "3.ckpt")

    def on_train_epoch_end(self, trainer, module):
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.folder / "4.ckpt")


def test_a_cut_epoch_goes_on_with_the_same_phase(fit):
    """Lightning may stop an epoch early; rows are neither lost nor stale then."""
    asked, watch, _ = fit(phases=3, trainer={"limit_train_batches": 3})
    assert [(batch.version, batch.step) for batch in watch.batches] == [
        *[(0, 0), (0, 1), (0, 2)],
        (0, 3),
        *[(4, 0), (4, 1), (4, 2)],
    ]
    assert len(asked) == 2


def test_the_loader_says_how_many_batches_it_has(fit):
    _, _, data = fit(trainer={"accumulate_grad_batches": 2}, phases=1)
    assert len(data.train_dataloader()) == 8


@pytest.mark.parametrize("first", [{"max_epochs": 2}, {"max_epochs": 1}, {"max_steps": 2, "max_epochs": -1}])
def test_a_data_module_serves_one_run_after_another(quitter_dir, tmp_path, first):
    """Each samples its own phases from the first prompts on; none trains on what another policy has sampled."""
    data, runs = make_data(), []
    for algorithm, trainer in ((KLQ, first), (PPO, {"max_epochs": 2})):
        asked, watch = Asked(), Watch()
        module = make_module(quitter_dir, algorithm, sampler=Sampler(response_length=2))
        make_trainer(tmp_path, asked, watch, **trainer).fit(module, data)
        runs.append((asked.prompts, [(batch.version, batch.step) for batch in watch.batches]))
    (before, _), (after, dealt) = runs
    assert dealt == [*[(0, step) for step in range(4)], *[(4, step) for step in range(4)]]
    assert [prompts.seeds for prompts in after[: len(before)]] == [prompts.seeds for prompts in before]


def test_another_module_in_the_same_trainer_begins_with_rollouts_of_its_own(quitter_dir, tmp_path):
    asked, data = Asked(), make_data()
    trainer = make_trainer(tmp_path, asked, max_epochs=-1, max_steps=2)
    for steps in (2, 4):
        trainer.fit_loop.epoch_loop.max_steps = steps
        trainer.fit(make_module(quitter_dir, KLQ, sampler=Sampler(response_length=2)), data)
    assert len(asked.prompts) == 2


def test_a_module_that_was_loaded_from_a_checkpoint_is_no_longer_its_own_reference(quitter_dir, tmp_path):
    steep = {"optimization": Optimization(lr=0.1)}
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(make_module(quitter_dir, KLQ, **steep), make_data())
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    module = make_module(quitter_dir, KLQ, **steep)
    make_trainer(tmp_path).validate(module, make_data(), ckpt_path=tmp_path / "trained.ckpt", weights_only=True)
    make_trainer(tmp_path, max_epochs=1).fit(module, make_data())
    assert abs(module.phase_metrics["kl/sequence"]) > 1e-3


def test_a_trained_module_is_trained_on_by_another_trainer(quitter_dir, tmp_path):
    """It is no longer its own reference, which is no fault of the model."""
    data, module = make_data(), make_module(quitter_dir, KLQ, optimization=Optimization(lr=0.1))
    for _ in range(2):
        watch = Watch()
        make_trainer(tmp_path, watch, max_epochs=1).fit(module, data)
        assert [(batch.version, batch.step) for batch in watch.batches] == [(0, step) for step in range(4)]
    assert abs(module.phase_metrics["kl/sequence"]) > 1e-3


def test_the_same_trainer_goes_on_with_the_next_phase(quitter_dir, tmp_path):
    asked, watch, data = Asked(), Watch(), make_data()
    module = make_module(quitter_dir, KLQ, sampler=Sampler(response_length=2))
    trainer = make_trainer(tmp_path, asked, watch, max_epochs=1)
    for phases in (1, 2):
        trainer.fit_loop.max_epochs = phases
        trainer.fit(module, data)
    assert [batch.version for batch in watch.batches] == [0] * 4 + [4] * 4
    assert asked.prompts[0].seeds != asked.prompts[1].seeds
