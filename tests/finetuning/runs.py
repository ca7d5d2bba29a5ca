"""Short runs that several tests look at; run as a script, one of them on two processes."""

import json
import sys
from pathlib import Path

import lightning as L
import torch

from builders import tiny_language_model, tiny_tokenizer
from klqlit.data.columns import TableSource
from klqlit.data.supervised import CompletionDataModule, PreferenceDataModule
from klqlit.finetuning.base import Finetuning
from klqlit.finetuning.reward import RewardModelling
from klqlit.finetuning.sft import SupervisedFinetuning
from klqlit.models.language_model import LanguageModel

STAGES = {
    "sft": (SupervisedFinetuning, CompletionDataModule),
    "reward": (RewardModelling, PreferenceDataModule),
}


class Gradients(L.Callback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[list[torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.steps.append([p.grad.clone() for p in pl_module.parameters() if p.grad is not None])


def source(directory: Path, rows: int = 15) -> TableSource:
    """Rows of unlike lengths; three of them are held out."""
    table = [
        {
            "prompt": f"What is {i}?",
            "completion": " It is" + f" {i}" * (i % 4),
            "chosen": " yes" * (1 + i % 3),
            "rejected": " no",
        }
        for i in range(rows)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rows.json").write_text(json.dumps(table))
    return TableSource(str(directory / "rows.json"), validation_rows=3)


def new_module(stage: str, *, architecture: str = "gpt_neox", **options) -> Finetuning:
    tokenizer = tiny_tokenizer(pad_token="<eos>")
    torch.manual_seed(1)
    return STAGES[stage][0](LanguageModel.of(tiny_language_model(architecture, tokenizer), tokenizer), **options)


def fit(module: Finetuning, data: L.LightningDataModule, directory: Path, **options) -> L.Trainer:
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1} | options
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"], False)
    trainer = L.Trainer(default_root_dir=directory, **(quiet | options))
    trainer.fit(module, datamodule=data)
    return trainer


def gradients(stage: str, directory: Path, *, batch_size: int, **options) -> tuple[list[list[torch.Tensor]], dict]:
    """Gradients of the optimizer steps of one epoch, and what the last step and the validation measured."""
    callback, module = Gradients(), new_module(stage, lr=1e-3)
    trainer = fit(module, STAGES[stage][1](source(directory), batch_size), directory, callbacks=[callback], **options)
    return callback.steps, dict(trainer.callback_metrics)


if __name__ == "__main__":
    stage, folder = sys.argv[1], Path(sys.argv[2])
    found = gradients(stage, folder, batch_size=2, devices=2, strategy="ddp")
    if L.pytorch.utilities.rank_zero_only.rank == 0:
        torch.save(found, folder / "found.pt")
