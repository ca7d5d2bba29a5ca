"""Finding how much of a prompt fits."""

from collections.abc import Callable


def longest(most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest k in 0..`most` that fits, where whatever is shorter than a fit fits too; None where 0 does not.

    Found by bisection, since each try tokenises a text.
    """
    if not fits(0):
        return None
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
