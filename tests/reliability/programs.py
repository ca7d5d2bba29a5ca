"""Tiny runs as programs: `python -m klqlit fit`, to be killed and started again."""

import json
import multiprocessing
import os
import resource
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from builders import save, tiny_reward_model, tiny_tokenizer
from klqlit import cli
from klqlit.strategies.checkpoints import consolidate
from runs import quitter

CONFIG = """
seed_everything: 1
trainer:
  max_epochs: 3
  accelerator: cpu
  check_val_every_n_epoch: 1
  callbacks: [klqlit.SampleTable, reliability.killing.KillAt]
model:
  class_path: klqlit.PPO
  init_args:
    policy: {{class_path: klqlit.LanguagePolicy, init_args: {{path: {folder}/policy}}}}
    reward: {{class_path: klqlit.RewardModel, init_args: {{path: {folder}/reward}}}}
    sampler: {{response_length: 6}}
    shaping: {{normalise: true}}
    adaptive_kl: {{target: 0.01, horizon: 50}}
    optimization: {{lr: 1.0e-3, critic_lr: 1.0e-2, warmup_steps: 3, decay: linear}}
data:
  class_path: klqlit.OnlineDataModule
  init_args:
    rollouts: 16
    minibatches: 2
    epochs: 2
    max_prompt_tokens: 60
    validation_prompts: 6
    validation_batch_size: 2
    seed: ${{seed_everything}}
    source: {{class_path: klqlit.TableSource, init_args: {{path: {folder}/prompts.json}}}}
checkpoint: {{every_n_train_steps: 3, every_n_epochs: 1}}
"""
"""PPO with all that has a state; 3 phases of 4 steps, validation after each; checkpoints in and between phases."""

FINETUNING = """
seed_everything: 1
trainer: {{max_epochs: 2, accelerator: cpu, accumulate_grad_batches: 2, callbacks: [reliability.killing.KillAt]}}
model:
  class_path: klqlit.SupervisedFinetuning
  init_args: {{model: {{path: {folder}/policy}}, lr: 1.0e-3, warmup_steps: 3, decay: cosine}}
data:
  class_path: klqlit.CompletionDataModule
  init_args:
    batch_size: 2
    seed: ${{seed_everything}}
    source: {{class_path: klqlit.TableSource, init_args: {{path: {folder}/rows.json, validation_rows: 4}}}}
checkpoint: {{every_n_train_steps: 2}}
"""
"""2 epochs of 5 steps, two micro-batches a step, the last step of an epoch with one."""

NEVER = "KILL never 0 0"
SHARDED = [f"--config={Path(__file__).parents[2] / 'configs/fsdp.yaml'}", "--trainer.devices=2"]

WARM = multiprocessing.get_context("forkserver")
"""Starts processes that have already imported what a run needs, which is most of a short run's time."""
WARM.set_forkserver_preload(
    [
        "klqlit.algorithms.ppo",
        "klqlit.command_line",
        "klqlit.data.online",
        "klqlit.rewards.model",
        "torch.utils.tensorboard",
        "transformers.models.gpt_neox.modeling_gpt_neox",
    ]
)


def environment_of(changes: dict[str, str]) -> dict[str, str]:
    """For a program that is started from nothing."""
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "KILL_AT": NEVER} | changes


