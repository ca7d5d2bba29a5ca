"""The gradient of an optimizer step does not depend on how it is split over micro-batches and processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from builders import tiny_language_model, tiny_tokenizer
from finetuning.runs import STAGES, fit, gradients, new_module, source
from klqlit.algorithms.divergence import Divergence
from klqlit.data.supervised import CompletionDataModule
from klqlit.models.language_model import LanguageModel


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 2), (1, 4)])
def test_micro_batches_change_no_gradient(tmp_path, stage, batch_size, accumulate):
    whole, measured = gradients(stage, tmp_path, batch_size=4)
    parts, same = gradients(stage, tmp_path, batch_size=batch_size, accumulate_grad_batches=accumulate)
    assert len(whole) == len(parts) == 3
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(same, measured)
    assert max(float(g.abs().max()) for g in whole[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_processes_change_no_gradient(tmp_path, stage):
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "finetuning" / "runs.py"), stage, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    steps, measured = torch.load(tmp_path / "found.pt")
    whole, same = gradients(stage, tmp_path, batch_size=4)
    torch.testing.assert_close(steps, whole)
    torch.testing.assert_close(measured, same)


def test_the_gradient_is_that_of_a_mean_over_tokens(tmp_path):
    """By hand: one row at a time without padding, log-softmax, sum over all rows, divided by all tokens."""
    steps, _ = gradients("sft", tmp_path, batch_size=5, accumulate_grad_batches=3)
    module, total, count = new_module("sft"), torch.zeros(()), 0
    for row in source(tmp_path).rows("train"):
        prompt = module.tokenizer(row["prompt"])["input_ids"]
        completion = [*module.tokenizer(row["completion"])["input_ids"], module.tokenizer.eos_token_id]
        logits = module.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        total = total - logits.log_softmax(dim=-1)[range(len(completion)), completion].sum()
        count += len(completion)
    (total / count).backward()
    torch.testing.assert_close(steps[0], [p.grad for p in module.parameters()])


def test_the_gradient_is_that_of_a_mean_over_pairs(tmp_path):
    steps, _ = gradients("reward", tmp_path, batch_size=5, accumulate_grad_batches=3)
    module, rows = new_module("reward"), source(tmp_path).rows("train")
    total = torch.zeros(())
    for row in rows:
        scores = []
        for name in ("chosen", "rejected"):
            ids = module.tokenizer(row["prompt"] + row[name] + module.tokenizer.eos_token)["input_ids"]
            scores.append(module.model(torch.tensor([ids])).logits[0, 0])
        total = total + torch.log1p(torch.exp(scores[1] - scores[0]))
    (total / len(rows)).backward()
    torch.testing.assert_close(steps[0], [p.grad for p in module.parameters()])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    module = new_module("sft")
    with torch.no_grad():
        module.model.get_output_embeddings().weight[0] = torch.nan
    with pytest.raises(Divergence, match="the loss became nan at optimizer step 0"):
        fit(module, CompletionDataModule(source(tmp_path), batch_size=4), tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_is_loaded_without_a_trainer(tmp_path, stage):
    trained = new_module(stage, lr=1e-2)
    fit(trained, STAGES[stage][1](source(tmp_path)), tmp_path).save_checkpoint(tmp_path / "at.ckpt")
    tokenizer = tiny_tokenizer(pad_token="<eos>")
    start = LanguageModel.of(tiny_language_model("gpt_neox", tokenizer), tokenizer)
    loaded = STAGES[stage][0].load_from_checkpoint(tmp_path / "at.ckpt", weights_only=True, model=start)
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)
