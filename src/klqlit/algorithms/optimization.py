"""The optimizer of policy and critic."""

from collections.abc import Mapping
from typing import Any, Literal, final, get_args

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from klqlit.functional.checks import check_choice, check_not_negative, check_positive
from klqlit.models.critic import Critic
from klqlit.models.policy import Policy

Decay = Literal["constant", "linear"]


@final
class Optimization:
    """AdamW with a learning rate each for policy and critic.

    Args:
        lr: learning rate of the policy.
        critic_lr: learning rate of the critic's own weights; None for `lr`.
        weight_decay: decoupled weight decay.
        betas: decay rates of Adam's moments.
        eps: Adam's epsilon.
        warmup_steps: optimizer steps over which both rates rise from 0.
        critic_warmup_steps: optimizer steps at the start in which only the critic learns.
        decay: "linear" takes both rates to 0 at the end of the run, "constant" leaves them.

    Raises:
        ValueError: a rate is not positive, a number is negative, or `decay` is none of these.
    """

    def __init__(
        self,
        *,
        lr: float = 1.41e-5,
        critic_lr: float | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_steps: int = 0,
        critic_warmup_steps: int = 0,
        decay: Decay = "constant",
    ) -> None:
        check_positive("optimization.lr", lr, "the paper's is 1.41e-5")
        if critic_lr is not None:
            check_positive("optimization.critic_lr", critic_lr, "leave it out to use lr")
        check_not_negative("optimization.weight_decay", weight_decay, "choose 0 for none")
        check_not_negative("optimization.warmup_steps", warmup_steps, "choose 0 for none")
        check_not_negative("optimization.critic_warmup_steps", critic_warmup_steps, "choose 0 for none")
        check_choice("optimization.decay", decay, get_args(Decay))
        self.lr = lr
        self.critic_lr = lr if critic_lr is None else critic_lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.warmup_steps = warmup_steps
        self.critic_warmup_steps = critic_warmup_steps
        self.decay = decay

    @property
    def needs_total_steps(self) -> bool:
        """Whether the schedule depends on the length of the run."""
        return self.decay == "linear"

    def build(self, policy: Policy, critic: Critic, total_steps: int | None) -> dict[str, Any]:
        """Optimizer and scheduler in the form that Lightning takes.

        Args:
            policy: its weights learn at `lr`, from step `critic_warmup_steps` on.
            critic: its weights, if it has any, learn at `critic_lr`.
            total_steps: optimizer steps of the run; needed for linear decay.
        """
        groups: list[dict[str, Any]] = [{"params": list(policy.parameters()), "lr": self.lr, "name": "policy"}]
        schedules = [lambda step: self._factor(step, total_steps) * (step >= self.critic_warmup_steps)]
        if own := list(critic.parameters()):
            groups.append({"params": own, "lr": self.critic_lr, "name": "critic"})
            schedules.append(lambda step: self._factor(step, total_steps))
        optimizer = AdamW(groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)
        scheduler = OwnSchedule(optimizer, schedules)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def use_present(self, trainer: L.Trainer) -> None:
        """Let the options given here win over those in a checkpoint that was loaded, and say so."""
        shared = {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        use_present_options(trainer, {"policy": {"lr": self.lr} | shared, "critic": {"lr": self.critic_lr} | shared})

    def _factor(self, step: int, total_steps: int | None) -> float:
        warmup = min((step + 1) / (self.warmup_steps + 1), 1.0)
        if not self.needs_total_steps:
            return warmup
        assert total_steps is not None
        return warmup * max(1 - step / total_steps, 0.0)


@final
class OwnSchedule(LambdaLR):
    """A schedule that was built of options here: its class tells it, and its optimizer, from what a user brings."""


def use_present_options(trainer: L.Trainer, present: Mapping[str, dict[str, Any]]) -> None:
    """Let present options win over those that came with an optimizer's state, as all other options do.

    A run that diverged is to go on at a lower rate. Where nothing was changed the state stays as it is, bit for bit.
    An optimizer without an `OwnSchedule` has no options here: a user built it, or a callback took over its rate.

    Args:
        trainer: with its optimizer and schedule in the state of a checkpoint or as they were built.
        present: by the name of each group of weights, in their order, the options to be in force; ``lr`` is the rate
            before the schedule.
    """
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, OwnSchedule):
            _use(config.scheduler, present)


def _use(schedule: OwnSchedule, present: Mapping[str, dict[str, Any]]) -> None:
    # A critic that has no weights of its own has no group.
    for i, (group, (name, options)) in enumerate(zip(schedule.optimizer.param_groups, present.items(), strict=False)):
        for option, value in options.items():
            saved = schedule.base_lrs[i] if option == "lr" else group[option]
            if saved == value:
                continue
            rank_zero_info(f"the {name}'s {option} is {value} from here on; it was {saved}")
            if option == "lr":
                group["initial_lr"] = schedule.base_lrs[i] = value
            else:
                group[option] = value
        # What came with the state is the old schedule's rate, and the next step would still be taken at it.
        group["lr"] = schedule.base_lrs[i] * schedule.lr_lambdas[i](schedule.last_epoch)
