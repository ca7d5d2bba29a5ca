"""What every online algorithm shares, seen in real runs of a tiny model."""

import copy
import math
import sys
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from builders import save, tiny_language_model
from klqlit.algorithms.base import FROZEN
from klqlit.algorithms.checks import StaleRollout, check_precision
from klqlit.algorithms.comparison import Comparison, ComparisonMetrics, Scored
from klqlit.algorithms.divergence import Divergence
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO
from klqlit.callbacks.save_guard import SaveGuard
from klqlit.functional import kl_penalised_rewards, monte_carlo_returns
from klqlit.models.critic import Critic, SeparateCritic, SharedCritic
from klqlit.models.policy import LanguagePolicy, Policy
from klqlit.models.weight_file import WeightFile
from klqlit.rewards.base import Reward
from klqlit.rewards.function import FunctionReward
from klqlit.rewards.shaping import RewardShaping
from klqlit.rollout.sampling import Sampler
from runs import (
    ListSource,
    Watch,
    make_data,
    make_module,
    make_trainer,
    memory_of_file,
    nothing,
    two_rows,
    vowels,
    weights,
)

ALGORITHMS = [KLQ, PPO]


@pytest.fixture
def fit(quitter_dir, tmp_path):
    """Runs a fit of two phases and returns what was seen, and the module."""

    def run(algorithm=KLQ, *callbacks, trainer=None, data=None, path=None, **options):
        watch = Watch()
        module = make_module(path or quitter_dir, algorithm, **options)
        make_trainer(tmp_path, watch, *callbacks, **(trainer or {})).fit(module, make_data(**(data or {})))
        return watch, module

    return run


def close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


# The split of a step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_do_not_depend_on_the_split_into_micro_batches(fit, algorithm, shared):
    """Responses of 1 to 6 tokens: means per micro-batch would weigh them wrongly."""
    options = {"critic": SharedCritic if shared else SeparateCritic, "data": {"rollouts": 16}}
    whole, _ = fit(algorithm, **options)
    assert len({int(batch.experience.mask.sum()) for batch in whole.batches}) > 2
    for parts in (2, 4):
        split, _ = fit(algorithm, trainer={"accumulate_grad_batches": parts}, **options)
        assert len(split.batches) == parts * len(whole.batches)
        for mine, theirs in zip(split.gradients, whole.gradients, strict=True):
            close(mine, theirs, atol=1e-6, rtol=1e-5)
        for mine, theirs in zip(split.metrics, whole.metrics, strict=True):
            for name in ("train/loss", "train/kl_old", "train/policy_grad_norm", "reward/score"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-7)


def test_the_gradient_is_that_of_the_mean_over_the_tokens_of_the_minibatch(fit):
    """Against a plain computation of eq. (6) on the whole minibatch."""
    watch, module = fit(KLQ, trainer={"max_steps": 1, "accumulate_grad_batches": 2}, tau=0.3)
    fresh = make_module(module.policy.path, KLQ, tau=0.3)
    total, tokens = 0.0, 0
    for batch in watch.batches:
        experience = batch.experience
        logprobs, values = fresh.evaluate(experience.sequences)
        q = 0.3 * (logprobs - experience.ref_logprobs) + values
        total = total + 0.5 * ((q - experience.returns)[experience.mask] ** 2).sum()
        tokens += int(experience.mask.sum())
    (total / tokens).backward()
    expected = {name: p.grad for name, p in fresh.named_parameters() if p.grad is not None}
    close(watch.gradients[0], expected, atol=1e-6, rtol=1e-5)


# Freshness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ratio_at_the_first_minibatch_of_every_phase_is_one(fit, algorithm, temperature):
    sampler = Sampler(response_length=6, temperature=temperature)
    watch, _ = fit(algorithm, sampler=sampler, trainer={"max_epochs": 4, "accumulate_grad_batches": 2})
    errors = [metrics["train/first_ratio_error"] for metrics in watch.metrics]
    assert len(errors) == 4
    assert max(errors) < 1e-4
    # And the policy did move within each phase, so that an older rollout would have shown.
    assert min(metrics["train/kl_old"] for metrics in watch.metrics) > 1e-6


