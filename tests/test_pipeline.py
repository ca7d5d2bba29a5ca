"""The shipped configurations, run for real at sizes that learn nothing but must work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from klqlit.cli import main

ROOT = Path(__file__).parents[1]


def quickstart(folder, *options):
    command = [sys.executable, str(ROOT / "benchmarks" / "quickstart.py"), "--quick", "--out", str(folder), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    result = quickstart(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


@pytest.mark.slow
def test_the_quickstart_prints_a_table_and_samples_and_draws(finished):
    folder, shown = finished
    for word in ("SFT", "KLQ", "PPO", "wins by", "held-out pairs", "figure: "):
        assert word in shown
    summary = json.loads((folder / "mini_hh" / "summary.json").read_text())
    assert set(summary) == {"reward", "sft", "klq", "ppo"}
    assert 0 <= summary["klq"]["win_rate/gold"] <= 1
    assert (folder / "mini_hh" / "curves.png").stat().st_size > 10_000
    assert (folder / "mini_hh" / "klq" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_quickstart_goes_on_where_it_was(finished):
    folder, _ = finished
    model = folder / "mini_hh" / "ppo" / "model"
    model.rename(model.with_name("taken"))
    result = quickstart(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(f"mini_hh {stage}: done before" in result.stdout for stage in ("sft", "reward", "klq"))
    # The run was finished: nothing is trained again, and what was exported is.
    assert (model / "model.safetensors").read_bytes() == (model.with_name("taken") / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_objective_of_ones_own_by_class_path(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.syspath_prepend(ROOT / "examples")
    runs = folder / "mini_hh"
    options = {
        "run_dir": runs / "rloo",
        "model.policy.path": runs / "sft" / "model",
        "model.reward.path": runs / "reward" / "model",
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 2,
        "data.rollouts": 16,
        "data.validation_prompts": 8,
    }
    stacked = [f"--config={ROOT / file}" for file in ("configs/mini_hh_klq.yaml", "examples/rloo.yaml")]
    assert main(["fit", *stacked, *(f"--{name}={value}" for name, value in options.items())]) == 0
    last = json.loads((runs / "rloo" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["train/ratio"] == pytest.approx(1, abs=0.5)
    assert last["train/first_ratio_error"] < 1e-4
    assert len((ROOT / "examples" / "rloo.py").read_text().splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mini_tldr", "mini_sums"])
def test_the_other_miniatures_run(tmp_path, task):
    result = quickstart(tmp_path, "--task", task)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / task / "summary.json").read_text())["klq"]
