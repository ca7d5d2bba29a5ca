"""The world of `MiniHH`: subjects, situations and turns of phrase. Key words stand between asterisks."""

from dataclasses import dataclass

from klqlit.data.miniature.text import Phrase, phrase

ASPECTS = ("tools", "start", "time", "avoid")


@dataclass(frozen=True, slots=True)
class Topic:
    """A pastime people ask about.

    Attributes:
        task: what they want to do; its key is the word by which an answer names the topic.
        doing: the same as a noun.
        facts: what to answer, by aspect.
    """

    task: Phrase
    doing: str
    facts: dict[str, Phrase]


@dataclass(frozen=True, slots=True)
class Situation:
    """What people say about themselves, and the advice that suits it."""

    text: str
    tip: Phrase


def _topic(task: str, doing: str, *facts: str) -> Topic:
    return Topic(phrase(task), doing, dict(zip(ASPECTS, map(phrase, facts), strict=True)))


TOPICS = {
    topic.task.text: topic
    for topic in (
        _topic(
            "bake *bread*",
            "baking bread",
            "*flour*, *yeast* and a hot *oven*",
            "*mix* the *dough* and let it *rise*",
            "about *four* *hours*",
            "*open* the *oven* *door* early",
        ),
        _topic(
            "grow *tomatoes*",
            "growing tomatoes",
            "*seeds*, good *soil* and much *sun*",
            "*sow* the *seeds* in *spring*",
            "about *three* *months*",
            "*drown* the young *roots*",
        ),
        _topic(
            "play *chess*",
            "playing chess",
            "a *board* and a patient *partner*",
            "learn how each *piece* *moves*",
            "about *one* *year*",
            "*bring* out the *queen* too soon",
        ),
        _topic(
            "paint a *room*",
            "painting a room",
            "a *brush*, a *roller* and *tape*",
            "*wash* the *walls* and cover the *floor*",
            "about *two* *days*",
            "*paint* on *damp* *walls*",
        ),
        _topic(
            "train a *puppy*",
            "training a puppy",
            "a *leash* and small *treats*",
            "*teach* it to *sit*",
            "about *six* *weeks*",
            "*shout* at the *dog*",
        ),
        _topic(
            "play the *guitar*",
            "playing the guitar",
            "a *guitar*, a *pick* and a *tuner*",
            "*learn* three easy *chords*",
            "about *six* *months*",
            "*press* the *strings* too hard",
        ),
        _topic(
            "cook *soup*",
            "cooking soup",
            "a big *pot*, *beans* and *stock*",
            "*fry* the *onions* in *oil*",
            "about *one* *hour*",
            "*add* all the *salt* at once",
        ),
        _topic(
            "speak *Spanish*",
            "speaking Spanish",
            "a *notebook* and a good *teacher*",
            "learn *fifty* common *words*",
            "about *two* *years*",
            "*translate* every *word*",
        ),
        _topic(
            "knit a *scarf*",
            "knitting a scarf",
            "two *needles* and soft *wool*",
            "*cast* on twenty *stitches*",
            "about *two* *weeks*",
            "*pull* the *wool* too tight",
        ),
        _topic(
            "keep *bees*",
            "keeping bees",
            "a *hive*, a *veil* and *gloves*",
            "*join* a local *club*",
            "about *four* *months*",
            "*lift* the *lid* in the rain",
        ),
        _topic(
            "build a *shelf*",
            "building a shelf",
            "*boards*, *screws* and a *drill*",
            "*measure* the *wall* twice",
            "about *three* *hours*",
            "*drill* near a *pipe*",
        ),
        _topic(
            "pitch a *tent*",
            "pitching a tent",
            "*pegs*, *rope* and a *hammer*",
            "*clear* a flat piece of *ground*",
            "about *twenty* *minutes*",
            "*camp* under dead *branches*",
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
        Situation("I am rather nervous", phrase("*breathe* and go *slowly*")),
        Situation("I am new to this", phrase("ask a *friend* to *show* you once")),
        Situation("I am seventy years old", phrase("*sit* in a good *chair*")),
        Situation("I forget things", phrase("keep a short *list* in your *pocket*")),
        Situation("My neighbours hate noise", phrase("work *quietly* after *noon*")),
        Situation("I hurt my left arm", phrase("let your *right* *hand* do it")),
    )
}

QUESTIONS = {
    "tools": ("What do I need to {task}?", "Which things should I have to {task}?", "What must I get to {task}?"),
    "start": ("How do I start to {task}?", "What comes first when I {task}?", "How should I begin to {task}?"),
    "time": ("How long does it take to {task}?", "How much time will I need to {task}?", "How soon can I {task}?"),
    "avoid": (
        "What goes wrong when I {task}?",
        "Which mistake is common when I {task}?",
        "What should I not do when I {task}?",
    ),
}
FRAMES = {
    "tools": ("You need {fact}.", "All you need is {fact}.", "Get {fact}."),
    "start": ("First, {fact}.", "To begin, {fact}.", "Start like this: {fact}."),
    "time": ("It takes {fact}.", "You will need {fact}.", "Plan {fact} for it."),
    "avoid": ("Do not {fact}.", "Never {fact}.", "Take care not to {fact}."),
}
TIP_FRAMES = ("Also, {tip}.", "In your case, {tip}.", "As for you, {tip}.", "And {tip}.")

GREETINGS = (
    "Sure, {doing} is fun!",
    "Of course, {doing} is a fine plan.",
    "Good question, I am glad to help with {doing}.",
)
THANKS = ("Thanks for asking!", "Happy to help!")
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
    found = [*THANKS, *WISHES, *INSULTS, *DISMISSALS, *EVASIONS, *ASIDES]
    for topic in TOPICS.values():
        found += [greeting.format(doing=topic.doing) for greeting in GREETINGS]
        for aspect, fact in topic.facts.items():
            found += [fact.text + ".", *(frame.format(fact=fact.text) for frame in FRAMES[aspect])]
    return found + [frame.format(tip=situation.tip.text) for situation in SITUATIONS.values() for frame in TIP_FRAMES]
