"""Which outputs of a suspect could carry a mark, and what the best of them says.

Layers of a stolen model may have been renamed or reordered: every output of the right width is a candidate.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np

from deepsigns_tf.alignment import Alignment, align
from deepsigns_tf.owner_key import KeyInputs, OwnerKey
from deepsigns_tf.readings import SignatureReader, SignatureReading
from deepsigns_tf.responses import Place, Respondent, Responses, Role, means_of_classes, respondent

# Of a unit's size, in single precision.
_ROUNDING = 1e-6
# Between these shares of the reference's width units are matched. Whoever widens a layer more pays for it in every answer.
_NARROWEST, _WIDEST = 1 / 4, 32
# All outputs side by side: what they are called, and how many units they may have, which are matched in a quarter of a minute.
_TOGETHER, _MOST_TOGETHER = Place("all layers together", 0), 1 << 14


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """The outputs of a suspect that could play one carrier's role.

    Args:
        means: Place -> `(s, M)` float64 class means of the key inputs, for the outputs of the width that the key names.
        num_admissible: How many outputs are wide enough for the carrier's bits: what a search among them costs in p. Where units were
            matched, one more for all outputs side by side, times the same of the reference.
        qualities: Place -> how well its units match a reference's, as `Alignment.quality`; empty where none were matched.
    """

    means: dict[Place, np.ndarray] = dataclasses.field(repr=False)
    num_admissible: int
    qualities: dict[Place, float] = dataclasses.field(default_factory=dict)


def candidate_means(model: keras.Model | Respondent, owner_key: OwnerKey) -> dict[str, Candidates]:
    """Class means of the key inputs in every layer that could play a carrier's role, in one pass over the key inputs.

    Args:
        model: Any Keras model, or a suspect in a process of its own.
        owner_key: A key with key inputs and layers.

    Returns:
        Carrier -> its candidates. A layer that is called k times is k of them.

    Raises:
        ValueError: If the key has no key inputs, or they do not fit the model.

    Example:

    >>> from deepsigns_tf.carriers import Carrier, CarrierLayer
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> key = key.with_key_inputs(np.random.rand(64, 8), np.arange(64) % 2, num_per_class=8)
    >>> key = key.with_layers([CarrierLayer("features", "hidden", 128)])
    >>> suspect = keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden"), keras.layers.Dense(64)])
    >>> candidate_means(suspect, key)["features"].means[Place("hidden", 0)].shape
    (2, 128)
    >>> candidate_means(suspect, key)["features"].num_admissible
    2
    """
    suspect = respondent(model)
    key_inputs = _fitting_key_inputs(suspect, owner_key)
    exact = {layer.carrier: (layer.num_units, layer.num_units) for layer in owner_key.layers}
    found = suspect.class_means(key_inputs.inputs, key_inputs.labels, _roles(owner_key, exact))
    return {name: Candidates(heard.arrays, heard.num_admissible) for name, heard in zip(exact, found, strict=True)}


class Matched(NamedTuple):
    """Candidates as they stand; and in the units of a reference's layers: of the reference's size, of the suspect's own, of one spread."""

    plain: dict[str, Candidates]
    scaled: dict[str, Candidates]
    unscaled: dict[str, Candidates]
    evened: dict[str, Candidates]


