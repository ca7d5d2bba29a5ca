"""What every online algorithm shares: models, rollouts, token-weighted losses, metrics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import ExplainedVariance
from transformers import PreTrainedTokenizerBase

from klqlit.algorithms.checks import (
    check_apart,
    check_first_rollout,
    check_fresh,
    check_losses,
    check_precision,
    check_targets,
    check_trained_dtypes,
    warn_of_frozen,
)
from klqlit.algorithms.comparison import Comparison, ComparisonMetrics, Scored
from klqlit.algorithms.divergence import ClipsByKnownNorm, Evaluated, check_sampled, check_step, gradient_norms
from klqlit.algorithms.optimization import Optimization
from klqlit.allocator import keep_freed_memory
from klqlit.functional import kl_k3, kl_penalised_rewards, masked_mean, masked_sum, monte_carlo_returns
from klqlit.functional.checks import check_positive, check_tau
from klqlit.metrics.means import Means
from klqlit.metrics.rollout import RolloutMetrics
from klqlit.metrics.stopwatch import Stopwatch
from klqlit.models.critic import CriticFactory, SeparateCritic
from klqlit.models.evaluation import evaluate
from klqlit.models.loading import same_tokenizer
from klqlit.models.policy import Policy
from klqlit.models.restoring import check_fits, check_vocabulary, vocabulary
from klqlit.models.weight_file import WeightFile, move_to_file
from klqlit.rewards.base import Reward
from klqlit.rewards.shaping import RewardShaping, place_scores, total_scores
from klqlit.rollout.gathering import gather
from klqlit.rollout.sampling import Sampler
from klqlit.rollout.scoring import agreed_scores, critic_values, reference_logprobs
from klqlit.strategies.fully_sharded import at_hand, shard_models
from klqlit.strategies.sharded_model import transformers_in
from klqlit.types import Completions, Experience, Minibatch, Prompts, Rollout, Sample, Sequences
from klqlit.version import __version__

FROZEN = ("reference.", "reward.", "gold.")
"""Parts of the module that are rebuilt from their own paths and never stand in a checkpoint."""

STATES = ("state_dict", "current_model_state")
"""Where a checkpoint holds the module's weights; Lightning's `WeightAveraging` takes the first place for their mean."""


class RLHFModule(ClipsByKnownNorm, ABC):
    """Online RLHF with a token-level critic. A new objective is a final class with `targets` and `loss`.

    Args:
        policy: what is trained.
        reward: what scores completions.
        critic: makes the critic for the policy; a transformer of its own by default.
        reference: pi_b of the KL penalty; None for a frozen copy of the policy as it starts.
        gold: a second reward, only measured: the truth behind a learned reward, where it is known.
        sampler: how responses are drawn.
        shaping: changes to the rewards before the algorithm sees them.
        optimization: learning rates and schedule.
        tau: KL coefficient of the objective J = E[score - tau KL], positive. The coefficient in use starts there; what
            moves it (a KL budget, PPO's `adaptive_kl`) leaves the J that is logged at `tau`, so that a curve of J means
            one thing from end to end.
        scoring_batch_size: rows per forward pass of reference and critic outside training.

    Attributes:
        kl_coefficient: tau as targets and losses use it now. Change it between phases only.
        gamma: discount of the returns that the critic is to predict; 1 unless the objective has another.
        phase_checks: called before training with the rollouts of a phase; each raises ValueError where it cannot work.
    """

    gamma: float = 1.0

    def __init__(
        self,
        *,
        policy: Policy,
        reward: Reward,
        critic: CriticFactory = SeparateCritic,
        reference: Policy | None = None,
        gold: Reward | None = None,
        sampler: Sampler | None = None,
        shaping: RewardShaping | None = None,
        optimization: Optimization | None = None,
        tau: float = 0.05,
        scoring_batch_size: int = 64,
    ) -> None:
        super().__init__()
        check_tau(tau)
        check_positive("scoring_batch_size", scoring_batch_size, "choose as many rows as fit in memory, such as 64")
        self.policy = policy
        self.critic = critic(policy)
        if reference is not None and not same_tokenizer(reference.tokenizer, policy.tokenizer):
            raise ValueError("reference has another tokenizer than the policy, so it cannot read the policy's tokens")
        check_apart(policy, {"reference": reference, "reward": reward, "gold": gold})
        # An untrained policy that is its own reference must give KL 0; one with a reference of its own need not.
        self._is_at_reference = reference is None
        self.reference = policy.frozen_copy() if reference is None else reference.requires_grad_(False)
        self.reward = reward.requires_grad_(False)
        self.gold = None if gold is None else gold.requires_grad_(False)
        self.sampler = sampler or Sampler()
        self.shaping = shaping or RewardShaping()
        self.optimization = optimization or Optimization()
        self.tau = tau
        self.kl_coefficient = tau
        self.scoring_batch_size = scoring_batch_size
        self.phase_checks: list[Callable[[int], None]] = []
        self.stopwatch = Stopwatch()
        self.rollout_metrics = RolloutMetrics(tau=tau)
        self.explained_variance = ExplainedVariance()
        self.training_metrics = Means()
        self.comparison_metrics = ComparisonMetrics(tau=tau)
        self.phase_metrics: dict[str, float] = {}
        self.phase_scores = torch.zeros(0)
        self._evaluated: list[Evaluated] = []
        self._norms: dict[str, float] = {}
        self._reference_side: dict[int, Scored] = {}
        self._frozen_weights: WeightFile | None = None

    @abstractmethod
    def targets(self, rollout: Rollout) -> Experience:
        """Advantages and returns from a rollout of the whole phase, all ranks' rows included; no gradient."""

    @abstractmethod
    def loss(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
        """Per-token losses under the present `logprobs` and `values`, and per-token quantities to log by name.

        The base weighs the tokens: return neither a mean nor a sum. Padding may hold any number.
        """

    # Collecting a phase --------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""
        return self.policy.tokenizer

    @property
    def prompt_limit(self) -> int | None:
        """Longest prompt, in tokens, that leaves room for a response wherever it is read."""
        limits = [part.max_positions for part in (self.policy, self.reference, self.critic)]
        known = [limit for limit in limits if limit is not None]
        return min(known) - self.sampler.response_length if known else None

    def check_phase(self, rollouts: int) -> None:
        """Refuse a number of rollouts a phase that some part cannot work with."""
        for check in self.phase_checks:
            check(rollouts)

    def configure_model(self) -> None:
        rewards = [model for part in self._rewards for model in transformers_in(part)]
        shard_models(self, [self.policy, self.critic, self.reference, *rewards])

    @property
    def _rewards(self) -> list[Reward]:
        return [self.reward] if self.gold is None else [self.reward, self.gold]

    def setup(self, stage: str) -> None:
        # Kept within one run of the trainer, whose validation prompts do not change.
        self._reference_side.clear()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt."""
        return self.policy.encode(texts)

    def collect(self, prompts: Prompts) -> Experience:
        """Sample, score and attach targets, with the present weights."""
        self.stopwatch.lap()
        # A run resumed after the last step of a phase skips that phase's end.
        self.training_metrics.reset()
        self._make_room()
        with torch.no_grad():
            rollout = self._shaped(gather(self.roll_out(prompts)))
            if rollout.version == 0 and self._is_at_reference:
                check_first_rollout(rollout, tolerance=1e-4 if self._full_precision else 5e-2)
            self._is_at_reference = False
            self._measure(rollout)
            experience = self.targets(rollout)
            check_targets(type(self).__name__, experience, rollout.mask)
            return experience

    def roll_out(self, prompts: Prompts) -> Rollout:
        """This rank's completions with log-probabilities, values and raw scores; the rewards are not shaped yet."""
        precision = self.trainer.precision_plugin.forward_context
        with self.stopwatch("generation"), precision():
            sample, completions = self._complete(self.policy, prompts)
        with self.stopwatch("scoring"), precision():
            scores = self._scores(self.reward, completions)
            how: dict[str, Any] = {"temperature": self.sampler.temperature, "size": self.scoring_batch_size}
            with self._in_use(self.reference):
                ref_logprobs = reference_logprobs(self.reference, completions.sequences, **how)
            with self._in_use(self.critic, *([self.policy] if self.critic.reads_features else [])):
                values = critic_values(self.critic, self.policy, completions.sequences, **how)
            return Rollout(
                completions=completions,
                logprobs=sample.logprobs,
                ref_logprobs=ref_logprobs,
                values=values,
                entropy=sample.entropy,
                rewards=place_scores(scores, sample.mask),
                scores=total_scores(scores, sample.mask),
                version=self.global_step,
            )

    def _complete(self, policy: Policy, prompts: Prompts) -> tuple[Sample, Completions]:
        prompts = replace(prompts, tokens=prompts.tokens.to(self.device), mask=prompts.mask.to(self.device))
        with self._in_use(policy):
            sample = self.sampler.sample(policy, prompts)
        check_sampled(sample.logprobs, policy, step=self.global_step, strategy=self.trainer.strategy)
        sequences = Sequences(
            prompt_tokens=prompts.tokens, prompt_mask=prompts.mask, tokens=sample.tokens, mask=sample.mask
        )
        return sample, Completions(
            prompts=prompts.texts,
            completions=self.sampler.texts(policy, sample),
            sequences=sequences,
            ended=sample.ended,
            columns=prompts.columns,
        )

    @contextmanager
    def _in_use(self, *parts: nn.Module) -> Iterator[None]:
        """`at_hand`, after which frozen weights take no memory."""
        with at_hand(self, *parts):
            yield
        if self._frozen_weights is not None:
            self._frozen_weights.let_go()

    def _make_room(self) -> None:
        """For frozen weights, in place of what the optimizer steps have freed."""
        if self._frozen_weights is not None:
            self._frozen_weights.make_room()

    def _shaped(self, rollout: Rollout) -> Rollout:
        return replace(rollout, rewards=self.shaping(rollout.rewards, rollout.completions.ended, rollout.mask))

    def realised_returns(self, rollout: Rollout) -> Float[Tensor, "B T"]:
        r"""What V(s_t) should predict:
        \sum_{k \ge t} \gamma^{k-t} ( r_{k+1} - \tau \log( \pi(a_k|s_k) / \pi_b(a_k|s_k) ) ).

        Args:
            rollout: with shaped rewards, in whose units the critic learns.
        """
        mask = rollout.mask
        rewards = kl_penalised_rewards(
            rollout.rewards, rollout.logprobs, rollout.ref_logprobs, mask, tau=self.kl_coefficient
        )
        return monte_carlo_returns(rewards, mask, gamma=self.gamma)

    def _measure(self, rollout: Rollout) -> None:
        """Metrics of the phase's rollout. It holds all ranks' rows, so that every rank computes the same."""
        self.phase_scores = rollout.scores
        gold = self._gold_scores(rollout.completions)
        self.rollout_metrics.update(rollout, gold)
        mask, returns = rollout.mask, self.realised_returns(rollout)
        self.explained_variance.update(rollout.values[mask], returns[mask])
        times = self.stopwatch.lap()
        self.phase_metrics = self.rollout_metrics.compute() | {
            "time/generation": times["generation"],
            "time/scoring": times["scoring"],
            "kl/coefficient": self.kl_coefficient,
            "critic/explained_variance": float(torch.as_tensor(self.explained_variance.compute())),
            "critic/value": float(masked_mean(rollout.values, mask)),
            "critic/return": float(masked_mean(returns, mask)),
        }
        self.rollout_metrics.reset()
        self.explained_variance.reset()

    def _gold_scores(self, completions: Completions) -> Float[Tensor, " B"] | None:
        if self.gold is None:
            return None
        return total_scores(self._scores(self.gold, completions, "gold"), completions.sequences.mask)

    def _scores(self, reward: Reward, completions: Completions, name: str = "reward") -> Tensor:
        def scored(completions: Completions) -> Tensor:
            with self._in_use(reward):
                return reward(completions)

        return agreed_scores(scored, completions, name)

    @property
    def _full_precision(self) -> bool:
        dtypes = {p.dtype for model in (self.policy, self.reference) for p in model.parameters()}
        return self.trainer.precision == "32-true" and dtypes == {torch.float32}

    # Learning from it ----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self.sampler.refuse_truncation()
        check_precision(str(self.trainer.precision))
        warn_of_frozen(self.policy)
        check_trained_dtypes(self)
        self._evaluated = []  # an interrupted step may have left some
        if self.device.type == "cpu":
            keep_freed_memory()
            self._frozen_weights = self._frozen_weights or move_to_file([self.reference, *self._rewards])

    def __getstate__(self) -> dict[str, Any]:
        # A copy's weights lie in memory of their own.
        return super().__getstate__() | {"_frozen_weights": None}

    def on_train_start(self) -> None:
        self.optimization.use_present(self.trainer)

    def configure_optimizers(self) -> Any:
        total = self._total_steps() if self.optimization.needs_total_steps else None
        return self.optimization.build(self.policy, self.critic, total)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError("optimization.decay='linear' needs an end: set trainer.max_epochs or trainer.max_steps")
        return int(total)

    def evaluate(self, sequences: Sequences) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probabilities and values of given responses under the present weights."""
        return evaluate(self.policy, self.critic, sequences, temperature=self.sampler.temperature)

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor:
        check_fresh(batch, self.global_step)
        experience, mask = batch.experience, batch.experience.mask
        logprobs, values = self.evaluate(experience.sequences)
        returned = self.loss(experience, logprobs, values)
        check_losses(type(self).__name__, returned, mask)
        losses, metrics = returned
        total = masked_sum(losses, mask)
        logratio = torch.where(mask, logprobs.detach() - experience.logprobs, 0.0)
        metrics |= {"loss": losses, "kl_old": kl_k3(-logratio)}
        self._evaluated.append(
            Evaluated(
                batch=batch,
                losses=losses.detach(),
                logprobs=logprobs.detach(),
                values=values.detach(),
                total=total.detach(),
                scores=self.phase_scores,
            )
        )
        self.training_metrics.update({f"train/{name}": values for name, values in metrics.items()}, mask)
        if batch.step == 0:
            self.training_metrics.update({"train/first_ratio_error": (logratio.exp() - 1).abs().amax()})
        # Lightning divides by the micro-batches of a step and averages over ranks. Undo both: the divisor is the number
        # of tokens of the whole step, so that the gradient does not depend on how the step is split.
        return total * (self.trainer.accumulate_grad_batches * self.trainer.world_size / batch.tokens)

    def on_train_batch_start(self, batch: Minibatch, batch_idx: int) -> None:
        self.stopwatch.start("optimization")

    def on_train_batch_end(self, outputs: Any, batch: Minibatch, batch_idx: int) -> None:
        self.stopwatch.stop("optimization")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        norms, evaluated, self._evaluated = gradient_norms(optimizer), self._evaluated, []
        step, strategy = self.global_step, self.trainer.strategy
        check_step(evaluated, norms, self, step=step, strategy=strategy, tokenizer=self.tokenizer)
        self._norms, self.gradient_norm = norms, math.hypot(*norms.values())

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Lightning frees the gradients after the next forward pass only, which then has to find room beside them.
        optimizer.zero_grad()
        norms = {name: torch.full((), norm, device=self.device) for name, norm in self._norms.items()}
        self.training_metrics.update({f"train/{name}_grad_norm": norm for name, norm in norms.items()})

    def on_train_epoch_end(self) -> None:
        self._wait_for_last_step()
        times = {"time/optimization": self.stopwatch.lap()["optimization"]}
        self.log_dict(self.phase_metrics | self.training_metrics.compute() | times)
        self.training_metrics.reset()

    def _wait_for_last_step(self) -> None:
        """What a GPU has still to do of it is time of the optimization."""
        with self.stopwatch("optimization"):
            pass

    # Looking at it -------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        self._wait_for_last_step()
        self._make_room()

    def validation_step(self, batch: Prompts, batch_idx: int) -> Comparison:  # type: ignore[override]  # any output
        rollout = self.roll_out(batch)
        policy = self._scored(rollout.completions, rollout.scores)
        if batch_idx not in self._reference_side:
            # The reference never changes, and neither do the validation seeds: its side is drawn once a run.
            _, completions = self._complete(self.reference, batch)
            scores = total_scores(self._scores(self.reward, completions), completions.sequences.mask)
            self._reference_side[batch_idx] = self._scored(completions, scores)
        comparison = Comparison(policy=policy, reference=self._reference_side[batch_idx], rollout=rollout)
        self.comparison_metrics.update(comparison)
        return comparison

    def on_validation_epoch_end(self) -> None:
        self._log_comparison("val")

    def test_step(self, batch: Prompts, batch_idx: int) -> Comparison:  # type: ignore[override]
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_comparison("test")

    def _log_comparison(self, group: str) -> None:
        self.log_dict({f"{group}/{name}": value for name, value in self.comparison_metrics.compute().items()})
        self.comparison_metrics.reset()

    @torch.inference_mode(False)  # what an algorithm keeps must remain usable in training
    @torch.no_grad()
    def as_collected(self, rollout: Rollout) -> tuple[Rollout, Experience]:
        """What `collect` would make of a rollout that nothing is learned from: with shaped rewards, and its targets.

        Running statistics of the shaping and of the algorithm, which are buffers, and the KL coefficient stay as they
        are.

        Args:
            rollout: from `roll_out`, of all ranks.
        """
        before, coefficient = {name: buffer.clone() for name, buffer in self.named_buffers()}, self.kl_coefficient
        rollout = self._shaped(rollout)
        experience = self.targets(rollout)
        for name, buffer in self.named_buffers():
            buffer.copy_(before[name])
        self.kl_coefficient = coefficient
        return rollout, experience

    def predict_step(self, batch: Prompts, batch_idx: int) -> Scored:
        _, completions = self._complete(self.policy, batch)
        scores = total_scores(self._scores(self.reward, completions), completions.sequences.mask)
        return self._scored(completions, scores)

    def _scored(self, completions: Completions, scores: Float[Tensor, " B"]) -> Scored:
        return Scored(completions=completions, scores=scores, gold=self._gold_scores(completions))

    # Keeping it ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for state in [checkpoint[part] for part in STATES if part in checkpoint]:
            for name in [name for name in state if name.startswith(FROZEN)]:
                del state[name]
        checkpoint["vocabulary"] = vocabulary(self.tokenizer)
        checkpoint["phase"] = {
            "metrics": self.phase_metrics,
            "training": self.training_metrics.sums(),
            "scores": self.phase_scores,
        }
        checkpoint["tau"] = {"configured": self.tau, "in_use": self.kl_coefficient}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {name: value for name, value in self.state_dict().items() if name.startswith(FROZEN)}
        for part in STATES:
            if part in checkpoint:
                checkpoint[part] |= frozen
        self._is_at_reference &= checkpoint["global_step"] == 0
        check_fits(checkpoint["state_dict"], self.state_dict())
        check_vocabulary(checkpoint, self.tokenizer)
        self.phase_metrics = {name: float(value) for name, value in checkpoint["phase"]["metrics"].items()}
        self.training_metrics.restore(checkpoint["phase"]["training"])
        self.phase_scores = checkpoint["phase"]["scores"]
        self._restore_tau(**checkpoint["tau"])

    def _restore_tau(self, configured: float, in_use: float) -> None:
        """Go on with the coefficient the run had come to, unless it is given another tau to start from."""
        if configured == self.tau:
            self.kl_coefficient = in_use
        else:
            rank_zero_info(f"tau is {self.tau:g} from here on; it was {in_use:g}")

    def export(self, directory: str) -> None:
        """Write the policy as a Hugging Face directory, with tokenizer, generation config and model card."""
        self.policy.save(directory, self._model_card(), temperature=self.sampler.temperature)

    def _model_card(self) -> str:
        measured = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(measured.items()))
        return (
            f"# Policy trained by {type(self).__name__}\n\n"
            f"Online RLHF with klqlit {__version__}: KL coefficient tau {self.tau}, sampling temperature "
            f"{self.sampler.temperature}, responses of at most {self.sampler.response_length} tokens, "
            f"{self.global_step} optimizer steps.\n\n| metric | last value |\n|---|---|\n{rows}\n"
        )
