"""Parts of a module that are left out of what is done to the whole."""

import torch
from torch import nn
from torchmetrics import ExplainedVariance

from klqlit.strategies.sharded_model import set_aside


def test_metrics_are_moved_with_the_rest() -> None:
    """A metric that is compared with a module gives another metric, which counts as true."""
    part = nn.Linear(2, 2)
    module = nn.ModuleDict({"part": part, "metric": ExplainedVariance()})
    with set_aside(module, [part]):
        module.to("meta")
    assert module["metric"].device == torch.device("meta")
    assert part.weight.device == torch.device("cpu")


def test_what_is_set_aside_is_not_moved_and_comes_back() -> None:
    inner = nn.Linear(2, 2)
    module = nn.ModuleDict({"kept": nn.Sequential(nn.ReLU(), inner), "moved": nn.Linear(2, 2)})
    names = list(module.state_dict())
    with set_aside(module, [inner]):
        module.to(torch.float64)
    assert list(module.state_dict()) == names
    assert {name: p.dtype for name, p in module.named_parameters()} == {
        "kept.1.weight": torch.float32,
        "kept.1.bias": torch.float32,
        "moved.weight": torch.float64,
        "moved.bias": torch.float64,
    }
