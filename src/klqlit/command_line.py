"""Lightning's CLI with this project's defaults: a run folder, resuming, one-line errors."""

import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn, final

import lightning as L
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from klqlit.algorithms.base import RLHFModule
from klqlit.callbacks.checkpoints import CheckpointNotWritten, Checkpoints, StreamedCheckpointIO
from klqlit.callbacks.completions import CompletionWriter
from klqlit.callbacks.critic_record import CriticRecord
from klqlit.callbacks.divergence_report import DivergenceReport
from klqlit.callbacks.export import Export
from klqlit.callbacks.options_record import OptionsRecord
from klqlit.callbacks.progress import Progress
from klqlit.callbacks.run_record import RunRecord
from klqlit.callbacks.save_guard import SaveGuard
from klqlit.callbacks.saved_config import SaveConfig
from klqlit.callbacks.stop_on_signal import StopOnSignal, Stopped
from klqlit.launching.devices import check_accelerator, check_processes
from klqlit.launching.loopback import with_loopback
from klqlit.launching.slurm import devices_in_job, requeue, with_environment
from klqlit.loggers import JSONLinesLogger
from klqlit.models.language_model import LanguageModel
from klqlit.options.config_files import check_configs, prepare_parser
from klqlit.options.errors import explain
from klqlit.options.factories import check_factories
from klqlit.ranks import is_first_process
from klqlit.redaction import redacted
from klqlit.resuming.checkpoint_checks import RestoreCheck, check_loops, check_weights, restoring
from klqlit.resuming.checkpoint_files import check_contents, examine
from klqlit.resuming.starting import AlreadyFinished, Resume, Start, begin, existing, flat
from klqlit.run_folder import check_writable, checkpoint_folder, newest_checkpoint
from klqlit.run_lock import locked

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
    ".*callbacks used to create the checkpoint.*",  # options that changed are named by `resuming`
    ".*intent is to load in a single process.*",  # a sharded checkpoint on one device
    ".*`srun` command is available.*",  # within a job the layout is checked
)


