"""What cannot be sharded is refused before anything is loaded onto a device."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from builders import tiny_language_model, tiny_tokenizer
from klqlit.models.tabular import TabularPolicy
from klqlit.strategies.fully_sharded import FullySharded, at_hand, shard_models
from klqlit.strategies.sharded_model import transformers_in


def within(strategy: Any) -> Any:
    """A module in a trainer with the strategy."""
    module = L.LightningModule()
    module._trainer = SimpleNamespace(strategy=strategy)
    return module


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_know_none_of_the_models_are_refused(strategy):
    """They would leave each rank with its own, whole and never averaged."""
    with pytest.raises(ValueError, match=rf"{strategy.__name__} does not know .* klqlit.FullySharded"):
        shard_models(within(strategy()), [nn.Linear(2, 2)])


def test_other_strategies_change_nothing():
    layer = nn.Linear(2, 2)
    shard_models(within("any"), [layer])
    assert type(layer) is nn.Linear
    with at_hand(within("any"), layer):
        pass


def test_the_outermost_transformers_are_found():
    model = tiny_language_model("llama", tiny_tokenizer())
    assert transformers_in(nn.ModuleList([nn.Linear(2, 2), nn.Sequential(model)])) == [model]
    assert transformers_in(nn.Linear(2, 2)) == []


def test_a_policy_that_is_no_transformer_is_refused():
    policy = TabularPolicy(torch.zeros(7, 3), prompts=2, horizon=2)
    with pytest.raises(ValueError, match=r"TabularPolicy holds none: use trainer.strategy=ddp"):
        shard_models(within(FullySharded()), [policy])


@pytest.mark.usefixtures("unchecked_types")
def test_a_misspelt_dtype_is_refused():
    with pytest.raises(ValueError, match=r"strategy\.frozen_dtype='bf16' is not one of float32, bfloat16"):
        FullySharded(frozen_dtype="bf16")
