"""Reads a mark back from a model's weights and says what the reading proves.

Source: DeepSigns, section 3.2 (watermark extraction), with the exact null of an independent uniform signature in place of
a threshold on the bit error rate.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

from deepsigns_tf.activations import class_membership, named_layers, num_features, pool, record_activations
from deepsigns_tf.owner_key import Carrier, KeyInputs, OwnerKey
from deepsigns_tf.statistics import (
    DecisionRule,
    allowed_errors,
    binomial_log10_tail,
    corrected_log10_p,
    rademacher_log10_tail,
)


@dataclasses.dataclass(frozen=True, eq=False)
class SignatureReading:
    """One carrier's signature read from one layer's class means.

    Args:
        carrier: Name of the carrier.
        layer: Path of the layer that was read.
        projected: `(s, N)` float64, the class means times the projection, signed so that a matching bit is positive.
        scales: `(s,)` float64, the standard deviation that a random column would give for each class.
        matches: `(s, N)` bool, which bits match.
    """

    carrier: str
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
    def margins(self) -> np.ndarray:
        """`(s, N)` signed projections in units of what a random direction would give; negative where a bit is wrong."""
        return self.projected / np.where(self.scales > 0, self.scales, 1.0)[:, None]

    def log10_p(self, test: str) -> float:
        """log10 p of this reading alone, by the `"hard"` or the `"soft"` test."""
        return _log10_p([self], test)

    def to_dict(self) -> dict[str, Any]:
        """The reading as JSON-ready values, without a bit of the signature."""
        return {
            "carrier": self.carrier,
            "layer": self.layer,
            "num_bits": self.num_bits,
            "num_matches": self.num_matches,
            "bit_error_rate": self.bit_error_rate,
            "bit_error_rate_per_class": (1.0 - self.matches.mean(axis=1)).tolist(),
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

    Example:

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
        return SignatureReading(self._carrier.name, layer, signed, scales, (projected > 0) == self._bits)


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """What a suspect's weights say about an owner's claim.

    Args:
        owner: Who claims the model.
        marked: Whether the decision rule, fixed in the key, is met.
        log10_p_value: log10 p of the deciding test after all corrections.
        log10_alpha: log10 of the level it was held against.
        decision: The rule.
        committed: Whether a commitment was given by whoever verifies and found to be this key's.
        log10_p_hard: log10 p of the count of matching bits, corrected. Exact.
        log10_p_soft: log10 p of the signed sum of projections, corrected. A bound (Chernoff) above 16 bits.
        num_assignments: Joint assignments of carriers to layers that were tried and paid for.
        readings: One reading for each carrier.
        assumptions: What the p-value rests on, in words.
    """

    owner: str
    marked: bool
    log10_p_value: float
    log10_alpha: float
    decision: DecisionRule
    committed: bool
    log10_p_hard: float
    log10_p_soft: float
    num_assignments: int
    readings: tuple[SignatureReading, ...]
    assumptions: tuple[str, ...]

    @property
    def num_bits(self) -> int:
        """Bits over all carriers."""
        return sum(reading.num_bits for reading in self.readings)

    @property
    def num_matches(self) -> int:
        """Matching bits over all carriers."""
        return sum(reading.num_matches for reading in self.readings)

    @property
    def bit_error_rate(self) -> float:
        """Share of wrong bits over all carriers, in [0, 1]."""
        return 1.0 - self.num_matches / self.num_bits

    def summary(self) -> str:
        """The verdict for people, in a dozen lines."""
        relation = "<=" if self.marked else ">"
        headline = "MARKED" if self.marked else "NOT MARKED"
        if self.marked and not self.committed:
            headline = "MARKED, if the key is older than the model"
        errors = allowed_errors(self.num_bits, self.log10_alpha - math.log10(self.num_assignments))
        lines = [
            f"{headline}: claim of {self.owner}",
            f"  bits matched    {self.num_matches} of {self.num_bits} (bit error rate {self.bit_error_rate:.4f}; "
            f"{'no number of matches' if errors is None else f'up to {errors} errors'} would pass the hard test)",
            f"  p-value         10^{self.log10_p_value:.2f} {relation} 10^{self.log10_alpha:.2f} ({self.decision.test} test, "
            f"{'earlier commitment checked' if self.committed else 'no earlier commitment checked'})",
            f"  hard, soft      10^{self.log10_p_hard:.2f} (exact), 10^{self.log10_p_soft:.2f} (bound)",
            f"  correction      x {self.num_assignments} assignments of carriers to layers",
        ]
        for reading in self.readings:
            lines.append(
                f"  carrier         {reading.carrier} in {reading.layer}: {reading.num_matches} of {reading.num_bits} bits, "
                f"margins {reading.margins.min():.2f} (smallest), {np.median(reading.margins):.2f} (median)"
            )
        return "\n".join([*lines, "  assuming        " + "\n                  ".join(self.assumptions)])

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready values; nothing in it is secret."""
        return {
            "owner": self.owner,
            "marked": self.marked,
            "log10_p_value": self.log10_p_value,
            "log10_alpha": self.log10_alpha,
            "decision": self.decision.to_dict(),
            "committed": self.committed,
            "log10_p_hard": self.log10_p_hard,
            "log10_p_soft": self.log10_p_soft,
            "num_assignments": self.num_assignments,
            "num_bits": self.num_bits,
            "num_matches": self.num_matches,
            "bit_error_rate": self.bit_error_rate,
            "readings": [reading.to_dict() for reading in self.readings],
            "assumptions": list(self.assumptions),
        }


