"""A cell of the exact benchmark as a run's folder, for `python -m klqlit report`."""

import json
from pathlib import Path
from typing import Any

import yaml

from klqlit.callbacks.run_record import versions


def write_run_folder(row: dict[str, Any], budget: dict[str, int], lr: float, out: Path) -> None:
    """Configuration, metrics of each phase, and the optimum, under the names that the report knows.

    Args:
        row: a result of `exact_optimum.run`.
        budget: what the run could use.
        lr: learning rate.
        out: folder of the runs' folders.
    """
    folder = out / f"{row['variant'].replace(', ', '-').replace(' ', '')}-tau{row['tau']:g}-seed{row['seed']}"
    folder.mkdir(parents=True, exist_ok=True)
    steps = budget["phases"] * budget["epochs"] * budget["minibatches"]
    files = {
        "config.yaml": yaml.safe_dump(configuration(row, budget, lr), sort_keys=False),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in metrics(row, steps // budget["phases"])),
        "optimum.json": as_json({"tau": row["tau"], **row["best"], "reference": row["reference"]}),
        "label.json": as_json({"algorithm": row["variant"]}),
        "run.json": as_json({"state": "finished", "step": steps, "starts": [{"step": 0, "versions": versions()}]}),
    }
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")


def configuration(row: dict[str, Any], budget: dict[str, int], lr: float) -> dict[str, Any]:
    """What a configuration file would say of the cell."""
    algorithm = row["variant"].split(",")[0]
    return {
        "seed_everything": row["seed"],
        "trainer": {"max_epochs": budget["phases"]},
        "model": {
            "class_path": f"klqlit.{algorithm}",
            "init_args": {"tau": row["tau"], "optimization": {"lr": lr, "decay": "linear"}},
        },
        "data": {
            "class_path": "klqlit.OnlineDataModule",
            "init_args": {
                "source": {
                    "class_path": "klqlit.data.exact.ExactProblem",
                    "init_args": {"prompts": budget["prompts"], "seed": row["seed"]},
                },
                **{name: budget[name] for name in ("rollouts", "minibatches", "epochs")},
            },
        },
    }


def metrics(row: dict[str, Any], steps: int) -> list[dict[str, float]]:
    """The policy before each phase and at the end, as rollouts would measure it without sampling."""
    return [
        {"step": phase * steps, "epoch": phase, "objective/J": objective, "reward/score": score, "kl/sequence": kl}
        for phase, (objective, score, kl) in enumerate(zip(row["objective"], row["score"], row["kl"], strict=True))
    ]


def as_json(value: dict[str, Any]) -> str:
    """A small file."""
    return json.dumps(value, indent=1) + "\n"
