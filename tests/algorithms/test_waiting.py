"""What the CPU waits for while a GPU computes: each number it asks for costs the time to fill the GPU's queue again."""

from collections import Counter
from dataclasses import fields, is_dataclass, replace
from typing import ClassVar

import lightning as L
import pytest
import torch

from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.ppo import PPO
from klqlit.data.online import OnlineDataModule
from klqlit.models.critic import SeparateCritic
from klqlit.models.evaluation import evaluate
from klqlit.models.policy import LanguagePolicy
from klqlit.rollout.sampling import Sampler
from runs import make_data, make_module, make_prompts, make_sequences, make_trainer

ASKS = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.nonzero,
    torch.nonzero,
    torch.Tensor.unique,
    torch.unique,
    torch.Tensor.masked_select,
    torch.masked_select,
}
"""What is answered on the CPU, or has a shape that depends on the numbers."""


class OnGPU(torch.Tensor):
    """Stands for a tensor on a GPU, and so does what is computed from it; what was asked of it is written down."""

    asked: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func in ASKS or (func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and by_mask(args[1])):
            cls.asked.append(func.__name__)
        return result.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else result


def by_mask(index):
    index = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in index)


def on_gpu(x):
    """A tensor there, or a record with all its tensors."""
    if isinstance(x, torch.Tensor):
        return x.as_subclass(OnGPU)
    return replace(x, **{f.name: on_gpu(getattr(x, f.name)) for f in fields(x)}) if is_dataclass(x) else x


@pytest.fixture(autouse=True)
def asked(set_threads):
    """What was asked so far. On one thread, since it is not seen in others."""
    set_threads(1)
    OnGPU.asked = []
    return OnGPU.asked


@pytest.mark.parametrize("responses", [[[20, 21], [22, 23, 24]], [[20, 21], list(range(22, 60))]])
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_both_models_ask_for_the_lengths_of_rows_once(model_dir, architecture, responses, monkeypatch, asked):
    """Rows of similar length, and such as go through the model apart; on a GPU none are packed."""
    monkeypatch.setattr("klqlit.models.states.can_be_packed", lambda trunk: False)
    policy = LanguagePolicy(model_dir(architecture))
    sequences = on_gpu(make_sequences([[3, 4, 5], [6]], responses, left=1, right=2))
    logprobs, values = evaluate(policy, SeparateCritic(policy), sequences, temperature=0.7)
    (logprobs + values).sum().backward()
    assert asked == ["cpu"]


def test_parts_of_sequences_do_not_ask_again(asked):
    whole = on_gpu(make_sequences([[1], [2, 3], [4]], [[5], [6, 7], [8]], left=2, right=3))
    part = whole.select(torch.tensor([2, 0])).select(torch.tensor([1]))
    assert (part.prompt_tokens.shape, part.tokens.shape, part.aligned().tokens.shape) == ((1, 1), (1, 1), (1, 1))
    assert asked == ["cpu"]
    assert [len(places) for places in part.places] == [1, 1]


def test_a_token_asks_only_how_many_responses_go_on(model_dir, asked):
    """And, where the step is not recorded for a GPU, whether there is padding."""
    policy = LanguagePolicy(model_dir("llama"))
    prompts = on_gpu(make_prompts(policy.tokenizer, ["How do I bake bread?", "What is the sum?", "A garden."]))
    Sampler(response_length=5).sample(policy, prompts)
    assert set(asked) == {"__int__", "__bool__"}
    assert asked.count("__int__") == 1 + 5  # which prompts are the same


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_an_optimizer_step_asks_only_whether_the_loss_is_finite(model_dir, tmp_path, algorithm, monkeypatch, asked):
    """And for the norms of the gradients, which are not seen here: they are the weights', which stay where they are."""
    monkeypatch.setattr("klqlit.models.states.can_be_packed", lambda trunk: False)
    # Rollouts wait in main memory, from where a minibatch goes to the GPU.
    move = OnlineDataModule.transfer_batch_to_device
    to_gpu = {
        L.LightningDataModule: lambda data, batch, device, loader: on_gpu(batch),
        OnlineDataModule: lambda data, batch, device, loader: move(data, batch, torch.device("cuda"), loader),
    }
    for kind, moved in to_gpu.items():
        monkeypatch.setattr(kind, "transfer_batch_to_device", moved)

    def in_phase(epochs):
        asked.clear()
        make_trainer(tmp_path, max_epochs=1).fit(make_module(model_dir("gpt2"), algorithm), make_data(epochs=epochs))
        return list(asked)

    few, more = Counter(in_phase(epochs=2)), Counter(in_phase(epochs=3))
    assert set(more) == {"__float__", "cpu"}  # the means, at the end of the phase, come to the CPU
    assert more - few == {"__float__": 2}  # steps


def test_a_minibatch_that_lies_on_the_device_is_not_copied(model_dir, tmp_path):
    class Moved(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            device = batch.experience.mask.device
            assert trainer.datamodule.transfer_batch_to_device(batch, device, 0) is batch
            other = trainer.datamodule.transfer_batch_to_device(batch, torch.device("meta"), 0)
            assert other.experience.mask.device.type == "meta"
            assert other.experience.sequences.lengths is batch.experience.sequences.lengths

    make_trainer(tmp_path, Moved(), max_epochs=1).fit(make_module(model_dir("gpt2")), make_data())
