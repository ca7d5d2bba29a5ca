"""What is kept in main memory is left out of what is done to the whole."""

from types import SimpleNamespace

import torch
from torch import nn
from torchmetrics import ExplainedVariance

from klqlit.strategies.fully_sharded import FullySharded
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


def test_slices_stay_where_they_are_and_buffers_move(monkeypatch) -> None:
    """Buffers, such as rotary frequencies, are read with what is gathered on the device."""
    monkeypatch.setattr(FullySharded, "root_device", torch.device("meta"))
    offloaded, trained = nn.BatchNorm1d(2), nn.Linear(2, 2)
    strategy = FullySharded(offload_frozen=True)
    strategy.model = nn.ModuleDict({"reference": offloaded, "policy": trained})
    strategy._models = [
        SimpleNamespace(module=offloaded, layout=SimpleNamespace(offload=True)),
        SimpleNamespace(module=trained, layout=SimpleNamespace(offload=False)),
    ]
    strategy.model_to_device()
    assert {p.device.type for p in trained.parameters()} == {"meta"}
    assert {p.device.type for p in offloaded.parameters()} == {"cpu"}
    assert {b.device.type for b in offloaded.buffers()} == {"meta"}
