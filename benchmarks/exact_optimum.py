"""How much of the way to the optimum KLQ and PPO go, on a problem whose optimum is known exactly.

    python benchmarks/exact_optimum.py [--quick] [--out runs/exact_optimum] [--run_folders]

Each seed is a problem of its own: a random reference policy pi_b and a random reward for each of the responses of at
most four tokens out of six. Tables of logits and values are trained by the same modules, sampler, data module and
trainer as language models are. J(pi) is computed by dynamic programming, not estimated. Prints the share of
J* - J(pi_b) that each algorithm closes; writes every curve as JSON and draws them.

Learning rate, minibatches and epochs were chosen on seeds 10 to 19.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import lightning as L
import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from exact_runs import write_run_folder
from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO
from klqlit.algorithms.surrogates import PenalisedSurrogate
from klqlit.data.exact import ExactProblem
from klqlit.data.online import OnlineDataModule
from klqlit.models.tabular import TabularCritic, TabularPolicy
from klqlit.rewards.table import TableReward
from klqlit.rollout.sampling import Sampler

LR = 0.03
COLORS = {"KLQ": "#0072b2", "PPO, clip": "#d55e00", "PPO, penalty": "#009e73"}


@dataclass(kw_only=True, slots=True, frozen=True)
class Variant:
    """An algorithm with its own settings; `make(tau)` gives what builds the module from policy, reward and so on."""

    name: str
    make: Callable[[float], Callable[..., RLHFModule]]


@dataclass(kw_only=True, slots=True, frozen=True)
class Budget:
    """What a run may use."""

    prompts: int
    phases: int
    rollouts: int
    minibatches: int
    epochs: int


@dataclass(kw_only=True, slots=True, frozen=True)
class Cell:
    """One run."""

    variant: Variant
    tau: float
    seed: int
    budget: Budget


def klq(tau: float, alpha: float) -> Callable[..., RLHFModule]:
    """KLQ with the squared error of eq. (6)."""
    return partial(KLQ, tau=tau, alpha=alpha)


def ppo(tau: float) -> Callable[..., RLHFModule]:
    """PPO as it is usually run: clipping, whitened advantages."""
    return partial(PPO, tau=tau)


def penalty(tau: float, alpha: float) -> Callable[..., RLHFModule]:
    """KLQ's twin: exact steps of both are pi_old exp(alpha A / tau)."""
    return penalised(tau, beta=tau / alpha)


def penalised(tau: float, beta: float) -> Callable[..., RLHFModule]:
    """PPO without clipping and whitening, with a reverse-KL penalty."""
    return partial(
        PPO,
        tau=tau,
        surrogate=PenalisedSurrogate(beta=beta),
        whiten_advantages=False,
        value_clip=None,
        value_coefficient=1.0,
    )


def variants(alphas: list[float]) -> list[Variant]:
    """KLQ and its twin for each alpha, and PPO."""
    return [
        *(Variant(name=f"KLQ, alpha {alpha:g}", make=partial(klq, alpha=alpha)) for alpha in alphas),
        Variant(name="PPO, clip", make=ppo),
        *(Variant(name=f"PPO, penalty, alpha {alpha:g}", make=partial(penalty, alpha=alpha)) for alpha in alphas),
    ]


@final
class Curve(L.Callback):
    """J(pi), score and KL at the start and after each phase, exactly."""

    def __init__(self, problem: ExactProblem, policy: TabularPolicy, tau: float) -> None:
        self.measure = partial(measure, problem, policy.logits, tau=tau)
        self.rows = [self.measure()]

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.rows.append(self.measure())


def measure(problem: ExactProblem, logits: torch.Tensor, tau: float) -> dict[str, float]:
    """J, score and KL of a policy. J = score - tau KL is linear in tau, so that two taus give both parts."""
    one, two = (problem.objective(logits, tau=tau) for tau in (1.0, 2.0))
    return {"J": problem.objective(logits, tau=tau), "score": 2 * one - two, "kl": one - two}


