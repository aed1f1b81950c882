"""BatchNorm statistics taken anew, of the data that a released model will see."""

from collections.abc import Iterable
from typing import Any

import keras

from deepsigns_tf.activations import named_layers


def reestimate_batch_norm(model: keras.Model, batches: Iterable[Any]) -> int:
    """Sets moving means and variances of every BatchNorm layer to their averages over some batches.

    Triggers that were mixed into the training batches have moved these statistics; of task data alone they are what the
    released model meets. Layers that are frozen keep theirs.

    Args:
        model: The trained model; it is changed.
        batches: Of task data, as large as in training; fifty will do. Each is inputs, an array `(batch, ...)` or a dict of arrays, or a
            tuple `(inputs, labels)` or `(inputs, labels, weights)` as `fit` takes it.

    Returns:
        The number of layers that were changed.

    Raises:
        ValueError: If there are BatchNorm layers but no batch, or an array stands in place of the batches.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="norm")])
    >>> reestimate_batch_norm(model, [np.full((8, 2), 3.0), np.full((8, 2), 5.0)])
    1
    >>> keras.ops.convert_to_numpy(model.get_layer("norm").moving_mean).tolist()
    [4.0, 4.0]

    Source: Ioffe, Szegedy, "Batch normalization", ICML 2015, algorithm 2 (population statistics from training batches).
    """
    if hasattr(batches, "shape"):
        raise ValueError(
            "These are no batches. Expected an iterable of batches, such as a `tf.data.Dataset` or a list of arrays. "
            f"Received: one array of shape {tuple(batches.shape)}"
        )
    layers = [
        layer
        for layer in named_layers(model).values()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    momenta = [layer.momentum for layer in layers]
    number = -1
    try:
        for number, batch in enumerate(batches if layers else ()):
            for layer in layers:
                # The mean of all batches so far.
                layer.momentum = number / (number + 1)
            model(keras.utils.unpack_x_y_sample_weight(batch)[0], training=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if layers and number < 0:
        raise ValueError(
            "The statistics cannot be taken anew. Expected at least one batch of task data. Received: none"
        )
    return len(layers)
