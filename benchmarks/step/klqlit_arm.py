"""klqlit's KLQ or PPO, with data module, trainer, loggers, metrics and progress as in a run from the command line."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, final

import lightning as L
import transformers
from lightning.pytorch.loggers import TensorBoardLogger

from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO
from klqlit.callbacks.progress import Progress
from klqlit.data.online import OnlineDataModule
from klqlit.data.source import Row, Source, Split, TokenCounter
from klqlit.loggers import JSONLinesLogger
from klqlit.models.policy import LanguagePolicy
from klqlit.rewards.model import RewardModel
from klqlit.rollout.sampling import Sampler
from step.arguments import parse
from step.measuring import Updates
from step.overhead import SelfTimes
from step.workloads import Workload, as_text, read_prompts

ALGORITHMS: dict[str, type[RLHFModule]] = {"KLQ": KLQ, "PPO": PPO}


@final
class WrittenPrompts(Source):
    """The workload's prompts as text."""

    def __init__(self, directory: Path) -> None:
        self.texts = [as_text(prompt) for prompt in read_prompts(directory)]

    def rows(self, split: Split) -> list[Row]:
        return [{"prompt": text} for text in (self.texts if split == "train" else self.texts[:2])]

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        raise AssertionError("all prompts have the length asked for")


@final
class Clock(L.Callback):
    """Marks updates and their stages at the same places as in the other arms.

    Scoring lasts until the first minibatch, so targets and metrics of the rollout belong to it; optimization lasts from
    the first minibatch to the last.
    """

    def __init__(self, updates: Updates, parts: SelfTimes | None) -> None:
        self.updates = updates
        self.parts = parts

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        start = module.stopwatch.start

        def marked(stage: str) -> None:
            if stage in ("generation", "scoring"):
                self.updates.stage(stage)
            start(stage)

        module.stopwatch.start = marked
        self.updates.begin()
        if self.parts is not None:
            self.parts.lap()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.updates.stage("optimization")

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == trainer.num_training_batches - 1:
            self.updates.stage(None)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._end(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._end(trainer)

    def _end(self, trainer: L.Trainer) -> None:
        parts = {} if self.parts is None else {"parts": self.parts.lap()}
        self.updates.end(length=float(trainer.callback_metrics["policy/length"]), **parts)


def main() -> None:
    """Train, and write the rows."""
    arguments = parse(tuple(ALGORITHMS))
    quieten()
    parts = SelfTimes() if arguments.overhead else None
    with tempfile.TemporaryDirectory() as scratch:
        workload = Workload.load(arguments.directory / "workload.json")
        module = make_module(ALGORITHMS[arguments.algorithm], workload, arguments.directory)
        updates = Updates(count=arguments.count)
        devices = {"accelerator": "cpu", "devices": arguments.processes}
        if arguments.processes > 1:
            devices["strategy"] = "ddp"
        trainer = make_trainer(scratch, arguments.updates, Clock(updates, parts), **devices)
        trainer.fit(module, make_data(workload, arguments.directory))
    if not trainer.is_global_zero:
        return
    updates.write(
        arguments.out,
        arm=f"klqlit {arguments.algorithm}",
        ranks=trainer.world_size,
        versions={"lightning": L.__version__, "transformers": transformers.__version__},
        optimizer=f"{type(trainer.optimizers[0]).__name__}, fused={trainer.optimizers[0].defaults['fused']}",
    )


def quieten() -> None:
    """Warnings about what is meant here."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def make_module(
    algorithm: type[RLHFModule], workload: Workload, directory: Path, *, frozen_dtype: str = "float32", **options: Any
) -> RLHFModule:
    """Everything at its default but the sizes and the learning rate."""
    return algorithm(
        policy=LanguagePolicy(str(directory / "policy")),
        reward=RewardModel(str(directory / "reward"), dtype=frozen_dtype),
        sampler=Sampler(response_length=workload.response_tokens),
        optimization=Optimization(lr=1e-6),
        **options,
    )


def make_data(workload: Workload, directory: Path) -> OnlineDataModule:
    """Rollouts, minibatches and epochs of the workload."""
    return OnlineDataModule(
        WrittenPrompts(directory),
        rollouts=workload.rollouts,
        minibatches=workload.minibatches,
        epochs=workload.epochs,
        max_prompt_tokens=workload.prompt_tokens,
    )


def make_trainer(scratch: str, updates: int, clock: Clock, **options: Any) -> L.Trainer:
    """As the command line makes it, without validation and checkpoints: no other arm has them."""
    return L.Trainer(
        max_epochs=updates,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        default_root_dir=scratch,
        callbacks=[Progress(), clock],
        logger=[
            TensorBoardLogger(scratch, name="", version="", default_hp_metric=False),
            JSONLinesLogger(f"{scratch}/metrics.jsonl"),
        ],
        **options,
    )


if __name__ == "__main__":
    main()
