"""The tests of significance against exact arithmetic: fractions, brute force, and SciPy where a double suffices."""

import collections
import dataclasses
import decimal
import fractions
import functools
import itertools
import math
import operator

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from deepsigns_tf.statistics import (
    DecisionRule,
    allowed_errors,
    binomial_log10_tail,
    corrected_log10_p,
    rademacher_log10_tail,
    sequential_log10_e_value,
    shuffle_log10_tail,
)

# Projections over three powers of ten, all multiples of 2^-10: sums of them are exact in a double.
MAGNITUDES = st.integers(1, 2**20).map(lambda numerator: numerator / 2**10)


def _exact_binomial_tail(num_matches, num_bits):
    """P(Binomial(n, 1/2) >= m), by Pascal's rule on fractions."""
    chances = [fractions.Fraction(1)]
    for _ in range(num_bits):
        chances = [(left + right) / 2 for left, right in zip([0, *chances], [*chances, 0], strict=True)]
    return sum(chances[num_matches:], fractions.Fraction(0))


def _log10(fraction):
    with decimal.localcontext(prec=60):
        return float((decimal.Decimal(fraction.numerator) / decimal.Decimal(fraction.denominator)).log10())


@functools.cache
def _sign_patterns(num_bits):
    return np.array(list(itertools.product((-1.0, 1.0), repeat=num_bits)))


def _exact_rademacher_log10_tail(statistic, magnitudes):
    """log10 P(sum of signed magnitudes >= statistic) over all patterns of signs."""
    count = np.count_nonzero(_sign_patterns(len(magnitudes)) @ np.array(magnitudes) >= statistic)
    return math.log10(count) - len(magnitudes) * math.log10(2)


@st.composite
def _observations(draw, min_size, max_size, most_wrong):
    """Magnitudes and the statistic of a pattern of signs of which a few are wrong."""
    magnitudes = draw(st.lists(MAGNITUDES, min_size=min_size, max_size=max_size))
    wrong = draw(st.sets(st.integers(0, len(magnitudes) - 1), max_size=most_wrong))
    signs = [-1.0 if j in wrong else 1.0 for j in range(len(magnitudes))]
    return float(np.dot(signs, magnitudes)), magnitudes