def test_a_phase_collected_one_update_early_is_refused(quitter_dir, tmp_path):
    """An endless loader has no length, so Lightning fetches a batch ahead: across the end of a phase it is stale."""
    data, module = make_data(), make_module(quitter_dir)

    class Endless:
        def __iter__(self):
            while True:
                yield from data.phase_batches()

    data.train_dataloader = Endless
    with pytest.raises(StaleRollout, match="at step 4: rollouts must not be prefetched or reused"):
        make_trainer(tmp_path, max_steps=20).fit(module, data)


def test_a_batch_of_other_weights_is_refused(fit):
    class Old(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 2:
                batch.version = 1

    with pytest.raises(StaleRollout, match="sampled at optimizer step 1 for step 3, but the trainer is at step 2"):
        fit(KLQ, Old())


# The start ----------------------------------------------------------------------------------------------------------


class Forgetful(Policy):
    """A policy whose forward ignores the temperature that its decode is sampled at."""

    def __init__(self, path):
        super().__init__()
        self.inner = LanguagePolicy(path)
        self.tokenizer = self.inner.tokenizer

    @property
    def vocab_size(self):
        return self.inner.vocab_size

    @property
    def max_positions(self):
        return self.inner.max_positions

    def forward(self, sequences, *, temperature, features=False):
        return self.inner(sequences, temperature=1.0, features=features)

    def decode(self, tokens, mask, cache):
        return self.inner.decode(tokens, mask, cache)

    def select(self, cache, rows):
        return self.inner.select(cache, rows)

    def save(self, directory, card, *, temperature):
        raise NotImplementedError


class FlatCritic(Critic):
    """One number for all states."""

    reads_features = False

    def __init__(self, policy):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, sequences, features):
        return self.value.expand(sequences.tokens.shape)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_policy_starts_at_its_reference(fit, algorithm):
    watch, _ = fit(algorithm, trainer={"max_epochs": 1})
    assert abs(watch.metrics[0]["kl/sequence"]) < 1e-5
    assert watch.metrics[0]["kl/token_k3"] < 1e-8


def test_a_policy_that_is_not_its_own_reference_at_the_start_is_refused(fit, quitter_dir):
    options = {"policy": Forgetful(quitter_dir), "critic": FlatCritic}
    with pytest.raises(ValueError, match=r"policy and reference differ by .* nats a token.*ignores `temperature`"):
        fit(KLQ, sampler=Sampler(response_length=6, temperature=2.0), **options)
    options = {"policy": Forgetful(quitter_dir), "critic": FlatCritic}
    fit(KLQ, sampler=Sampler(response_length=6, temperature=1.0), **options)


def test_a_reference_of_its_own_may_differ(fit, model_dir):
    watch, module = fit(KLQ, path=model_dir("llama"), reference=LanguagePolicy(model_dir("llama", seed=1)))
    assert watch.metrics[0]["kl/sequence"] > 0.1
    assert not any(p.requires_grad for p in module.reference.parameters())


@pytest.mark.parametrize("part", ["reference", "critic"])
def test_a_prompt_must_fit_whatever_reads_it(quitter_dir, tmp_path, part):
    """The quitter has 128 positions, and here something beside it 16."""
    tokenizer = LanguagePolicy(quitter_dir).tokenizer
    path = save(tmp_path / "short", tiny_language_model("gpt2", tokenizer, positions=16), tokenizer)
    makers = {"reference": LanguagePolicy(path), "critic": partial(SeparateCritic, path=path)}
    module = make_module(quitter_dir, **{part: makers[part]})
    assert module.prompt_limit == 16 - 6
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens=32 does not fit: .* leave room for 10 prompt"):
        make_trainer(tmp_path).fit(module, make_data())


# Divergence ---------------------------------------------------------------------------------------------------------


