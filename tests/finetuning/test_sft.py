"""Supervised fine-tuning learns the completions, and only them."""

import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.tuner import Tuner
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import save, tiny_language_model, tiny_tokenizer
from data.real_rows import HH_PAIRS, TLDR, needs_real_rows
from finetuning.runs import STAGES, fit, new_module, source
from klqlit.callbacks.export import Export
from klqlit.data.columns import TableSource
from klqlit.data.hh import HHDialogue
from klqlit.data.reading import read_rows
from klqlit.data.supervised import CompletionDataModule, LabelledSequences, pack
from klqlit.data.tldr import TLDRSummaries
from klqlit.finetuning.sft import SupervisedFinetuning
from klqlit.models.language_model import LanguageModel


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_a_few_rows_are_learned_by_heart_and_exported(tmp_path, architecture):
    rows = [{"prompt": f"Say {c}:", "completion": f" {c}{c}"} for c in "abcd"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tokenizer = tiny_tokenizer(pad_token="<eos>")
    path = save(tmp_path / "start", tiny_language_model(architecture, tokenizer), tokenizer)
    module = SupervisedFinetuning(LanguageModel(path), lr=1e-2, decay="constant")
    held = TableSource(str(tmp_path / "rows.json"), validation_rows=1)
    trainer = fit(
        module,
        CompletionDataModule(held, batch_size=3),
        tmp_path,
        max_steps=80,
        max_epochs=-1,
        callbacks=[Export("out")],
    )
    assert trainer.callback_metrics["train/loss"] < 0.05

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([loaded("Say b:")["input_ids"]])
    torch.testing.assert_close(model(ids).logits, module.model.eval()(ids).logits)
    for row in held.rows("train"):
        prompt = loaded(row["prompt"], return_tensors="pt")
        text = loaded.decode(model.generate(**prompt, do_sample=False, max_new_tokens=9)[0])
        assert text == row["prompt"] + row["completion"] + "<eos>"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Supervised fine-tuned language model" in card
    assert "80 optimizer steps" in card


def test_validation_measures_are_means_over_tokens():
    module = new_module("sft")
    batches = [pack([[5, 6]], [[7, 8, 9]], 0), pack([[5]], [[7]], 0), pack([[5], [9, 9]], [[7, 6], [8]], 0)]
    nll, right = [], []
    for sequences in batches:
        module.validation_step(LabelledSequences(sequences=sequences, tokens=1), 0)
        for prompt, mask, tokens, kept in zip(
            sequences.prompt_tokens, sequences.prompt_mask, sequences.tokens, sequences.mask, strict=True
        ):
            ids = torch.cat([prompt[mask], tokens[kept]])
            logits = module.model(ids[None]).logits[0, int(mask.sum()) - 1 : -1]
            nll += (-logits.log_softmax(-1)[range(len(logits)), tokens[kept]]).tolist()
            right += (logits.argmax(-1) == tokens[kept]).tolist()
    assert len(nll) == 7
    assert module.validation_metrics.compute() == pytest.approx({"loss": sum(nll) / 7, "accuracy": sum(right) / 7})


def test_validation_in_half_precision_adds_up_in_double(tmp_path):
    """Summed in the run's precision, the loss of so many batches is off by tenths."""
    measured = {}
    for precision in ("32-true", "bf16-true"):
        held = TableSource(str(tmp_path / "rows.json"), validation_rows=400)
        source(tmp_path, rows=401)
        trainer = L.Trainer(precision=precision, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
        (measured[precision],) = trainer.validate(new_module("sft"), CompletionDataModule(held, batch_size=4))
    assert measured["bf16-true"]["val/loss"] == pytest.approx(measured["32-true"]["val/loss"], rel=2e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_no_number_is_not_left_out_of_the_mean(tmp_path, stage):
    module, held = new_module(stage), TableSource(str(tmp_path / "rows.json"), validation_rows=3)
    source(tmp_path)
    with torch.no_grad():
        module.model.get_input_embeddings().weight[module.tokenizer("12")["input_ids"][-1]] = math.nan
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (measured,) = trainer.validate(module, STAGES[stage][1](held, batch_size=1))
    assert math.isnan(measured["val/loss"])


def test_perplexity_is_the_exponential_of_the_loss(tmp_path):
    trainer = fit(new_module("sft"), CompletionDataModule(source(tmp_path), batch_size=4), tmp_path)
    measured = trainer.callback_metrics
    assert measured["val/perplexity"].item() == pytest.approx(math.exp(measured["val/loss"].item()))


def test_a_search_for_a_learning_rate(tmp_path):
    search = {"min_lr": 1e-6, "max_lr": 1e-2, "num_training": 4, "update_attr": False}
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, limit_val_batches=0)
    found = Tuner(trainer).lr_find(new_module("sft"), datamodule=CompletionDataModule(source(tmp_path)), **search)
    assert (found.results["lr"][0], found.results["lr"][-1]) == pytest.approx((1e-6, 1e-2))


class Rates(L.Callback):
    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"decay": "constant"}, [1, 1, 1, 1]),
        ({"decay": "constant", "warmup_steps": 2}, [1 / 3, 2 / 3, 1, 1]),
        ({"decay": "cosine"}, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        ({"decay": "cosine", "warmup_steps": 1}, [0.5, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_learning_rates(tmp_path, options, factors):
    rates = Rates()
    fit(new_module("sft", lr=0.1, **options), CompletionDataModule(source(tmp_path), 3), tmp_path, callbacks=[rates])
    assert rates.rates == pytest.approx([0.1 * factor for factor in factors])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be a finite number above 0, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number of at least 0, got -1.0"),
        ({"warmup_steps": -1}, "warmup_steps must be a finite number of at least 0, got -1.0"),
        ({"decay": "Constant"}, "decay='Constant' is not one of constant, cosine"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        new_module("sft", **options)


def test_weights_in_float16_are_refused(tmp_path):
    module = new_module("sft")
    module.model.half()
    with pytest.raises(ValueError, match=r"model\.\S+ is in float16, which AdamW cannot train.* dtype: float32"):
        fit(module, CompletionDataModule(source(tmp_path), 3), tmp_path)


def test_a_cosine_needs_an_end(tmp_path):
    with pytest.raises(ValueError, match="decay='cosine' needs an end: set trainer"):
        fit(new_module("sft"), CompletionDataModule(source(tmp_path), 3), tmp_path, max_epochs=-1)


def test_export_needs_a_module_that_can(tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(ValueError, match="Export needs a module with `export"):
        L.Trainer(accelerator="cpu", logger=False, callbacks=[Export()], default_root_dir=tmp_path).fit(BoringModel())


TLDR_COLUMNS = {"prompt": "query", "completion": "reference_responses"}


@needs_real_rows
@pytest.mark.parametrize("kind", ["hh", "tldr"])
def test_real_rows_lower_the_loss(tmp_path, kind):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(read_rows(str(TLDR if kind == "tldr" else HH_PAIRS))[:300]))
    rows = TLDRSummaries(str(file), columns=TLDR_COLUMNS) if kind == "tldr" else HHDialogue(str(file))
    data = CompletionDataModule(rows, batch_size=8, max_prompt_tokens=60, max_completion_tokens=40)
    module = new_module("sft", lr=1e-2)
    before = fit(module, data, tmp_path, limit_train_batches=1).callback_metrics["val/loss"]
    after = fit(module, data, tmp_path, max_epochs=3).callback_metrics["val/loss"]
    assert after < before - 0.5
