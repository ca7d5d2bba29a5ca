"""Statistics of verdicts against numbers by hand, scipy and statsmodels."""

from math import exp, log, sqrt
from time import process_time

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from klqlit.judges.statistics import (
    NotEstimable,
    agreement,
    bootstrap,
    length_controlled,
    prompt_means,
    rate_where,
    sign_test,
    win_rate,
)

OUTCOMES = np.array([0.0, 0.5, 1.0])

verdicts = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40)


def pairs_of_several_prompts(seed, pairs=200, prompts=60):
    """Verdicts that lean to the longer side, and pairs of one prompt that resemble each other."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, prompts, pairs)
    differences = rng.normal(3, 20, pairs).round()
    chance = 1 / (1 + np.exp(-(0.3 + differences / 25 + rng.normal(0, 0.7, prompts)[groups])))
    values = np.where(rng.random(pairs) < 0.15, 0.5, rng.random(pairs) < chance)
    return values, differences, groups


# Win rate ------------------------------------------------------------------------------------------------------------


def test_win_rate_by_hand():
    """Prompt 7 has means (1 + 1/2 + 0)/3 = 1/2 and counts once; prompts 3 and 9 have one pair each."""
    values, prompts = np.array([1.0, 1.0, 0.5, 0.0, 0.0]), np.array([3, 7, 7, 7, 9])
    np.testing.assert_allclose(prompt_means(values, prompts), [1.0, 0.5, 0.0])
    assert win_rate(prompt_means(values, prompts)) == 0.5
    assert win_rate(np.array([1.0, 0.5, 0.5, 1.0])) == 0.75


def test_rate_where_by_hand():
    values, prompts = np.array([1.0, 0.0, 0.5, 1.0]), np.array([0, 0, 1, 2])
    assert rate_where(values, prompts, np.array([True, False, True, False])) == 0.75
    assert rate_where(values, prompts, np.array([True, True, True, True])) == (0.5 + 0.5 + 1) / 3
    assert rate_where(values, prompts, np.zeros(4, dtype=bool)) is None


def test_no_verdict_has_no_rate():
    with pytest.raises(ValueError, match="at least one verdict"):
        win_rate(np.array([]))


# Bootstrap -----------------------------------------------------------------------------------------------------------


def test_bootstrap_of_two_prompts_by_hand():
    """Resamples of {0, 1} have rates 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    means = np.array([0.0, 1.0])
    wide, narrow = bootstrap(means, level=0.9), bootstrap(means, level=0.4)
    assert (wide.rate, wide.low, wide.high) == (0.5, 0.0, 1.0)
    assert (narrow.rate, narrow.low, narrow.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_of_wins_and_losses_has_binomial_quantiles(level):
    means = np.repeat([1.0, 0.0], [300, 200])
    found = bootstrap(means, level=level, draws=100_000)
    assert found.rate == 0.6
    expected = stats.binom.ppf([(1 - level) / 2, (1 + level) / 2], 500, 0.6) / 500
    np.testing.assert_allclose([found.low, found.high], expected, rtol=0, atol=1 / 500)


def test_bootstrap_is_that_of_scipy_and_near_the_normal_interval():
    values, _, prompts = pairs_of_several_prompts(0, pairs=1000, prompts=400)
    means = prompt_means(values, prompts)
    found = bootstrap(means, draws=40_000)
    other = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(1))
    interval = other.confidence_interval
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high], rtol=0, atol=1e-3)
    margin = stats.norm.ppf(0.975) * means.std() / sqrt(len(means))
    np.testing.assert_allclose([found.low, found.high], [found.rate - margin, found.rate + margin], rtol=0, atol=2e-3)
    wins = np.repeat([1.0, 0.0], [1300, 700])
    interval = bootstrap(wins, draws=40_000)
    np.testing.assert_allclose([interval.low, interval.high], proportion_confint(1300, 2000), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("count", "size"), [(12, 12), (0, 12), (1, 1)])