class Spoiled(L.Callback):
    """Makes a gradient NaN after the backward pass of one step."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step:
            self.before = weights(module)
            next(module.policy.parameters()).grad[0] = math.nan


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(quitter_dir, tmp_path):
    spoil, module = Spoiled(step=2), make_module(quitter_dir)
    with pytest.raises(Divergence, match="the policy's gradient became nan at optimizer step 2"):
        make_trainer(tmp_path, spoil).fit(module, make_data())
    close(weights(module), spoil.before, atol=0, rtol=0)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(quitter_dir, tmp_path):
    class Endless(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                self.before = weights(module)
                batch.experience.returns[0, 0] = math.inf

    endless, module = Endless(), make_module(quitter_dir)
    with pytest.raises(Divergence, match=r"the loss became inf at optimizer step 3.*optimization\.lr"):
        make_trainer(tmp_path, endless).fit(module, make_data())
    close(weights(module), endless.before, atol=0, rtol=0)


def test_weights_that_a_step_has_broken_stop_the_next_rollout(quitter_dir, tmp_path):
    """After the last step of a phase no loss tells of them; nothing is scored under them."""
    scored = []

    def score(prompts, completions, **columns):
        scored.append(len(completions))
        return [0.0] * len(completions)

    module = make_module(quitter_dir, reward=FunctionReward(score), optimization=Optimization(lr=1e20))
    with pytest.raises(Divergence, match="not finite after optimizer step 1, though all weights are, and"):
        make_trainer(tmp_path, max_epochs=2).fit(module, make_data(minibatches=1, epochs=1))
    assert scored == [8]


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_a_model_whose_weights_are_not_finite_is_not_evaluated(quitter_dir, tmp_path, stage):
    module = make_module(quitter_dir)
    with torch.no_grad():
        module.policy.model.get_output_embeddings().weight[3, 0] = math.nan
    with pytest.raises(Divergence, match=r"after optimizer step 0, in weights, say model\.\S+, .* look at the model"):
        getattr(make_trainer(tmp_path, limit_val_batches=1), stage)(module, make_data())


def test_nan_in_padding_is_no_divergence(quitter_dir, tmp_path):
    class Rubbish(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns"):
                getattr(batch.experience, name)[~batch.experience.mask] = 1e30

    clean, dirty = Watch(), Watch()
    for algorithm in ALGORITHMS:
        make_trainer(tmp_path, clean).fit(make_module(quitter_dir, algorithm), make_data())
        make_trainer(tmp_path, Rubbish(), dirty).fit(make_module(quitter_dir, algorithm), make_data())
    for mine, theirs in zip(dirty.gradients, clean.gradients, strict=True):
        close(mine, theirs, atol=0, rtol=0)


# Frozen parts -------------------------------------------------------------------------------------------------------


class Weighing(Reward):
    """A reward with weights that somebody forgot to freeze."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, completions):
        return self.weight * completions.sequences.mask.sum(dim=1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_frozen_parts_get_no_gradient_and_never_change(fit, algorithm):
    module = {"reward": Weighing(), "gold": Weighing()}
    watch, trained = fit(algorithm, **module)
    assert any(name.startswith(FROZEN) for name in watch.weights[0])
    for name, value in watch.weights[-1].items():
        if name.startswith(FROZEN):
            assert torch.equal(value, watch.weights[0][name]), name
    assert not any(name.startswith(FROZEN) for gradients in watch.gradients for name in gradients)
    for part in (trained.reference, trained.reward, trained.gold):
        assert not any(p.requires_grad for p in part.parameters())
    first, last = watch.weights[0], watch.weights[-1]
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert {"policy", "critic"} <= changed


class FrozenMemory(L.Callback):
    """What the file of each part's weights has in main memory; None for parts that lie in no file.

    Attributes:
        before_use: as frozen models begin to read a phase's rollout.
        after_steps: at the end of a phase's steps, among which one was saved.
    """

    def on_train_start(self, trainer, module):
        self.before_use, self.after_steps = [], {}
        for part in (module.reference, module.reward, module.gold):
            part.register_forward_pre_hook(lambda part, _: self.before_use.append(memory_of(part)))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 0:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/frozen.ckpt")

    def on_train_epoch_end(self, trainer, module):
        self.after_steps = {name: memory_of(part) for name, part in module.named_children() if list(part.parameters())}
        self.copied = copy.deepcopy(module)


def memory_of(part):
    return memory_of_file(next(part.parameters()))


@pytest.mark.skipif(sys.platform != "linux", reason="weights are moved to a file on Linux only")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_frozen_weights_take_memory_while_they_are_read_only(quitter_dir, tmp_path, algorithm):
    memory = FrozenMemory()
    module = make_module(quitter_dir, algorithm, reward=Weighing(), gold=Weighing())
    make_trainer(tmp_path, memory, SaveGuard(str(tmp_path))).fit(module, make_data())
    assert memory.before_use == [0] * 6
    assert memory.after_steps == {"policy": None, "critic": None, "reference": 0, "reward": 0, "gold": 0}
    close(weights(memory.copied), weights(module), atol=0, rtol=0)
    assert memory_of(memory.copied.reference) is None


@pytest.mark.skipif(sys.platform != "linux", reason="weights are moved to a file on Linux only")
def test_room_for_frozen_weights_is_made_once_a_phase_and_once_a_validation(quitter_dir, tmp_path, monkeypatch):
    times = []
    monkeypatch.setattr(WeightFile, "make_room", lambda file: times.append(trainer.state.stage.value))
    trainer = make_trainer(tmp_path, limit_val_batches=2)
    trainer.fit(make_module(quitter_dir), make_data())
    assert times == ["train", "validate"] * 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_where_frozen_weights_lie_changes_no_number(fit, algorithm, monkeypatch):
    found, _ = fit(algorithm, reward=Weighing(), gold=Weighing())
    monkeypatch.setattr("klqlit.algorithms.base.move_to_file", lambda models: None)
    expected, _ = fit(algorithm, reward=Weighing(), gold=Weighing())
    close(found.weights[-1], expected.weights[-1], atol=0, rtol=0)
    for one, other in zip(found.metrics, expected.metrics, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] == other[name] for name in one if not name.startswith("time/"))