def main(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """What `python -m klqlit` does, in a new process, printing into a file."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream.fileno())
    os.environ.update(environment)
    if limit := environment.get("LIMIT_FILES"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    sys.exit(cli.main(arguments))


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_config(folder: Path) -> Path:
    """Models, prompts and the configuration of the runs."""
    tokenizer = tiny_tokenizer()
    save(folder / "policy", quitter(tokenizer), tokenizer)
    save(folder / "reward", tiny_reward_model("gpt_neox", tokenizer), tokenizer)
    (folder / "prompts.json").write_text(json.dumps([f"{'What is ' * (i % 3)}{i}?" for i in range(60)]))
    rows = [{"prompt": f"What is {i}?", "completion": " It is" + f" {i}" * (i % 4)} for i in range(22)]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "finetuning.yaml").write_text(FINETUNING.format(folder=folder))
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder))
    return config


@dataclass
class Program:
    """A command that trains in a run folder.

    Attributes:
        config: its configuration.
        run_dir: its folder.
        options: what else stands on the command line.
        ranks: processes, each started from here as a scheduler would.
    """

    config: Path
    run_dir: Path
    options: list[str] = field(default_factory=list)
    ranks: int = 1

    def arguments(self) -> list[str]:
        """Of the command line."""
        return ["fit", f"--config={self.config}", f"--run_dir={self.run_dir}", *self.options]

    def run(self, kill_at: str = NEVER, **environment: str) -> tuple[list[int], str]:
        """Exit status of each rank, negative where a signal ended it, and what all of them printed."""
        # Not in the run's folder, whose disk may be full.
        output = self.config.with_name(f"{uuid4()}.output")
        output.write_text("")
        shared = environment | {"KILL_AT": kill_at}
        if self.ranks > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(self.ranks)}
        processes = []
        for rank in range(self.ranks):
            own = {"LOCAL_RANK": str(rank)} if self.ranks > 1 else {}
            processes.append(WARM.Process(target=main, args=[self.arguments(), shared | own, str(output)]))
            processes[-1].start()
        for process in processes:
            process.join(timeout=240)
            if process.exitcode is None:
                process.kill()
                process.join()
        return [process.exitcode for process in processes], output.read_text()

    @property
    def state(self) -> str:
        """What run.json says."""
        return json.loads((self.run_dir / "run.json").read_text())["state"]

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.run_dir / "run.json").exists() and self.state == "finished"

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A log's rows, without times."""
        lines = (self.run_dir / name).read_text(encoding="utf-8").splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]

    def checkpoints(self) -> list[str]:
        """What stands in the folder of checkpoints."""
        return sorted(path.name for path in (self.run_dir / "checkpoints").glob("*") if path.name[0] != ".")

    def final(self) -> dict[str, Any]:
        """The last checkpoint's weights, optimizer, schedules, data module and phase."""
        path = max((self.run_dir / "checkpoints").glob("step-*.ckpt"), key=lambda path: int(path.stem[5:]))
        if path.is_dir():
            consolidate(str(path), str(whole := self.run_dir / "whole.ckpt"))
            path = whole
        saved = torch.load(path, weights_only=True)
        return {name: saved[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops")}


MODES: dict[str, dict[str, Any]] = {
    "one": {},
    "accumulate": {"options": ["--trainer.accumulate_grad_batches=2"]},
    "ddp": {"options": ["--trainer.devices=2", "--trainer.strategy=ddp"], "ranks": 2},
    "fsdp_full": {"options": [*SHARDED, "--trainer.strategy.save_distributed_checkpoint=false"], "ranks": 2},
    "fsdp_sharded": {"options": SHARDED, "ranks": 2},
}
"""Ways to run the same: keyword arguments of `Program`."""

LOGS = ("metrics.jsonl", "samples.jsonl", "critic.jsonl", "tokens.jsonl")


def differences(one: Program, other: Program) -> list[str]:
    """Names of all in which two ended runs differ; none where they are the same bit for bit."""
    found = [f"checkpoint {name}" for name in unequal(one.final(), other.final())]
    logs = [name for name in LOGS if (one.run_dir / name).exists() or (other.run_dir / name).exists()]
    assert "metrics.jsonl" in logs
    return found + [name for name in logs if one.rows(name) != other.rows(name)]


def unequal(one: Any, other: Any, name: str = "") -> list[str]:
    """Paths at which nested containers of tensors and numbers differ."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [name]
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            path for key in one.keys() | other.keys() for path in unequal(one.get(key), other.get(key), f"{name}.{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [path for i, pair in enumerate(zip(one, other, strict=True)) for path in unequal(*pair, f"{name}.{i}")]
    return [] if one == other else [name]
