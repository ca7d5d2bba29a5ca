"""How far the policy may move from its reference, and what happens when it has."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from klqlit.algorithms.base import RLHFModule
from klqlit.callbacks.phase_end import PhaseEnd
from klqlit.functional.checks import check_positive


class BudgetAction(ABC):
    """What is done at the end of a phase whose KL was over the budget."""

    ends_run: ClassVar[bool]
    """Whether the run ends by it. It then ends again when it is started again within the same limit."""

    @abstractmethod
    def __call__(self, trainer: L.Trainer, module: RLHFModule) -> str:
        """Do it. Returns what was done, in words that end a sentence."""


@final
class StopRun(BudgetAction):
    """Ends the run as its last step would: with a checkpoint, and the model exported."""

    ends_run: ClassVar[bool] = True

    def __call__(self, trainer: L.Trainer, module: RLHFModule) -> str:
        trainer.should_stop = True
        return "the run ends here. Raise the limit to go on from its last checkpoint"


@final
class RaiseTau(BudgetAction):
    """Multiplies the KL coefficient from the next phase on.

    Args:
        factor: above 1.
        maximum: the coefficient is raised no further than this; None for no bound.

    Raises:
        ValueError: `factor` is not above 1, or `maximum` is not positive.
    """

    ends_run: ClassVar[bool] = False

    def __init__(self, factor: float = 1.5, maximum: float | None = None) -> None:
        if not 1 < factor < float("inf"):
            raise ValueError(f"RaiseTau factor={factor} must be a finite number above 1, such as 1.5")
        if maximum is not None:
            check_positive("RaiseTau maximum", maximum, "leave it out for no bound")
        self.factor = factor
        self.maximum = maximum

    def __call__(self, trainer: L.Trainer, module: RLHFModule) -> str:
        before, raised = module.kl_coefficient, module.kl_coefficient * self.factor
        if self.maximum is not None:
            raised = max(before, min(raised, self.maximum))
        module.kl_coefficient = raised
        if raised == before:
            return f"tau stays at {before:.4g}, where its maximum is"
        return f"tau goes from {before:.4g} to {raised:.4g}"


@final
class KLBudget(PhaseEnd):
    """Acts when a phase's mean KL to the reference, `kl/sequence`, is over a limit.

    Args:
        limit: nats per completion.
        action: stop the run, or raise tau; `StopRun` by default.

    Attributes:
        end_reason: why the run ends before its time; None where it does not.

    Raises:
        ValueError: `limit` is not positive.
    """

    def __init__(self, limit: float, action: BudgetAction | None = None) -> None:
        check_positive("KLBudget limit", limit, "give nats per completion, such as 20")
        self.limit = limit
        self.action = action or StopRun()
        self.end_reason: str | None = None
        self._kl = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, RLHFModule)
        self.end_reason = None
        if self.action.ends_run and self._kl > self.limit:
            self._act(trainer, pl_module)

    def on_phase_end(self, trainer: L.Trainer, module: RLHFModule) -> None:
        self._kl = module.phase_metrics["kl/sequence"]
        if not self._kl <= self.limit:
            self._act(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return {"kl": self._kl}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kl = state_dict["kl"]

    def _act(self, trainer: L.Trainer, module: RLHFModule) -> None:
        done = self.action(trainer, module)
        message = f"KL budget: {self._kl:.4g} nats per completion are over the limit of {self.limit:g}; {done}"
        rank_zero_info(message)
        if self.action.ends_run:
            self.end_reason = message
