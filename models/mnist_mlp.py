"""The paper's network for MNIST."""

from collections.abc import Callable

import keras

# The layer that carries the mark: the last hidden one.
FEATURES = "features"


def mnist_mlp(
    activity_regularizer: keras.regularizers.Regularizer | None = None,
    model_class: Callable[..., keras.Model] = keras.Model,
    hidden_activity_regularizer: keras.regularizers.Regularizer | None = None,
) -> keras.Model:
    """784-512-512-10 with ReLU and dropout.

    Args:
        activity_regularizer: For the second hidden layer.
        model_class: What to build with: `keras.Model`, or a class that takes its place.
        hidden_activity_regularizer: For the first hidden layer.

    Returns:
        A functional model from `(batch, 784)` pixels in [0, 1] to `(batch, 10)` logits; 669,706 parameters.

    Source: Rouhani, Chen, Koushanfar, "DeepSigns", table 1, benchmark 1.
    """
    inputs = keras.Input((784,), name="pixels")
    x = keras.layers.Dense(512, activation="relu", activity_regularizer=hidden_activity_regularizer, name="hidden")(
        inputs
    )
    x = keras.layers.Dropout(0.2, name="hidden_dropout")(x)
    x = keras.layers.Dense(512, activation="relu", activity_regularizer=activity_regularizer, name=FEATURES)(x)
    x = keras.layers.Dropout(0.2, name="features_dropout")(x)
    return model_class(inputs, keras.layers.Dense(10, name="logits")(x), name="mnist_mlp")
