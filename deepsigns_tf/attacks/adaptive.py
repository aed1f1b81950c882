"""Attacks of a thief who knows the method and the marked layer, and not the key."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from deepsigns_tf.activations import Pooling, pool, record_activations
from deepsigns_tf.attacks.recipes import Recipe, copied, fit


def move_class_means(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    layers: Mapping[str, Pooling],
    distance: float = 4.0,
    recipe: Recipe = Recipe(epochs=2, learning_rate=1e-3),
) -> keras.Model:
    r"""Trains on while it drags the class means of layers, where the mark is, in random directions.

    The target of class k is \( \mu_k + d \, \mathrm{std}(\mu_k) \, \epsilon_k \) with \( \epsilon_k \sim N(0, I) \), not below 0 where the
    layer never is; the penalty is the mean squared difference of a batch's means from it, in units of \( \mathrm{std}(\mu_k)^2 \). A
    margin of m, in units of what a random direction would give, then turns with a probability of about \( \Phi(-m / d) \).

    Args:
        model: The model; it is left as it is.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of the directions, of order and dropout.
        layers: Names of the marked layers, and how the maps of each become features, as in `Carrier`.
        distance: d, >= 0.
        recipe: A tenth of the task's own training, by default of 20 epochs.

    Returns:
        A trained copy.

    Raises:
        ValueError: If the model is subclassed, there is no layer or none of a name, or a number is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> move_class_means(model, x, y, seed=0, layers={"hidden": "mean"}, recipe=Recipe(epochs=1)).output_shape
    (None, 2)

    Source: Ours. It turns the embedding of DeepSigns, section 3.1, against itself.
    """
    copy = copied(model, seed)
    names = [each.name for each in copy.layers]
    if not layers or not set(layers) <= set(names) or not distance >= 0.0:
        raise ValueError(
            f"The class means cannot be moved. Expected layers from {names}, distance >= 0. "
            f"Received: layers={dict(layers)}, distance={distance!r}"
        )
    random = np.random.default_rng(seed)
    penalties = [_pull(copy, x, y, layer, pooling, distance, random) for layer, pooling in layers.items()]
    outputs = [copy.outputs[0], *(copy.get_layer(layer).output for layer in layers)]
    fit(keras.Model(copy.inputs, outputs), x, y, seed, recipe, penalties=penalties)
    return copy


def _pull(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    layer: str,
    pooling: Pooling,
    distance: float,
    random: np.random.Generator,
) -> Callable[[Any, Any], Any]:
    """The penalty of a layer whose class means are not where they were sent."""
    classes = np.unique(y)
    sums, least = 0.0, np.inf
    for rows, outputs, _ in record_activations(model, x, {"layer": model.get_layer(layer)}):
        features = np.asarray(ops.convert_to_numpy(pool(outputs["layer"][0], pooling)), np.float64)
        sums = sums + (y[rows] == classes[:, None]).astype(np.float64) @ features
        least = min(least, features.min())
    means = sums / (y == classes[:, None]).sum(axis=1, keepdims=True)
    spread = means.std(axis=1, keepdims=True)
    targets = means + distance * spread * random.normal(size=means.shape)
    if least >= 0.0:
        targets = np.maximum(targets, 0.0)

    def penalty(labels: Any, features: Any) -> Any:
        members = ops.cast(ops.equal(ops.reshape(labels, (1, -1)), ops.cast(classes, labels.dtype)[:, None]), "float32")
        counts = ops.sum(members, axis=1, keepdims=True)
        batch_means = ops.matmul(members, ops.cast(pool(features, pooling), "float32")) / ops.maximum(counts, 1.0)
        apart = ops.square((batch_means - targets) / np.maximum(spread, 1e-6))
        present = ops.cast(counts[:, 0] > 0, "float32")
        return ops.sum(ops.mean(apart, axis=1) * present) / len(classes)

    return penalty