def test_equal_prompts_have_the_exact_interval(count, size):
    found = bootstrap(np.full(size, count / size), level=0.9)
    low, high = proportion_confint(count, size, alpha=0.1, method="beta")
    np.testing.assert_allclose([found.rate, found.low, found.high], [count / size, low, high])


def test_ties_alone_leave_open_what_few_prompts_must():
    """Of 10 ties: with probability 1/40 there is none among ten prompts that differ with probability q."""
    found = bootstrap(np.full(10, 0.5))
    q = 1 - (1 / 40) ** (1 / 10)
    np.testing.assert_allclose([found.low, found.rate, found.high], [0.5 - q / 2, 0.5, 0.5 + q / 2])


@settings(deadline=None)
@given(verdicts, st.integers(0, 5))
def test_swapping_the_sides_mirrors_the_interval(values, seed):
    means = np.array(values)
    one, other = bootstrap(means, draws=200, seed=seed), bootstrap(1 - means, draws=200, seed=seed)
    np.testing.assert_allclose([other.rate, other.low, other.high], [1 - one.rate, 1 - one.high, 1 - one.low])


@settings(deadline=None)
@given(verdicts, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(values, random):
    pairs = [(value, i // 3) for i, value in enumerate(values)]
    shuffled = random.sample(pairs, len(pairs))
    one, other = (
        bootstrap(prompt_means(*(np.array(column) for column in zip(*order, strict=True))), draws=200)
        for order in (pairs, shuffled)
    )
    assert one == other


@settings(deadline=None)
@given(verdicts, st.integers(2, 4))
def test_repeated_pairs_of_a_prompt_do_not_narrow_the_interval(values, times):
    means, prompts = np.array(values), np.arange(len(values))
    again = prompt_means(np.tile(means, times), np.tile(prompts, times))
    assert bootstrap(again, draws=200) == bootstrap(means, draws=200)


@settings(deadline=None)
@given(verdicts)
def test_the_interval_holds_the_rate_and_grows_with_the_level(values):
    means = np.array(values)
    narrow, wide = bootstrap(means, level=0.5, draws=500), bootstrap(means, level=0.99, draws=500)
    assert 0 <= wide.low <= narrow.low <= narrow.high <= wide.high <= 1
    assert wide.low <= wide.rate <= wide.high


def test_resamples_depend_on_the_seed_alone():
    means = prompt_means(*(pairs_of_several_prompts(1)[i] for i in (0, 2)))
    assert bootstrap(means, seed=1) == bootstrap(means, seed=1)
    assert bootstrap(means, seed=1) != bootstrap(means, seed=2)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Prompts of one to three alike pairs: intervals cover in 95 % of 600 data sets, up to 3 standard errors."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(150), rng.integers(1, 4, 150))
    truth, covered = 0.55 * 0.8 + 0.5 * 0.2, 0
    for seed in range(600):
        leaning = rng.choice(3, size=150, p=[0.36, 0.2, 0.44])
        # A pair follows its prompt's leaning two times in three, else anything as likely as among prompts.
        own = rng.choice(3, size=len(prompts), p=[0.36, 0.2, 0.44])
        values = OUTCOMES[np.where(rng.random(len(prompts)) < 2 / 3, leaning[prompts], own)]
        interval = bootstrap(prompt_means(values, prompts), draws=1000, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert covered / 600 == pytest.approx(0.95, abs=3 * sqrt(0.95 * 0.05 / 600))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 95.0}, "level must lie"),
        ({"level": 0.0}, "level must lie"),
        ({"level": 1.0}, "level must lie"),
        ({"draws": 10}, "at least 100"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(np.array([0.0, 1.0]), **options)


# Sign test -----------------------------------------------------------------------------------------------------------


def test_sign_test_by_hand():
    """Of five: (1 + 5)/32 each way for at most one loss."""
    assert sign_test(4, 1) == 2 * 6 / 32
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(3, 3) == 1
    assert sign_test(0, 0) == 1


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_sign_test_is_scipys(wins, losses):
    assume(wins + losses > 0)
    assert sign_test(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    assert sign_test(wins, losses) == sign_test(losses, wins)


# Length --------------------------------------------------------------------------------------------------------------


def test_length_controlled_by_hand():
    """A wins 9 of 10 where longer by one word, 5 of 10 where shorter: odds 9 and 1, so 3 in between, which is 3/4."""
    values = np.repeat([1.0, 0.0, 1.0, 0.0], [9, 1, 5, 5])
    differences = np.repeat([1.0, -1.0], 10)
    found = length_controlled(values, differences, np.arange(20))
    assert found.rate == pytest.approx(0.75)
    # Each logit has the variance 1/(n p (1 - p)), their mean a quarter of the sum; two coefficients of twenty prompts.
    error = sqrt((1 / (10 * 0.9 * 0.1) + 1 / (10 * 0.5 * 0.5)) / 4 * 20 / 18)
    odds = [3 * exp(sign * 1.959963984540054 * error) for sign in (-1, 1)]
    np.testing.assert_allclose([found.low, found.high], [odd / (1 + odd) for odd in odds])


@pytest.mark.parametrize("seed", range(3))
def test_length_controlled_is_statsmodels_regression_of_single_pairs(seed):
    values, differences, _ = pairs_of_several_prompts(seed)
    fit = sm.GLM(values, sm.add_constant(differences), family=sm.families.Binomial()).fit(cov_type="HC0", tol=1e-12)
    logits = fit.params[0] + fit.bse[0] * sqrt(200 / 198) * stats.norm.ppf([0.5, 0.05, 0.95])
    found = length_controlled(values, differences, np.arange(200), level=0.9)
    np.testing.assert_allclose([found.rate, found.low, found.high], 1 / (1 + np.exp(-logits)))


@pytest.mark.filterwarnings("ignore:cov_type not fully supported")
@pytest.mark.parametrize("seed", range(3))
def test_length_controlled_is_statsmodels_regression_clustered_by_prompt(seed):
    values, differences, groups = pairs_of_several_prompts(seed)
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    model = sm.GLM(values, sm.add_constant(differences), family=sm.families.Binomial(), var_weights=1 / sizes[groups])
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}, tol=1e-12)
    error = fit.bse[0] * sqrt(len(sizes) / (len(sizes) - 2))
    logits = fit.params[0] + error * stats.norm.ppf([0.5, 0.025, 0.975])
    found = length_controlled(values, differences, groups)
    np.testing.assert_allclose([found.rate, found.low, found.high], 1 / (1 + np.exp(-logits)))


def test_length_that_does_not_matter_leaves_the_win_rate():
    """Both outcomes come at the same lengths, as often."""
    values, differences = np.repeat([1.0, 0.0], [14, 6]), np.tile([-3.0, 3.0], 10)
    assert length_controlled(values, differences, np.arange(20)).rate == pytest.approx(0.7)


@given(st.integers(0, 20), st.sampled_from([0.01, 7.0]), st.integers(2, 3))
@settings(deadline=None, max_examples=20)
def test_length_controlled_mirrors_and_ignores_unit_order_and_copies(seed, unit, times):
    values, differences, groups = pairs_of_several_prompts(seed)
    expected = length_controlled(values, differences, groups)
    mirrored = length_controlled(1 - values, -differences, groups)
    np.testing.assert_allclose(
        [1 - mirrored.rate, 1 - mirrored.high, 1 - mirrored.low], [expected.rate, expected.low, expected.high]
    )
    order = np.tile(np.random.default_rng(seed).permutation(len(values)), times)
    same = length_controlled(values[order], unit * differences[order], groups[order])
    np.testing.assert_allclose([same.rate, same.low, same.high], [expected.rate, expected.low, expected.high])


def test_length_controlled_covers_the_truth():
    """At equal length A wins 60 %: 95 % intervals cover that in 95 % of 600 data sets, up to 3 standard errors."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(600):
        differences = rng.normal(1, 1, 150)
        values = (rng.random(150) < 1 / (1 + np.exp(-(log(1.5) + differences)))).astype(float)
        interval = length_controlled(values, differences, np.arange(150))
        covered += interval.low <= 0.6 <= interval.high
    assert covered / 600 == pytest.approx(0.95, abs=3 * sqrt(0.95 * 0.05 / 600))


WINS_AND_LOSSES = np.repeat([1.0, 0.0], 10)


@pytest.mark.parametrize(
    ("values", "differences", "reason"),
    [
        (WINS_AND_LOSSES, np.full(20, 3.0), "difference in length is the same"),
        (np.ones(20), np.arange(20.0), "the same outcome"),
        (np.full(20, 0.5), np.arange(20.0), "the same outcome"),
        (WINS_AND_LOSSES, WINS_AND_LOSSES, "alone tells"),
        (WINS_AND_LOSSES, -WINS_AND_LOSSES, "alone tells"),
        # Wins from 0 down, losses from 0 up.
        (WINS_AND_LOSSES, np.arange(20.0) - np.repeat([9, 10], 10), "alone tells"),
        # Ties at 5 between losses below and wins above are half a win and half a loss at one length.
        (np.repeat([0.0, 0.5, 1.0], [8, 4, 8]), np.repeat([1.0, 5.0, 7.0], [8, 4, 8]), "alone tells"),
        (WINS_AND_LOSSES, 1e6 + np.arange(20.0) % 5, "leave it to rounding"),
        (np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0, 4.0]), "at least 10 prompts, and there are 4"),
    ],
)
def test_what_cannot_be_estimated_says_why(values, differences, reason):
    with pytest.raises(NotEstimable, match=reason):
        length_controlled(values, differences, np.arange(len(values)))


def test_the_fewest_that_are_taken():
    """A hundred draws; ten prompts, of which A wins every second at either length."""
    assert bootstrap(np.array([0.0, 1.0]), draws=100).rate == 0.5
    values, differences = np.tile([0.0, 1.0], 5), np.repeat([-1.0, 1.0], [4, 6])
    assert length_controlled(values, differences, np.arange(10)).rate == pytest.approx(0.5)


def test_overlap_of_a_single_pair_is_enough():
    differences = np.arange(20.0)
    values = np.where(differences == 8, 1.0, np.where(differences == 11, 0.0, differences > 9.5))
    found = length_controlled(values, differences - 9.5, np.arange(20))
    assert found.rate == pytest.approx(0.5)
    assert 0 < found.low < 0.5 < found.high < 1


# Agreement -----------------------------------------------------------------------------------------------------------


def test_agreement_by_hand():
    """6 of 10 agree; by chance 0.5 * 0.4 + 0.3 * 0.3 + 0.2 * 0.3 = 0.35 would: kappa is 0.25/0.65."""
    one = np.repeat([1.0, 0.5, 0.0], [5, 3, 2])
    other = np.array([1.0, 1.0, 1.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0, 1.0])
    found = agreement(one, other)
    assert found.raw == pytest.approx(0.6)
    assert found.kappa == pytest.approx(0.25 / 0.65)


@pytest.mark.filterwarnings("ignore:invalid value")  # of what else statsmodels computes
@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=50))
def test_agreement_is_statsmodels_kappa(pairs):
    one, other = np.array(pairs).T
    table = np.array([[np.sum((one == row) & (other == column)) for column in OUTCOMES] for row in OUTCOMES])
    found = agreement(one, other)
    assert found.raw == pytest.approx(np.trace(table) / len(pairs))
    if len(np.unique(pairs)) == 1:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(cohens_kappa(table).kappa)
    assert agreement(other, one) == found


def test_agreement_of_no_pair_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        agreement(np.array([]), np.array([]))


# Time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [10_000, 3_000])
def test_ten_thousand_draws_on_ten_thousand_pairs_take_less_than_two_seconds(prompts):
    values, differences, groups = pairs_of_several_prompts(0, pairs=10_000, prompts=prompts)
    start = process_time()
    bootstrap(prompt_means(values, groups), draws=10_000)
    length_controlled(values, differences, groups)
    assert process_time() - start < 2