@pytest.mark.parametrize("num_bits", [0, 1, 2, 7, 16, 40])
def test_binomial_tail_equals_fractions(num_bits):
    for num_matches in range(num_bits + 1):
        expected = _log10(_exact_binomial_tail(num_matches, num_bits))
        # Absolute: near p = 1 the logarithm is a difference of two that are as large as n log10 2.
        assert binomial_log10_tail(num_matches, num_bits) == pytest.approx(expected, rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("num_bits", [1, 10, 64, 300])
def test_binomial_tail_agrees_with_scipy(num_bits):
    matches = np.arange(num_bits + 1)
    expected = scipy.stats.binom.logsf(matches - 1, num_bits, 0.5) / math.log(10)
    np.testing.assert_allclose(
        [binomial_log10_tail(int(m), num_bits) for m in matches], expected, rtol=1e-9, atol=1e-12
    )


def test_many_bits_do_not_underflow():
    """A double ends at 2^-1074; logarithms of 2^-640 and 2^-2048 do not."""
    assert binomial_log10_tail(640, 640) == pytest.approx(-640 * math.log10(2), rel=1e-15)
    assert binomial_log10_tail(2048, 2048) == pytest.approx(-2048 * math.log10(2), rel=1e-15)
    # At most one error: n + 1 patterns.
    assert binomial_log10_tail(2047, 2048) == pytest.approx(math.log10(2049) - 2048 * math.log10(2), rel=1e-15)


def test_no_match_at_all_is_certain():
    assert binomial_log10_tail(0, 640) == 0.0


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 300))
def test_binomial_tail_falls_with_every_match(num_bits):
    tails = [binomial_log10_tail(num_matches, num_bits) for num_matches in range(num_bits + 1)]
    # Not strictly near m = 0, where 1 - 2^-n is 1 to a double.
    assert all(after <= before for before, after in itertools.pairwise(tails))
    assert tails[0] == 0.0
    assert tails[-1] < tails[num_bits // 2] < 0.0 or num_bits == 1


@pytest.mark.parametrize("num_matches", [-1, 9])
def test_impossible_number_of_matches_is_refused(num_matches):
    with pytest.raises(ValueError) as error:
        binomial_log10_tail(num_matches, 8)
    assert str(error.value) == (
        "The number of matches is out of range. Expected 0 <= num_matches <= num_trials, and num_values >= 2. "
        f"Received: num_matches={num_matches}, num_trials=8, num_values=2"
    )


@pytest.mark.parametrize("num_values", [2, 3, 10, 1000])
def test_tail_of_labels_equals_fractions(num_values):
    chance = fractions.Fraction(1, num_values)
    chances = [math.comb(12, k) * chance**k * (1 - chance) ** (12 - k) for k in range(13)]
    for num_matches in range(13):
        exact = _log10(sum(chances[num_matches:], fractions.Fraction(0)))
        assert binomial_log10_tail(num_matches, 12, num_values) == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_tail_of_many_labels_agrees_with_scipy():
    for num_matches in range(1, 101):
        expected = scipy.stats.binom.logsf(num_matches - 1, 100, 0.1) / math.log(10)
        assert binomial_log10_tail(num_matches, 100, 10) == pytest.approx(expected, rel=1e-9)


def test_one_value_alone_is_no_secret():
    for tail in (binomial_log10_tail, sequential_log10_e_value):
        with pytest.raises(
            ValueError, match=r"Expected 0 <= num_matches <= num_trials, and num_values >= 2\. Received: "
        ):
            tail(1, 2, 1)


# Labels in a secret order


def _shuffles(labels, answers):
    """How many orders of the labels meet each number of answers."""
    matches = [sum(map(operator.eq, order, answers)) for order in itertools.permutations(labels)]
    return [matches.count(m) for m in range(len(labels) + 1)]


@hypothesis.given(
    st.integers(1, 6).flatmap(lambda num: st.tuples(*2 * [st.lists(st.integers(0, 3), min_size=num, max_size=num)]))
)
def test_shuffle_tail_equals_all_orders(pair):
    labels, answers = map(np.array, pair)
    counts = _shuffles(*pair)
    for num_matches in range(len(labels) + 1):
        expected = fractions.Fraction(sum(counts[num_matches:]), sum(counts))
        found = shuffle_log10_tail(num_matches, answers, labels)
        if expected == 0:
            assert found == -math.inf
        else:
            assert found == pytest.approx(_log10(expected), abs=1e-9)


def test_shuffled_labels_that_are_all_different_are_met_as_by_derangements():
    """Montmort's matches: P(no match of n) is about 1/e."""
    labels = np.arange(100)
    assert 10 ** shuffle_log10_tail(1, labels[::-1], labels) == pytest.approx(1 - math.exp(-1), rel=1e-12)
    assert shuffle_log10_tail(100, labels, labels) == pytest.approx(-math.log10(math.factorial(100)))


def test_constant_answers_meet_a_known_number_of_shuffled_labels():
    labels = np.arange(100) % 10
    constant = np.full(100, 3)
    assert shuffle_log10_tail(10, constant, labels) == pytest.approx(0.0, abs=1e-12)
    assert shuffle_log10_tail(11, constant, labels) == -math.inf


def test_answers_that_do_not_belong_to_the_labels_are_refused():
    with pytest.raises(ValueError, match="Expected as many answers as labels. Received: 3 answers, 4 labels"):
        shuffle_log10_tail(1, np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="The number of matches is out of range"):
        shuffle_log10_tail(5, np.zeros(4), np.zeros(4))


# One question after the other


@pytest.mark.parametrize("num_values", [2, 3, 10])
@pytest.mark.parametrize(("num_matches", "num_trials"), [(0, 0), (0, 5), (3, 7), (20, 20), (31, 60)])
def test_e_value_is_the_mean_likelihood_ratio_above_chance(num_matches, num_trials, num_values):
    chance = 1 / num_values

    def ratio(q):
        return (q / chance) ** num_matches * ((1 - q) / (1 - chance)) ** (num_trials - num_matches)

    mean, _ = scipy.integrate.quad(ratio, chance, 1, epsabs=0, epsrel=1e-11)
    expected = math.log10(mean / (1 - chance))
    assert sequential_log10_e_value(num_matches, num_trials, num_values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("num_values", [2, 3, 10])
def test_the_next_question_changes_the_e_value_by_a_factor_of_mean_one(num_values):
    chance = 1 / num_values
    for num_trials in range(30):
        for num_matches in range(num_trials + 1):
            now, hit, miss = (
                10 ** sequential_log10_e_value(num_matches + step, num_trials + asked, num_values)
                for step, asked in ((0, 0), (1, 1), (0, 1))
            )
            assert chance * hit + (1 - chance) * miss == pytest.approx(now, rel=1e-9)


@pytest.mark.parametrize("num_values", [2, 10])
@pytest.mark.parametrize("log10_alpha", [-1, -2, -3, -6])
def test_looking_after_every_question_keeps_the_level(num_values, log10_alpha):
    """The chance that 300 questions ever reach the level, exactly, by the paths that have not reached it."""
    chance, still, reached = 1 / num_values, {0: 1.0}, 0.0
    for num_trials in range(1, 301):
        after = collections.defaultdict(float)
        for num_matches, probability in still.items():
            after[num_matches + 1] += chance * probability
            after[num_matches] += (1 - chance) * probability
        still = {}
        for num_matches, probability in after.items():
            if sequential_log10_e_value(num_matches, num_trials, num_values) >= -log10_alpha:
                reached += probability
            else:
                still[num_matches] = probability
    assert 0.05 * 10.0**log10_alpha < reached <= 10.0**log10_alpha


def test_matching_less_than_by_chance_proves_nothing():
    assert sequential_log10_e_value(0, 100, 2) < 0 and sequential_log10_e_value(5, 100, 10) < 0


@pytest.mark.parametrize(
    ("num_bits", "expected"),
    [
        (16, [1, None, None, None]),
        (64, [19, 13, 0, None]),
        (128, [46, 36, 15, 0]),
        (256, [102, 89, 56, 29]),
    ],
)
def test_table_of_allowed_errors(num_bits, expected):
    levels = [math.log10(level) for level in (1e-3, 1e-6, 2.0**-64, 2.0**-128)]
    assert [allowed_errors(num_bits, level) for level in levels] == expected


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 200), st.floats(-40.0, 0.0))
def test_allowed_errors_are_the_most_that_reach_the_level(num_bits, log10_alpha):
    passing = [e for e in range(num_bits + 1) if binomial_log10_tail(num_bits - e, num_bits) <= log10_alpha]
    errors = allowed_errors(num_bits, log10_alpha)
    assert passing == ([] if errors is None else list(range(errors + 1)))


