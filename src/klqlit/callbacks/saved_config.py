"""The configuration of a run, beside what the run writes."""

from pathlib import Path
from typing import final

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from klqlit.callbacks.fast_dev_run import is_fast_dev_run
from klqlit.files import replace_json
from klqlit.redaction import HIDDEN, redacted


@final
class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder: every setting, but no key and no password.

    With the trainer's `fast_dev_run`, which leaves nothing behind, it does not.
    """

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if is_fast_dev_run(trainer):
            return
        config = self.config.clone()
        config.pop("resume", None)  # how this start began; other commands, which read the file too, have no such option
        text = self.parser.dump(config, skip_unset=False, skip_validation=True)
        settings = yaml.safe_load(text)
        safe = redacted(settings)
        if safe != settings:
            text = yaml.safe_dump(safe, sort_keys=False)
            rank_zero_warn(
                f"the configuration holds a key or a password: {self.config_filename} has {HIDDEN} in its place, and "
                "who starts the run again gives it again. Better leave it in an environment variable"
            )
        replace_json(Path(trainer.default_root_dir) / self.config_filename, text)
