"""What reading a mark asks of a model: responses to inputs, of every layer that could carry one.

A model in this process answers by `LocalModel`, a suspect in a process of its own by `suspects.Suspect`. Nobody who answers learns more
than classes, labels and widths; seed, bits and projection stay with whoever asks.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from deepsigns_tf.activations import (
    Inputs,
    Pooling,
    class_membership,
    named_layers,
    num_features,
    pool,
    record_activations,
)
from deepsigns_tf.weights_digest import weights_digest

# What is taken together where it is little.
_HELD_BYTES, _LARGEST_BATCH = 256 << 20, 1024


class Place(NamedTuple):
    """Where an output of a suspect comes from: a layer, by its path, and which of its calls. Printed as `path@call`."""

    path: str
    call: int

    def __str__(self) -> str:
        return f"{self.path}@{self.call}" if self.call else self.path


@dataclasses.dataclass(frozen=True)
class Role:
    """What a layer's output must be like to play a carrier's role; nothing in it is secret.

    Args:
        classes: The carrier classes.
        pooling: How the output becomes `(n, M')`.
        bits_per_class: An output is wide enough for a mark, and counted, if it has more units.
        least_units: Outputs narrower than this are not told, counted or not.
        most_units: Nor are wider ones.
    """

    classes: tuple[int, ...]
    pooling: Pooling
    bits_per_class: int
    least_units: int
    most_units: int


@dataclasses.dataclass(frozen=True, eq=False)
class Responses:
    """What the outputs of a model say that could play a role.

    Args:
        arrays: Place -> class means `(s, M')` float64, or features `(n, M')` float32.
        num_admissible: How many outputs are wide enough for a mark, whether or not they are told.
    """

    arrays: dict[Place, np.ndarray] = dataclasses.field(repr=False)
    num_admissible: int


class Respondent(Protocol):
    """A model that can be read, wherever it runs."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a verdict must say about how the model was run."""

    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Name -> shape of the inputs that the model declares, the batch first; empty if it declares none."""

    def layer_paths(self) -> list[str]:
        """Paths of all layers, as `activations.named_layers`."""

    @property
    def file_digest(self) -> str | None:
        """SHA-256 of the file that it was loaded from, in hexadecimal; None where that is not known."""

    def digest_of_weights(self) -> str:
        """`weights_digest` of the model, in hexadecimal."""

    def class_means(self, inputs: Inputs, labels: np.ndarray, roles: Sequence[Role]) -> list[Responses]:
        """Class means of inputs, one entry for each role."""

    def features(self, inputs: Inputs, roles: Sequence[Role]) -> list[Responses]:
        """Features of each input, one entry for each role."""


class LocalModel:
    """A model in this process, as one that can be read.

    Args:
        model: Any Keras model.
        batch_size: Inputs at a time; what all layers put out for them is held at once. More, up to 1,024, where that still fits into
            256 MiB: it takes a loop over time steps as long for many as for few.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden"), keras.layers.Dense(64)])
    >>> role = Role((0, 1), "mean", bits_per_class=32, least_units=128, most_units=128)
    >>> (responses,) = LocalModel(model).class_means(np.random.rand(64, 8), np.arange(64) % 2, [role])
    >>> responses.arrays[Place("hidden", 0)].shape, responses.num_admissible
    ((2, 128), 2)
    """

    def __init__(self, model: keras.Model, batch_size: int = 128) -> None:
        self._model = model
        self._batch_size = max(batch_size, min(_LARGEST_BATCH, _HELD_BYTES // (_bytes_per_input(model) or _HELD_BYTES)))

    @property
    def caveats(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Of a functional or Sequential model; others check their inputs themselves."""
        return {tensor.name: tuple(tensor.shape) for tensor in getattr(self._model, "inputs", None) or []}

    def layer_paths(self) -> list[str]:
        """Paths of all layers."""
        return list(named_layers(self._model))

    @property
    def file_digest(self) -> str | None:
        """Not known."""
        return None

    def digest_of_weights(self) -> str:
        """`weights_digest` of the model."""
        return weights_digest(self._model)

    def class_means(self, inputs: Inputs, labels: np.ndarray, roles: Sequence[Role]) -> list[Responses]:
        """Class means, in one pass over the inputs."""
        sums: list[dict[Place, np.ndarray]] = [{} for _ in roles]
        found: list[set[Place]] = [set() for _ in roles]
        for rows, number, place, features in self._heard(inputs, roles):
            if features.shape[1] > roles[number].bits_per_class:
                found[number].add(place)
            if _is_told(features.shape[1], roles[number]):
                # Activations that are not finite are for the caller to judge.
                with np.errstate(invalid="ignore"):
                    total = membership(labels[rows], roles[number].classes) @ features.astype(np.float64)
                sums[number][place] = sums[number].get(place, 0.0) + total
        counts = [membership(labels, role.classes).sum(axis=1)[:, None] for role in roles]
        return [
            Responses({place: total / counts[number] for place, total in sums[number].items()}, len(found[number]))
            for number in range(len(roles))
        ]

    def features(self, inputs: Inputs, roles: Sequence[Role]) -> list[Responses]:
        """Features, in one pass over the inputs."""
        parts: list[dict[Place, list[np.ndarray]]] = [{} for _ in roles]
        found: list[set[Place]] = [set() for _ in roles]
        for _, number, place, features in self._heard(inputs, roles):
            if features.shape[1] > roles[number].bits_per_class:
                found[number].add(place)
            if _is_told(features.shape[1], roles[number]):
                parts[number].setdefault(place, []).append(features)
        return [
            Responses({place: np.concatenate(each) for place, each in parts[number].items()}, len(found[number]))
            for number in range(len(roles))
        ]

    def _heard(self, inputs: Inputs, roles: Sequence[Role]) -> Iterator[tuple[slice, int, Place, np.ndarray]]:
        """Rows, number of the role, place and `(rows, M')` features of every output that is counted or told."""
        layers = named_layers(self._model)
        for rows, outputs, _ in record_activations(self._model, inputs, layers, self._batch_size):
            places = [(Place(path, call), output) for path in layers for call, output in enumerate(outputs[path])]
            for (place, output), (number, role) in itertools.product(places, enumerate(roles)):
                width = _width(output, len(range(rows.start, rows.stop)), role)
                if width is not None and (width > role.bits_per_class or _is_told(width, role)):
                    features = keras.ops.convert_to_numpy(pool(output, role.pooling))
                    yield rows, number, place, np.asarray(features, np.float32)