def test_a_perfect_match_reaches_its_own_chance():
    """No last digit of a logarithm stands between n perfect bits and a level of 2^-n."""
    for num_bits in range(64, 1000):
        rule = DecisionRule(alpha=2.0**-num_bits)
        assert allowed_errors(num_bits, rule.log10_alpha(committed=False)) == 0


@hypothesis.settings(deadline=None)
@hypothesis.given(_observations(1, 8, most_wrong=8))
def test_rademacher_tail_of_few_bits_equals_brute_force(observation):
    """With statistics that are one of the sums, so that equal-or-above differs from above."""
    statistic, magnitudes = observation
    expected = _exact_rademacher_log10_tail(statistic, magnitudes) if statistic > 0 else 0.0
    assert rademacher_log10_tail(statistic, np.array(magnitudes)) == pytest.approx(expected, abs=1e-12)


def test_rademacher_tail_equals_brute_force_up_to_the_limit_of_enumeration():
    magnitudes = np.random.default_rng(0).integers(1, 2**20, 16) / 2**10
    for share in (0.1, 0.5, 0.9, 1.0):
        statistic = np.floor(share * magnitudes.sum())
        expected = _exact_rademacher_log10_tail(statistic, magnitudes)
        assert rademacher_log10_tail(float(statistic), magnitudes) == pytest.approx(expected, abs=1e-12)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.booleans()), min_size=1, max_size=8), st.randoms())
