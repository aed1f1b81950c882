"""Layers divided into several narrower ones, which compute the same side by side."""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from deepsigns_tf.attacks.graphs import as_functional, rebuilt
from deepsigns_tf.attacks.units import WITH_KERNEL, Axis, Trace, UnitGroup, unit_groups

# All others change or pass on one unit at a time, or have one kernel.
_OF_MANY_UNITS = (
    keras.layers.Bidirectional,
    keras.layers.Concatenate,
    keras.layers.GRU,
    keras.layers.LSTM,
    keras.layers.SimpleRNN,
)


def divide_layers(
    model: keras.Model, seed: int, num_parts: int = 4, layers: Collection[str] | None = None
) -> keras.Model:
    """Divides layers into narrower ones, among which their units are dealt out.

    What follows each unit by itself is divided with them; a layer that takes them in becomes a sum of as many, without one output
    being wider than a part. The network has as many weights as before.

    Args:
        model: The model; it is left as it is.
        seed: Of who goes where.
        num_parts: How many each layer becomes, >= 2; at most as many as it has units.
        layers: Names of Dense layers and convolutions to be divided, with all whose units are one with theirs; all that can be by
            default.

    Returns:
        A functional model that computes the same.

    Raises:
        ValueError: As `units.unit_groups`; also if no such layer is between Dense layers and convolutions alone, or `num_parts` is out of
            range.

    Example:

    >>> dense = keras.layers.Dense(8, "relu", name="hidden")
    >>> model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2, name="logits")])
    >>> divided = divide_layers(model, seed=0)
    >>> [layer.units for layer in divided.layers if layer.name.startswith("hidden")]
    [2, 2, 2, 2]
    >>> x = np.ones((1, 4))
    >>> bool(np.allclose(model(x), divided(x), atol=1e-5))
    True

    Source: Ours. A mark is read in layers that are wide enough for its bits; none is left.
    """
    functional = as_functional(model)
    trace = Trace()
    rebuilt(functional, call=trace.call)
    kinds = {layer.name: type(layer) for layer in functional.layers}
    groups = [
        group
        for group in unit_groups(functional)
        if (layers is None or set(layers) & set(group.layers)) and _can_be_divided(group, trace, kinds)
    ]
    if not groups:
        raise ValueError(
            "This model has no layers that can be divided. Expected Dense layers and convolutions of the names asked for, whose units are "
            f"taken in by such layers alone. Received: {model.name}"
        )
    if not 2 <= num_parts <= min(group.size for group in groups):
        raise ValueError(
            f"Invalid value for argument `num_parts`. Expected a number from 2 to {min(group.size for group in groups)}, the units of the "
            f"narrowest layer. Received: num_parts={num_parts!r}"
        )
    random = np.random.default_rng(seed)
    dealt = {maker: units for group in groups for maker, units in _dealt(group, num_parts, random).items()}
    division = _Division(trace, dealt)
    divided = rebuilt(functional, call=division.call)
    for layer in functional.layers:
        for name, values in division.weights_of(layer).items():
            divided.get_layer(name).set_weights(values)
    return divided


