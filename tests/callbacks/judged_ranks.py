"""A run with a judge, to be started as a program on several processes: `python judged_ranks.py MODEL OUT DEVICES`."""

import json
import sys
from pathlib import Path

# The program is started from anywhere, and Lightning starts it once more for each further rank.
sys.path.insert(0, str(Path(__file__).parents[1]))

from judges.small import SmallJudge
from klqlit.callbacks.judged import JudgedWinRate
from runs import ListSource, make_data, make_module, make_trainer, questions


def run(model: str, out: str, devices: int) -> None:
    """One phase with validation; each rank writes what it logged and what its judge was asked."""
    judge = SmallJudge()
    source = ListSource(questions(20), [f"held out {i}?" for i in range(7)])
    data = make_data(source=source, rollouts=16, validation_prompts=9, validation_batch_size=2)
    trainer = make_trainer(
        out,
        JudgedWinRate(judge, max_prompts=5),
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
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
