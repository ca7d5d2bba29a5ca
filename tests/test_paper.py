"""The paper's comparison, at sizes that learn nothing: it runs, goes on where it was, and tells what it found."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import paper

    return paper


def compare(folder, *options):
    command = [sys.executable, str(BENCHMARKS / "paper.py"), "--quick", "--tasks", "mini_hh", "--out", str(folder)]
    return subprocess.run([*command, "--seeds", "1", *options], capture_output=True, text=True)


@pytest.mark.slow
def test_everything_runs_and_is_kept(tmp_path) -> None:
    first = compare(tmp_path, "--taus", "0.2")
    assert first.returncode == 0, first.stdout + first.stderr
    runs = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "mini_hh" / "runs").glob("*/model")}
    assert set(runs) == {"klq-tau0.2-lr0.0001-seed1", "ppo-tau0.2-lr0.0001-seed1"}
    assert (tmp_path / "mini_hh" / "judged" / "tau0.2-seed1" / "judged.json").is_file()
    assert "mini_hh" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    table = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "Learning rate 0.0001 (KLQ) and 0.0001 (PPO), chosen" in table

    again = compare(tmp_path, "--taus", "0.2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "done before" in again.stdout
    after = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "mini_hh" / "runs").glob("*/model")}
    assert after == runs
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == table

    command = [sys.executable, str(BENCHMARKS / "paper.py"), "--tasks", "mini_hh", "--out", str(tmp_path)]
    whole = subprocess.run(command, capture_output=True, text=True)
    assert whole.returncode == 1
    assert "holds runs of another budget" in whole.stderr


def measured(objective, kl):
    return {"val/objective/J": objective, "val/kl/sequence": kl}


def judged(verdicts, controlled=None):
    return {"verdicts": {str(i): [value] for i, value in enumerate(verdicts)}, "length_controlled": controlled}


def test_the_table_states_means_and_paired_differences(paper) -> None:
    row = {
        "tau": 0.5,
        "lr": {"klq": 1e-4, "ppo": 2e-4},
        "diverged": {"klq": 1, "ppo": 0},
        "measured": {
            "klq": [measured(1.0, 2.0), measured(3.0, 2.0)],
            "ppo": [measured(0.0, 1.0), measured(2.0, 3.0)],
        },
        "judged": [judged([1.0, 1.0], 0.4), judged([1.0, 0.0])],
    }
    head, rule, line, *_, note = paper.as_markdown([row], seeds=3).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    # Two values d apart have the half-width 12.706 d / 2, since t(0.975, 1) is 12.706; a constant has none. The four
    # verdicts deviate by 1/4, 1/4, 1/4 and -3/4: by seeds (1/4 + 1/4) 2 / 16 = 1/16, and prompts add
    # (2 (1/4 + 1/4) - 3/4) / 16 = 1/64, so that the half-width is 12.706 times the root of 5/64.
    assert line == (
        "| 0.5 | 2.00 ± 12.71 | 1.00 ± 12.71 | +1.00 ± 0.00 | 2.00 ± 0.00 | 2.00 ± 12.71 "
        "| 75.0% ± 355.1% | 40.0% | 2, 1 of KLQ diverged |"
    )
    assert "Learning rate 0.0001 (KLQ) and 0.0002 (PPO), chosen" in note


def test_a_tau_whose_runs_all_diverged_has_no_numbers(paper) -> None:
    nothing = {"klq": [], "ppo": []}
    row = {"tau": 0.1, "lr": {"klq": 1, "ppo": 1}, "diverged": {"klq": 2, "ppo": 0}, "measured": nothing, "judged": []}
    assert paper.as_markdown([row], seeds=2).splitlines()[2].count("no run") == 7


def run(paper, lr):
    return paper.Run(algorithm="klq", tau=0.1, seed=1, lr=lr)


def finish(folder, run, objective):
    (folder / run.folder / "model").mkdir(parents=True)
    row = f'{{"step": 1, "val/objective/J": {objective}, "val/reward/score": 0, "val/reward/gold": 0, '
    row += '"val/kl/sequence": 0, "val/win_rate/gold": 0.5, "val/reference/score": 0, "time/optimization": 1, '
    row += '"time/generation": 1, "time/scoring": 1}\n'
    (folder / run.folder / "metrics.jsonl").write_text(row)


def test_the_best_rate_is_that_of_the_highest_objective_among_runs_that_ended(paper, tmp_path) -> None:
    slow, good, fast = (run(paper, lr) for lr in (1e-5, 1e-4, 1e-3))
    finish(tmp_path, slow, -2.0)
    finish(tmp_path, good, -1.0)
    (tmp_path / fast.folder).mkdir(parents=True)
    (tmp_path / fast.folder / "log.txt").write_text("klqlit: error: the loss became nan at step 3, and the run stops;")
    assert paper.diverged(tmp_path, fast)
    assert not paper.diverged(tmp_path, good)
    assert paper.best_rate(tmp_path, [slow, good, fast]) == 1e-4
    with pytest.raises(SystemExit, match="every learning rate diverged"):
        paper.best_rate(tmp_path, [fast])


def test_each_algorithm_is_tuned_at_the_middle_tau_alone(paper, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "--taus", "0.8", "0.1", "0.2", "--out", str(tmp_path)])
    trained = []

    def train_all(plan, folder, runs):
        trained.extend(runs)
        for run in runs:
            finish(folder, run, {1e-4: 1.0, 2e-4: 3.0, 4e-4: 2.0}[run.lr] * (1 if run.algorithm == "klq" else -1))

    monkeypatch.setattr(paper, "train_all", train_all)
    assert paper.tune(paper.planned(), tmp_path) == {"klq": 2e-4, "ppo": 1e-4}
    assert {(run.tau, run.seed) for run in trained} == {(0.2, paper.TUNING_SEED)}
    assert len(trained) == 6
    assert all((tmp_path / run.folder / "label.json").is_file() for run in trained)


def test_runs_are_bounded_by_memory(paper, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "--jobs", "8", "--memory", str(2.5 * paper.MEMORY)])
    assert paper.planned().jobs == 2
    monkeypatch.setattr(sys, "argv", ["paper.py", "--jobs", "8", "--memory", "0.1"])
    assert paper.planned().jobs == 1


def test_reverse_kl_measures_the_distance_from_klq(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import reverse_kl

    def row(name, *objective):
        return {"variant": name, "seed": 0, "reference": 1.0, "optimum": 3.0, "objective": [1.0, *objective]}

    twin = "PPO, β = τ/α"
    rows = [row("KLQ, alpha 0.5", 2.0, 3.0), row(f"{twin}, alpha 0.5", 1.5, 3.0), row("PPO, clip", 1.0, 2.0)]
    rows.append(row("PPO, β = τ(1−α)/α, alpha 0.5", 3.0, 2.0))
    # In shares of the way from 1 to 3: KLQ 0, 1/2, 1; its twin 0, 1/4, 1.
    assert reverse_kl.gap(rows, twin, 0.5) == pytest.approx(1 / 12)
    assert reverse_kl.gap(rows, "PPO, clip", 0.5) == pytest.approx(1 / 3)
    assert "| 0.5 | PPO, β = τ/α | 8.33% | 100.0% |" in reverse_kl.as_markdown(rows, [0.5])


@pytest.mark.slow
def test_reverse_kl_runs(tmp_path) -> None:
    command = [sys.executable, str(BENCHMARKS / "reverse_kl.py"), "--quick", "--alpha", "0.5", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--epochs", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"reverse_kl.{suffix}" for suffix in ("json", "md", "png", "svg")
    }
