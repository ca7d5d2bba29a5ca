r"""Statistics of verdicts: pure functions on arrays.

A verdict has a value from side A's view: 1 for a win, 1/2 for a tie, 0 for a loss. The unit is the prompt: pairs of one
prompt are no independent observations, so that each prompt counts once, by the mean of its pairs. Axes: N pairs,
P prompts. Rates and the ends of intervals are shares in [0, 1].
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.special import bdtr, expit, ndtri

FEWEST_PROMPTS = 10
"""Below, the variance of the logistic regression is guesswork, and its interval looks surer than it is."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Rate:
    """A win rate of side A and its interval.

    Attributes:
        rate: the estimate.
        low: lower end of the interval.
        high: upper end.
    """

    rate: float
    low: float
    high: float


@dataclass(kw_only=True, slots=True, frozen=True)
class Agreement:
    """How far two judges agree on the same pairs.

    Attributes:
        raw: share of pairs with the same verdict.
        kappa: Cohen's kappa; None where both judges give one and the same verdict to every pair.
    """

    raw: float
    kappa: float | None


class NotEstimable(ValueError):
    """The data do not determine the number asked for; the message says why."""


def prompt_means(values: Float[np.ndarray, " N"], prompts: Int[np.ndarray, " N"]) -> Float[np.ndarray, " P"]:
    r"""Mean of each prompt's pairs, :math:`v_p = \frac{1}{|I_p|} \sum_{i \in I_p} v_i`, by ascending prompt.

    Args:
        values: of the verdicts.
        prompts: a number for each pair's prompt.
    """
    _, places = np.unique(prompts, return_inverse=True)
    return np.bincount(places, weights=values) / np.bincount(places)


def win_rate(means: Float[np.ndarray, " P"]) -> float:
    r"""Win rate :math:`\frac{1}{P} \sum_p v_p`; ties count half.

    Raises:
        ValueError: there is no prompt.
    """
    if not len(means):
        raise ValueError("a win rate needs at least one verdict, and there is none")
    return math.fsum(means) / len(means)


def rate_where(
    values: Float[np.ndarray, " N"], prompts: Int[np.ndarray, " N"], chosen: Bool[np.ndarray, " N"]
) -> float | None:
    """Win rate of the chosen pairs alone, such as those where A was shown first; None where there are none."""
    return win_rate(prompt_means(values[chosen], prompts[chosen])) if chosen.any() else None


def bootstrap(
    means: Float[np.ndarray, " P"], *, level: float = 0.95, draws: int = 10_000, seed: int | None = 0
) -> Rate:
    r"""Win rate with the percentile interval of the paired bootstrap over prompts.

    A resample takes P prompts with replacement, each with all its pairs and both sides' completions. How often it takes
    each of the K distinct values of :math:`v_p` is multinomial with their shares, so that drawing those K counts is
    drawing the resample. Half of the draws are made from :math:`1 - v` and mirrored: the interval of B against A
    is then exactly the mirror image of A against B.

    Where all prompts have the same value c, resamples show no spread. Then the interval is
    :math:`[c (1-q), c (1-q) + q]`, where :math:`q = 1 - ((1 - \mathrm{level})/2)^{1/P}` bounds the share of prompts
    with another value; for c = 1 and c = 0 this is the exact interval of Clopper and Pearson (1934).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        means: of the prompts; `prompt_means`.
        level: share of intervals that are to cover the truth.
        draws: resamples; an odd number is rounded up.
        seed: of the draws; None for one from the system.

    Raises:
        ValueError: no prompt, or `level` or `draws` out of range.
    """
    check_level(level)
    if draws < 100:
        raise ValueError(f"draws must be at least 100, or the interval's ends are chance, got {draws}")
    rate = win_rate(means)
    distinct, counts = np.unique(means, return_counts=True)
    if len(distinct) == 1:
        other = 1 - ((1 - level) / 2) ** (1 / len(means))
        return Rate(rate=rate, low=rate * (1 - other), high=rate * (1 - other) + other)
    rates = np.concatenate(
        [_resample(distinct, counts, draws, seed), 1 - _resample(1 - distinct[::-1], counts[::-1], draws, seed)]
    )
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Rate(rate=rate, low=float(low), high=float(high))


