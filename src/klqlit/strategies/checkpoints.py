"""Checkpoints of models that are split over ranks: one folder with a file a rank, or one file.

The folder holds tensors in torch's distributed format and everything else in `meta.pt`, as Lightning lays it out. The
file is the same that any other strategy writes. No pickled object is ever built from either.
"""

import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from klqlit.run_folder import META
from klqlit.strategies.records import RecordsUnpickler
from klqlit.strategies.sharded_checks import check_sharded
from klqlit.strategies.sharded_model import whole

State = dict[str, Any]


def is_sharded(path: Path) -> bool:
    """Whether there is a complete checkpoint in a folder."""
    return (path / META).is_file()


def save_sharded(checkpoint: State, path: Path) -> None:
    """Write a folder, each rank its own part; it is complete when `meta.pt` is there. All ranks call this.

    Raises:
        OSError: on all ranks, where one of them cannot write its part of the tensors.
    """
    first, rest = dist.get_rank() == 0, dict(checkpoint)
    if first:
        # No rank writes before the first one's plan, which comes after this.
        shutil.rmtree(path, ignore_errors=True)
        if path.is_file():
            path.unlink()
    tensors: State = {"state_dict": rest.pop("state_dict")}
    for i, optimizer in enumerate(rest.get("optimizer_states", [])):
        tensors[f"optimizer_{i}"] = {str(number): state for number, state in optimizer["state"].items()}
    if "optimizer_states" in rest:
        rest["optimizer_states"] = [{"param_groups": o["param_groups"]} for o in rest["optimizer_states"]]
    try:
        dcp.save(tensors, checkpoint_id=str(path))
    except dcp.api.CheckpointException as error:  # not an Exception to torch
        raise OSError(str(error)) from error
    if first:
        torch.save(rest, path / META)


def load_sharded(path: Path, state_dict: dict[str, Tensor], parameters: list[list[Tensor]]) -> State:
    """Read a folder; each rank takes its part, whatever the number of ranks that wrote it.

    Args:
        path: the folder.
        state_dict: the model's; those of its tensors that the checkpoint has are overwritten.
        parameters: of each optimizer whose state is wanted.

    Returns:
        The checkpoint as Lightning wants it.

    Raises:
        ValueError: the folder is damaged, or holds what could run code.
    """
    check_sharded(str(path))
    reader = SafeReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    tensors: State = {"state_dict": {name: own for name, own in state_dict.items() if f"state_dict.{name}" in stored}}
    for i, parameters_of_one in enumerate(parameters):
        tensors[f"optimizer_{i}"] = _empty_state(stored, f"optimizer_{i}.", parameters_of_one)
    dcp.load(tensors, storage_reader=reader)
    checkpoint = torch.load(path / META, weights_only=True)
    return _joined(checkpoint, tensors)


def consolidate(folder: str, file: str) -> None:
    """Make one file of a checkpoint's folder, from which a run continues under any strategy.

    Args:
        folder: what a run with `save_distributed_checkpoint: true` wrote.
        file: to write; it appears complete.

    Raises:
        ValueError: `folder` holds no complete checkpoint, or one that could run code.
    """
    checkpoint, target = load_whole(Path(folder)), Path(file)
    partial = target.with_name(f".{target.name}.partial")
    torch.save(checkpoint, partial)
    partial.replace(target)


def load_whole(folder: Path) -> State:
    """All of a checkpoint's folder, in the main memory of this process.

    Raises:
        ValueError: `folder` holds no complete checkpoint, or one that could run code.
    """
    check_sharded(str(folder))
    reader = SafeReader(str(folder))
    tensors: State = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), "the folder holds nothing but tensors"
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return _joined(torch.load(folder / META, weights_only=True), _nested(tensors))


def gather_on_first(tensors: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """All of each tensor in the first rank's main memory, nothing on the others. All ranks call it."""
    result = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach()).cpu()
        if dist.get_rank() == 0:
            result[name] = gathered
    return result


def split_like(tensor: Tensor, target: Tensor) -> Tensor:
    """`tensor`, split over ranks as `target` is. All ranks call it."""
    if isinstance(tensor, DTensor) or not isinstance(target, DTensor) or tensor.shape != target.shape:
        return tensor
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)


def check_complete(wanted: Iterable[str], found: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks weights of the model.

    Raises:
        ValueError: it does.
    """
    if missing := sorted(set(wanted) - set(found)):
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of this model ({named}): it belongs to another; give the "
            "options it was trained with, or another run_dir"
        )


@final
class SafeReader(FileSystemReader):
    """Reads the distributed format without building pickled objects other than the format's own records."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with (Path(self.path) / ".metadata").open("rb") as file:
                metadata = RecordsUnpickler(file).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"the checkpoint {str(self.path)!r} cannot be read: {error}") from error
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{str(self.path)!r} holds no checkpoint: its .metadata is a {type(metadata).__name__}")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


def _empty_state(stored: dict[str, Any], prefix: str, parameters: list[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Room for the optimizer state that a checkpoint holds, by number of parameter."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, entry in stored.items():
        if name.startswith(prefix):
            number, kind = name.removeprefix(prefix).split(".", 1)
            like = parameters[int(number)].detach()
            empty = torch.zeros_like(like) if entry.size == like.shape else torch.zeros(entry.size)
            state.setdefault(number, {})[kind] = empty.to(entry.properties.dtype)
    return state


def _joined(checkpoint: State, tensors: State) -> State:
    """The folder's two halves as one checkpoint."""
    checkpoint["state_dict"] = tensors["state_dict"]
    for i, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        state = tensors.get(f"optimizer_{i}", {})
        optimizer["state"] = {int(number): values for number, values in state.items()}
    return checkpoint


def _nested(tensors: dict[str, Tensor]) -> State:
    """Undo the distributed format's flat names: ``state_dict.NAME`` and ``optimizer_I.NUMBER.KIND``."""
    nested: State = {"state_dict": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        if part == "state_dict":
            nested["state_dict"][rest] = tensor
        else:
            number, kind = rest.split(".", 1)
            nested.setdefault(part, {}).setdefault(number, {})[kind] = tensor
    return nested