def test_a_sum_that_equals_the_statistic_counts_in_any_order_of_adding(values, random):
    """With rounding: the observed pattern and its better half must be in the tail."""
    signed = [-value if negative else value for value, negative in values]
    random.shuffle(signed)
    statistic = sum(signed)
    hypothesis.assume(statistic > 0)
    magnitudes = np.array([value for value, _ in values])
    at_least = sum(
        sum(pattern) >= statistic for pattern in itertools.product(*[(-abs(value), abs(value)) for value in signed])
    )
    assert at_least >= 1
    found = rademacher_log10_tail(statistic, magnitudes)
    assert found >= math.log10(at_least / 2 ** len(values)) - 1e-12


def test_equal_magnitudes_make_the_rademacher_tail_binomial():
    """n signs of size 1 add up to 2m - n: ten bits by enumeration."""
    for matches in range(6, 11):
        found = rademacher_log10_tail(2.0 * matches - 10, np.ones(10))
        assert found == pytest.approx(binomial_log10_tail(matches, 10), abs=1e-12)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(_observations(17, 17, most_wrong=6))
def test_chernoff_bound_is_never_below_the_exact_tail(observation):
    """Just above the limit of enumeration, where the exact tail can still be had."""
    statistic, magnitudes = observation
    hypothesis.assume(statistic > 0)
    exact = _exact_rademacher_log10_tail(statistic, magnitudes)
    assert rademacher_log10_tail(statistic, np.array(magnitudes)) >= exact


@pytest.mark.parametrize("num_bits", [17, 64, 640, 2048])
def test_chernoff_bound_of_a_perfect_match_is_not_below_its_chance(num_bits):
    """The bound tends to 2^-n from above; rounding must not carry it past."""
    magnitudes = np.exp(np.random.default_rng(0).normal(size=num_bits))
    found = rademacher_log10_tail(float(magnitudes.sum()), magnitudes)
    assert found >= -num_bits * math.log10(2)
    assert found == pytest.approx(-num_bits * math.log10(2), rel=1e-6)


@pytest.mark.parametrize("num_bits", [64, 640])
def test_chernoff_bound_of_equal_magnitudes_is_tight_to_a_polynomial(num_bits):
    """Cover and Thomas, theorem 11.1.4: 2^(-n D) is between the binomial tail and (n + 1) times it."""
    for matches in range(num_bits // 2 + 1, num_bits + 1, 3):
        exact = binomial_log10_tail(matches, num_bits)
        bound = rademacher_log10_tail(2.0 * matches - num_bits, np.ones(num_bits))
        assert exact <= bound <= exact + math.log10(num_bits + 1)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(MAGNITUDES, min_size=17, max_size=100), st.floats(1e-3, 1.0))
def test_chernoff_bound_is_never_weaker_than_hoeffding(magnitudes, share):
    """cosh(x) <= exp(x^2 / 2) gives exp(-T^2 / (2 sum z^2)), at small statistics as at large ones."""
    statistic = share * sum(magnitudes)
    hoeffding = -(statistic**2) / (2 * np.sum(np.square(magnitudes))) / math.log(10)
    # The minimum over the Chernoff parameter is found to about 1e-9.
    assert rademacher_log10_tail(statistic, np.array(magnitudes)) <= hoeffding + 1e-8


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(MAGNITUDES, min_size=1, max_size=40),
    st.floats(-0.5, 1.0),
    st.floats(1e-3, 0.5),
)
def test_a_larger_statistic_never_has_a_larger_tail(magnitudes, share, step):
    total = sum(magnitudes)
    smaller = rademacher_log10_tail(share * total, np.array(magnitudes))
    larger = rademacher_log10_tail(min(share + step, 1.0) * total, np.array(magnitudes))
    # The minimum over the Chernoff parameter is found to about 1e-9.
    assert larger <= smaller + 1e-8


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.tuples(MAGNITUDES, st.booleans()), min_size=1, max_size=30), st.floats(0.1, 1.0))
def test_signs_and_shape_of_the_magnitudes_do_not_matter(values, share):
    magnitudes = np.array([value for value, _ in values])
    signed = np.array([-value if negative else value for value, negative in values])
    statistic = share * magnitudes.sum()
    expected = rademacher_log10_tail(statistic, magnitudes)
    assert rademacher_log10_tail(statistic, signed) == expected
    assert rademacher_log10_tail(statistic, signed.reshape(1, -1)) == expected


