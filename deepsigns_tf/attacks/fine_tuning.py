"""Attacks that train a stolen model on for the task.

All take the model, data of the task and a seed, leave the model as it is, and give a trained copy. The model is a functional or
sequential classifier of logits, or of probabilities by a last softmax. The recipes are those on record.
"""

import dataclasses
from typing import Any, Literal

import keras
import numpy as np

from deepsigns_tf.activations import record_activations
from deepsigns_tf.attacks.recipes import Recipe, copied, fit, head
from deepsigns_tf.attacks.units import WITH_KERNEL
from deepsigns_tf.attacks.weights import prune_globally
from deepsigns_tf.perturbations import prune_weights


def fine_tune(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    recipe: Recipe = Recipe(epochs=50),
    layers: Literal["all", "last"] = "all",
    new_layers: tuple[str, ...] = (),
) -> keras.Model:
    """Trains a model on, on the task's loss alone.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order, dropout and new weights.
        recipe: 50, 100 and 200 epochs in the paper, 5 to 10 in the SoK.
        layers: Train `"all"`, or the `"last"` one that has weights.
        new_layers: Names of layers that are initialized anew. The SoK's FTAL, FTLL, RTAL, RTLL train all or the last layer, which is kept
            or new.

    Raises:
        ValueError: If the model is subclassed, or has no such layer.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> tuned = fine_tune(model, x, y, seed=0, recipe=Recipe(epochs=1), layers="last")
    >>> [bool((a == b).all()) for a, b in zip(model.get_weights(), tuned.get_weights())]
    [True, True, False, False]

    Source: DeepSigns, section 5.3; Adi et al., "Turning your weakness into a strength", USENIX Security 2018, section 5.5; Lukas et al.,
    "SoK: How robust is image classification deep neural network watermarking?", S&P 2022.
    """
    copy = copied(model, seed, new_layers)
    if layers == "last":
        for layer in copy.layers:
            layer.trainable = layer is head(copy)
    return fit(copy, x, y, seed, recipe)


def prune_and_retrain(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    fraction: float = 0.9,
    over_all_layers: bool = False,
    recipe: Recipe = Recipe(),
) -> keras.Model:
    """Prunes the kernels' smallest entries and trains the rest on; what was pruned stays zero.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order and dropout.
        fraction: Share of each kernel's entries, or of those of all kernels together, in [0, 1].
        over_all_layers: Which of both.
        recipe: How to train.

    Raises:
        ValueError: If the model is subclassed, or the fraction is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> retrained = prune_and_retrain(model, x, y, seed=0, fraction=0.5, recipe=Recipe(epochs=1))
    >>> float((retrained.get_weights()[0] == 0).mean())
    0.5

    Source: Han et al., "Learning both weights and connections", NeurIPS 2015.
    """
    copy = copied(model, seed)
    copy.set_weights((prune_globally if over_all_layers else prune_weights)(copy, fraction).get_weights())
    for variable in copy.trainable_variables:
        if len(variable.shape) > 1:
            kept = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")) != 0
            variable.constraint = _Kept(kept)
    return fit(copy, x, y, seed, recipe)


def fine_prune(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    layer: str,
    fraction: float = 0.8,
    recipe: Recipe = Recipe(epochs=5),
) -> keras.Model:
    """Silences the units of a layer that the task's inputs excite least, then fine-tunes.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order and dropout.
        layer: Name of a Dense layer or convolution, the last convolution in the source.
        fraction: Share of its units, in [0, 1]; 0.6 to 0.96 on record.
        recipe: 3 to 10 epochs on record.

    Raises:
        ValueError: If there is no such layer, or the fraction is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> pruned_model = fine_prune(model, x, y, seed=0, layer="hidden", fraction=0.5, recipe=Recipe(epochs=1))
    >>> int((pruned_model.get_weights()[0] == 0).all(axis=0).sum())
    4

    Source: Liu, Dolan-Gavitt, Garg, "Fine-pruning", RAID 2018.
    """
    copy = copied(model, seed)
    names = [each.name for each in copy.layers if type(each) in WITH_KERNEL]
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
    return fit(copy, x, y, seed, recipe)


