"""A network's units followed through its graph, and networks rebuilt with other units that compute the same.

A unit is a neuron of a Dense layer, a channel of a convolution, a state of a recurrent layer, a column of an embedding. Some
layers make units, others pass them on, others take them in; a residual sum makes the units of two layers one. Whoever reorders,
rescales, splits or adds units must change all of these together, wherever they lie in the graph.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

_PASSING = (
    keras.layers.AlphaDropout,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_MERGING = (keras.layers.Add, keras.layers.Average, keras.layers.Maximum, keras.layers.Subtract)
# Layers of one kernel, whose last axis is that of their units.
WITH_KERNEL = (keras.layers.Dense, *_CONVOLUTIONS)
# Weights whose axes are known; a layer with others (LoRA, quantization) cannot be treated.
_KNOWN_WEIGHTS = {"kernel", "embeddings", "recurrent_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"}
_RECURRENT = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
# Positively homogeneous: f(s x) = s f(x) for s > 0.
_HOMOGENEOUS = {"linear", "relu", "leaky_relu"}
# Other functions of each unit by itself.
_ELEMENTWISE = {
    *("elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "log_sigmoid", "mish", "relu6", "selu"),
    *("sigmoid", "silu", "softplus", "softsign", "tanh"),
}


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Units that belong together: those of one layer, or of several whose outputs are added.

    Args:
        layers: Names of the layers that make them, `name/forward` and `name/backward` for the halves of a `Bidirectional`.
        size: How many units each of these layers has.
        scalable: Whether every function between making and taking them in is positively homogeneous.
    """

    layers: tuple[str, ...]
    size: int
    scalable: bool


@dataclasses.dataclass(frozen=True, eq=False)
class NewUnits:
    """The units that take the place of a group's.

    Args:
        sources: `(m,)` integers: the old unit that each new one does what it did, or -1 - j for the j-th new one, whose
            weights are random.
        scales: `(m,)` positive numbers that a unit's output is multiplied with; 1 by default.
        shares: `(m,)` numbers that the weights which take a unit in are multiplied with; 1 by default. Where those of an old
            unit's successors, times their scales, sum to 1, and those of a new one's to 0, the network computes the same.
    """

    sources: np.ndarray
    scales: np.ndarray | None = None
    shares: np.ndarray | None = None

    @property
    def size(self) -> int:
        """m."""
        return len(self.sources)


def unit_groups(model: keras.Model) -> list[UnitGroup]:
    """The groups of units that may be changed: all but those that the model puts out.

    Args:
        model: A functional or sequential model.

    Returns:
        The groups, in the order of the graph.

    Raises:
        ValueError: If the model is subclassed, or a layer is of a kind that cannot be treated; it is named.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)])
    >>> unit_groups(model)
    [UnitGroup(layers=('hidden',), size=8, scalable=True)]
    """
    trace = _Trace()
    copy = rebuilt(as_functional(model), call=trace.call)
    return trace.groups(copy.outputs)


def with_units(model: keras.Model, new_units: Mapping[UnitGroup, NewUnits], seed: int = 0) -> keras.Model:
    """Rebuilds a model with other units.

    Args:
        model: A functional or sequential model; it is left as it is.
        new_units: What takes the place of which group, of `unit_groups(model)`; other groups stay.
        seed: Of the random weights of new units, normal with the standard deviation of the layer's own.

    Returns:
        A functional model.

    Raises:
        ValueError: As `unit_groups`; also if units are to be scaled that are not scalable.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])
    >>> (group,) = unit_groups(model)
    >>> reordered = with_units(model, {group: NewUnits(np.array([2, 0, 1]))})
    >>> x = np.ones((1, 4))
    >>> bool(np.allclose(model(x), reordered(x), atol=1e-6))
    True
    """
    for group, units in new_units.items():
        if units.scales is not None and not group.scalable:
            raise ValueError(
                "These units cannot be rescaled. Expected a group with positively homogeneous functions. "
                f"Received: scales for {group}"
            )
    functional = as_functional(model)
    before = _Trace()
    rebuilt(functional, call=before.call)
    plans = {layer: units for group, units in new_units.items() for layer in group.layers}
    after = _Trace()
    copy = rebuilt(functional, lambda layer: _resized(layer, plans), after.call)
    weights = _Weights(before, after, plans, seed)
    for layer in functional.layers:
        values = weights.of(layer)
        if values:
            copy.get_layer(layer.name).set_weights(values)
    return copy


