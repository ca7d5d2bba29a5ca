"""What a stranger's model or configuration can make happen here: nothing, unless a person has allowed it."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from builders import save, tiny_language_model, tiny_reward_model, tiny_tokenizer
from klqlit.cli import main
from klqlit.data.reading import read_rows
from klqlit.models.critic import SeparateCritic
from klqlit.models.language_model import LanguageModel
from klqlit.models.loading import load_causal_lm, load_reward_model, load_trunk
from klqlit.models.policy import LanguagePolicy
from klqlit.rewards.model import RewardModel


class Exploding:
    """Leaves a proof where a pickle of it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def proof(tmp_path):
    return tmp_path / "proof"


@pytest.fixture
def language_model(tmp_path):
    tokenizer = tiny_tokenizer()
    return save(tmp_path / "lm", tiny_language_model("llama", tokenizer), tokenizer)


@pytest.fixture
def reward_model(tmp_path):
    tokenizer = tiny_tokenizer()
    return save(tmp_path / "rm", tiny_reward_model("llama", tokenizer), tokenizer)


# Pickles -------------------------------------------------------------------------------------------------------------


def spoil(directory, proof, form):
    weights = load_file(Path(directory) / "model.safetensors")
    (Path(directory) / "model.safetensors").unlink()
    file = Path(directory) / "pytorch_model.bin"
    if form == "beside the weights":
        torch.save(weights | {"x": Exploding(proof)}, file)
    elif form == "legacy":
        torch.save(weights | {"x": Exploding(proof)}, file, _use_new_zipfile_serialization=False)
    else:
        file.write_bytes(pickle.dumps(Exploding(proof)))


@pytest.mark.parametrize("form", ["beside the weights", "legacy", "alone"])
@pytest.mark.parametrize("load", [LanguagePolicy, LanguageModel, load_causal_lm, load_trunk])
def test_an_exploding_language_model_does_not(language_model, proof, form, load):
    spoil(language_model, proof, form)
    with pytest.raises(ValueError, match="holds objects other than tensors, which are not loaded") as refusal:
        load(language_model)
    assert "weights_only" not in str(refusal.value)  # torch's advice to load it all the same
    assert not proof.exists()


@pytest.mark.parametrize("form", ["beside the weights", "legacy", "alone"])
def test_an_exploding_reward_model_or_critic_does_not(language_model, reward_model, proof, form):
    policy = LanguagePolicy(language_model)
    spoil(reward_model, proof, form)
    for load in (
        RewardModel,
        load_reward_model,
        lambda path: SeparateCritic(policy, path=path),
        lambda path: SeparateCritic(policy, path=path, head="pretrained"),
    ):
        with pytest.raises(ValueError, match="holds objects other than tensors, which are not loaded"):
            load(reward_model)
    assert not proof.exists()


def test_the_same_pickle_would_explode_elsewhere(proof):
    pickle.loads(pickle.dumps(Exploding(proof)))
    assert proof.exists()


