"""Weighted means that are right under any split over ranks and micro-batches."""

from collections.abc import Mapping
from typing import final

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric

from klqlit.ranks import everywhere


@final
class Mean(Metric):
    """A mean from sums and counts; `compute` adds both over ranks.

    Double precision: a variance made of mean squares is lost in single precision where the mean is a thousand times the
    deviation.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Float[Tensor, ""], count: Shaped[Tensor, ""] | int) -> None:
        """Add `count` numbers that sum to `total`."""
        # Not in place: what a validation of its own leaves behind are inference tensors.
        self.total = self.total + total.to(self.total)
        self.count = self.count + (count.to(self.count) if isinstance(count, Tensor) else count)

    def compute(self) -> Float[Tensor, ""]:
        """Mean of all numbers."""
        return self.total / self.count


@final
class Means(nn.Module):
    """Means by name, each over all the numbers it was ever given since the last reset."""

    origin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        # New means belong where the module is, whatever the numbers' device: ranks exchange them from there.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    def update(self, name: str, values: Tensor, mask: Bool[Tensor, "..."] | None = None) -> None:
        """Add numbers; where a mask is given, only those at True."""
        if mask is None:
            self.add(name, values.detach().double().sum(), values.numel())
        else:
            self.update_together({name: values}, mask)

    def update_together(self, values: Mapping[str, Float[Tensor, "*B"]], mask: Bool[Tensor, "*B"]) -> None:
        """Add the numbers at True of several quantities: few operators, each of which costs its start."""
        numbers = torch.stack([x.detach().expand_as(mask) for x in values.values()]).double()
        # Not numbers[:, mask]: a GPU would have to tell how many there are before anything else is asked of it.
        totals, count = torch.where(mask, numbers, 0.0).flatten(1).sum(dim=1), mask.sum()
        for name, total in zip(values, totals, strict=True):
            self.add(name, total, count)

    def add(self, name: str, total: Float[Tensor, ""], count: Shaped[Tensor, ""] | int) -> None:
        """Add `count` numbers that sum to `total`."""
        if name not in self.metrics:
            self.metrics[name] = Mean().to(self.origin.device)
        self._mean(name).update(total, count)

    def compute(self) -> dict[str, float]:
        """All means, over all ranks."""
        return {name: float(self._mean(name).compute()) for name in self.metrics}

    def reset(self) -> None:
        """Forget everything, names included."""
        self.metrics.clear()

    def sums(self) -> dict[str, Float[Tensor, "R 2"]]:
        """Sum and count by name and rank: what a checkpoint keeps. All ranks must call it."""
        means = {name: self._mean(name) for name in self.metrics}
        mine = {name: torch.stack([mean.total, mean.count]).cpu() for name, mean in means.items()}
        parts = everywhere(mine)
        return {name: torch.stack([part[name] for part in parts]) for name in mine}

    def restore(self, sums: dict[str, Float[Tensor, "R 2"]]) -> None:
        """Continue from what `sums` returned: each rank from its own part, or, on another number of ranks, the first
        from all of them."""
        several = dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self.reset()
        for name, parts in sums.items():
            own = parts[rank] if len(parts) == ranks else parts.sum(dim=0) * (rank == 0)
            self.add(name, own[0], own[1])

    def _mean(self, name: str) -> Mean:
        mean = self.metrics[name]
        assert isinstance(mean, Mean)
        return mean
