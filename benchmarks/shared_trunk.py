"""What a critic on the policy's trunk does to KLQ, by how much of the value's gradient reaches the trunk.

    python benchmarks/shared_trunk.py --phases 20

Trains KLQ on mini_hh from one SFT policy and reward model with a separate critic and with shared ones. Prints J, KL
and critic quality as a Markdown table.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from miniatures import train
from quickstart import metrics, run_stage

CRITICS = {
    "separate": ["model.critic=klqlit.SeparateCritic"],
    "shared, trunk_gradient 1": ["model.critic=klqlit.SharedCritic", "model.critic.trunk_gradient=1.0"],
    "shared, trunk_gradient 0.2 (= tau)": ["model.critic=klqlit.SharedCritic", "model.critic.trunk_gradient=0.2"],
    "shared, trunk_gradient 0.02 (= tau / 10)": [
        "model.critic=klqlit.SharedCritic",
        "model.critic.trunk_gradient=0.02",
    ],
    "shared, trunk_gradient 0": ["model.critic=klqlit.SharedCritic", "model.critic.trunk_gradient=0.0"],
}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phases", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    arguments = parser.parse_args()
    runs = arguments.out / "mini_hh"
    for stage in ("sft", "reward"):
        run_stage("mini_hh", stage, runs)
    options = [f"trainer.max_epochs={arguments.phases}", "trainer.check_val_every_n_epoch=1000"]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda name: train(runs, folder(runs, name), "klq", 1, [*options, *CRITICS[name]]), CRITICS))
    table = as_markdown({name: metrics(runs, str(folder(runs, name).relative_to(runs))) for name in CRITICS})
    (runs / "shared_trunk.md").write_text(table, encoding="utf-8")
    print(table)


def folder(runs: Path, critic: str) -> Path:
    """Where a critic's run stands."""
    return runs / "shared_trunk" / "".join(c if c.isalnum() or c == "." else "_" for c in critic)


def as_markdown(logs: dict[str, list[dict[str, float]]]) -> str:
    """One row a critic: the worst KL on the way, and the last three phases' means."""
    lines = ["| critic | highest KL, nats | KL at the end | J at the start | J at the end | explained variance |"]
    lines.append("|---|---|---|---|---|---|")
    for name, rows in logs.items():
        end = rows[-3:]
        means = {key: sum(row[key] for row in end) / len(end) for key in ("kl/sequence", "objective/J")}
        explained = sum(row["critic/explained_variance"] for row in end) / len(end)
        highest = max(row["kl/sequence"] for row in rows)
        cells = [highest, means["kl/sequence"], rows[0]["objective/J"], means["objective/J"], explained]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
