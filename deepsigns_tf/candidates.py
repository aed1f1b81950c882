"""Which outputs of a suspect could carry a mark, and what the best of them says.

Layers of a stolen model may have been renamed or reordered: every output of the right width is a candidate.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from deepsigns_tf.activations import Inputs, class_membership, named_layers, num_features, pool, record_activations
from deepsigns_tf.alignment import align
from deepsigns_tf.owner_key import Carrier, KeyInputs, OwnerKey
from deepsigns_tf.readings import SignatureReader, SignatureReading

# Of a unit's size, in single precision.
_ROUNDING = 1e-6


class Place(NamedTuple):
    """Where an output of a suspect comes from: a layer, by its path, and which of its calls. Printed as `path@call`."""

    path: str
    call: int

    def __str__(self) -> str:
        return f"{self.path}@{self.call}" if self.call else self.path


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """The outputs of a suspect that could play one carrier's role.

    Args:
        means: Place -> `(s, M)` float64 class means of the key inputs, for the outputs of the width that the key names.
        num_admissible: How many outputs are wide enough for the carrier's bits: what a search among them costs in p. Where units were
            matched, times the same of the reference.
        qualities: Place -> how well its units match a reference's, as `Alignment.quality`; empty where none were matched.
    """

    means: dict[Place, np.ndarray] = dataclasses.field(repr=False)
    num_admissible: int
    qualities: dict[Place, float] = dataclasses.field(default_factory=dict)


def candidate_means(model: keras.Model, owner_key: OwnerKey) -> dict[str, Candidates]:
    """Class means of the key inputs in every layer that could play a carrier's role, in one pass over the key inputs.

    Args:
        model: Any Keras model.
        owner_key: A key with key inputs and layers.

    Returns:
        Carrier -> its candidates. A layer that is called k times is k of them.

    Raises:
        ValueError: If the key has no key inputs, or they do not fit the model.

    Example:

    >>> from deepsigns_tf.owner_key import CarrierLayer
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> key = key.with_key_inputs(np.random.rand(64, 8), np.arange(64) % 2, num_per_class=8)
    >>> key = key.with_layers([CarrierLayer("features", "hidden", 128)])
    >>> suspect = keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden"), keras.layers.Dense(64)])
    >>> candidate_means(suspect, key)["features"].means[Place("hidden", 0)].shape
    (2, 128)
    >>> candidate_means(suspect, key)["features"].num_admissible
    2
    """
    widths = {layer.carrier: layer.num_units for layer in owner_key.layers}
    means, admissible = _means_of_key_inputs(model, owner_key)
    return {
        name: Candidates(
            {place: each for place, each in found.items() if each.shape[1] == widths[name]}, admissible[name]
        )
        for name, found in means.items()
    }


class Matched(NamedTuple):
    """Candidates in the units of a reference's layers: of the reference's size, and of the suspect's own."""

    scaled: dict[str, Candidates]
    unscaled: dict[str, Candidates]


