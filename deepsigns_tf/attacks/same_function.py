"""Attacks that leave what a network computes as it is, and change which weights compute it.

A mark that is read by layer and index is lost to them at no cost, unless the suspect's units are first matched with the released
model's. Outputs stay equal up to rounding. Models are functional or sequential; a layer that cannot be treated is named in the error.
"""

import collections
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np

from deepsigns_tf.attacks.graphs import Graph, as_functional, rebuilt
from deepsigns_tf.attacks.new_units import NewUnits, with_units
from deepsigns_tf.attacks.units import WITH_KERNEL, UnitGroup, unit_groups

_LARGEST_SCALE = 4.0


def permute_units(model: keras.Model, seed: int) -> keras.Model:
    """Puts the units of every layer into another order.

    Args:
        model: The model; it is left as it is.
        seed: Of the orders.

    Returns:
        A functional model that computes the same.

    Raises:
        ValueError: As `units.unit_groups`; also if the model has no units to permute.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> x = np.ones((1, 4))
    >>> bool(np.allclose(model(x), permute_units(model, seed=0)(x), atol=1e-5))
    True

    Source: Lukas et al., "SoK: How robust is image classification deep neural network watermarking?", S&P 2022, "feature permutation".
    """
    random = np.random.default_rng(seed)
    return with_units(model, {group: NewUnits(random.permutation(group.size)) for group in _groups(model)})


def rescale_units(model: keras.Model, seed: int) -> keras.Model:
    """Multiplies every unit's output, where the functions after it are positively homogeneous, and divides where it is taken in.

    Args:
        model: The model; it is left as it is.
        seed: Of the factors, spread evenly on a logarithmic scale from 1/4 to 4.

    Returns:
        A functional model that computes the same.

    Raises:
        ValueError: As `units.unit_groups`; also if no layer's units can be rescaled.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x = np.ones((1, 4))
    >>> bool(np.allclose(model(x), rescale_units(model, seed=0)(x), atol=1e-5))
    True

    Source: Neyshabur, Salakhutdinov, Srebro, "Path-SGD", NeurIPS 2015 (rescaling of ReLU units).
    """
    random = np.random.default_rng(seed)
    plans = {}
    for group in _groups(model, lambda group: group.scalable):
        scales = np.exp(random.uniform(-1, 1, group.size) * np.log(_LARGEST_SCALE))
        plans[group] = NewUnits(np.arange(group.size), scales, 1.0 / scales)
    return with_units(model, plans)


def turn_units(model: keras.Model, seed: int) -> keras.Model:
    """Changes the sign of units, where the functions after them are odd, and of the weights that take them in.

    Of an LSTM or GRU the sign of what its gates let pass.

    Args:
        model: The model; it is left as it is.
        seed: Of the choice of units, one of two on average.

    Returns:
        A functional model that computes the same.

    Raises:
        ValueError: As `units.unit_groups`; also if no layer's units can change their sign.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> x = np.ones((1, 4))
    >>> bool(np.allclose(model(x), turn_units(model, seed=0)(x), atol=1e-5))
    True

    Source: Hecht-Nielsen, "On the algebraic structure of feedforward network weight spaces", 1990.
    """
    random = np.random.default_rng(seed)
    plans = {}
    for group in _groups(model, lambda group: group.odd):
        signs = random.choice([-1.0, 1.0], group.size)
        plans[group] = NewUnits(np.arange(group.size), signs, signs)
    return with_units(model, plans)


def split_units(model: keras.Model, seed: int, fraction: float = 0.1) -> keras.Model:
    """Replaces units by two that do the same, whose shares in what comes after differ.

    Args:
        model: The model; it is left as it is.
        seed: Of the choice of units and of the shares.
        fraction: Of each layer's units, above 0, at most 1; one at least.

    Returns:
        A functional model, wider, that computes the same.

    Raises:
        ValueError: As `units.unit_groups`; also if the model has no units, or `fraction` is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> split_units(model, seed=0, fraction=0.5).layers[1].units
    12

    Source: Chen, Goodfellow, Shlens, "Net2Net", ICLR 2016, section 2.3, with unequal shares.
    """
    return _doubled(model, seed, fraction, lambda random, num: random.uniform(0.1, 0.9, num))


