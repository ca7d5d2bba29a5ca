"""PPO with a reverse-KL penalty beside KLQ, whose updates it should repeat at the right weight of the penalty.

    python benchmarks/reverse_kl.py [--quick] [--out runs/reverse_kl]

An exact regression step of KLQ is pi_old exp(alpha A / tau). That is the maximiser of E_pi[A] - beta KL(pi || pi_old)
at beta = tau / alpha; eq. (18) of the paper counts tau of it as KL(pi || pi_b) and names what is left,
tau (1 - alpha) / alpha.
For several alpha, KLQ and PPO with either weight are trained on the problems of `exact_optimum.py`, from the same seeds
and with the same rollouts and learning rate. Prints how far PPO's exact J is from KLQ's, phase by phase.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from exact_optimum import Budget, Cell, Variant, klq, penalised, ppo, run_all
from klqlit.functional import penalty_twin

Rows = list[dict[str, Any]]
TAU = 0.5
TICKS = [0, 2, 4, 6, 8, 10, 20, 60]
CLIP = "PPO, clip"
STYLES = {
    "KLQ": {"color": "#0072b2", "linewidth": 3, "alpha": 0.6},
    "PPO, β = τ/α": {"color": "#009e73", "linestyle": "--"},
    "PPO, β = τ(1−α)/α": {"color": "#cc79a7", "linestyle": "-."},
    CLIP: {"color": "#d55e00", "linestyle": ":"},
}


def main() -> None:
    """Run every cell, then print the table and draw the curves."""
    chosen = arguments()
    # Many steps a phase, so that each comes near the maximum that its penalty sets.
    budget = Budget(prompts=1, phases=chosen.phases, rollouts=1024, minibatches=1, epochs=chosen.epochs)
    variants = [Variant(name=CLIP, make=ppo), *(v for alpha in chosen.alpha for v in variants_at(alpha))]
    cells = [Cell(variant=v, tau=TAU, seed=seed, budget=budget) for v in variants for seed in chosen.seeds]
    rows = run_all(cells, chosen.processes)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "reverse_kl.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    table = as_markdown(rows, chosen.alpha)
    (chosen.out / "reverse_kl.md").write_text(table, encoding="utf-8")
    draw(rows, chosen.alpha, chosen.out)
    print(table)


def variants_at(alpha: float) -> list[Variant]:
    """KLQ, and PPO with each weight."""
    weights = {"PPO, β = τ/α": TAU / alpha, "PPO, β = τ(1−α)/α": penalty_twin(TAU, alpha)}
    twins = [Variant(name=named(name, alpha), make=partial(penalised, beta=beta)) for name, beta in weights.items()]
    return [Variant(name=named("KLQ", alpha), make=partial(klq, alpha=alpha)), *twins]


def named(name: str, alpha: float) -> str:
    """A variant's name; clipping knows no alpha."""
    return name if name == CLIP else f"{name}, alpha {alpha:g}"


def shares(rows: Rows, name: str) -> dict[int, list[float]]:
    """By seed: the share of J* - J(pi_b) that is closed after each phase."""
    return {
        row["seed"]: [(j - row["reference"]) / (row["optimum"] - row["reference"]) for j in row["objective"]]
        for row in rows
        if row["variant"] == name
    }


def gap(rows: Rows, name: str, alpha: float) -> float:
    """Mean distance from KLQ's curve over phases and seeds, as a share of J* - J(pi_b)."""
    klq_curves, curves = shares(rows, named("KLQ", alpha)), shares(rows, named(name, alpha))
    return mean(abs(a - b) for seed in curves for a, b in zip(klq_curves[seed], curves[seed], strict=True))


def as_markdown(rows: Rows, alphas: list[float]) -> str:
    """One row an alpha and variant."""
    lines = ["| α | | mean distance of J from KLQ's curve | share of the gap closed at the end |", "|---|---|---|---|"]
    for alpha in alphas:
        for name in STYLES:
            ends = mean(curve[-1] for curve in shares(rows, named(name, alpha)).values())
            distance = "" if name == "KLQ" else f"{gap(rows, name, alpha):.2%}"
            lines.append(f"| {alpha:g} | {name} | {distance} | {ends:.1%} |")
    seeds = len({row["seed"] for row in rows})
    note = f"τ = {TAU:g}, {seeds} problems; the distance is the mean over phases, as a share of J* − J(π_b)."
    return "\n".join([*lines, "", note, ""])


def draw(rows: Rows, alphas: list[float], out: Path) -> None:
    """A panel an alpha: share of the gap closed against phases, mean over seeds."""
    figure, axes = plt.subplots(
        1, len(alphas), figsize=(3.6 * len(alphas), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, alpha in zip(axes[0], alphas, strict=True):
        for name, style in STYLES.items():
            curves = list(shares(rows, named(name, alpha)).values())
            axis.plot([mean(values) for values in zip(*curves, strict=True)], label=name, **style)
        axis.set_title(f"α = {alpha:g}")
        axis.set_xlabel("rollout phases")
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of J* − J(π_b) closed")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STYLES))
    for suffix in ("png", "svg"):
        figure.savefig(out / f"reverse_kl.{suffix}", dpi=150)
    plt.close(figure)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alpha", type=float, nargs="+", default=[1.0, 0.5, 0.25], help="KLQ's step sizes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="problems")
    parser.add_argument("--phases", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=40, help="optimizer steps a phase")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/reverse_kl"), help="folder of table, JSON and figure")
    parser.add_argument("--quick", action="store_true", help="one problem, 5 phases, one process")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.phases, chosen.processes = [0], 5, 1
    return chosen


if __name__ == "__main__":
    main()
