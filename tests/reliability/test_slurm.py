"""Jobs on a real SLURM cluster of one node: ranks, the time limit, requeueing, arrays, wrong layouts."""

import json
from pathlib import Path

import pytest
import torch

from builders import save, tiny_tokenizer
from reliability import slurm_cluster
from reliability.slurm_cluster import Cluster, wait
from runs import quitter

ROOT = Path(__file__).parents[2]

# One cluster, and one worker of the suite that waits for it.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]

CONFIG = """
run_dir: run
trainer: {max_epochs: 16, accelerator: cpu, limit_val_batches: 0}
model:
  class_path: klqlit.KLQ
  init_args:
    policy: {class_path: klqlit.LanguagePolicy, init_args: {path: policy}}
    reward: {class_path: klqlit.FunctionReward, init_args: {function: held.reward}}
    sampler: {response_length: 6}
    optimization: {lr: 1.0e-3, decay: linear}
data:
  class_path: klqlit.OnlineDataModule
  init_args:
    rollouts: 8
    minibatches: 2
    epochs: 2
    max_prompt_tokens: 32
    seed: ${seed_everything}
    source: {class_path: klqlit.TableSource, init_args: {path: prompts.json}}
checkpoint: {every_n_epochs: 100}
"""
STEPS = 64

REWARD = """
import os, time
from pathlib import Path

calls = 0
name = os.environ.get("SLURM_ARRAY_TASK_ID", "job")

def reward(prompts, completions, **_):
    "Vowels; the third phase waits while there is a file that says so."
    global calls
    calls += 1
    if calls == 3 and Path(f"hold-{name}").exists():
        Path(f"held-{name}-{os.environ['SLURM_PROCID']}").touch()
        while Path(f"hold-{name}").exists():
            time.sleep(0.05)
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What a job needs: model, prompts, reward, configuration."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = tiny_tokenizer()
    save(folder / "policy", quitter(tokenizer), tokenizer)
    (folder / "prompts.json").write_text(json.dumps([f"What is the sum of {i} and two?" for i in range(40)]))
    (folder / "held.py").write_text(REWARD)
    (folder / "tiny.yaml").write_text(CONFIG)
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def workplace(tmp_path, files, cluster, monkeypatch):
    """A folder to submit from, like the repository's root."""
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setitem(cluster.environment, "PYTHONPATH", f"{ROOT / 'src'}:{tmp_path}")
    return tmp_path


def submit(cluster, workplace, *options, arguments=()):
    """The shipped script, on a node without GPUs."""
    here = ["--gpus-per-node=0", "--cpus-per-task=1", *options, "scripts/klqlit.sbatch"]
    return cluster.submit(*here, "--config=tiny.yaml", *arguments, cwd=workplace)


def hold(workplace, *names):
    for name in names:
        (workplace / f"hold-{name}").touch()


def wait_until_held(workplace, name, ranks):
    paths = [workplace / f"held-{name}-{rank}" for rank in range(ranks)]
    wait(f"{name} in its third phase", lambda: all(path.exists() for path in paths))


def release(workplace, name):
    (workplace / f"hold-{name}").unlink()


def rows(path):
    """Metrics without times."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if "time/" not in name} for row in found]


def record(run):
    return json.loads((run / "run.json").read_text())


def final(run):
    return torch.load(run / "checkpoints" / f"step-{STEPS}.ckpt", weights_only=True)


def assert_same(one, other):
    """Tensors, and numbers, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


def test_a_job_that_meets_its_time_limit_ends_as_if_it_had_not(cluster, workplace):
    """Two ranks, stopped in the middle of the run by the signal that SLURM sends before the limit."""
    options = ["--ntasks-per-node=2", "--time=60", "--signal=USR1@30"]
    whole = submit(cluster, workplace, *options, "--job-name=whole", arguments=["--run_dir=whole"])
    cluster.wait_for(whole, "COMPLETED")

    hold(workplace, "job")
    cut = submit(cluster, workplace, *options, "--job-name=cut", arguments=["--run_dir=cut"])
    wait_until_held(workplace, "job", ranks=2)
    # A limit is a minute at least; this one is a minute from now.
    cluster.call("scontrol", "update", f"JobId={cut}", "EndTime=now+1minute")
    wait("SLURM's signal", lambda: f"job_signal: 10 of running JobId={cut} successful" in cluster.controller_log())
    release(workplace, "job")
    cluster.wait_for(cut, "COMPLETED")

    assert cluster.job(cut)["Restarts"] == "1"
    starts = record(workplace / "cut")["starts"]
    assert [start["ranks"] for start in starts] == [2, 2]
    assert starts[0]["step"] == 0
    assert 0 < starts[1]["step"] < STEPS
    assert f"SLURM job {cut} is queued again" in cluster.log(cut)
    assert "auto-requeueing" not in cluster.log(cut)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(final(workplace / "cut")[part], final(workplace / "whole")[part])
    assert rows(workplace / "cut" / "metrics.jsonl") == rows(workplace / "whole" / "metrics.jsonl")


def test_seeds_of_an_array_have_run_folders_and_requeues_of_their_own(cluster, workplace):
    hold(workplace, "2")
    options = ["--array=1-2", "--ntasks-per-node=1"]
    job = submit(cluster, workplace, *options, arguments=["--run_dir=runs/seed-${seed_everything}"])
    wait_until_held(workplace, "2", ranks=1)
    cluster.call("scancel", "--signal=USR1", f"{job}_2")
    release(workplace, "2")
    for task, restarts in (("1", "0"), ("2", "1")):
        cluster.wait_for(f"{job}_{task}", "COMPLETED")
        assert cluster.job(f"{job}_{task}")["Restarts"] == restarts
        assert len(record(workplace / "runs" / f"seed-{task}")["starts"]) == 1 + int(restarts)
    first, second = (final(workplace / "runs" / f"seed-{seed}")["state_dict"] for seed in (1, 2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_job_that_may_not_be_requeued_is_saved_and_says_so(cluster, workplace):
    hold(workplace, "job")
    job = submit(cluster, workplace, "--no-requeue")
    wait_until_held(workplace, "job", ranks=1)
    cluster.call("scancel", "--signal=USR1", job)
    release(workplace, "job")
    cluster.wait_for(job, "FAILED")
    assert cluster.job(job)["Restarts"] == "0"
    assert cluster.job(job)["ExitCode"] == "138:0"
    assert f"SLURM job {job} is not queued again" in cluster.log(job)
    assert list((workplace / "run" / "checkpoints").glob("step-*.ckpt"))


def test_a_layout_that_does_not_fit_is_one_clear_error(cluster, workplace):
    job = submit(cluster, workplace, "--ntasks-per-node=2", arguments=["--trainer.devices=1"])
    cluster.wait_for(job, "FAILED")
    errors = [line for line in cluster.log(job).splitlines() if line.startswith("klqlit: error:")]
    assert errors == [
        "klqlit: error: trainer.devices=1 on trainer.num_nodes=1 does not fit the SLURM job, which has 2 tasks on 1 "
        "nodes: add --config configs/slurm.yaml, which takes both from the job, or make devices the tasks of a node"
    ]
    assert cluster.job(job)["ExitCode"] == "2:0"
    assert not (workplace / "run").exists()


def test_an_array_in_one_run_folder_is_refused(cluster, workplace):
    job = submit(cluster, workplace, "--array=1-1")
    cluster.wait_for(f"{job}_1", "FAILED")
    assert "the seeds of an array need a run folder each: add --run_dir 'runs/NAME/seed-${" in cluster.log(f"{job}_1")
