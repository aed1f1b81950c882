"""Units hidden among others that a match is to take for them, and that cancel each other: the network computes what it did."""

import dataclasses
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
import scipy.linalg

from deepsigns_tf.alignment import decorrelate
from deepsigns_tf.attacks.graphs import as_functional
from deepsigns_tf.attacks.new_units import NewUnits, with_units
from deepsigns_tf.attacks.units import WITH_KERNEL, UnitGroup, unit_groups
from deepsigns_tf.responses import means_of_classes

_MOST_LOOKED_AT = 2_000
# As many as a layer of a thousand units can be fitted by.
_MOST_FITTED = 6_000
# Of the mean variance, so that directions in which nothing varies have none.
_RIDGE = 1e-3
_TINY = np.finfo(np.float64).tiny


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
    wider, groups = _with_pairs(model, seed, layers, pairs_per_unit, distance)
    random = np.random.default_rng(seed)
    rows = random.permutation(len(x))[:_MOST_LOOKED_AT]
    for maker, group in groups:
        _step_aside(wider.get_layer(maker), group.size, _TakenIn.by(wider, maker, x[rows], y[rows]), distance, random)
    return wider


def add_decoy_units(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    layers: Collection[str],
    pairs_per_unit: int = 7,
    distance: float = 3.0,
) -> keras.Model:
    r"""Hides units among others that do what each unit does and the others of its layer do not.

    That is what a match by decorrelated responses looks for, and a unit is like it only in part. A decoy is fitted to it as well as a
    linear function of what the layer takes in can be; its weights go a step along \( S_w^{-1} (\mu_k - \mu) \), as in
    `add_lookalike_units`, so that its class means say nothing. Its bias keeps it above 0, where a ReLU is linear.

    Args:
        model: The model; it is left as it is.
        x: `(n, ...)` inputs of the task; 6,000 are looked at, at most.
        y: `(n,)` integer labels.
        seed: Of the steps.
        layers: Names of the Dense layers and convolutions with a bias, to whose outputs nothing is added, whose units get decoys.
        pairs_per_unit: Pairs for each unit, >= 1.
        distance: Standard deviation over the classes of a decoy's mean, in units of its own within classes, > 0.

    Returns:
        A functional model, wider, that computes the same.

    Raises:
        ValueError: As `add_lookalike_units`; also if a layer has no bias, or something is added to its outputs.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> wider = add_decoy_units(model, x, y, seed=0, layers=["hidden"], pairs_per_unit=1)
    >>> wider.get_layer("hidden").units, bool(np.allclose(model(x), wider(x), atol=1e-4))
    (24, True)

    Source: Ours, against `alignment.align`.
    """
    wider, groups = _with_pairs(model, seed, layers, pairs_per_unit, distance)
    for maker, group in groups:
        if len(group.layers) > 1 or len(wider.get_layer(maker).weights) != 2:
            raise ValueError(
                "These layers' units cannot get decoys. Expected layers with a bias, to whose outputs nothing is added. "
                f"Received: {list(group.layers)} among layers={list(layers)}"
            )
    random = np.random.default_rng(seed)
    rows = random.permutation(len(x))[:_MOST_FITTED]
    for maker, group in groups:
        _fit_decoys(wider, maker, group.size, x[rows], y[rows], distance, random)
    return wider


def _with_pairs(
    model: keras.Model, seed: int, layers: Collection[str], pairs_per_unit: int, distance: float
) -> tuple[keras.Model, list[tuple[str, UnitGroup]]]:
    """A model in whose layers copies in pairs stand behind the units, taken in with opposite signs.

    Returns:
        The model; and the layer of each group whose copies are to be changed, with the group, in the order of the graph, since what a
        layer takes in may hold copies of another.
    """
    functional = as_functional(model)
    kinds = {layer.name: type(layer) for layer in functional.layers}
    if not layers or not all(kinds.get(layer) in WITH_KERNEL for layer in layers):
        raise ValueError(
            "These layers' units cannot be hidden. Expected names of Dense layers and convolutions. "
            f"Received: layers={list(layers)}"
        )
    if pairs_per_unit < 1 or not distance > 0.0:
        raise ValueError(
            "This is no way to hide units. Expected pairs_per_unit >= 1 and distance > 0. "
            f"Received: pairs_per_unit={pairs_per_unit!r}, distance={distance!r}"
        )
    order = [layer.name for layer in functional.layers]
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
            "What a model puts out cannot be hidden. Expected names of hidden layers. "
            f"Received: {sorted(fixed)} among layers={list(layers)}"
        )
    plans = {}
    for _, group in groups:
        copied_units = np.repeat(np.arange(group.size), 2 * pairs_per_unit)
        shares = np.concatenate([np.ones(group.size), np.tile([1.0, -1.0], group.size * pairs_per_unit)])
        plans[group] = NewUnits(np.concatenate([np.arange(group.size), copied_units]), shares=shares)
    return with_units(functional, plans, seed), groups


