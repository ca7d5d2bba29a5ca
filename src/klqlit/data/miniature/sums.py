"""`MiniSums`: stories about counting things, worked out in steps to an answer that can be checked."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import final
from zlib import crc32

from klqlit.data.miniature.pairs import draw_rows
from klqlit.data.miniature.sums_score import Chain, score_solution
from klqlit.data.miniature.text import first_fitting
from klqlit.data.source import Row, Source, Split, TokenCounter

HEAD, TAIL = "Question: ", "\nAnswer:"

NAMES = ("Ann", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry")
THINGS = ("apples", "books", "coins", "eggs", "stamps", "cards", "shells", "pens")
GAINS = ("{name} buys {number} more.", "{name} finds {number}.", "A friend brings {number}.")
LOSSES = ("{name} sells {number}.", "{name} loses {number}.", "A friend takes {number}.")
MUSINGS = ("Well, let me think about it.", "I like such stories.", "This is not so easy.")

LEVELS = {
    "worked": 0.28,
    "slip": 0.26,
    "misread": 0.14,
    "bare": 0.08,
    "guess": 0.10,
    "unfinished": 0.07,
    "musing": 0.07,
}
"""How often each level of quality occurs in the text to imitate."""

TEMPERATURE = 0.45
"""Of the noise in the preferences, in units of the gold score."""


@dataclass(frozen=True, slots=True)
class Story:
    """A question with the chain of sums that answers it."""

    prompt: str
    chain: Chain

    @property
    def columns(self) -> dict[str, str]:
        return {"chain": str(self.chain)}


@final
class MiniSums(Source):
    """Sums of two or three steps told as stories, with solutions of mixed quality, made from a seed.

    All numbers lie between 0 and 20. One in eight chains of sums, the same for every seed, occurs in the validation
    split alone. Prompts take 25 words at most, solutions 24 words, numbers and signs.

    Whether a sum holds is hard to learn from preferences for a model as small as `new_language_model`'s. As the answers
    can be checked, the gold reward may serve as the reward itself.

    Args:
        seed: of everything random; the same rows come from the same seed in every process.
        size: rows of the training split.
        validation_size: rows of the validation split.
    """

    def __init__(self, seed: int = 0, size: int = 16_000, validation_size: int = 512) -> None:
        self.seed = seed
        self.sizes: dict[Split, int] = {"train": size, "validation": validation_size}

    def rows(self, split: Split) -> list[Row]:
        rng = Random(f"mini_sums {split} {self.seed}")
        return draw_rows(
            [draw_story(split, rng) for _ in range(self.sizes[split])],
            write=write_solution,
            score=score_story,
            levels=LEVELS,
            temperature=TEMPERATURE,
            rng=rng,
        )

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        """Drops words from the story's beginning."""
        spoken = prompt.removeprefix(HEAD).removesuffix(TAIL).split(" ")
        cuts = (HEAD + " ".join(spoken[start:]) + TAIL for start in range(1, len(spoken) + 1))
        return prompt if count(prompt) <= limit else first_fitting(cuts, count, limit)


def draw_story(split: Split, rng: Random) -> Story:
    """A story whose chain of sums belongs to the split."""
    while True:
        chain = _draw_chain(rng)
        if (crc32(str(chain).encode()) % 8 == 0) == (split == "validation"):
            return _tell(chain, rng)


def score_story(story: Story, text: str) -> float:
    """Gold score of a solution to a story."""
    return score_solution(str(story.chain), text)


def write_solution(story: Story, level: str, rng: Random) -> str:
    """A solution of the given level of quality, with its leading space."""
    return " " + " ".join(_WRITERS[level](story.chain, rng))


def _draw_chain(rng: Random) -> Chain:
    total = start = rng.randint(3, 12)
    changes: list[int] = []
    for _ in range(rng.choice((2, 3))):
        change = rng.choice([c for c in range(-9, 10) if abs(c) > 1 and 0 <= total + c <= 20])
        changes.append(change)
        total += change
    return Chain(start, tuple(changes))


def _tell(chain: Chain, rng: Random) -> Story:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    events = [
        rng.choice(GAINS if change > 0 else LOSSES).format(name=name, number=abs(change)) for change in chain.changes
    ]
    story = " ".join([f"{name} has {chain.start} {things}.", *events, f"How many {things} are left?"])
    return Story(HEAD + story + TAIL, chain)


def _steps(chain: Chain) -> list[str]:
    return [str(step) + "." for step in chain.steps]


def _closing(total: int) -> str:
    return f"The answer is {total}."


def _worked(chain: Chain, rng: Random) -> list[str]:
    return [*_steps(chain), _closing(chain.total)]


def _slip(chain: Chain, rng: Random) -> list[str]:
    """One sum comes out wrong, and the later steps go on from there."""
    where = rng.randrange(len(chain.changes))
    written, total = [], chain.start
    for i, change in enumerate(chain.changes):
        correct = total + change
        result = _near(correct, rng) if i == where else correct
        written.append(f"{total} {'+' if change > 0 else '-'} {abs(change)} = {result}.")
        total = result
    return [*written, _closing(total)]


def _near(number: int, rng: Random) -> int:
    return rng.choice([near for near in range(number - 2, number + 3) if near != number and near >= 0])


def _misread(chain: Chain, rng: Random) -> list[str]:
    """One gain is taken for a loss, or the other way round."""
    where = rng.randrange(len(chain.changes))
    misread = Chain(chain.start, tuple(-change if i == where else change for i, change in enumerate(chain.changes)))
    return _worked(misread, rng) if min(misread.totals) >= 0 else _slip(chain, rng)


def _bare(chain: Chain, rng: Random) -> list[str]:
    return [_closing(chain.total)]


def _guess(chain: Chain, rng: Random) -> list[str]:
    return [_closing(rng.randint(0, 20))]


def _unfinished(chain: Chain, rng: Random) -> list[str]:
    return _steps(chain)[: rng.randint(1, len(chain.changes))]


def _musing(chain: Chain, rng: Random) -> list[str]:
    first, second = rng.sample(MUSINGS, 2)
    return [first, *_steps(chain)[:1], second, *rng.choice(([_closing(chain.total)], []))]


_WRITERS: dict[str, Callable[[Chain, Random], list[str]]] = {
    "worked": _worked,
    "slip": _slip,
    "misread": _misread,
    "bare": _bare,
    "guess": _guess,
    "unfinished": _unfinished,
    "musing": _musing,
}
