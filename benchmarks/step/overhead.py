"""What an update of klqlit spends outside the work of its models, piece by piece.

Functions of klqlit and torch are wrapped with clocks. A clock stands while a wrapped function inside runs, so the
pieces add up to the update; what no wrapped function claims is Lightning's loop and all the rest.
"""

import functools
import time
from collections import defaultdict
from typing import Any, final

import torch
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch.optim import Optimizer, adam

from klqlit.algorithms import base
from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.ppo import PPO
from klqlit.callbacks.progress import Progress
from klqlit.data.online import OnlineDataModule
from klqlit.loggers import JSONLinesLogger
from klqlit.rewards.model import RewardModel
from klqlit.rollout.sampling import Sampler
from klqlit.types import Experience

MODEL_WORK = ("sampling", "forward passes", "backward passes", "optimizer")
"""Pieces that every implementation has; all others are overhead."""
REST = "Lightning's loop and all else"

PIECES: dict[str, list[tuple[Any, str]]] = {
    "sampling": [(Sampler, "sample")],
    "forward passes": [
        (RLHFModule, "evaluate"),
        (base, "reference_logprobs"),
        (base, "critic_values"),
        (RewardModel, "_score"),
    ],
    "backward passes": [(torch.Tensor, "backward")],
    "optimizer": [(adam, "adam"), (adam.Adam, "_init_group"), (Optimizer, "zero_grad")],
    "prompts": [(OnlineDataModule, "_phase_prompts")],
    "responses to text": [(Sampler, "texts")],
    "text to the reward model's tokens": [(RewardModel, "forward")],
    "bookkeeping of the rollout": [(RLHFModule, "collect")],
    "metrics of the rollout": [(RLHFModule, "_measure")],
    "targets and losses": [(KLQ, "targets"), (PPO, "targets"), (KLQ, "loss"), (PPO, "loss")],
    "dealing minibatches": [(Experience, "select")],
    "metrics and checks of a step": [(RLHFModule, "training_step")],
    "gradient norms": [(RLHFModule, "on_before_optimizer_step")],
    "logging": [
        (RLHFModule, "on_train_epoch_end"),
        (TensorBoardLogger, "log_metrics"),
        (JSONLinesLogger, "log_metrics"),
    ],
    "progress": [(Progress, "on_train_epoch_start"), (Progress, "on_train_batch_start")],
}


@final
class SelfTimes:
    """Wraps the functions for good; one per process."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._running = [REST]
        self._since = time.perf_counter()
        for piece, functions in PIECES.items():
            for owner, name in functions:
                setattr(owner, name, self._timed(piece, vars(owner)[name]))

    def lap(self) -> dict[str, float]:
        """Seconds by piece since the last lap."""
        self._book()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def _timed(self, piece: str, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._book()
            self._running.append(piece)
            try:
                return function(*args, **kwargs)
            finally:
                self._book()
                self._running.pop()

        return timed

    def _book(self) -> None:
        """The time until now is that of the piece under way."""
        now = time.perf_counter()
        self._seconds[self._running[-1]] += now - self._since
        self._since = now


def share(rows: list[dict[str, Any]]) -> float:
    """Overhead as a share of the update, over rows with `parts`."""
    total = sum(sum(row["parts"].values()) for row in rows)
    work = sum(row["parts"].get(piece, 0.0) for row in rows for piece in MODEL_WORK)
    return 1 - work / total
