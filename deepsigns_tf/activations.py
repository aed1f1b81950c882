"""A layer's activations: pooled to one row per example, summed per class, read out of any model.

Training and verification share these functions, so what is read is what was written.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from deepsigns_tf.keras_internals import Functional

Tensor = Any
Pooling = Literal["mean", "flatten"]
Inputs = np.ndarray | Mapping[str, np.ndarray]


def pool(activations: Tensor, pooling: Pooling) -> Tensor:
    r"""Reduces a layer's output to `(batch, M)` float32 features.

    `"mean"` averages over every axis between the first and the last: the pixels of a convolution, the time steps of a
    sequence. `"flatten"` keeps every position as a feature of its own. Dense outputs stay as they are.

    Args:
        activations: `(batch, ..., channels)`, any float type, channels last.
        pooling: `"mean"` or `"flatten"`.

    Returns:
        `(batch, M)` float32.

    Raises:
        ValueError: If the activations have no feature axis.

    Example:

    >>> tuple(pool(np.ones((2, 4, 4, 3)), "mean").shape), tuple(pool(np.ones((2, 4, 4, 3)), "flatten").shape)
    ((2, 3), (2, 48))
    """
    rank = len(activations.shape)
    if rank < 2:
        raise ValueError(
            "These activations cannot carry a mark. Expected a tensor (batch, ..., features). "
            f"Received: shape {tuple(activations.shape)}"
        )
    # Cast first: a mean over many float16 pixels loses bits.
    features = ops.cast(activations, "float32")
    if rank == 2:
        return features
    if pooling == "flatten":
        return ops.reshape(features, (-1, num_features(activations.shape, pooling)))
    return ops.mean(features, axis=tuple(range(1, rank - 1)))


def num_features(shape: tuple[int | None, ...], pooling: Pooling) -> int:
    """M, the number of features that `pool` makes of a layer's output.

    Args:
        shape: Output shape with the batch axis first.
        pooling: `"mean"` or `"flatten"`.

    Returns:
        Features per example.

    Raises:
        ValueError: If the number is not fixed (an unknown size of an axis that is kept).

    Example:

    >>> num_features((None, 8, 8, 32), "flatten")
    2048
    """
    kept = tuple(shape[1:]) if pooling == "flatten" else tuple(shape[-1:])
    if not kept or None in kept:
        raise ValueError(
            "The number of features of this layer is not fixed. Expected an output whose kept axes have known sizes. "
            f"Received: shape {tuple(shape)} with pooling={pooling!r}"
        )
    return math.prod(size for size in kept if size is not None)


def class_membership(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """One-hot columns, one per example; a column of zeros for every label that is no carrier class, -1 included.

    Args:
        labels: `(batch,)` class labels, integers or floats that hold integers.
        classes: The carrier classes, in the order of the signature's rows.

    Returns:
        `(s, batch)` float32: classes first, so that class sums are a plain matrix product. XLA's CPU code for the product
        with a transposed left factor takes five times as long.

    Example:

    >>> ops.convert_to_numpy(class_membership(np.array([3, -1, 0]), (0, 3))).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    labels = ops.convert_to_tensor(labels)
    if not keras.backend.is_float_dtype(labels.dtype):
        labels = ops.cast(labels, "int32")
    wanted = ops.convert_to_tensor(np.array(classes), dtype=labels.dtype)
    return ops.cast(ops.equal(wanted[:, None], labels[None, :]), "float32")


def class_sums(features: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of features and number of examples per class, over the batches of all replicas.

    Args:
        features: `(batch, M)` float32.
        membership: `(s, batch)` float32 from `class_membership`.

    Returns:
        `(s, M)` sums and `(s,)` counts, float32. They are added up over replicas before anything non-linear is done with
        them, so loss and gradient equal those of one device that saw the whole batch.

    Example:

    >>> sums, counts = class_sums(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 1.0], [0.0, 0.0]]))
    >>> ops.convert_to_numpy(sums).tolist(), ops.convert_to_numpy(counts).tolist()
    ([[4.0, 6.0], [0.0, 0.0]], [2.0, 0.0])
    """
    membership = ops.cast(membership, "float32")
    sums = ops.matmul(membership, ops.cast(features, "float32"))
    sums, counts = all_reduce_sum((sums, ops.sum(membership, axis=1)))
    return sums, counts


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Means per class; 0, not NaN, for a class without examples.

    Args:
        sums: `(s, M)`.
        counts: `(s,)`.

    Returns:
        `(s, M)`.

    Example:

    >>> ops.convert_to_numpy(class_means(np.array([[4.0], [0.0]]), np.array([2.0, 0.0]))).tolist()
    [[2.0], [0.0]]
    """
    return sums / ops.maximum(counts, 1.0)[:, None]


