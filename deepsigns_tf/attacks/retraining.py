"""Attacks that train a stolen model on, or another model from its answers.

All take the model, data of the task and a seed, leave the model as it is, and give a trained copy. The model is a functional or
sequential classifier of logits, or of probabilities by a last softmax. Where a learning rate is asked for, the recipe on record is a
tenth of the task's first one, constant, with a fresh optimizer (Adam here).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import numpy as np

from deepsigns_tf.activations import record_activations
from deepsigns_tf.attacks.units import as_functional, rebuilt
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.perturbations import pruned
from deepsigns_tf.regularizers import SignatureRegularizer
from deepsigns_tf.watermarked_model import WatermarkedModel

_BATCH_SIZE = 128


def fine_tune(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    epochs: int = 50,
    learning_rate: float = 1e-4,
    layers: Literal["all", "last"] = "all",
    new_head: bool = False,
    verbose: int = 0,
) -> keras.Model:
    """Trains a model on, on the task's loss alone.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order, dropout and new weights.
        epochs: Passes over the data; 50, 100 and 200 in the paper, 5 to 10 in the SoK.
        learning_rate: Of Adam, constant.
        layers: `"all"`, or the `"last"` one that has weights.
        new_head: Whether the last layer is initialized anew. The SoK's FTAL, FTLL, RTAL, RTLL are all or last layers, head kept or new.
        verbose: As in `keras.Model.fit`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> tuned = fine_tune(model, x, y, seed=0, epochs=1, layers="last")
    >>> [bool((a == b).all()) for a, b in zip(model.get_weights(), tuned.get_weights())]
    [True, True, False, False]

    Source: DeepSigns, section 5.3; Adi et al., "Turning your weakness into a strength", USENIX Security 2018, section 5.5.
    """
    copy = _copy(model, seed, new_head)
    if layers == "last":
        for layer in copy.layers:
            layer.trainable = layer is _head(copy)
    return _trained(copy, x, y, seed, epochs, learning_rate, verbose)


def prune_and_retrain(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    fraction: float = 0.9,
    epochs: int = 10,
    learning_rate: float = 1e-4,
    verbose: int = 0,
) -> keras.Model:
    """Prunes every kernel's smallest entries and trains the rest on; what was pruned stays zero.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order and dropout.
        fraction: Share of each kernel's entries, in [0, 1].
        epochs: Passes over the data.
        learning_rate: Of Adam, constant.
        verbose: As in `keras.Model.fit`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> float((prune_and_retrain(model, x, y, seed=0, fraction=0.5, epochs=1).get_weights()[0] == 0).mean())
    0.5

    Source: Han et al., "Learning both weights and connections", NeurIPS 2015.
    """
    copy = _copy(model, seed)
    copy.set_weights([pruned(each, fraction) for each in copy.get_weights()])
    for variable in copy.trainable_variables:
        if len(variable.shape) > 1:
            kept = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")) != 0
            variable.constraint = _Kept(kept)
    return _trained(copy, x, y, seed, epochs, learning_rate, verbose)


def fine_prune(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    layer: str,
    fraction: float = 0.8,
    epochs: int = 5,
    learning_rate: float = 1e-4,
    verbose: int = 0,
) -> keras.Model:
    """Silences the units of a layer that the task's inputs excite least, then fine-tunes.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order and dropout.
        layer: Name of a Dense layer or convolution, the last convolution in the source.
        fraction: Share of its units, in [0, 1]; 0.6 to 0.96 on record.
        epochs: Passes over the data; 3 to 10 on record.
        learning_rate: Of Adam, constant.
        verbose: As in `keras.Model.fit`.

    Raises:
        ValueError: If there is no such layer, or the fraction is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> int((fine_prune(model, x, y, seed=0, layer="hidden", fraction=0.5, epochs=1).get_weights()[0] == 0).all(axis=0).sum())
    4

    Source: Liu, Dolan-Gavitt, Garg, "Fine-pruning", RAID 2018.
    """
    copy = _copy(model, seed)
    names = [each.name for each in copy.layers if isinstance(each, _WITH_KERNEL)]
    if layer not in names or not 0.0 <= fraction <= 1.0:
        raise ValueError(
            f"These units cannot be silenced. Expected a layer from {names} and a share in [0, 1]. "
            f"Received: layer={layer!r}, fraction={fraction!r}"
        )
    found = copy.get_layer(layer)
    sums: Any = 0.0
    for _, outputs, _ in record_activations(copy, x, {"layer": found}):
        values = keras.ops.convert_to_numpy(keras.ops.cast(outputs["layer"][0], "float32"))
        sums += np.abs(values).sum(axis=tuple(range(values.ndim - 1)), dtype=np.float64)
    idle = np.argsort(sums, kind="stable")[: round(fraction * len(sums))]
    for variable in found.trainable_variables:
        kept = np.ones(variable.shape, bool)
        kept[..., idle] = False
        variable.constraint = _Kept(kept)
        variable.assign(variable.constraint(variable))
    return _trained(copy, x, y, seed, epochs, learning_rate, verbose)


def overwrite(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    thiefs_key: OwnerKey,
    layers: Mapping[str, str],
    strength: float = 1.0,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    verbose: int = 0,
) -> keras.Model:
    """Embeds a second mark by the same method, with a key of the thief's own.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels, the carriers' classes.
        seed: Of order and dropout.
        thiefs_key: With carriers.
        layers: For each of its carriers the name of a layer that takes `activity_regularizer`.
        strength: Weight of the thief's signature loss.
        epochs: Passes over the data; 10 and 100 on record.
        learning_rate: Of Adam, constant.
        verbose: As in `keras.Model.fit`.

    Raises:
        ValueError: If a carrier has no layer, or a layer takes no `activity_regularizer`.

    Source: DeepSigns, section 5.4.
    """
    regularizers = {
        layers[carrier.name]: SignatureRegularizer(thiefs_key, carrier.name, strength=strength)
        for carrier in thiefs_key.carriers
        if carrier.name in layers
    }
    functional = as_functional(model)
    names = [each.name for each in functional.layers]
    if len(regularizers) != len(thiefs_key.carriers) or not set(regularizers) <= set(names):
        raise ValueError(
            f"The thief's carriers have no layers of their own. Expected one from {names} for each of "
            f"{[carrier.name for carrier in thiefs_key.carriers]}. Received: layers={dict(layers)}"
        )

    def marked(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in regularizers:
            config["activity_regularizer"] = regularizers[layer.name]
        return type(layer).from_config(config)

    keras.utils.set_random_seed(seed)
    copy = rebuilt(functional, marked)
    copy = WatermarkedModel(copy.inputs[0] if len(copy.inputs) == 1 else copy.inputs, copy.outputs[0])
    copy.set_weights(functional.get_weights())
    trained = _trained(copy, x, y, seed, epochs, learning_rate, verbose)
    plain = rebuilt(functional)
    plain.set_weights(trained.get_weights())
    return plain


def distill(
    model: keras.Model,
    x: np.ndarray,
    seed: int,
    build: Callable[[], keras.Model] | None = None,
    temperature: float = 1.0,
    hard_labels: bool = False,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    verbose: int = 0,
) -> keras.Model:
    r"""Trains a new network on a model's answers. No mark in the weights survives that: the weights are new.

    Args:
        model: The model, asked as it is.
        x: `(n, ...)` inputs to ask; no labels are needed.
        seed: Of the new weights, order and dropout.
        build: Makes the new network, which puts out logits; by default the model's own architecture.
        temperature: T > 0; the new network learns \( \mathrm{softmax}(\mathrm{logits} / T) \).
        hard_labels: Whether it learns the answered classes only.
        epochs: Passes over the inputs.
        learning_rate: Of Adam, constant.
        verbose: As in `keras.Model.fit`.

    Raises:
        ValueError: If the temperature is not above 0.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> distill(model, np.random.rand(64, 4).astype("float32"), seed=0, epochs=1).count_params() == model.count_params()
    True

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015; Tramer et al., "Stealing machine learning
    models via prediction APIs", USENIX Security 2016 (hard labels).
    """
    if not temperature > 0.0:
        raise ValueError(
            f"Invalid value for argument `temperature`. Expected a number above 0. Received: temperature={temperature!r}"
        )
    answers = np.asarray(model.predict(x, batch_size=1000, verbose=0), np.float64)
    logits = np.log(np.maximum(answers, 1e-30)) if _puts_out_probabilities(model) else answers
    scaled = logits / temperature
    targets = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    targets /= targets.sum(axis=1, keepdims=True)
    if hard_labels:
        targets = np.eye(targets.shape[1])[targets.argmax(axis=1)]
    keras.utils.set_random_seed(seed)
    student = build() if build else rebuilt(as_functional(model))
    return _trained(student, x, targets.astype("float32"), seed, epochs, learning_rate, verbose)


_WITH_KERNEL = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


class _Kept(keras.constraints.Constraint):
    """Keeps entries of a weight at zero."""

    def __init__(self, kept: np.ndarray) -> None:
        self._kept = kept

    def __call__(self, weight: Any) -> Any:
        return weight * keras.ops.cast(self._kept, weight.dtype)


def _copy(model: keras.Model, seed: int, new_head: bool = False) -> keras.Model:
    functional = as_functional(model)
    keras.utils.set_random_seed(seed)
    copy = rebuilt(functional)
    head = _head(copy)
    for old, new in zip(functional.layers, copy.layers, strict=True):
        if not (new_head and new is head):
            new.set_weights(old.get_weights())
    return copy


def _head(model: keras.Model) -> keras.Layer:
    """The last layer that has weights."""
    return next(layer for layer in reversed(model.layers) if layer.weights)


def _puts_out_probabilities(model: keras.Model) -> bool:
    return getattr(as_functional(model).layers[-1], "activation", None) is keras.activations.softmax


def _trained(
    model: keras.Model, x: np.ndarray, y: np.ndarray, seed: int, epochs: int, learning_rate: float, verbose: int
) -> keras.Model:
    losses = keras.losses
    loss = losses.SparseCategoricalCrossentropy if y.ndim == 1 else losses.CategoricalCrossentropy
    keras.utils.set_random_seed(seed)
    model.compile(
        keras.optimizers.Adam(learning_rate), loss(from_logits=not _puts_out_probabilities(model)), metrics=["accuracy"]
    )
    model.fit(x, y, batch_size=_BATCH_SIZE, epochs=epochs, verbose=verbose)
    return model
