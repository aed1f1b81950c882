"""How a thief trains: what all attacks that train have in common."""

import dataclasses
import gc
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from deepsigns_tf.attacks.graphs import as_functional, rebuilt

Tensor = Any

_STEPS_PER_EXECUTION = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a thief's training.

    Args:
        epochs: Passes over the data, >= 1.
        learning_rate: Above 0; the recipe on record is a tenth of the task's first one.
        falls: Whether it falls to 0 along a cosine, as an owner's does; constant by default, as on record.
        optimizer: Makes the fresh optimizer from the learning rate.
        batch_size: Examples a step, >= 1; those that are left over at the end of an epoch are others in every epoch.
        label_smoothing: Share of the targets that all classes have alike, in [0, 1).
        augmentation: `(inputs, seed of shape (2,)) -> inputs`, on whole batches of tensors, as the task's own training; none by default.
        backup_dir: A folder from which an interrupted training goes on at its last finished epoch, with the batches of a first one; none
            by default. It is removed at the end.

    Raises:
        ValueError: If a number is out of range.

    Example:

    >>> Recipe(epochs=50).learning_rate
    0.0001
    """

    epochs: int = 10
    learning_rate: float = 1e-4
    falls: bool = False
    optimizer: Callable[[Any], keras.optimizers.Optimizer] = keras.optimizers.Adam
    batch_size: int = 128
    label_smoothing: float = 0.0
    augmentation: Callable[[Tensor, Tensor], Tensor] | None = None
    backup_dir: str | None = None

    def __post_init__(self) -> None:
        counts = self.epochs >= 1 and self.batch_size >= 1
        if not (counts and self.learning_rate > 0.0 and 0.0 <= self.label_smoothing < 1.0):
            raise ValueError(
                "This is no recipe to train by. Expected at least one epoch, batches of at least one example, a learning rate above 0, "
                f"label smoothing in [0, 1). Received: epochs={self.epochs!r}, batch_size={self.batch_size!r}, "
                f"learning_rate={self.learning_rate!r}, label_smoothing={self.label_smoothing!r}"
            )


def fit(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    recipe: Recipe,
    penalties: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
) -> keras.Model:
    """Trains a classifier in place.

    Args:
        model: Puts out logits, or probabilities by a last softmax.
        x: `(n, ...)` inputs.
        y: `(n,)` integer labels, or `(n, C)` target probabilities.
        seed: Of order, augmentation and dropout.
        recipe: How.
        penalties: `(labels, activations) -> scalar`, added to the loss: one for each of the activations that the model puts out after
            its answers.

    Returns:
        The model.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> fit(model, x, y, seed=0, recipe=Recipe(epochs=1)) is model
    True
    """
    # Whoever imports the package may have another backend and no TensorFlow; whoever trains in batches has it.
    import tensorflow as tf

    # What an earlier training has left, its data among it, hangs together in circles: Python frees it after gigabytes.
    gc.collect()
    labels = y
    if recipe.label_smoothing and y.ndim == 1:
        y = np.eye(model.outputs[0].shape[-1], dtype="float32")[y]
    from_logits = not puts_out_probabilities(model)
    loss = (
        keras.losses.SparseCategoricalCrossentropy(from_logits)
        if y.ndim == 1
        else keras.losses.CategoricalCrossentropy(from_logits, recipe.label_smoothing)
    )
    keras.utils.set_random_seed(seed)
    num_rows = min(recipe.batch_size, len(x))
    num_steps = recipe.epochs * (len(x) // num_rows)
    schedule = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, num_steps)
    optimizer = recipe.optimizer(schedule if recipe.falls else recipe.learning_rate)
    # Accuracy is measured after the attack, not in every step; several steps a call spare what Python does between them.
    model.compile(optimizer, [loss, *penalties] if penalties else loss, steps_per_execution=_STEPS_PER_EXECUTION)
    inputs, targets, of_penalties = tf.constant(x), tf.constant(y), tf.constant(labels)
    rows = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).batch(num_rows, drop_remainder=True)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
    augmentation = recipe.augmentation or (lambda images, batch_seed: images)

    def examples(rows: Tensor, batch_seed: Tensor) -> tuple[Tensor, Any]:
        wanted = tf.gather(targets, rows)
        if penalties:
            # Each output of a model that has several wants targets of its own.
            wanted = (wanted, *[tf.gather(of_penalties, rows) for _ in penalties])
        return augmentation(tf.gather(inputs, rows), batch_seed), wanted

    batches = tf.data.Dataset.zip(rows, seeds).map(examples, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    callbacks = (
        [keras.callbacks.BackupAndRestore(recipe.backup_dir, double_checkpoint=True)] if recipe.backup_dir else []
    )
    # The batches are shuffled.
    model.fit(batches, epochs=recipe.epochs, shuffle=False, callbacks=callbacks, verbose=0)
    return model


def copied(model: keras.Model, seed: int, new_layers: tuple[str, ...] = ()) -> keras.Model:
    """A trainable copy of a model.

    Args:
        model: A functional or sequential model.
        seed: Of dropout and of new weights.
        new_layers: Names of layers whose weights are drawn anew.

    Raises:
        ValueError: If the model is subclassed, or has no such layer.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")])
    >>> copy = copied(model, seed=12345, new_layers=("b",))
    >>> [bool((old == new).all()) for old, new in zip(model.get_weights()[::2], copy.get_weights()[::2])]
    [True, False]
    """
    functional = as_functional(model)
    names = [layer.name for layer in functional.layers]
    if not set(new_layers) <= set(names):
        raise ValueError(
            f"These weights cannot be drawn anew. Expected layers from {names}. Received: {list(new_layers)}"
        )
    keras.utils.set_random_seed(seed)
    copy = rebuilt(functional)
    for old, new in zip(functional.layers, copy.layers, strict=True):
        if old.name not in new_layers:
            new.set_weights(old.get_weights())
    return copy


def head(model: keras.Model) -> keras.Layer:
    """The last layer that has weights.

    Args:
        model: Any model with weights.

    Example:

    >>> head(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits"), keras.layers.Softmax()])).name
    'logits'
    """
    return next(layer for layer in reversed(model.layers) if layer.weights)


def puts_out_probabilities(model: keras.Model) -> bool:
    """Whether a classifier's answer comes from a softmax.

    Args:
        model: A functional or sequential model; its first output counts.

    Example:

    >>> puts_out_probabilities(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")]))
    True
    """
    functional = as_functional(model)
    last = next((layer for layer in functional.layers if layer.output is functional.outputs[0]), None)
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