# What is measured ---------------------------------------------------------------------------------------------------


class Kept(L.Callback):
    """Keeps the rollouts that targets are made of."""

    def __init__(self):
        self.rollouts = []

    def setup(self, trainer, module, stage):
        targets = module.targets

        def kept(rollout):
            self.rollouts.append(rollout)
            return targets(rollout)

        module.targets = kept


def test_phase_metrics_are_those_of_the_rollout(fit):
    kept = Kept()
    watch, module = fit(KLQ, kept, tau=0.2, gold=FunctionReward(nothing), trainer={"max_epochs": 3})
    for rollout, metrics in zip(kept.rollouts, watch.metrics, strict=True):
        mask = rollout.mask
        logratio = (rollout.logprobs - rollout.ref_logprobs).double()
        kl = torch.where(mask, logratio, 0).sum(dim=1)
        assert metrics["reward/score"] == pytest.approx(float(rollout.scores.mean()))
        assert metrics["reward/gold"] == 0.0
        assert metrics["objective/J"] == pytest.approx(float((rollout.scores - 0.2 * kl).mean()))
        assert metrics["policy/length"] == pytest.approx(float(mask.sum() / len(mask)))
        rewards = kl_penalised_rewards(rollout.rewards, rollout.logprobs, rollout.ref_logprobs, mask, tau=0.2)
        returns = monte_carlo_returns(rewards, mask, gamma=1.0)[mask]
        errors = returns - rollout.values[mask]
        explained = 1 - errors.var(correction=0) / returns.var(correction=0)
        assert metrics["critic/explained_variance"] == pytest.approx(float(explained), abs=1e-4)
        assert metrics["critic/value"] == pytest.approx(float(rollout.values[mask].mean()), abs=1e-6)
        assert metrics["critic/return"] == pytest.approx(float(returns.mean()), abs=1e-6)
        assert {"time/generation", "time/scoring"} <= metrics.keys()
    assert [rollout.version for rollout in kept.rollouts] == [0, 4, 8]
    assert module.trainer.callback_metrics["time/optimization"] > 0


def test_scores_are_logged_as_they_came_and_rewards_are_shaped(fit):
    kept = Kept()
    fit(KLQ, kept, shaping=RewardShaping(scale=3.0), trainer={"max_epochs": 1})
    rollout = kept.rollouts[0]
    torch.testing.assert_close(rollout.rewards.sum(dim=1), 3 * rollout.scores)
    last = rollout.mask.sum(dim=1) - 1
    assert bool((rollout.rewards.gather(1, last[:, None]).squeeze(1) == rollout.rewards.sum(dim=1)).all())


def test_train_metrics_weigh_tokens(fit):
    """The mean of `kl_old` over all tokens of all steps, not over batches."""
    watch, _ = fit(KLQ, trainer={"max_epochs": 1, "accumulate_grad_batches": 4}, data={"epochs": 1, "minibatches": 1})
    total = tokens = 0.0
    for batch in watch.batches:
        mask = batch.experience.mask
        total += float(((batch.experience.returns - batch.experience.values)[mask] ** 2).sum() / 2)
        tokens += int(mask.sum())
    # At the rollout's parameters Q = V, since the policy is its own reference.
    assert watch.metrics[0]["train/loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_gradient_norms_are_logged_by_part(fit):
    watch, _ = fit(KLQ, trainer={"max_epochs": 1}, data={"minibatches": 1, "epochs": 1})
    for part in ("policy", "critic"):
        squares = [g.square().sum() for name, g in watch.gradients[0].items() if name.startswith(f"{part}.")]
        assert watch.metrics[0][f"train/{part}_grad_norm"] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)


