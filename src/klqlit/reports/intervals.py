r"""Means with intervals: over seeds, and over seeds and prompts at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import t as student

LEVEL = 0.95


@dataclass(kw_only=True, slots=True, frozen=True)
class Interval:
    """A mean over n seeds.

    Attributes:
        mean: of the seeds.
        half: half of the interval's width; None where one seed tells nothing of the spread.
        count: number of seeds.
    """

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        """Lower end; the mean where there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Upper end; likewise."""
        return self.mean + (self.half or 0.0)

    def __str__(self) -> str:
        return with_error(self.mean, self.half)


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Interval:
    r"""Mean and Student's t-interval :math:`\bar x \pm t_{n-1} s / \sqrt n`.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("a mean over seeds needs at least one value")
    array = np.asarray(values, dtype=float)
    if len(array) == 1:
        return Interval(mean=float(array[0]), half=None, count=1)
    return Interval(
        mean=float(array.mean()),
        half=quantile(len(array) - 1, level) * float(array.std(ddof=1)) / len(array) ** 0.5,
        count=len(array),
    )


def quantile(degrees: int, level: float = LEVEL) -> float:
    """Student's t that an absolute value exceeds with probability 1 - level."""
    return float(student.ppf((1 + level) / 2, degrees))


@dataclass(kw_only=True, slots=True, frozen=True)
class Crossed:
    """A mean verdict over several seeds judged on the same prompts, and what makes it uncertain.

    Attributes:
        mean: over all seeds and prompts.
        count: number of seeds.
        of_seeds: variance of the mean that comes from seeds, and from each seed's own luck on each prompt.
        of_prompts: variance that comes from prompts: what they share between the seeds.
        of_these_seeds: variance of the mean of just these seeds, were other prompts drawn; at least that of
            independent verdicts.
    """

    mean: float
    count: int
    of_seeds: float
    of_prompts: float
    of_these_seeds: float

    def half(self, of_seeds: float, level: float = LEVEL) -> float:
        """Half of the interval's width: Student's t with a degree of freedom less than there are seeds.

        Two seeds may agree by chance, so it is at least that of a normal interval for just these seeds.

        Args:
            of_seeds: variance that comes from seeds; `self.of_seeds`, or that of an estimate made of the same verdicts.
            level: of the interval.
        """
        normal = float(ndtri((1 + level) / 2)) * self.of_these_seeds**0.5
        return max(quantile(self.count - 1, level) * (of_seeds + self.of_prompts) ** 0.5, normal)

    def interval(self, level: float = LEVEL) -> Interval:
        """The mean with its interval; one seed has none."""
        half = None if self.count == 1 else self.half(self.of_seeds, level)
        return Interval(mean=self.mean, half=half, count=self.count)


def crossed(seeds: Sequence[dict[str, list[float]]]) -> Crossed:
    r"""Mean verdict with its variance, where both seeds and prompts are drawn.

    A prompt on which one side tends to win does so under every seed, so that S seeds times P prompts are not S P
    independent verdicts. With e the deviation of each seed's verdict on each prompt from the mean of all N,

    .. math:: \frac{1}{N^2} \frac{S}{S-1} \sum_s \Big( \sum_p e_{sp} \Big)^2, \qquad
        \frac{1}{N^2} \Big( \frac{P}{P-1} \sum_p \Big( \sum_s e_{sp} \Big)^2 - \sum_{sp} e_{sp}^2 \Big)

    are the parts of seeds and of prompts. The second is 0 where the estimate is negative: then prompts add nothing that
    can be seen. The first alone gives the t-interval over seeds.

    Source: Cameron, Gelbach and Miller, Robust inference with multiway clustering, JBES 29 (2011), eq. 2.10.

    Args:
        seeds: of each seed, the values of the verdicts by prompt.

    Raises:
        ValueError: there is no verdict.
    """
    cells = [
        (s, prompt, float(np.mean(values))) for s, one in enumerate(seeds) for prompt, values in one.items() if values
    ]
    if not cells:
        raise ValueError("a mean over seeds needs at least one verdict")
    numbers: dict[str, int] = {}
    seed = np.array([s for s, _, _ in cells])
    prompt = np.array([numbers.setdefault(p, len(numbers)) for _, p, _ in cells])
    values = np.array([v for _, _, v in cells])
    deviations = values - values.mean()
    independent, of_these_seeds = float(deviations @ deviations), _clustered(deviations, prompt)
    return Crossed(
        mean=float(values.mean()),
        count=len(set(seed.tolist())),
        of_seeds=_clustered(deviations, seed) / len(values) ** 2,
        of_prompts=max(of_these_seeds - independent, 0.0) / len(values) ** 2,
        of_these_seeds=max(of_these_seeds, independent) / len(values) ** 2,
    )


def _clustered(deviations: Float[np.ndarray, " N"], clusters: NDArray[Any]) -> float:
    r"""G / (G - 1) times the sum of squares of the clusters' sums."""
    sums = np.bincount(clusters, weights=deviations)
    groups = len(np.unique(clusters))
    return float(sums @ sums) * groups / (groups - 1) if groups > 1 else 0.0


def with_error(mean: float, half: float | None) -> str:
    """A number with its error, both to the error's second significant digit; without one, to three digits."""
    if half is None or half == 0 or not np.isfinite(half):
        return plain(mean)
    digits = min(max(1 - int(np.floor(np.log10(abs(half)))), 0), 6)
    return f"{signed(mean, digits)} ± {half:.{digits}f}"


def plain(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value == 0 or not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}".replace("-", "−")
    return signed(value, max(2 - int(np.floor(np.log10(abs(value)))), 0))


def signed(value: float, digits: int) -> str:
    """Fixed digits, with a minus sign as long as a plus, and none before a zero."""
    text = f"{value:.{digits}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")
