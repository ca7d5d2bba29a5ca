"""Numbers of the table from the runs of all arms."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from step.measuring import STAGES
from step.overhead import MODEL_WORK, share
from step.page import origin, table

CLEAN = 0.05
"""An update counts where other processes used at most this share of the machine meanwhile."""

Run = dict[str, Any]


def clean_rows(run: Run) -> list[dict[str, Any]]:
    """Updates after the first that nothing disturbed."""
    return [row for row in run["rows"][1:] if row["others"] <= CLEAN]


def summarise(runs: list[Run], rollouts: int) -> dict[str, Any]:
    """Medians over all clean updates of an arm's runs; None where there are none.

    CPU seconds, of which others take little, are a median over all updates.
    """
    rows = [row for run in runs for row in clean_rows(run)]
    every = [row for run in runs for row in run["rows"][1:]]
    seconds = {name: median(row[name] for row in rows) for name in ("total", *STAGES, "rest")} if rows else None
    return {
        "seconds": seconds,
        "episodes_per_second": rollouts / seconds["total"] if seconds else None,
        "cpu": median(row["cpu"] for row in every),
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        "memory_before_mb": max(run["memory_before_mb"] for run in runs),
        "updates": len(every),
        "clean_updates": len(rows),
        "others": median(row["others"] for row in every),
        "length": median(row["length"] for row in every),
    }


def ratios(slow: list[Run], fast: list[Run]) -> list[float]:
    """Seconds of one arm by those of the other, one ratio for each round in which both have clean updates."""
    rounds = [(clean_rows(a), clean_rows(b)) for a, b in zip(slow, fast, strict=True)]
    return [median(row["total"] for row in a) / median(row["total"] for row in b) for a, b in rounds if a and b]


def markdown(measured: dict[str, Any]) -> str:
    """The section of docs/performance.md."""
    parts = [f"Medians over updates during which other processes used at most {CLEAN:.0%} of the machine."]
    for name, found in measured.items():
        parts += [
            f"### {name}",
            describe(found["workload"]),
            origin(found["provenance"]),
            arms_table(found),
            ratio_table(found),
            work_table(found),
        ]
        if "overhead" in found:
            parts.append(overhead_table(found["overhead"]))
    return "\n\n".join(part for part in parts if part)


def describe(sizes: dict[str, Any]) -> str:
    """The sizes in words."""
    hazard = f", EOS with probability {sizes['hazard']} at each token" if sizes["hazard"] else ", no EOS"
    return (
        f"Hidden {sizes['hidden']}, {sizes['layers']} layers, vocabulary {sizes['vocab']:,}, prompt "
        f"{sizes['prompt_tokens']}, response at most {sizes['response_tokens']}{hazard}, {sizes['rollouts']} rollouts, "
        f"{sizes['epochs']} epochs x {sizes['minibatches']} minibatches."
    )


def arms_table(found: dict[str, Any]) -> str:
    """Seconds, episodes and memory."""
    head = [
        "",
        "s an update",
        *STAGES,
        "rest",
        "episodes/s",
        "CPU s",
        "peak MB",
        "mean length",
        "clean updates",
        "others",
    ]
    rows = []
    for name, arm in found["summary"].items():
        seconds = arm["seconds"] or {}
        rows.append(
            [
                name,
                *(number(seconds.get(key)) for key in ("total", *STAGES, "rest")),
                number(arm["episodes_per_second"]),
                number(arm["cpu"]),
                f"{arm['peak_memory_mb']:,.0f}",
                f"{arm['length']:.1f}",
                f"{arm['clean_updates']} of {arm['updates']}",
                f"{arm['others']:.0%}",
            ]
        )
    return table([head, *rows])


def ratio_table(found: dict[str, Any]) -> str:
    """How many times as long the other arms take, with the least and the most over rounds."""
    if not found["ratios"]:
        return ""
    rows = [
        [names, spread(entry["time"]), f"{entry['memory']:.2f}", str(len(entry["time"]))]
        for names, entry in found["ratios"].items()
    ]
    return table([["ratio", "time: median (least to most)", "peak memory", "rounds"], *rows])


def work_table(found: dict[str, Any]) -> str:
    """What each arm computed in one update."""
    head = ["counted in one update", "optimizer steps", "tokens read", "tokens in backward passes", "GFLOP in products"]
    rows = [
        [
            name,
            str(work["optimizer_steps"]),
            f"{sum(n for key, n in work.items() if key.startswith('tokens_') and key != 'tokens_backward'):,}",
            f"{work['tokens_backward']:,}",
            f"{sum(work['flops'].values()) / 1e9:,.1f}",
        ]
        for name, work in found["work"].items()
    ]
    return table([head, *rows])


def overhead_table(overhead: dict[str, Any]) -> str:
    """What is not the models' work, largest first."""
    if overhead["share"] is None:
        return ""
    pieces = sorted(overhead["pieces"].items(), key=lambda item: -item[1])
    rows = [[name, f"{part:.2%}"] for name, part in pieces if name not in MODEL_WORK]
    rows.append(["all", f"{overhead['share']:.1%}"])
    return table([["outside model work (KLQ)", "share of the update"], *rows])


def overhead(runs: list[Run]) -> dict[str, Any]:
    """Shares of the update over all clean updates of runs with clocks."""
    rows = [row for run in runs for row in clean_rows(run)]
    if not rows:
        return {"share": None, "pieces": {}}
    total = sum(sum(row["parts"].values()) for row in rows)
    names = dict.fromkeys(name for row in rows for name in row["parts"])
    pieces = {name: sum(row["parts"].get(name, 0.0) for row in rows) / total for name in names}
    return {"share": share(rows), "pieces": pieces}


def spread(values: Iterable[float]) -> str:
    """Median with least and most; a dash for none."""
    found = sorted(values)
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})" if found else "—"


def number(value: float | None) -> str:
    """Three digits; a dash for none."""
    return "—" if value is None else f"{value:.3g}"
