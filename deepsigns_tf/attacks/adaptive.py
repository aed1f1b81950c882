"""Attacks of a thief who knows the method and the marked layer, and not the key."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np
import scipy.linalg
from keras import ops

from deepsigns_tf.activations import Pooling, pool, record_activations
from deepsigns_tf.attacks.graphs import as_functional
from deepsigns_tf.attacks.new_units import NewUnits, with_units
from deepsigns_tf.attacks.recipes import Recipe, copied, fit
from deepsigns_tf.attacks.units import WITH_KERNEL, unit_groups

_MOST_LOOKED_AT = 2_000
# Of the mean variance, so that directions in which nothing varies have none.
_RIDGE = 1e-3


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


def add_lookalike_units(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    layers: Collection[str],
    pairs_per_unit: int = 1,
    distance: float = 1.0,
) -> keras.Model:
    r"""Hides units among others that vary as they do, and have other class means.

    A match of units by their responses cannot tell a look-alike from the unit that it copies, as far as it looks at what differs within
    classes alone; what is then read in the look-alike's place are class means that carry nothing. Each is a copy of a unit whose weights
    go a step along \( S_w^{-1} (\mu_k - \mu) \), the directions in which classes are apart and their members are not, with the class
    means \( \mu_k \) and the covariance \( S_w \) within classes of what the layer takes in. Look-alikes come in pairs that are taken in
    with opposite signs, so that the network computes what it did.

    Args:
        model: The model; it is left as it is.
        x: `(n, ...)` inputs of the task; 2,000 are looked at, at most.
        y: `(n,)` integer labels.
        seed: Of the steps.
        layers: Names of the Dense layers and convolutions whose units get look-alikes.
        pairs_per_unit: Pairs for each unit, >= 1.
        distance: Standard deviation over the classes of how far a look-alike's mean lies from its unit's, before the activation, as a
            share of that of the unit's means, > 0.

    Returns:
        A functional model, wider, that computes the same.

    Raises:
        ValueError: As `units.unit_groups`; also if a layer is of another kind or not there, or a number is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> wider = add_lookalike_units(model, x, y, seed=0, layers=["hidden"])
    >>> wider.get_layer("hidden").units, bool(np.allclose(model(x), wider(x), atol=1e-4))
    (24, True)

    Source: After Yan, Pan, Zhang, Yang, "Rethinking white-box watermarks on deep learning models under neural structural obfuscation",
    USENIX Security 2023 (cliques of dummy neurons), against a match.
    """
    functional = as_functional(model)
    kinds = {layer.name: type(layer) for layer in functional.layers}
    if not layers or not all(kinds.get(layer) in WITH_KERNEL for layer in layers):
        raise ValueError(
            "These layers' units cannot get look-alikes. Expected names of Dense layers and convolutions. "
            f"Received: layers={list(layers)}"
        )
    if pairs_per_unit < 1 or not distance > 0.0:
        raise ValueError(
            "This is no way to make look-alikes. Expected pairs_per_unit >= 1 and distance > 0. "
            f"Received: pairs_per_unit={pairs_per_unit!r}, distance={distance!r}"
        )
    random = np.random.default_rng(seed)
    order = [layer.name for layer in functional.layers]
    # The layer of each group whose weights step aside, and the group; in the order of the graph, since what a layer takes in may hold
    # look-alikes of another.
    groups = sorted(
        (
            (max(set(layers) & set(group.layers), key=order.index), group)
            for group in unit_groups(functional)
            if set(layers) & set(group.layers)
        ),
        key=lambda each: order.index(each[0]),
    )
    fixed = set(layers) - {layer for _, group in groups for layer in group.layers}
    if fixed:
        raise ValueError(
            "What a model puts out cannot get look-alikes. Expected names of hidden layers. "
            f"Received: {sorted(fixed)} among layers={list(layers)}"
        )
    plans = {}
    for _, group in groups:
        copied_units = np.repeat(np.arange(group.size), 2 * pairs_per_unit)
        shares = np.concatenate([np.ones(group.size), np.tile([1.0, -1.0], group.size * pairs_per_unit)])
        plans[group] = NewUnits(np.concatenate([np.arange(group.size), copied_units]), shares=shares)
    wider = with_units(functional, plans, seed)
    rows = random.permutation(len(x))[:_MOST_LOOKED_AT]
    for maker, group in groups:
        _step_aside(wider, maker, group.size, x[rows], y[rows], distance, random)
    return wider


def _step_aside(
    model: keras.Model,
    layer: str,
    num_units: int,
    x: np.ndarray,
    y: np.ndarray,
    distance: float,
    random: np.random.Generator,
) -> None:
    """Moves the weights of a layer's look-alikes, which stand in pairs behind its units."""
    maker = model.get_layer(layer)
    taken_in = np.asarray(keras.Model(model.input, maker.input).predict(x, batch_size=500, verbose=0), np.float64)
    features = taken_in.reshape(len(x), -1, taken_in.shape[-1]).mean(axis=1)
    means = np.stack([features[y == label].mean(axis=0) for label in np.unique(y)])
    apart = (means - means.mean(axis=0)).T
    within = np.cov(features - means[np.searchsorted(np.unique(y), y)], rowvar=False)
    within += _RIDGE * (np.trace(within) / len(within) + np.finfo(np.float64).tiny) * np.eye(len(within))
    directions = scipy.linalg.solve(within, apart, assume_a="pos")
    kernel, *bias = maker.get_weights()
    # Of a convolution the tap in the middle: it sees a pixel as all others do.
    middle = tuple(size // 2 for size in kernel.shape[:-2])
    columns = kernel[middle].astype(np.float64)
    num_pairs = (columns.shape[1] - num_units) // 2
    steps = directions @ random.normal(size=(apart.shape[1], num_pairs))
    wanted = distance * (apart.T @ columns[:, num_units::2]).std(axis=0)
    steps *= wanted / np.maximum((apart.T @ steps).std(axis=0), np.finfo(np.float64).tiny)
    columns[:, num_units:] += np.repeat(steps, 2, axis=1)
    kernel[middle] = columns.astype(kernel.dtype)
    maker.set_weights([kernel, *bias])


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
