"""Exact tests: how likely an innocent model is to match the owner's bits this well.

If every bit of a signature is fair and independent of the suspect and of all that is used to read it, then the number
of matching bits follows Binomial(n, 1/2) exactly, whatever the suspect's activations are. Probabilities are carried as
log10 p: 640 matching bits have p = 2^-640, less than a double can hold.
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
def _binomial_tails(num_bits: int) -> tuple[float, ...]:
    """log10 P(Binomial(n, 1/2) >= m) for m = 0 .. n, from exact integers."""
    tails, count, binomial = [], 0, 1
    for matches in range(num_bits, -1, -1):
        count += binomial
        tails.append(math.log10(count) - num_bits * math.log10(2))
        # C(n, m - 1) from C(n, m), without remainder.
        binomial = binomial * matches // (num_bits - matches + 1)
    tails[-1] = 0.0
    return tuple(reversed(tails))


def binomial_log10_tail(num_matches: int, num_bits: int) -> float:
    r"""log10 of the chance that at least `num_matches` of `num_bits` fair bits match.

    \( P(X \ge m) = 2^{-n} \sum_{k=m}^{n} \binom{n}{k} \), summed in integers of any length.

    Args:
        num_matches: Bits that match, 0 .. `num_bits`.
        num_bits: Bits read.

    Returns:
        log10 p, in [-n log10 2, 0].

    Raises:
        ValueError: If `num_matches` is outside 0 .. `num_bits`.

    Example:

    >>> round(binomial_log10_tail(640, 640), 2)
    -192.66
    """
    if not 0 <= num_matches <= num_bits:
        raise ValueError(
            "The number of matching bits is out of range. Expected 0 <= num_matches <= num_bits. "
            f"Received: num_matches={num_matches}, num_bits={num_bits}"
        )
    return _binomial_tails(num_bits)[num_matches]


def allowed_errors(num_bits: int, log10_alpha: float) -> int | None:
    """The most wrong bits with which a mark of `num_bits` still reaches a level.

    Args:
        num_bits: Bits of the mark.
        log10_alpha: log10 of the level.

    Returns:
        The number of errors, or None if not even a perfect match reaches the level.

    Example:

    >>> allowed_errors(256, -64 * math.log10(2)), allowed_errors(16, -6.0)
    (56, None)
    """
    tails = _binomial_tails(num_bits)
    passing = [num_bits - matches for matches in range(num_bits + 1) if tails[matches] <= log10_alpha]
    return max(passing, default=None)


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
