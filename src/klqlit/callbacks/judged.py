"""The policy's win rate under a judge, during training."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.comparison import Comparison
from klqlit.callbacks.completions import interleave
from klqlit.judges.base import Judge, JudgeStopped
from klqlit.judges.cache import JudgmentCache
from klqlit.judges.matching import Response, match, prompt_id, read_completions
from klqlit.judges.protocol import JudgingInterrupted, judge_pairs
from klqlit.judges.records import JudgedPair, Pair
from klqlit.judges.summary import summarise
from klqlit.ranks import everywhere

GRACE_SECONDS = 10.0
"""After the end of a round's time, for the answers that are under way: they are paid for."""


@final
class JudgedWinRate(L.Callback):
    """At validations, has a judge compare the policy's completions with the reference's, and logs the win rate.

    The first rank judges, the others wait. A judge that gives up is a warning, and training goes on.

    Args:
        judge: who is asked.
        every_n_phases: phases between two rounds of judging, a multiple of the trainer's `check_val_every_n_epoch`,
            since completions are those of the validation; None for every validation.
        max_prompts: validation prompts to judge, always the first ones; None for all.
        against: a file of completions of the validation prompts, as `predict` writes it, in place of the reference.
        both_orders: show each pair in both orders; False for half the price.
        cache: file that keeps the judgments; None for ``judgments.sqlite`` in the run's folder.
        timeout: seconds for one round. Then nothing more is asked, and what is under way has `GRACE_SECONDS` to come.
            What came is kept, but gives no win rate.
        name: the metrics are ``val/{name}/win_rate`` and so on.

    Raises:
        ValueError: a number is not positive, or `against` cannot be read. When training starts: the phases do not fit
            the validations, or the cache cannot be used.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        every_n_phases: int | None = None,
        max_prompts: int | None = None,
        against: str | None = None,
        both_orders: bool = True,
        cache: str | None = None,
        timeout: float = 300.0,
        name: str = "judge",
    ) -> None:
        for option, value in {"every_n_phases": every_n_phases, "max_prompts": max_prompts, "timeout": timeout}.items():
            if value is not None and not value > 0:  # NaN included
                raise ValueError(f"JudgedWinRate {option}={value} must be positive")
        self.judge = judge
        self.every_n_phases = every_n_phases
        self.max_prompts = max_prompts
        self.both_orders = both_orders
        self.timeout = timeout
        self.name = name
        self._path = cache
        self._others = None if against is None else read_completions(against)
        self._cache: JudgmentCache | None = None
        self._pairs: list[Pair] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, RLHFModule):
            raise ValueError(f"JudgedWinRate compares a policy with its reference: {type(pl_module).__name__} has none")
        if stage == "fit":
            self._check_phases(trainer)
        if stage in ("fit", "validate") and trainer.is_global_zero:
            self._cache = JudgmentCache(self._path or Path(trainer.default_root_dir) / "judgments.sqlite")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pairs = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due(trainer):
            assert isinstance(outputs, Comparison)
            self._pairs += as_pairs(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._is_due(trainer):
            return
        pairs = interleave(everywhere(self._pairs))
        found: dict[str, float] | None = None
        fault: Exception | None = None
        if trainer.is_global_zero:
            try:
                found = self._measure(pairs)
            except Exception as error:  # whatever a judge of the user's own raises
                fault = error
        # An error of one rank alone would leave the others waiting for it.
        found = trainer.strategy.broadcast(found)
        if found is None:
            raise fault or RuntimeError("JudgedWinRate: judging failed on the first rank, which says why")
        pl_module.log_dict({f"val/{self.name}/{metric}": value for metric, value in found.items()})

    def _check_phases(self, trainer: L.Trainer) -> None:
        interval = trainer.check_val_every_n_epoch
        if not trainer.limit_val_batches:
            raise ValueError("JudgedWinRate judges at validations: trainer.limit_val_batches=0 leaves none")
        if self.every_n_phases is not None and (interval is None or self.every_n_phases % interval):
            raise ValueError(
                f"JudgedWinRate every_n_phases={self.every_n_phases} must be a multiple of "
                f"trainer.check_val_every_n_epoch={interval}: only a validation has completions to judge"
            )

    def _is_due(self, trainer: L.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        training = trainer.state.fn == TrainerFn.FITTING
        return not (training and self.every_n_phases and (trainer.current_epoch + 1) % self.every_n_phases)

    def _measure(self, pairs: list[Pair]) -> dict[str, float]:
        """Metrics of one round; none where the judge did not come to an end."""
        stopping = threading.Event()
        timer = threading.Timer(self.timeout, stopping.set)
        timer.daemon = True
        timer.start()
        try:
            pairs = self._opposite(pairs)[: self.max_prompts]
            judged = judge_pairs(
                self.judge,
                pairs,
                cache=self._cache,
                both_orders=self.both_orders,
                stopping=stopping,
                grace=GRACE_SECONDS,
            )
            return metrics_of(judged)
        except JudgingInterrupted as error:
            rank_zero_warn(f"JudgedWinRate: judging took longer than timeout={self.timeout:g} seconds: {error}")
        except JudgeStopped as error:
            rank_zero_warn(f"JudgedWinRate: no win rate this time: {error}")
        finally:
            timer.cancel()
        return {}

    def _opposite(self, pairs: list[Pair]) -> list[Pair]:
        """The pairs with the reference, or with the completions of a file."""
        if self._others is None:
            return pairs
        mine = [
            Response(id=pair.id, prompt=pair.prompt, text=pair.a, ended=pair.a_ended, columns=pair.columns)
            for pair in pairs
        ]
        matching = match(mine, self._others)
        if matching.only_in_a:
            rank_zero_warn(
                f"JudgedWinRate: {len(matching.only_in_a)} of {len(pairs)} validation prompts have no completion in "
                "the file to compare with, and are left out"
            )
        return matching.pairs


def as_pairs(comparison: Comparison) -> list[Pair]:
    """The policy as side A, the reference as side B."""
    policy, reference = comparison.policy.completions, comparison.reference.completions
    pairs = []
    for i, prompt in enumerate(policy.prompts):
        columns = policy.columns_of(i)
        pairs.append(
            Pair(
                id=prompt_id(prompt, columns.get("id")),
                prompt=prompt,
                a=policy.completions[i],
                b=reference.completions[i],
                a_ended=bool(policy.ended[i]),
                b_ended=bool(reference.ended[i]),
                columns=columns,
            )
        )
    return pairs


def metrics_of(judged: Sequence[JudgedPair]) -> dict[str, float]:
    """What one round of judging logs; rates that nothing is left for are left out."""
    summary = summarise(judged)
    statistics, counts = summary["statistics"], summary["counts"]
    rate = statistics["win_rate"]
    metrics = {"unreadable": sum(pair.unreadable > 0 for pair in judged) / len(judged)}
    if counts["failed"]:
        rank_zero_warn(f"JudgedWinRate: {counts['failed']} questions failed, and their pairs are left out")
    if rate is not None:
        metrics |= {"win_rate": rate["rate"], "win_rate_low": rate["low"], "win_rate_high": rate["high"]}
    if statistics["inconsistent_rate"] is not None:
        metrics["inconsistent"] = statistics["inconsistent_rate"]
    return metrics
