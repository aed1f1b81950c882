"""What class means say of an owner's bits: matches and margins.

Source: DeepSigns, section 3.2 (watermark extraction).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.statistics import SignificanceTest, binomial_log10_tail, check_test, rademacher_log10_tail


@dataclasses.dataclass(frozen=True, eq=False)
class SignatureReading:
    """One carrier's signature read from one layer's class means.

    Args:
        carrier: Name of the carrier.
        classes: The s classes, in the order of the rows below.
        layer: Path of the layer that was read, with `@1`, `@2`, ... where its second, third, ... call was.
        projected: `(s, N)` float64, the class means times the projection, signed so that a matching bit is positive.
        scales: `(s,)` float64, the standard deviation that a random column would give for each class.
        matches: `(s, N)` bool, which bits match.
    """

    carrier: str
    classes: tuple[int, ...]
    layer: str
    projected: np.ndarray = dataclasses.field(repr=False)
    scales: np.ndarray = dataclasses.field(repr=False)
    matches: np.ndarray = dataclasses.field(repr=False)

    @property
    def num_bits(self) -> int:
        """Bits read."""
        return self.matches.size

    @property
    def num_matches(self) -> int:
        """Bits that match."""
        return int(self.matches.sum())

    @property
    def bit_error_rate(self) -> float:
        """Share of wrong bits."""
        return 1.0 - self.num_matches / self.num_bits

    @property
    def bit_error_rate_per_class(self) -> list[float]:
        """Share of wrong bits of each class."""
        rates: list[float] = (1.0 - self.matches.mean(axis=1)).tolist()
        return rates

    @property
    def margins(self) -> np.ndarray:
        """`(s, N)` signed projections in units of what a random direction would give; negative where a bit is wrong."""
        return self.projected / np.where(self.scales > 0, self.scales, 1.0)[:, None]

    def log10_p(self, test: SignificanceTest) -> float:
        """log10 p of this reading alone, by the `"hard"` or the `"soft"` test.

        Raises:
            ValueError: If the test is neither.
        """
        return joint_log10_p([self], test)

    def to_dict(self) -> dict[str, Any]:
        """The reading as JSON-ready values, without a bit of the signature."""
        return {
            "carrier": self.carrier,
            "layer": self.layer,
            "num_bits": self.num_bits,
            "num_matches": self.num_matches,
            "bit_error_rate": self.bit_error_rate,
            "classes": list(self.classes),
            "bit_error_rate_per_class": self.bit_error_rate_per_class,
            "smallest_margin": float(self.margins.min()),
            "median_margin": float(np.median(self.margins)),
        }


class SignatureReader:
    r"""Projects class means and compares them with the owner's bits.

    \( z = \mu A \), \( \hat b = [z > 0] \), margin \( (2b - 1) z / \tau \) with \( \tau \) the standard deviation of
    \( \mu \cdot a \) over random columns \( a \).

    Args:
        owner_key: The key.
        carrier: Name of the carrier.
        num_units: M, features of the layers to be read.

    Raises:
        ValueError: If the key has no such carrier or the layers are too narrow for its bits.

    Example:

    >>> from deepsigns_tf.carriers import Carrier
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
    >>> means = (2.0 * key.signature("features") - 1.0) @ key.projection("features", 512).T
    >>> SignatureReader(key, "features", 512).read(means).bit_error_rate < 0.05
    True
    """

    def __init__(self, owner_key: OwnerKey, carrier: str, num_units: int) -> None:
        self._carrier = owner_key.carrier(carrier)
        self._bits = owner_key.signature(carrier).astype(bool)
        self._projection = owner_key.projection(carrier, num_units).astype(np.float64)

    def read(self, means: np.ndarray, layer: str = "") -> SignatureReading:
        """Reads one layer.

        Args:
            means: `(s, M)` class means, finite, classes in the carrier's order.
            layer: Where the means come from, for the record.

        Returns:
            The reading.

        Raises:
            ValueError: If a mean is not finite.
        """
        means = np.asarray(means, np.float64)
        if not np.isfinite(means).all():
            raise ValueError(
                f"The class means of carrier {self._carrier.name!r} cannot be read. Expected finite numbers for every class. "
                f"Received: {np.count_nonzero(~np.isfinite(means))} that are not"
            )
        projected = means @ self._projection
        if self._carrier.projection == "balanced":
            # A column is a shuffle of h times +1 and h times -1: variance 2h / (M - 1) times the spread of the mean.
            num_signs = 2 * (means.shape[1] // 2)
            spread = ((means - means.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
            scales = np.sqrt(spread * num_signs / (means.shape[1] - 1))
        else:
            scales = np.sqrt((means**2).sum(axis=1))
        signed = np.where(self._bits, projected, -projected)
        matches = (projected > 0) == self._bits
        return SignatureReading(self._carrier.name, tuple(self._carrier.classes), layer, signed, scales, matches)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A signature reader cannot be pickled. Expected to make it anew from the owner key, the one place that secrets are "
            "kept in. Received: a request to pickle"
        )


def joint_log10_p(readings: Sequence[SignatureReading], test: SignificanceTest) -> float:
    """log10 p of several readings together, before any correction.

    Args:
        readings: One for each carrier.
        test: `"hard"`, the exact tail of the number of matching bits, or `"soft"`, that of the signed sum of projections.

    Returns:
        log10 p, at most 0.

    Raises:
        ValueError: If the test is neither.
    """
    check_test(test)
    if test == "hard":
        return binomial_log10_tail(
            sum(reading.num_matches for reading in readings), sum(reading.num_bits for reading in readings)
        )
    projected = np.concatenate([reading.projected.ravel() for reading in readings])
    return rademacher_log10_tail(float(projected.sum()), projected)