def test_validation_compares_with_the_reference_on_the_same_prompts_and_seeds(quitter_dir, tmp_path):
    """Before the first update both sides are the same, so every comparison is a tie."""
    module = make_module(quitter_dir, gold=FunctionReward(nothing))
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    trainer.validate(module, make_data(), verbose=False)
    metrics = dict(trainer.callback_metrics)
    assert metrics["val/win_rate/score"] == 0.5
    assert metrics["val/win_rate/gold"] == 0.5
    assert metrics["val/reward/score"] == metrics["val/reference/score"]
    assert abs(float(metrics["val/kl/sequence"])) < 1e-5
    trainer.fit(module, make_data())
    assert trainer.callback_metrics["val/reference/score"] == metrics["val/reference/score"]
    assert float(trainer.callback_metrics["val/kl/token_k3"]) > 1e-5


def test_comparison_by_hand():
    """The policy of the two rows scores 1 and 3, the reference 2 and 2: one win, one loss. Gold: two ties."""
    rollout, metrics = two_rows(), ComparisonMetrics(tau=0.1)
    zero = torch.zeros(2)
    policy = Scored(completions=rollout.completions, scores=rollout.scores, gold=zero)
    reference = Scored(completions=rollout.completions, scores=torch.tensor([2.0, 2.0]), gold=zero)
    metrics.update(Comparison(policy=policy, reference=reference, rollout=rollout))
    found = metrics.compute()
    assert (found["win_rate/score"], found["win_rate/gold"]) == (0.5, 0.5)
    assert (found["reward/score"], found["reference/score"], found["reference/score_std"]) == (2.0, 2.0, 0.0)
    assert found["kl/sequence"] == 0.25
    metrics.reset()
    worse = Scored(completions=rollout.completions, scores=torch.tensor([0.0, 1.0]), gold=None)
    metrics.update(Comparison(policy=policy, reference=worse, rollout=rollout))
    found = metrics.compute()
    assert found["win_rate/score"] == 1.0
    assert "win_rate/gold" not in found


def test_export_writes_the_trained_policy_with_its_metrics(fit, tmp_path):
    _, module = fit(KLQ, trainer={"max_epochs": 1})
    module.export(str(tmp_path / "model"))
    again = LanguagePolicy(str(tmp_path / "model"))
    for name, value in module.policy.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "trained by KLQ" in card
    assert "| reward/score |" in card


def test_prediction_gives_completions_with_scores(quitter_dir, tmp_path):
    trainer, module = make_trainer(tmp_path), make_module(quitter_dir, sampler=Sampler(response_length=6, top_k=5))
    predictions = trainer.predict(module, make_data())
    texts = [text for part in predictions for text in part.completions.prompts]
    assert texts == ListSource([]).texts["validation"]
    for part in predictions:
        expected = vowels(part.completions.prompts, part.completions.completions)
        assert part.scores.tolist() == pytest.approx(expected)


def test_truncated_sampling_is_refused_in_training(fit):
    with pytest.raises(ValueError, match="truncated sampling draws from another distribution"):
        fit(KLQ, sampler=Sampler(top_p=0.9))


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tau_must_be_positive(quitter_dir, algorithm, tau):
    with pytest.raises(ValueError, match="tau must be a finite number above 0"):
        make_module(quitter_dir, algorithm, tau=tau)


@pytest.mark.parametrize("size", [0, -1])
def test_the_scoring_batch_size_must_be_positive(quitter_dir, size):
    with pytest.raises(ValueError, match=f"scoring_batch_size must be a finite number above 0, got {size}"):
        make_module(quitter_dir, scoring_batch_size=size)


def test_a_bad_score_stops_the_run_and_names_its_sample(fit):
    def bad(prompts, completions, **columns):
        return [math.nan] * len(prompts)

    with pytest.raises(ValueError, match=r"reward gave a score that is not finite to 8 of 8 completions.*prompt '"):
        fit(KLQ, reward=FunctionReward(bad))


