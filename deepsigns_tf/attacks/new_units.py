"""Networks rebuilt with other units that compute the same.

Whoever reorders, rescales, splits or adds units must change all that make them and all that take them in, wherever these lie in
the graph.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from deepsigns_tf.attacks.graphs import as_functional, rebuilt
from deepsigns_tf.attacks.units import CONVOLUTIONS, Axis, Trace, UnitGroup

# How many gates stand side by side in a recurrent layer's weights, and which of them makes what goes out; the others only let it pass.
_GATES = {keras.layers.LSTM: (4, 2), keras.layers.GRU: (3, 2)}


@dataclasses.dataclass(frozen=True, eq=False)
class NewUnits:
    """The units that take the place of a group's.

    Args:
        sources: `(m,)` integers: the old unit that each new one does what it did, or -1 - j for the j-th new one, whose
            weights are random.
        scales: `(m,)` numbers that a unit's output is multiplied with, positive where the group is scalable, 1 or -1 where it is odd;
            1 by default.
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


def with_units(model: keras.Model, new_units: Mapping[UnitGroup, NewUnits], seed: int = 0) -> keras.Model:
    """Rebuilds a model with other units.

    Args:
        model: A functional or sequential model; it is left as it is.
        new_units: What takes the place of which group, of `unit_groups(model)`; other groups stay.
        seed: Of the random weights of new units, normal with the standard deviation of the layer's own.

    Returns:
        A functional model.

    Raises:
        ValueError: As `unit_groups`; also if units are to be scaled, or to change their sign, that cannot.

    Example:

    >>> from deepsigns_tf.attacks.units import unit_groups
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])
    >>> (group,) = unit_groups(model)
    >>> reordered = with_units(model, {group: NewUnits(np.array([2, 0, 1]))})
    >>> x = np.ones((1, 4))
    >>> bool(np.allclose(model(x), reordered(x), atol=1e-6))
    True
    """
    for group, units in new_units.items():
        if units.scales is None:
            continue
        if not (group.scalable or (np.abs(units.scales) == 1).all()) or not (group.odd or (units.scales > 0).all()):
            raise ValueError(
                "These units cannot be rescaled. Expected a group with positively homogeneous functions, or with odd ones for a change of "
                f"signs. Received: scales for {group}"
            )
    functional = as_functional(model)
    before = Trace()
    rebuilt(functional, call=before.call)
    plans = {layer: units for group, units in new_units.items() for layer in group.layers}
    after = Trace()
    copy = rebuilt(functional, lambda layer: _resized(layer, plans), after.call)
    weights = _Weights(before, after, plans, seed)
    for layer in functional.layers:
        values = weights.of(layer)
        if values:
            copy.get_layer(layer.name).set_weights(values)
    return copy


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
        name = "filters" if isinstance(layer, CONVOLUTIONS) else "units"
        config["output_dim" if isinstance(layer, keras.layers.Embedding) else name] = plans[layer.name].size
    return type(layer).from_config(config)


