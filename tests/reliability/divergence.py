"""A run on two processes in which one rank leaves the numbers: `python divergence.py MODEL OUT KIND`."""

import math
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from klqlit.callbacks.divergence_report import DivergenceReport
from klqlit.models.policy import Policy
from klqlit.rewards.function import FunctionReward
from klqlit.rollout.sampling import Sampler
from klqlit.types import Prompts, Sample
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

    class Broken:
        """A sampler whose log-probabilities are no numbers on the second rank."""

        def __init__(self, sampler: Sampler) -> None:
            self.sampler = sampler

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sampler, name)

        def sample(self, policy: Policy, prompts: Prompts) -> Sample:
            sample = self.sampler.sample(policy, prompts)
            sample.logprobs[0, 0] = math.nan if trainer.global_rank == 1 else 0.0
            return sample

    torch.set_num_threads(1)
    module = make_module(model, reward=FunctionReward(reward))
    if kind == "sample":
        module.sampler = Broken(module.sampler)  # type: ignore[assignment]
    trainer.fit(module, make_data())


if __name__ == "__main__":
    run(*sys.argv[1:])