def check_level(level: float) -> None:
    """Raise ValueError unless `level` can be an interval's."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")


def _resample(
    distinct: Float[np.ndarray, " K"], counts: Int[np.ndarray, " K"], draws: int, seed: int | None
) -> Float[np.ndarray, " D"]:
    size = int(counts.sum())
    taken = np.random.default_rng(seed).multinomial(size, counts / size, size=(draws + 1) // 2)
    return taken @ distinct / size


def sign_test(wins: int, losses: int) -> float:
    r"""Two-sided p-value of the exact sign test: how surprising is this if wins and losses were equally likely?

    .. math:: p = \min(1, 2 \Pr[X \le \min(w, l)]), \quad X \sim \mathrm{Binomial}(w + l, 1/2)

    Ties say nothing about the direction and are left out. It assumes that the observations are independent: count
    prompts, not several pairs of one. 1 where there is neither win nor loss.

    Source: Dixon and Mood, The statistical sign test, JASA 41 (1946).
    """
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def length_controlled(
    values: Float[np.ndarray, " N"],
    differences: Float[np.ndarray, " N"],
    prompts: Int[np.ndarray, " N"],
    *,
    level: float = 0.95,
) -> Rate:
    r"""Win rate that a logistic regression gives to completions of equal length.

    .. math:: \Pr[\text{A wins}] = \sigma(\beta_0 + \beta_1 d / s), \qquad \text{rate} = \sigma(\beta_0)

    d is A's length less B's, s the standard deviation of d. :math:`\beta` maximises the weighted likelihood
    :math:`\sum_i w_i (v_i \eta_i - \log(1 + e^{\eta_i}))`, with a weight of one over its prompt's number of pairs: a
    prompt counts once, and a tie as half a win and half a loss. The interval is
    :math:`\sigma(\beta_0 \pm z \sqrt{C_{00}})` with the sandwich variance clustered by prompt

    .. math:: C = \frac{P}{P - 2} H^{-1} \Big(\sum_p u_p u_p^T\Big) H^{-1}, \qquad
        u_p = \sum_{i \in p} w_i (v_i - \sigma(\eta_i)) x_i, \quad H = \sum_i w_i \sigma'(\eta_i) x_i x_i^T

    Sources: Dubois et al., Length-controlled AlpacaEval (2024), for the idea, here without its terms for model and
    instruction; Liang and Zeger, Biometrika 73 (1986), for the variance.

    Args:
        values: of the verdicts.
        differences: A's length less B's, in any unit.
        prompts: a number for each pair's prompt.
        level: of the interval.

    Raises:
        NotEstimable: verdicts or lengths do not vary, one difference separates wins from losses, or fewer than
            `FEWEST_PROMPTS`.
        ValueError: `level` out of range.
    """
    check_level(level)
    _, places, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    _check_estimable(values, differences, len(sizes))
    inputs = np.stack([np.ones_like(values), differences / differences.std()], axis=1)
    weights = 1 / sizes[places]
    coefficients, hessian = _fit_logistic(inputs, values, weights)
    residuals = weights * (values - expit(inputs @ coefficients))
    scores = np.stack([np.bincount(places, residuals * column) for column in inputs.T])
    inverse = np.linalg.inv(hessian)
    variance = (inverse @ scores @ scores.T @ inverse)[0, 0] * len(sizes) / (len(sizes) - 2)
    margin = ndtri((1 + level) / 2) * math.sqrt(variance)
    rate, low, high = expit(coefficients[0] + np.array([0, -margin, margin]))
    return Rate(rate=float(rate), low=float(low), high=float(high))


def _check_estimable(values: Float[np.ndarray, " N"], differences: Float[np.ndarray, " N"], prompts: int) -> None:
    if prompts < FEWEST_PROMPTS:
        raise NotEstimable(f"it takes at least {FEWEST_PROMPTS} prompts, and there are {prompts}")
    if (values == values[0]).all():
        raise NotEstimable("all pairs have the same outcome")
    if (differences == differences[0]).all():
        raise NotEstimable("the difference in length is the same in all pairs")
    won, lost = differences[values > 0], differences[values < 1]
    # With equality, too: where wins and losses meet at a single difference, the likeliest slope is infinite.
    if won.min() >= lost.max() or won.max() <= lost.min():
        raise NotEstimable("the difference in length alone tells all wins from all losses")


def _fit_logistic(
    inputs: Float[np.ndarray, "N K"], values: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Coefficients of greatest likelihood and the negative Hessian there, by Newton's method with step halving."""

    def likelihood(coefficients: NDArray[Any]) -> float:
        logits = inputs @ coefficients
        return float(weights @ (values * logits - np.logaddexp(0, logits)))

    coefficients = np.zeros(inputs.shape[1])
    for _ in range(100):
        fitted = expit(inputs @ coefficients)
        hessian = (inputs.T * (weights * fitted * (1 - fitted))) @ inputs
        gradient = inputs.T @ (weights * (values - fitted))
        if np.linalg.cond(hessian) > 1e12:
            break
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < 1e-16:
            return coefficients, hessian
        # The likelihood is concave: a step that lowers it went too far. The slack is rounding.
        lowest = likelihood(coefficients) - 1e-12 * weights.sum()
        while likelihood(coefficients + step) < lowest:
            step = step / 2
        coefficients = coefficients + step
    raise NotEstimable("these differences in length, few near 0 or some far from the rest, leave it to rounding")


def agreement(one: Float[np.ndarray, " N"], other: Float[np.ndarray, " N"]) -> Agreement:
    r"""Agreement of two judges on the same pairs, raw and beyond chance.

    .. math:: \kappa = \frac{p_o - p_e}{1 - p_e}, \qquad p_e = \sum_k \Pr[\text{one} = k] \Pr[\text{other} = k]

    p_o is the raw agreement, k runs over win, tie and loss. Source: Cohen, Educational and Psychological Measurement 20
    (1960).

    Args:
        one: values of one judge's verdicts.
        other: the other's, of the same pairs in the same order.

    Raises:
        ValueError: there is no pair.
    """
    if not len(one):
        raise ValueError("agreement needs at least one pair that both judges gave a verdict on, and there is none")
    raw = float(np.mean(one == other))
    kinds = np.unique(np.concatenate([one, other]))
    chance = math.fsum(float(np.mean(one == kind) * np.mean(other == kind)) for kind in kinds)
    return Agreement(raw=raw, kappa=None if len(kinds) == 1 else (raw - chance) / (1 - chance))