def verify(model: keras.Model, owner_key: OwnerKey, *, commitment: str | None = None) -> Verdict:
    """Reads the mark from a suspect's weights and decides by the rule fixed in the key.

    Layers may have been renamed or reordered: every layer of the right width is a candidate for a carrier, and the best
    assignment is reported. The width stands in the key but not in the commitment, so the factor in p (Bonferroni) counts
    every layer that is wide enough for the bits.

    Args:
        model: The suspect, any Keras model. Only load files you trust, or look at them first.
        owner_key: The claimant's key, after `release` (it must know the carriers' widths).
        commitment: The commitment that the claimant published before training, taken by whoever verifies from a dated
            source of their own. With it the rule's level for committed claims applies.

    Returns:
        The verdict.

    Raises:
        ValueError: If there is nothing to read: a key without key inputs or layers, inputs that do not fit the model, no
            layer of the right width, activations that are not finite, or a commitment that is not this key's.

    Source: DeepSigns, section 3.2.
    """
    if owner_key.key_inputs is None or not owner_key.layers:
        raise ValueError(
            "This key cannot read a mark yet. Expected a key with key inputs (`with_key_inputs`) and layers (returned by `release`). "
            f"Received: key inputs {'set' if owner_key.key_inputs else 'missing'}, layers {'set' if owner_key.layers else 'missing'}"
        )
    if commitment is not None and commitment.strip().lower() != owner_key.commitment():
        raise ValueError(
            "The commitment is not this key's. Expected the digits that the owner published before training. "
            f"Received: commitment={commitment!r}, while the key has {owner_key.commitment()}"
        )
    candidates, num_admissible = candidate_means(model, owner_key)
    readings, num_assignments = [], 1
    for layer in owner_key.layers:
        means = candidates[layer.carrier]
        num_assignments *= max(num_admissible[layer.carrier], 1)
        reader = SignatureReader(owner_key, layer.carrier, layer.num_units)
        found = [reader.read(values, path) for path, values in means.items() if np.isfinite(values).all()]
        if not found:
            raise ValueError(
                f"There is no reading for carrier {layer.carrier!r}. Expected a layer with {layer.num_units} finite features. "
                + (
                    f"Received: {len(means)} layers of that width, none finite"
                    if means
                    else "Received: no layer of that width"
                )
            )
        # The recorded layer wins a tie: copies of one output (a dropout layer at inference) read the same.
        readings.append(
            min(found, key=lambda reading: (reading.log10_p(owner_key.decision.test), reading.layer != layer.path))
        )
    return judge(readings, owner_key, num_assignments, committed=commitment is not None)


def judge(
    readings: list[SignatureReading], owner_key: OwnerKey, num_assignments: int, committed: bool = False
) -> Verdict:
    """Turns readings into a verdict by the key's decision rule.

    Args:
        readings: One for each carrier.
        owner_key: The key.
        num_assignments: Joint assignments that were tried, >= 1.
        committed: Whether an earlier commitment was checked.

    Returns:
        The verdict.
    """
    rule = owner_key.decision
    log10_p: dict[Literal["hard", "soft"], float] = {
        test: corrected_log10_p(_log10_p(readings, test), num_assignments) for test in ("hard", "soft")
    }
    assumptions = (
        "the bits are uniform and independent of the suspect and of all that was used to read it: seed, key inputs and decision "
        "rule were fixed before the suspect existed",
        "that they were: the key's commitment was checked; its date is for the verifier to judge"
        if committed
        else "that they were is NOT SHOWN, no earlier commitment was checked: the level leaves no room for trying seeds, but whoever "
        "makes a key after the model can fit its key inputs to it",
        f"every joint assignment of carriers to layers wide enough was paid for ({num_assignments}); the carrier-to-layer map is not "
        "committed",
        f"the decision rule stood in the key: {rule.test} test at 10^{rule.log10_alpha(committed):.2f}",
    )
    return Verdict(
        owner=owner_key.owner,
        marked=log10_p[rule.test] <= rule.log10_alpha(committed),
        log10_p_value=log10_p[rule.test],
        log10_alpha=rule.log10_alpha(committed),
        decision=rule,
        committed=committed,
        log10_p_hard=log10_p["hard"],
        log10_p_soft=log10_p["soft"],
        num_assignments=num_assignments,
        readings=tuple(readings),
        assumptions=assumptions,
    )


