"""A run with a judge, to be started as a program on several processes: `python judged_ranks.py MODEL OUT DEVICES`.

A fourth argument, "broken", makes the judge fail.
"""

import json
import sys
import time
from pathlib import Path

import lightning as L

# The program is started from anywhere, and Lightning starts it once more for each further rank.
sys.path.insert(0, str(Path(__file__).parents[1]))

from judges.small import SmallJudge
from klqlit.callbacks.judged import JudgedWinRate
from runs import ListSource, make_data, make_module, make_trainer, questions


class Witness(L.Callback):
    """Each rank writes the error it ends with. The first, whose end is the end of all, waits for the others' files."""

    def __init__(self, out: str, devices: int) -> None:
        self._files = [Path(out) / f"error-{rank}.txt" for rank in range(devices)]

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._files[trainer.global_rank].write_text(f"{type(exception).__name__}: {exception}")
        until = time.monotonic() + 20 * trainer.is_global_zero
        while time.monotonic() < until and not all(file.exists() for file in self._files):
            time.sleep(0.05)


def broken(question: object) -> str:
    raise KeyError("broken")


def run(model: str, out: str, devices: int, judge: SmallJudge) -> None:
    """One phase with validation; each rank writes what it logged and what its judge was asked."""
    source = ListSource(questions(20), [f"held out {i}?" for i in range(7)])
    data = make_data(source=source, rollouts=16, validation_prompts=9, validation_batch_size=2)
    trainer = make_trainer(
        out,
        JudgedWinRate(judge, max_prompts=5),
        Witness(out, devices),
        max_epochs=1,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        limit_val_batches=1.0,
    )
    trainer.fit(make_module(model), data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "judge" in name}
    asked = sorted({prompt for prompt, _, _ in judge.asked})
    (Path(out) / f"{devices}-{trainer.global_rank}.json").write_text(json.dumps({"logged": logged, "asked": asked}))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), SmallJudge(broken) if sys.argv[4:] == ["broken"] else SmallJudge())
