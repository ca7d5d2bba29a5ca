"""Seconds and memory of one update: klqlit's KLQ and PPO, the PPO trainer of TRL, and a plain PyTorch loop.

    python benchmarks/step_time.py [--workloads W1 W2 W1-eos W2-eos] [--rounds 5] [--out runs/step_time]

All arms read the same models and prompts, and take turns, each in a process of its own. TRL gets a virtual environment,
made at the first run. What other processes use of the machine is measured meanwhile, and only updates that they left
alone count. A run of each arm first counts what it computes. Writes step_time.json, which keeps what it has of other
workloads, and prints the tables; `--page docs/performance.md` also puts them there.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from step import arms, summary, workloads
from step.arguments import positive_int
from step.arms import Arm
from step.page import fill, provenance
from step.workloads import Workload

HAZARD = 0.05
WORKLOADS = {
    "W1": workloads.W1,
    "W2": workloads.W2,
    "W1-eos": replace(workloads.W1, name="W1-eos", hazard=HAZARD),
    "W2-eos": replace(workloads.W2, name="W2-eos", hazard=HAZARD),
    "tiny": workloads.TINY,
}
PEER_VENV = Path.home() / ".cache" / "klqlit" / f"trl-{arms.PEER_VERSION}"


def main() -> None:
    """Run the rounds, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["W1", "W2", "W1-eos", "W2-eos"])
    parser.add_argument("--rounds", type=positive_int, default=5, help="turns of each arm")
    parser.add_argument("--updates", type=positive_int, default=4, help="updates a turn, after one to warm up")
    parser.add_argument("--threads", type=positive_int, default=2, help="of torch, in every arm")
    parser.add_argument("--peer_venv", type=Path, default=PEER_VENV, help="virtual environment of TRL")
    parser.add_argument("--skip_peer", action="store_true", help="without TRL")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--out", type=Path, default=Path("runs/step_time"), help="folder of step_time.json")
    parser.add_argument("--page", type=Path, help="page that holds the generated section")
    arguments = parser.parse_args()
    others = [arms.PLAIN] if arguments.skip_peer else [arms.peer(arguments.peer_venv), arms.PLAIN]
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = arguments.out / "step_time.json"
    measured: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    for name in arguments.workloads:
        made, found = provenance(), compare(WORKLOADS[name], [*others, arms.KLQ, arms.PPO], arguments)
        measured[name] = {"provenance": made, **found}
        written.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    text = summary.markdown({name: measured[name] for name in WORKLOADS if name in measured})
    print(text)
    if arguments.page:
        fill(arguments.page, "step_time", text)


def compare(workload: Workload, contestants: list[Arm], arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one workload."""
    clocked = replace(arms.KLQ, name="klqlit KLQ with clocks", options=(*arms.KLQ.options, "--overhead"))
    updates = arguments.updates + 1
    runs: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in [*contestants, clocked]}
    with tempfile.TemporaryDirectory() as scratch:
        directory = workloads.write(workload, Path(scratch), prompts=workload.rollouts * updates)
        work = {arm.name: count(arm, directory, arguments.threads) for arm in contestants}
        for turn in range(arguments.rounds):
            for arm in [*contestants, clocked]:
                arms.wait_for_quiet(arguments.patience, summary.CLEAN)
                run = arm.run(directory, updates=updates, threads=arguments.threads)
                runs[arm.name].append(run)
                print(workload.name, turn, arm.name, line(run), flush=True)
    found = {name: summary.summarise(runs[name], workload.rollouts) for name in work}
    return {
        "workload": asdict(workload),
        "summary": found,
        "ratios": ratios([arm.name for arm in contestants], runs, found),
        "work": work,
        "overhead": summary.overhead(runs[clocked.name]),
        "runs": runs,
    }


def count(arm: Arm, directory: Path, threads: int) -> dict[str, Any]:
    """What the arm computes in its first update."""
    work = arm.run(directory, updates=1, threads=threads, count=True)["rows"][0]["work"]
    return {name: value for name, value in work.items() if name != "products"}


def ratios(names: list[str], runs: dict[str, Any], found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every other arm by each of klqlit's."""
    ours = [name for name in names if name.startswith("klqlit")]
    return {
        f"{other} / {own}": {
            "time": summary.ratios(runs[other], runs[own]),
            "memory": found[other]["peak_memory_mb"] / found[own]["peak_memory_mb"],
        }
        for other in names
        if other not in ours
        for own in ours
    }


def line(run: dict[str, Any]) -> str:
    """A turn in short."""
    each = ", ".join(
        f"{row['total']:.2f} s ({row['cpu']:.2f} s CPU, others {row['others']:.0%})" for row in run["rows"][1:]
    )
    return f"{each}, peak {run['peak_memory_mb']:.0f} MB"


if __name__ == "__main__":
    main()
