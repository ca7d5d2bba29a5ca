"""`python -m klqlit judge --a runs/klq --b runs/ppo --judge LengthJudge`: who wins, and how sure that is."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console

from klqlit import (
    EndpointJudge,
    FunctionReward,
    LengthJudge,
    LikelihoodJudge,
    RewardJudge,
    RewardModel,
    RougeJudge,
)
from klqlit.callbacks.run_record import versions
from klqlit.command_line import Parser, quieten
from klqlit.commands.comparisons import choose_folder, write_comparison
from klqlit.commands.sides import Answers, Letter, Side, answers_of, find_sides
from klqlit.commands.stopping import stop_on_signals
from klqlit.judges.base import Judge
from klqlit.judges.cache import JudgmentCache
from klqlit.judges.matching import Matching, Response, match
from klqlit.judges.protocol import judge_pairs, missing_questions
from klqlit.judges.records import Pair
from klqlit.judges.statistics import bootstrap
from klqlit.judges.summary import as_table, sentences, summarise
from klqlit.options.errors import explain
from klqlit.options.factories import check_factories
from klqlit.rewards.miniature import MiniHHGold, MiniSumsGold, MiniTLDRGold

JUDGES = (EndpointJudge, LikelihoodJudge, RewardJudge, RougeJudge, LengthJudge)
REWARDS = (RewardModel, FunctionReward, MiniHHGold, MiniTLDRGold, MiniSumsGold)
"""Like the judges known by their bare names, since they are imported here."""

FOLDER = Path("runs/judged")
"""Where comparisons go, with the completions and judgments that they share."""

SHOWN = 3
"""Prompts in a message."""

DESCRIPTION = """Compare the completions of two sides pairwise. A side is a run's folder, an exported model, a file of
completions, `reference` (what the other side's policy started from) or `dataset` (the human responses). Rates are from
the view of side A."""


def run(options: list[str]) -> None:
    """Judge, print what came out, and write it to a folder.

    Raises:
        ValueError: an option, side, file or judge is unusable.
        JudgeStopped: the judge gave up.
        SystemExit: a signal stopped it.
    """
    quieten()
    chosen = parse(options)
    sides = find_sides(chosen.a, chosen.b)
    check_factories(chosen)
    judge: Judge = _parser().instantiate(chosen).judge
    folder = choose_folder(chosen.out, sides, judge, default=FOLDER)
    answers = answers_of(sides, config=chosen.config, max_prompts=chosen.max_prompts, folder=Path(chosen.completions))
    matching = match(answers["a"].responses, answers["b"].responses)
    pairs = first_prompts(matching.pairs, chosen.max_prompts)
    _say([*_on_sides(sides, answers), *_on_matching(sides, matching), *_on_pairs(sides, pairs)])
    with JudgmentCache(chosen.cache) as cache:
        if chosen.dry_run:
            return _say(_on_estimate(judge, pairs, cache, both_orders=not chosen.one_order))
        with stop_on_signals() as stopping:
            judged = judge_pairs(
                judge, pairs, cache=cache, both_orders=not chosen.one_order, stopping=stopping, progress=True
            )
    summary = summarise(judged, level=chosen.level, draws=chosen.draws)
    summary["counts"] |= {
        "only_in_a": len(matching.only_in_a),
        "only_in_b": len(matching.only_in_b),
        "duplicate_prompts": matching.duplicate_prompts,
    }
    about = {letter: _about(sides[letter], answers[letter]) for letter in sides}
    write_comparison(folder, judged, matching, about | {"judge": judge.identity} | summary | {"versions": versions()})
    _show(summary, sides)
    _say(["", f"Written to {folder}: judged.json, judgments.jsonl. Judgments are kept in {chosen.cache}."])


def parse(options: Sequence[str]) -> Namespace:
    """The options of `judge`.

    Raises:
        ValueError: one is unknown, or its value is unusable.
    """
    parser = _parser()
    try:
        chosen = parser.parse_args(list(options))
    except ValueError as error:
        raise ValueError(_explain(str(error), list(vars(parser.get_defaults())), options)) from error
    if chosen.max_prompts is not None and chosen.max_prompts < 1:
        raise ValueError(f"--max_prompts {chosen.max_prompts} must be at least 1")
    # Those of the interval are checked before anybody is asked, too.
    bootstrap(np.array([0.5]), level=chosen.level, draws=chosen.draws)
    return chosen


def first_prompts(pairs: Sequence[Pair], count: int | None) -> list[Pair]:
    """The pairs of the first `count` prompts; all where it is None."""
    kept = set(list(dict.fromkeys(pair.id for pair in pairs))[:count])
    return [pair for pair in pairs if pair.id in kept]


def _parser() -> Parser:
    parser = Parser(prog="python -m klqlit judge", description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--a", type=str, required=True, help="side A")
    add("--b", type=str, required=True, help="side B")
    add("--judge", type=Judge, required=True, help="class of the judge; --judge.NAME VALUE sets its arguments")
    add("--config", type=str | None, default=None, help="configuration with the prompts, and for models without a run")
    add("--max_prompts", type=int | None, default=None, help="prompts to compare; default: as the configuration says")
    add("--one_order", action="store_true", help="show each pair once instead of in both orders: half the price")
    add("--dry_run", action="store_true", help="print what asking would take, and ask nothing")
    add("--out", type=str | None, default=None, help=f"folder of the results; default: {FOLDER}/A-vs-B-JUDGE")
    add("--cache", type=str, default=str(FOLDER / "judgments.sqlite"), help="file of all judgments")
    add("--completions", type=str, default=str(FOLDER / "completions"), help="folder of completions generated here")
    add("--level", type=float, default=0.95, help="of the intervals")
    add("--draws", type=int, default=10_000, help="resamples of the bootstrap")
    return parser


def _explain(message: str, names: list[str], options: Sequence[str]) -> str:
    unknown = re.match(r"unrecognized arguments: --(\w+)", message)
    if unknown:
        near = get_close_matches(unknown[1], names, n=1)
        return f"there is no option --{unknown[1]}; " + (f"did you mean --{near[0]}?" if near else "see `--help`")
    chosen = re.search(r"--judge[= ]([\w.]+)", " ".join(options))
    text = explain(message, listing=f"`--judge.help {chosen[1]}`" if chosen else "`--help`")
    if "did you mean" in text:
        return text
    for option, classes in (("judge: ", JUDGES), ("judge.reward: ", REWARDS)):
        if text.startswith(option) and "dot import path" in text:
            known = ", ".join(kind.__name__ for kind in classes)
            return f"{text}; choose one of {known}, or your own class as package.module.Class"
    return text


def _about(side: Side, answers: Answers) -> dict[str, Any]:
    return {"name": side.name, "source": side.source, "run": side.run, "completions": answers.file}


def _on_sides(sides: Mapping[Letter, Side], answers: Mapping[Letter, Answers]) -> list[str]:
    return [
        f"{letter}: {side.name}, {len(answers[letter].responses)} completions from {answers[letter].file}"
        for letter, side in sides.items()
    ]


def _on_matching(sides: Mapping[Letter, Side], matching: Matching) -> list[str]:
    lines = []
    for side, alone in ((sides["a"], matching.only_in_a), (sides["b"], matching.only_in_b)):
        if alone:
            lines.append(
                f"{len(alone)} completions of {side.name} have no partner and are left out (unmatched.jsonl lists "
                f"them): {_first(alone)}"
            )
    if matching.duplicate_prompts:
        lines.append(f"{matching.duplicate_prompts} prompts stand several times: their completions are paired in turn")
    return lines


def _on_pairs(sides: Mapping[Letter, Side], pairs: Sequence[Pair]) -> list[str]:
    empty = {"a": sum(not pair.a.strip() for pair in pairs), "b": sum(not pair.b.strip() for pair in pairs)}
    lines = [f"{empty[letter]} completions of {side.name} are empty" for letter, side in sides.items() if empty[letter]]
    same = sum(pair.a == pair.b for pair in pairs)
    return lines + ([f"{same} pairs are of equal texts: ties, without asking"] if same else [])


def _on_estimate(judge: Judge, pairs: Sequence[Pair], cache: JudgmentCache, *, both_orders: bool) -> list[str]:
    every = missing_questions(judge, pairs, cache=None, both_orders=both_orders)
    missing = missing_questions(judge, pairs, cache=cache, both_orders=both_orders)
    estimate = judge.estimate(missing)
    cost = "unknown, without prices" if estimate.cost is None else f"about {estimate.cost:,.4f}"
    return [
        f"{len(pairs)} pairs, {len(every)} questions, of which {len(every) - len(missing)} are judged in {cache.path}",
        f"the others take {estimate.requests:,} requests, about {estimate.input_tokens:,} tokens to read and at most "
        f"{estimate.output_tokens:,} to write; cost: {cost}",
    ]


def _first(responses: Sequence[Response]) -> str:
    shown = [repr(response.prompt[:60]) for response in responses[:SHOWN]]
    return ", ".join(shown + (["..."] if len(responses) > SHOWN else []))


def _show(summary: Mapping[str, Any], sides: Mapping[Letter, Side]) -> None:
    names = sides["a"].name, sides["b"].name
    Console().print("", as_table(dict(summary), *names))
    _say(sentences(dict(summary), *names))


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
