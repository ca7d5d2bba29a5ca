"""What was at fault when a run left the numbers."""

import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, final

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities import rank_zero_info

from klqlit.algorithms.divergence import Divergence
from klqlit.files import replace_json
from klqlit.rollout.scoring import BadScores


@final
class DivergenceReport(L.Callback):
    """Writes ``divergence-step-N.json`` into the run's folder when a loss, gradient, weight or score is not finite.

    The file is strict JSON: a number that is not finite is the string "nan", "inf" or "-inf".
    """

    @rank_zero_only
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Divergence | BadScores):
            return
        report = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "algorithm": type(pl_module).__name__,
            "during": trainer.state.stage,
            "step": trainer.global_step,
            "phase": trainer.current_epoch,
            "ranks": trainer.world_size,
            "message": str(exception),
        }
        path = Path(trainer.default_root_dir) / f"divergence-step-{trainer.global_step}.json"
        replace_json(path, json.dumps(in_json(report | exception.report), indent=1, ensure_ascii=False) + "\n")
        rank_zero_info(f"the batch at fault is described in {path}")


def in_json(value: Any) -> Any:
    """The same with strings for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: in_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [in_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