def all_reduce_sum(tensors: Any) -> Any:
    """Adds a tensor, or each of a tuple, up over the replicas of a `tf.distribute` strategy; elsewhere changes nothing.

    JAX needs nothing here: under `keras.distribution` a batch is one global array and its sums are global.
    """
    if num_replicas() == 1:
        return tensors
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def num_replicas() -> int:
    """Replicas among which a `tf.distribute` strategy shares the batch of the step that is running; elsewhere 1.

    Example:

    >>> num_replicas()
    1
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else int(context.num_replicas_in_sync)


def named_layers(model: keras.Layer) -> dict[str, keras.Layer]:
    """Every layer inside a model by its path, in the model's own order, nested models and wrapped layers included.

    Args:
        model: Any Keras model.

    Returns:
        `"outer/inner"` -> layer. Names that repeat among siblings get `#1`, `#2`, ...

    Example:

    >>> model = keras.Sequential([keras.Input((4,), name="pixels"), keras.layers.Dense(2, name="head")])
    >>> list(named_layers(model))
    ['pixels', 'head']
    """
    return dict(_walk(model, "", set()))


def _walk(parent: keras.Layer, prefix: str, seen: set[int]) -> Iterator[tuple[str, keras.Layer]]:
    names: set[str] = set()
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        name, repeat = layer.name, 0
        while name in names:
            repeat += 1
            name = f"{layer.name}#{repeat}"
        names.add(name)
        path = prefix + name
        yield path, layer
        yield from _walk(layer, path + "/", seen)


class _Recorder(keras.regularizers.Regularizer):
    """Stands where a layer's activity regularizer stands and keeps what it is shown."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __call__(self, activations: Tensor) -> Tensor:
        if _holds_numbers(activations):
            self.outputs.append(activations)
        return ops.zeros((), "float32")


def _holds_numbers(tensor: Tensor) -> bool:
    """False for what stands in for a tensor while a backend traces a loop or a function; it is of no use afterwards."""
    try:
        ops.convert_to_numpy(tensor[:0])
    except Exception:  # Every backend has an error of its own for this.
        return False
    return True


def record_activations(
    model: keras.Model, inputs: Inputs, layers: Mapping[str, keras.Layer], batch_size: int = 128
) -> Iterator[tuple[slice, dict[str, list[Tensor]], Any]]:
    """Runs a model in inference mode and shows what the given layers put out.

    It listens at the place where Keras calls activity regularizers, the same place where the mark is embedded, so it
    works for functional, Sequential, subclassed and nested models alike. The layers' own regularizers are put back.

    It does not listen inside a recurrent layer: how often the cell is called, if at all, depends on backend and hardware.

    Args:
        model: Any Keras model.
        inputs: Array or dict of arrays, examples along the first axis.
        layers: Name -> layer inside `model`.
        batch_size: Examples at a time.

    Yields:
        The rows of a batch, for each name the outputs of its layer in the order of its calls (none if the layer did not
        fire), and the model's own answer.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> for rows, outputs, answer in record_activations(model, np.ones((3, 4), "float32"), named_layers(model)):
    ...     print(rows, tuple(outputs["head"][0].shape), tuple(answer.shape))
    slice(0, 3, None) (3, 2) (3, 2)
    """
    num_examples = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
    for start in range(0, num_examples, batch_size):
        rows = slice(start, min(start + batch_size, num_examples))
        batch = {name: array[rows] for name, array in inputs.items()} if isinstance(inputs, Mapping) else inputs[rows]
        if not model.built:
            # Keras builds a model by running it once; what fires then is no answer.
            model(batch, training=False)
        inside_cells = {
            id(inner)
            for layer in named_layers(model).values()
            if isinstance(layer, keras.layers.RNN)
            for inner in named_layers(layer).values()
        }
        # A functional model takes no activity regularizer; what it puts out, its last layer does.
        heard = {
            name: layer
            for name, layer in layers.items()
            if not isinstance(layer, Functional) and id(layer) not in inside_cells
        }
        own = {name: layer.activity_regularizer for name, layer in heard.items()}
        recorders = {name: _Recorder() for name in layers}
        try:
            for name, layer in heard.items():
                layer.activity_regularizer = recorders[name]
            answer = model(batch, training=False)
        finally:
            for name, layer in heard.items():
                layer.activity_regularizer = own[name]
        yield rows, {name: recorder.outputs for name, recorder in recorders.items()}, answer
