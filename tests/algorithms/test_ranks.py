"""Two processes do what one does: the same rollouts, gradients, weights and metrics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from algorithms import ranks

pytestmark = pytest.mark.slow


def start(*arguments):
    """The same program on two processes."""
    program = [sys.executable, str(Path(ranks.__file__)), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module", params=["klq", "ppo"])
def folder(request, quitter_dir, tmp_path_factory):
    """Results of one process, and of each of two."""
    out = tmp_path_factory.mktemp(request.param)
    ranks.run(quitter_dir, str(out), request.param, 1)
    start(quitter_dir, out, request.param, 2)
    return out


@pytest.fixture(scope="module")
def runs(folder):
    return [torch.load(folder / f"whole-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]


def test_ranks_draw_different_prompts_and_together_all_of_them(runs):
    alone, first, second = (run["training"] for run in runs)
    assert len(alone) == 2
    for whole, one, other in zip(alone, first, second, strict=True):
        assert one + other == whole
        assert len(one) == len(other) == 8
        assert one != other


def test_gradients_are_the_same_although_token_counts_differ(runs):
    alone, first, second = runs
    assert first["tokens"] != second["tokens"]
    assert [a + b for a, b in zip(first["tokens"], second["tokens"], strict=True)] == alone["tokens"]
    for whole, one, other in zip(alone["gradients"], first["gradients"], second["gradients"], strict=True):
        assert whole.keys() == one.keys() == other.keys()
        for name in whole:
            torch.testing.assert_close(one[name], whole[name], atol=1e-6, rtol=1e-5)
            assert torch.equal(one[name], other[name])


def test_weights_and_running_statistics_are_the_same(runs):
    alone, first, second = (run["weights"] for run in runs)
    for name in alone:
        torch.testing.assert_close(first[name], alone[name], atol=1e-5, rtol=1e-5)
        assert torch.equal(first[name], second[name]), name


def test_metrics_are_the_same_on_every_rank(runs):
    alone, first, second = (run["metrics"] for run in runs)
    for whole, one, other in zip(alone, first, second, strict=True):
        assert whole.keys() == one.keys() == other.keys()
        for name in whole:
            if not name.startswith("time/") and name != "train/first_ratio_error":
                assert one[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name
                assert one[name] == other[name], name
        assert one["train/first_ratio_error"] < 1e-4


def test_each_held_out_prompt_is_validated_once(runs):
    alone, first, second = (run["validation"] for run in runs)
    assert alone == [*range(7)] * 2
    assert sorted(first + second) == sorted(alone)


def test_validation_metrics_are_the_same(runs):
    alone, first, _ = (run["logged"] for run in runs)
    names = [name for name in alone if name.startswith("val/")]
    assert "val/win_rate/score" in names
    for name in names:
        assert first[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("folder", ["klq"], indirect=True)
def test_two_processes_go_on_with_what_one_began(folder, quitter_dir):
    """The rows of the phase under way are dealt anew."""
    start(quitter_dir, folder, "klq", 2, folder / "1.ckpt")
    alone, resumed = (torch.load(folder / name, weights_only=True) for name in ("whole-1-0.pt", "resumed-2-0.pt"))
    assert len(resumed["gradients"]) == 2
    assert resumed["training"] == []
    for whole, part in zip(alone["gradients"][6:], resumed["gradients"], strict=True):
        for name in whole:
            torch.testing.assert_close(part[name], whole[name], atol=1e-6, rtol=1e-5)
    for name in alone["weights"]:
        torch.testing.assert_close(resumed["weights"][name], alone["weights"][name], atol=1e-5, rtol=1e-5)
