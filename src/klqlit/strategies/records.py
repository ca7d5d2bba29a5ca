"""What the metadata of a sharded checkpoint may be made of."""

import pickle
from enum import EnumMeta
from typing import Any, final

import torch

RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}
"""By module, all that a `.metadata` may name: records that hold values and do nothing."""


@final
class RecordsUnpickler(pickle.Unpickler):
    """Builds torch's records of a checkpoint and nothing else.

    Raises:
        UnpicklingError: anything else is asked for.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in RECORDS.get(module, ()):
            raise pickle.UnpicklingError(f"its .metadata names {module}.{name}, which no checkpoint of ours holds")
        return super().find_class(module, name)


def _member(kind: Any, name: Any) -> Any:
    """A member of an enumeration by its name: Python 3.11.0 to 3.11.3 write it as `getattr`, which could do more."""
    if not (isinstance(kind, EnumMeta) and isinstance(name, str) and name in kind.__members__):
        raise pickle.UnpicklingError(f"its .metadata asks for {name!r} of {kind!r}, which no checkpoint of ours does")
    return kind.__members__[name]