@pytest.mark.parametrize("num_bits", [8, 40])
def test_the_unit_of_the_projections_does_not_matter(num_bits):
    magnitudes = np.random.default_rng(0).exponential(size=num_bits)
    expected = rademacher_log10_tail(0.7 * magnitudes.sum(), magnitudes)
    for unit in (1e-30, 1e-6, 1e6, 1e30):
        scaled = rademacher_log10_tail(0.7 * magnitudes.sum() * unit, magnitudes * unit)
        assert scaled == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_bits", [8, 40])
def test_projections_of_zero_say_nothing(num_bits):
    magnitudes = np.random.default_rng(0).exponential(size=num_bits)
    statistic = 0.7 * magnitudes.sum()
    with_zeros = np.concatenate([magnitudes, np.zeros(100)])
    assert rademacher_log10_tail(statistic, with_zeros) == rademacher_log10_tail(statistic, magnitudes)
    assert rademacher_log10_tail(0.0, np.zeros(100)) == 0.0
    assert rademacher_log10_tail(1.0, np.zeros(0)) == 0.0


@pytest.mark.parametrize("statistic", [0.0, -1.0, -40.0])
def test_a_statistic_that_speaks_against_the_owner_is_certain(statistic):
    assert rademacher_log10_tail(statistic, np.ones(40)) == 0.0


def test_decision_rule_defaults():
    rule = DecisionRule()
    assert rule.to_dict() == {"test": "hard", "alpha": 2.0**-64, "alpha_committed": 1e-6}


def test_level_depends_on_the_commitment():
    rule = DecisionRule("soft", alpha=1e-20, alpha_committed=1e-7)
    assert rule.log10_alpha(committed=False) == pytest.approx(-20.0, rel=1e-15)
    assert rule.log10_alpha(committed=True) == pytest.approx(-7.0, rel=1e-15)


def test_decision_rule_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecisionRule().alpha = 0.5


@pytest.mark.parametrize("test", ["Hard", "", None])
def test_unknown_test_is_refused(test):
    with pytest.raises(ValueError) as error:
        DecisionRule(test)
    assert str(error.value) == (
        f'Invalid value for argument `test`. Expected "hard" or "soft". Received: test={test!r}'
    )


@pytest.mark.parametrize(
    ("alpha", "alpha_committed"),
    [
        (0.0, 1e-6),
        (-0.1, 1e-6),
        (1e-20, 1e-21),
        (1e-20, 1.0),
        (1e-20, 0.5),
        (1e-20, math.nextafter(1e-6, 1.0)),
        (1e-19, 1e-6),
        (math.nan, 1e-6),
        (1e-20, math.nan),
        ("1e-20", 1e-6),
        (1e-20, None),
    ],
)
def test_levels_out_of_range_are_refused(alpha, alpha_committed):
    with pytest.raises(ValueError) as error:
        DecisionRule(alpha=alpha, alpha_committed=alpha_committed)
    assert str(error.value) == (
        "Invalid levels of the decision rule. Expected 0 < alpha <= 2^-64 and alpha <= alpha_committed <= 1e-6. "
        f"Received: alpha={alpha!r}, alpha_committed={alpha_committed!r}"
    )


def test_equal_levels_are_allowed():
    assert DecisionRule(alpha=1e-20, alpha_committed=1e-20).log10_alpha(True) == pytest.approx(-20.0)


def test_correction_multiplies_by_the_hypotheses_and_stops_at_one():
    assert corrected_log10_p(-8.0, 1) == -8.0
    assert corrected_log10_p(-8.0, 100) == pytest.approx(-6.0)
    assert corrected_log10_p(-2.0, 1000) == 0.0
    assert corrected_log10_p(0.0, 1) == 0.0


@pytest.mark.parametrize("num_hypotheses", [0, -1, 0.5, math.nan])
def test_a_correction_that_would_make_p_smaller_is_refused(num_hypotheses):
    with pytest.raises(ValueError) as error:
        corrected_log10_p(-8.0, num_hypotheses)
    assert str(error.value) == (
        "The number of hypotheses tried is out of range. Expected num_hypotheses >= 1. "
        f"Received: num_hypotheses={num_hypotheses!r}"
    )
