"""Reward modelling learns preferences, and its export scores the same in transformers alone."""

import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from builders import tiny_language_model, tiny_tokenizer
from data.real_rows import HH_PAIRS, needs_real_rows
from finetuning.runs import fit, new_module
from klqlit.callbacks.export import Export
from klqlit.data.columns import TableSource
from klqlit.data.hh import HHDialogue
from klqlit.data.supervised import PreferenceDataModule
from klqlit.finetuning.reward import RewardModelling, measures
from klqlit.models.language_model import LanguageModel
from klqlit.models.loading import load_reward_model


@pytest.mark.parametrize("pad_token", [None, "<eos>", "<pad>"])
def test_a_trivial_preference_is_learned_to_the_end(tmp_path, pad_token):
    rows = [{"prompt": f"Question {i}:", "chosen": f" {i} yes", "rejected": f" {i} no"} for i in range(24)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tokenizer = tiny_tokenizer(pad_token=pad_token)
    module = RewardModelling(LanguageModel.of(tiny_language_model("gpt2", tokenizer), tokenizer), lr=1e-2)
    data = PreferenceDataModule(TableSource(str(tmp_path / "rows.json"), validation_rows=8), batch_size=8)
    trainer = fit(module, data, tmp_path, max_epochs=15, callbacks=[Export()])
    assert trainer.callback_metrics["val/accuracy"] == 1.0
    assert trainer.callback_metrics["val/loss"] < 0.1

    model = load_reward_model(str(tmp_path / "model")).eval()
    assert type(model) is type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [row["prompt"] + row[name] + loaded.eos_token for row in rows for name in ("chosen", "rejected")]
    batch = loaded(texts, padding=True, return_tensors="pt")
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.view(-1, 2)
    assert bool((scores[:, 0] > scores[:, 1]).all())


def test_measures_by_hand():
    """Three pairs of four ordered rightly, each time with probability 3/4: perfectly calibrated."""
    margins = torch.tensor([1.0, 1.0, 1.0, -1.0]) * math.log(3)
    found = measures(margins)
    assert found["accuracy"].item() == 0.75
    assert found["margin"].item() == pytest.approx(math.log(3) / 2)
    assert found["loss"].item() == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    assert found["calibration_error"].item() == pytest.approx(0.0, abs=1e-6)
    # Always right at probability 3/4: off by a quarter.
    assert measures(margins.abs())["calibration_error"].item() == pytest.approx(0.25)


def test_ties_are_worth_a_half():
    found = measures(torch.zeros(3))
    assert (found["accuracy"].item(), found["calibration_error"].item()) == (0.5, 0.0)
    assert found["loss"].item() == pytest.approx(math.log(2))


@needs_real_rows
def test_real_pairs_are_fitted(tmp_path):
    data = PreferenceDataModule(
        HHDialogue(str(HH_PAIRS), validation_rows=20), batch_size=8, max_prompt_tokens=40, max_completion_tokens=24
    )
    module = new_module("reward", lr=3e-3)
    trainer = fit(module, data, tmp_path, overfit_batches=2, max_epochs=30)
    assert trainer.callback_metrics["train/accuracy"] >= 0.875
    assert 0 <= trainer.callback_metrics["val/calibration_error"] <= 1
