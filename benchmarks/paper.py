"""The paper's comparison on the miniature tasks: KLQ against PPO over tau and seeds, judged, with a report.

    python benchmarks/paper.py [--tasks mini_hh] [--quick] [--out runs/paper]

For each task, each algorithm gets the learning rate of `GRID` with the highest J at the middle tau, on a seed of its
own and the same held-out prompts, and is then trained with that rate at every tau on every seed: same SFT policy,
reward model, prompts and number of rollouts for both. The completions of each pair of runs are judged by the task's
gold score. A run that diverges counts as such; it is not repeated. Everything that is finished is kept, so that an
interrupted benchmark goes on where it was.

Writes the tables as Markdown, the raw numbers as JSON, and the report as one HTML page.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klqlit.reports.comparisons import read_comparison
from klqlit.reports.intervals import Interval, crossed, over_seeds
from miniatures import ALGORITHMS, measure, train
from quickstart import QUICK_SUPERVISED, run_stage

GOLD = {"mini_hh": "MiniHHGold", "mini_tldr": "MiniTLDRGold", "mini_sums": "MiniSumsGold"}
TAUS = [0.1, 0.2, 0.4, 0.8, 1.6]
GRID = {"klq": [1e-4, 2e-4, 4e-4], "ppo": [1e-4, 2e-4, 4e-4]}
TUNING_SEED = 100
"""Not among the seeds that are reported."""

MEMORY = 1.5
"""GiB that a run may need at its peak; 1.0 was measured."""

FULL = {"trainer.max_epochs": 30, "trainer.check_val_every_n_epoch": 15}
QUICK = {
    "trainer.max_epochs": 4,
    "trainer.check_val_every_n_epoch": 2,
    "data.rollouts": 8,
    "data.validation_prompts": 16,
    "data.source.size": QUICK_SUPERVISED["data.source.size"],
    "data.source.validation_size": QUICK_SUPERVISED["data.source.validation_size"],
}


@dataclass(kw_only=True, slots=True, frozen=True)
class Plan:
    """What is compared, and the budget of each run."""

    tasks: list[str]
    taus: list[float]
    seeds: list[int]
    grid: dict[str, list[float]]
    options: dict[str, Any]
    jobs: int
    out: Path
    quick: bool

    @property
    def tuning_tau(self) -> float:
        """The middle one, at which learning rates are chosen."""
        return sorted(self.taus)[len(self.taus) // 2]


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """One training run of a task; the folder's name says which."""

    algorithm: str
    tau: float
    seed: int
    lr: float

    @property
    def folder(self) -> str:
        return f"runs/{self.algorithm}-tau{self.tau:g}-lr{self.lr:g}-seed{self.seed}"


def main() -> None:
    """Train what is missing, judge it, and write tables and report."""
    plan = planned()
    keep_to(plan)
    tables = [f"## {task}\n\n{compare(plan, task)}" for task in plan.tasks]
    (plan.out / "tables.md").write_text("\n".join(tables), encoding="utf-8")
    print("\n".join(tables))
    klqlit("report", *(plan.out / task for task in plan.tasks), "--out", plan.out / "report")


def keep_to(plan: Plan) -> None:
    """Refuse a folder whose runs had another budget: they would be taken for finished ones of this plan."""
    budget = {"options": plan.options, "grid": plan.grid, "tuned at tau": plan.tuning_tau, "quick": plan.quick}
    file = plan.out / "budget.json"
    if not file.is_file():
        plan.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(budget, indent=1) + "\n", encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != budget:
        sys.exit(f"--out {plan.out} holds runs of another budget, see {file}: give another folder")


