"""What was run: every run and comparison, how they differ, under which versions, and how it ended."""

from collections import defaultdict
from collections.abc import Sequence

import yaml

from klqlit.reports import judged_tables, tables
from klqlit.reports.blocks import Chapter, Section, Source, Table, new_section
from klqlit.reports.experiment import Experiment
from klqlit.reports.groups import Task, plain_tau
from klqlit.reports.intervals import plain
from klqlit.reports.runs import Run
from klqlit.reports.settings import INCIDENTAL, differing, short
from klqlit.reports.texts import JUDGE

NOT_TOLD = ("run_dir", "ckpt_path", "checkpoint.dirpath", "trainer.default_root_dir")
"""Where a run wrote stands in its name."""


def last_chapter(experiment: Experiment) -> Chapter:
    """Comparisons and runs, without regard to the task."""
    return Chapter(
        key="what", title="What was run", sections=[_judged(experiment), _runs(experiment), _settings(experiment)]
    )


def _judged(experiment: Experiment) -> Section:
    section = new_section("judged")
    if not experiment.comparisons:
        section.missing.append(f"Nothing was judged. {JUDGE}.")
        return section
    section.blocks += [
        judged_tables.comparisons(experiment.comparisons),
        judged_tables.verdict_counts(experiment.comparisons),
    ]
    judges = {judged_tables.judge_name(one.judge): one.judge for one in experiment.comparisons}
    section.blocks += [
        Source(title=f"{name}: all that may change a verdict", text=_yaml(judge)) for name, judge in judges.items()
    ]
    section.missing += [f"{one.name}: {problem}." for one in experiment.comparisons for problem in one.problems]
    return section


def _runs(experiment: Experiment) -> Section:
    section = new_section("runs")
    counted = [(task.name, run) for task in experiment.tasks for run in task.runs]
    left_out = [(run.task, run) for run in experiment.left_out]
    rows = [
        [
            run.name,
            task,
            experiment.labels[run.name],
            plain_tau(run.tau),
            _seed(run),
            run.status,
            _last_start(run),
            run.device or tables.NONE,
        ]
        for task, run in [*counted, *left_out]
    ]
    if rows:
        section.blocks.append(
            Table(
                title="KLQ, PPO and their like",
                headings=["run", "task", "algorithm", "τ", "seed", "state", "last started, UTC", "device"],
                rows=rows,
                texts=8,
            )
        )
    if experiment.others:
        section.blocks.append(
            Table(
                title="Other runs",
                headings=["run", "task", "what", "state", "held-out loss", "held-out accuracy"],
                rows=[_other(run) for run in experiment.others],
                texts=4,
                note="Accuracy: of fine-tuning, the share of tokens that are the likeliest; of a reward model, the "
                "share of pairs that it orders rightly.",
            )
        )
    every = [*experiment.runs, *experiment.left_out, *experiment.others]
    section.blocks += [_versions(every)]
    section.missing += [f"{run.name}: {problem}." for run in every for problem in run.problems]
    return section


def _other(run: Run) -> list[str]:
    loss, accuracy = run.final("loss"), run.final("accuracy")
    what = f"{run.algorithm}, a trial to choose settings" if run.trial else run.algorithm
    return [
        run.name,
        run.task,
        what,
        run.status,
        tables.NONE if loss is None or run.aligned else plain(loss),
        tables.NONE if accuracy is None else tables.percent(accuracy),
    ]


def _seed(run: Run) -> str:
    return tables.NONE if run.seed is None else str(run.seed)


def _last_start(run: Run) -> str:
    # To the minute: 2025-01-31T12:59:59+00:00.
    return str(run.starts[-1].get("time", tables.NONE))[:16].replace("T", " ") if run.starts else tables.NONE


def _versions(runs: Sequence[Run]) -> Table:
    groups: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for versions in dict.fromkeys(_version_text(start.get("versions")) for start in run.starts) or [
            _version_text(None)
        ]:
            groups[versions].append(run.name)
    return Table(
        title="Versions",
        headings=["versions", "runs"],
        rows=[[versions, _abridged(names)] for versions, names in sorted(groups.items())],
        texts=2,
        note="A run that was continued under other versions stands in several rows.",
    )


def _version_text(versions: object) -> str:
    if not isinstance(versions, dict):
        return "not recorded: run.json is missing"
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _settings(experiment: Experiment) -> Section:
    section = new_section("settings")
    section.blocks += [table for task in experiment.tasks if (table := _differences(task)) is not None]
    every = [*experiment.runs, *experiment.left_out, *experiment.others]
    section.blocks += [Source(title=run.name, text=_yaml(run.config)) for run in every if run.config]
    if not section.blocks:
        section.missing.append("No run has a config.yaml, which `python -m klqlit fit` writes when it starts.")
    return section


def _differences(task: Task) -> Table | None:
    names = [
        name
        for name in dict.fromkeys(name for run in task.runs for name in run.settings)
        # An algorithm's own settings say nothing of the others: each name is compared where it stands.
        if differing([{name: run.settings[name]} for run in task.runs if name in run.settings])
        and not name.endswith(NOT_TOLD)
    ]
    rows = []
    for name in sorted(names, key=lambda name: bool(INCIDENTAL.match(name))):
        values: dict[str, list[str]] = defaultdict(list)
        for run in task.runs:
            if name in run.settings:
                values[str(run.settings[name])].append(run.name)
        rows += [[short(name), value, _abridged(runs)] for value, runs in values.items()]
    if not rows:
        return None
    return Table(title=f"{task.name}: what differs", headings=["setting", "value", "runs"], rows=rows, texts=3)


def _abridged(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}"


def _yaml(value: object) -> str:
    return yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True)


def _plain(value: object) -> object:
    """What a YAML file can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