@final
class Parser(LightningArgumentParser):
    """Reports an error in one line that names the option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message) from ex


@final
class CommandLine(LightningCLI):
    """Builds trainer, model and data from configuration files and options."""

    def __init__(self, command: str, options: list[str], held: ExitStack | None) -> None:
        self.command = command
        self.held = held
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
            save_config_callback=SaveConfig if command == "fit" else None,
            save_config_kwargs={"save_to_log_dir": False},
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
        if self.command == "fit":
            parser.add_argument(
                "--resume",
                type=Resume,
                default="auto",
                help="auto: go on from the newest checkpoint in run_dir, if any; never: refuse to, if there is one",
            )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.link_arguments(
            "run_dir", "checkpoint.directory", compute_fn=lambda run_dir: str(checkpoint_folder(run_dir))
        )
        parser.link_arguments("run_dir", "trainer.default_root_dir")

    def before_instantiate_classes(self) -> None:
        check_factories(self.config)
        if self.command == "plan":
            return
        trainer = self.config["trainer"]
        check_accelerator(trainer["accelerator"])
        trainer["devices"] = devices_in_job(trainer["devices"], trainer["num_nodes"])
        check_processes(trainer["accelerator"], trainer["devices"])
        run_dir, ckpt_path = self.config["run_dir"], self.config["ckpt_path"]
        if self.command in ("fit", "predict"):
            check_writable(run_dir)
        if self.command == "fit":
            # Before it is read what is in the folder; the first rank alone writes there, or starts those who do.
            if self.held is not None and is_first_process():
                self.held.enter_context(locked(run_dir))
            self.options = flat(redacted(self.config.as_dict()))
            self.start = begin(self.options, run_dir=run_dir, ckpt_path=ckpt_path, resume=self.config["resume"])
        else:
            self.start = Start(checkpoint=existing(ckpt_path) if ckpt_path else newest_checkpoint(run_dir), step=0)
            if self.start.checkpoint:
                examine(self.start.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.command == "plan":  # nothing is trained: only the precision counts
            alone = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
            return super().instantiate_trainer(callbacks=[], logger=False, **alone)
        run_dir = self.config["run_dir"]
        self.restored = RestoreCheck()
        extra: list[L.Callback] = [Progress(), self.restored]
        if self.command == "fit":
            # A run is finished, in its record, when its model is exported.
            extra += [DivergenceReport(), SaveGuard(str(checkpoint_folder(run_dir)))]
            extra += [OptionsRecord(self.options), Export(), RunRecord()]
            extra.append(StopOnSignal(self._get(self.config_init, "checkpoint"), [requeue]))
        if self.command == "fit" and isinstance(self.model, RLHFModule):
            extra.append(CriticRecord())
        if self.command == "predict":
            extra.append(CompletionWriter(f"{run_dir}/completions.jsonl"))
        configured = self._get(self.config_init, "trainer")
        loggers = [
            # What an earlier start logged of the steps that are taken again is not shown twice.
            TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False, purge_step=self.start.step),
            JSONLinesLogger(f"{run_dir}/metrics.jsonl", purge_step=self.start.step),
        ]
        return super().instantiate_trainer(
            callbacks=[*(configured["callbacks"] or []), *extra],
            plugins=with_loopback(
                with_environment(with_streamed_checkpoints(configured["plugins"])), configured["num_nodes"]
            ),
            logger=loggers if self.command == "fit" else False,
            **kwargs,
        )


def run(command: str, options: list[str]) -> int:
    """Parse the options, build what they name, and run the command.

    Returns:
        The exit status: 0, or the one that a signal asks for.

    Raises:
        ValueError: an option, file, model or row is unusable, another run is in the folder, or the disk is full.
    """
    quieten()
    with ExitStack() as held:
        try:
            cli = read(command, options, held)
        except AlreadyFinished as finished:
            rank_zero_info(str(finished))
            return 0
        return _carry_out(cli)


def _carry_out(cli: CommandLine) -> int:
    command = cli.command
    checkpoint = cli.start.checkpoint
    if checkpoint:
        check_contents(checkpoint, training=command == "fit")
        check_weights(checkpoint, cli.model)
        if command == "fit":
            check_loops(checkpoint, cli.trainer)
    if command == "predict" and not isinstance(cli.model, RLHFModule):
        raise ValueError(f"predict writes a policy's completions, and {type(cli.model).__name__} has no policy")
    if checkpoint:
        rank_zero_info(f"{'continuing from' if command == 'fit' else 'using the weights of'} {checkpoint}")
    elif command != "fit":
        rank_zero_info(f"there is no checkpoint in {cli.config['run_dir']}: using the weights the model starts from")
    shared: dict[str, Any] = {"datamodule": cli.datamodule, "ckpt_path": checkpoint, "weights_only": True}
    entries: dict[str, Callable[..., Any]] = {
        "fit": cli.trainer.fit,
        "validate": cli.trainer.validate,
        "test": cli.trainer.test,
        "predict": partial(cli.trainer.predict, return_predictions=False),
    }
    try:
        with restoring(checkpoint, cli.restored):
            entries[command](cli.model, **shared)
    except Stopped as stopped:
        rank_zero_info(str(stopped))
        # Lightning ends all processes at once when one that it started reports a fault.
        return stopped.status if cli.trainer.is_global_zero else 0
    except CheckpointNotWritten as error:
        raise ValueError(str(error)) from error
    return 0


def read(command: str, options: list[str], held: ExitStack | None = None) -> CommandLine:
    """Parse the options, and build what they name.

    Args:
        command: what is to be done.
        options: of the command line.
        held: where the lock of a run's folder is put, to be given back when the run ends; by default there is none.

    Raises:
        ValueError: an option or a file is unusable, what it names cannot be built, or another run is in the folder.
        AlreadyFinished: there is nothing left to do.
    """
    # LanguageModel is final, but a function may build one: `class_path: klqlit.models.scratch.new_language_model`.
    set_parsing_settings(subclasses_enabled=[LanguageModel])
    prepare_parser()
    check_configs(options)
    try:
        return CommandLine(command, options, held)
    except RecursionError as error:
        raise ValueError("the configuration refers to itself without end: look for `${...}` and anchors") from error
    except (ValueError, OmegaConfBaseException) as error:
        raise ValueError(explain(str(error))) from error


def quieten() -> None:
    """Keep what libraries say of themselves out of the run's output."""
    for pattern in NOISE:
        warnings.filterwarnings("ignore", pattern)
    transformers_logging.disable_progress_bar()
    chatter = ("GPU available", "TPU available", "💡 Tip", "`Trainer.fit` stopped", "Restor", "Loading `train_")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(chatter)
    )


def with_streamed_checkpoints(configured: Any) -> list[Any]:
    """The trainer's plugins, with one of ours where none of them writes checkpoints."""
    plugins = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return plugins if any(isinstance(p, CheckpointIO) for p in plugins) else [*plugins, StreamedCheckpointIO()]
