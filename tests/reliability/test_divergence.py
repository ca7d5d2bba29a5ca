"""Where one of two ranks leaves the numbers, both stop at once, and one file tells of the rows of both."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reliability import divergence

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "step", "message", "bad"),
    [
        ("loss", 2, "Divergence: the loss became inf at optimizer step 2", {"rank": 1, "finite": False}),
        ("score", 0, "BadScores: reward gave a score that is not finite to 1 of 4", {"rank": 1, "score": "nan"}),
        ("sample", 0, "Divergence: log-probabilities of sampled tokens are not finite after optimizer step 0", None),
    ],
)
def test_all_ranks_stop_together(kind, step, message, bad, quitter_dir, tmp_path):
    program = [sys.executable, str(Path(divergence.__file__)), quitter_dir, str(tmp_path), kind]
    began = time.monotonic()
    done = subprocess.run(
        program, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    # Each rank raised the error itself, instead of being killed in a collective that the other never joined.
    assert done.stderr.count(message) == 2, done.stderr[-3000:]
    report = json.loads((tmp_path / f"divergence-step-{step}.json").read_text())
    assert report["ranks"] == 2
    if bad is not None:
        first = report["rows"][0]
        assert {name: first[name] for name in bad} == bad
    if kind == "loss":
        assert {row["rank"] for row in report["rows"]} == {0, 1}
    assert time.monotonic() - began < 200
