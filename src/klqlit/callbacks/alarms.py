"""Warnings of two ways in which a policy goes bad while its score may still rise."""

from typing import Any, final

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from klqlit.algorithms.base import RLHFModule
from klqlit.callbacks.phase_end import PhaseEnd
from klqlit.functional.checks import check_fraction, check_positive


@final
class EntropyCollapse(PhaseEnd):
    """Warns when the policy's entropy per token, `policy/entropy`, falls below a bound: it repeats itself.

    The warning comes once, and again when the entropy had recovered in between. `alarm/entropy_collapse` is logged each
    phase: 1 in trouble, else 0.

    Args:
        share: of the entropy in the run's first phase; None for no such bound.
        below: nats a token; None for no such bound.

    Raises:
        ValueError: there is no bound, `share` does not lie between 0 and 1, or `below` is not positive.
    """

    def __init__(self, share: float | None = 0.2, below: float | None = None) -> None:
        if share is None and below is None:
            raise ValueError("EntropyCollapse has no bound: give share, such as 0.2, or below, in nats a token")
        if share is not None:
            check_fraction("EntropyCollapse share", share, "it is a share of the first phase's entropy, such as 0.2")
        if below is not None:
            check_positive("EntropyCollapse below", below, "it is in nats a token, such as 0.1")
        self.share = share
        self.below = below
        self._first: float | None = None
        self._in_trouble = False

    def on_phase_end(self, trainer: L.Trainer, module: RLHFModule) -> None:
        entropy = module.phase_metrics["policy/entropy"]
        self._first = entropy if self._first is None else self._first
        bounds = [] if self.below is None else [self.below]
        if self.share is not None:
            bounds.append(self.share * self._first)
        in_trouble = entropy < max(bounds)
        if in_trouble and not self._in_trouble:
            rank_zero_info(
                f"alarm: the policy's entropy is {entropy:.3g} nats a token, below {max(bounds):.3g} (it began with "
                f"{self._first:.3g}): it gives nearly the same responses again and again. Try a larger tau or a lower "
                "optimization.lr"
            )
        self._in_trouble = in_trouble

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("alarm/entropy_collapse", float(self._in_trouble))

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "in_trouble": self._in_trouble}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first, self._in_trouble = state_dict["first"], state_dict["in_trouble"]


@final
class OverLength(PhaseEnd):
    """Warns when the length limit cuts most responses, for some phases in a row.

    The warning comes once, and again when lengths had recovered in between. `alarm/over_length` is logged each phase: 1
    in trouble, else 0.

    Args:
        share: of responses that the limit cut (1 - `policy/ended`), from which on a phase counts.
        phases: in a row.

    Raises:
        ValueError: `share` does not lie in (0, 1], or `phases` is below 1.
    """

    def __init__(self, share: float = 0.9, phases: int = 3) -> None:
        if not 0 < share <= 1:
            raise ValueError(
                f"OverLength share={share} must lie in (0, 1]: it is a share of the responses, such as 0.9"
            )
        if phases < 1:
            raise ValueError(f"OverLength phases={phases} must be at least 1")
        self.share = share
        self.phases = phases
        self._count = 0

    @property
    def _in_trouble(self) -> bool:
        return self._count >= self.phases

    def on_phase_end(self, trainer: L.Trainer, module: RLHFModule) -> None:
        cut = 1 - module.phase_metrics["policy/ended"]
        self._count = self._count + 1 if cut >= self.share else 0
        if self._count == self.phases:
            rank_zero_info(
                f"alarm: {cut:.0%} of the responses reached sampler.response_length={module.sampler.response_length}, "
                f"and no fewer than {self.share:.0%} in {self.phases} phases in a row: the policy does not end them. "
                "Try a longer response_length, or shaping.missing_eos_penalty"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("alarm/over_length", float(self._in_trouble))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._count = state_dict["count"]
