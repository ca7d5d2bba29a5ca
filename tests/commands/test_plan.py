"""The memory plan: right beside measured training, scaled over devices, and fast at any size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig, MixtralConfig

from builders import save, tiny_tokenizer
from commands import training_peak
from klqlit.cli import main
from klqlit.planning.device import planned
from klqlit.planning.tracker import Tracker

MIB = 2**20


def shape(kind, hidden, layers, heads, vocab, **others):
    """The configuration of a model."""
    sizes = {"vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return kind(**sizes, max_position_embeddings=1024, eos_token_id=0, bos_token_id=None, **others)


def neox(hidden, *sizes):
    return shape(GPTNeoXConfig, hidden, *sizes, intermediate_size=4 * hidden)


def llama(hidden, layers, heads, vocab):
    options = {"num_key_value_heads": heads // 2, "intermediate_size": 3 * hidden, "tie_word_embeddings": True}
    return shape(LlamaConfig, hidden, layers, heads, vocab, **options)


def mixtral(hidden, layers, heads, vocab):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 2 * hidden}
    options = {"num_key_value_heads": heads // 2, "sliding_window": None}
    return shape(MixtralConfig, hidden, layers, heads, vocab, **experts, **options)


SHAPES = {
    "a large vocabulary": (
        neox(256, 6, 8, 50304),
        {"prompt": 64, "response": 16, "rollouts": 32, "minibatches": 4, "accumulate": 1},
    ),
    "long rows": (
        neox(128, 4, 4, 512),
        {"prompt": 160, "response": 16, "rollouts": 48, "minibatches": 2, "accumulate": 1},
    ),
    "accumulation": (
        llama(384, 6, 6, 4096),
        {"prompt": 48, "response": 24, "rollouts": 64, "minibatches": 2, "accumulate": 2},
    ),
    "experts": (
        mixtral(192, 4, 6, 4096),
        {"prompt": 48, "response": 16, "rollouts": 48, "minibatches": 2, "accumulate": 1},
    ),
}


def write_model(config, folder, weights):
    """The directory of a model; without weights where only its shape is asked for."""
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    if weights:
        torch.manual_seed(0)
        return save(folder, AutoModelForCausalLM.from_config(config), tokenizer)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def options(model, settings, tmp_path, *more):
    """The command line of the same run that `training_peak` makes."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "x"}))
    config = {
        "model": {
            "class_path": "klqlit.KLQ",
            "init_args": {
                "policy": {"class_path": "klqlit.LanguagePolicy", "init_args": {"path": model}},
                "reward": {"class_path": "klqlit.FunctionReward", "init_args": {"function": "builtins.len"}},
                "sampler": {"class_path": "klqlit.Sampler", "init_args": {"response_length": settings["response"]}},
            },
        },
        "data": {
            "class_path": "klqlit.OnlineDataModule",
            "init_args": {
                "source": {"class_path": "klqlit.TableSource", "init_args": {"path": str(tmp_path / "rows.jsonl")}},
                "rollouts": settings["rollouts"],
                "minibatches": settings["minibatches"],
                "max_prompt_tokens": settings["prompt"],
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "limit_val_batches": 0,
            "accumulate_grad_batches": settings["accumulate"],
        },
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    return [f"--config={tmp_path / 'run.yaml'}", *more]


@pytest.fixture
def small(model_dir, tmp_path):
    """Options of a plan for a tiny run."""
    settings = {"prompt": 16, "response": 8, "rollouts": 32, "minibatches": 4, "accumulate": 1}
    return options(model_dir("llama"), settings, tmp_path)


# Beside the truth -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a run")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_peak_is_that_of_training_within_15_percent(shape, model_dir, tmp_path):
    config, settings = SHAPES[shape]
    model = write_model(config, tmp_path / "model", weights=True)
    program = [sys.executable, str(Path(training_peak.__file__))]
    given = json.dumps({"tiny": model_dir("llama"), "model": model} | settings)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, given], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    measured = json.loads(done.stdout.splitlines()[-1])["used"]
    plan = planned(options(model, settings, tmp_path)).plan
    found = plan.peak - plan.libraries
    print(f"{shape}: planned {found / MIB:.0f} MiB, measured {measured / MIB:.0f} MiB, ratio {found / measured:.3f}")
    assert found == pytest.approx(measured, rel=0.15)


# The command ----------------------------------------------------------------------------------------------------------


def test_a_run_that_fits_exits_0_and_one_that_does_not_exits_1_with_remedies(small, capsys):
    assert main(["plan", *small, "--memory", "8"]) == 0
    assert "it fits: peak" in capsys.readouterr().out
    assert main(["plan", *small, "--memory", "0.01"]) == 1
    out = capsys.readouterr().out
    assert "it does not fit" in out
    assert "trainer.accumulate_grad_batches: twice as many: about" in out


def test_sharding_divides_what_lasts_and_the_batch_is_divided_either_way(small):
    alone, copies, shards = (
        planned(small, devices=devices, sharding=sharding)
        for devices, sharding in ((1, "none"), (4, "none"), (4, "fsdp"))
    )
    assert (alone.sizes.micro, copies.sizes.micro, shards.sizes.micro) == (8, 2, 2)
    assert copies.plan.states == alone.plan.states
    assert shards.plan.states.total == pytest.approx(alone.plan.states.total / 4)
    assert alone.plan.states.optimizer == 2 * alone.plan.states.trained
    assert set(copies.plan.exchange.values()) == {alone.plan.states.trained}


@pytest.mark.parametrize(("given", "devices"), [("0,1", 2), ("[0,1]", 2), ("4", 4), ("0,", 1), ("auto", 1), ("-1", 1)])
def test_the_configurations_devices_are_counted_as_a_run_takes_them(small, monkeypatch, given, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = planned([*small, f"--trainer.devices={given}"])
    assert (found.devices, found.sizes.micro) == (devices, 8 // devices)


@pytest.mark.skipif(sys.platform != "linux", reason="weights are moved to a file on Linux only")
def test_frozen_weights_in_a_file_count_where_they_are_read(small):
    """The only frozen model is the reference. It is sampled from in validation, and split lies in no file."""
    in_file, validated, split, on_gpu = (
        [stage.frozen for stage in planned([*small, *more], devices=devices, sharding=sharding, memory=8).plan.stages]
        for devices, sharding, more in (
            (1, "none", []),
            (1, "none", ["--trainer.limit_val_batches=1"]),
            (4, "fsdp", []),
            (1, "none", ["--trainer.accelerator=cuda"]),
        )
    )
    whole = in_file[1]
    assert whole > 0
    assert in_file == [0, whole, 0]
    assert validated == [whole, whole, 0]
    assert split == [whole / 4] * 3
    assert on_gpu == [whole] * 3
    copies, shards = (planned(small, devices=4, sharding=sharding, memory=1e-6) for sharding in ("none", "fsdp"))
    remedy = next(remedy for remedy in copies.remedies if "fsdp" in remedy.what)
    # Roughly: a remedy knows nothing of what is gathered.
    exchanged = shards.plan.exchange["update"] - copies.plan.exchange["update"] / 4
    assert remedy.peak == pytest.approx(shards.plan.peak - (1 + shards.plan.gaps) * exchanged, rel=0.02)


def test_half_the_rows_take_half_the_activations(small):
    whole, half = (planned([*small, f"--trainer.accumulate_grad_batches={n}"]).plan for n in (2, 4))
    assert half.stages[2].activations == pytest.approx(whole.stages[2].activations / 2, rel=0.05)


def test_what_is_computed_on_other_threads_is_seen_too(small, set_threads):
    stages = []
    for threads in (1, 2):
        set_threads(threads)
        stages.append(planned(small).plan.stages)
    assert stages[0] == stages[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.devices=x"], "trainer.devices=x: give a number of devices, such as 1, indices as 0,1, or auto"),
        (["--trainer.devices=0"], "trainer.devices=0: give a number of devices"),
        (["--devices", "3"], "cannot be split evenly over 3 devices"),
        (["--memory", "-1"], "--memory -1.0 must be above 0"),
        (["--sharding", "fully"], "invalid choice: 'fully'"),
        (["--model.tua=1"], "tua"),
    ],
)
def test_a_mistake_is_one_line(small, more, message, capsys):
    assert main(["plan", *small, *more]) == 2
    assert message in capsys.readouterr().err


def test_what_is_freed_no_longer_counts():
    tracker = Tracker(filler=1)
    with tracker:
        x = torch.empty(2**20, dtype=torch.float32)
        y = x * 2
        assert tracker.now == 8 * MIB
        del x
        assert tracker.now == 4 * MIB
        assert y.view(2, -1).shape == (2, 2**19)
        assert tracker.now == 4 * MIB
        assert tracker.peak == 8 * MIB
