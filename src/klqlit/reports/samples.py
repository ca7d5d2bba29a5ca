"""Completions of the same prompts side by side: the reference's, each variant's, their scores, and who won."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from klqlit.reports.comparisons import Judged, Side
from klqlit.reports.groups import Task
from klqlit.reports.judged_tables import short_judge_name
from klqlit.reports.reading import Row, number
from klqlit.reports.runs import Run
from klqlit.reports.win_rates import Duel, Series

PER_SEED, IN_ALL = 8, 80
"""Rows shown of a tau and seed, and of a task: a page must open on a phone."""


@dataclass(kw_only=True, slots=True)
class Answer:
    """A completion and what it scored.

    Attributes:
        text: the completion.
        score: by the reward, where known.
        gold: by the gold reward, likewise.
    """

    text: str
    score: float | None
    gold: float | None


@dataclass(kw_only=True, slots=True)
class Sample:
    """A prompt and its answers.

    Attributes:
        prompt: the prompt.
        tau: of the runs.
        seed: of the runs.
        reference: what the reference answers, where it is on record.
        answers: by variant.
        verdicts: of the judges, in words.
    """

    prompt: str
    tau: float | None
    seed: int | None
    reference: Answer | None
    answers: dict[str, Answer]
    verdicts: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Samples:
    """Rows of the page's table.

    Attributes:
        variants: a column each.
        rows: as many as are shown.
        total: as many as there are.
    """

    variants: list[str]
    rows: list[Sample]
    total: int
    kind: str = "samples"

    @property
    def judged(self) -> bool:
        """Whether any row has a verdict."""
        return any(row.verdicts for row in self.rows)


def collect(task: Task, series: Sequence[Series]) -> Samples:
    """Rows of all seeds, judged ones first; of the last step of each run."""
    groups: dict[tuple[float | None, int | None], dict[str, Run]] = defaultdict(dict)
    for cell in task.cells:
        for run in cell.runs:
            groups[cell.tau, run.seed][cell.variant] = run
    shown: list[list[Sample]] = []
    total = 0
    for (tau, seed), runs in sorted(groups.items(), key=lambda item: (item[0][1] or 0, item[0][0] or 0.0)):
        rows = list(_of_seed(tau, seed, runs, series))
        total += len(rows)
        shown.append(sorted(rows, key=lambda row: (not row.verdicts, row.reference is None))[:PER_SEED])
    # Every tau and seed gets its share of the page.
    share = max(1, IN_ALL // max(len(shown), 1))
    return Samples(variants=task.variants, rows=[row for rows in shown for row in rows[:share]], total=total)


def _of_seed(tau: float | None, seed: int | None, runs: dict[str, Run], series: Sequence[Series]) -> Iterator[Sample]:
    rows: dict[str, Sample] = {}
    for variant, run in runs.items():
        for row in run.last_rows(run.samples):
            prompt = str(row.get("prompt", ""))
            if prompt not in rows:
                rows[prompt] = Sample(
                    prompt=prompt, tau=tau, seed=seed, reference=_answer(row, "reference"), answers={}
                )
            rows[prompt].answers[variant] = _answer(row, "policy")
    for one in series:
        for duel in one.points.get(tau, []) if tau is not None else []:
            if runs.get(one.first) is duel.first and runs.get(one.second) is duel.second:
                _add_verdicts(rows, duel, (one.first, one.second), tau, seed)
    yield from rows.values()


def _answer(row: Row, side: str) -> Answer:
    return Answer(
        text=str(row.get(side, "")), score=number(row.get(f"{side}_score")), gold=number(row.get(f"{side}_gold"))
    )


def _add_verdicts(
    rows: dict[str, Sample], duel: Duel, variants: tuple[str, str], tau: float | None, seed: int | None
) -> None:
    """A verdict stands beside the texts it was given on; other texts of the same prompt get a row of their own."""
    sides: tuple[Side, Side] = ("b", "a") if duel.flipped else ("a", "b")
    scores = {
        variant: _scores(run, duel.judged.completions[side])
        for variant, run, side in zip(variants, (duel.first, duel.second), sides, strict=True)
    }
    for judgment in duel.judged.judgments:
        prompt = str(judgment.get("prompt", ""))
        texts = {variant: str(judgment.get(side, "")) for variant, side in zip(variants, sides, strict=True)}
        answers = {
            variant: Answer(text=text, score=score, gold=gold)
            for variant, text in texts.items()
            for score, gold in [scores[variant].get((prompt, text), (None, None))]
        }
        key = prompt
        known = rows.get(key)
        if known is not None and any(v in known.answers and known.answers[v].text != texts[v] for v in variants):
            key = "\0".join([prompt, *texts.values()])
            known = rows.get(key)
        if known is None:
            known = rows[key] = Sample(prompt=prompt, tau=tau, seed=seed, reference=None, answers={})
        known.answers = answers | known.answers
        known.verdicts.append(verdict(judgment, duel.judged, variants, flipped=duel.flipped))


def verdict(judgment: Row, judged: Judged, variants: tuple[str, str], *, flipped: bool) -> str:
    """Who won, and who says so."""
    outcome = judgment.get("outcome")
    winner = {"win": variants[flipped], "loss": variants[not flipped]}.get(str(outcome))
    if winner:
        said = f"{winner} wins"
    elif outcome == "tie":
        said = "tie, the orders disagree" if judgment.get("inconsistent") else "tie"
    else:
        said = "no verdict"
    return f"{said} ({short_judge_name(judged.judge)})"


def _scores(run: Run, judged: Sequence[Row]) -> dict[tuple[str, str], tuple[float | None, float | None]]:
    """Score and gold score of each completion that is on record."""
    found = {
        (str(row.get("prompt")), str(row.get("completion"))): (number(row.get("score")), number(row.get("gold")))
        for row in (*run.completions, *judged)
    }
    for row in run.last_rows(run.samples):
        answer = _answer(row, "policy")
        found[str(row.get("prompt")), answer.text] = (answer.score, answer.gold)
    return found