def _dealt(group: UnitGroup, num_parts: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Maker -> `(size,)` the part that each of its units goes to, the same for all makers of a group."""
    part_of = random.permutation(np.arange(group.size) % num_parts)
    return dict.fromkeys(group.layers, part_of)


def _can_be_divided(group: UnitGroup, trace: Trace, kinds: dict[str, Any]) -> bool:
    """Whether its units are made and taken in by layers of one kernel, and meet no others on their way."""
    if not all(kinds.get(maker) in WITH_KERNEL for maker in group.layers):
        return False
    numbers = {trace.makers.index(maker) for maker in group.layers}
    for name, axes in trace.inputs.items():
        inside = [np.isin(axis.groups, list(numbers)) for axis in axes]
        if any(each.any() for each in inside):
            alone = all(each.all() for each in inside)
            if not alone or kinds.get(name) in _OF_MANY_UNITS:
                return False
    return True


class _Division:
    """A graph whose layers are called part by part, as `clone_model` calls them one after the other."""

    def __init__(self, trace: Trace, dealt: dict[str, np.ndarray]) -> None:
        self._trace = trace
        self._dealt = dealt
        # Tensors are kept, so that no other gets the identity of one that is gone.
        self._parts: dict[int, tuple[Any, list[Any]]] = {}

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a layer, or its parts with the parts of what it takes in."""
        taken = self._num_taken(layer.name)
        made = self._num_made(layer.name)
        if taken == made == 1:
            return layer(*args, **kwargs)
        given = [
            keras.tree.map_structure(lambda each, part=part: self._part(each, part), args) for part in range(taken)
        ]
        if type(layer) not in WITH_KERNEL:
            outputs = [
                type(layer).from_config(layer.get_config() | {"name": _name(layer.name, part)})(*each, **kwargs)
                for part, each in enumerate(given)
            ]
        else:
            outputs = [self._summed(layer, part, given) for part in range(made)]
        if len(outputs) > 1:
            self._parts[id(outputs[0])] = outputs[0], outputs
        return outputs[0]

    def weights_of(self, layer: Any) -> dict[str, list[np.ndarray]]:
        """Name -> weights, of a layer or of its parts."""
        values = layer.get_weights()
        taken, made = self._num_taken(layer.name), self._num_made(layer.name)
        if not values:
            return {}
        if taken == made == 1:
            return {layer.name: values}
        if type(layer) not in WITH_KERNEL:
            return {
                _name(layer.name, part): [value[self._rows(layer.name, part)] for value in values]
                for part in range(taken)
            }
        kernel, *bias = values
        found = {}
        for to in range(made):
            columns = self._columns(layer.name, to, kernel.shape[-1])
            for part in range(taken):
                rows = self._rows(layer.name, part) if taken > 1 else np.arange(kernel.shape[-2])
                ours = [each[columns] for each in bias] if part == 0 else []
                found[_name(layer.name, to, part)] = [kernel[..., rows, :][..., columns], *ours]
        return found

    def _summed(self, layer: Any, to: int, given: list[Any]) -> Any:
        """What comes out of one part of a layer of one kernel: a sum over the parts of what goes in, and its function."""
        config = layer.get_config()
        width = "units" if isinstance(layer, keras.layers.Dense) else "filters"
        num_units = len(self._columns(layer.name, to, config[width]))
        sums = []
        for part, each in enumerate(given):
            changes = {"name": _name(layer.name, to, part), width: num_units}
            changes |= {"activation": "linear"} if len(given) > 1 else {}
            changes |= {"use_bias": config["use_bias"] and part == 0}
            sums.append(type(layer).from_config(config | changes)(*each))
        if len(sums) == 1:
            return sums[0]
        return keras.layers.Activation(layer.activation)(keras.layers.Add()(sums))

    def _part(self, tensor: Any, part: int) -> Any:
        return self._parts[id(tensor)][1][part] if id(tensor) in self._parts else tensor

    def _num_made(self, name: str) -> int:
        """How many parts a layer's output has."""
        if name in self._dealt:
            return int(self._dealt[name].max()) + 1
        return 1 if name in self._trace.makers else self._num_taken(name)

    def _num_taken(self, name: str) -> int:
        """How many parts a layer's inputs have."""
        axes = self._trace.inputs.get(name, [])
        return max((self._num_made(self._maker(axis)) for axis in axes if self._maker(axis)), default=1)

    def _maker(self, axis: Axis) -> str:
        """The first layer that made these units; empty for a model's inputs."""
        return self._trace.makers[axis.groups[0]] if len(axis.groups) and axis.groups[0] >= 0 else ""

    def _rows(self, name: str, part: int) -> np.ndarray:
        """Entries of what a layer takes in that belong to a part."""
        axis = self._trace.inputs[name][0]
        return np.flatnonzero(self._dealt[self._maker(axis)][axis.units] == part)

    def _columns(self, name: str, part: int, num_units: int) -> np.ndarray:
        """Units that go to a part of a layer."""
        return np.flatnonzero(self._dealt[name] == part) if name in self._dealt else np.arange(num_units)


def _name(layer: str, *parts: int) -> str:
    return "_".join([layer, "part", *map(str, parts)])
