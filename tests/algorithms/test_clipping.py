"""Clipping gradients by the norm that is known already."""

import math

import lightning as L
import pytest
import torch
from torch import nn

from finetuning.runs import fit as finetune
from finetuning.runs import new_module, source
from klqlit.algorithms.divergence import clip_gradients
from klqlit.data.supervised import CompletionDataModule
from runs import make_data, make_module, make_trainer


def with_gradients(*values):
    parameters = [nn.Parameter(torch.zeros(len(value))) for value in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    return parameters, torch.optim.SGD(parameters)


@pytest.mark.parametrize("limit", [0.5, 5.0, 13.0, 20.0])
@pytest.mark.parametrize("algorithm", [None, "norm"])
def test_the_norm_is_bounded_as_torch_bounds_it(limit, algorithm) -> None:
    parameters, optimizer = with_gradients([3.0, 4.0], [12.0])
    twins, _ = with_gradients([3.0, 4.0], [12.0])
    clip_gradients(optimizer, limit, algorithm, 13.0)
    torch.nn.utils.clip_grad_norm_(twins, limit)
    for parameter, twin in zip(parameters, twins, strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, atol=1e-5, rtol=1e-5)


def test_each_number_is_bounded_by_value() -> None:
    (one, other), optimizer = with_gradients([3.0, -4.0], [0.5])
    clip_gradients(optimizer, 1.0, "value", 13.0)
    assert one.grad.tolist() == [1.0, -1.0]
    assert other.grad.tolist() == [0.5]


def test_a_norm_that_is_not_known_does_not_pass_for_a_small_one() -> None:
    (parameter,), optimizer = with_gradients([3.0])
    clip_gradients(optimizer, 1.0, None, math.nan)
    assert math.isnan(parameter.grad)


class AtTheStep(L.Callback):
    """The gradients' norm when the optimizer takes its first step."""

    norm: float | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        def look(optimizer, args, options):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self.norm = self.norm or float(torch.nn.utils.get_total_norm(gradients))

        # After the step, since Lightning computes the gradients within it.
        trainer.optimizers[0].register_step_post_hook(look)


def rl(tmp_path, path, callback, **options):
    make_trainer(tmp_path, callback, max_steps=1, **options).fit(make_module(path), make_data())


def sft(tmp_path, path, callback, **options):
    finetune(
        new_module("sft"),
        CompletionDataModule(source(tmp_path), batch_size=4),
        tmp_path,
        callbacks=[callback],
        max_steps=1,
        **options,
    )


@pytest.mark.parametrize("run", [rl, sft])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_step_is_taken_with_the_bounded_norm(run, precision, quitter_dir, tmp_path) -> None:
    clipped, free = AtTheStep(), AtTheStep()
    run(tmp_path, quitter_dir, clipped, precision=precision, gradient_clip_val=1e-3)
    run(tmp_path, quitter_dir, free, precision=precision, gradient_clip_val=-1)
    assert clipped.norm == pytest.approx(1e-3, rel=1e-4)
    assert free.norm > 1e-2
