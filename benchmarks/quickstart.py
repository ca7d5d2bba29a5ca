"""The whole method on `mini_hh`: imitate, learn a reward, align with KLQ and with PPO, and look at the result.

    python benchmarks/quickstart.py [--task mini_hh] [--out runs] [--quick]

A stage whose model is there is not repeated, and one that was interrupted goes on where it was. Prints a table and
samples, and draws the curves.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
CURVES = {
    "reward/score": "score by the learned reward model",
    "reward/gold": "gold score (never trained on)",
    "kl/sequence": "KL to the SFT policy, nats a completion",
    "objective/J": "objective J = score − τ KL",
}
QUICK_RL = {
    "trainer.max_epochs": 4,
    "trainer.check_val_every_n_epoch": 2,
    "data.rollouts": 8,
    "data.validation_prompts": 8,
}
QUICK_SUPERVISED = {"data.source.size": 160, "data.source.validation_size": 32, "data.batch_size": 16}
QUICK = {"sft": QUICK_SUPERVISED, "reward": QUICK_SUPERVISED, "klq": QUICK_RL, "ppo": QUICK_RL}
COLORS = {"klq": "#0072b2", "ppo": "#d55e00"}


def main() -> None:
    """Run the stages, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="mini_hh", choices=["mini_hh", "mini_tldr", "mini_sums"])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--quick", action="store_true", help="sizes that learn nothing, to see that everything runs")
    arguments = parser.parse_args()
    runs = arguments.out / arguments.task
    try:
        run_stages(arguments.task, runs, quick=arguments.quick)
        report(arguments.task, runs)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        sys.exit(128 + signal.SIGINT)


def run_stages(task: str, runs: Path, *, quick: bool = False) -> None:
    """One after the other what builds upon what is before, and side by side what does not."""
    started = time.monotonic()
    for stage in ("sft", "reward"):
        run_stage(task, stage, runs, quick=quick)
    # Two small models on one thread each are faster than one after the other on two.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda algorithm: run_beside(task, algorithm, runs, quick=quick), ("klq", "ppo")))
    Console().print(f"all stages took {(time.monotonic() - started) / 60:.1f} minutes\n", highlight=False)


def run_stage(task: str, stage: str, runs: Path, *, quick: bool = False) -> None:
    """One `fit` with its progress bar, unless its model is there already."""
    if not announce(task, stage, runs):
        return
    with subprocess.Popen(command(task, stage, runs, quick=quick)) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reached it too, and it saves a checkpoint
            raise
    check(process.returncode, stage, [])


def run_beside(task: str, stage: str, runs: Path, *, quick: bool = False) -> None:
    """One `fit` on one thread, next to others: of what it prints, only the lines of progress are passed on."""
    if not announce(task, stage, runs):
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
    with subprocess.Popen(command(task, stage, runs, quick=quick), env=environment, **pipes) as process:
        lines = [show(stage, line.rstrip()) for line in process.stdout]
    check(process.returncode, stage, lines[-20:])


def check(status: int, stage: str, lines: list[str]) -> None:
    """End this program as a stage ended."""
    if status in (128 + signal.SIGINT, -signal.SIGINT):
        raise KeyboardInterrupt
    if status:
        sys.exit("\n".join([f"{stage} failed, with status {status}", *lines]))


def show(stage: str, line: str) -> str:
    """Print a line if it tells of progress; return it."""
    if line.startswith(("step ", "stopping ", "stopped ")) or "error" in line:
        Console().print(f"{stage}  {line}", highlight=False, soft_wrap=True)
    return line


def announce(task: str, stage: str, runs: Path) -> bool:
    """Say what comes; False where the stage's model is there already."""
    done = (runs / stage / "model").is_dir()
    Console().print(f"[bold]{task} {stage}[/bold]" + (": done before" if done else ""), highlight=False)
    return not done


def command(task: str, stage: str, runs: Path, *, quick: bool) -> list[str]:
    """The command line of a stage."""
    options = {"config": ROOT / "configs" / f"{task}_{stage}.yaml", "run_dir": runs / stage}
    if stage == "reward":
        options |= {"model.model.path": runs / "sft" / "model"}
    if stage in ("klq", "ppo"):
        options |= starting_models(runs)
    if quick:
        options |= QUICK[stage]
    return [sys.executable, "-m", "klqlit", "fit", *(f"--{name}={value}" for name, value in options.items())]


def starting_models(runs: Path) -> dict[str, Path]:
    """What the RL stages of a task start from; the reward of mini_sums is a program and has no path."""
    reward = {} if runs.name == "mini_sums" else {"model.reward.path": runs / "reward" / "model"}
    return {"model.policy.path": runs / "sft" / "model"} | reward


