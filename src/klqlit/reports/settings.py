"""Configurations as flat settings: what differs between runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INCIDENTAL = re.compile(
    r"^(seed_everything|run_dir|ckpt_path|config|checkpoint\..*|trainer\.(accelerator|devices|num_nodes|strategy|logger"
    r"|callbacks|default_root_dir|enable_.*|log_every_n_steps|check_val_every_n_epoch|val_check_interval|profiler"
    r"|num_sanity_val_steps|limit_(val|test|predict)_batches|fast_dev_run|benchmark|deterministic|plugins)(\..*)?"
    r"|.*\.(seed|init_args\.tau|scoring_batch_size|trust_remote_code|attn_implementation)|model\.tau"
    r"|.*\.(batch_size|validation_prompts|validation_batch_size))$"
)
"""Settings that do not make two runs different experiments: seeds, tau, output, hardware, how they are watched."""

MODEL_PATH = re.compile(r"(^|\.)(path|revision)$")
"""Models may differ from seed to seed, where each seed has a policy and a reward model of its own."""


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; an empty container is a value."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, part in value.items() for k, v in flatten(part, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        return {k: v for i, part in enumerate(value) for k, v in flatten(part, f"{name}.{i}").items()}
    return {name: value}


def short(name: str) -> str:
    """A setting's name as a person calls it: without `init_args` and the group it stands in."""
    return re.sub(r"^(model|data|trainer)\.", "", re.sub(r"\.(init_args|class_path)(?=\.|$)", "", name))


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names whose values are not the same in all, in the order in which they appear."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]


def separating(runs: Iterable[tuple[float | None, int | None, Mapping[str, Any]]]) -> list[str]:
    """Settings that make runs of one algorithm different experiments rather than seeds of one.

    A setting separates if two runs of the same tau differ in it: what depends on tau alone belongs to the tau.
    Models separate only if they differ at the same seed, too.

    Args:
        runs: tau, seed and settings of each.
    """
    found: dict[str, None] = {}
    by_tau: dict[Any, list[Mapping[str, Any]]] = {}
    by_seed: dict[Any, list[Mapping[str, Any]]] = {}
    for tau, seed, settings in runs:
        by_tau.setdefault(tau, []).append(settings)
        by_seed.setdefault((tau, seed), []).append(settings)
    for groups, wanted in ((by_tau.values(), False), (by_seed.values(), True)):
        for group in groups:
            found |= {
                name: None
                for name in differing(group)
                if not INCIDENTAL.match(name) and bool(MODEL_PATH.search(name)) == wanted
            }
    return refining(list(found), [settings for group in by_tau.values() for settings in group])


def refining(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of the names that tell more apart than the ones before them do."""
    kept: list[str] = []
    kinds = 1
    for name in names:
        count = len({tuple(repr(one.get(key)) for key in (*kept, name)) for one in settings})
        if count > kinds:
            kept, kinds = [*kept, name], count
    return kept
