"""The command line: quick to start, and one line for every mistake."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builders import save, tiny_language_model, tiny_reward_model, tiny_tokenizer
from klqlit.cli import main
from klqlit.commands import report

TINY = """
run_dir: {run_dir}
trainer: {{max_epochs: 2, accelerator: cpu, callbacks: [klqlit.SampleTable]}}
model:
  class_path: klqlit.KLQ
  init_args:
    policy: {{class_path: klqlit.LanguagePolicy, init_args: {{path: {policy}}}}}
    reward: {{class_path: klqlit.RewardModel, init_args: {{path: {reward}}}}}
    sampler: {{response_length: 6}}
    optimization: {{lr: 1.0e-3}}
data:
  class_path: klqlit.OnlineDataModule
  init_args:
    rollouts: 8
    minibatches: 2
    epochs: 1
    max_prompt_tokens: 100
    seed: ${{seed_everything}}
    source: {{class_path: klqlit.TableSource, init_args: {{path: {prompts}}}}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tokenizer = tiny_tokenizer()
    policy = save(folder / "policy", tiny_language_model("llama", tokenizer), tokenizer)
    reward = save(folder / "reward", tiny_reward_model("llama", tokenizer), tokenizer)
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps([f"What is the sum of {i} and two?" for i in range(60)]))
    file = folder / "tiny.yaml"
    file.write_text(TINY.format(run_dir=folder / "run", policy=policy, reward=reward, prompts=prompts))
    return file


