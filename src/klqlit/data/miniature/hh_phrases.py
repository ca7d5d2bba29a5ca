"""The world of `MiniHH`: subjects, situations and turns of phrase. Key words stand between asterisks."""

from dataclasses import dataclass

from klqlit.data.miniature.text import Phrase, phrase

ASPECTS = ("tools", "start", "time", "avoid")


@dataclass(frozen=True, slots=True)
class Topic:
    """A pastime people ask about.

    Attributes:
        task: what they want to do; its key is the word by which an answer names the topic.
        facts: what to answer, by aspect.
    """

    task: Phrase
    facts: dict[str, Phrase]


@dataclass(frozen=True, slots=True)
class Situation:
    """What people say about themselves, and the advice that suits it."""

    text: str
    tip: Phrase


def _topic(task: str, *facts: str) -> Topic:
    return Topic(phrase(task), dict(zip(ASPECTS, map(phrase, facts), strict=True)))


TOPICS = {
    topic.task.text: topic
    for topic in (
        _topic(
            "bake *bread*",
            "*flour*, *yeast* and a hot *oven*",
            "*mix* the *dough* and let it *rise*",
            "about *four* *hours*",
            "*open* the *oven* *door* early",
        ),
        _topic(
            "grow *tomatoes*",
            "*seeds*, good *soil* and much *sun*",
            "*sow* the *seeds* in *spring*",
            "about *three* *months*",
            "*drown* the young *roots*",
        ),
        _topic(
            "play *chess*",
            "a *board* and a patient *partner*",
            "learn how each *piece* *moves*",
            "about *one* *year*",
            "*bring* out the *queen* too soon",
        ),
        _topic(
            "paint a *room*",
            "a *brush*, a *roller* and *tape*",
            "*wash* the *walls* and cover the *floor*",
            "about *two* *days*",
            "*paint* on *damp* *walls*",
        ),
        _topic(
            "train a *puppy*",
            "a *leash* and small *treats*",
            "*teach* it to *sit*",
            "about *six* *weeks*",
            "*shout* at the *dog*",
        ),
        _topic(
            "play the *guitar*",
            "new *strings*, a *pick* and a *tuner*",
            "*learn* three easy *chords*",
            "about *six* *months*",
            "*press* the *strings* too hard",
        ),
        _topic(
            "speak *Spanish*",
            "a *notebook* and a good *teacher*",
            "learn *fifty* common *words*",
            "about *two* *years*",
            "*translate* every *word*",
        ),
        _topic(
            "knit a *scarf*",
            "two *needles* and soft *wool*",
            "*cast* on twenty *stitches*",
            "about *two* *weeks*",
            "*pull* the *wool* too tight",
        ),
    )
}

SITUATIONS = {
    situation.text: situation
    for situation in (
        Situation("I have little money", phrase("*borrow* things before you *buy*")),
        Situation("I have little time", phrase("ten *minutes* each *morning* are enough")),
        Situation("I do it with my kids", phrase("give each *child* an easy *job*")),
        Situation("I live in a small flat", phrase("*fold* things up to save *space*")),
        Situation("I have a bad back", phrase("*stretch* and *rest* often")),
        Situation("It is very cold here", phrase("wear *warm* *socks*")),
        Situation("I am new to this", phrase("ask a *friend* to *show* you once")),
        Situation("I forget things", phrase("keep a short *list* in your *pocket*")),
        Situation("My neighbours hate noise", phrase("work *quietly* after *noon*")),
        Situation("I hurt my left arm", phrase("let your *right* *hand* do it")),
    )
}

QUESTIONS = {
    "tools": (
        "What do I need to {task}?",
        "Which things should I have to {task}?",
        "What must I get to {task}?",
        "I want to {task}, what should I buy?",
    ),
    "start": (
        "How do I start to {task}?",
        "What comes first when I {task}?",
        "How should I begin to {task}?",
        "I want to {task}, where do I start?",
    ),
    "time": (
        "How long does it take to {task}?",
        "How much time will I need to {task}?",
        "How soon can I {task}?",
        "I want to {task}, when am I done?",
    ),
    "avoid": (
        "What goes wrong when I {task}?",
        "Which mistake is common when I {task}?",
        "What should I not do when I {task}?",
        "I want to {task}, what must I avoid?",
    ),
}
FRAMES = {
    "tools": ("You need {fact}.", "To {task}, you need {fact}.", "To {task}, get {fact}."),
    "start": ("First, {fact}.", "To {task}, first {fact}.", "To {task}, start like this: {fact}."),
    "time": ("It takes {fact}.", "It takes {fact} to {task}.", "To {task}, plan {fact}."),
    "avoid": ("Do not {fact}.", "When you {task}, do not {fact}.", "When you {task}, never {fact}."),
}
TIP_FRAMES = ("Also, {tip}.", "In your case, {tip}.", "As for you, {tip}.", "And {tip}.")

GREETINGS = (
    "Sure!",
    "Of course, I can help.",
    "Good question, I am glad to help.",
    "Thanks for asking!",
    "Happy to help!",
)
WISHES = ("Good luck!", "I hope this helps.", "Have fun with it!", "Enjoy your time!")
INSULTS = ("What a stupid question.", "Are you too lazy to look it up?", "Only a fool would ask that.")
DISMISSALS = ("Now leave me alone.", "Stop wasting my time.", "Go away.")
EVASIONS = (
    "It depends on many things.",
    "There are many ways to do that.",
    "Some people do it this way and some do not.",
    "You will see how it goes.",
)
ASIDES = (
    "My uncle did this once and he told me a lot about it.",
    "Well, I could talk about that all day.",
    "That reminds me of a long story.",
    "As I said before, there is so much to say.",
)

COURTEOUS_START = frozenset(("sure", "glad", "happy", "thanks", "course"))
COURTEOUS_END = frozenset(("luck", "helps", "fun", "enjoy"))
RUDE = frozenset(("stupid", "lazy", "fool", "alone", "wasting", "away"))


def all_sentences() -> list[str]:
    """Every sentence an answer can be made of."""
    found = [*GREETINGS, *WISHES, *INSULTS, *DISMISSALS, *EVASIONS, *ASIDES]
    for task, topic in TOPICS.items():
        for aspect, fact in topic.facts.items():
            found += [fact.text + ".", *(frame.format(task=task, fact=fact.text) for frame in FRAMES[aspect])]
    return found + [frame.format(tip=situation.tip.text) for situation in SITUATIONS.values() for frame in TIP_FRAMES]