def as_functional(model: keras.Model) -> keras.Model:
    """A model whose graph is known.

    Args:
        model: A functional or sequential model.

    Returns:
        The functional model of the same layers; itself if it is one.

    Raises:
        ValueError: If the model is subclassed.
    """
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not hasattr(model, "operations"):
        raise ValueError(
            "The graph of this model is not known. Expected a functional or sequential model. "
            f"Received: a {type(model).__name__}"
        )
    return model


def rebuilt(
    functional: keras.Model,
    copy: Callable[[Any], Any] = lambda layer: type(layer).from_config(layer.get_config()),
    call: Callable[..., Any] = lambda layer, *args, **kwargs: layer(*args, **kwargs),
    name_of: Callable[[str], str] = lambda name: name,
) -> keras.Model:
    """Builds a functional model again, with fresh weights.

    Args:
        functional: The model.
        copy: From each layer, or operation of `keras.ops`, to the one that takes its place.
        call: Calls the new layers, in the order of the graph.
        name_of: From the names of input layers to new ones.
    """
    inputs = {
        id(layer.output): keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype, name=name_of(layer.name))
        for layer in functional.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    tensors = keras.tree.map_structure(lambda each: inputs[id(each)], functional.input)
    return keras.models.clone_model(functional, tensors, clone_function=copy, call_function=call)