def shrink_and_tune(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    l2: float = 0.1,
    shrinking: Recipe = Recipe(epochs=5),
    tuning: Recipe = Recipe(epochs=5),
) -> keras.Model:
    """Trains under a strong L2 penalty, which shrinks what the task does not need, then without.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order and dropout.
        l2: Weight of the squared kernels' sum in the loss, >= 0.
        shrinking: How to train under the penalty; 5 epochs on record.
        tuning: How to train after it.

    Raises:
        ValueError: If the model is subclassed, or the weight is negative.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> short = Recipe(epochs=1, learning_rate=0.01)
    >>> shrunk = shrink_and_tune(model, x, y, seed=0, l2=10.0, shrinking=short, tuning=Recipe(epochs=1))
    >>> bool(np.abs(shrunk.get_weights()[0]).sum() < np.abs(model.get_weights()[0]).sum())
    True

    Source: Shafieinejad et al., "On the robustness of backdoor-based watermarking in deep neural networks", IH&MMSec 2021
    (regularization attack).
    """
    if not l2 >= 0.0:
        raise ValueError(f"Invalid value for argument `l2`. Expected a number >= 0. Received: l2={l2!r}")
    copy = copied(model, seed)
    kernels = [variable for variable in copy.trainable_variables if len(variable.shape) > 1]
    own = [kernel.regularizer for kernel in kernels]
    for kernel in kernels:
        kernel.regularizer = keras.regularizers.L2(l2)
    fit(copy, x, y, seed, shrinking)
    for kernel, regularizer in zip(kernels, own, strict=True):
        kernel.regularizer = regularizer
    return fit(copy, x, y, seed, tuning)


def smooth_labels(
    model: keras.Model, x: np.ndarray, y: np.ndarray, seed: int, share: float = 0.3, recipe: Recipe = Recipe()
) -> keras.Model:
    """Trains on with targets that all classes have a part in.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of order and dropout.
        share: Of the targets that is spread over all classes, in [0, 1); 0.3 on record.
        recipe: How to train.

    Raises:
        ValueError: If the model is subclassed, or the share is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> smooth_labels(model, x, y, seed=0, recipe=Recipe(epochs=1)).loss.label_smoothing
    0.3

    Source: Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, section 7; Lukas et al., S&P 2022, "label smoothing".
    """
    _check_share(share)
    return fit(copied(model, seed), x, y, seed, dataclasses.replace(recipe, label_smoothing=share))


def corrupt_labels(
    model: keras.Model, x: np.ndarray, y: np.ndarray, seed: int, share: float = 0.3, recipe: Recipe = Recipe()
) -> keras.Model:
    """Trains on with a share of the labels drawn at random.

    Args:
        model: The model.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels.
        seed: Of the labels, of order and dropout.
        share: Of the labels that are drawn anew, from all classes alike, in [0, 1).
        recipe: How to train.

    Raises:
        ValueError: If the model is subclassed, or the share is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> corrupt_labels(model, x, y, seed=0, recipe=Recipe(epochs=1)).count_params()
    58

    Source: Lukas et al., S&P 2022 (label noise).
    """
    _check_share(share)
    random = np.random.default_rng(seed)
    drawn = random.random(len(y)) < share
    noisy = np.where(drawn, random.integers(model.output_shape[-1], size=len(y)), y).astype(y.dtype)
    return fit(copied(model, seed), x, noisy, seed, recipe)


class _Kept(keras.constraints.Constraint):
    """Keeps entries of a weight at zero."""

    def __init__(self, kept: np.ndarray) -> None:
        self._kept = kept

    def __call__(self, weight: Any) -> Any:
        return weight * keras.ops.cast(self._kept, weight.dtype)


def _check_share(share: float) -> None:
    if not 0.0 <= share < 1.0:
        raise ValueError(f"Invalid value for argument `share`. Expected a number in [0, 1). Received: share={share!r}")