def report(task: str, runs: Path) -> None:
    """Table, figure and samples of finished runs."""
    console = Console()
    summary = summarise(runs)
    (runs / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print(results_table(task, summary))
    console.print(
        f"The reward model orders {summary['reward']['accuracy']:.1%} of held-out pairs rightly. "
        f"One standard deviation of the SFT policy's gold scores is {summary['sft']['gold_std']:.2f}.\n",
        highlight=False,
    )
    for row in samples(runs):
        console.print(row)
    draw(task, runs)
    console.print(f"figure: {runs / 'curves.png'}", highlight=False)


def metrics(runs: Path, stage: str) -> list[dict[str, Any]]:
    """What a run logged."""
    with (runs / stage / "metrics.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def summarise(runs: Path) -> dict[str, Any]:
    """The numbers of the table, from the last validation of each run."""
    summary: dict[str, Any] = {"reward": {"accuracy": last(runs, "reward", "val/accuracy")["val/accuracy"]}}
    for algorithm in ("klq", "ppo"):
        row = last(runs, algorithm, "val/win_rate/gold")
        summary["sft"] = {
            "score": row["val/reference/score"],
            "gold": row["val/reference/gold"],
            "gold_std": row["val/reference/gold_std"],
        }
        gain = (row["val/reward/gold"] - row["val/reference/gold"]) / row["val/reference/gold_std"]
        names = ("reward/score", "reward/gold", "win_rate/score", "win_rate/gold", "kl/sequence", "objective/J")
        summary[algorithm] = {name: row[f"val/{name}"] for name in names} | {"gain": gain}
    return summary


def last(runs: Path, stage: str, name: str) -> dict[str, Any]:
    """The last logged row that holds a metric."""
    return next(row for row in reversed(metrics(runs, stage)) if name in row)


def results_table(task: str, summary: dict[str, Any]) -> Table:
    """Held-out prompts: the policies beside the one they started from."""
    table = Table(title=f"{task}: held-out prompts")
    for name in ("", "score", "gold", "gold gain\nin SFT std", "wins by\nscore", "wins by\ngold", "KL\nnats", "J"):
        table.add_column(name, justify="right" if name else "left")
    sft = summary["sft"]
    table.add_row("SFT", f"{sft['score']:.2f}", f"{sft['gold']:.2f}", "", "", "", "0", f"{sft['score']:.2f}")
    for algorithm in ("klq", "ppo"):
        row = summary[algorithm]
        table.add_row(
            algorithm.upper(),
            f"{row['reward/score']:.2f}",
            f"{row['reward/gold']:.2f}",
            f"{row['gain']:+.2f}",
            f"{row['win_rate/score']:.1%}",
            f"{row['win_rate/gold']:.1%}",
            f"{row['kl/sequence']:.1f}",
            f"{row['objective/J']:.2f}",
        )
    return table


def samples(runs: Path, count: int = 4) -> list[Table]:
    """The same prompts answered before and after."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for algorithm in ("klq", "ppo"):
        with (runs / algorithm / "samples.jsonl").open(encoding="utf-8") as file:
            every = [json.loads(line) for line in file]
        rows[algorithm] = [row for row in every if row["step"] == every[-1]["step"]][:count]
    tables = []
    for klq, ppo in zip(rows["klq"], rows["ppo"], strict=True):
        table = Table(title=Text(" ".join(klq["prompt"].split())), title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column("gold", justify="right")
        table.add_row("SFT", Text(klq["reference"].strip()), f"{klq['reference_gold']:.2f}")
        table.add_row("KLQ", Text(klq["policy"].strip()), f"{klq['policy_gold']:.2f}")
        table.add_row("PPO", Text(ppo["policy"].strip()), f"{ppo['policy_gold']:.2f}")
        tables.append(table)
    return tables


def draw(task: str, runs: Path) -> None:
    """Score, gold score, KL and J against phases."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
        for algorithm, color in COLORS.items():
            rows = [row for row in metrics(runs, algorithm) if name in row]
            phases = [row["epoch"] + 1 for row in rows]
            axis.plot(phases, [row[name] for row in rows], color=color, label=algorithm.upper(), linewidth=1.8)
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("updates (rollout phases)")
    axes[0, 0].legend(frameon=False)
    figure.suptitle(f"{task}: KLQ and PPO from the same SFT policy and reward model", fontsize=12)
    figure.savefig(runs / "curves.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
