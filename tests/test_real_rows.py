"""The paper's two tasks on real rows: the shipped configurations with local data and small local models."""

import json
import math
from pathlib import Path

import pytest

from builders import save, tiny_language_model, tiny_reward_model, tiny_tokenizer
from data.real_rows import HH_PAIRS, HH_PROMPTS, TLDR, needs_real_rows
from klqlit.cli import main

ROOT = Path(__file__).parents[1]
pytestmark = [needs_real_rows, pytest.mark.slow]
SMALL = {
    "trainer.max_epochs": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.accumulate_grad_batches": 1,
    "data.rollouts": 6,
    "data.minibatches": 3,
    "data.epochs": 1,
    "data.validation_prompts": 4,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    ours, other = tiny_tokenizer(), tiny_tokenizer(vocab_size=290)
    # Positions for 512 prompt tokens and a response.
    policy = tiny_language_model("gpt_neox", ours, positions=768)
    reward = tiny_reward_model("gpt2", other, positions=1024)
    return save(folder / "policy", policy, ours), save(folder / "reward", reward, other)


def fit(config, options):
    arguments = [f"--config={ROOT / 'configs' / config}", *(f"--{name}={value}" for name, value in options.items())]
    assert main(["fit", *arguments]) == 0


def logged(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {name: value for row in rows for name, value in row.items()}


@pytest.mark.parametrize("algorithm", ["klq", "ppo"])
@pytest.mark.parametrize(("task", "path"), [("hh", HH_PROMPTS), ("tldr", TLDR)])
def test_three_updates_on_real_prompts(models, tmp_path, task, path, algorithm):
    policy, reward = models
    options = SMALL | {
        "run_dir": tmp_path,
        "model.policy.path": policy,
        "model.reward.path": reward,
        "data.source.path": path,
    }
    if task == "tldr":
        options["data.source.columns"] = json.dumps({"prompt": "query", "completion": "reference_responses"})
    fit(f"{task}_{algorithm}.yaml", options)
    metrics = logged(tmp_path)
    assert (tmp_path / "checkpoints" / "step-3.ckpt").is_file()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["train/first_ratio_error"] < 1e-4
    assert metrics["kl/sequence"] == pytest.approx(0, abs=1e-3)
    assert 0 < metrics["policy/length"] <= {"hh": 128, "tldr": 53}[task]
    assert 0 <= metrics["policy/ended"] <= 1
    assert 0 < metrics["policy/entropy"] <= math.log(400)
    assert metrics["objective/J"] == pytest.approx(metrics["reward/score"], abs=1e-3)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert all(sample["prompt"].endswith({"hh": "\n\nAssistant:", "tldr": "TL;DR:"}[task]) for sample in samples)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_supervised_stages_on_real_pairs(models, tmp_path, stage):
    options = {
        "run_dir": tmp_path,
        "model.model.path": models[0],
        "data.source.path": HH_PAIRS,
        "data.batch_size": 4,
        "trainer.max_steps": 3,
        "trainer.limit_val_batches": 2,
        "trainer.accumulate_grad_batches": 1,
        "trainer.val_check_interval": 3,
    }
    fit(f"hh_{stage}.yaml", options)
    metrics = logged(tmp_path)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["val/loss"] > 0
    assert (tmp_path / "model" / "config.json").is_file()
