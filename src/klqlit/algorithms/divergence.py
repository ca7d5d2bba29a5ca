"""Stopping where a loss or a gradient is not finite: on all ranks at once, with a description of the batch at fault."""

import math
from abc import ABC
from dataclasses import dataclass
from typing import Any, final

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from klqlit.functional import masked_sum
from klqlit.ranks import everywhere
from klqlit.types import Minibatch, Sequences

BROKEN = ("parameters_not_finite", "gradients_not_finite")


@final
class Divergence(ArithmeticError):
    """The run left the numbers: weights are untouched since the last good optimizer step.

    Args:
        message: for the user.
        report: the batch at fault, as plain data.
    """

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report or {}


@final
@dataclass(kw_only=True, slots=True)
class Evaluated:
    """A micro-batch under the present weights; no gradient.

    Attributes:
        batch: the rows.
        losses: per token.
        logprobs: of the response tokens, nats.
        values: the critic's.
        total: sum of the losses over real tokens.
        scores: of all rows of the phase, as they came.
    """

    batch: Minibatch
    losses: Float[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    total: Float[Tensor, ""]
    scores: Float[Tensor, " R"]


def gradient_norms(optimizer: Optimizer) -> dict[str, float]:
    """Norm of the gradient of each parameter group, by the group's name; of all ranks once they are reduced.

    A group of a user's own optimizer that has no name is called by its place, such as "group 0".
    """
    groups = optimizer.param_groups
    norms = [_total_norm([p.grad for p in group["params"] if p.grad is not None]) for group in groups]
    # All are asked for before the first is waited for.
    names = [group.get("name", f"group {i}") for i, group in enumerate(groups)]
    return {name: float(norm) for name, norm in zip(names, norms, strict=True)}


def clip_gradients(optimizer: Optimizer, limit: int | float, algorithm: str | None, norm: float) -> None:
    """Shrink the gradients in place: all by one factor, so that their norm is at most `limit`, or each on its own.

    Args:
        optimizer: whose gradients.
        limit: largest norm, or largest absolute value.
        algorithm: "value" bounds each number; "norm" and None the norm.
        norm: of all gradients together, over all ranks.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if algorithm == "value":
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
    elif not norm <= limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)


class ClipsByKnownNorm(L.LightningModule, ABC):
    """A module that takes the norm of its gradients before each step anyway, and clips by it.

    Attributes:
        gradient_norm: of all gradients together, over all ranks; to be set in `on_before_optimizer_step`.
    """

    gradient_norm: float = math.nan

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # The norm is known already, and Lightning's own refuses a fused optimizer under mixed precision.
        if gradient_clip_val is not None and gradient_clip_val > 0:
            clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm, self.gradient_norm)


def total_norm(gradients: list[Tensor]) -> float:
    """Their norm, over all shards."""
    return float(_total_norm(gradients))


def _total_norm(gradients: list[Tensor]) -> Float[Tensor, ""] | float:
    if all(type(g) is Tensor and g.is_cpu and g.dtype == torch.float32 for g in gradients):
        # A scalar product takes all threads and adds up in parts: twice as fast as a large tensor's norm, and closer.
        return math.sqrt(sum(float(torch.dot(g, g)) for g in (gradient.reshape(-1) for gradient in gradients)))
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def first_trouble(numbers: list[tuple[str, float]]) -> str | None:
    """The first number that is not finite, in words."""
    return next((f"{name} became {value}" for name, value in numbers if not math.isfinite(value)), None)


def check_step(
    evaluated: list[Evaluated],
    norms: dict[str, float],
    module: nn.Module,
    *,
    step: int,
    strategy: Strategy,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Stop before a number that is not finite reaches the weights. All ranks must call it, and stop together.

    Args:
        evaluated: this rank's micro-batches of the optimizer step.
        norms: of the gradients, by group.
        module: whose parameters and gradients the report speaks of.
        step: the optimizer step that is about to be taken.
        strategy: the trainer's, by which ranks agree.
        tokenizer: of the rows.

    Raises:
        Divergence: a loss or a gradient is not finite.
    """
    in_loss = first_trouble([("the loss", float(part.total)) for part in evaluated])
    trouble = in_loss or first_trouble([(f"the {name}'s gradient", norm) for name, norm in norms.items()])
    # One number crosses the ranks at each step; the description only when it is needed.
    if not strategy.reduce_boolean_decision(trouble is not None, all=False):
        return
    rows = [row for micro, part in enumerate(evaluated) for row in _rows(part, micro, tokenizer)]
    found = everywhere({"in_loss": in_loss, "what": trouble, "rows": rows} | broken_parts(module))
    # A loss of one rank alone spoils the gradient of all: name the cause.
    causes = [part[kind] for kind in ("in_loss", "what") for part in found]
    what = next(cause for cause in causes if cause is not None)
    rows = [{"rank": rank} | row for rank, part in enumerate(found) for row in part["rows"]]
    raise Divergence(
        f"{what} at optimizer step {step}, and the run stops; the last good checkpoint is kept. Try a lower "
        "optimization.lr, gradient clipping (trainer.gradient_clip_val: 1.0), or a larger tau",
        {
            "what": what,
            "gradient_norms": norms,
            **_merged(found),
            "rows": sorted(rows, key=lambda row: row["finite"]),
        },
    )


def check_sampled(logprobs: Float[Tensor, "B T"], module: nn.Module, *, step: int, strategy: Strategy) -> None:
    """Stop before what a broken policy has sampled is scored, learned from or reported. All ranks stop together.

    Args:
        logprobs: of the tokens that this rank has sampled, nats; 0 at padding.
        module: whose parameters the report speaks of.
        step: optimizer steps taken so far.
        strategy: the trainer's, by which ranks agree.

    Raises:
        Divergence: a log-probability is not finite.
    """
    if not strategy.reduce_boolean_decision(not all_finite(logprobs), all=False):
        return
    what, broken = "log-probabilities of sampled tokens are not finite", _merged(everywhere(broken_parts(module)))
    weights = broken["parameters_not_finite"]
    where = f"in weights, say {weights[0]}" if weights else "though all weights are"
    raise Divergence(
        f"{what} after optimizer step {step}, {where}, and the run stops; checkpoints are kept. Try a lower "
        "optimization.lr, or look at the model if no step was taken",
        {"what": what} | broken,
    )


def broken_parts(module: nn.Module) -> dict[str, Any]:
    """Names of parameters, and of gradients, that are not finite (in this rank's shard where they are sharded)."""
    named = list(module.named_parameters())
    parameters = [name for name, p in named if not all_finite(p)]
    gradients = [name for name, p in named if p.grad is not None and not all_finite(p.grad)]
    return dict(zip(BROKEN, (parameters, gradients), strict=True))


def _merged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What `broken_parts` found on all ranks."""
    return {kind: sorted({name for part in found for name in part[kind]}) for kind in BROKEN}


def all_finite(x: Tensor) -> bool:
    """Whether all numbers are finite, those of this rank's shard where it is sharded."""
    return bool((x.to_local() if isinstance(x, DTensor) else x).isfinite().all())


def _rows(part: Evaluated, micro: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """One dict a row: its texts, and what the loss was made of."""
    experience, mask = part.batch.experience, part.batch.experience.mask
    quantities = {
        "log_ratio": part.logprobs - experience.logprobs,
        "values": part.values,
        "old_values": experience.values,
        "advantages": experience.advantages,
        "returns": experience.returns,
        "losses": part.losses,
    }
    kl = masked_sum(part.logprobs - experience.ref_logprobs, mask, dim=1).tolist()
    prompts, completions = _texts(experience.sequences, tokenizer)
    rows = []
    for i, row in enumerate(part.batch.rows.tolist()):
        spreads = {name: _spread(x[i][mask[i]]) for name, x in quantities.items()}
        rows.append(
            {
                "micro_batch": micro,
                "row": row,
                "finite": math.isfinite(kl[i]) and not any(spread["not_finite"] for spread in spreads.values()),
                "prompt": prompts[i],
                "completion": completions[i],
                "tokens": int(mask[i].sum()),
                "score": float(part.scores[row]),
                "kl": kl[i],
                **spreads,
            }
        )
    return rows


def _texts(sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    pairs = ((sequences.prompt_tokens, sequences.prompt_mask), (sequences.tokens, sequences.mask))
    prompts, completions = (
        tokenizer.batch_decode([row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)])
        for tokens, mask in pairs
    )
    return prompts, completions


def _spread(x: Float[Tensor, " N"]) -> dict[str, Any]:
    """Least, mean and greatest of the finite numbers, how many are not finite, and where the first of those stands."""
    good, bad = x[x.isfinite()], (~x.isfinite()).nonzero()
    spread: dict[str, Any] = {"min": None, "mean": None, "max": None}
    if len(good):
        spread = {"min": float(good.min()), "mean": float(good.mean()), "max": float(good.max())}
    return spread | {"not_finite": len(bad), "first_not_finite": int(bad[0]) if len(bad) else None}
