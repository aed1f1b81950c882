"""Attacks that change weights without training: fewer, coarser, shifted ones.

Each leaves the model as it is and gives a changed copy. Pruning layer by layer and noise are `prune_weights` and `shake_weights` in
`perturbations.py`, since owners use them too.
"""

import keras
import numpy as np

from deepsigns_tf.perturbations import with_weights


def prune_globally(model: keras.Model, fraction: float) -> keras.Model:
    """Sets the smallest entries of all kernels together to zero, so that some layers lose more than others.

    Args:
        model: Any Keras model that `clone_model` can copy.
        fraction: Share of all kernels' entries to set to zero, in [0, 1]. Biases and other vectors are kept.

    Raises:
        ValueError: If the fraction is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10), keras.layers.Dense(10)])
    >>> pruned = prune_globally(model, 0.5)
    >>> round(np.mean([(kernel == 0).mean() for kernel in pruned.get_weights() if kernel.ndim > 1]), 2).item()
    0.5

    Source: Han et al., "Learning both weights and connections", NeurIPS 2015; Blalock et al., "What is the state of neural network
    pruning?", MLSys 2020 (global magnitude).
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(
            f"Invalid value for argument `fraction`. Expected a share in [0, 1]. Received: fraction={fraction!r}"
        )
    weights = model.get_weights()
    sizes = np.concatenate([np.abs(kernel).ravel() for kernel in weights if kernel.ndim > 1])
    gone = np.zeros(sizes.size, bool)
    gone[np.argsort(sizes, kind="stable")[: round(fraction * sizes.size)]] = True
    start = 0
    for number, kernel in enumerate(weights):
        if kernel.ndim > 1:
            here = gone[start : start + kernel.size].reshape(kernel.shape)
            weights[number] = np.where(here, np.zeros_like(kernel), kernel)
            start += kernel.size
    return with_weights(model, weights)


def quantize_weights(model: keras.Model, num_bits: int) -> keras.Model:
    r"""Rounds the entries of every kernel to \( 2^b - 1 \) values, evenly spaced and symmetric about 0.

    Args:
        model: Any Keras model that `clone_model` can copy.
        num_bits: b, 2 to 16; the literature has 8 and 4 to 6. Biases and other vectors are kept.

    Raises:
        ValueError: If the number of bits is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> len(np.unique(quantize_weights(model, 2).get_weights()[0]))
    3

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018, per
    tensor and without training.
    """
    if not 2 <= num_bits <= 16:
        raise ValueError(
            f"Invalid value for argument `num_bits`. Expected an integer from 2 to 16. Received: num_bits={num_bits!r}"
        )

    def quantized(weights: np.ndarray) -> np.ndarray:
        largest = np.abs(weights).max(initial=0.0)
        if weights.ndim < 2 or largest == 0.0:
            return weights
        step = largest / (2 ** (num_bits - 1) - 1)
        return np.asarray(np.rint(weights / step) * step, weights.dtype)

    return with_weights(model, [quantized(each) for each in model.get_weights()])


def round_to_float16(model: keras.Model) -> keras.Model:
    """Rounds every weight to half precision.

    Args:
        model: Any Keras model that `clone_model` can copy.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> kernel = round_to_float16(model).get_weights()[0]
    >>> bool((kernel == kernel.astype("float16")).all())
    True

    Source: Ours; to IEEE 754 binary16, the mildest of quantizations.
    """
    return with_weights(model, [each.astype(np.float16).astype(each.dtype) for each in model.get_weights()])


def shift_weights(model: keras.Model, seed: int, mean_share: float = 1.5, relative_std: float = 1.0) -> keras.Model:
    r"""Shifts every filter by its own mean, and adds noise; the literature then fine-tunes for 5 to 10 epochs.

    \( w' = w - \lambda_1 \bar w + \lambda_2 \epsilon, \; \epsilon \sim N(0, \mathrm{std}(w)^2) \), with mean and standard deviation of
    each output unit's weights.

    Args:
        model: Any Keras model that `clone_model` can copy.
        seed: Of the noise.
        mean_share: \( \lambda_1 \), 1.2 to 2.5 on record.
        relative_std: \( \lambda_2 \), 0 or 1 on record, >= 0.

    Raises:
        ValueError: If a number is out of range.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> shifted = shift_weights(model, seed=0, mean_share=1.0, relative_std=0.0)
    >>> bool(np.allclose(shifted.get_weights()[0].mean(axis=0), 0, atol=1e-6))
    True

    Source: Lukas et al., "SoK: How robust is image classification deep neural network watermarking?", S&P 2022, "weight shifting".
    """
    if not relative_std >= 0.0:
        raise ValueError(
            "The weights cannot be shifted in this way. Expected relative_std >= 0. "
            f"Received: relative_std={relative_std!r}"
        )
    random = np.random.default_rng(seed)

    def shifted(weights: np.ndarray) -> np.ndarray:
        if weights.ndim < 2:
            return weights
        axes = tuple(range(weights.ndim - 1))
        mean, std = weights.mean(axis=axes), weights.std(axis=axes)
        change = -mean_share * mean + relative_std * std * random.normal(size=weights.shape)
        return np.asarray(weights + change, weights.dtype)

    return with_weights(model, [shifted(each) for each in model.get_weights()])
