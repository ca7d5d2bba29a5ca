"""A run on two processes in which one rank leaves the numbers: `python divergence.py MODEL OUT KIND`."""

import math
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from klqlit.callbacks.divergence_report import DivergenceReport
from klqlit.rewards.function import FunctionReward
from runs import make_data, make_module, make_trainer, vowels


class Spoil(L.Callback):
    """On the second rank alone: a loss without end, of finite gradient."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2:
            batch.experience.returns[0, 0] = math.inf


def run(model: str, out: str, kind: str) -> None:
    """Train until one rank's score, or loss, is not finite."""
    callbacks: list[L.Callback] = [DivergenceReport()] + ([Spoil()] if kind == "loss" else [])
    trainer = make_trainer(out, *callbacks, devices=2, strategy="ddp")

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        scores = vowels(prompts, completions)
        return [math.nan, *scores[1:]] if kind == "score" and trainer.global_rank == 1 else scores

    torch.set_num_threads(1)
    trainer.fit(make_module(model, reward=FunctionReward(reward)), make_data())


if __name__ == "__main__":
    run(*sys.argv[1:])
