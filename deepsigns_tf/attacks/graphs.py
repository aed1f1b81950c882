"""A model's graph: its layers without nesting, which takes in what, and the same network built again."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from deepsigns_tf.keras_internals import Functional

# Policies that do not compute in single precision.
_HALF = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")


def as_functional(model: keras.Model) -> keras.Model:
    """A model whose graph is known, with no model inside another.

    Args:
        model: A functional or sequential model; others of these kinds may be nested in it.

    Returns:
        The functional model of the same layers, itself if it is one. Where models were nested, a copy in which the layers of
        `backbone` are called `backbone.hidden` and so on (`flat_name`).

    Raises:
        ValueError: If the model is subclassed.

    Example:

    >>> backbone = keras.Sequential([keras.layers.Dense(8, name="hidden")], name="backbone")
    >>> model = keras.Sequential([keras.Input((4,), name="pixels"), backbone, keras.layers.Dense(2, name="logits")])
    >>> [layer.name for layer in as_functional(model).layers]
    ['pixels', 'backbone.hidden', 'logits']
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not hasattr(model, "operations"):
        raise ValueError(
            "The graph of this model is not known. Expected a functional or sequential model. "
            f"Received: a {type(model).__name__}"
        )
    nested = {layer.name: as_functional(layer) for layer in model.layers if _is_graph(layer)}
    return _flat(model, nested) if nested else model


def in_float32(model: keras.Model) -> keras.Model:
    """The same network, computed in single precision throughout: what rounding to half precision adds is no part of an attack.

    Args:
        model: A functional or sequential model.

    Returns:
        The model itself if nothing in it computes in half precision, else a copy with the same weights.

    Raises:
        ValueError: If the model is subclassed.

    Example:

    >>> dense = keras.layers.Dense(2, dtype="mixed_bfloat16", name="logits")
    >>> in_float32(keras.Sequential([keras.Input((4,)), dense])).get_layer("logits").compute_dtype
    'float32'
    """
    functional = as_functional(model)
    configs = {layer.name: layer.get_config() for layer in functional.operations}
    single = {name: _in_single_precision(config) for name, config in configs.items()}
    if single == configs:
        return model
    copy = rebuilt(functional, lambda layer: type(layer).from_config(single[layer.name]))
    copy.set_weights(functional.get_weights())
    return copy


def flat_name(path: str) -> str:
    """What `as_functional` calls a layer.

    Args:
        path: Of the layer, as in `CarrierLayer.path`.

    Example:

    >>> flat_name("backbone/hidden")
    'backbone.hidden'
    """
    return path.replace("/", ".")


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

    Returns:
        The new model.
    """
    inputs = {
        id(layer.output): keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype, name=name_of(layer.name))
        for layer in functional.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    tensors = keras.tree.map_structure(lambda each: inputs[id(each)], functional.input)
    return keras.models.clone_model(functional, tensors, clone_function=copy, call_function=call)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Which layer takes in what.

    Args:
        calls: Name of a layer -> for each of its calls the names of the layers that it takes in, in the order of the graph. Input layers
            are called nowhere.
        outputs: Names of the layers that the model puts out.
    """

    calls: dict[str, list[tuple[str, ...]]]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, functional: keras.Model) -> "Graph":
        """The graph of a functional model.

        Args:
            functional: The model.

        Example:

        >>> model = keras.Sequential([keras.Input((4,), name="pixels"), keras.layers.Dense(2, name="logits")])
        >>> Graph.of(as_functional(model)).calls
        {'logits': [('pixels',)]}
        """
        calls: dict[str, list[tuple[str, ...]]] = {}
        # Tensors are kept, so that no other gets the identity of one that is gone.
        makers: dict[int, tuple[Any, str]] = {}

        def note(layer: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = layer(*args, **kwargs)
            calls.setdefault(layer.name, []).append(names(args, {k: v for k, v in kwargs.items() if k != "mask"}))
            makers.update({id(each): (each, layer.name) for each in keras.tree.flatten(outputs)})
            return outputs

        def names(*tensors: Any) -> tuple[str, ...]:
            given = [each for each in keras.tree.flatten(tensors) if isinstance(each, keras.KerasTensor)]
            # An input bears the name of its layer.
            return tuple(makers[id(each)][1] if id(each) in makers else each.name for each in given)

        copy = rebuilt(functional, call=note)
        return cls(calls, names(copy.outputs))

    def before(self, name: str) -> set[str]:
        """A layer and all that its outputs depend on.

        Args:
            name: Of the layer.
        """
        found: set[str] = set()
        waiting = [name]
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.add(each)
                waiting += [other for call in self.calls.get(each, ()) for other in call]
        return found


def _in_single_precision(config: Any) -> Any:
    if isinstance(config, (list, tuple)):
        return type(config)(_in_single_precision(each) for each in config)
    if not isinstance(config, dict):
        return config
    if str(config.get("class_name", "")).endswith("DTypePolicy"):
        return "float32" if config["config"]["name"] in _HALF else config
    return {
        name: "float32" if name == "dtype" and value in _HALF else _in_single_precision(value)
        for name, value in config.items()
    }


def _is_graph(layer: Any) -> bool:
    return isinstance(layer, (keras.Sequential, Functional))


def _flat(functional: keras.Model, nested: Mapping[str, keras.Model]) -> keras.Model:
    """A copy of a model in which the layers of nested ones are called themselves."""

    def copy(layer: Any) -> Any:
        if layer.name not in nested:
            return type(layer).from_config(layer.get_config())

        def prefixed(each: Any) -> Any:
            return type(each).from_config(each.get_config() | {"name": f"{layer.name}.{each.name}"})

        return rebuilt(nested[layer.name], prefixed)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        # A functional model that is called makes one node of itself; a function calls its layers.
        return keras.Function(layer.input, layer.output).call(*args) if _is_graph(layer) else layer(*args, **kwargs)

    flat = rebuilt(functional, copy, call)
    found = {layer.name: layer for layer in functional.layers if layer.name not in nested}
    found |= {f"{name}.{layer.name}": layer for name, inner in nested.items() for layer in inner.layers}
    for name, layer in found.items():
        if layer.weights:
            flat.get_layer(name).set_weights(layer.get_weights())
    return flat