@dataclasses.dataclass(frozen=True, eq=False)
class _TakenIn:
    """What a layer takes in, of a convolution on average over the pixels.

    Args:
        features: `(n, d)` of each input.
        within: `(n, d)` less the class means.
        apart: `(d, s)` class means, less their mean.
        covariance: `(d, d)` within classes, with a ridge.
    """

    features: np.ndarray
    within: np.ndarray
    apart: np.ndarray
    covariance: np.ndarray

    @classmethod
    def by(cls, model: keras.Model, layer: str, x: np.ndarray, y: np.ndarray) -> "_TakenIn":
        """Measures it."""
        features = _averaged(keras.Model(model.input, model.get_layer(layer).input), x)
        within, means = _without_means(features, y)
        covariance = np.cov(within, rowvar=False)
        covariance += _RIDGE * (np.trace(covariance) / len(covariance) + _TINY) * np.eye(len(covariance))
        return cls(features, within, (means - means.mean(axis=0)).T, covariance)

    def steps(self, num: int, wanted: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """`(d, num)` changes of weights that move class means by as much as is wanted, and else as little as can be."""
        directions = scipy.linalg.solve(self.covariance, self.apart, assume_a="pos")
        steps = directions @ random.normal(size=(self.apart.shape[1], num))
        return np.asarray(steps * wanted / np.maximum((self.apart.T @ steps).std(axis=0), _TINY))


def _averaged(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Outputs in double precision, of maps the mean over their pixels."""
    outputs = np.asarray(model.predict(x, batch_size=500, verbose=0), np.float64)
    return np.asarray(outputs.reshape(len(x), -1, outputs.shape[-1]).mean(axis=1))


def _without_means(features: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features less their class means, and these."""
    labels, members = np.unique(y, return_inverse=True)
    means = means_of_classes(features, y, labels.tolist())
    return features - means[members], means


def _middle(kernel: np.ndarray) -> tuple[int, ...]:
    """Of a convolution the tap that sees a pixel as all others do; of a Dense layer the whole kernel."""
    return tuple(size // 2 for size in kernel.shape[:-2])


def _step_aside(maker: Any, num_units: int, taken_in: _TakenIn, distance: float, random: np.random.Generator) -> None:
    """Moves the weights of a layer's look-alikes."""
    kernel, *bias = maker.get_weights()
    middle = _middle(kernel)
    columns = kernel[middle].astype(np.float64)
    wanted = distance * (taken_in.apart.T @ columns[:, num_units::2]).std(axis=0)
    columns[:, num_units:] += np.repeat(taken_in.steps(len(wanted), wanted, random), 2, axis=1)
    kernel[middle] = columns.astype(kernel.dtype)
    maker.set_weights([kernel, *bias])


def _fit_decoys(
    model: keras.Model,
    layer: str,
    num_units: int,
    x: np.ndarray,
    y: np.ndarray,
    distance: float,
    random: np.random.Generator,
) -> None:
    """Gives a layer's copies other weights."""
    maker, taken_in = model.get_layer(layer), _TakenIn.by(model, layer, x, y)
    responses = _averaged(keras.Model(model.input, maker.output), x)[:, :num_units]
    within, _ = _without_means(responses, y)
    wanted = decorrelate(within / np.maximum(np.linalg.norm(within, axis=0), _TINY))
    fitted = scipy.linalg.solve(taken_in.covariance * len(x), taken_in.within.T @ wanted, assume_a="pos")
    kernel, bias = maker.get_weights()
    num_pairs = (kernel.shape[-1] - num_units) // 2
    columns = np.repeat(fitted, num_pairs // num_units, axis=1)
    columns += taken_in.steps(num_pairs, distance * (taken_in.within @ columns).std(axis=0), random)
    # As large as units are, so that no rounding gives them away or spoils the sums.
    columns *= np.median(responses.std(axis=0)) / np.maximum((taken_in.features @ columns).std(axis=0), _TINY)
    kernel[..., num_units:] = 0.0
    kernel[_middle(kernel)][:, num_units:] = np.repeat(columns, 2, axis=1)
    lowest = (taken_in.features @ columns).min(axis=0)
    bias[num_units:] = np.repeat(1.5 * np.maximum(-lowest, 0.0), 2)
    maker.set_weights([kernel, bias])