# Precision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_mixed_precision_trains_with_clipped_gradients(fit, algorithm):
    watch, _ = fit(algorithm, trainer={"precision": "bf16-mixed", "gradient_clip_val": 1.0})
    assert len(watch.gradients) == 8
    assert all(metrics["train/first_ratio_error"] < 0.1 for metrics in watch.metrics)
    assert watch.batches[0].experience.logprobs.dtype == torch.float32


def test_half_precision_for_everything_is_refused(fit):
    with pytest.raises(ValueError, match=r"trainer\.precision='bf16-true' .* use '32-true' or 'bf16-mixed'"):
        fit(KLQ, trainer={"precision": "bf16-true"})
    for precision in ("16-true", "16-mixed"):
        with pytest.raises(ValueError, match=precision):
            check_precision(precision)


def test_weights_in_bfloat16_train_and_what_they_lose_is_said(fit, quitter_dir, caplog):
    with caplog.at_level("INFO"):
        watch, _ = fit(KLQ, policy=LanguagePolicy(quitter_dir, dtype="bfloat16"))
    assert len(watch.gradients) == 8
    assert "trained weights are in bfloat16 (policy.model." in caplog.text


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_in_float16_are_refused_before_anything_is_sampled(quitter_dir, tmp_path, precision):
    """AdamW moves them by more than their own size at a learning rate of 1e-5, and nothing becomes infinite."""
    policy = LanguagePolicy(quitter_dir, dtype="float32")
    policy.model.half().save_pretrained(tmp_path / "half")
    policy.tokenizer.save_pretrained(tmp_path / "half")
    module = make_module(quitter_dir, policy=LanguagePolicy(str(tmp_path / "half"), dtype="auto"))
    trainer = make_trainer(tmp_path, max_epochs=1, precision=precision)
    with pytest.raises(ValueError, match=r"policy\.model\.\S+ is in float16, .* dtype: float32; trainer\.precision"):
        trainer.fit(module, make_data())
    assert not module.phase_metrics


def test_a_reference_of_the_policys_own_weights_is_refused(quitter_dir):
    """Freezing it would freeze the policy: all steps would run and move nothing."""
    policy = LanguagePolicy(quitter_dir)
    with pytest.raises(ValueError, match=r"reference shares weights with the policy.*policy\.frozen_copy\(\)"):
        make_module(quitter_dir, policy=policy, reference=policy)
    assert all(p.requires_grad for p in policy.parameters())
    make_module(quitter_dir, policy=policy, reference=policy.frozen_copy())


def test_a_policy_with_nothing_to_train_is_said(fit, quitter_dir):
    policy = LanguagePolicy(quitter_dir).requires_grad_(False)
    with pytest.warns(UserWarning, match="no weight of the policy is trained"):
        fit(KLQ, policy=policy)


def test_frozen_models_may_be_in_float16(fit, quitter_dir):
    reference = LanguagePolicy(quitter_dir, dtype="float16")
    watch, _ = fit(KLQ, reference=reference)
    assert len(watch.gradients) == 8


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_by_value_bounds_each_number(precision, quitter_dir, tmp_path):
    watch, steep = Watch(), Optimization(lr=1e3, eps=1e3, betas=(0.0, 0.0))
    clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    before = make_module(quitter_dir).state_dict()
    trainer = make_trainer(tmp_path, watch, max_steps=1, precision=precision, **clip)
    trainer.fit(make_module(quitter_dir, optimization=steep), make_data())
    for name, gradient in watch.gradients[0].items():
        moved = before[name] - watch.weights[0][name]
        torch.testing.assert_close(moved, gradient.clamp(-1e-3, 1e-3), atol=1e-6, rtol=1e-3)


def test_clipping_bounds_the_gradient_that_reaches_the_weights(quitter_dir, tmp_path):
    """With a huge epsilon AdamW's first step is lr / eps times the gradient."""
    before = make_module(quitter_dir).state_dict()
    for clip in (1e-1, 1e-2):
        watch = Watch()
        steep = Optimization(lr=1e3, eps=1e3, betas=(0.0, 0.0))
        trainer = make_trainer(tmp_path, watch, max_steps=1, gradient_clip_val=clip)
        trainer.fit(make_module(quitter_dir, optimization=steep), make_data())
        moved = [(watch.weights[0][name] - before[name]).double().square().sum() for name in watch.gradients[0]]
        assert float(sum(moved)) ** 0.5 == pytest.approx(clip, rel=0.01)
        # What is logged is the norm before clipping.
        assert watch.metrics[0]["train/critic_grad_norm"] > 0.2
