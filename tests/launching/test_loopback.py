"""Ranks of one machine listen where no other machine can reach them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from klqlit.launching.loopback import LoopbackEnvironment, loopback_interface, with_loopback

WATCH = '''
import json, os, re
import lightning as L

def listening():
    """Addresses on which this process listens, of IPv4 and IPv6, as the kernel has them."""
    own = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            own |= set(re.findall(r"socket:\\[(\\d+)\\]", os.readlink(f"/proc/self/fd/{fd}")))
        except OSError:
            pass
    rows = [row.split() for table in ("tcp", "tcp6") for row in open(f"/proc/net/{table}").readlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in own]

class Watch(L.Callback):
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_start(self, trainer, module):
        trainer.strategy.barrier()
        with open(f"{self.folder}/{trainer.global_rank}.json", "w") as file:
            json.dump(listening(), file)
        trainer.strategy.barrier()

def zero(prompts, completions, **columns):
    return [0.0] * len(prompts)
'''
CONFIG = """
run_dir: {folder}/run
trainer:
  {{max_epochs: 1, accelerator: cpu, devices: 2, strategy: ddp, limit_val_batches: 0,
   callbacks: [{{class_path: watch.Watch, init_args: {{folder: {folder}}}}}]}}
model:
  class_path: klqlit.KLQ
  init_args:
    policy: {{class_path: klqlit.LanguagePolicy, init_args: {{path: {policy}}}}}
    reward: {{class_path: klqlit.FunctionReward, init_args: {{function: watch.zero}}}}
    sampler: {{response_length: 4}}
data:
  class_path: klqlit.OnlineDataModule
  init_args:
    rollouts: 4
    minibatches: 1
    epochs: 1
    max_prompt_tokens: 32
    source: {{class_path: klqlit.TableSource, init_args: {{path: {folder}/prompts.json, validation_rows: 4}}}}
"""
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
"""127.0.0.1, the same within IPv6, and ::1, as the kernel writes them."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel's table of sockets is Linux's")
def test_two_ranks_listen_on_loopback_alone(tmp_path, quitter_dir):
    (tmp_path / "watch.py").write_text(WATCH)
    (tmp_path / "prompts.json").write_text(json.dumps([f"What is {i}?" for i in range(12)]))
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path, policy=quitter_dir))
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2] / "src")])
    unset = ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-m", "klqlit", "fit", f"--config={tmp_path / 'run.yaml'}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment | {"PYTHONPATH": paths}, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    # The store of the first, and gloo's socket of each.
    assert len(found[0]) >= 2
    assert len(found[1]) >= 1
    assert {address for addresses in found for address in addresses} <= set(LOOPBACK)


def test_the_store_is_made_once_and_named_to_the_others(monkeypatch):
    for name in ("MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    environment = LoopbackEnvironment()
    port = environment.main_port
    assert environment.main_port == port
    assert environment.main_address == "127.0.0.1"
    assert os.environ["MASTER_PORT"] == str(port)
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback_interface()


def test_whoever_says_where_ranks_meet_is_heeded(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert [type(plugin) for plugin in with_loopback([], 1)] == [LoopbackEnvironment]
    assert with_loopback([], 2) == []
    own = [LightningEnvironment()]
    assert with_loopback(own, 1) == own
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert with_loopback([], 1) == []