class Remembered(LocalModel):
    """A model in this process that is asked for the same inputs in several ways: it is run for the widest question, if that comes first.

    Args:
        model: Any Keras model. It must not change from then on.
        file_digest: SHA-256 of the file that it was loaded from, in hexadecimal.

    Example:

    >>> layers = [keras.layers.Dense(128, name="hidden"), keras.layers.Dense(64, name="head")]
    >>> model = keras.Sequential([keras.Input((8,)), *layers])
    >>> remembered, inputs = Remembered(model), np.random.rand(64, 8)
    >>> wide, exact = (Role((0, 1), "mean", 32, least, 128) for least in (64, 128))
    >>> [list(responses.arrays) for responses in remembered.features(inputs, [wide])]
    [[Place(path='hidden', call=0), Place(path='head', call=0)]]
    >>> [list(responses.arrays) for responses in remembered.class_means(inputs, np.arange(64) % 2, [exact])]
    [[Place(path='hidden', call=0)]]
    """

    def __init__(self, model: keras.Model, file_digest: str | None = None) -> None:
        super().__init__(model)
        self._file_digest = file_digest
        self._inputs: Inputs | None = None
        self._heard_roles: Sequence[Role] = ()
        self._found: list[Responses] = []

    @property
    def file_digest(self) -> str | None:
        """As given."""
        return self._file_digest

    def class_means(self, inputs: Inputs, labels: np.ndarray, roles: Sequence[Role]) -> list[Responses]:
        """Class means of the features."""
        found = self.features(inputs, roles)
        return [
            Responses(
                {place: means_of_classes(each, labels, role.classes) for place, each in responses.arrays.items()},
                responses.num_admissible,
            )
            for role, responses in zip(roles, found, strict=True)
        ]

    def features(self, inputs: Inputs, roles: Sequence[Role]) -> list[Responses]:
        """Features, in a pass over the inputs unless they were all heard in the last one."""
        if inputs is not self._inputs or not _are_within(roles, self._heard_roles):
            self._found = super().features(inputs, roles)
            self._inputs, self._heard_roles = inputs, roles
        return [
            Responses(
                {place: each for place, each in responses.arrays.items() if _is_told(each.shape[1], role)},
                responses.num_admissible,
            )
            for role, responses in zip(roles, self._found, strict=True)
        ]


