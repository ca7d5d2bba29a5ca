"""Conditions that an on-policy run must meet, each with a message that says what to change."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from klqlit.functional import masked_mean
from klqlit.types import Experience, Minibatch, Rollout


class StaleRollout(RuntimeError):
    """A minibatch was sampled by other weights than the optimizer expects."""


def check_fresh(batch: Minibatch, global_step: int) -> None:
    """Refuse a minibatch whose rollout does not belong to the present weights."""
    if batch.version + batch.step != global_step:
        raise StaleRollout(
            f"this minibatch was sampled at optimizer step {batch.version} for step {batch.version + batch.step}, but "
            f"the trainer is at step {global_step}: rollouts must not be prefetched or reused; use OnlineDataModule"
        )


def check_first_rollout(rollout: Rollout, tolerance: float) -> None:
    """Refuse a start at which the policy is not its own reference.

    Args:
        rollout: sampled by the untouched policy.
        tolerance: largest mean absolute log-ratio that rounding explains, nats per token.
    """
    gap = float(masked_mean((rollout.logprobs - rollout.ref_logprobs).abs(), rollout.mask))
    if not gap <= tolerance:
        raise ValueError(
            f"before the first update, policy and reference differ by {gap:.2g} nats a token, where a frozen copy must "
            f"give 0 (up to {tolerance:g} for rounding). Likely: a custom policy has dropout on or ignores "
            "`temperature` in its forward, the model mishandles left padding or position_ids, or weights were loaded "
            "into the policy after it was made: make it from them, or give it a reference of its own"
        )


def check_targets(objective: str, experience: Any, mask: Bool[Tensor, "B T"]) -> None:
    """Refuse what an objective's `targets` returned, unless it is an experience with one number a token.

    Args:
        objective: name of its class, for the message.
        experience: what it returned.
        mask: of the rollout.
    """
    if not isinstance(experience, Experience):
        raise ValueError(f"{objective}.targets must return an Experience, not a {type(experience).__name__}")
    _check_per_token(f"{objective}.targets: advantages", experience.advantages, mask)
    _check_per_token(f"{objective}.targets: returns", experience.returns, mask)


def check_losses(objective: str, returned: Any, mask: Bool[Tensor, "B T"]) -> None:
    """Refuse what an objective's `loss` returned, unless it is one loss a token and quantities by name.

    A mean would be spread over the tokens without a word, and weighed a second time.

    Args:
        objective: name of its class, for the message.
        returned: what it returned.
        mask: of the rows.
    """
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise ValueError(f"{objective}.loss must return losses and a dict of quantities to log: `losses, {{}}`")
    losses, quantities = returned
    _check_per_token(f"{objective}.loss: the losses", losses, mask)
    for name, values in quantities.items():
        _check_per_token(f"{objective}.loss: {name!r}", values, mask)


def _check_per_token(what: str, found: Any, mask: Bool[Tensor, "B T"]) -> None:
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != list(mask.shape):
        raise ValueError(
            f"{what} must be a tensor of the shape {list(mask.shape)}, one number a token, and is {shape}: return "
            "neither a mean nor a sum, the tokens are weighed afterwards"
        )


def check_precision(precision: str) -> None:
    """Refuse precisions that round off what must be exact.

    Half-precision "true" modes store log-probabilities, running statistics and the KL coefficient in 8 to 11 bits; the
    loss scaling of "16-mixed" makes infinite gradients on purpose, which are taken for divergence here.
    """
    if precision in ("bf16-true", "16-true", "16-mixed"):
        raise ValueError(
            f"trainer.precision={precision!r} loses what on-policy ratios are made of: use '32-true' or 'bf16-mixed'"
        )


def check_apart(policy: nn.Module, frozen: Mapping[str, nn.Module | None]) -> None:
    """Refuse frozen models that hold weights which the policy is to train.

    Args:
        policy: before the others are frozen.
        frozen: by the name of the argument; None where there is none.
    """
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    for name, module in frozen.items():
        if module is not None and any(id(p) in trained for p in module.parameters()):
            raise ValueError(
                f"{name} shares weights with the policy, and freezing them would leave nothing to train: give it "
                "weights of its own, such as policy.frozen_copy()"
            )


def warn_of_frozen(policy: nn.Module) -> None:
    """Say that a run will leave the policy as it is. It is not refused: a critic may be trained alone for a while."""
    if not any(p.requires_grad for p in policy.parameters()):
        rank_zero_warn(
            "no weight of the policy is trained: requires_grad is False for all. Call policy.requires_grad_(True), or "
            "set it for the part that is to learn"
        )


def check_trained_dtypes(module: nn.Module) -> None:
    """Refuse to train weights in float16, and say what bfloat16 loses.

    In float16 the squares of small gradients are 0 in AdamW's second moment, and so is its epsilon: a step that should
    be as large as the learning rate has no bound.
    """
    trained = [(name, p.dtype) for name, p in module.named_parameters() if p.requires_grad]
    for name, dtype in trained:
        if dtype == torch.float16:
            raise ValueError(
                f"{name} is in float16, which AdamW cannot train: its steps would have no bound. Load the model with "
                "dtype: float32; trainer.precision: bf16-mixed computes in half precision all the same"
            )
    if rounded := [name for name, dtype in trained if dtype == torch.bfloat16]:
        rank_zero_info(
            f"{len(rounded)} of {len(trained)} trained weights are in bfloat16 ({rounded[0]}, ...), where steps "
            "smaller than 1/256 of a weight are lost: dtype: float32 keeps them"
        )