def seconds(*arguments):
    """CPU seconds of a python process: what a loaded machine cannot stretch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [("-c", "import klqlit"), ("-m", "klqlit", "--help")])
def test_starting_costs_next_to_nothing(arguments):
    assert min(seconds(*arguments) for _ in range(3)) < 0.3


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("fit", "validate", "test", "predict"))


def test_an_unknown_command_names_the_known_ones(capsys):
    assert main(["fitt"]) == 2
    assert capsys.readouterr().err == (
        "klqlit: error: there is no command 'fitt'; "
        "choose one of fit, validate, test, predict, judge, analyse, report, consolidate, plan\n"
    )


def test_ctrl_c_before_a_run_has_begun_is_one_line(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "run", interrupted)
    assert main(["report", "runs"]) == 130
    assert capsys.readouterr().err == "klqlit: stopped\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.polcy.path=x", "unrecognized arguments: --model.polcy.path=x; did you mean 'policy'?"),
        ("--model.policy.pth=x", "model.policy: Option 'pth' is not accepted; did you mean 'path'?"),
        ("--modle.tau=1", "unrecognized arguments: --modle.tau=1; did you mean 'model'?"),
        ("--trainer.max_epoch=3", "unrecognized arguments: --trainer.max_epoch=3; did you mean 'max_epochs'?"),
        ("--data.rollout=8", "data: Option 'rollout' is not accepted; did you mean 'rollouts'?"),
        ("--model.tau=much", "model.tau: expected a float, got 'much'"),
        ("--model.critic.head=one", "model.critic.head: expected one of 'zero', 'pretrained', got 'one'"),
        ("--model=klqlit.KQL", "module 'klqlit' has no attribute 'KQL'; did you mean 'klqlit.KLQ'?"),
        ("--model=KQL", "did you mean 'klqlit.KLQ'?"),
        ("--trainer.callbacks+=klqlit.SampleTabel", "did you mean 'klqlit.SampleTable'?"),
        ("--trainer.max_epochs=two", "trainer.max_epochs: expected an int, got 'two'"),
        ("--trainer.precision=bf17", "'64', '32', '16', 'bf16', got 'bf17'"),
        ("--config=nowhere.yaml", "config: File does not exist"),
        ("--model.tau=-1", "tau must be a finite number above 0, got -1.0"),
        ("--model.lam=1.5", "lam must lie in [0, 1], got 1.5"),
        ("--data.rollouts=9", "data.minibatches=2 does not divide data.rollouts=9"),
        (
            "--data.max_prompt_tokens=125",
            "policy, reference and critic leave room for 122 prompt tokens",
        ),
        ("--trainer.accumulate_grad_batches=3", "cannot be split evenly"),
        ("--model.policy.path=/nowhere/model", "there is no model directory '/nowhere/model'"),
        ("--data.source.path=/nowhere/rows.json", "there is no data file '/nowhere/rows.json'"),
        ("--model.sampler.top_k=50", "set top_k: 0 and top_p: 1.0"),
        ("--trainer.devices=9999", "trainer.devices=9999 starts 9999 processes on the"),
        ("--trainer.limit_val_batches=-3", "invalid value -3 for limit_val_batches"),
        ("--ckpt_path=/nowhere/x.ckpt", "there is no checkpoint at ckpt_path='/nowhere/x.ckpt'"),
    ],
)
def test_a_mistake_gives_one_clear_line(config, capsys, tmp_path, options, message):
    assert main(["fit", f"--config={config}", f"--run_dir={tmp_path}", options]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("klqlit: error:")]
    assert len(error) == 1
    assert message in error[0]
    assert len(error[0]) < 400


def test_an_unusable_run_folder_is_refused_before_a_model_is_read(config, capsys, tmp_path):
    (tmp_path / "file").touch()
    options = [f"--run_dir={tmp_path / 'file'}", "--model.policy.path=/nowhere/model"]
    assert main(["fit", f"--config={config}", *options]) == 2
    assert "is a file, and must be a folder; choose another --run_dir" in capsys.readouterr().err


def test_a_reward_model_without_scalar_head_is_refused(config, capsys, tmp_path):
    policy = config.parent / "policy"
    assert main(["fit", f"--config={config}", f"--run_dir={tmp_path}", f"--model.reward.path={policy}"]) == 2
    assert "is no reward model: it has 2 outputs" in capsys.readouterr().err


@pytest.fixture
def fit_with_reward(config, capsys, tmp_path, monkeypatch):
    """Runs a fit that is to fail under a reward function `f` of the user's; returns what was said, and its file."""

    def run(code):
        file, overlay = tmp_path / "users_reward.py", tmp_path / "overlay.yaml"
        file.write_text(f"def f(prompts, completions, **_):\n    {code}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "users_reward", raising=False)
        overlay.write_text(
            "model: {init_args: {reward: {class_path: klqlit.FunctionReward, init_args: {function: users_reward.f}}}}"
        )
        assert main(["fit", f"--config={config}", f"--config={overlay}", f"--run_dir={tmp_path / 'run'}"]) == 2
        return capsys.readouterr().err, file

    return run


def test_a_score_that_is_not_finite_names_the_sample(fit_with_reward):
    error, _ = fit_with_reward("return [float('nan')] * len(prompts)")
    assert "not finite to 8 of 8 completions. The first: prompt 'What is the sum of" in error


def test_a_bug_in_a_function_of_the_user_is_said_with_its_line(fit_with_reward):
    error, file = fit_with_reward("return [float('Of') for _ in completions]")
    assert f"string to float: 'Of' (raised at {file}:2; KLQLIT_TRACEBACK=1 shows the calls)\n" in error


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.slow
def test_a_run_folder_continues_and_predicts(config, caplog, tmp_path):
    arguments = [f"--config={config}", f"--run_dir={tmp_path}"]
    assert main(["fit", *arguments]) == 0
    assert (tmp_path / "checkpoints" / "step-4.ckpt").is_file()
    assert main(["fit", *arguments, "--trainer.max_epochs=3"]) == 0
    assert f"continuing from {tmp_path}/checkpoints/step-4.ckpt" in caplog.text
    logged = [row["step"] for row in rows(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert logged == [1, 3, 5]
    sampled = [row["step"] for row in rows(tmp_path / "samples.jsonl")]
    assert sampled == sorted(sampled)
    assert set(sampled) == {2, 4, 6}

    assert main(["validate", *arguments]) == 0
    assert len(rows(tmp_path / "samples.jsonl")) == len(sampled)
    assert main(["test", *arguments]) == 0
    assert main(["predict", *arguments]) == 0
    completions = rows(tmp_path / "completions.jsonl")
    names = {"id", "prompt", "completion", "ended", "score", "columns"}
    assert [set(row) for row in completions] == [names] * len(completions)
    assert all(row["prompt"].startswith("What is the sum of") for row in completions)
    assert all(row["id"] == hashlib.sha256(row["prompt"].encode()).hexdigest()[:16] for row in completions)


@pytest.mark.slow
def test_a_callback_whose_default_is_a_device_can_be_named_alone(config, tmp_path):
    averaging = "--trainer.callbacks+=lightning.pytorch.callbacks.StochasticWeightAveraging"
    options = [f"--config={config}", f"--run_dir={tmp_path}", averaging, "--trainer.callbacks.swa_lrs=1e-3"]
    assert main(["fit", *options]) == 0
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["trainer"]["callbacks"][-1]["init_args"]["device"] == "cpu"


@pytest.mark.slow
def test_a_run_of_no_steps_says_that_nothing_was_trained(config, caplog, tmp_path):
    assert main(["fit", f"--config={config}", f"--run_dir={tmp_path}", "--trainer.max_epochs=0"]) == 0
    exported = f"the model exported to {tmp_path / 'model'} is the one this run started from"
    assert f"no step was taken: {exported}" in caplog.text


@pytest.mark.slow
def test_a_fast_dev_run_leaves_nothing_behind(config, tmp_path):
    """Else the run itself would be taken for finished."""
    run_dir = tmp_path / "runs" / "run"
    options = ["fit", f"--config={config}", f"--run_dir={run_dir}", "--trainer.max_epochs=1"]
    assert main([*options, "--trainer.fast_dev_run=true"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert main(options) == 0
    assert json.loads((run_dir / "run.json").read_text())["starts"][0]["step"] == 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert main([*options, "--trainer.fast_dev_run=true", "--trainer.max_epochs=2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(config, tmp_path):
    for name in ("a", "b"):
        assert main(["fit", f"--config={config}", f"--run_dir={tmp_path / name}"]) == 0
    first, second = (rows(tmp_path / name / "metrics.jsonl") for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert {k: v for k, v in one.items() if "time/" not in k} == {
            k: v for k, v in other.items() if "time/" not in k
        }


def test_a_hub_name_without_network_says_how_to_give_a_path(config, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "klqlit", "fit", f"--config={config}", "--model.policy.path=EleutherAI/pythia-14m"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert result.returncode == 2
    assert "EleutherAI/pythia-14m" in result.stderr
    assert "local" in result.stderr
    assert "Traceback" not in result.stderr