def candidate_means(model: keras.Model, owner_key: OwnerKey) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Class means of the key inputs in every layer that could play a carrier's role, in one pass over the key inputs.

    Args:
        model: Any Keras model.
        owner_key: A key with key inputs and layers.

    Returns:
        Carrier -> path -> `(s, M)` float64 class means, and carrier -> how many outputs are wide enough for its bits. A
        layer that is called k times has k paths, from the second on with `@1`, `@2`, ...

    Raises:
        ValueError: If the key inputs do not fit the model.
    """
    widths = {owner_key.carrier(layer.carrier): layer.num_units for layer in owner_key.layers}
    key_inputs = owner_key.key_inputs
    if key_inputs is None:
        raise ValueError("There is nothing to read with. Expected a key with key inputs. Received: a key without")
    _check_key_inputs(model, key_inputs)
    layers = named_layers(model)
    sums: dict[str, dict[str, np.ndarray]] = {carrier.name: {} for carrier in widths}
    admissible: dict[str, set[str]] = {carrier.name: set() for carrier in widths}
    counts = {carrier: _membership(key_inputs.labels, carrier).sum(axis=0) for carrier in widths}
    for rows, outputs in record_activations(model, key_inputs.inputs, layers):
        for path in layers:
            for call, output in enumerate(outputs[path]):
                for carrier, num_units in widths.items():
                    name = f"{path}@{call}" if call else path
                    width = _width(output, carrier)
                    if width is not None and width > carrier.bits_per_class:
                        admissible[carrier.name].add(name)
                    if width != num_units:
                        continue
                    features = np.asarray(keras.ops.convert_to_numpy(pool(output, carrier.pooling)), np.float64)
                    # Activations that are not finite are for the caller to judge.
                    with np.errstate(invalid="ignore"):
                        total = _membership(key_inputs.labels[rows], carrier).T @ features
                    sums[carrier.name][name] = sums[carrier.name].get(name, 0.0) + total
    means = {
        carrier.name: {path: total / counts[carrier][:, None] for path, total in sums[carrier.name].items()}
        for carrier in widths
    }
    return means, {name: len(outputs) for name, outputs in admissible.items()}


def _log10_p(readings: list[SignatureReading], test: str) -> float:
    if test == "hard":
        return binomial_log10_tail(
            sum(reading.num_matches for reading in readings), sum(reading.num_bits for reading in readings)
        )
    projected = np.concatenate([reading.projected.ravel() for reading in readings])
    return rademacher_log10_tail(float(projected.sum()), projected)


def _membership(labels: np.ndarray, carrier: Carrier) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(class_membership(labels, carrier.classes)), np.float64)


def _width(output: Any, carrier: Carrier) -> int | None:
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) < 2:
        return None
    return num_features((None, *shape[1:]), carrier.pooling)


def _check_key_inputs(model: keras.Model, key_inputs: KeyInputs) -> None:
    """Compares with the input shapes that a functional or Sequential model declares; others check for themselves."""
    expected = {tensor.name: tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or []}
    given = {name: array.shape for name, array in key_inputs.arrays.items()}
    if not expected:
        return
    if isinstance(key_inputs.inputs, Mapping):
        fits = set(given) == set(expected) and all(_fits(given[name], shape) for name, shape in expected.items())
    else:
        fits = len(expected) == 1 and _fits(given[""], *expected.values())
    if not fits:
        raise ValueError(
            f"The key inputs do not fit this model. Expected inputs of shape {expected}. Received: key inputs of shape {given}"
        )


def _fits(given: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(given) == len(expected) and all(
        wanted in (None, size) for size, wanted in zip(given[1:], expected[1:], strict=True)
    )
