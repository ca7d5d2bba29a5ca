"""`MiniTLDR`: posts with four key facts each, and summaries from complete to vague."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import final
from zlib import crc32

from klqlit.data.miniature import tldr_phrases as say
from klqlit.data.miniature.pairs import draw_rows
from klqlit.data.miniature.text import capitalise, first_fitting
from klqlit.data.miniature.tldr_score import score_summary
from klqlit.data.source import Row, Source, Split, TokenCounter

BODY, TAIL = "POST: ", "\n\nTL;DR:"

LEVELS = {
    "complete": 0.16,
    "partial": 0.26,
    "bare": 0.14,
    "wrong": 0.16,
    "wordy": 0.14,
    "vague": 0.14,
}
"""How often each level of quality occurs in the text to imitate."""

TEMPERATURE = 0.45
"""Of the noise in the preferences, in units of the gold score."""


@dataclass(frozen=True, slots=True)
class Post:
    """A post with its key facts; `prompt` is what `tell` makes of them."""

    prompt: str
    forum: str
    person: str
    deed: str
    result: str
    ask: str

    @property
    def columns(self) -> dict[str, str]:
        return {"person": self.person, "deed": self.deed, "result": self.result, "ask": self.ask}


@final
class MiniTLDR(Source):
    """Posts to be summarised, with summaries of mixed quality, made from a seed.

    A post says who did what, what came of it and what the writer asks, with asides between. One in eight of these
    combinations, the same for every seed, occurs in the validation split alone. Prompts take 48 words at most,
    summaries 32.

    Args:
        seed: of everything random; the same rows come from the same seed in every process.
        size: rows of the training split.
        validation_size: rows of the validation split.
    """

    def __init__(self, seed: int = 0, size: int = 16_000, validation_size: int = 512) -> None:
        self.seed = seed
        self.sizes: dict[Split, int] = {"train": size, "validation": validation_size}

    def rows(self, split: Split) -> list[Row]:
        rng = Random(f"mini_tldr {split} {self.seed}")
        return draw_rows(
            [draw_post(split, rng) for _ in range(self.sizes[split])],
            write=write_summary,
            score=score_post,
            levels=LEVELS,
            temperature=TEMPERATURE,
            rng=rng,
        )

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        """Drops words from the post's end; forum, title and the closing "TL;DR:" stay."""
        frame, _, post = prompt.removesuffix(TAIL).partition(BODY)
        spoken = post.split(" ")
        cuts = (frame + BODY + " ".join(spoken[:end]) + TAIL for end in range(len(spoken) - 1, -1, -1))
        return prompt if count(prompt) <= limit else first_fitting(cuts, count, limit)


def draw_post(split: Split, rng: Random) -> Post:
    """A post whose key facts belong to the split."""
    while True:
        forum = rng.choice(list(say.FORUMS))
        facts = {slot: rng.choice(list(items)) for slot, items in say.FORUMS[forum].slots.items()}
        if (crc32("|".join(facts.values()).encode()) % 8 == 0) == (split == "validation"):
            return Post(_tell(forum, facts, rng), forum, **facts)


def score_post(post: Post, text: str) -> float:
    """Gold score of a summary of a post."""
    return score_summary(**post.columns, text=text)


def write_summary(post: Post, level: str, rng: Random) -> str:
    """A summary of the given level of quality, with its leading space."""
    return " " + " ".join(_WRITERS[level](post, rng))


def _tell(forum: str, facts: dict[str, str], rng: Random) -> str:
    first, second = rng.sample(say.FORUMS[forum].asides, 2)
    story = (
        f"My {facts['person']} {facts['deed']} {rng.choice(say.TIMES)}.",
        f"{first.text}.",
        rng.choice(say.ALSO).format(**facts),
        *([f"{second.text}."] if rng.random() < 0.5 else []),
        rng.choice(say.ASKS).format(**facts),
    )
    title = rng.choice(say.FORUMS[forum].titles)
    return f"SUBREDDIT: {forum}\n\nTITLE: {title}\n\n{BODY}{' '.join(story)}{TAIL}"


def _complete(post: Post, rng: Random) -> list[str]:
    return [sentence.format(**post.columns) for sentence in rng.choice(say.SUMMARIES)]


def _partial(post: Post, rng: Random) -> list[str]:
    """Result or question is missing."""
    event = f"My {post.person} {post.deed}."
    question = _complete(post, rng)[1]
    return rng.choice(([_complete(post, rng)[0]], [event, question], [f"{capitalise(post.result)}.", question]))


def _bare(post: Post, rng: Random) -> list[str]:
    return [rng.choice((f"My {post.person} {post.deed}.", f"{capitalise(post.result)}.", _complete(post, rng)[1]))]


def _wrong(post: Post, rng: Random) -> list[str]:
    """A complete summary but for one or two facts of another post."""
    slots = rng.sample(say.SLOTS, rng.choice((1, 2)))
    swapped = {slot: _other(list(say.FORUMS[post.forum].slots[slot]), post.columns[slot], rng) for slot in slots}
    return _complete(replace(post, **swapped), rng)


def _wordy(post: Post, rng: Random) -> list[str]:
    """Any summary with what nobody needs, so that a long text is no sign of a right one."""
    summary = rng.choice((_complete, _partial, _wrong))(post, rng)
    return [*summary, rng.choice(say.FORUMS[post.forum].asides).text + ".", rng.choice(say.CHATTER)]


def _vague(post: Post, rng: Random) -> list[str]:
    return rng.sample((*say.EVASIONS, *say.CHATTER), rng.choice((1, 2, 3)))


def _other(options: list[str], taken: str, rng: Random) -> str:
    return rng.choice([option for option in options if option != taken])


_WRITERS: dict[str, Callable[[Post, Random], list[str]]] = {
    "complete": _complete,
    "partial": _partial,
    "bare": _bare,
    "wrong": _wrong,
    "wordy": _wordy,
    "vague": _vague,
}