def test_plain_weights_in_a_pickle_are_read(language_model):
    """Old models come so: nothing but tensors is built of them."""
    expected = load_causal_lm(language_model).state_dict()
    weights = load_file(Path(language_model) / "model.safetensors")
    (Path(language_model) / "model.safetensors").unlink()
    torch.save(weights, Path(language_model) / "pytorch_model.bin")
    found = load_causal_lm(language_model).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]", b"{}", b"3", b'{"a": ', b"[" * 5000])
def test_broken_files_of_a_model_are_one_clear_line(language_model, file, content):
    (Path(language_model) / file).write_bytes(content)
    if (file, content) == ("tokenizer_config.json", b"{}"):
        return  # it has a default for everything
    with pytest.raises(ValueError, match=re.escape(language_model)) as refusal:
        LanguagePolicy(language_model)
    assert type(refusal.value) is ValueError
    assert "\n" not in str(refusal.value)


# Code that comes with a model ----------------------------------------------------------------------------------------

CODE = """
import pathlib
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

pathlib.Path({proof!r}).mkdir(exist_ok=True)

class Config(LlamaConfig):
    model_type = "own"

class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def own_code(language_model, proof, tmp_path, monkeypatch):
    """A model of a kind that transformers does not know, with the code of it beside the weights."""
    config = json.loads((Path(language_model) / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (Path(language_model) / "config.json").write_text(json.dumps(config))
    (Path(language_model) / "own.py").write_text(CODE.format(proof=str(proof)))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return language_model


@pytest.mark.parametrize("load", [LanguagePolicy, LanguageModel, load_causal_lm, load_trunk])
def test_code_of_a_model_is_refused_by_a_message_that_names_the_option(own_code, proof, load):
    with pytest.raises(ValueError, match=r"set trust_remote_code: true beside this path") as refusal:
        load(own_code)
    assert own_code in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not proof.exists()


def test_code_of_a_model_runs_where_it_is_allowed(own_code, proof):
    policy = LanguagePolicy(own_code, trust_remote_code=True)
    assert type(policy.model).__name__ == "Model"
    assert proof.exists()


def test_what_one_model_is_allowed_another_is_not(own_code, language_model, proof, tmp_path):
    """The option belongs to the path beside it."""
    tokenizer = tiny_tokenizer()
    plain = save(tmp_path / "plain", tiny_language_model("llama", tokenizer), tokenizer)
    policy = LanguagePolicy(plain, trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code: true beside this path"):
        SeparateCritic(policy, path=own_code)
    assert not proof.exists()


def test_a_script_in_a_directory_of_data_does_not_run(tmp_path, proof, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"import os; os.mkdir({str(proof)!r})")
    (folder / "train.pkl").write_bytes(pickle.dumps(Exploding(proof)))
    with pytest.raises(ValueError, match="scripts are no longer supported"):
        read_rows(str(folder))
    (folder / "data.py").unlink()
    with pytest.raises(ValueError, match="is neither a file here nor a data set"):
        read_rows(str(folder))
    assert not proof.exists()


# Configurations ------------------------------------------------------------------------------------------------------

PLACES = {
    "model": ("model",),
    "policy": ("model", "init_args", "policy"),
    "reference": ("model", "init_args", "reference"),
    "reward": ("model", "init_args", "reward"),
    "gold": ("model", "init_args", "gold"),
    "critic": ("model", "init_args", "critic"),
    "reward function": ("model", "init_args", "reward", "init_args", "function"),
    "hook": ("trainer", "callbacks"),
    "sampler": ("model", "init_args", "sampler"),
    "shaping": ("model", "init_args", "shaping"),
    "optimization": ("model", "init_args", "optimization"),
    "data": ("data",),
    "source": ("data", "init_args", "source"),
    "callbacks": ("trainer", "callbacks"),
    "plugins": ("trainer", "plugins"),
    "strategy": ("trainer", "strategy"),
    "logger": ("trainer", "logger"),
    "profiler": ("trainer", "profiler"),
}
DANGERS = {
    "os.system": {"command": "touch executed"},
    "subprocess.Popen": {"args": "touch executed", "shell": True},
    "builtins.eval": {"source": "open('executed', 'w')"},
    "builtins.exec": {"source": "open('executed', 'w')"},
    "pathlib.Path.touch": {"self": "executed"},
    "shutil.rmtree": {"path": "executed"},
    "runpy.run_path": {"path_name": "executed.py"},
    "importlib.import_module": {"name": "executed"},
    "pickle.loads": {"data": "x"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "executed", "source": "local"},
    "functools.partial": {"func": "os.system", "command": "touch executed"},
    "transformers.pipeline": {"task": "text-generation", "model": "lm", "trust_remote_code": True},
}


@pytest.fixture
def config(tmp_path, language_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.json").write_text(json.dumps([f"What is {i}?" for i in range(8)]))
    (tmp_path / "executed.py").write_text("open('executed', 'w')")
    return {
        "run_dir": "run",
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 0},
        "model": {
            "class_path": "klqlit.KLQ",
            "init_args": {
                "policy": {"class_path": "klqlit.LanguagePolicy", "init_args": {"path": language_model}},
                "reward": {"class_path": "klqlit.FunctionReward", "init_args": {"function": "builtins.len"}},
                "sampler": {"response_length": 4},
            },
        },
        "data": {
            "class_path": "klqlit.OnlineDataModule",
            "init_args": {
                "rollouts": 4,
                "minibatches": 1,
                "epochs": 1,
                "max_prompt_tokens": 32,
                "source": {"class_path": "klqlit.TableSource", "init_args": {"path": "prompts.json"}},
            },
        },
    }


def put(config, path, value):
    inner = config
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = value


@pytest.mark.parametrize("danger", DANGERS)
def test_no_class_path_builds_what_does_not_belong_there(config, capsys, danger):
    before = yaml.safe_dump(config)
    for place, path in PLACES.items():
        changed = yaml.safe_load(before)
        part = {"class_path": danger, "init_args": DANGERS[danger]}
        if place == "hook":
            part = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": part}}
        put(changed, path, [part] if place in ("callbacks", "plugins", "hook") else part)
        Path("bad.yaml").write_text(yaml.safe_dump(changed))
        assert main(["fit", "--config=bad.yaml"]) == 2, place
        assert capsys.readouterr().err.count("klqlit: error: ") == 1, place
        assert not Path("executed").exists(), place
        assert not Path("run").exists(), place


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system"])
@pytest.mark.parametrize("command", ["fit", "predict", "judge"])
def test_no_tag_of_yaml_builds_anything(config, capsys, tag, command):
    Path("bad.yaml").write_text(yaml.safe_dump(config) + f"seed_everything: {tag}\n")
    options = ["--a", "lm", "--b", "reference", "--judge", "LengthJudge"] if command == "judge" else []
    assert main([command, *options, "--config=bad.yaml"]) == 2
    error = capsys.readouterr().err
    assert "bad.yaml' cannot be read: line " in error
    assert "is not allowed" in error
    assert not Path("executed").exists()


def test_a_reward_function_is_called_with_completions_and_nothing_else(config, capsys):
    """Any function can be named; it gets prompts and completions, and what it makes of them must be scores."""
    put(config, ("model", "init_args", "reward", "init_args", "function"), "os.system")
    Path("bad.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config=bad.yaml"]) == 2
    assert "reward.function cannot be called with prompts, completions" in capsys.readouterr().err


def test_an_import_runs_the_module_that_is_named(config, tmp_path, monkeypatch, capsys):
    """Said in docs/security.md: who names a module of their own runs it, even where its class is then refused."""
    (tmp_path / "own_module.py").write_text("open('executed', 'w').close()\nclass Anything: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    config["model"] = {"class_path": "own_module.Anything"}
    Path("bad.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config=bad.yaml"]) == 2
    assert "own_module.Anything does not correspond to a subclass of LightningModule" in capsys.readouterr().err
    assert Path("executed").exists()