def compare(plan: Plan, task: str) -> str:
    """All of one task; its table."""
    folder = plan.out / task
    for stage in ("sft", "reward"):
        run_stage(task, stage, folder, quick=plan.quick)
    rates = tune(plan, folder)
    runs = [
        Run(algorithm=algorithm, tau=tau, seed=seed, lr=rate)
        for tau in plan.taus
        for algorithm, rate in rates.items()
        for seed in plan.seeds
    ]
    train_all(plan, folder, runs)
    results = [gather(plan, folder, [run for run in runs if run.tau == tau], tau) for tau in plan.taus]
    (folder / "paper.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return as_markdown(results, len(plan.seeds))


def tune(plan: Plan, folder: Path) -> dict[str, float]:
    """The learning rate of each algorithm, by its J at the middle tau."""
    trials = {
        name: [Run(algorithm=name, tau=plan.tuning_tau, seed=TUNING_SEED, lr=lr) for lr in plan.grid[name]]
        for name in ALGORITHMS
    }
    # Where there is one rate, there is nothing to choose.
    every = [run for runs in trials.values() if len(runs) > 1 for run in runs]
    for run in every:
        (folder / run.folder).mkdir(parents=True, exist_ok=True)
        (folder / run.folder / "label.json").write_text(json.dumps({"role": "trial"}), encoding="utf-8")
    train_all(plan, folder, every)
    return {name: runs[0].lr if len(runs) == 1 else best_rate(folder, runs) for name, runs in trials.items()}


def train_all(plan: Plan, folder: Path, runs: list[Run]) -> None:
    """Runs side by side; one that diverges leaves a note."""

    def one(run: Run) -> None:
        if diverged(folder, run):
            return
        options = {"model.tau": run.tau, "model.optimization.lr": run.lr} | plan.options
        try:
            train(folder, folder / run.folder, run.algorithm, run.seed, [f"{k}={v}" for k, v in options.items()])
        except subprocess.CalledProcessError:
            if not diverged(folder, run):
                sys.exit(f"{folder / run.folder} failed; see log.txt there")
            print(f"{run.folder}: diverged", flush=True)

    side_by_side(plan, one, runs)


def side_by_side(plan: Plan, job: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """The results of jobs that run in processes of their own, in order."""
    with ThreadPoolExecutor(plan.jobs) as pool:
        return list(pool.map(job, items))


def diverged(folder: Path, run: Run) -> bool:
    """Whether a run stopped for a number that is not finite, by what it said."""
    log = folder / run.folder / "log.txt"
    return log.is_file() and "and the run stops" in log.read_text(encoding="utf-8")


def finished(folder: Path, run: Run) -> bool:
    """Whether a run came to its end."""
    return (folder / run.folder / "model").is_dir()


def best_rate(folder: Path, trials: list[Run]) -> float:
    """The learning rate of the highest J."""
    ends = {run.lr: measure(folder, run.folder)["val/objective/J"] for run in trials if finished(folder, run)}
    if not ends:
        sys.exit(f"every learning rate diverged in {folder}: {', '.join(run.folder for run in trials)}")
    return max(ends, key=lambda lr: ends[lr])


def gather(plan: Plan, folder: Path, runs: list[Run], tau: float) -> dict[str, Any]:
    """A tau's numbers: of each algorithm by seed, and the judged pairs."""
    by_seed = {seed: {run.algorithm: run for run in runs if run.seed == seed} for seed in plan.seeds}
    whole = {seed: pair for seed, pair in by_seed.items() if all(finished(folder, run) for run in pair.values())}
    judged = side_by_side(plan, lambda seed: judge(folder, whole[seed]), whole)
    return {
        "tau": tau,
        "lr": {run.algorithm: run.lr for run in runs},
        "diverged": {name: sum(not finished(folder, p[name]) for p in by_seed.values()) for name in ALGORITHMS},
        "measured": {name: [measure(folder, pair[name].folder) for pair in whole.values()] for name in ALGORITHMS},
        "judged": judged,
    }


def judge(folder: Path, pair: dict[str, Run]) -> dict[str, Any]:
    """KLQ's completions against PPO's under the gold score: verdicts by prompt, and the rate at equal length."""
    klq, ppo = (folder / pair[name].folder for name in ALGORITHMS)
    judged = folder / "judged"
    out = judged / f"tau{pair['klq'].tau:g}-seed{pair['klq'].seed}"
    if not (out / "judged.json").is_file():
        judge = ["--judge", "RewardJudge", "--judge.reward", GOLD[folder.name]]
        kept = ["--cache", judged / "judgments.sqlite", "--completions", judged / "completions"]
        klqlit("judge", "--a", klq, "--b", ppo, *judge, *kept, "--out", out)
    found = read_comparison(out, out.name)
    controlled = found.summary["statistics"]["length_controlled"]
    return {"verdicts": found.values(), "length_controlled": controlled and controlled["rate"]}


def klqlit(command: str, *arguments: Any) -> None:
    """Run a command of the package on one thread, quietly unless it fails."""
    whole = [sys.executable, "-m", "klqlit", command, *map(str, arguments)]
    done = subprocess.run(whole, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(whole)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def as_markdown(results: list[dict[str, Any]], seeds: int) -> str:
    """One row a tau: J of both, their difference paired by seed, KL, and who wins."""
    heads = [
        "τ",
        "J, KLQ",
        "J, PPO",
        "J, KLQ − PPO",
        "KL, KLQ",
        "KL, PPO",
        "KLQ wins",
        "length-controlled",
        "seeds",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in results:
        klq, ppo = ([run["val/objective/J"] for run in row["measured"][name]] for name in ALGORITHMS)
        kls = [[run["val/kl/sequence"] for run in row["measured"][name]] for name in ALGORITHMS]
        cells = [
            f"{row['tau']:g}",
            *map(number, (klq, ppo)),
            number([a - b for a, b in zip(klq, ppo, strict=True)], "+"),
            *map(number, kls),
            wins([judged["verdicts"] for judged in row["judged"]]),
            share([rate for judged in row["judged"] if (rate := judged["length_controlled"]) is not None]),
            f"{len(klq)}" + "".join(f", {n} of {name.upper()} diverged" for name, n in row["diverged"].items() if n),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    chosen = " and ".join(f"{rate:g} ({name.upper()})" for name, rate in results[0]["lr"].items())
    note = (
        f"Mean and 95 % interval over {seeds} seeds (less those of which a run diverged), held-out prompts. Learning "
        f"rate {chosen}, chosen with another seed on the same prompts at the middle τ. Wins are of KLQ's completions "
        "over PPO's by the gold score, ties half; their interval counts seeds and prompts as drawn, all others are "
        "Student's t over seeds."
    )
    return "\n".join([*lines, "", note, ""])


def number(values: list[float], sign: str = "") -> str:
    """Mean and half-width of the interval."""
    if not values:
        return "no run"
    found = over_seeds(values)
    return f"{found.mean:{sign}.2f}" + ("" if found.half is None else f" ± {found.half:.2f}")


def wins(seeds: list[dict[str, list[float]]]) -> str:
    """Win rate over seeds that are judged on the same prompts."""
    return percent(crossed(seeds).interval()) if any(seeds) else "no run"


def percent(interval: Interval) -> str:
    """A rate with its interval."""
    return f"{interval.mean:.1%}" + ("" if interval.half is None else f" ± {interval.half:.1%}")


def share(values: list[float]) -> str:
    """Mean and half-width of rates over seeds."""
    return percent(over_seeds(values)) if values else "no run"


def planned() -> Plan:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(GOLD), choices=list(GOLD))
    parser.add_argument("--taus", type=float, nargs="+", default=None, help=f"KL coefficients; {TAUS} if not given")
    parser.add_argument("--seeds", type=int, default=None, help="runs of each algorithm at each tau; 5 if not given")
    parser.add_argument("--jobs", type=int, default=None, help="runs at once; as cores and memory allow if not given")
    parser.add_argument("--memory", type=float, default=free_memory(), help="GiB that all runs together may use")
    parser.add_argument("--out", type=Path, default=None, help="folder of all; runs/paper, or runs/paper-quick")
    parser.add_argument("--quick", action="store_true", help="sizes that learn nothing, to see that everything runs")
    chosen = parser.parse_args()
    possible = max(1, int(chosen.memory / MEMORY))
    return Plan(
        tasks=chosen.tasks,
        taus=chosen.taus or ([0.1, 0.4] if chosen.quick else TAUS),
        seeds=list(range(1, 1 + (chosen.seeds or (2 if chosen.quick else 5)))),
        grid={name: rates[:1] for name, rates in GRID.items()} if chosen.quick else GRID,
        options=QUICK if chosen.quick else FULL,
        jobs=min(chosen.jobs or os.cpu_count() or 1, possible),
        out=chosen.out or Path("runs/paper-quick" if chosen.quick else "runs/paper"),
        quick=chosen.quick,
    )


def free_memory() -> float:
    """GiB of the machine's memory that are free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


if __name__ == "__main__":
    main()
