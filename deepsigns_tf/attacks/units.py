"""A network's units followed through its graph.

A unit is a neuron of a Dense layer, a channel of a convolution, a state of a recurrent layer, a column of an embedding. Some
layers make units, others pass them on, others take them in; a residual sum makes the units of two layers one.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from deepsigns_tf.attacks.graphs import as_functional, rebuilt

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
CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_MERGING = (keras.layers.Add, keras.layers.Average, keras.layers.Maximum, keras.layers.Subtract)
# Layers of one kernel, whose last axis is that of their units.
WITH_KERNEL = (keras.layers.Dense, *CONVOLUTIONS)
# Weights whose axes are known; a layer with others (LoRA, quantization) cannot be treated.
_KNOWN_WEIGHTS = {"kernel", "embeddings", "recurrent_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"}
_RECURRENT = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
# Positively homogeneous: f(s x) = s f(x) for s > 0.
_HOMOGENEOUS = {"linear", "relu", "leaky_relu"}
# Odd: f(-x) = -f(x).
_ODD = {"linear", "softsign", "tanh"}
# What passes on the largest of several values, which is not that of their opposites.
_TAKING_THE_LARGEST = (
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.Maximum,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
)
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
        odd: Whether every such function is odd, so that a unit may change its sign.
    """

    layers: tuple[str, ...]
    size: int
    scalable: bool
    odd: bool


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
    [UnitGroup(layers=('hidden',), size=8, scalable=True, odd=False)]
    """
    trace = Trace()
    copy = rebuilt(as_functional(model), call=trace.call)
    return trace.groups(copy.outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
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
    def made(cls, group: int, size: int) -> "Axis":
        """Units that a layer has just made."""
        return cls(np.full(size, group), np.arange(size), np.zeros(size, np.int64))

    @classmethod
    def joined(cls, axes: Iterable["Axis"]) -> "Axis":
        """Several axes one after the other; a unit may stand in more than one."""
        parts, slots, offset = list(axes), [], 0
        for each in parts:
            slots.append(each.slots + offset)
            offset += each.slots.max(initial=0) + 1
        groups, units = (np.concatenate([getattr(each, name) for each in parts]) for name in ("groups", "units"))
        return cls(groups, units, np.concatenate(slots))

    def flattened(self, num_pixels: int) -> "Axis":
        """The axis of maps whose pixels were put side by side."""
        pixels = np.repeat(np.arange(num_pixels), len(self.units))
        slots = pixels * (self.slots.max(initial=0) + 1) + np.tile(self.slots, num_pixels)
        return Axis(np.tile(self.groups, num_pixels), np.tile(self.units, num_pixels), slots)


class Trace:
    """Follows units through a graph, as `clone_model` calls its layers one after the other."""

    def __init__(self) -> None:
        self.makers: list[str] = []
        self.inputs: dict[str, list[Axis]] = {}
        self._sizes: list[int] = []
        self._parents: list[int] = []
        self._unscalable: set[int] = set()
        self._not_odd: set[int] = set()
        self._untreated: dict[int, str] = {}
        # Tensors are kept, so that no other gets the identity of one that is gone.
        self._axes: dict[int, tuple[Any, Axis]] = {}

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

    def axis_of(self, tensor: keras.KerasTensor) -> Axis:
        """The units of a tensor; an input's are nobody's."""
        if id(tensor) in self._axes:
            return self._axes[id(tensor)][1]
        return Axis.made(-1, tensor.shape[-1] or 0)

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
        unscalable, not_odd = ({self.root(group) for group in each} for each in (self._unscalable, self._not_odd))
        return [
            UnitGroup(
                tuple(name for name, other in zip(self.makers, roots, strict=True) if other == root),
                self._sizes[root],
                root not in unscalable,
                root not in not_odd,
            )
            for root in dict.fromkeys(roots)
            if root not in fixed
        ]

    def _axis_after(self, layer: Any, axes: list[Axis], tensors: list[Any], result: Any) -> Axis:
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
                return Axis.joined(halves)
            merged = self._merged(layer, halves)
            return self._through(merged, homogeneous=False, odd=layer.merge_mode != "mul")
        raw = all((axis.groups < 0).all() for axis in axes)
        if raw and (not weights or kind in (keras.layers.BatchNormalization, keras.layers.Normalization)):
            # Nothing but the model's inputs came in, and nothing but they comes out.
            return Axis.made(-1, result.shape[-1] or 0)
        if getattr(layer, "data_format", None) == "channels_first":
            raise _cannot(layer, "its channels do not come last")
        if kind is keras.layers.BatchNormalization:
            if layer.axis not in (-1, len(result.shape) - 1):
                raise _cannot(layer, "it does not normalize the last axis")
            return axes[0] if layer.scale else self._through(axes[0], homogeneous=False, odd=True)
        if kind is keras.layers.Flatten:
            return axes[0].flattened(int(np.prod(tensors[0].shape[1:-1], dtype=np.int64)))
        if kind in (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU):
            return self._activated(layer, axes[0])
        if kind in _TAKING_THE_LARGEST:
            axes = [self._through(axis, homogeneous=True, odd=False) for axis in axes]
        if kind in _PASSING:
            return axes[0]
        if kind in _MERGING:
            return self._merged(layer, axes)
        if kind is keras.layers.Concatenate:
            if layer.axis in (-1, len(result.shape) - 1):
                return Axis.joined(axes)
            return self._merged(layer, axes)
        raise _cannot(layer, "what it does with its units is not known")

    def _made(self, layer: Any) -> Axis:
        if isinstance(layer, keras.layers.Embedding):
            return self._new(layer.name, layer.output_dim)
        if isinstance(layer, keras.layers.Dense):
            axis = self._new(layer.name, layer.units)
        elif layer.groups == 1 and layer.data_format == "channels_last":
            axis = self._new(layer.name, layer.filters)
        else:
            raise _cannot(layer, "it convolves in groups, or its channels do not come last")
        return self._activated(layer, axis)

    def _made_recurrently(self, layer: Any, name: str, size: int) -> Axis:
        cell = getattr(layer, name.rpartition("/")[2] + "_layer", layer)
        function = getattr(cell.activation, "__name__", "")
        return self._through(self._new(name, size), homogeneous=False, odd=function in _ODD)

    def _new(self, name: str, size: int) -> Axis:
        group = len(self.makers)
        self.makers.append(name)
        self._sizes.append(size)
        self._parents.append(group)
        return Axis.made(group, size)

    def _activated(self, layer: Any, axis: Axis) -> Axis:
        if isinstance(layer, keras.layers.ReLU):
            return self._through(axis, homogeneous=layer.max_value is None and not layer.threshold, odd=False)
        if isinstance(layer, keras.layers.LeakyReLU):
            return self._through(axis, homogeneous=True, odd=False)
        function = layer.activation
        name = getattr(function, "__name__", type(function).__name__)
        if function is not keras.activations.get(name if name in _HOMOGENEOUS | _ELEMENTWISE else None):
            # Of a layer that the model puts out, it may be anything.
            for group in set(np.unique(axis.groups).tolist()) - {-1}:
                self._untreated[int(group)] = str(_cannot(layer, f"its activation is {name}"))
        return self._through(axis, homogeneous=name in _HOMOGENEOUS, odd=name in _ODD)

    def _through(self, axis: Axis, homogeneous: bool, odd: bool) -> Axis:
        groups = set(np.unique(axis.groups).tolist()) - {-1}
        self._unscalable |= set() if homogeneous else groups
        self._not_odd |= set() if odd else groups
        return axis

    def _merged(self, layer: Any, axes: list[Axis]) -> Axis:
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


def _cannot(layer: Any, why: str) -> ValueError:
    return ValueError(
        "The units of this graph cannot be changed. Expected layers that make, pass on, add or take in units that come last. "
        f"Received: {layer.name}, a {type(layer).__name__}; {why}"
    )
