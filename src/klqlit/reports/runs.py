"""A run's folder, read."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klqlit.reports.reading import Row, number, read_object, read_rows
from klqlit.reports.settings import flatten

UNKNOWN = "unknown task"
STAGES = ("generation", "scoring", "optimization")


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        folder: where it is.
        name: what the report calls it.
        config: config.yaml.
        settings: the same, flat.
        metrics: rows of metrics.jsonl.
        samples: rows of samples.jsonl.
        critic: rows of critic.jsonl.
        tokens: rows of tokens.jsonl.
        completions: rows of completions.jsonl, written by `predict`.
        record: run.json.
        optimum: optimum.json, where the optimum is known.
        label: label.json, where the folder says itself what it is: "task", "algorithm", and "role": "trial" for a run
            that is to be listed and not counted.
        has_model: the trained model was exported.
        problems: what could not be read.
    """

    folder: Path
    name: str
    config: Row
    settings: Row
    metrics: list[Row]
    samples: list[Row]
    critic: list[Row]
    tokens: list[Row]
    completions: list[Row]
    record: Row
    optimum: Row
    label: Row
    has_model: bool
    problems: list[str]

    # What it was ----------------------------------------------------------------------------------------------------

    @property
    def algorithm(self) -> str:
        """The class that was trained; the folder's name where no configuration says."""
        return _class_name(self.settings.get("model.class_path")) or self.folder.name

    @property
    def aligned(self) -> bool:
        """Whether it was an online run with a reward and a reference, and not fine-tuning."""
        return self.tau is not None or any("objective/J" in row or "val/objective/J" in row for row in self.metrics)

    @property
    def task(self) -> str:
        """The source of the prompts."""
        if "task" in self.label:
            return str(self.label["task"])
        names = [name for name in self.settings if re.search(r"(^|\.)source(\.init_args)?\.class_path$", name)]
        source = _class_name(self.settings.get(names[0])) if names else ""
        paths = [value for name, value in self.settings.items() if re.search(r"\.source\.(init_args\.)?path$", name)]
        if source and paths and paths[0]:
            return f"{source} {Path(str(paths[0])).name}"
        return source or UNKNOWN

    @property
    def trial(self) -> bool:
        """Made to choose settings: listed, and counted nowhere."""
        return self.label.get("role") == "trial"

    @property
    def tau(self) -> float | None:
        """The KL coefficient."""
        return number(self.settings.get("model.init_args.tau", self.settings.get("model.tau")))

    @property
    def seed(self) -> int | None:
        """Of the run."""
        seed = number(self.settings.get("seed_everything"))
        return None if seed is None else int(seed)

    # How it went ----------------------------------------------------------------------------------------------------

    @property
    def last_step(self) -> int:
        """Optimizer steps taken, as far as is known."""
        logged = max((int(row["step"]) + 1 for row in self.metrics if number(row.get("step")) is not None), default=0)
        return max(logged, int(number(self.record.get("step")) or 0))

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of the whole run, where it has recorded them."""
        steps = number(self.starts[-1].get("steps")) if self.starts else None
        return None if steps is None else int(steps)

    @property
    def finished(self) -> bool:
        """Whether it came to its end. Runs without a record count as finished when their model was exported."""
        return self.record.get("state") == "finished" if self.record else self.has_model

    @property
    def status(self) -> str:
        """In words."""
        state = self.record.get("state")
        of = f" of {self.planned_steps}" if self.planned_steps else ""
        if self.finished:
            return f"finished, {self.last_step} steps"
        if state == "stopped":
            return f"stopped at step {self.last_step}{of}: {self.record.get('reason')}"
        if state == "running":
            return f"step {self.last_step}{of}: still running, or killed"
        return f"step {self.last_step}: no model was exported"

    @property
    def starts(self) -> list[Row]:
        """Each start of the run, with versions and device."""
        found = self.record.get("starts")
        return [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []

    @property
    def device(self) -> str:
        """On which it ran last."""
        start = self.starts[-1] if self.starts else {}
        ranks = int(number(start.get("ranks")) or 1)
        return str(start.get("device", "")) + (f" × {ranks}" if ranks > 1 else "")

    # What it measured -----------------------------------------------------------------------------------------------

    def series(self, name: str) -> dict[int, float]:
        """A metric by phase, counted from 0: the number of phases before it was measured on a rollout."""
        found = {}
        for index, row in enumerate(row for row in self.metrics if name in row):
            value, epoch = number(row[name]), number(row.get("epoch"))
            if value is not None:
                found[index if epoch is None else int(epoch)] = value
        return found

    def final(self, name: str) -> float | None:
        """A metric on held-out prompts at the end; where none was ever taken there, in the last phase."""
        values = self.series(f"val/{name}") or self.series(name)
        return values[max(values)] if values else None

    @property
    def validated(self) -> bool:
        """Whether anything was measured on held-out prompts."""
        return any("val/objective/J" in row or "val/loss" in row for row in self.metrics)

    @property
    def seconds(self) -> dict[int, float]:
        """Cumulated seconds of sampling, scoring and updates by phase, counted at its end."""
        times = [self.series(f"time/{stage}") for stage in STAGES]
        total, found = 0.0, {}
        for phase in sorted(set.intersection(*map(set, times))):
            total += sum(time[phase] for time in times)
            found[phase] = total
        return found

    def last_rows(self, rows: list[Row]) -> list[Row]:
        """Those of the last step."""
        last = max((number(row.get("step")) or 0 for row in rows), default=0)
        return [row for row in rows if (number(row.get("step")) or 0) == last]


def read_run(folder: Path, name: str) -> Run:
    """Everything that a run's folder holds."""
    problems: list[str] = []
    config = read_object(folder / "config.yaml", problems)
    if not (folder / "config.yaml").is_file():
        problems.append("there is no config.yaml, so that algorithm, tau, seed and task are unknown")
    metrics = read_rows(folder / "metrics.jsonl", problems)
    if not metrics:
        problems.append("nothing was logged yet: metrics.jsonl is missing or empty")
    return Run(
        folder=folder,
        name=name,
        config=config,
        settings=flatten(config),
        metrics=metrics,
        samples=read_rows(folder / "samples.jsonl", problems),
        critic=read_rows(folder / "critic.jsonl", problems),
        tokens=read_rows(folder / "tokens.jsonl", problems),
        completions=read_rows(folder / "completions.jsonl", problems),
        record=read_object(folder / "run.json", problems),
        optimum=read_object(folder / "optimum.json", problems),
        label=read_object(folder / "label.json", problems),
        has_model=(folder / "model").is_dir(),
        problems=problems,
    )


def _class_name(path: Any) -> str:
    return path.rpartition(".")[2] if isinstance(path, str) else ""
