"""Rows of a data set on the hub, or of a directory with a copy of one."""

from collections.abc import Iterable
from pathlib import Path

from klqlit.data.source import Row, Split
from klqlit.hub import go_offline_without_network


def read_hub(path: str, split: Split, data_dir: str | None) -> list[Row]:
    """All rows of one split, as dicts.

    Args:
        path: a name on the hub, or a directory with a copy.
        split: "validation" falls back to "test".
        data_dir: subdirectory of the data set.

    Raises:
        ValueError: there is no such data set or split.
    """
    if not Path(path).expanduser().is_dir():
        go_offline_without_network()
    # Imported here: it takes most of a second.
    import datasets

    try:
        splits = datasets.load_dataset(path, data_dir=data_dir)
    except Exception as error:  # whatever the files of a directory, or the network, make of the library
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise ValueError(
            f"{path!r} is neither a file here nor a data set the hub could give (no network, HF_HUB_OFFLINE set, or no "
            f"such name): give the path of a local .jsonl, .json, .csv or .parquet file instead. ({reason})"
        ) from error
    return splits[_choose(split, splits, path)].to_list()


def _choose(split: Split, splits: Iterable[str], path: str) -> str:
    for name in ("train",) if split == "train" else ("validation", "test"):
        if name in splits:
            return name
    raise ValueError(f"{path!r} has no split for {split}: it has {', '.join(splits)}; give a file of your own")
