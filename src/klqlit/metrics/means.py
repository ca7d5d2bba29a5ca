"""Weighted means that are right under any split over ranks and micro-batches."""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics import MeanMetric


@final
class Means(nn.Module):
    """Means by name, each over all the numbers it was ever given since the last reset.

    A thin shell over one `torchmetrics.MeanMetric` a name: states are sums, and `compute` adds them over ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()

    def update(self, name: str, values: Tensor, mask: Bool[Tensor, "..."] | None = None) -> None:
        """Add numbers; where a mask is given, only those at True."""
        if name not in self.metrics:
            self.metrics[name] = MeanMetric(nan_strategy="disable").to(values.device)
        self.metrics[name].update(values.detach() if mask is None else values.detach()[mask])

    def compute(self) -> dict[str, float]:
        """All means, over all ranks."""
        return {name: float(metric.compute()) for name, metric in self.metrics.items()}

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.metrics.values():
            metric.reset()

    def sums(self) -> dict[str, Float[Tensor, "2"]]:
        """Weighted sum and weight by name: what a checkpoint keeps."""
        return {
            name: torch.stack([metric.mean_value, metric.weight]).detach().cpu()
            for name, metric in self.metrics.items()
        }

    def restore(self, sums: dict[str, Float[Tensor, "2"]]) -> None:
        """Continue from what `sums` returned."""
        for name, (total, weight) in sums.items():
            self.metrics[name] = MeanMetric(nan_strategy="disable")
            self.metrics[name].mean_value = total.clone()
            self.metrics[name].weight = weight.clone()
            self.metrics[name]._update_count = 1
