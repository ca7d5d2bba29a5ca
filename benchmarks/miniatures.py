"""KLQ against PPO on a miniature task over several seeds, with the same budget: J on held-out prompts with intervals.

    python benchmarks/miniatures.py --task mini_hh --seeds 5

Every run starts from the same SFT policy and reward model; a seed changes the prompt order and the sampling. Finished
runs are not repeated. Prints a Markdown table and writes it beside the runs, with the raw numbers as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from klqlit.reports.intervals import over_seeds
from quickstart import ROOT, last, run_stage, starting_models

ALGORITHMS = ("klq", "ppo")
COLUMNS = {
    "val/objective/J": "J",
    "val/reward/score": "score",
    "val/reward/gold": "gold score",
    "val/kl/sequence": "KL, nats",
    "val/win_rate/gold": "wins against SFT by gold",
}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="mini_hh", choices=["mini_hh", "mini_tldr", "mini_sums"])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each algorithm")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("options", nargs="*", help="overrides for all runs, such as trainer.max_epochs=20")
    arguments = parser.parse_args()
    runs = arguments.out / arguments.task
    for stage in ("sft", "reward"):
        run_stage(arguments.task, stage, runs)
    cells = [(algorithm, seed) for seed in range(1, arguments.seeds + 1) for algorithm in ALGORITHMS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(
            pool.map(lambda cell: train(runs, runs / "seeds" / "{}-{}".format(*cell), *cell, arguments.options), cells)
        )
    seeds = range(1, arguments.seeds + 1)
    results = {name: [measure(runs, f"seeds/{name}-{seed}") for seed in seeds] for name in ALGORITHMS}
    (runs / "seeds.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = as_markdown(results)
    (runs / "seeds.md").write_text(table, encoding="utf-8")
    print(table)


def train(runs: Path, folder: Path, algorithm: str, seed: int, options: list[str]) -> None:
    """One run of the task in `runs`, in a process of its own, on one thread, unless it was finished before."""
    if (folder / "model").is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"--config={ROOT / 'configs' / f'{runs.name}_{algorithm}.yaml'}",
        f"--run_dir={folder}",
        f"--seed_everything={seed}",
        *(f"--{name}={path}" for name, path in starting_models(runs).items()),
        *(f"--{option}" for option in options),
    ]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-m", "klqlit", "fit", *arguments],
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    print(f"{folder.name}: done", flush=True)


def measure(runs: Path, folder: str) -> dict[str, float]:
    """The last validation of a finished run in `runs`, and its seconds per phase."""
    row = last(runs, folder, "val/objective/J")
    times = last(runs, folder, "time/optimization")
    seconds = sum(times[f"time/{stage}"] for stage in ("generation", "scoring", "optimization"))
    return {name: row[name] for name in (*COLUMNS, "val/reference/score")} | {"seconds": seconds}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval by Student's t; the half-width of one value is unknown."""
    found = over_seeds(values)
    return found.mean, float("nan") if found.half is None else found.half


def as_markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """One row an algorithm, and their difference paired by seed."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---|" + "---|" * len(COLUMNS)]
    for algorithm, rows in results.items():
        cells = ["{:.3f} ± {:.3f}".format(*interval([row[name] for row in rows])) for name in COLUMNS]
        lines.append(f"| {algorithm.upper()} | {' | '.join(cells)} |")
    pairs = list(zip(*results.values(), strict=True))
    cells = ["{:+.3f} ± {:.3f}".format(*interval([a[name] - b[name] for a, b in pairs])) for name in COLUMNS]
    lines.append(f"| KLQ − PPO, paired | {' | '.join(cells)} |")
    start = mean(row["val/reference/score"] for row in results["klq"])
    seeds = len(results["klq"])
    note = f"Mean and 95 % interval over {seeds} seeds, held-out prompts. The SFT policy's J is its score, {start:.3f}."
    return "\n".join([*lines, "", note, ""])


if __name__ == "__main__":
    main()