def run(cell: Cell) -> dict[str, Any]:
    """Train one cell; its curve and the ends of the scale."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    budget, started = cell.budget, time.process_time()
    problem = ExactProblem(prompts=budget.prompts, seed=cell.seed)
    policy = TabularPolicy(problem.ref_logits, prompts=problem.prompts, horizon=problem.horizon)
    module = cell.variant.make(cell.tau)(
        policy=policy,
        critic=TabularCritic,
        reward=TableReward(problem.rewards, policy.tree),
        sampler=Sampler(response_length=problem.horizon),
        optimization=Optimization(lr=LR, decay="linear"),
        scoring_batch_size=budget.rollouts,
    )
    data = OnlineDataModule(
        problem,
        rollouts=budget.rollouts,
        minibatches=budget.minibatches,
        epochs=budget.epochs,
        max_prompt_tokens=1,
        seed=cell.seed,
    )
    curve = Curve(problem, policy, cell.tau)
    # A table's step takes microseconds: whatever else the trainer offers would take most of the time.
    L.Trainer(max_epochs=budget.phases, accelerator="cpu", barebones=True, callbacks=[curve]).fit(module, data)
    objective, best = [row["J"] for row in curve.rows], problem.optimum(tau=cell.tau)
    first = objective[0]
    return {
        "variant": cell.variant.name,
        "tau": cell.tau,
        "seed": cell.seed,
        "reference": first,
        "optimum": best,
        "share": (objective[-1] - first) / (best - first),
        "objective": objective,
        "score": [row["score"] for row in curve.rows],
        "kl": [row["kl"] for row in curve.rows],
        "best": measure(problem, problem.best_logits(tau=cell.tau), cell.tau),
        "cpu_seconds": time.process_time() - started,
    }


def run_all(cells: list[Cell], processes: int) -> list[dict[str, Any]]:
    """Every cell, in order."""
    if processes == 1:
        return [run(cell) for cell in cells]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(run, cells))


def summarise(rows: list[dict[str, Any]], tau: float, name: str) -> dict[str, float]:
    """Mean over seeds, and standard deviation of the share."""
    cell = [row for row in rows if row["tau"] == tau and row["variant"] == name]
    shares = [row["share"] for row in cell]
    return {
        "reference": statistics.mean(row["reference"] for row in cell),
        "final": statistics.mean(row["objective"][-1] for row in cell),
        "optimum": statistics.mean(row["optimum"] for row in cell),
        "share": statistics.mean(shares),
        "share_std": statistics.stdev(shares) if len(shares) > 1 else 0.0,
        "share_min": min(shares),
    }


def results_table(rows: list[dict[str, Any]], taus: list[float], names: list[str], title: str) -> Table:
    """One row a cell of tau and variant."""
    table = Table(title=title)
    for heading in ("tau", "", "J(pi_b)", "J(pi)", "J*", "share of the gap closed", "lowest"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for tau in taus:
        for name in names:
            cell = summarise(rows, tau, name)
            table.add_row(
                f"{tau:g}",
                name,
                *(f"{cell[key]:.3f}" for key in ("reference", "final", "optimum")),
                f"{cell['share']:.1%} ± {cell['share_std']:.1%}",
                f"{cell['share_min']:.1%}",
                end_section=name == names[-1],
            )
    return table


def draw(rows: list[dict[str, Any]], taus: list[float], names: list[str], out: Path) -> None:
    """Mean over seeds against phases, a column a tau: J above, the share of the gap that is still open below."""
    size = (max(3.2 * len(taus), 6), 6.6)
    figure, axes = plt.subplots(2, len(taus), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for (upper, lower), tau in zip(axes.T, taus, strict=True):
        for name in names:
            cell = [row for row in rows if row["tau"] == tau and row["variant"] == name]
            curves = torch.tensor([row["objective"] for row in cell])
            first, best = curves[:, :1], torch.tensor([[row["optimum"]] for row in cell])
            style = line_style(name, names)
            upper.plot(curves.mean(dim=0), label=name, **style)
            lower.plot(((best - curves) / (best - first)).mean(dim=0), **style)
        ends = summarise(rows, tau, names[0])
        for key, label, place in (("optimum", "J*", (-4, 3)), ("reference", "J(π_b)", (-4, 3))):
            upper.axhline(ends[key], color="black", linestyle=":", linewidth=1)
            upper.annotate(label, (1, ends[key]), place, ("axes fraction", "data"), "offset points", ha="right")
        upper.margins(y=0.1)
        upper.set_title(f"τ = {tau:g}")
        lower.set_yscale("log")
        lower.set_xlabel("rollout phases")
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("J(π), exact")
    axes[1, 0].set_ylabel("(J* − J) / (J* − J(π_b))")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 5))
    for suffix in ("png", "svg"):
        figure.savefig(out / f"exact_optimum.{suffix}", dpi=150)
    plt.close(figure)


def line_style(name: str, names: list[str]) -> dict[str, Any]:
    """A colour an algorithm; the alphas after the first are dashed."""
    family = [other for other in names if other.rpartition(", alpha")[0] == name.rpartition(", alpha")[0]]
    dashes = ("-", "--", "-.", ":")
    color = next(color for start, color in COLORS.items() if name.startswith(start))
    return {"color": color, "linestyle": dashes[family.index(name) % len(dashes)], "linewidth": 1.6}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tau", type=float, nargs="+", default=[0.1, 0.2, 0.5, 1.0], help="KL coefficients")
    parser.add_argument("--alpha", type=float, nargs="+", default=[1.0, 0.5], help="KLQ's step sizes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="problems")
    parser.add_argument("--prompts", type=int, default=1, help="prompts a problem; they share the rollouts")
    parser.add_argument("--phases", type=int, default=200)
    parser.add_argument("--rollouts", type=int, default=256, help="responses a phase")
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/exact_optimum"), help="folder of JSON and figures")
    parser.add_argument("--quick", action="store_true", help="two seeds, one tau, one alpha, 10 phases, one process")
    parser.add_argument(
        "--run_folders",
        action="store_true",
        help="write each cell as a run's folder, too, for `python -m klqlit report`",
    )
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.tau, chosen.alpha, chosen.seeds, chosen.phases, chosen.processes = [0.5], [1.0], [0, 1], 10, 1
    return chosen


def main() -> None:
    """Run every cell, then report."""
    chosen, started = arguments(), time.monotonic()
    names = ("prompts", "phases", "rollouts", "minibatches", "epochs")
    budget = Budget(**{name: vars(chosen)[name] for name in names})
    every = variants(chosen.alpha)
    cells = [
        Cell(variant=variant, tau=tau, seed=seed, budget=budget)
        for tau in chosen.tau
        for variant in every
        for seed in chosen.seeds
    ]
    rows = run_all(cells, chosen.processes)
    chosen.out.mkdir(parents=True, exist_ok=True)
    settings = vars(chosen) | {"out": str(chosen.out), "lr": LR}
    path = chosen.out / "exact_optimum.json"
    path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if chosen.run_folders:
        for row in rows:
            write_run_folder(row, asdict(budget), LR, chosen.out / "runs")
    labels = [variant.name for variant in every]
    draw(rows, chosen.tau, labels, chosen.out)
    title = f"{budget.phases} phases of {budget.rollouts} rollouts, {len(chosen.seeds)} seeds"
    console = Console(width=100)
    console.print(results_table(rows, chosen.tau, labels, title))
    console.print(f"{len(rows)} runs in {time.monotonic() - started:.0f} s; curves: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
