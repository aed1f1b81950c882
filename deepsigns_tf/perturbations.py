"""A model's weights changed without training: what both attacks and owners' own checks need."""

import keras
import numpy as np


def prune_weights(model: keras.Model, fraction: float) -> keras.Model:
    """Sets the smallest weights of every kernel to zero.

    Args:
        model: Any Keras model that `clone_model` can copy; it is left as it is.
        fraction: Share of each kernel's entries to set to zero, in [0, 1]. Biases and other vectors are kept.

    Returns:
        A pruned copy.

    Raises:
        ValueError: If the fraction is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> float((prune_weights(model, 0.5).get_weights()[0] == 0).mean())
    0.5

    Source: Han et al., "Learning both weights and connections", NeurIPS 2015, per layer and without retraining;
    DeepSigns, section 5.3.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(
            f"Invalid value for argument `fraction`. Expected a share in [0, 1]. Received: fraction={fraction!r}"
        )
    return with_weights(model, [pruned(weights, fraction) for weights in model.get_weights()])


def shake_weights(model: keras.Model, relative_std: float, seed: int) -> keras.Model:
    r"""Adds Gaussian noise to every kernel.

    \( w' = w + \epsilon, \; \epsilon \sim N(0, (r \, \mathrm{std}(w))^2) \)

    Args:
        model: Any Keras model that `clone_model` can copy; it is left as it is.
        relative_std: r, standard deviation of the noise as a share of that of the kernel's entries, >= 0. Biases and other
            vectors are kept.
        seed: Of the noise.

    Returns:
        A copy with other weights.

    Raises:
        ValueError: If the share is negative.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> bool((shake_weights(model, 0.1, seed=0).get_weights()[0] != model.get_weights()[0]).all())
    True

    Source: Ours, as the simplest disturbance that prefers no weight.
    """
    if not relative_std >= 0.0:
        raise ValueError(
            f"Invalid value for argument `relative_std`. Expected a number >= 0. Received: relative_std={relative_std!r}"
        )
    random = np.random.default_rng(seed)
    return with_weights(model, [shaken(weights, relative_std, random) for weights in model.get_weights()])


def pruned(weights: np.ndarray, fraction: float) -> np.ndarray:
    """One of a model's weights, its smallest entries set to 0 if it is a kernel; see `prune_weights`.

    Example:

    >>> pruned(np.array([[1.0, -2.0], [3.0, 0.5]]), 0.5).tolist()
    [[0.0, -2.0], [3.0, 0.0]]
    """
    if weights.ndim < 2:
        return weights
    kept = weights.copy()
    smallest = np.argsort(np.abs(weights), axis=None, kind="stable")[: round(fraction * weights.size)]
    kept.ravel()[smallest] = 0.0
    return kept


def shaken(weights: np.ndarray, relative_std: float, random: np.random.Generator) -> np.ndarray:
    """One of a model's weights, with noise added if it is a kernel; see `shake_weights`.

    Example:

    >>> shaken(np.ones(3), 0.5, np.random.default_rng(0)).tolist()
    [1.0, 1.0, 1.0]
    """
    if weights.ndim < 2:
        return weights
    noise = random.normal(scale=relative_std * float(weights.std()), size=weights.shape)
    return np.asarray(weights + noise, weights.dtype)


def with_weights(model: keras.Model, weights: list[np.ndarray]) -> keras.Model:
    """A copy of a model with other weights.

    Args:
        model: Any Keras model that `clone_model` can copy.
        weights: In the order of `model.get_weights()`.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(weights)
    return copy
