"""A run to be started as a program, on one or more processes.

`python ranks.py MODEL OUT ALGORITHM DEVICES [CHECKPOINT]`
"""

import sys
from pathlib import Path
from typing import Any, final

import lightning as L
import torch

# The program is started from anywhere, and Lightning starts it once more for each further rank.
sys.path.insert(0, str(Path(__file__).parents[1]))

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.ppo import PPO, AdaptiveKL
from klqlit.rewards.function import FunctionReward
from klqlit.rewards.shaping import RewardShaping
from klqlit.types import Prompts
from runs import ListSource, Watch, make_data, make_module, make_trainer, nothing, questions, weights


@final
class Seen(L.Callback):
    """Prompts that this rank was given, in training and in validation."""

    def __init__(self) -> None:
        self.training: list[list[int]] = []
        self.validation: list[int] = []

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        collect = module.collect

        def seen(prompts: Prompts) -> Any:
            self.training.append(prompts.columns["number"])
            return collect(prompts)

        module.collect = seen

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Prompts, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.validation += batch.columns["number"]


@final
class Save(L.Callback):
    """Saves the run in the middle of its second phase."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.world_size}.ckpt")


def run(model: str, out: str, algorithm: str, devices: int, checkpoint: str | None = None) -> None:
    """Two phases with validation; each rank writes what it saw."""
    torch.set_num_threads(1)
    watch, seen = Watch(), Seen()
    options: dict[str, Any] = {"shaping": RewardShaping(normalise=True), "gold": FunctionReward(nothing)}
    if algorithm == "ppo":
        options["adaptive_kl"] = AdaptiveKL(0.01, horizon=50)
    module = make_module(model, {"klq": KLQ, "ppo": PPO}[algorithm], **options)
    source = ListSource(questions(20), [f"held out {i}?" for i in range(7)])
    data = make_data(source=source, rollouts=16, validation_prompts=9, validation_batch_size=2)
    strategy = "ddp" if devices > 1 else "auto"
    trainer = make_trainer(out, watch, seen, Save(), devices=devices, strategy=strategy, limit_val_batches=1.0)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    result = {
        "training": seen.training,
        "validation": seen.validation,
        "gradients": [{name.removeprefix("module."): g for name, g in step.items()} for step in watch.gradients],
        "weights": weights(module),
        "metrics": watch.metrics,
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "tokens": [int(batch.experience.mask.sum()) for batch in watch.batches],
    }
    part = "whole" if checkpoint is None else "resumed"
    torch.save(result, Path(out) / f"{part}-{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
