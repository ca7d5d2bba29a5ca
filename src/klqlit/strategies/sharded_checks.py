"""Directories of sharded checkpoints, examined before torch unpickles them.

`torch.distributed.checkpoint` reads a directory's `.metadata` with plain `pickle`, and small values in its files with
`weights_only=False`. Both are therefore read here first, by readers that build nothing but tensors, plain values and
torch's own records of a checkpoint: what they can read runs no code when torch reads it again.
"""

import io
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from klqlit.run_folder import META
from klqlit.strategies.records import RecordsUnpickler

METADATA = ".metadata"


def check_sharded(directory: str) -> None:
    """Read what torch would unpickle.

    Raises:
        ValueError: the directory is no sharded checkpoint, is damaged, or holds objects that could run code.
    """
    folder = Path(directory)
    missing = [name for name in (META, METADATA) if not (folder / name).is_file()]
    if missing:
        raise _refusal(directory, f"is a directory without {missing[0]}, and so no sharded checkpoint")
    try:
        metadata = RecordsUnpickler(io.BytesIO((folder / METADATA).read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
        _check_shards(folder, metadata)
        torch.load(folder / META, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split(" In PyTorch")[0][:200]
        raise _refusal(
            directory, f"holds what is neither a tensor nor a plain value, and could run code ({reason})"
        ) from error
    except Exception as error:  # whatever rubbish makes of a reader
        reason = " ".join(str(error).split())[:200]
        raise _refusal(directory, f"is damaged ({type(error).__name__}: {reason})") from error


def _check_shards(folder: Path, metadata: Metadata) -> None:
    """Every part lies within a file of the directory, and those that torch unpickles are plain."""
    for index, info in metadata.storage_data.items():
        name = Path(info.relative_path)
        file = folder / name
        if name.is_absolute() or ".." in name.parts or not file.is_file():
            raise ValueError(f"it has no file {info.relative_path!r}")
        if info.transform_descriptors or not 0 <= info.offset <= info.offset + info.length <= file.stat().st_size:
            raise ValueError(f"{info.relative_path!r} does not hold {index.fqn!r} as a plain part of itself")
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
            with file.open("rb") as shard:
                shard.seek(info.offset)
                torch.load(io.BytesIO(shard.read(info.length)), map_location="cpu", weights_only=True)


def _refusal(directory: str, problem: str) -> ValueError:
    return ValueError(f"the checkpoint {directory!r} {problem}: give another one that `fit` wrote")
