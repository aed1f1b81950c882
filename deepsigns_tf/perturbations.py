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
    pruned = keras.models.clone_model(model)
    pruned.set_weights([_prune(weights, fraction) if weights.ndim > 1 else weights for weights in model.get_weights()])
    return pruned


def _prune(weights: np.ndarray, fraction: float) -> np.ndarray:
    kept = weights.copy()
    smallest = np.argsort(np.abs(weights), axis=None, kind="stable")[: round(fraction * weights.size)]
    kept.ravel()[smallest] = 0.0
    return kept
