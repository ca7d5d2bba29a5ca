"""Lightning's CLI with this project's defaults: a run folder, resuming, one-line errors."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, final

import lightning as L
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from transformers.utils import logging as transformers_logging

from klqlit.algorithms.base import RLHFModule
from klqlit.callbacks.completions import CompletionWriter
from klqlit.callbacks.critic_record import CriticRecord
from klqlit.callbacks.divergence_report import DivergenceReport
from klqlit.callbacks.export import Export
from klqlit.callbacks.final_checkpoint import FinalCheckpoint
from klqlit.callbacks.progress import Progress
from klqlit.callbacks.run_record import RunRecord
from klqlit.callbacks.save_guard import SaveGuard
from klqlit.loggers import JSONLinesLogger
from klqlit.models.language_model import LanguageModel
from klqlit.option_errors import explain

TRAINER_DEFAULTS = {
    # Metrics and running statistics are in double precision, which Apple's MPS does not have.
    "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
    "devices": 1,
    "num_sanity_val_steps": 0,  # a sanity check would sample from a policy that the run has not started
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "max_epochs": -1,
}

NOISE = (
    ".*does not have many workers.*",  # tokenised rows are in memory: there is nothing for workers to do
    ".*isinstance.treespec, LeafSpec.*",
    ".*Checkpoint directory .* exists.*",  # starting again in the same folder is how a run continues
    ".*sync_dist=True.*",  # what is logged is the same on all ranks already
    ".*args parameter is intended to run from within Python.*",
)


@final
class Parser(LightningArgumentParser):
    """Reports an error in one line that names the option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message) from ex


@final
class CommandLine(LightningCLI):
    """Builds trainer, model and data from configuration files and options."""

    def __init__(self, command: str, options: list[str]) -> None:
        self.command = command
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            args=options,
            seed_everything_default=1,
            auto_configure_optimizers=False,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfigCallback if command == "fit" else None,
            # Starting again in the same folder is how a run continues.
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "prog": f"python -m klqlit {command}",
                "allow_abbrev": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, default="runs/run", help="folder for all that the run writes")
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to use instead of the run folder's newest"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        # Two are kept, so that a torn one never leaves a run with none.
        parser.set_defaults({"checkpoint.save_top_k": 2, "checkpoint.monitor": "step", "checkpoint.mode": "max"})
        # With the validation, as is Lightning's default, `every_n_epochs` would be ignored between two of them.
        parser.set_defaults({"checkpoint.save_on_train_epoch_end": True})
        parser.set_defaults({"checkpoint.filename": "step-{step}", "checkpoint.auto_insert_metric_name": False})
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)
        parser.link_arguments("run_dir", "trainer.default_root_dir")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.command == "plan":  # nothing is trained: only the precision counts
            alone = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
            return super().instantiate_trainer(callbacks=[], logger=False, **alone)
        run_dir = self.config["run_dir"]
        extra: list[L.Callback] = [Progress()]
        if self.command == "fit":
            # The run's record comes last: a run is finished when its model is exported.
            extra += [DivergenceReport(), SaveGuard(checkpoint_folder(run_dir))]
            extra += [FinalCheckpoint(checkpoint_folder(run_dir)), Export(), RunRecord()]
        if self.command == "fit" and isinstance(self.model, RLHFModule):
            extra.append(CriticRecord())
        if self.command == "predict":
            extra.append(CompletionWriter(f"{run_dir}/completions.jsonl"))
        configured = self._get(self.config_init, "trainer")["callbacks"] or []
        loggers = [
            TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False),
            JSONLinesLogger(f"{run_dir}/metrics.jsonl"),
        ]
        return super().instantiate_trainer(
            callbacks=[*configured, *extra], logger=loggers if self.command == "fit" else False, **kwargs
        )


def run(command: str, options: list[str]) -> None:
    """Parse the options, build what they name, and run the command.

    Raises:
        ValueError: an option, file, model or row is unusable.
    """
    quieten()
    # LanguageModel is final, but a function may build one: `class_path: klqlit.models.scratch.new_language_model`.
    set_parsing_settings(subclasses_enabled=[LanguageModel])
    try:
        cli = CommandLine(command, options)
    except ValueError as error:
        raise ValueError(explain(str(error))) from error
    checkpoint = chosen_checkpoint(cli.config["ckpt_path"], cli.config["run_dir"])
    if command == "predict" and not isinstance(cli.model, RLHFModule):
        raise ValueError(f"predict writes a policy's completions, and {type(cli.model).__name__} has no policy")
    if checkpoint:
        rank_zero_info(f"{'continuing from' if command == 'fit' else 'using the weights of'} {checkpoint}")
    elif command != "fit":
        rank_zero_info(f"there is no checkpoint in {cli.config['run_dir']}: using the weights the model starts from")
    shared: dict[str, Any] = {"datamodule": cli.datamodule, "ckpt_path": checkpoint, "weights_only": True}
    if command == "predict":
        cli.trainer.predict(cli.model, return_predictions=False, **shared)
    else:
        entries: dict[str, Callable[..., Any]] = {
            "fit": cli.trainer.fit,
            "validate": cli.trainer.validate,
            "test": cli.trainer.test,
        }
        entries[command](cli.model, **shared)


def quieten() -> None:
    """Keep what libraries say of themselves out of the run's output."""
    for pattern in NOISE:
        warnings.filterwarnings("ignore", pattern)
    transformers_logging.disable_progress_bar()
    chatter = ("GPU available", "TPU available", "💡 Tip", "`Trainer.fit` stopped", "Restor", "Loading `train_")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(chatter)
    )


def checkpoint_folder(run_dir: str) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(run_dir) / "checkpoints")


def chosen_checkpoint(ckpt_path: str | None, run_dir: str) -> str | None:
    """The checkpoint the user names, else the run folder's newest, if there is any.

    Raises:
        ValueError: there is no file at `ckpt_path`.
    """
    if ckpt_path is None:
        return newest_checkpoint(run_dir)
    if not Path(ckpt_path).exists():
        raise ValueError(f"there is no checkpoint at ckpt_path={ckpt_path!r}; leave it out for the run folder's newest")
    return ckpt_path


def newest_checkpoint(run_dir: str) -> str | None:
    """The checkpoint with the most steps in a run's folder, if there is any."""
    found = Path(checkpoint_folder(run_dir)).glob("step-*.ckpt")
    steps = {int(path.stem.removeprefix("step-")): str(path) for path in found if path.stem[5:].isdigit()}
    return steps[max(steps)] if steps else None
