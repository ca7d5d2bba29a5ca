"""Jobs on a real SLURM cluster of two nodes on this machine: the time limit, requeueing, arrays, wrong layouts."""

import json
from pathlib import Path

import pytest
import torch

from builders import save, tiny_tokenizer
from reliability import slurm_cluster
from reliability.slurm_cluster import LOOPBACK, Cluster, listening, wait
from runs import quitter

ROOT = Path(__file__).parents[2]

# They share one cluster and its jobs, so that all run on one worker of the suite.
pytestmark = [
    pytest.mark.slow,
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
name = os.environ["SLURM_JOB_NAME"] + os.environ.get("SLURM_ARRAY_TASK_ID", "")

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
def workplace(tmp_path_factory):
    """A folder to submit from, like the repository's root, with all that a job needs."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = tiny_tokenizer()
    save(folder / "policy", quitter(tokenizer), tokenizer)
    (folder / "prompts.json").write_text(json.dumps([f"What is the sum of {i} and two?" for i in range(40)]))
    (folder / "held.py").write_text(REWARD)
    (folder / "tiny.yaml").write_text(CONFIG)
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module", autouse=True)
def jobs(cluster, workplace):
    """Numbers of all jobs, submitted together since most of their time is spent waiting."""
    cluster.environment |= {"PYTHONPATH": f"{ROOT / 'src'}:{workplace}", "GLOO_SOCKET_IFNAME": "lo"}
    hold(workplace, "cut", "whole", "seeds1", "seeds2")
    limit = ["--time=60", "--signal=USR1@90"]
    seeds = "--run_dir=runs/seed-${seed_everything}"

    def submit(name, *options, arguments):
        """The shipped script, on a node without GPUs."""
        here = ["--gpus-per-node=0", "--cpus-per-task=1", f"--job-name={name}", *options, "scripts/klqlit.sbatch"]
        return cluster.submit(*here, "--config=tiny.yaml", *arguments, cwd=workplace)

    numbers = {
        "cut": submit("cut", "--nodes=2", "--ntasks-per-node=1", *limit, arguments=["--run_dir=cut"]),
        "seeds": submit("seeds", "--array=1-2", arguments=[seeds]),
        "whole": submit("whole", "--ntasks-per-node=2", *limit, arguments=["--run_dir=whole"]),
        "layout": submit("layout", "--ntasks-per-node=2", arguments=["--trainer.devices=1", "--run_dir=layout"]),
        "folder": submit("folder", "--array=1-1", arguments=["--run_dir=folder"]),
    }
    # Told now, so that they come back while the first test waits.
    tell_seeds(cluster, workplace, numbers["seeds"])
    return numbers


def tell_seeds(cluster, workplace, job):
    """Both tasks of the array get the time limit's signal; only the second may be queued again."""
    for seed in (1, 2):
        wait_until_held(workplace, f"seeds{seed}", ranks=1)
    # As if submitted with --no-requeue.
    cluster.call("scontrol", "update", f"JobId={job}_1", "Requeue=0")
    for seed in (1, 2):
        cluster.call("scancel", "--signal=USR1", f"{job}_{seed}")
        release(workplace, f"seeds{seed}")


def hold(workplace, *names):
    for name in names:
        (workplace / f"hold-{name}").touch()


def wait_until_held(workplace, name, ranks):
    paths = [workplace / f"held-{name}-{rank}" for rank in range(ranks)]
    wait(f"{name} in its third phase", lambda: all(path.exists() for path in paths))


def release(workplace, name):
    (workplace / f"hold-{name}").unlink(missing_ok=True)


def rows(path):
    """Metrics without times."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if "time/" not in name} for row in found]


def configs(runs):
    return [(run / "config.yaml").read_text() for run in runs]


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


def test_a_job_of_one_node_meets_on_loopback_and_so_do_the_daemons(cluster, workplace, jobs):
    wait_until_held(workplace, "whole", ranks=2)
    ports = [*cluster.ports, 15000 + int(jobs["whole"])]
    assert listening(ports) == [(port, LOOPBACK) for port in sorted(ports)]
    release(workplace, "whole")


def test_a_job_that_meets_its_time_limit_ends_as_if_it_had_not(cluster, workplace, jobs):
    """Two ranks on two nodes, stopped in the middle by the signal that SLURM sends before the limit; and two on one."""
    cut = jobs["cut"]
    wait_until_held(workplace, "cut", ranks=2)
    # The limit, at first an hour, so that a slow machine comes this far, is two minutes from now.
    cluster.call("scontrol", "update", f"JobId={cut}", "EndTime=now+2minutes")
    wait("SLURM's signal", lambda: f"job_signal: 10 of running JobId={cut} successful" in cluster.controller_log())
    release(workplace, "cut")
    release(workplace, "whole")
    for name in ("cut", "whole"):
        cluster.wait_for(jobs[name], "COMPLETED")

    assert [cluster.job(jobs[name])["Restarts"] for name in ("cut", "whole")] == ["1", "0"]
    starts = record(workplace / "cut")["starts"]
    assert [start["ranks"] for start in starts] == [2, 2]
    assert starts[0]["step"] == 0
    assert 0 < starts[1]["step"] < STEPS
    assert f"SLURM job {cut} is queued again" in cluster.log(cut)
    assert "auto-requeueing" not in cluster.log(cut)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(final(workplace / "cut")[part], final(workplace / "whole")[part])
    assert rows(workplace / "cut" / "metrics.jsonl") == rows(workplace / "whole" / "metrics.jsonl")


def test_seeds_of_an_array_are_requeued_one_by_one_where_they_may_be(cluster, workplace, jobs):
    first, second = (f"{jobs['seeds']}_{seed}" for seed in (1, 2))
    cluster.wait_for(first, "FAILED")
    cluster.wait_for(second, "COMPLETED")

    assert [cluster.job(job)["Restarts"] for job in (first, second)] == ["0", "1"]
    assert f"SLURM job {first} is not queued again" in cluster.log(first)
    assert f"SLURM job {second} is queued again" in cluster.log(second)
    folders = [workplace / "runs" / f"seed-{seed}" for seed in (1, 2)]
    assert [len(record(folder)["starts"]) for folder in folders] == [1, 2]
    assert [record(folder)["state"] for folder in folders] == ["stopped", "finished"]
    assert list((folders[0] / "checkpoints").glob("step-*.ckpt"))
    assert ["seed_everything: 1" in config.splitlines() for config in configs(folders)] == [True, False]
    assert ["seed_everything: 2" in config.splitlines() for config in configs(folders)] == [False, True]
    one, other = (rows(folder / "metrics.jsonl")[0] for folder in folders)
    assert one != other


def test_a_layout_that_does_not_fit_is_one_clear_error(cluster, workplace, jobs):
    cluster.wait_for(jobs["layout"], "FAILED")
    errors = [line for line in cluster.log(jobs["layout"]).splitlines() if line.startswith("klqlit: error:")]
    assert errors == [
        "klqlit: error: trainer.devices=1 on trainer.num_nodes=1 does not fit the SLURM job, which has 2 tasks on 1 "
        "nodes: add --config configs/slurm.yaml, which takes both from the job, or make devices the tasks of a node"
    ]
    assert not (workplace / "layout").exists()


def test_an_array_in_one_run_folder_is_refused(cluster, workplace, jobs):
    cluster.wait_for(f"{jobs['folder']}_1", "FAILED")
    advice = "the seeds of an array need a run folder each: add --run_dir 'runs/NAME/seed-${seed_everything}'"
    assert advice in cluster.log(f"{jobs['folder']}_1")
    assert not (workplace / "folder").exists()
