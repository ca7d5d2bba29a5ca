"""Weighted means that are right under any split over ranks and micro-batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric

from klqlit.ranks import everywhere


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

    def update(self, totals: Float[Tensor, " N"], counts: Shaped[Tensor, "*N"] | int) -> None:
        """Add numbers that sum to `totals`: as many of each quantity as `counts` says, or one count for all."""
        totals = totals.to(self.sums)
        counts = counts.to(totals).expand_as(totals) if isinstance(counts, Tensor) else torch.full_like(totals, counts)
        # Not in place: what a validation of its own leaves behind are inference tensors.
        self.sums = self.sums + torch.stack([totals, counts], dim=1)

    def compute(self) -> Float[Tensor, "N 2"]:
        """Sum and count of each quantity."""
        return self.sums


@final
class Means(nn.Module):
    """Means by name, each over all the numbers it was ever given since the last reset.

    What an update was given is summed at once, and the sums are added up when somebody asks for them: in the midst of a
    small model's passes, code that has not run for a while costs several times what it does the second time.
    """

    origin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._groups = nn.ModuleDict()
        self._waiting: list[tuple[tuple[str, ...], Tensor, Tensor | int]] = []
        # New sums belong where the module is, whatever the numbers' device: ranks exchange them from there.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    def update(self, values: Mapping[str, Shaped[Tensor, "*B"]], mask: Bool[Tensor, "*B"] | None = None) -> None:
        """Add the numbers of quantities of one shape; where a mask is given, only those at True.

        They are taken in the widest type among them, and summed in double precision.
        """
        numbers = torch.stack([x.detach() if mask is None else x.detach().expand_as(mask) for x in values.values()])
        if mask is None:
            count: Tensor | int = numbers[0].numel()
        else:
            # Not numbers[:, mask]: a GPU would have to tell how many there are before anything else is asked of it.
            numbers, count = torch.where(mask, numbers, 0.0), mask.sum()
        totals = numbers.reshape(len(values), -1).sum(dim=1, dtype=torch.float64)
        self._waiting.append((tuple(values), totals, count))

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

    def _add_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for names, totals, count in waiting:
            self._group(names).update(totals, count)

    def _group(self, names: Sequence[str]) -> Sums:
        """The sums of what is given together under these names."""
        key = "\n".join(names)
        if key not in self._groups:
            self._groups[key] = self._begun(names)
        return self._sums_at(key)

    def _begun(self, names: Sequence[str]) -> Sums:
        """New sums. They go on from what stood alone, as all does after `restore`: a resumed run then adds up in the
        order of one that was never stopped, to the last bit."""
        group = Sums(names).to(self.origin.device)
        alone = {name: self._sums_at(name).sums[0] for name in names if name in self._groups}
        for name in alone:
            del self._groups[name]
        if alone:
            group.update(*torch.stack([alone.get(name, torch.zeros_like(group.sums[0])) for name in names]).T)
        return group

    def _sums_at(self, key: str) -> Sums:
        group = self._groups[key]
        assert isinstance(group, Sums)
        return group

    def _by_name(self, of: Callable[[Sums], Float[Tensor, "N 2"]]) -> dict[str, Float[Tensor, " 2"]]:
        """Sum and count of each name, on the CPU; one name may stand in several groups."""
        self._add_up()
        sums: dict[str, Tensor] = {}
        for group in map(self._sums_at, self._groups):
            for name, pair in zip(group.names, of(group).cpu(), strict=True):
                sums[name] = sums[name] + pair if name in sums else pair
        return sums