def _resized(layer: keras.Layer, plans: Mapping[str, NewUnits]) -> keras.Layer:
    """A layer of the same kind that makes as many units as its plan says."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.Bidirectional):
        for name in ("forward", "backward"):
            part = config.get("layer" if name == "forward" else "backward_layer")
            if part:
                # Of the old width.
                part.pop("build_config", None)
            if part and f"{layer.name}/{name}" in plans:
                part["config"]["units"] = plans[f"{layer.name}/{name}"].size
    elif layer.name in plans:
        name = "filters" if isinstance(layer, _CONVOLUTIONS) else "units"
        config["output_dim" if isinstance(layer, keras.layers.Embedding) else name] = plans[layer.name].size
    return type(layer).from_config(config)


@dataclasses.dataclass(frozen=True, eq=False)
class _Axis:
    """Which unit each entry of a tensor's last axis belongs to.

    Args:
        groups: `(c,)` number of the layer that made the unit; -1 where no layer did: the model's inputs.
        units: `(c,)` number of the unit among those of its layer.
        slots: `(c,)` tells several entries of one unit apart: the pixels of a map that was flattened.
    """

    groups: np.ndarray
    units: np.ndarray
    slots: np.ndarray

    @classmethod
    def made(cls, group: int, size: int) -> "_Axis":
        """Units that a layer has just made."""
        return cls(np.full(size, group), np.arange(size), np.zeros(size, np.int64))

    @classmethod
    def joined(cls, axes: Iterable["_Axis"]) -> "_Axis":
        """Several axes one after the other; a unit may stand in more than one."""
        parts, slots, offset = list(axes), [], 0
        for each in parts:
            slots.append(each.slots + offset)
            offset += each.slots.max(initial=0) + 1
        groups, units = (np.concatenate([getattr(each, name) for each in parts]) for name in ("groups", "units"))
        return cls(groups, units, np.concatenate(slots))

    def flattened(self, num_pixels: int) -> "_Axis":
        """The axis of maps whose pixels were put side by side."""
        pixels = np.repeat(np.arange(num_pixels), len(self.units))
        slots = pixels * (self.slots.max(initial=0) + 1) + np.tile(self.slots, num_pixels)
        return _Axis(np.tile(self.groups, num_pixels), np.tile(self.units, num_pixels), slots)


class _Trace:
    """Follows units through a graph, as `clone_model` calls its layers one after the other."""

    def __init__(self) -> None:
        self.makers: list[str] = []
        self.inputs: dict[str, list[_Axis]] = {}
        self._sizes: list[int] = []
        self._parents: list[int] = []
        self._unscalable: set[int] = set()
        self._untreated: dict[int, str] = {}
        # Tensors are kept, so that no other gets the identity of one that is gone.
        self._axes: dict[int, tuple[Any, _Axis]] = {}

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a layer, and notes which units go in and come out."""
        outputs = layer(*args, **kwargs)
        given = args, {name: value for name, value in kwargs.items() if name != "mask"}
        tensors = [each for each in keras.tree.flatten(given) if isinstance(each, keras.KerasTensor)]
        results = keras.tree.flatten(outputs)
        axes = [self.axis_of(each) for each in tensors]
        if layer.name in self.inputs:
            raise _cannot(layer, "it is called more than once")
        self.inputs[layer.name] = axes
        if len(results) != 1:
            raise _cannot(layer, f"it has {len(results)} outputs")
        if len(tensors) != 1 and type(layer) not in (*_MERGING, keras.layers.Concatenate):
            raise _cannot(layer, f"it takes in {len(tensors)} tensors")
        self._axes[id(results[0])] = results[0], self._axis_after(layer, axes, tensors, results[0])
        return outputs

    def axis_of(self, tensor: keras.KerasTensor) -> _Axis:
        """The units of a tensor; an input's are nobody's."""
        if id(tensor) in self._axes:
            return self._axes[id(tensor)][1]
        return _Axis.made(-1, tensor.shape[-1] or 0)

    def root(self, group: int) -> int:
        """The first of the layers whose units are one with this one's."""
        while group >= 0 and self._parents[group] != group:
            group = self._parents[group]
        return group

    def groups(self, outputs: Iterable[keras.KerasTensor]) -> list[UnitGroup]:
        """The groups that may be changed, of a model with these outputs."""
        fixed = {self.root(group) for each in outputs for group in self.axis_of(each).groups} | {self.root(-1)}
        roots = [self.root(group) for group in range(len(self.makers))]
        for group, why in self._untreated.items():
            if roots[group] not in fixed:
                raise ValueError(why)
        unscalable = {self.root(group) for group in self._unscalable}
        return [
            UnitGroup(
                tuple(name for name, other in zip(self.makers, roots, strict=True) if other == root),
                self._sizes[root],
                root not in unscalable,
            )
            for root in dict.fromkeys(roots)
            if root not in fixed
        ]

    def _axis_after(self, layer: Any, axes: list[_Axis], tensors: list[Any], result: Any) -> _Axis:
        # Kinds are compared exactly: what a subclass does is its own affair.
        kind, weights = type(layer), {weight.name for weight in getattr(layer, "weights", ())}
        if not weights <= _KNOWN_WEIGHTS and kind is not keras.layers.Normalization:
            raise _cannot(layer, f"it has weights of unknown use, {sorted(weights - _KNOWN_WEIGHTS)}")
        if kind in (*WITH_KERNEL, keras.layers.Embedding):
            return self._made(layer)
        if kind in _RECURRENT:
            return self._made_recurrently(layer, layer.name, layer.units)
        if kind is keras.layers.Bidirectional and type(layer.forward_layer) in _RECURRENT:
            halves = [
                self._made_recurrently(layer, f"{layer.name}/{name}", part.units)
                for name, part in (("forward", layer.forward_layer), ("backward", layer.backward_layer))
            ]
            if layer.merge_mode == "concat":
                return _Axis.joined(halves)
            return self._merged(layer, halves)
        raw = all((axis.groups < 0).all() for axis in axes)
        if raw and (not weights or kind in (keras.layers.BatchNormalization, keras.layers.Normalization)):
            # Nothing but the model's inputs came in, and nothing but they comes out.
            return _Axis.made(-1, result.shape[-1] or 0)
        if getattr(layer, "data_format", None) == "channels_first":
            raise _cannot(layer, "its channels do not come last")
        if kind is keras.layers.BatchNormalization:
            if layer.axis not in (-1, len(result.shape) - 1):
                raise _cannot(layer, "it does not normalize the last axis")
            return axes[0] if layer.scale else self._through(axes[0], homogeneous=False)
        if kind is keras.layers.Flatten:
            return axes[0].flattened(int(np.prod(tensors[0].shape[1:-1], dtype=np.int64)))
        if kind in (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU):
            return self._activated(layer, axes[0])
        if kind in _PASSING:
            return axes[0]
        if kind in _MERGING:
            return self._merged(layer, axes)
        if kind is keras.layers.Concatenate:
            if layer.axis in (-1, len(result.shape) - 1):
                return _Axis.joined(axes)
            return self._merged(layer, axes)
        raise _cannot(layer, "what it does with its units is not known")

    def _made(self, layer: Any) -> _Axis:
        if isinstance(layer, keras.layers.Embedding):
            return self._new(layer.name, layer.output_dim)
        if isinstance(layer, keras.layers.Dense):
            axis = self._new(layer.name, layer.units)
        elif layer.groups == 1 and layer.data_format == "channels_last":
            axis = self._new(layer.name, layer.filters)
        else:
            raise _cannot(layer, "it convolves in groups, or its channels do not come last")
        return self._activated(layer, axis)

    def _made_recurrently(self, layer: Any, name: str, size: int) -> _Axis:
        return self._through(self._new(name, size), homogeneous=False)

    def _new(self, name: str, size: int) -> _Axis:
        group = len(self.makers)
        self.makers.append(name)
        self._sizes.append(size)
        self._parents.append(group)
        return _Axis.made(group, size)

    def _activated(self, layer: Any, axis: _Axis) -> _Axis:
        if isinstance(layer, keras.layers.ReLU):
            return self._through(axis, homogeneous=layer.max_value is None and not layer.threshold)
        if isinstance(layer, keras.layers.LeakyReLU):
            return axis
        function = layer.activation
        name = getattr(function, "__name__", type(function).__name__)
        if function is not keras.activations.get(name if name in _HOMOGENEOUS | _ELEMENTWISE else None):
            # Of a layer that the model puts out, it may be anything.
            for group in set(np.unique(axis.groups).tolist()) - {-1}:
                self._untreated[int(group)] = str(_cannot(layer, f"its activation is {name}"))
        return self._through(axis, homogeneous=name in _HOMOGENEOUS)

    def _through(self, axis: _Axis, homogeneous: bool) -> _Axis:
        if not homogeneous:
            self._unscalable |= set(np.unique(axis.groups).tolist()) - {-1}
        return axis

    def _merged(self, layer: Any, axes: list[_Axis]) -> _Axis:
        """Entries that are added belong to the same unit from now on."""
        first, *others = axes
        for other in others:
            if not (np.array_equal(first.units, other.units) and np.array_equal(first.slots, other.slots)):
                raise _cannot(layer, "its inputs have different units")
            for one, two in sorted(set(zip(first.groups.tolist(), other.groups.tolist(), strict=True))):
                self._unite(layer, one, two)
        return first

    def _unite(self, layer: Any, one: int, two: int) -> None:
        one, two = self.root(one), self.root(two)
        if one == two:
            return
        if -1 in (one, two) or self._sizes[one] != self._sizes[two]:
            raise _cannot(layer, "it adds units to something else")
        self._parents[max(one, two)] = min(one, two)


