"""The arms, each a process of its own, and the environment of the peer."""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from step.measuring import Machine

BENCHMARKS = Path(__file__).resolve().parents[1]
PEER_VERSION = "1.12.0"
"""Of TRL: the last release with a PPO trainer."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Arm:
    """A program of this folder with its options, and the python that runs it."""

    name: str
    module: str
    options: tuple[str, ...] = ()
    python: str = sys.executable

    def run(self, directory: Path, **options: Any) -> dict[str, Any]:
        """Run it on the workload in `directory`; what it wrote."""
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out.json"
            words = [f"--{name}={value}" for name, value in options.items() if not isinstance(value, bool)]
            words += [f"--{name}" for name, value in options.items() if value is True]
            command = [self.python, "-m", self.module, str(directory), f"--out={out}", *self.options, *words]
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]),
                "HF_HUB_OFFLINE": "1",
            }
            done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{self.name} failed:\n{done.stderr[-3000:]}")
            return json.loads(out.read_text(encoding="utf-8"))


KLQ = Arm(name="klqlit KLQ", module="step.klqlit_arm", options=("--algorithm=KLQ",))
PPO = Arm(name="klqlit PPO", module="step.klqlit_arm", options=("--algorithm=PPO",))
PLAIN = Arm(name="plain PyTorch", module="step.plain_arm")


def peer(environment: Path) -> Arm:
    """The peer in a virtual environment of its own, made when it is not there, with this process's torch."""
    python = environment / "bin" / "python"
    marker = environment / f"trl-{PEER_VERSION}"
    if not marker.exists():
        print(f"making {environment} for the peer: this takes minutes", flush=True)
        venv.create(environment, with_pip=True)
        wanted = [f"trl=={PEER_VERSION}"]
        wanted += [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        marker.touch()
    return Arm(name="TRL PPO", module="step.trl_arm", python=str(python))


def wait_for_quiet(seconds: float, limit: float) -> None:
    """Return when others use less than `limit` of the machine, at the latest after `seconds`."""
    machine, end = Machine(), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(2)
        if machine.lap()["others"] < limit:
            return
