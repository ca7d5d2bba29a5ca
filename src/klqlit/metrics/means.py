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
class Sums(Metric):
    """Sums of several quantities and how many numbers each is of; `compute` adds both over ranks."""

    full_state_update = False
    sums: Float[Tensor, "N 2"]

    def __init__(self, size: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(size, 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Float[Tensor, "N 2"]) -> None:
        """Add the sum and the count of each quantity."""
        self.sums = self.sums + sums

    def compute(self) -> Float[Tensor, "N 2"]:
        """Sum and count of each quantity."""
        return self.sums


@final
class Means(nn.Module):
    """Means by name, each over all the numbers it was ever given since the last reset.

    Double precision: a variance made of mean squares is lost in single precision where the mean is a thousand times the
    deviation.

    What an update was given is summed at once, and the sums are added up when somebody asks for them: in the midst of a
    small model's passes, code that has not run for a while costs several times what it does the second time.
    """

    origin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, tuple[float, float]] = {}
        self._waiting: list[tuple[tuple[str, ...], Tensor, Tensor | int]] = []
        # Ranks exchange sums from where the module is, whatever the numbers' device.
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
        mine = self._added_up()
        if not mine:
            return {}
        everyone = Sums(len(mine)).to(self.origin.device)
        everyone.update(torch.tensor(list(mine.values()), dtype=torch.float64, device=self.origin.device))
        return {name: float(total / count) for name, (total, count) in zip(mine, everyone.compute().cpu(), strict=True)}

    def reset(self) -> None:
        """Forget everything, names included."""
        self._waiting.clear()
        self._sums.clear()

    def sums(self) -> dict[str, Float[Tensor, "R 2"]]:
        """Sum and count by name and rank: what a checkpoint keeps. All ranks must call it."""
        mine = {name: torch.tensor(pair, dtype=torch.float64) for name, pair in self._added_up().items()}
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
            self._sums[name] = float(own[0]), float(own[1])

    def _added_up(self) -> dict[str, tuple[float, float]]:
        """Sum and count of each name so far. They come to the CPU together, and a GPU is waited for once."""
        pairs = []
        for _, totals, count in self._waiting:
            counts = count.to(totals).expand_as(totals) if isinstance(count, Tensor) else torch.full_like(totals, count)
            pairs.append(torch.stack([totals, counts], dim=1).to(self.origin.device))
        names = [name for names, *_ in self._waiting for name in names]
        self._waiting.clear()
        for name, (total, count) in zip(names, torch.cat(pairs).cpu().tolist() if pairs else [], strict=True):
            so_far = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = so_far[0] + total, so_far[1] + count
        return self._sums
