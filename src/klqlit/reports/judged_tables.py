"""Tables of comparisons: win rates, and what they rest on."""

import hashlib
from collections.abc import Sequence

from klqlit.judges.cache import canonical
from klqlit.reports.blocks import Table
from klqlit.reports.comparisons import Judged, Share, template_hash
from klqlit.reports.groups import plain_tau
from klqlit.reports.reading import Row, mapping, number
from klqlit.reports.tables import NONE, percent
from klqlit.reports.win_rates import KINDS, Series, pooled


def win_rate_table(series: Series) -> Table:
    """The numbers of the figure, and each comparison behind them."""
    rows = []
    for tau, duels in series.points.items():
        shares = [pooled(duels, kind) for kind in KINDS]
        if len(duels) > 1:
            rows.append([plain_tau(tau), f"all {len(duels)}", *(_share(share) for share in shares)])
        for duel in duels:
            seeds = {str(run.seed) for run in (duel.first, duel.second)}
            rows.append([plain_tau(tau), " and ".join(sorted(seeds)), *(_share(duel.share(kind)) for kind in KINDS)])
    return Table(
        title=f"{series.first} wins against {series.second}",
        headings=["τ", "seed", "plain", "length-controlled"],
        rows=rows,
    )


def _share(share: Share | None) -> str:
    if share is None:
        return NONE
    ends = "" if share.low is None or share.high is None else f" [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return f"{100 * share.rate:.1f}{ends} %"


def judge_name(judge: Row) -> str:
    """A judge in a few words, with a fingerprint of all that may change its verdicts."""
    return f"{short_judge_name(judge)} #{hashlib.sha256(canonical(judge).encode()).hexdigest()[:6]}"


def short_judge_name(judge: Row) -> str:
    """A judge in a few words: two may have the same."""
    name = str(judge.get("class") or judge.get("name") or "unknown judge")
    details = [_brief(judge[key]) for key in ("model", "path", "reward", "template") if judge.get(key)]
    return ", ".join([name, *filter(None, details)])


def _brief(value: object) -> str:
    """A name, or the name of what a nested identity describes."""
    if isinstance(value, dict):
        inner = next((value[key] for key in ("path", "name", "model", "class") if value.get(key)), "")
        return _brief(inner)
    return str(value).rpartition(".")[2] if str(value).startswith("klqlit.") else str(value)


def comparisons(judged: Sequence[Judged]) -> Table:
    """Who was compared, by whom, and what came out."""
    rows = []
    for one in judged:
        statistics = one.part("statistics")
        p = number(statistics.get("sign_test"))
        controlled, missing = one.share("length_controlled"), statistics.get("length_controlled_missing")
        rows.append(
            [
                one.name,
                str(one.side("a").get("name")),
                str(one.side("b").get("name")),
                judge_name(one.judge),
                template_hash(one.judge)[:12] or NONE,
                _share(one.share("win_rate")),
                f"none: {missing}" if controlled is None and missing else _share(controlled),
                NONE if p is None else f"{p:.2g}",
            ]
        )
    return Table(
        title="Every comparison, from the view of A",
        headings=["comparison", "A", "B", "judge", "template", "A wins", "length-controlled", "p, sign test"],
        rows=rows,
        texts=5,
        note="Ties count half. Intervals are over prompts, at the comparison's own level.",
    )


def verdict_counts(judged: Sequence[Judged]) -> Table:
    """What the verdicts rest on, and whether they follow the order or the length."""
    rows = []
    for one in judged:
        statistics = one.part("statistics")
        positions, lengths = mapping(statistics.get("by_position")), mapping(statistics.get("by_length"))
        counts = [one.count(name) for name in ("pairs", "judged", "unreadable", "failed", "inconsistent")]
        rows.append(
            [
                one.name,
                *(NONE if count is None else str(count) for count in counts),
                *(_rate(positions.get(place)) for place in ("first", "second")),
                *(_rate(mapping(lengths.get(side)).get("rate")) for side in ("a_longer", "b_longer")),
            ]
        )
    return Table(
        title="What the verdicts rest on",
        headings=[
            "comparison",
            "pairs",
            "judged",
            "unreadable",
            "failed",
            "inconsistent",
            "A wins if first",
            "if second",
            "if longer",
            "if shorter",
        ],
        rows=rows,
        note="Inconsistent: the verdict changed with the order, which makes a tie. Pairs without a readable verdict "
        "are left out of all rates.",
    )


def _rate(value: object) -> str:
    rate = number(value)
    return NONE if rate is None else percent(rate)
