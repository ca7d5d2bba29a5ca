"""Dealing rows to optimizer steps, micro-batches and ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, final

import lightning as L

from klqlit.data.source import Split

Item = TypeVar("Item")


def shard(trainer: L.Trainer) -> tuple[int, int]:
    """This process's rank among those that read different rows, and their number."""
    several = trainer.distributed_sampler_kwargs
    return (0, 1) if several is None else (several["rank"], several["num_replicas"])


def splits(trainer: L.Trainer, stage: str) -> list[Split]:
    """What a stage reads: a training run that never validates needs no validation rows."""
    if stage != "fit":
        return ["validation"]
    return ["train", "validation"] if trainer.limit_val_batches else ["train"]


def split(items: Sequence[Item], size: int, least: int) -> list[Sequence[Item]]:
    """Pieces of `size`; a last piece of fewer than `least` joins the one before it."""
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    if len(pieces) > 1 and len(pieces[-1]) < least:
        pieces[-2:] = [[*pieces[-2], *pieces[-1]]]
    return pieces


def plan_steps(
    order: Sequence[int], lengths: Sequence[int], *, batch_size: int, accumulate: int, ranks: int
) -> list[list[Sequence[int]]]:
    """Rows of each micro-batch of each optimizer step, over all ranks; rank r takes every `ranks`-th from r on.

    A step takes the next `batch_size * accumulate * ranks` rows of `order`, however they are split, and orders them by
    length: neighbours then need little padding, and the step's gradient is the same. Every row is used. Every rank has
    at least one row in each micro-batch, as sharded models must run in step.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    steps = split(order, batch_size * accumulate * ranks, least=ranks)
    return [plan_step(rows, lengths, batch_size=batch_size, ranks=ranks) for rows in steps]


def plan_step(rows: Sequence[int], lengths: Sequence[int], *, batch_size: int, ranks: int) -> list[Sequence[int]]:
    """The micro-batches of one step, or of a pass in which no order matters; see `plan_steps`.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    if len(rows) < ranks:
        raise ValueError(f"{len(rows)} rows cannot be dealt to {ranks} devices: give more rows or use fewer devices")
    return split(sorted(rows, key=lambda row: (-lengths[row], row)), batch_size * ranks, least=ranks)


def check_unchanged(saved: Mapping[str, int], present: Mapping[str, int], part: str) -> None:
    """Refuse to go on within a phase or epoch whose rest would not be what it was.

    Args:
        saved: what decides it, by name, in the checkpoint.
        present: the same now.
        part: "phase" or "epoch".

    Raises:
        ValueError: something differs.
    """
    changed = [f"{name} was {saved[name]} and is {value}" for name, value in present.items() if saved[name] != value]
    if changed:
        raise ValueError(
            f"the checkpoint stands in the middle of its {part}, the rest of which cannot be dealt any more, since "
            f"{', '.join(changed)}: take the old value to the end of the {part}, or a checkpoint saved there"
        )


@final
class Batches:
    """A loader of known length that asks `iterate` for a new pass each time, when its first batch is wanted.

    Lightning then knows the epoch and the position in it, also after a restart within an epoch, so `iterate` can start
    there and the loader has no state of its own. The two state methods say so to Lightning.
    """

    def __init__(self, length: int, iterate: Callable[[], Iterator[Any]]) -> None:
        self._length = length
        self._iterate = iterate

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        yield from self._iterate()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state