def clone_units(model: keras.Model, seed: int, fraction: float = 0.1) -> keras.Model:
    """Doubles units and halves their weight in what comes after.

    Args:
        model: The model; it is left as it is.
        seed: Of the choice of units.
        fraction: Of each layer's units, above 0, at most 1; one at least.

    Returns:
        A functional model, wider, that computes the same.

    Raises:
        ValueError: As `split_units`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> clone_units(model, seed=0).layers[1].units
    9

    Source: Chen, Goodfellow, Shlens, "Net2Net", ICLR 2016, section 2.3.
    """
    return _doubled(model, seed, fraction, lambda random, num: np.full(num, 0.5))


def add_idle_units(
    model: keras.Model, seed: int, fraction: float = 0.1, layers: Collection[str] | None = None
) -> keras.Model:
    """Adds units with random weights that nothing takes in.

    Args:
        model: The model; it is left as it is.
        seed: Of their weights.
        fraction: As many as this share of each layer's units, above 0; one at least.
        layers: Names of the layers that get them, with all whose units are one with theirs; every layer by default.

    Returns:
        A functional model, wider, that computes the same.

    Raises:
        ValueError: As `split_units`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> add_idle_units(model, seed=0, fraction=1.0).layers[1].units
    16

    Source: Yan, Pan, Zhang, Yang, "Rethinking white-box watermarks on deep learning models under neural structural obfuscation", USENIX
    Security 2023 (zero-out dummy neurons).
    """

    def plan(group: UnitGroup, num: int) -> NewUnits:
        sources = np.concatenate([np.arange(group.size), -1 - np.arange(num)])
        return NewUnits(sources, shares=np.concatenate([np.ones(group.size), np.zeros(num)]))

    return _widened(model, seed, fraction, plan, layers)


