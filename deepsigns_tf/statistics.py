"""Exact tests: how likely an innocent model is to match the owner's bits this well.

If every bit of a signature is fair and independent of the suspect and of all that is used to read it, then the number
of matching bits follows Binomial(n, 1/2) exactly, whatever the suspect's activations are; so do the labels of triggers,
with 1/C for C classes. Probabilities are carried as log10 p: 640 matching bits have p = 2^-640, less than a double can hold.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, get_args

import numpy as np
import scipy.optimize

# Up to this many bits the soft test adds up all sign patterns; beyond it takes the Chernoff bound.
MAX_ENUMERATED_BITS = 16

SignificanceTest = Literal["hard", "soft"]


def check_test(test: str) -> None:
    """Refuses the name of a test that does not exist.

    Args:
        test: `"hard"` or `"soft"`.

    Raises:
        ValueError: If it is anything else.

    Example:

    >>> check_test("soft")
    """
    if test not in get_args(SignificanceTest):
        raise ValueError(f'Invalid value for argument `test`. Expected "hard" or "soft". Received: test={test!r}')


@functools.lru_cache(maxsize=64)
def _binomial_tails(num_trials: int, num_values: int) -> tuple[float, ...]:
    """log10 P(Binomial(n, 1/v) >= m) for m = 0 .. n, from exact integers."""
    tails, count, ways = [], 0, 1
    for matches in range(num_trials, -1, -1):
        count += ways
        tails.append(math.log10(count) - num_trials * math.log10(num_values))
        # C(n, m - 1) (v - 1)^(n - m + 1) from C(n, m) (v - 1)^(n - m), without remainder.
        ways = ways * matches * (num_values - 1) // (num_trials - matches + 1)
    tails[-1] = 0.0
    return tuple(reversed(tails))


def binomial_log10_tail(num_matches: int, num_trials: int, num_values: int = 2) -> float:
    r"""log10 of the chance that at least `num_matches` of `num_trials` secrets are met by chance.

    \( P(X \ge m) = v^{-n} \sum_{k=m}^{n} \binom{n}{k} (v - 1)^{n-k} \), summed in integers of any length: each secret is
    uniform over v values and independent of all else, so whatever is held against it meets it with chance 1/v.

    Args:
        num_matches: How many match, 0 .. `num_trials`.
        num_trials: n, bits read or labels asked for.
        num_values: v, values that each could have, >= 2: 2 for a bit, the number of classes for a label.

    Returns:
        log10 p, in [-n log10 v, 0].

    Raises:
        ValueError: If a number is out of range.

    Example:

    >>> round(binomial_log10_tail(640, 640), 2), round(binomial_log10_tail(80, 100, num_values=10), 2)
    (-192.66, -60.17)
    """
    _check_counts(num_matches, num_trials, num_values)
    return _binomial_tails(num_trials, num_values)[num_matches]


def allowed_errors(num_trials: int, log10_alpha: float, num_values: int = 2) -> int | None:
    """The most wrong bits, or labels, with which a mark still reaches a level.

    Args:
        num_trials: Bits or labels of the mark.
        log10_alpha: log10 of the level.
        num_values: Values that each could have, as in `binomial_log10_tail`.

    Returns:
        The number of errors, or None if not even a perfect match reaches the level.

    Example:

    >>> allowed_errors(256, -64 * math.log10(2)), allowed_errors(16, -6.0), allowed_errors(100, -6.0, num_values=10)
    (56, None, 72)
    """
    tails = _binomial_tails(num_trials, num_values)
    passing = [num_trials - matches for matches in range(num_trials + 1) if tails[matches] <= log10_alpha]
    return max(passing, default=None)


def shuffle_log10_tail(num_matches: int, answers: np.ndarray, labels: np.ndarray) -> float:
    r"""log10 of the chance that at least `num_matches` labels are met, had they been shuffled otherwise.

    The multiset of labels is known, their order is a secret permutation, each of the n! equally likely. With \( a_c \)
    answers and \( b_c \) labels of class c, the ways to choose j answers and j labels that agree pairwise are the
    coefficient \( r_j \) of

    \( \prod_c \sum_j \binom{a_c}{j} \binom{b_c}{j} j! \, x^j \),

    and by inclusion and exclusion \( P(X \ge m) = \frac{1}{n!} \sum_{j=m}^{n} (-1)^{j-m} \binom{j-1}{m-1} r_j (n-j)! \) for
    m >= 1, summed in integers of any length.

    Args:
        num_matches: m, how many match, 0 .. n.
        answers: `(n,)` integers, the suspect's.
        labels: `(n,)` integers, in any order.

    Returns:
        log10 p, at most 0; -inf for more matches than any order of the labels gives.

    Raises:
        ValueError: If the arrays differ in length or `num_matches` is out of range.

    Example:

    >>> labels = np.array([0, 1, 2, 3])
    >>> round(10 ** shuffle_log10_tail(4, answers=labels, labels=labels) * math.factorial(4), 6)
    1.0

    Source: Riordan, "An introduction to combinatorial analysis", chapter 7 (permutations with forbidden positions).
    """
    num = len(labels)
    if len(answers) != num:
        raise ValueError(
            "Answers and labels do not belong together. Expected as many answers as labels. "
            f"Received: {len(answers)} answers, {num} labels"
        )
    _check_counts(num_matches, num)
    # The numbers of each class are all that counts, whichever class it is.
    sizes = sorted(
        (int(np.count_nonzero(answers == label)), int(np.count_nonzero(labels == label)))
        for label in set(labels.tolist())
    )
    return _shuffle_log10_tail(num_matches, num, tuple(sizes))


# Many keys have labels of the same sizes, and a constant answerer gives all of them the same answers.
@functools.lru_cache(maxsize=1000)
def _shuffle_log10_tail(num_matches: int, num: int, sizes: tuple[tuple[int, int], ...]) -> float:
    """`shuffle_log10_tail`, from the numbers of answers and of labels in each class."""
    if num_matches == 0:
        return 0.0
    rooks = [1]
    for a, b in sizes:
        ways = [math.comb(a, j) * math.comb(b, j) * math.factorial(j) for j in range(min(a, b) + 1)]
        product = [0] * (len(rooks) + len(ways) - 1)
        for i, rook in enumerate(rooks):
            for j, way in enumerate(ways):
                product[i + j] += rook * way
        rooks = product
    count = sum(
        (-1) ** (j - num_matches) * math.comb(j - 1, num_matches - 1) * rooks[j] * math.factorial(num - j)
        for j in range(num_matches, len(rooks))
    )
    return math.log10(count) - math.log10(math.factorial(num)) if count else -math.inf


# Whoever looks after every answer asks for all the earlier ones again.
@functools.lru_cache(maxsize=100_000)
def sequential_log10_e_value(num_matches: int, num_trials: int, num_values: int = 2) -> float:
    r"""log10 of the evidence after some of the questions; a test that looks at it after each of them stays valid.

    The mean, over hit rates q spread evenly above chance, of the likelihood ratio of q against chance:

    \( E_n = \frac{1}{1 - 1/v} \int_{1/v}^{1} (qv)^m \Big(\frac{1-q}{1-1/v}\Big)^{n-m} dq
    = \frac{v^{n+1}}{(v-1)^{n-m+1}} \frac{m! (n-m)!}{(n+1)!} P(B \le m), \quad B \sim \mathrm{Binomial}(n+1, 1/v), \)

    in integers of any length.

    **Why it may be looked at any time.** Let the secrets be uniform over v values and independent of each other and of all else.
    Whatever the suspect answers, and even if the next question is chosen by what it answered before, the next match then has chance
    1/v given the past. So for each q the ratio is multiplied by a factor of mean \( \frac1v qv + (1 - \frac1v) \frac{1-q}{1-1/v} = 1 \):
    it is a martingale that begins at 1, and so is the mean over q. By Ville's inequality it ever reaches 1/alpha with a chance of
    at most alpha. Where a match has a chance of at most 1/v, the factor's mean is at most 1 for every q >= 1/v, and the bound holds
    too.

    Args:
        num_matches: m, how many have matched so far.
        num_trials: n, how many were asked for so far.
        num_values: v, values that each secret could have, >= 2.

    Returns:
        log10 of the e-value; the claim is proved at level alpha as soon as it is at least -log10 alpha.

    Raises:
        ValueError: If a number is out of range.

    Example:

    >>> [round(sequential_log10_e_value(n, n, num_values=10), 2) for n in (0, 1, 7, 8)]
    [0.0, 0.74, 6.14, 7.09]

    Source: Ville, "Etude critique de la notion de collectif", 1939; Robbins, "Statistical methods related to the law of the iterated
    logarithm", 1970 (the mixture).
    """
    _check_counts(num_matches, num_trials, num_values)
    misses, total = num_trials - num_matches, num_trials + 1
    # v^(n+1) P(B <= m), an integer.
    below = sum(math.comb(total, k) * (num_values - 1) ** (total - k) for k in range(num_matches + 1))
    ways = math.factorial(num_matches) * math.factorial(misses)
    return math.log10(below * ways) - math.log10((num_values - 1) ** (misses + 1) * math.factorial(total))


def _check_counts(num_matches: int, num_trials: int, num_values: int = 2) -> None:
    if not 0 <= num_matches <= num_trials or num_values < 2:
        raise ValueError(
            "The number of matches is out of range. Expected 0 <= num_matches <= num_trials, and num_values >= 2. "
            f"Received: num_matches={num_matches}, num_trials={num_trials}, num_values={num_values}"
        )


def rademacher_log10_tail(statistic: float, magnitudes: np.ndarray) -> float:
    r"""log10 of (a bound on) the chance that a random signature correlates this well with the suspect.

    With the projected values \( z_j \) fixed and signs \( \epsilon_j \) fair, \( T = \sum_j \epsilon_j z_j \). Up to 16
    values \( P(T \ge t) \) is exact by adding up all sign patterns; beyond it is bounded by Chernoff,
    \( \min_{\lambda \ge 0} e^{-\lambda t} \prod_j \cosh(\lambda z_j) \), which holds for every \( \lambda \ge 0 \), so an
    imperfect minimum only makes the bound larger. For \( t \le 0 \), which speaks against the owner, it is 1.

    Args:
        statistic: The observed sum of signed projections.
        magnitudes: `(n,)` projections; their signs do not matter.

    Returns:
        log10 of the tail or of its bound, at most 0.

    Example:

    >>> round(10 ** rademacher_log10_tail(4.0, np.ones(4)), 6)
    0.0625
    """
    z = np.abs(np.asarray(magnitudes, np.float64).ravel())
    z = z[z > 0]
    if statistic <= 0 or z.size == 0:
        return 0.0
    if z.size <= MAX_ENUMERATED_BITS:
        sums = np.zeros(1)
        for value in z:
            sums = np.concatenate([sums - value, sums + value])
        # Rounding may put a sum that equals the statistic just below it: count it, the p-value only grows.
        return math.log10(np.count_nonzero(sums >= statistic - 1e-9 * z.sum()) / sums.size)
    scale = np.sqrt(np.mean(z**2))

    def log_bound(exponent: float) -> float:
        t = np.exp(exponent) / scale
        log_cosh = t * z + np.log1p(np.exp(-2.0 * t * z)) - math.log(2)
        return float(log_cosh.sum() - t * statistic)

    best = scipy.optimize.minimize_scalar(log_bound, bounds=(-20.0, 12.0), method="bounded")
    # The observed signs alone have this chance; rounding must not carry the bound below it.
    return min(0.0, max(float(best.fun) / math.log(10), -z.size * math.log10(2)))


@dataclasses.dataclass(frozen=True)
class DecisionRule:
    """When a reading counts as proof, fixed in the key before training.

    Grinding seeds against one model costs about 1/alpha tries, so without a checked earlier commitment the level is
    2^-64 or less; with one, 10^-6 is enough, and looser it may not be.

    Args:
        test: `"hard"` counts matching bits; `"soft"` also weighs their margins.
        alpha: Level without a checked earlier commitment, in (0, 2^-64]: nothing shows then when the rule was fixed.
        alpha_committed: Level with one, in [alpha, 1e-6].

    Raises:
        ValueError: If the test is unknown or a level is out of range.

    Example:

    >>> DecisionRule().log10_alpha(committed=True)
    -6.0
    """

    test: SignificanceTest = "hard"
    alpha: float = 2.0**-64
    alpha_committed: float = 1e-6

    def __post_init__(self) -> None:
        check_test(self.test)
        numbers = all(isinstance(alpha, (int, float)) for alpha in (self.alpha, self.alpha_committed))
        if not numbers or not (0.0 < self.alpha <= 2.0**-64 and self.alpha <= self.alpha_committed <= 1e-6):
            raise ValueError(
                "Invalid levels of the decision rule. Expected 0 < alpha <= 2^-64 and alpha <= alpha_committed <= 1e-6. "
                f"Received: alpha={self.alpha!r}, alpha_committed={self.alpha_committed!r}"
            )

    def log10_alpha(self, committed: bool) -> float:
        """log10 of the level that applies with or without a checked earlier commitment."""
        return math.log10(self.alpha_committed if committed else self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON-ready values."""
        return dataclasses.asdict(self)


