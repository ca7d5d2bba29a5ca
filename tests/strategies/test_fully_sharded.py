"""Two processes that share every model do what one process does."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from builders import save, tiny_reward_model, tiny_tokenizer
from finetuning import runs as finetuning_runs
from klqlit.strategies.checkpoints import consolidate
from strategies import program

pytestmark = pytest.mark.slow
KINDS = ["klq", "ppo"]


def start(part, out, models, devices):
    """The same program on so many processes."""
    command = [sys.executable, program.__file__, part, str(out), *models, str(devices)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def models(quitter_dir, model_dir, tmp_path_factory):
    """A policy, one whose embeddings are tied, and a reward model."""
    tokenizer = tiny_tokenizer()
    reward = save(tmp_path_factory.mktemp("reward"), tiny_reward_model("llama", tokenizer), tokenizer)
    return [quitter_dir, model_dir("qwen2"), reward]


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """Where all runs left what they saw: two processes, one that goes on from them, and two that go on from it."""
    out = tmp_path_factory.mktemp("runs")
    for part, devices in (("first", 2), ("second", 1), ("third", 2)):
        start(part, out, models, devices)
    return out


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    """The same runs on one process that shares nothing."""
    out = tmp_path_factory.mktemp("alone")
    return {kind: program.run(out, kind, kind, models, program.Uneven()) for kind in KINDS}


@pytest.fixture
def ranks(folder):
    return lambda name, count=2: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(count)]


def close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def losses(parts, accumulate=1):
    """Of each step: micro-batches add up, ranks are averaged."""
    return torch.stack([part["losses"] for part in parts]).mean(dim=0).reshape(-1, accumulate).sum(dim=1)


# Learning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_losses_over_twenty_updates_are_those_of_one_process(alone, ranks, kind):
    parts = ranks(kind)
    assert len(losses(parts)) == 20
    torch.testing.assert_close(losses(parts), losses([alone[kind]]), atol=1e-5, rtol=0)
    close(parts[0]["weights"], alone[kind]["weights"], atol=1e-5, rtol=1e-5)
    close(parts[0]["weights"], parts[1]["weights"], atol=0, rtol=0)


def test_each_process_holds_half(alone, ranks):
    held = [part["held"] for part in ranks("klq")]
    assert sum(held) == alone["klq"]["held"] + 1, "the reward's own weight stays on both"
    assert max(held) < 0.55 * sum(held)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_clipped_by_the_norm_over_all_slices(alone, ranks, kind):
    """The weights above agree; here: clipping had something to do."""
    norms = [torch.nn.utils.get_total_norm(step.values()) for step in ranks(kind)[0]["gradients"]]
    assert max(norms) > program.CLIP
    for mine, theirs in zip(ranks(kind)[1]["gradients"], alone[kind]["gradients"], strict=True):
        close(mine, theirs, atol=2e-6, rtol=1e-4)


def test_the_lean_options_change_no_number(alone, ranks):
    """Lock-step sampling, activation checkpointing, offloading, no resharding, two micro-batches a step."""
    parts = ranks("lean")
    torch.testing.assert_close(losses(parts, accumulate=2), losses([alone["klq"]]), atol=1e-5, rtol=0)
    close(parts[0]["weights"], alone["klq"]["weights"], atol=1e-5, rtol=1e-5)
    # Policy and critic have two blocks each; frozen models keep no activations anyway.
    assert [part["blocks"] for part in parts] == [4, 4]
    assert alone["klq"]["blocks"] == 0


def test_low_precision_is_where_it_was_asked_for(alone, ranks):
    part = ranks("bf16")[0]
    for name, dtype in part["dtypes"].items():
        full = name.startswith(("policy.", "critic.", "reward."))
        assert dtype == ("torch.float32" if full else "torch.bfloat16"), name
    exact, rounded = losses([alone["klq"]])[:4], losses(ranks("bf16"))[:4]
    torch.testing.assert_close(rounded, exact, atol=0.1 * float(exact.max()), rtol=0.2)
    assert (rounded - exact).abs().max() > 1e-5, "nothing was computed in bfloat16"


# Whatever the split --------------------------------------------------------------------------------------------------

SPLITS = [("klq", 1), ("ppo", 1), ("lean", 2), ("klq-ddp", 2), ("ppo-ddp", 2)]


@pytest.mark.parametrize(("name", "accumulate"), SPLITS)
def test_gradients_whitening_and_metrics_are_those_of_the_global_batch(alone, ranks, name, accumulate):
    """One process with 8 rows a step, two with 4, two with twice 2: responses and token counts differ between ranks."""
    kind = "ppo" if name.startswith("ppo") else "klq"
    one, parts = alone[kind], ranks(name)
    steps, phases = len(parts[0]["gradients"]), len(parts[0]["metrics"])
    assert steps == 4 * phases
    torch.testing.assert_close(losses(parts, accumulate), losses([one])[:steps], atol=1e-5, rtol=0)
    for part in parts:
        for mine, theirs in zip(part["gradients"], one["gradients"], strict=False):
            close(mine, theirs, atol=2e-6, rtol=1e-4)
        for mine, theirs in zip(part["advantages"], one["advantages"], strict=False):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
        for mine, theirs in zip(part["metrics"], one["metrics"], strict=False):
            exact = {name for name in theirs if not name.startswith("time/") and name != "train/first_ratio_error"}
            assert {name: mine[name] for name in exact} == pytest.approx(
                {name: theirs[name] for name in exact}, rel=1e-3, abs=1e-5
            )


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_that_of_one_process(alone, ranks, kind):
    for part in ranks(kind):
        assert part["validated"] == pytest.approx(alone[kind]["validated"], rel=1e-3, abs=1e-5)


# Sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unshard", [True, False])
def test_ranks_with_unequal_work_do_not_wait_for_ever(alone, ranks, kind, unshard):
    """Five rows a row at a time on one rank, one row on the other; rewards, references and critics likewise."""
    whole = alone[kind]["uneven"][0][True]
    first, second = (part["uneven"][0][unshard] for part in ranks(kind))
    assert torch.equal(torch.cat([first["tokens"], second["tokens"]]), whole["tokens"])
    numbers = torch.cat([first["numbers"], second["numbers"]], dim=1)
    torch.testing.assert_close(numbers, whole["numbers"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([first["gold"], second["gold"]]), whole["gold"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_needs_another_rank(ranks, kind):
    for part in ranks(kind):
        assert part["uneven"][0][True]["collectives"] == 0
        # What would be counted: in lock-step each token gathers the whole model.
        assert part["uneven"][0][False]["collectives"] > 0


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_then_one_then_two_end_where_one_does(alone, ranks, kind):
    """KLQ by a sharded checkpoint, PPO by a full one; the first is in the middle of a phase."""
    (middle,), (end, _) = ranks(f"{kind}-one", 1), ranks(f"{kind}-again")
    assert (len(middle["losses"]), len(end["losses"])) == (8, 6)
    again = torch.cat([losses([middle]), losses(ranks(f"{kind}-again"))])
    torch.testing.assert_close(again, losses([alone[kind]])[6:], atol=1e-5, rtol=0)
    close(end["weights"], alone[kind]["weights"], atol=1e-5, rtol=1e-5)


def test_sharded_checkpoints_are_folders_and_full_ones_are_files(folder):
    assert sorted(path.name for path in (folder / "klq-6.ckpt").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "meta.pt",
    ]
    assert (folder / "ppo-6.ckpt").is_file()
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_goes_on_under_another_strategy(alone, models, folder, kind, tmp_path):
    """A full checkpoint as it is, a sharded one when consolidated; frozen models stand in neither."""
    file = folder / f"{kind}-6.ckpt"
    if file.is_dir():
        consolidate(str(file), str(tmp_path / "one.ckpt"))
        file = tmp_path / "one.ckpt"
    saved = torch.load(file, weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} >= {"policy", "critic", "shaping"}
    assert not any(name.startswith(("reference.", "reward.", "gold.")) for name in saved["state_dict"])
    end = program.run(tmp_path, kind, kind, models, checkpoint=file)
    torch.testing.assert_close(losses([end]), losses([alone[kind]])[6:], atol=1e-5, rtol=0)
    close(end["weights"], alone[kind]["weights"], atol=1e-5, rtol=1e-5)


def test_torch_consolidates_the_same_weights(folder, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    consolidate(str(folder / "klq-6.ckpt"), str(tmp_path / "ours.ckpt"))
    dcp_to_torch_save(folder / "klq-6.ckpt", tmp_path / "theirs.pt")
    ours, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("ours.ckpt", "theirs.pt"))
    close(ours["state_dict"], theirs["state_dict"], atol=0, rtol=0)


# Export --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KINDS, "lean"])
def test_the_exported_policy_gives_the_same_logits(ranks, folder, name):
    directory = folder / name / "model"
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.architectures == [type(model).__name__]
    with torch.no_grad():
        for part in ranks(name):
            torch.testing.assert_close(model(program.IDS).logits, part["logits"], atol=1e-6, rtol=1e-6)


# Supervised stages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", finetuning_runs.STAGES)
def test_supervised_stages_learn_the_same_when_sharded(ranks, folder, stage, tmp_path):
    steps, measured = finetuning_runs.gradients(stage, tmp_path, batch_size=4)
    for part in ranks(stage):
        torch.testing.assert_close(part["gradients"], steps)
        torch.testing.assert_close(part["measured"], measured)
    kind = {"sft": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}[stage]
    model = kind.from_pretrained(folder / stage / "model")
    assert model.config.architectures == [type(model).__name__]
