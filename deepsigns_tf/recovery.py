"""A suspect read after its units were matched with those of the marked model itself.

That reference lends its mark to whatever is matched with it: unrelated models then read with few wrong bits, and no binomial p holds.
What tells them apart is how well the units match, and how many bits do; how often unrelated models get as far is counted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from deepsigns_tf.candidates import matched_candidates
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.readings import SignatureReader
from deepsigns_tf.responses import Respondent

# So many unrelated models a comparison should have; with fewer its outcome says so.
ENOUGH_UNRELATED = 200


@dataclasses.dataclass(frozen=True)
class AlignedReading:
    """What a model says in the units of the marked one.

    Args:
        num_matches: Matching bits over all carriers.
        num_bits: Bits over all carriers.
        quality: How well the units match, as `Alignment.quality`; of the worst carrier.
    """

    num_matches: int
    num_bits: int
    quality: float

    @property
    def bit_error_rate(self) -> float:
        """Share of wrong bits, in [0, 1]."""
        return 1.0 - self.num_matches / self.num_bits


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Whether a suspect is a copy of the marked model whose units were disguised.

    Args:
        reading: Of the suspect.
        gate: The quality that unrelated models did not reach.
        p_value: Share of the unrelated models, the suspect among them, that get as far as it; at least 1 / (n + 1).
        num_unrelated: n.
    """

    reading: AlignedReading
    gate: float
    p_value: float
    num_unrelated: int

    @property
    def recovered(self) -> bool:
        """Whether none of the unrelated models gets as far as the suspect."""
        return self.reading.quality > self.gate and self.p_value <= 1.0 / (self.num_unrelated + 1)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the p-value rests on, in words."""
        sentences = [
            "a suspect that is no copy is exchangeable with the unrelated models: same task, architecture, data and recipe, other seeds",
            "the gate was fixed beforehand, by other unrelated models than those that are counted",
        ]
        if self.num_unrelated < ENOUGH_UNRELATED:
            sentences.append(
                f"there are {self.num_unrelated} unrelated models where at least {ENOUGH_UNRELATED} are asked for: no outcome could have "
                f"a p below 1/{self.num_unrelated + 1}"
            )
        return tuple(sentences)

    def summary(self) -> str:
        """The outcome for people. It is weaker than a verdict: its p is bounded by the number of unrelated models, not by that of bits."""
        outcome = f"RECOVERED, p <= 1/{self.num_unrelated + 1}" if self.recovered else "NOT RECOVERED"
        return (
            f"{outcome}: {self.reading.num_matches} of {self.reading.num_bits} bits in the units of the marked model, "
            f"match {self.reading.quality:.3f} (gate {self.gate:.3f}), p = {self.p_value:.3f} of {self.num_unrelated} unrelated models\n"
            "  assuming        " + "\n                  ".join(self.assumptions)
        )

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON-ready values; nothing in it is secret."""
        return dataclasses.asdict(self) | {
            "recovered": self.recovered,
            "bit_error_rate": self.reading.bit_error_rate,
            "assumptions": list(self.assumptions),
        }


def read_aligned(
    model: keras.Model | Respondent, owner_key: OwnerKey, marked: keras.Model | Respondent
) -> AlignedReading:
    """Reads a model in the units of the marked one.

    In each carrier's place the layer counts whose units match best, whatever bits it shows. Units are matched by their responses to the
    key inputs within classes, and brought to the marked model's size.

    Args:
        model: Any Keras model.
        owner_key: The key, after `release`.
        marked: The released model, as it lies with its owner.

    Returns:
        The reading.

    Raises:
        ValueError: As `matched_candidates`; also if no layer of the model can stand for the carrier's.

    Example:

    >>> from deepsigns_tf.carriers import Carrier, CarrierLayer
    >>> import numpy as np
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> key = key.with_key_inputs(np.random.rand(64, 8), np.arange(64) % 2, num_per_class=32)
    >>> key = key.with_layers([CarrierLayer("features", "hidden", 128)])
    >>> marked = keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden")])
    >>> round(read_aligned(marked, key, marked).quality, 3)
    1.0
    """
    num_matches, num_bits, qualities = 0, 0, []
    # What all units do together is what overwriting leaves of them: a match without it would count fewer copies.
    found = matched_candidates(model, owner_key, marked).scaled
    for layer in owner_key.layers:
        candidates = found[layer.carrier]
        if not candidates.qualities:
            raise ValueError(
                f"There is no reading for carrier {layer.carrier!r}. Expected a layer with a quarter to 32 times {layer.num_units} "
                "features, all finite. Received: none"
            )
        place = max(candidates.qualities, key=lambda each: candidates.qualities[each])
        reading = SignatureReader(owner_key, layer.carrier, layer.num_units).read(candidates.means[place], str(place))
        num_matches, num_bits = num_matches + reading.num_matches, num_bits + reading.num_bits
        qualities.append(candidates.qualities[place])
    return AlignedReading(num_matches, num_bits, min(qualities))


def recover(suspect: AlignedReading, gate: float, unrelated: Sequence[AlignedReading]) -> Recovery:
    r"""Compares a suspect with unrelated models.

    A model gets as far as its matching bits, if its match is better than the gate, and nowhere otherwise. If the suspect is one more
    of the unrelated models, each rank among them is as likely as any other, so that \( p = (1 + \#\{i : t_i \ge t\}) / (n + 1) \) is
    exact but for ties, which are counted against the owner.

    Args:
        suspect: Its reading.
        gate: Fixed before, on other unrelated models.
        unrelated: Readings of n models that were trained without the mark, as the suspect would have been; `ENOUGH_UNRELATED` of them, or
            the outcome says that there were fewer, since p cannot be less than 1 / (n + 1).

    Returns:
        The outcome.

    Raises:
        ValueError: If there are no unrelated models, or they were read with another key.

    Example:

    >>> unrelated = [AlignedReading(580 + i % 20, 640, 0.7) for i in range(200)]
    >>> outcome = recover(AlignedReading(640, 640, 0.97), 0.79, unrelated)
    >>> print(outcome.summary().splitlines()[0])
    RECOVERED, p <= 1/201: 640 of 640 bits in the units of the marked model, match 0.970 (gate 0.790), p = 0.005 of 200 unrelated models
    >>> len(outcome.assumptions), len(recover(outcome.reading, 0.79, unrelated[:50]).assumptions)
    (2, 3)

    Source: Davison, Hinkley, "Bootstrap methods and their application", 1997, section 4.2 (Monte Carlo tests).
    """
    if not unrelated or {each.num_bits for each in unrelated} != {suspect.num_bits}:
        raise ValueError(
            f"There is nothing to compare the suspect with. Expected readings of unrelated models, {suspect.num_bits} bits each. "
            f"Received: {len(unrelated)} of {sorted({each.num_bits for each in unrelated})} bits"
        )

    def reached(reading: AlignedReading) -> int:
        return reading.num_matches if reading.quality > gate else -1

    as_far = sum(reached(each) >= reached(suspect) for each in unrelated)
    return Recovery(suspect, gate, (1 + as_far) / (len(unrelated) + 1), len(unrelated))