def corrected_log10_p(log10_p: float, num_hypotheses: int) -> float:
    """log10 p after paying for every hypothesis that was tried (Bonferroni), at most 0.

    Args:
        log10_p: log10 of the p-value of the best hypothesis.
        num_hypotheses: How many were tried, >= 1.

    Returns:
        The corrected log10 p.

    Raises:
        ValueError: If `num_hypotheses` is less than 1, which would make p smaller.

    Example:

    >>> corrected_log10_p(-8.0, 100)
    -6.0
    """
    if not num_hypotheses >= 1:
        raise ValueError(
            "The number of hypotheses tried is out of range. Expected num_hypotheses >= 1. "
            f"Received: num_hypotheses={num_hypotheses!r}"
        )
    return min(0.0, log10_p + math.log10(num_hypotheses))


def factor_of_nth(number: int) -> int:
    r"""What the n-th of a sequence of hypotheses pays in p, where nobody knows how many will follow.

    \( n (n + 1) \). Since \( \sum_{n \ge 1} \frac{1}{n (n + 1)} = 1 \), all of them together err with a chance of at most the level,
    however long the sequence gets. A factor of n would not do: its errors add up to the level times
    \( 1 + \frac12 + \frac13 + \dots \), which has no bound.

    Args:
        number: n, >= 1.

    Returns:
        The factor.

    Raises:
        ValueError: If `number` is less than 1.

    Example:

    >>> [factor_of_nth(number) for number in (1, 2, 3, 1000)]
    [2, 6, 12, 1001000]

    Source: Foster and Stine, "Alpha-investing", 2008 (levels spent along a sequence of tests).
    """
    if not number >= 1:
        raise ValueError(
            f"The number of a hypothesis is out of range. Expected number >= 1. Received: number={number!r}"
        )
    return number * (number + 1)