def matched_candidates(
    model: keras.Model | Respondent,
    owner_key: OwnerKey,
    reference: keras.Model | Respondent,
    *,
    decorrelated: bool = False,
) -> Matched:
    """Class means of the key inputs in every output that is wide enough, as `candidate_means` and in the units of a reference's layer.

    The suspect is run once for all.

    Units are matched by their responses to the key inputs, which were fixed before the suspect existed, within classes, where the
    mark is not. Any inputs would do, and the bits of the key have no part in it; these are at hand, with labels. Outputs more than
    32 times as wide as the reference's layer, or less than a quarter, are not tried; they count as admissible all the same. So do
    the reference's own outputs: which of them stands for a carrier is not committed.

    Args:
        model: The suspect, any Keras model, or one in a process of its own.
        owner_key: A key with key inputs and layers.
        reference: A model of the architecture that the key's layers name.
        decorrelated: As in `align`.

    Returns:
        Carrier -> its candidates, of the width that the key names, in each of the four ways.

    Raises:
        ValueError: As `candidate_means`; also if the reference has no such layers.
    """
    suspect, known = respondent(model), respondent(reference)
    exact = {layer.carrier: (layer.num_units, layer.num_units) for layer in owner_key.layers}
    wide = {name: (1, _WIDEST * width) for name, (width, _) in exact.items()}
    of_suspect = _features(suspect, owner_key, wide)
    of_reference = _features(known, owner_key, exact)
    labels = _fitting_key_inputs(suspect, owner_key).labels
    result = Matched({}, {}, {}, {})
    for layer in owner_key.layers:
        expected = of_reference[layer.carrier].arrays.get(Place(layer.path, 0))
        if expected is None:
            raise ValueError(
                f"The reference has another architecture than the marked model. Expected a layer {layer.path!r} with {layer.num_units} "
                f"features. Received: layers {known.layer_paths()}"
            )
        classes, heard = owner_key.carrier(layer.carrier).classes, of_suspect[layer.carrier]
        as_wide = {place: each for place, each in heard.arrays.items() if each.shape[1] == layer.num_units}
        result.plain[layer.carrier] = Candidates(
            {place: means_of_classes(each, labels, classes) for place, each in as_wide.items()}, heard.num_admissible
        )
        first = _first_alike(heard.arrays)
        distinct = {place: each for place, each in heard.arrays.items() if first[place] == place}
        least = max(int(_NARROWEST * layer.num_units), owner_key.carrier(layer.carrier).bits_per_class + 1)
        tried = {place: each for place, each in distinct.items() if each.shape[1] >= least} | _together(distinct, least)
        profiles = _within_classes(expected.astype(np.float64), labels)
        matches = {
            place: _Match.of(profiles, _finite(each), labels, classes, decorrelated)
            for place, each in tried.items()
            if np.isfinite(each).all(axis=0).any()
        }
        # Outputs that are alike are matched once, and stand in all their places.
        places = {place: first.get(place, place) for place in (*first, *matches)}
        found = {place: matches[alike] for place, alike in places.items() if alike in matches}
        num_admissible = (heard.num_admissible + 1) * of_reference[layer.carrier].num_admissible
        qualities = {place: match.alignment.quality for place, match in found.items()}
        for into, applied in (
            (result.scaled, {place: match.scaled for place, match in found.items()}),
            (result.unscaled, {place: match.unscaled for place, match in found.items()}),
            (result.evened, {place: match.evened for place, match in found.items()}),
        ):
            into[layer.carrier] = Candidates(applied, num_admissible, qualities)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class _Match:
    """An output whose units were matched with a reference's.

    Args:
        alignment: Which unit is which.
        means: `(s, M')` class means of the output.
        within: `(n, M')` its responses within classes.
    """

    alignment: Alignment
    means: np.ndarray
    within: np.ndarray

    @classmethod
    def of(
        cls, profiles: np.ndarray, features: np.ndarray, labels: np.ndarray, classes: Sequence[int], decorrelated: bool
    ) -> "_Match":
        """Matches `(n, M')` features of a suspect with a reference's responses within classes."""
        within = _within_classes(features, labels)
        alignment = align(profiles, within, decorrelated=decorrelated)
        return cls(alignment, means_of_classes(features, labels, classes), within)

    @property
    def scaled(self) -> np.ndarray:
        """`(s, M)` class means in the reference's units and of its size; the others the same, of other sizes."""
        return self.alignment.applied(self.means)

    @property
    def unscaled(self) -> np.ndarray:
        """Of the suspect's own size."""
        return self.alignment.unscaled.applied(self.means)

    @property
    def evened(self) -> np.ndarray:
        """Of one spread."""
        return self.alignment.evened(self.within).applied(self.means)


def _first_alike(outputs: Mapping[Place, np.ndarray]) -> dict[Place, Place]:
    """Place -> the first one that puts out the same: a dropout layer does nothing at inference."""
    # By digests: a thief may have made very many.
    seen: dict[bytes, Place] = {}
    return {
        place: seen.setdefault(hashlib.sha256(str(each.shape).encode() + each.tobytes()).digest(), place)
        for place, each in outputs.items()
    }


def _together(outputs: Mapping[Place, np.ndarray], least_units: int) -> dict[Place, np.ndarray]:
    """Outputs side by side; nothing if they have too few units, or too many."""
    fits = least_units <= sum(each.shape[1] for each in outputs.values()) <= _MOST_TOGETHER
    return {_TOGETHER: np.concatenate(list(outputs.values()), axis=1)} if fits else {}


