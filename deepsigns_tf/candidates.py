"""Which outputs of a suspect could carry a mark, and what the best of them says.

Layers of a stolen model may have been renamed or reordered: every output of the right width is a candidate.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from deepsigns_tf.activations import class_membership, named_layers, num_features, pool, record_activations
from deepsigns_tf.owner_key import Carrier, KeyInputs, OwnerKey
from deepsigns_tf.readings import SignatureReader, SignatureReading


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
        num_admissible: How many outputs are wide enough for the carrier's bits: what a search among them costs in p.
    """

    means: dict[Place, np.ndarray] = dataclasses.field(repr=False)
    num_admissible: int


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
    widths = {owner_key.carrier(layer.carrier): layer.num_units for layer in owner_key.layers}
    key_inputs = owner_key.key_inputs
    if key_inputs is None:
        raise ValueError("There is nothing to read with. Expected a key with key inputs. Received: a key without")
    _check_key_inputs(model, key_inputs)
    layers = named_layers(model)
    sums: dict[str, dict[Place, np.ndarray]] = {carrier.name: {} for carrier in widths}
    admissible: dict[str, set[Place]] = {carrier.name: set() for carrier in widths}
    counts = {carrier.name: _membership(key_inputs.labels, carrier).sum(axis=1) for carrier in widths}
    for rows, outputs, _ in record_activations(model, key_inputs.inputs, layers):
        labels = key_inputs.labels[rows]
        heard = [(Place(path, call), output) for path in layers for call, output in enumerate(outputs[path])]
        for (place, output), (carrier, num_units) in itertools.product(heard, widths.items()):
            width = _width(output, len(labels), carrier)
            if width is not None and width > carrier.bits_per_class:
                admissible[carrier.name].add(place)
            if width != num_units:
                continue
            features = np.asarray(keras.ops.convert_to_numpy(pool(output, carrier.pooling)), np.float64)
            # Activations that are not finite are for the caller to judge.
            with np.errstate(invalid="ignore"):
                total = _membership(labels, carrier) @ features
            sums[carrier.name][place] = sums[carrier.name].get(place, 0.0) + total
    means = {
        name: {place: total / counts[name][:, None] for place, total in totals.items()} for name, totals in sums.items()
    }
    return {name: Candidates(means[name], len(places)) for name, places in admissible.items()}


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
