"""Weighted means that are right under any split over ranks and micro-batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric

from klqlit.ranks import everywhere

AT_ONCE = 64
"""Updates that are added up together at most: what they were given stays in memory until then."""


@final
class Sums(Metric):
    """Sums of several quantities and how many numbers each is of; `compute` adds both over ranks.

    Double precision: a variance made of mean squares is lost in single precision where the mean is a thousand times the
    deviation.

    Args:
        names: of the quantities.
    """

    full_state_update = False
    sums: Float[Tensor, "N 2"]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(names), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, totals: Float[Tensor, " N"], count: Shaped[Tensor, ""] | int) -> None:
        """Add `count` numbers of each quantity that sum to `totals`."""
        totals = totals.to(self.sums)
        counts = count.to(totals).expand_as(totals) if isinstance(count, Tensor) else torch.full_like(totals, count)
        # Not in place: what a validation of its own leaves behind are inference tensors.
        self.sums = self.sums + torch.stack([totals, counts], dim=1)

    def compute(self) -> Float[Tensor, "N 2"]:
        """Sum and count of each quantity."""
        return self.sums


@final
class Means(nn.Module):
    """Means by name, each over all the numbers it was ever given since the last reset.

    Numbers are kept as they come, and added up `AT_ONCE` updates at a time or when somebody asks: between the forward
    and the backward pass of a small model the first operator of its kind costs several times what the next ones do.
    """

    origin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._groups = nn.ModuleDict()
        self._waiting: list[tuple[dict[str, Tensor], Tensor | None]] = []
        # New sums belong where the module is, whatever the numbers' device: ranks exchange them from there.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    def update(self, values: Mapping[str, Shaped[Tensor, "*B"]], mask: Bool[Tensor, "*B"] | None = None) -> None:
        """Add the numbers of quantities of one shape; where a mask is given, only those at True."""
        self._waiting.append(({name: x.detach() for name, x in values.items()}, mask))
        if len(self._waiting) == AT_ONCE:
            self._add_up()

    def _add_up(self) -> None:
        for values, mask in self._waiting:
            numbers = torch.stack([x if mask is None else x.expand_as(mask) for x in values.values()])
            if mask is None:
                count: Shaped[Tensor, ""] | int = numbers[0].numel()
            else:
                # Not numbers[:, mask]: a GPU would have to tell how many there are before anything else is asked of it.
                numbers, count = torch.where(mask, numbers, 0.0), mask.sum()
            totals = numbers.reshape(len(values), -1).sum(dim=1, dtype=torch.float64)
            self._group(tuple(values)).update(totals, count)
        self._waiting.clear()

    def compute(self) -> dict[str, float]:
        """All means, over all ranks."""
        sums = self._by_name(lambda group: group.compute())
        return {name: float(total / count) for name, (total, count) in sums.items()}

    def reset(self) -> None:
        """Forget everything, names included."""
        self._waiting.clear()
        self._groups.clear()

    def sums(self) -> dict[str, Float[Tensor, "R 2"]]:
        """Sum and count by name and rank: what a checkpoint keeps. All ranks must call it."""
        mine = self._by_name(lambda group: group.sums)
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
            self._group([name]).update(own[:1], own[1])

    def _group(self, names: Sequence[str]) -> Sums:
        """The sums of what is always given together under these names."""
        key = " ".join(names)
        if key not in self._groups:
            self._groups[key] = Sums(names).to(self.origin.device)
        group = self._groups[key]
        assert isinstance(group, Sums)
        return group

    def _by_name(self, of: Callable[[Sums], Float[Tensor, "N 2"]]) -> dict[str, Float[Tensor, " 2"]]:
        """Sum and count of each name, on the CPU; one name may stand in several groups."""
        self._add_up()
        sums: dict[str, Tensor] = {}
        for group in self._groups.values():
            assert isinstance(group, Sums)
            for name, pair in zip(group.names, of(group).cpu(), strict=True):
                sums[name] = sums[name] + pair if name in sums else pair
        return sums
