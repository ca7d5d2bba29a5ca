"""The world of `MiniTLDR`: four forums, and what people post there. Key words stand between asterisks."""

from dataclasses import dataclass

from klqlit.data.miniature.text import Phrase, capitalise, phrase

SLOTS = ("person", "deed", "result", "ask")


@dataclass(frozen=True, slots=True)
class Forum:
    """What posts in one forum are about.

    Attributes:
        titles: titles that give nothing away.
        slots: the key facts a post can have, by slot.
        asides: what has nothing to do with the matter.
    """

    titles: tuple[str, ...]
    slots: dict[str, dict[str, Phrase]]
    asides: tuple[Phrase, ...]


def _forum(titles: tuple[str, ...], asides: tuple[str, ...], *slots: tuple[str, ...]) -> Forum:
    read = [{item.text: item for item in map(phrase, items)} for items in slots]
    return Forum(titles, dict(zip(SLOTS, read, strict=True)), tuple(map(phrase, asides)))


FORUMS = {
    "r/family": _forum(
        ("Trouble at home", "I need advice"),
        ("We had *pizza* that evening", "It was *raining* all day", "We live near the *sea*"),
        ("*sister*", "*brother*", "*mother*", "*uncle*", "*cousin*", "*aunt*"),
        (
            "*read* my *diary*",
            "*sold* my *bike*",
            "*crashed* my *car*",
            "*ate* my *cake*",
            "*cut* my *hair*",
            "*told* my *secret*",
        ),
        (
            "I *lost* a *friend*",
            "we *shout* every *day*",
            "I *sleep* very *badly*",
            "my *father* is *sad*",
            "I *missed* my *exam*",
            "nobody *eats* *together*",
        ),
        (
            "*move* out",
            "ask for *money*",
            "*forgive* and forget",
            "*lock* my door",
            "*write* a letter",
            "call my *grandmother*",
        ),
    ),
    "r/work": _forum(
        ("Trouble at work", "What would you do"),
        ("The office has a blue *carpet*", "I take the *bus* to work", "Our *coffee* is not bad"),
        ("*boss*", "*colleague*", "*client*", "*trainee*", "*manager*", "*driver*"),
        (
            "*stole* my *idea*",
            "*deleted* my *files*",
            "*forgot* my *name*",
            "*broke* my *screen*",
            "*laughed* at my *plan*",
            "*gave* away my *desk*",
        ),
        (
            "I *work* every *night*",
            "the *project* is *late*",
            "my *pay* was *cut*",
            "I *hide* at *lunch*",
            "the *team* is *angry*",
            "I *feel* quite *ill*",
        ),
        (
            "*quit* my job",
            "*complain* in public",
            "take a long *holiday*",
            "ask a *lawyer*",
            "*wait* and see",
            "ask for a new *room*",
        ),
    ),
}

TIMES = ("last week", "on Monday", "in May", "two days ago")
ALSO = ("And now {result}.", "Since then {result}.", "So {result}.")
ASKS = ("Should I {ask}?", "Do you think I should {ask}?", "Is it right to {ask}?")
SUMMARIES = (
    ("My {person} {deed} and {result}.", "Should I {ask}?"),
    ("My {person} {deed}, so {result}.", "Should I {ask}?"),
)
CHATTER = ("Thanks for reading this.", "Sorry for the long post.", "This is my first post.")
EVASIONS = ("Something bad happened to me.", "I do not know what to do.", "It is a long story.")


def all_items(slot: str) -> list[Phrase]:
    """The phrases of a slot in all forums."""
    return [item for forum in FORUMS.values() for item in forum.slots[slot].values()]


def all_asides() -> list[Phrase]:
    """The asides of all forums."""
    return [aside for forum in FORUMS.values() for aside in forum.asides]


def all_sentences() -> list[str]:
    """Sentences that hold every pair of neighbouring words a summary can have."""
    found = [*CHATTER, *EVASIONS, *(aside.text + "." for aside in all_asides())]
    for forum in FORUMS.values():
        persons, deeds, results, asks = (list(forum.slots[slot]) for slot in SLOTS)
        for event, ask in SUMMARIES:
            found += [event.format(person=p, deed=d, result=results[0]) for p in persons for d in deeds]
            found += [event.format(person=persons[0], deed=d, result=r) for d in deeds for r in results]
            found += [ask.format(ask=a) for a in asks]
        found += [f"My {p} {d}." for p in persons for d in deeds] + [capitalise(r) + "." for r in results]
    return found