def matched_candidates(model: keras.Model, owner_key: OwnerKey, reference: keras.Model) -> Matched:
    """Class means of the key inputs in every output that is wide enough, in the units of a reference's layer.

    Units are matched by their responses to the key inputs, which were fixed before the suspect existed, within classes, where the
    mark is not. Outputs more than four times as wide as the reference's layer, or less than a quarter, are not tried; they
    count as admissible all the same. So do the reference's own outputs: which of them stands for a carrier is not committed.

    Args:
        model: The suspect, any Keras model.
        owner_key: A key with key inputs and layers.
        reference: A model of the architecture that the key's layers name.

    Returns:
        Carrier -> its candidates, of the width that the key names; with both sizes.

    Raises:
        ValueError: As `candidate_means`; also if the reference has no such layers.
    """
    labels = _key_inputs(owner_key).labels
    widths = {layer.carrier: layer.num_units for layer in owner_key.layers}
    features, admissible = _features(
        model, owner_key, {name: (width // 4, 4 * width) for name, width in widths.items()}
    )
    of_reference, others = _features(reference, owner_key, {name: (width, width) for name, width in widths.items()})
    result = Matched({}, {})
    for layer in owner_key.layers:
        expected = of_reference[layer.carrier].get(Place(layer.path, 0))
        if expected is None:
            raise ValueError(
                f"The reference has another architecture than the marked model. Expected a layer {layer.path!r} with {layer.num_units} "
                f"features. Received: layers {list(named_layers(reference))}"
            )
        profiles = _within_classes(expected, labels)
        finite = {place: each for place, each in features[layer.carrier].items() if np.isfinite(each).all()}
        matches = {place: align(profiles, _within_classes(each, labels)) for place, each in finite.items()}
        members = _membership(labels, owner_key.carrier(layer.carrier))
        means = {place: members @ each / members.sum(axis=1)[:, None] for place, each in finite.items()}
        num_admissible = admissible[layer.carrier] * others[layer.carrier]
        qualities = {place: match.quality for place, match in matches.items()}
        for into, ways in (
            (result.scaled, matches),
            (result.unscaled, {place: match.unscaled for place, match in matches.items()}),
        ):
            applied = {place: match.applied(means[place]) for place, match in ways.items()}
            into[layer.carrier] = Candidates(applied, num_admissible, qualities)
    return result


def _key_inputs(owner_key: OwnerKey) -> KeyInputs:
    if owner_key.key_inputs is None:
        raise ValueError("There is nothing to read with. Expected a key with key inputs. Received: a key without")
    return owner_key.key_inputs


def _means_of_key_inputs(
    model: keras.Model, owner_key: OwnerKey
) -> tuple[dict[str, dict[Place, np.ndarray]], dict[str, int]]:
    """Carrier -> place -> class means, in every output that is wide enough; and how many those are."""
    key_inputs = _key_inputs(owner_key)
    _check_key_inputs(model, key_inputs)
    carriers = [owner_key.carrier(layer.carrier) for layer in owner_key.layers]
    sums: dict[str, dict[Place, np.ndarray]] = {carrier.name: {} for carrier in carriers}
    for rows, carrier, place, features in _heard(model, key_inputs.inputs, carriers):
        # Activations that are not finite are for the caller to judge.
        with np.errstate(invalid="ignore"):
            total = _membership(key_inputs.labels[rows], carrier) @ features
        sums[carrier.name][place] = sums[carrier.name].get(place, 0.0) + total
    counts = {carrier.name: _membership(key_inputs.labels, carrier).sum(axis=1)[:, None] for carrier in carriers}
    means = {name: {place: total / counts[name] for place, total in totals.items()} for name, totals in sums.items()}
    return means, {name: len(found) for name, found in means.items()}


def _features(
    model: keras.Model, owner_key: OwnerKey, widths: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, dict[Place, np.ndarray]], dict[str, int]]:
    """Carrier -> place -> `(n, M')` features of the key inputs, in outputs of a width between two numbers; and how many are wide enough."""
    key_inputs = _key_inputs(owner_key)
    _check_key_inputs(model, key_inputs)
    carriers = [owner_key.carrier(layer.carrier) for layer in owner_key.layers]
    parts: dict[str, dict[Place, list[np.ndarray]]] = {carrier.name: {} for carrier in carriers}
    heard: dict[str, set[Place]] = {carrier.name: set() for carrier in carriers}
    for _, carrier, place, features in _heard(model, key_inputs.inputs, carriers):
        heard[carrier.name].add(place)
        least, most = widths[carrier.name]
        if least <= features.shape[1] <= most:
            parts[carrier.name].setdefault(place, []).append(features)
    whole = {name: {place: np.concatenate(each) for place, each in found.items()} for name, found in parts.items()}
    return whole, {name: len(places) for name, places in heard.items()}


def _within_classes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What is left of responses without their class means, where the mark is."""
    left = features.copy()
    for label in np.unique(labels):
        left[labels == label] -= left[labels == label].mean(axis=0)
    # What rounding leaves of a unit that never moves is no response.
    return np.where(np.abs(left).max(axis=0) > _ROUNDING * np.abs(features).max(axis=0), left, 0.0)


def _heard(
    model: keras.Model, inputs: Inputs, carriers: list[Carrier]
) -> Iterator[tuple[slice, Carrier, Place, np.ndarray]]:
    """Rows, carrier, place and `(rows, M')` float64 features of every output that is wide enough for a carrier's bits."""
    layers = named_layers(model)
    for rows, outputs, _ in record_activations(model, inputs, layers):
        places = [(Place(path, call), output) for path in layers for call, output in enumerate(outputs[path])]
        for (place, output), carrier in itertools.product(places, carriers):
            width = _width(output, len(range(rows.start, rows.stop)), carrier)
            if width is not None and width > carrier.bits_per_class:
                yield (
                    rows,
                    carrier,
                    place,
                    np.asarray(keras.ops.convert_to_numpy(pool(output, carrier.pooling)), np.float64),
                )


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

    >>> from deepsigns_tf.owner_key import CarrierLayer
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
        reader = SignatureReader(owner_key, layer.carrier, layer.num_units)
        found = {place: reader.read(each, str(place)) for place, each in means.items() if np.isfinite(each).all()}
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
        best = min(
            found, key=lambda place: (found[place].log10_p(owner_key.decision.test), place != Place(layer.path, 0))
        )
        readings.append(found[best])
    return readings


def _membership(labels: np.ndarray, carrier: Carrier) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(class_membership(labels, carrier.classes)), np.float64)


def _width(output: Any, num_examples: int, carrier: Carrier) -> int | None:
    shape = tuple(getattr(output, "shape", ()))
    # Windows and patches are often put into the first axis: such rows are no examples.
    if len(shape) < 2 or shape[0] != num_examples:
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
