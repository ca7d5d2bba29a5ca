"""Models are read, checked and written; what cannot work is refused by one message."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, GenerationConfig, Phi3Config

from builders import ARCHITECTURES, save, tiny_language_model, tiny_reward_model, tiny_tokenizer
from klqlit.models.determinism import disable_dropout
from klqlit.models.language_model import LanguageModel, completion_logits
from klqlit.models.loading import (
    check_model_path,
    check_vocabulary,
    export,
    independent_positions,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    load_trunk,
    max_positions,
    same_tokenizer,
)
from klqlit.types import Sequences

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def saved(tmp_path, tokenizer):
    return save(tmp_path / "lm", tiny_language_model("gpt_neox", tokenizer), tokenizer)


def test_a_saved_model_is_loaded_as_it_was(saved, tokenizer):
    expected = tiny_language_model("gpt_neox", tokenizer).eval()(IDS)
    torch.testing.assert_close(load_causal_lm(saved).eval()(IDS).logits, expected.logits)
    hidden = tiny_language_model("gpt_neox", tokenizer).base_model.eval()(IDS).last_hidden_state
    torch.testing.assert_close(load_trunk(saved).eval()(IDS).last_hidden_state, hidden)
    assert load_causal_lm(saved, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(saved).eos_token == "<eos>"


@pytest.mark.parametrize("load", [load_tokenizer, load_causal_lm, load_reward_model, load_trunk])
@pytest.mark.parametrize("path", ["./no/model", "/no/model", "runs/sft/model"])
def test_a_missing_directory_is_not_taken_for_a_name_on_the_hub(load, path):
    with pytest.raises(ValueError, match=f"there is no model directory '{path}': check the path"):
        load(path)


def test_a_missing_directory_in_a_folder_that_is_here_is_no_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no model directory 'runs/sft': .* run the stage that makes it first"):
        check_model_path("runs/sft")


def test_a_hub_name_without_network_says_how_to_give_a_directory():
    code = (
        "import klqlit.models.loading as m\n"
        "for load in m.load_tokenizer, m.load_causal_lm, m.load_reward_model:\n"
        "    try: load('owner/some-model')\n"
        "    except ValueError as e: print(e)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.count("'owner/some-model' is neither a directory here nor a") == 3
    assert done.stdout.count("give the path of a local copy") == 3


def test_an_empty_directory_and_a_wrong_dtype_are_refused(tmp_path, saved):
    with pytest.raises(ValueError, match=r"the model in .* cannot be read"):
        load_causal_lm(str(tmp_path))
    with pytest.raises(ValueError, match="dtype='fp32' is not one of auto, float32, bfloat16, float16"):
        load_causal_lm(saved, dtype="fp32")


def test_broken_safetensors_are_refused(saved):
    (Path(saved) / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"the model in .* cannot be read"):
        load_causal_lm(saved)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_is_never_executed(saved, tmp_path):
    marker = tmp_path / "executed"
    (Path(saved) / "model.safetensors").unlink()
    torch.save({"weight": Payload(marker)}, Path(saved) / "pytorch_model.bin")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_causal_lm(saved)
    assert not marker.exists()


def test_code_beside_the_model_runs_only_when_asked_for(saved, tmp_path):
    marker = tmp_path / "executed"
    config = json.loads((Path(saved) / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (Path(saved) / "config.json").write_text(json.dumps(config))
    (Path(saved) / "code.py").write_text(f"import os; os.mkdir({str(marker)!r})\nclass Config: ...\nclass Model: ...\n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_causal_lm(saved)
    assert not marker.exists()


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no EOS token, so a response could never end: set `eos_token`"):
        load_tokenizer(str(tmp_path))


def test_token_ids_must_have_embeddings(tokenizer):
    model = tiny_language_model("llama", tokenizer)
    check_vocabulary(tokenizer, model, "m")
    model.resize_token_embeddings(len(tokenizer) - 1)
    with pytest.raises(ValueError, match=f"ids up to {len(tokenizer) - 1}, but the model has {len(tokenizer) - 1} emb"):
        LanguageModel.of(model, tokenizer, "m")


def test_reward_models_have_one_trained_output(tmp_path, tokenizer, saved):
    good = save(tmp_path / "good", tiny_reward_model("gpt_neox", tokenizer), tokenizer)
    assert load_reward_model(good).config.num_labels == 1
    two = save(tmp_path / "two", tiny_reward_model("gpt_neox", tokenizer, labels=2), tokenizer)
    with pytest.raises(ValueError, match="is no reward model: it has 2 outputs"):
        load_reward_model(two)
    config = json.loads((Path(saved) / "config.json").read_text()) | {
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
    }
    (Path(saved) / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks 1 weights of a GPTNeoXForSequenceClassification \(score\.weight\)"):
        load_reward_model(saved)
    with pytest.raises(ValueError, match=r"lacks 1 weights of a GPTNeoXForCausalLM"):
        load_causal_lm(good)


def test_same_tokenizer_asks_for_the_same_ids():
    assert same_tokenizer(tiny_tokenizer(pad_token=None), tiny_tokenizer(pad_token="<eos>"))
    assert not same_tokenizer(tiny_tokenizer(), tiny_tokenizer(pad_token=None))
    assert not same_tokenizer(tiny_tokenizer(), tiny_tokenizer(vocab_size=300))
    padded = tiny_tokenizer(pad_token=None)
    padded.add_special_tokens({"pad_token": "<|padding|>"})
    assert same_tokenizer(padded, tiny_tokenizer(pad_token=None))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_max_positions(tokenizer, architecture):
    assert max_positions(tiny_language_model(architecture, tokenizer).config) == 128


def test_limits_of_a_part_count_for_the_whole():
    text = {"max_position_embeddings": 96}
    assert max_positions(Gemma3Config(text_config=text)) == independent_positions(Gemma3Config(text_config=text)) == 96


def test_rows_are_independent_up_to_the_length_at_which_longrope_changes():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}
    config = Phi3Config(rope_parameters=rope, original_max_position_embeddings=32, max_position_embeddings=128)
    assert (max_positions(config), independent_positions(config)) == (128, 32)
    usual = Phi3Config(max_position_embeddings=128)
    assert max_positions(usual) == independent_positions(usual) == 128


# Dropout


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_off_in_train_mode_too(tokenizer, architecture, attention):
    model = tiny_language_model(architecture, tokenizer).train()
    model.set_attn_implementation(attention)
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    disable_dropout(model)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    torch.testing.assert_close(model(IDS).logits, model.eval()(IDS).logits)


# Reading sequences


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_never_leaks(tokenizer, architecture):
    model = LanguageModel.of(tiny_language_model(architecture, tokenizer), tokenizer).model
    short = Sequences(
        prompt_tokens=torch.tensor([[5, 6]]),
        prompt_mask=torch.tensor([[True, True]]),
        tokens=torch.tensor([[7, 8, 9]]),
        mask=torch.tensor([[True, True, True]]),
    )
    padded = Sequences(
        prompt_tokens=torch.tensor([[11, 11, 5, 6]]),
        prompt_mask=torch.tensor([[False, False, True, True]]),
        tokens=torch.tensor([[7, 8, 9, 12]]),
        mask=torch.tensor([[True, True, True, False]]),
    )
    plain = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[:, 1:4]
    torch.testing.assert_close(completion_logits(model, short), plain)
    torch.testing.assert_close(completion_logits(model, padded)[:, :3], plain)


# Export


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_export_is_read_by_transformers_alone(tmp_path, tokenizer, architecture):
    model = LanguageModel.of(tiny_language_model(architecture, tokenizer), tokenizer).model
    directory = str(tmp_path / "runs" / "model")
    export(model, tokenizer, directory, card="# A card\n")
    again = AutoModelForCausalLM.from_pretrained(directory)
    torch.testing.assert_close(again.train()(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    # Qwen's tokenizer class adds a token of its own.
    assert tokenizer.get_vocab().items() <= AutoTokenizer.from_pretrained(directory).get_vocab().items()
    assert Path(directory, "README.md").read_text() == "---\nlibrary_name: transformers\n---\n# A card\n"
    assert Path(directory, "model.safetensors").exists()
    settings = GenerationConfig.from_pretrained(directory)
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (settings.do_sample, settings.top_k, settings.top_p, settings.temperature) == (True, 0, 1.0, 1.0)


def test_export_replaces_an_older_model_whole_or_not_at_all(tmp_path, tokenizer, monkeypatch):
    directory = tmp_path / "model"
    export(tiny_language_model("llama", tokenizer), tokenizer, str(directory), card="old")
    (directory / "stale.txt").touch()
    export(tiny_language_model("llama", tokenizer, seed=1), tokenizer, str(directory), card="new")
    assert (directory / "README.md").read_text().endswith("\nnew")
    assert not (directory / "stale.txt").exists()
    monkeypatch.setattr(Path, "write_text", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export(tiny_language_model("llama", tokenizer), tokenizer, str(directory), card="newer")
    monkeypatch.undo()
    assert (directory / "README.md").read_text().endswith("\nnew")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    weights = AutoModelForCausalLM.from_pretrained(directory)(IDS).logits
    torch.testing.assert_close(weights, tiny_language_model("llama", tokenizer, seed=1).eval()(IDS).logits)