def add_cancelling_units(model: keras.Model, seed: int, fraction: float = 0.1) -> keras.Model:
    """Adds pairs of equal units with random weights that are taken in with opposite signs.

    Args:
        model: The model; it is left as it is.
        seed: Of their weights.
        fraction: As many pairs as this share of each layer's units, above 0; one at least.

    Returns:
        A functional model, wider, that computes the same.

    Raises:
        ValueError: As `split_units`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])
    >>> add_cancelling_units(model, seed=0).layers[1].units
    10

    Source: Yan et al., USENIX Security 2023 (cliques of dummy neurons).
    """

    def plan(group: UnitGroup, num: int) -> NewUnits:
        pairs = np.repeat(-1 - np.arange(num), 2)
        shares = np.concatenate([np.ones(group.size), np.tile([1.0, -1.0], num)])
        return NewUnits(np.concatenate([np.arange(group.size), pairs]), shares=shares)

    return _widened(model, seed, fraction, plan)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Takes BatchNorm layers into the Dense layers and convolutions that they follow directly.

    Args:
        model: The model; it is left as it is.

    Returns:
        A functional model with fewer layers that computes the same at inference.

    Raises:
        ValueError: If no BatchNorm layer follows a Dense layer or a convolution without activation whose output goes nowhere else.

    Example:

    >>> layers = [keras.layers.Dense(8, use_bias=False), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    >>> [type(layer).__name__ for layer in fold_batch_norm(keras.Sequential([keras.Input((4,)), *layers])).layers]
    ['InputLayer', 'Dense', 'Dense']

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018,
    section 3.2.
    """
    functional = as_functional(model)
    graph = Graph.of(functional)
    takers = collections.Counter(name for calls in graph.calls.values() for call in calls for name in call)
    takers.update(graph.outputs)
    foldable: dict[str, str] = {}
    for norm, calls in graph.calls.items():
        maker = calls[0][0]
        once = len(calls) == len(graph.calls.get(maker, ())) == takers[maker] == 1
        if once and _is_folded_by(functional.get_layer(norm), functional.get_layer(maker)):
            foldable[norm] = maker
    if not foldable:
        raise ValueError(
            "No BatchNorm can be folded. Expected one that follows a Dense layer or a convolution without activation, whose output goes "
            f"nowhere else. Received: {model.name}"
        )

    def with_bias(layer: Any) -> Any:
        bias = {"use_bias": True} if layer.name in foldable.values() else {}
        return type(layer).from_config(layer.get_config() | bias)

    def without_norm(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in foldable else layer(*args, **kwargs)

    folded = rebuilt(functional, with_bias, without_norm)
    norms = {maker: functional.get_layer(name) for name, maker in foldable.items()}
    for layer in folded.layers:
        values = functional.get_layer(layer.name).get_weights()
        if layer.name in norms:
            values = _folded(values, norms[layer.name])
        layer.set_weights(values)
    return folded


def rename_layers(model: keras.Model, seed: int) -> keras.Model:
    """Gives every layer, and the model, a name that says nothing.

    Args:
        model: The model; it is left as it is.
        seed: Of the names.

    Returns:
        A functional model that computes the same.

    Raises:
        ValueError: If the model is subclassed.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="secret_layer"), keras.layers.Dense(2)])
    >>> [layer.name for layer in rename_layers(model, seed=0).layers if layer.name == "secret_layer"]
    []

    Source: Ours. Whoever looks for a layer by its name finds none.
    """
    functional = as_functional(model)
    random = np.random.default_rng(seed)
    numbers = random.choice(10**6, len(functional.operations) + 1, replace=False)
    names = {each.name: f"layer_{number}" for each, number in zip(functional.operations, numbers, strict=False)}
    copy = rebuilt(
        functional,
        lambda layer: type(layer).from_config(layer.get_config() | {"name": names[layer.name]}),
        name_of=names.__getitem__,
    )
    renamed = keras.Model(copy.input, copy.output, name=f"model_{numbers[-1]}")
    for layer in functional.layers:
        renamed.get_layer(names[layer.name]).set_weights(layer.get_weights())
    return renamed


def _groups(model: keras.Model, which: Callable[[UnitGroup], bool] = lambda group: True) -> list[UnitGroup]:
    found = [group for group in unit_groups(model) if which(group)]
    if not found:
        raise ValueError(
            "This model has no units that can be changed in this way. Expected hidden layers, of the names asked for; for rescaling, with "
            "ReLU or no activation; for other signs, with tanh or none. "
            f"Received: {model.name}"
        )
    return found


def _widened(
    model: keras.Model,
    seed: int,
    fraction: float,
    plan: Callable[[UnitGroup, int], NewUnits],
    layers: Collection[str] | None = None,
) -> keras.Model:
    if not fraction > 0.0:
        raise ValueError(
            f"Invalid value for argument `fraction`. Expected a number above 0. Received: fraction={fraction!r}"
        )
    groups = _groups(model, lambda group: layers is None or bool(set(layers) & set(group.layers)))
    plans = {group: plan(group, max(1, round(fraction * group.size))) for group in groups}
    return with_units(model, plans, seed)


def _doubled(
    model: keras.Model,
    seed: int,
    fraction: float,
    draw_shares: Callable[[np.random.Generator, int], np.ndarray],
) -> keras.Model:
    if not fraction <= 1.0:
        raise ValueError(
            f"Invalid value for argument `fraction`. Expected a number above 0, at most 1. Received: fraction={fraction!r}"
        )
    random = np.random.default_rng(seed)

    def plan(group: UnitGroup, num: int) -> NewUnits:
        chosen = random.choice(group.size, num, replace=False)
        shares = np.concatenate([np.ones(group.size), draw_shares(random, num)])
        shares[chosen] -= shares[group.size :]
        return NewUnits(np.concatenate([np.arange(group.size), chosen]), shares=shares)

    return _widened(model, seed, fraction, plan)


def _is_folded_by(norm: Any, maker: Any) -> bool:
    """Whether one normalizes the units of the other, a linear layer."""
    if type(maker) not in WITH_KERNEL or maker.activation is not keras.activations.linear:
        return False
    if type(norm) is not keras.layers.BatchNormalization or getattr(maker, "data_format", None) == "channels_first":
        return False
    return norm.axis in (-1, len(maker.output.shape) - 1)


def _folded(values: list[np.ndarray], norm: Any) -> list[np.ndarray]:
    """Kernel and bias with a BatchNorm in them, in double precision on the way."""
    mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(each), np.float64) for each in (norm.moving_mean, norm.moving_variance)
    )
    gamma = np.asarray(keras.ops.convert_to_numpy(norm.gamma), np.float64) if norm.scale else 1.0
    beta = np.asarray(keras.ops.convert_to_numpy(norm.beta), np.float64) if norm.center else 0.0
    factor = gamma / np.sqrt(variance + norm.epsilon)
    kernel, bias = values if len(values) == 2 else (values[0], 0.0)
    return [(kernel * factor).astype(kernel.dtype), ((bias - mean) * factor + beta).astype(kernel.dtype)]