def _finite(features: np.ndarray) -> np.ndarray:
    """Features in double precision, without units that are not finite: one that nobody listens to must not hide the others."""
    return np.where(np.isfinite(features).all(axis=0), features, 0.0).astype(np.float64)


def _features(model: Respondent, owner_key: OwnerKey, widths: Mapping[str, tuple[int, int]]) -> dict[str, Responses]:
    """Carrier -> features of the key inputs in every output of a width between two numbers, and how many are wide enough for its bits."""
    found = model.features(_fitting_key_inputs(model, owner_key).inputs, _roles(owner_key, widths))
    return dict(zip(widths, found, strict=True))


def _roles(owner_key: OwnerKey, widths: Mapping[str, tuple[int, int]]) -> list[Role]:
    """What a respondent is told of the carriers: not even their names."""
    carriers = {name: owner_key.carrier(name) for name in widths}
    return [
        Role(tuple(carrier.classes), carrier.pooling, carrier.bits_per_class, *widths[name])
        for name, carrier in carriers.items()
    ]


def _within_classes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What is left of responses without their class means, where the mark is."""
    left = features.copy()
    for label in np.unique(labels):
        left[labels == label] -= left[labels == label].mean(axis=0)
    # What rounding leaves of a unit that never moves is no response.
    return np.where(np.abs(left).max(axis=0) > _ROUNDING * np.abs(features).max(axis=0), left, 0.0)


def best_readings(candidates: Mapping[str, Candidates], owner_key: OwnerKey) -> list[SignatureReading]:
    """Reads every candidate and keeps the best for each carrier, by the test that the key's rule names.

    Args:
        candidates: Carrier -> candidates, from `candidate_means`.
        owner_key: The same key.

    Returns:
        One reading for each carrier.

    Raises:
        ValueError: If a carrier has no candidate with finite means.

    Example:

    >>> from deepsigns_tf.carriers import Carrier, CarrierLayer
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
    >>> key = key.with_layers([CarrierLayer("features", "hidden", 512)])
    >>> marked = (2.0 * key.signature("features") - 1.0) @ key.projection("features", 512).T
    >>> means = {Place("decoy", 0): np.random.rand(10, 512), Place("hidden", 0): marked}
    >>> [reading.layer for reading in best_readings({"features": Candidates(means, num_admissible=2)}, key)]
    ['hidden']
    """
    readings = []
    for layer in owner_key.layers:
        means = candidates[layer.carrier].means
        finite = {place: each for place, each in means.items() if np.isfinite(each).all()}
        if not finite:
            raise ValueError(
                f"There is no reading for carrier {layer.carrier!r}. Expected a layer with {layer.num_units} finite features. "
                + (
                    f"Received: {len(means)} layers of that width, none finite"
                    if means
                    else "Received: no layer of that width"
                )
            )
        # Only now: the width stands in the key, and what it asks for may exceed any machine's memory.
        reader = SignatureReader(owner_key, layer.carrier, layer.num_units)
        found = {place: reader.read(each, str(place)) for place, each in finite.items()}
        # The recorded layer wins a tie: copies of one output (a dropout layer at inference) read the same. Far below chance the
        # logarithms of different tails are one number.
        best = min(
            found,
            key=lambda place: (
                found[place].log10_p(owner_key.decision.test),
                -found[place].num_matches,
                place != Place(layer.path, 0),
            ),
        )
        readings.append(found[best])
    return readings


def _fitting_key_inputs(model: Respondent, owner_key: OwnerKey) -> KeyInputs:
    """Compares with the input shapes that a functional or Sequential model declares; others check for themselves."""
    key_inputs = owner_key.key_inputs
    if key_inputs is None:
        raise ValueError("There is nothing to read with. Expected a key with key inputs. Received: a key without")
    expected = model.input_shapes()
    given = {name: array.shape for name, array in key_inputs.arrays.items()}
    if not expected:
        return key_inputs
    if isinstance(key_inputs.inputs, Mapping):
        fits = set(given) == set(expected) and all(_fits(given[name], shape) for name, shape in expected.items())
    else:
        fits = len(expected) == 1 and _fits(given[""], *expected.values())
    if not fits:
        raise ValueError(
            f"The key inputs do not fit this model. Expected inputs of shape {expected}. Received: key inputs of shape {given}"
        )
    return key_inputs


def _fits(given: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(given) == len(expected) and all(
        wanted in (None, size) for size, wanted in zip(given[1:], expected[1:], strict=True)
    )
