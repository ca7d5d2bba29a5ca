"""The chapter on a task: each section draws what there is, and says what is missing and how to make it."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from klqlit.reports import samples, tables, tokens
from klqlit.reports.blocks import Chapter, Fold, Pictures, Section, new_section
from klqlit.reports.experiment import Experiment
from klqlit.reports.figures import critic, curves, frontier
from klqlit.reports.figures.style import Gallery, Picture
from klqlit.reports.figures.win_rates import win_rate_figure
from klqlit.reports.groups import Task, plain_tau
from klqlit.reports.judged_tables import judge_name, win_rate_table
from klqlit.reports.texts import FIT, JUDGE, OTHER_SEED, OTHER_TAU
from klqlit.reports.win_rates import Series, find_series, left_out

SHORT = {"reward/score": "Score", "kl/sequence": "KL", "objective/J": "J", "reward/gold": "Gold score"}
CLOCKS = {"updates": curves.by_updates, "seconds": curves.by_seconds}


def task_chapter(experiment: Experiment, task: Task, gallery: Gallery, key: str) -> Chapter:
    """Everything about a task."""
    series = find_series(experiment, task)
    sections = [
        _summary(task),
        _curves(task, gallery),
        _times(task, gallery),
        _frontier(task, gallery),
        _win_rates(task, series, left_out(experiment, task), gallery),
        _over_optimisation(task, gallery),
        _critic(task, gallery),
        _samples(task, series),
        _tokens(task),
    ]
    for section in sections:
        section.key = f"{key}-{section.key}"
    return Chapter(key=key, title=task.name, sections=sections)


def _summary(task: Task) -> Section:
    section = new_section("summary")
    if any(cell.final("objective/J") for cell in task.cells):
        section.blocks += [tables.summary(task), *tables.differences(task)]
    else:
        section.missing.append(f"No run has logged J yet. `{FIT}` logs it after the first phase.")
    if len(task.variants) == 1:
        section.missing.append(
            f"Only {task.variants[0]} was run. The same command with the other algorithm's configuration, such as "
            "`configs/mini_hh_ppo.yaml`, makes the comparison."
        )
    if all(len(cell.runs) == 1 for cell in task.cells):
        section.missing.append(f"One seed each: no intervals, and no ranking of the algorithms. {OTHER_SEED}.")
    section.missing += [f"{note}." for note in task.notes]
    return section


def _curves(task: Task, gallery: Gallery) -> Section:
    section = new_section("curves")
    for tau in task.taus:
        rows = [
            _pictures(
                gallery,
                f"{task.name} tau {plain_tau(tau)}",
                [(curves.learning_curve(task, tau, name, clock), f"{SHORT[name]}, by {against}") for name in SHORT],
            )
            for against, clock in CLOCKS.items()
        ]
        _fold(section, task, tau, [row for row in rows if row.pictures])
    if not section.blocks:
        section.missing.append(f"No run has logged a phase yet. `{FIT}` does so while it runs.")
        return section
    if not any(run.series("reward/gold") for run in task.runs):
        section.missing.append("No gold score: these runs have no `model.gold`. The miniature tasks have one.")
    if not any(run.seconds for run in task.runs):
        section.missing.append(f"No curves by seconds: these runs did not log their time, as `{FIT}` does.")
    return section


def _times(task: Task, gallery: Gallery) -> Section:
    section = new_section("time")
    table = tables.times(task)
    if table is None:
        section.missing.append(f"These runs did not log the time of each stage. `{FIT}` does.")
        return section
    row = _pictures(gallery, task.name, [(curves.seconds_by_stage(task), "Seconds an update, by stage")])
    section.blocks += [row, table]
    return section


def _frontier(task: Task, gallery: Gallery) -> Section:
    section = new_section("frontier")
    drawn = [
        (frontier.frontier(task, "reward/score"), "Score against KL, over τ"),
        (frontier.frontier(task, "reward/gold"), "Gold score against KL, over τ"),
    ]
    row = _pictures(gallery, task.name, drawn)
    table = tables.optimum_table(task)
    section.blocks += [row] if row.pictures else []
    section.blocks += [table] if table is not None else []
    if not row.pictures:
        section.missing.append(f"No run has logged score and KL yet. `{FIT}` does.")
    elif len(task.taus) == 1:
        section.missing.append(f"A single τ is a point and no frontier. {OTHER_TAU}.")
    return section


def _win_rates(task: Task, series: Sequence[Series], notes: Sequence[str], gallery: Gallery) -> Section:
    section = new_section("wins")
    for one in series:
        title = f"{one.first} against {one.second}, judged by {judge_name(one.judge)}"
        section.blocks += [_pictures(gallery, task.name, [(win_rate_figure(one), title)]), win_rate_table(one)]
    if not series:
        section.missing.append(f"No comparison of two runs of this task with the same τ and seed. {JUDGE}.")
    elif all(len(one.points) == 1 for one in series):
        section.missing.append(f"Judged at a single τ. {JUDGE}.")
    section.missing += [f"{note}." for note in notes]
    return section


def _over_optimisation(task: Task, gallery: Gallery) -> Section:
    section = new_section("overoptimisation")
    drawn = [(frontier.over_optimisation(task, v), f"{v}: proxy and gold score against KL") for v in task.variants]
    row = _pictures(gallery, task.name, drawn)
    if row.pictures:
        section.blocks.append(row)
    else:
        section.missing.append(
            "No gold score on held-out prompts: it takes `model.gold`, as in the miniature tasks, and validations "
            f"(`{FIT} --trainer.check_val_every_n_epoch 5`)."
        )
    return section


def _critic(task: Task, gallery: Gallery) -> Section:
    section = new_section("critic")
    for tau in task.taus:
        drawn = [
            (critic.calibration(task, tau, "V"), "Calibration of V"),
            (critic.calibration(task, tau, "Q"), "Calibration of Q"),
            (critic.explained_variance(task, tau), "Explained variance, by updates"),
        ]
        row = _pictures(gallery, f"{task.name} tau {plain_tau(tau)}", drawn)
        _fold(section, task, tau, [row] if row.pictures else [])
    if not any(run.critic for run in task.runs):
        section.missing.append(
            f"No calibration: there is no critic.jsonl, which `{FIT}` writes at each validation. Runs made before "
            "it did have none."
        )
    return section


def _samples(task: Task, series: Sequence[Series]) -> Section:
    section = new_section("samples")
    found = samples.collect(task, series)
    if not found.rows:
        section.missing.append(
            "No samples: the callback `klqlit.SampleTable` (`trainer.callbacks` in the configuration) writes them at "
            "each validation, and judged pairs bring theirs."
        )
        return section
    section.blocks.append(found)
    if not found.judged:
        section.missing.append(f"No verdicts on these. {JUDGE}.")
    return section


def _tokens(task: Task) -> Section:
    section = new_section("tokens")
    block = tokens.collect(task)
    if block is not None:
        section.blocks.append(block)
    else:
        section.missing.append(
            f"There is no tokens.jsonl, which `{FIT}` writes at each validation. Runs made before it did have none."
        )
    return section


def _pictures(gallery: Gallery, where: str, drawn: Sequence[tuple[Figure | None, str]]) -> Pictures:
    """The figures that could be drawn, kept under their titles."""
    kept: list[Picture] = [gallery.add(figure, f"{where} {title}", title) for figure, title in drawn if figure]
    return Pictures(pictures=kept)


def _fold(section: Section, task: Task, tau: float | None, blocks: Sequence[Pictures]) -> None:
    """Blocks of one tau; where there are many taus, only the first is open."""
    if blocks:
        opened = len(task.taus) <= 2 or not section.blocks
        section.blocks.append(Fold(title=f"τ = {plain_tau(tau)}", blocks=blocks, opened=opened))
