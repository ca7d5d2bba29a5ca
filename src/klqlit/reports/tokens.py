"""Completions token by token, coloured by what the algorithm saw of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from klqlit.reports.groups import Task, cell_title
from klqlit.reports.intervals import plain, signed
from klqlit.reports.reading import Row, number
from klqlit.reports.runs import Run

NUMBERS = ("logratio", "value", "q", "return", "advantage")
HEADINGS = ("log(π/π_b)", "V", "Q", "return", "advantage")
COLOURED = {"logratio": "log-ratio to the reference", "value": "value V", "advantage": "advantage"}
BLUE, ORANGE, PURPLE = (0, 114, 178), (213, 94, 0), (150, 60, 130)
STRONGEST = 0.55
"""Share of the colour at the end of the scale: dark text stays readable on it."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Token:
    """A token on the page.

    Attributes:
        text: as it is shown.
        cells: its numbers, as text, in the order of `HEADINGS`.
        colours: background by name of `COLOURED`.
    """

    text: str
    cells: list[str]
    colours: dict[str, str]

    @property
    def hint(self) -> str:
        """All numbers in a line."""
        return " · ".join(f"{name} {cell}" for name, cell in zip(HEADINGS, self.cells, strict=True))


@dataclass(kw_only=True, slots=True, frozen=True)
class Completion:
    """One variant's completion of a prompt.

    Attributes:
        variant: whose.
        prompt: the prompt.
        score: of the completion.
        tokens: of the completion.
        scales: by name of `COLOURED`, what the ends of the colours stand for.
    """

    variant: str
    prompt: str
    score: str
    tokens: list[Token]
    scales: dict[str, str]


@dataclass(kw_only=True, slots=True, frozen=True)
class TokenViews:
    """Completions of one tau and seed, grouped by prompt.

    Attributes:
        title: tau and seed.
        prompts: of each prompt the completions of all variants.
    """

    title: str
    prompts: list[list[Completion]]


@dataclass(kw_only=True, slots=True, frozen=True)
class TokenBlock:
    """All token views of a task; one switch for the colours.

    Attributes:
        views: by tau.
        coloured: names and titles of what can colour the tokens.
        headings: of the tables.
    """

    views: list[TokenViews]
    coloured: dict[str, str]
    headings: Sequence[str] = HEADINGS
    kind: str = "tokens"


def collect(task: Task) -> TokenBlock | None:
    """For each tau the seed that most variants have on record; None where no run has any."""
    views = [view for tau in task.taus if (view := _of_tau(task, tau)) is not None]
    return TokenBlock(views=views, coloured=COLOURED) if views else None


def _of_tau(task: Task, tau: float | None) -> TokenViews | None:
    by_seed: dict[int | None, dict[str, Run]] = {}
    for cell in task.at(tau):
        for run in cell.runs:
            if run.tokens:
                by_seed.setdefault(run.seed, {})[cell.variant] = run
    if not by_seed:
        return None
    seed = min(by_seed, key=lambda seed: (-len(by_seed[seed]), seed or 0))
    prompts: dict[str, list[Completion]] = {}
    for variant, run in by_seed[seed].items():
        for row in run.last_rows(run.tokens):
            completion = read_completion(row, variant)
            if completion is not None:
                prompts.setdefault(completion.prompt, []).append(completion)
    title = cell_title(task.name, tau) + ("" if seed is None else f", seed {seed}")
    return TokenViews(title=title, prompts=list(prompts.values())) if prompts else None


def read_completion(row: Row, variant: str) -> Completion | None:
    """A line of tokens.jsonl; None where its lists do not fit each other."""
    texts, columns = row.get("tokens"), [row.get(name) for name in NUMBERS]
    if not isinstance(texts, list) or not all(isinstance(one, list) and len(one) == len(texts) for one in columns):
        return None
    numbers = {
        name: [number(x) or 0.0 for x in column] for name, column in zip(NUMBERS, columns, strict=True) if column
    }
    if not numbers:
        return None
    colours = {name: scale(numbers[name], centred=name != "value") for name in COLOURED}
    tokens = [
        Token(
            text=visible(str(text)),
            cells=[signed(numbers[name][i], 3) for name in NUMBERS],
            colours={name: colours[name][0][i] for name in COLOURED},
        )
        for i, text in enumerate(texts)
    ]
    score = number(row.get("score"))
    return Completion(
        variant=variant,
        prompt=str(row.get("prompt", "")),
        score="" if score is None else plain(score),
        tokens=tokens,
        scales={name: colours[name][1] for name in COLOURED},
    )


def visible(text: str) -> str:
    """A token's text with its line ends to be seen; a token that only begins a character is a dot."""
    return text.replace("\n", "⏎\n") or "·"


def scale(values: Sequence[float], *, centred: bool) -> tuple[list[str], str]:
    """Colours of the values, and what the scale's ends stand for.

    Args:
        values: of the tokens.
        centred: blue below 0 and orange above, as strong as the largest of them; else white to purple from the smallest
            to the largest.
    """
    if centred:
        top = max(abs(x) for x in values) or 1.0
        colours = [mix(ORANGE if x > 0 else BLUE, abs(x) / top) for x in values]
        return colours, f"blue −{plain(top)} · white 0 · orange {plain(top)}"
    low, high = min(values), max(values)
    width = high - low or 1.0
    return [mix(PURPLE, (x - low) / width) for x in values], f"white {plain(low)} · purple {plain(high)}"


def mix(colour: tuple[int, int, int], share: float) -> str:
    """A colour on white."""
    part = STRONGEST * share
    return "#" + "".join(f"{round(255 + part * (channel - 255)):02x}" for channel in colour)
