"""The thief trains a network of their own on the stolen model's answers."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from deepsigns_tf.attacks.graphs import as_functional, rebuilt
from deepsigns_tf.attacks.recipes import Recipe, fit, puts_out_probabilities


def distill(
    model: keras.Model,
    x: np.ndarray,
    seed: int,
    build: Callable[[], keras.Model] | None = None,
    hard_labels: bool = False,
    recipe: Recipe = Recipe(epochs=60, learning_rate=1e-3),
) -> keras.Model:
    """Trains a new network on a model's answers. No mark in the weights survives that: the weights are new.

    Args:
        model: The model, asked as it is.
        x: `(n, ...)` inputs to ask; no labels are needed.
        seed: Of the new weights, order and dropout.
        build: Makes the new network, which puts out logits; by default the model's own architecture.
        hard_labels: Whether it learns the answered classes only.
        recipe: 60 epochs on record. Answers are learned as they are, without label smoothing.

    Returns:
        The new network.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> inputs = np.random.rand(64, 4).astype("float32")
    >>> distill(model, inputs, seed=0, recipe=Recipe(epochs=1)).count_params() == model.count_params()
    True

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015; Tramer et al., "Stealing machine learning
    models via prediction APIs", USENIX Security 2016 (hard labels).
    """
    answers = np.asarray(model.predict(x, batch_size=1000, verbose=0), np.float64)
    logits = np.log(np.maximum(answers, 1e-30)) if puts_out_probabilities(model) else answers
    targets = np.exp(logits - logits.max(axis=1, keepdims=True))
    targets /= targets.sum(axis=1, keepdims=True)
    if hard_labels:
        targets = np.eye(targets.shape[1])[targets.argmax(axis=1)]
    keras.utils.set_random_seed(seed)
    student = build() if build else rebuilt(as_functional(model))
    return fit(student, x, targets.astype("float32"), seed, dataclasses.replace(recipe, label_smoothing=0.0))
