"""Win rates of one algorithm against another over tau, from comparisons of runs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from klqlit.judges.cache import canonical
from klqlit.reports.comparisons import Judged, Share
from klqlit.reports.experiment import Experiment
from klqlit.reports.groups import Task
from klqlit.reports.intervals import Crossed, crossed, over_seeds, quantile
from klqlit.reports.runs import Run

KINDS = ("win_rate", "length_controlled")


@dataclass(kw_only=True, slots=True, frozen=True)
class Duel:
    """A comparison of two runs that differ in the algorithm alone.

    Attributes:
        judged: the comparison.
        first: run of the variant whose view is taken.
        second: the other run.
        flipped: whether `first` is the comparison's side B.
    """

    judged: Judged
    first: Run
    second: Run
    flipped: bool

    @property
    def runs_and_judge(self) -> tuple[str, str, str]:
        """What two comparisons have in common that are one, made twice."""
        return self.first.name, self.second.name, canonical(self.judged.judge)

    def share(self, name: str) -> Share | None:
        """`win_rate` or `length_controlled` from the first run's view."""
        found = self.judged.share(name)
        return found.of_other_side() if found and self.flipped else found

    def values(self) -> dict[str, list[float]]:
        """Verdicts by prompt, likewise."""
        found = self.judged.values()
        return {key: [1 - v if self.flipped else v for v in values] for key, values in found.items()}


@dataclass(kw_only=True, slots=True, frozen=True)
class Series:
    """Win rates over tau of one variant against another, by one judge.

    Attributes:
        first: the variant whose view is taken.
        second: the other.
        judge: its identity.
        points: comparisons by tau; those of one tau have different seeds.
    """

    first: str
    second: str
    judge: dict[str, Any]
    points: dict[float, list[Duel]]


def find_series(experiment: Experiment, task: Task) -> list[Series]:
    """Comparisons between runs of the task with the same tau and seed, by pair of variants and judge.

    Of several comparisons of the same two runs by one judge, the one with the most pairs counts, then the newest.
    """
    found: dict[tuple[str, str, str], dict[float, list[Duel]]] = defaultdict(lambda: defaultdict(list))
    judges: dict[str, dict[str, Any]] = {}
    for duel in _counted(experiment, task):
        if duel.first.tau is not None:
            key = canonical(duel.judged.judge)
            judges[key] = duel.judged.judge
            found[task.variant_of(duel.first), task.variant_of(duel.second), key][duel.first.tau].append(duel)
    return [
        Series(first=first, second=second, judge=judges[key], points=dict(sorted(points.items())))
        for (first, second, key), points in sorted(found.items(), key=lambda item: _order(task, item[0]))
    ]


def left_out(experiment: Experiment, task: Task) -> list[str]:
    """The comparisons that `find_series` does not count, each with the reason."""
    counted = {duel.runs_and_judge: duel for duel in _counted(experiment, task)}
    notes = []
    for duel in _duels(experiment, task):
        name, same = duel.judged.name, counted.get(duel.runs_and_judge)
        if same is None:
            seeds = f"{duel.first.seed} and {duel.second.seed}"
            notes.append(f"{name} is left out of the win rates over τ: its runs have different seeds, {seeds}")
        elif same.judged is not duel.judged:
            notes.append(f"{name} is left out of the win rates over τ: {same.judged.name} compares the same runs")
    return notes


def _counted(experiment: Experiment, task: Task) -> list[Duel]:
    """One for each two runs of one seed and judge."""
    best: dict[tuple[str, str, str], Duel] = {}
    for duel in _duels(experiment, task):
        key = duel.runs_and_judge
        if duel.first.seed == duel.second.seed and (key not in best or _weight(duel) > _weight(best[key])):
            best[key] = duel
    return list(best.values())


def _weight(duel: Duel) -> tuple[int, float]:
    judged = duel.judged
    return judged.count("pairs") or len(judged.judgments), (judged.folder / "judged.json").stat().st_mtime


def _duels(experiment: Experiment, task: Task) -> list[Duel]:
    found = (_duel(experiment, task, judged) for judged in experiment.comparisons)
    return [duel for duel in found if duel is not None]


def _order(task: Task, key: tuple[str, str, str]) -> tuple[int, int, str]:
    return task.variants.index(key[0]), task.variants.index(key[1]), key[2]


def _duel(experiment: Experiment, task: Task, judged: Judged) -> Duel | None:
    a, b = experiment.run_of(judged, "a"), experiment.run_of(judged, "b")
    if a is None or b is None or not all(any(run is one for one in task.runs) for run in (a, b)):
        return None
    places = [task.variants.index(task.variant_of(run)) for run in (a, b)]
    if a.tau != b.tau or places[0] == places[1]:
        return None
    flipped = places[1] < places[0]
    first, second = (b, a) if flipped else (a, b)
    return Duel(judged=judged, first=first, second=second, flipped=flipped)


def pooled(duels: Sequence[Duel], name: str) -> Share | None:
    """The win rate at a tau. One comparison keeps its own interval; several are a mean over seeds.

    Prompts are the same for all seeds, so that their verdicts are not independent: the interval counts both seeds
    and prompts as drawn (`intervals.crossed`). Length-controlled rates are estimates of a model, one a seed: their own
    spread over seeds counts, and what comes from prompts is taken from the plain verdicts.

    Args:
        duels: of one tau.
        name: `win_rate` or `length_controlled`.
    """
    found = [(duel, share) for duel in duels if (share := duel.share(name)) is not None]
    shares = [share for _, share in found]
    if len(shares) < 2:
        return shares[0] if shares else None
    spread = verdicts([duel for duel, _ in found])
    rates = over_seeds([share.rate for share in shares])
    if name == "win_rate" and spread is not None:
        interval = spread.interval()
        return _bounded(interval.mean, interval.half)
    if spread is None:
        return _bounded(rates.mean, rates.half)
    of_seeds = ((rates.half or 0.0) / quantile(rates.count - 1)) ** 2
    return _bounded(rates.mean, spread.half(of_seeds))


def verdicts(duels: Sequence[Duel]) -> Crossed | None:
    """All verdicts of several seeds; None where one of the comparisons has kept none."""
    seeds = [duel.values() for duel in duels]
    return crossed(seeds) if all(seeds) and len(seeds) > 1 else None


def _bounded(rate: float, half: float | None) -> Share:
    low, high = (None, None) if half is None else (max(rate - half, 0.0), min(rate + half, 1.0))
    return Share(rate=rate, low=low, high=high)