class _Weights:
    """Weights of a network whose units are others now."""

    def __init__(self, before: Trace, after: Trace, plans: Mapping[str, NewUnits], seed: int) -> None:
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
        gates = _GATES.get(type(layer), (1, 0))
        result = []
        for name, value in zip(names, values, strict=True):
            if name in ("kernel", "embeddings", "recurrent_kernel", "bias"):
                if name == "kernel":
                    axes = [trace.inputs[node][0] for trace in (self._before, self._after)]
                    value = self._taken_in(value, value.ndim - 2, axes, f"{maker} {name}")
                if name == "recurrent_kernel":
                    value = self._taken_in(value, 0, self._own(maker, value.shape[0]), f"{maker} {name}")
                value = self._made(value, maker, gates, f"{maker} {name}")
            result.append(value)
        return result

    def _own(self, maker: str, size: int) -> list[Axis]:
        group = self._before.makers.index(maker)
        return [Axis.made(group, size), Axis.made(group, self._plans[maker].size if maker in self._plans else size)]

    def _made(self, value: np.ndarray, maker: str, gates: tuple[int, int], what: str) -> np.ndarray:
        """Along the axis of the units that a layer makes; those of several gates stand side by side."""
        plan = self._plans.get(maker)
        if plan is None:
            return value
        scales = 1.0 if plan.scales is None else plan.scales
        blocks, (num_gates, candidate) = [], gates
        for number, block in enumerate(np.split(value, num_gates, axis=-1)):
            slots = np.full(plan.size, number)
            taken = self._taken(block, -1, np.maximum(plan.sources, -1), plan.sources, slots, what)
            blocks.append(scales * taken if number == candidate else taken)
        return np.asarray(np.concatenate(blocks, axis=-1), value.dtype)

    def _taken_in(self, value: np.ndarray, axis: int, axes: list[Axis], what: str) -> np.ndarray:
        """Along the axis of the units that a layer takes in."""
        entries = self._entries(*axes)
        rows = self._taken(value, axis, entries.positions, entries.sources, axes[1].slots, what)
        shares = np.expand_dims(entries.shares, tuple(range(1, value.ndim - axis)))
        return np.asarray(shares * rows, value.dtype)

    def _normalized(self, values: dict[str, np.ndarray], node: str, epsilon: float) -> list[np.ndarray]:
        """Of a BatchNorm layer. The variance is scaled so that it and epsilon keep their ratio, or `gamma` makes up for it."""
        axes = [trace.inputs[node][0] for trace in (self._before, self._after)]
        entries = self._entries(*axes)
        new, scales = entries.positions < 0, entries.scales
        found = {
            name: self._taken(value, 0, entries.positions, entries.sources, axes[1].slots, f"{node} {name}")
            for name, value in values.items()
        }
        for name in ("gamma", "moving_variance"):
            if name in found:
                found[name] = np.where(new, 1.0, found[name])
        spread = found["moving_variance"] + epsilon
        scaled = scales != 1.0
        found["moving_variance"] = np.where(
            scaled, np.maximum(scales**2 * spread - epsilon, 0.0), found["moving_variance"]
        )
        found["moving_mean"] = scales * found["moving_mean"]
        if "gamma" in found:
            found["gamma"] = (
                np.where(scaled, np.sqrt((found["moving_variance"] + epsilon) / spread), 1.0) * found["gamma"]
            )
        if "beta" in found:
            found["beta"] = scales * found["beta"]
        return [np.asarray(found[name], value.dtype) for name, value in values.items()]

    def _entries(self, before: Axis, after: Axis) -> "_Entries":
        """Where the entries of a new axis come from."""
        entries = zip(before.groups.tolist(), before.units.tolist(), before.slots.tolist(), strict=True)
        positions = {entry: position for position, entry in enumerate(entries)}
        sources, scales, shares = after.units.copy(), np.ones(len(after.units)), np.ones(len(after.units))
        for group in set(after.groups.tolist()) - {-1}:
            plan = self._plans.get(self._before.makers[group])
            if plan is not None:
                here = after.groups == group
                units = after.units[here]
                sources[here] = plan.sources[units]
                scales[here] = 1.0 if plan.scales is None else plan.scales[units]
                shares[here] = 1.0 if plan.shares is None else plan.shares[units]
        wanted = zip(after.groups.tolist(), sources.tolist(), after.slots.tolist(), strict=True)
        return _Entries(np.array([positions.get(entry, -1) for entry in wanted]), sources, scales, shares)

    def _taken(
        self, value: np.ndarray, axis: int, positions: np.ndarray, sources: np.ndarray, slots: np.ndarray, what: str
    ) -> np.ndarray:
        """Old entries of a weight, in double precision, and random ones of units that are new: the same for all that have one number."""
        taken = np.moveaxis(value.astype(np.float64).take(np.maximum(positions, 0), axis), axis, 0)
        std = float(value.std()) or 1.0
        for entry in np.flatnonzero(positions < 0):
            random = np.random.default_rng([self._seed, zlib.crc32(what.encode()), -1 - sources[entry], slots[entry]])
            taken[entry] = random.normal(scale=std, size=taken.shape[1:])
        return np.moveaxis(taken, 0, axis)


@dataclasses.dataclass(frozen=True, eq=False)
class _Entries:
    """Of an axis of the new network.

    Args:
        positions: `(c,)` of the old axis' entry that each comes from; -1 for a unit that is new.
        sources: `(c,)` as in `NewUnits`.
        scales: `(c,)` as in `NewUnits`.
        shares: `(c,)` as in `NewUnits`.
    """

    positions: np.ndarray
    sources: np.ndarray
    scales: np.ndarray
    shares: np.ndarray
