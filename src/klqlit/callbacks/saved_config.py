"""The configuration of a run, beside what the run writes."""

from pathlib import Path
from typing import final

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from klqlit.files import replace_json
from klqlit.redaction import HIDDEN, redacted


@final
class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder: every setting, but no key and no password."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_unset=False)
        settings = yaml.safe_load(text)
        safe = redacted(settings)
        if safe != settings:
            text = yaml.safe_dump(safe, sort_keys=False)
            rank_zero_warn(
                f"the configuration holds a key or a password: {self.config_filename} has {HIDDEN} in its place, and "
                "who starts the run again gives it again. Better leave it in an environment variable"
            )
        replace_json(Path(trainer.default_root_dir) / self.config_filename, text)
