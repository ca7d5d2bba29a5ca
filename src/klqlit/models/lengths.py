"""Rows of different lengths: when their padding is worth sparing, and which of them to put side by side."""

from collections.abc import Sequence

WORTHWHILE = 0.1
"""Share of the tokens that must be spared: each group costs a pass, and each packed row attention, of its own."""

FEWEST = 128
"""Tokens a group must have: below, a pass costs more than its tokens."""


def is_ragged(lengths: Sequence[int]) -> bool:
    """Whether rows that are padded to the longest would be padding to a worthwhile share."""
    return sum(lengths) < (1 - WORTHWHILE) * len(lengths) * max(lengths)


def similar_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers in groups, each of which will be padded to its longest row; the shortest rows first.

    A group is cut in two where that spares most, until no cut is worth a pass of its own.

    Args:
        lengths: tokens of each row.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return _cut(order, [lengths[row] for row in order])


def _cut(rows: list[int], lengths: list[int]) -> list[list[int]]:
    """`rows` with ascending `lengths`."""
    count, longest = len(rows), lengths[-1]
    spared, at = max(((longest - lengths[k - 1]) * k, k) for k in range(1, count + 1))
    smallest = min(at * lengths[at - 1], (count - at) * longest)
    if spared < WORTHWHILE * count * longest or smallest < FEWEST:
        return [rows]
    return _cut(rows[:at], lengths[:at]) + _cut(rows[at:], lengths[at:])
