import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_sign_flip_survives() -> None:
    script = Path(__file__).with_name("mutation.py")
    run = subprocess.run([sys.executable, script, "--signs"], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "sign        killed" in run.stdout
