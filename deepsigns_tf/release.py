"""The model that leaves the house: the same function, a plain Keras model, no trace of the machinery."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from deepsigns_tf.activations import Inputs, named_layers, record_activations
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.regularizers import SignatureRegularizer
from deepsigns_tf.verification import verify
from deepsigns_tf.watermarked_model import (
    WatermarkedFunctional,
    WatermarkedModel,
    WatermarkedSequential,
    attached_regularizers,
    marked_layers,
)

_SHARED_OBJECTS = (
    keras.dtype_policies.DTypePolicy,
    keras.regularizers.Regularizer,
    keras.initializers.Initializer,
    keras.constraints.Constraint,
)


def release(
    model: WatermarkedModel, owner_key: OwnerKey, build: Callable[[], keras.Model] | None = None
) -> tuple[keras.Model, OwnerKey]:
    """Rebuilds a marked model as a plain, uncompiled one and tells the key which layer carries what.

    The plain model has the structure of one that was never marked: same configuration, names and variables, no optimizer,
    metrics or learned centres. It warns if the released model does not carry the mark at the key's level.

    Args:
        model: The trained, marked model.
        owner_key: The key with which it was marked, with its key inputs.
        build: For a subclassed model: a function without arguments that makes its unmarked twin.

    Returns:
        The plain model and a new key that also holds the carriers' layers. The key's commitment is the same.

    Raises:
        ValueError: If the model was not marked with this key, a subclassed model comes without `build`, the twin that it
            makes is not plain or of another architecture, or the plain model's answers to the key inputs differ by more than
            1e-6 x max(1, largest answer).

    Example: see the README.
    """
    if not isinstance(model, WatermarkedModel):
        raise ValueError(
            "This model cannot have been marked. Expected a `WatermarkedModel`, whose train step embeds the mark. "
            f"Received: a {type(model).__name__}"
        )
    if owner_key.key_inputs is None:
        raise ValueError(
            "This key cannot prove anything about a released model. Expected a key with key inputs, set by `with_key_inputs` "
            "before training. Received: a key without key inputs"
        )
    layers = marked_layers(model, owner_key)
    inputs = owner_key.key_inputs.inputs
    if type(model) in (WatermarkedFunctional, WatermarkedSequential) and build is None:
        plain = _plain_twin(model)
    else:
        plain = _built_twin(model, build, inputs)
    inner = [path for path, layer in named_layers(plain).items() if isinstance(layer, WatermarkedModel)]
    if inner or attached_regularizers(plain):
        raise ValueError(
            "The released model would show that it was marked. Expected `WatermarkedModel` as the outermost model only, with plain "
            f"Keras models inside it. Received: {inner or sorted(attached_regularizers(plain))}"
        )
    _copy_weights(model, plain)
    marked_names, plain_names = list(named_layers(model)), list(named_layers(plain))
    owner_key = owner_key.with_layers(
        dataclasses.replace(layer, path=plain_names[marked_names.index(layer.path)]) for layer in layers
    )
    _check_same_function(model, plain, inputs)
    verdict = verify(plain, owner_key)
    if not verdict.marked:
        warnings.warn(
            f"The released model does not carry the mark at the key's level: {verdict.num_matches} of {verdict.num_bits} bits match, "
            f"p = 10^{verdict.log10_p_value:.1f}. Train longer or with more strength before it leaves the house.",
            stacklevel=2,
        )
    return plain, owner_key


def _plain_twin(model: WatermarkedModel) -> keras.Model:
    base = keras.Sequential if isinstance(model, keras.Sequential) else keras.Model
    config = _without_regularizers(model.get_config())
    # An automatic name would tell; it becomes the one that the unmarked class gives.
    config["name"] = re.sub(r"^watermarked_((functional|sequential)(_\d+)?)$", r"\1", config["name"])
    plain = base.from_config(config)
    # A config gives each layer objects of its own; an archive shows which ones the layers of an unmarked model share.
    for layer, marked in zip(_with_layers(plain), _with_layers(model), strict=True):
        for name, value in vars(marked).items():
            if isinstance(value, _SHARED_OBJECTS) and not isinstance(value, SignatureRegularizer):
                setattr(layer, name, value)
    return plain


def _with_layers(model: keras.Model) -> list[keras.Layer]:
    return [model, *named_layers(model).values()]


def _without_regularizers(config: Any) -> Any:
    if isinstance(config, dict):
        if str(config.get("registered_name", "")).endswith(SignatureRegularizer.__name__):
            return None
        return {name: _without_regularizers(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_regularizers(value) for value in config)
    return config


def _built_twin(model: WatermarkedModel, build: Callable[[], keras.Model] | None, inputs: Inputs) -> keras.Model:
    if build is None:
        raise ValueError(
            "A subclassed model cannot be rebuilt from its configuration. Expected "
            "`release(model, owner_key, build=...)` with a function that makes its unmarked twin. "
            f"Received: build=None for a {type(model).__name__}"
        )
    plain = build()
    if isinstance(plain, WatermarkedModel) or attached_regularizers(plain):
        raise ValueError(
            "The twin that `build` makes is not plain. Expected a `keras.Model` without `SignatureRegularizer`. "
            f"Received: a {type(plain).__name__}"
        )
    for _ in record_activations(plain, _first(inputs), {}):
        pass
    kinds = [[type(layer).__name__ for layer in named_layers(each).values()] for each in (model, plain)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "The twin that `build` makes has another architecture. Expected the marked model's layers in the same order. "
            f"Received: {kinds[1]}, while the marked model has {kinds[0]}"
        )
    return plain


def _first(inputs: Inputs) -> Inputs:
    return inputs[:1] if isinstance(inputs, np.ndarray) else {name: array[:1] for name, array in inputs.items()}


def _copy_weights(model: WatermarkedModel, plain: keras.Model) -> None:
    own = {id(centres) for centres in model.learned_centres.values()}
    weights = [weight for weight in model.weights if id(weight) not in own]
    shapes = [[tuple(weight.shape) for weight in each] for each in (weights, plain.weights)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The plain model has other weights than the marked one. Expected the same shapes in the same order. "
            f"Received: {shapes[1]}, while the marked model has {shapes[0]}"
        )
    plain.set_weights([keras.ops.convert_to_numpy(weight) for weight in weights])


def _check_same_function(model: keras.Model, plain: keras.Model, inputs: Inputs) -> None:
    for (_, _, marked), (_, _, released) in zip(
        record_activations(model, inputs, {}), record_activations(plain, inputs, {}), strict=True
    ):
        for before, after in zip(keras.tree.flatten(marked), keras.tree.flatten(released), strict=True):
            before, after = (keras.ops.convert_to_numpy(keras.ops.cast(t, "float32")) for t in (before, after))
            difference = float(np.abs(before - after).max(initial=0.0))
            largest = float(np.abs(before).max(initial=0.0))
            if not difference <= 1e-6 * max(1.0, largest):
                raise ValueError(
                    "The plain model does not answer like the marked one. Expected differences of at most 1e-6 x max(1, largest "
                    f"answer) on the key inputs. Received: {difference:.3g} with a largest answer of {largest:.3g}; a layer with "
                    "state outside its weights (an adapted vocabulary, say) needs `build`"
                )