def respondent(model: keras.Model | Respondent) -> Respondent:
    """What answers for a model: a Keras model by itself, in this process.

    Example:

    >>> respondent(keras.Sequential([keras.Input((8,), name="pixels"), keras.layers.Dense(2)])).input_shapes()
    {'pixels': (None, 8)}
    """
    return LocalModel(model) if isinstance(model, keras.Model) else model


def membership(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """`(s, n)` float64: 1 where an example is of a class, else 0.

    Args:
        labels: `(n,)` integers.
        classes: The s classes.

    Example:

    >>> membership(np.array([3, 0, 3]), (0, 3)).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    return np.asarray(keras.ops.convert_to_numpy(class_membership(labels, classes)), np.float64)


def means_of_classes(features: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """`(s, M')` float64 means of examples by class.

    Args:
        features: `(n, M')`, finite or for the caller to judge.
        labels: `(n,)` integers.
        classes: The s classes.

    Example:

    >>> means_of_classes(np.array([[1.0], [2.0], [5.0]]), np.array([3, 0, 3]), (0, 3)).tolist()
    [[2.0], [3.0]]
    """
    members = membership(labels, classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(members @ features.astype(np.float64, copy=False) / members.sum(axis=1)[:, None])


def _are_within(roles: Sequence[Role], heard: Sequence[Role]) -> bool:
    """Whether the same roles were heard, each with all widths that are asked for."""
    return len(roles) == len(heard) and all(
        dataclasses.replace(other, least_units=role.least_units, most_units=role.most_units) == role
        and other.least_units <= role.least_units
        and role.most_units <= other.most_units
        for role, other in zip(roles, heard, strict=True)
    )


def _bytes_per_input(model: keras.Model) -> int | None:
    """What the layers of a functional or Sequential model put out for one input; None where that is not known beforehand."""
    if not getattr(model, "inputs", None):
        return None
    layers = named_layers(model).values()
    # These put out no more than what holds them.
    inside = {
        id(inner)
        for layer in layers
        if isinstance(layer, (keras.layers.Wrapper, keras.layers.Bidirectional, keras.layers.RNN))
        for inner in named_layers(layer).values()
    }
    try:
        outputs = keras.tree.flatten([layer.output for layer in layers if id(layer) not in inside])
        sizes: list[int] = [math.prod(tensor.shape[1:]) for tensor in outputs]
    except (AttributeError, ValueError, TypeError):
        # A layer of layers of its own, one that is called several times, an unknown length.
        return None
    return 4 * sum(sizes)


def _is_told(width: int, role: Role) -> bool:
    return role.least_units <= width <= role.most_units


def _width(output: Any, num_examples: int, role: Role) -> int | None:
    shape = tuple(getattr(output, "shape", ()))
    # Windows and patches are often put into the first axis: such rows are no examples.
    if len(shape) < 2 or shape[0] != num_examples:
        return None
    return num_features((None, *shape[1:]), role.pooling)
