"""The optimizer of policy and critic."""

from typing import Any, Literal, final

from lightning.pytorch.utilities import rank_zero_info
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from klqlit.functional.checks import check_not_negative, check_positive
from klqlit.models.critic import Critic
from klqlit.models.policy import Policy


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
        decay: "linear" takes both rates to 0 at the end of the run.

    Raises:
        ValueError: a rate is not positive, or a number of steps is negative.
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
        decay: Literal["constant", "linear"] = "constant",
    ) -> None:
        check_positive("optimization.lr", lr, "the paper's is 1.41e-5")
        if critic_lr is not None:
            check_positive("optimization.critic_lr", critic_lr, "leave it out to use lr")
        check_not_negative("optimization.warmup_steps", warmup_steps, "choose 0 for none")
        check_not_negative("optimization.critic_warmup_steps", critic_warmup_steps, "choose 0 for none")
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

    def build(self, policy: Policy, critic: Critic, total_steps: int | None, *, fused: bool) -> dict[str, Any]:
        """Optimizer and scheduler in the form that Lightning takes.

        Args:
            policy: its weights learn at `lr`, from step `critic_warmup_steps` on.
            critic: its weights, if it has any, learn at `critic_lr`.
            total_steps: optimizer steps of the run; needed for linear decay.
            fused: one kernel for all weights: faster, the same numbers up to rounding.
        """
        groups: list[dict[str, Any]] = [{"params": list(policy.parameters()), "lr": self.lr, "name": "policy"}]
        schedules = [lambda step: self._factor(step, total_steps) * (step >= self.critic_warmup_steps)]
        if own := list(critic.parameters()):
            groups.append({"params": own, "lr": self.critic_lr, "name": "critic"})
            schedules.append(lambda step: self._factor(step, total_steps))
        optimizer = AdamW(groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused)
        scheduler = LambdaLR(optimizer, schedules)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def restore_rates(self, checkpoint: dict[str, Any]) -> None:
        """Let the learning rates given here win over those in a checkpoint about to be loaded, and say so.

        A run that diverged is to go on at a lower rate. Where nothing was changed the checkpoint stays as it is; one
        saved with weights only has no rates.
        """
        rates = {"policy": self.lr, "critic": self.critic_lr}
        states, schedules = checkpoint.get("optimizer_states", []), checkpoint.get("lr_schedulers", [])
        for state, schedule in zip(states, schedules, strict=True):
            for i, group in enumerate(state["param_groups"]):
                saved, rate = group["initial_lr"], rates[group["name"]]
                if saved != rate:
                    rank_zero_info(f"the {group['name']}'s learning rate is {rate:g} from here on; it was {saved:g}")
                    group["lr"] *= rate / saved
                    group["initial_lr"] = schedule["base_lrs"][i] = rate

    def _factor(self, step: int, total_steps: int | None) -> float:
        warmup = min((step + 1) / (self.warmup_steps + 1), 1.0)
        if not self.needs_total_steps:
            return warmup
        assert total_steps is not None
        return warmup * max(1 - step / total_steps, 0.0)
