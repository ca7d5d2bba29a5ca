"""Rows of similar length side by side: less padding to compute."""

from collections.abc import Sequence

WORTHWHILE = 0.1
"""Share of the computed tokens that a cut must spare: each group is a pass of its own."""

FEWEST = 128
"""Tokens a group must have: below, a pass costs more than its tokens."""


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