class _Weights:
    """Weights of a network whose units are others now."""

    def __init__(self, before: _Trace, after: _Trace, plans: Mapping[str, NewUnits], seed: int) -> None:
        self._before = before
        self._after = after
        self._plans = plans
        self._seed = seed

    def of(self, layer: Any) -> list[np.ndarray]:
        """A layer's new weights, in its own order."""
        if isinstance(layer, keras.layers.Bidirectional):
            parts = (("forward", layer.forward_layer), ("backward", layer.backward_layer))
            return [value for name, part in parts for value in self._of(part, layer.name, f"{layer.name}/{name}")]
        return self._of(layer, layer.name, layer.name)

    def _of(self, layer: Any, node: str, maker: str) -> list[np.ndarray]:
        values: list[np.ndarray] = layer.get_weights()
        if not values:
            return values
        names = [weight.name for weight in layer.weights]
        if isinstance(layer, keras.layers.BatchNormalization):
            return self._normalized(dict(zip(names, values, strict=True)), node, layer.epsilon)
        num_blocks = {keras.layers.LSTM: 4, keras.layers.GRU: 3}.get(type(layer), 1)
        result = []
        for name, value in zip(names, values, strict=True):
            if name in ("kernel", "embeddings", "recurrent_kernel", "bias"):
                if name == "kernel":
                    axes = [trace.inputs[node][0] for trace in (self._before, self._after)]
                    value = self._taken_in(value, value.ndim - 2, axes, f"{maker} {name}")
                if name == "recurrent_kernel":
                    value = self._taken_in(value, 0, self._own(maker, value.shape[0]), f"{maker} {name}")
                value = self._made(value, maker, num_blocks, f"{maker} {name}")
            result.append(value)
        return result

    def _own(self, maker: str, size: int) -> list[_Axis]:
        group = self._before.makers.index(maker)
        return [_Axis.made(group, size), _Axis.made(group, self._plans[maker].size if maker in self._plans else size)]

    def _plan(self, group: int) -> NewUnits | None:
        return None if group < 0 else self._plans.get(self._before.makers[group])

    def _made(self, value: np.ndarray, maker: str, num_blocks: int, what: str) -> np.ndarray:
        """Along the axis of the units that a layer makes; those of several gates stand side by side."""
        plan = self._plans.get(maker)
        if plan is None:
            return value
        scales = np.ones(plan.size) if plan.scales is None else plan.scales
        blocks = []
        for number, block in enumerate(np.split(value, num_blocks, axis=-1)):
            columns = [
                scale * (block[..., source] if source >= 0 else self._drawn(block, what, -1 - source, number, -1))
                for source, scale in zip(plan.sources, scales, strict=True)
            ]
            blocks.append(np.stack(columns, axis=-1))
        return np.asarray(np.concatenate(blocks, axis=-1), value.dtype)

    def _taken_in(self, value: np.ndarray, axis: int, axes: list[_Axis], what: str) -> np.ndarray:
        """Along the axis of the units that a layer takes in."""
        rows = []
        for position, source, slot, plan, unit in self._sources(*axes):
            share = 1.0 if plan is None or plan.shares is None else plan.shares[unit]
            row = np.take(value, position, axis) if position >= 0 else self._drawn(value, what, -1 - source, slot, axis)
            rows.append(share * row)
        return np.asarray(np.stack(rows, axis), value.dtype)

    def _normalized(self, values: dict[str, np.ndarray], node: str, epsilon: float) -> list[np.ndarray]:
        """Of a BatchNorm layer. The variance is scaled so that it and epsilon keep their ratio, or `gamma` makes up for it."""
        result: dict[str, list[float]] = {name: [] for name in values}
        for position, source, slot, plan, unit in self._sources(
            self._before.inputs[node][0], self._after.inputs[node][0]
        ):
            if position < 0:
                entry = dict.fromkeys(values, 1.0) | {
                    name: float(self._drawn(values[name][:, None], f"{node} {name}", -1 - source, slot, 0)[0])
                    for name in ("beta", "moving_mean")
                    if name in values
                }
            else:
                entry = {name: float(value[position]) for name, value in values.items()}
                scale = 1.0 if plan is None or plan.scales is None else float(plan.scales[unit])
                if scale != 1.0:
                    spread = entry["moving_variance"] + epsilon
                    entry["moving_variance"] = max(scale**2 * spread - epsilon, 0.0)
                    entry["moving_mean"] *= scale
                    entry["gamma"] *= np.sqrt((entry["moving_variance"] + epsilon) / spread)
                    if "beta" in entry:
                        entry["beta"] *= scale
            for name, number in entry.items():
                result[name].append(number)
        return [np.asarray(result[name], value.dtype) for name, value in values.items()]

    def _sources(self, before: _Axis, after: _Axis) -> Iterable[tuple[int, int, int, NewUnits | None, int]]:
        """For each new entry of an axis: the old entry's position (-1 if none), source, slot, the group's plan, its number there."""
        entries = zip(before.groups.tolist(), before.units.tolist(), before.slots.tolist(), strict=True)
        positions = {entry: position for position, entry in enumerate(entries)}
        for group, unit, slot in zip(after.groups.tolist(), after.units.tolist(), after.slots.tolist(), strict=True):
            plan = self._plan(group)
            source = unit if plan is None else int(plan.sources[unit])
            yield positions[group, source, slot] if source >= 0 else -1, source, slot, plan, unit

    def _drawn(self, like: np.ndarray, what: str, number: int, slot: int, axis: int) -> np.ndarray:
        """Random weights of a unit that is new: the same for all that have its number."""
        random = np.random.default_rng([self._seed, zlib.crc32(what.encode()), number, slot])
        return random.normal(scale=float(like.std()) or 1.0, size=np.delete(like.shape, axis))


def _cannot(layer: Any, why: str) -> ValueError:
    return ValueError(
        "The units of this graph cannot be changed. Expected layers that make, pass on, add or take in units that come last. "
        f"Received: {layer.name}, a {type(layer).__name__}; {why}"
    )
