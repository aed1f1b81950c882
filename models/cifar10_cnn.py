"""The paper's convolutional network for CIFAR-10."""

from collections.abc import Callable, Mapping

import keras

# The layers that may carry a mark, by their names.
CONVOLUTIONS = ("conv_1", "conv_2", "conv_3", "conv_4")
POOLINGS = ("conv_2_pooled", "conv_4_pooled")
FEATURES = "features"


def cifar10_cnn(
    activity_regularizers: Mapping[str, keras.regularizers.Regularizer] | None = None,
    model_class: Callable[..., keras.Model] = keras.Model,
    dropout: float = 0.25,
) -> keras.Model:
    """32C3-32C3-MP2-64C3-64C3-MP2-512-10 with ReLU and dropout.

    Args:
        activity_regularizers: For the layers `"conv_1"` to `"conv_4"`, `"conv_2_pooled"`, `"conv_4_pooled"` and `"features"`, by
            name; none by default.
        model_class: What to build with: `keras.Model`, or a class that takes its place.
        dropout: Rate after each pooling, in [0, 0.5); twice that after the hidden layer.

    Returns:
        A functional model from `(batch, 32, 32, 3)` pixels in [0, 255] to `(batch, 10)` logits; 1,250,858 parameters.

    Source: Rouhani, Chen, Koushanfar, "DeepSigns", table 1, benchmark 2; padding and the default dropout are
    those of the Keras example `cifar10_cnn.py`, which has this layout.
    """
    regularizers = activity_regularizers or {}
    inputs = keras.Input((32, 32, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0, name="rescaled")(inputs)
    for number, name in enumerate(CONVOLUTIONS):
        x = keras.layers.Conv2D(
            32 if number < 2 else 64,
            3,
            padding="same" if number % 2 == 0 else "valid",
            activation="relu",
            activity_regularizer=regularizers.get(name),
            name=name,
        )(x)
        if number % 2 == 1:
            pooled = f"{name}_pooled"
            x = keras.layers.MaxPooling2D(activity_regularizer=regularizers.get(pooled), name=pooled)(x)
            x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = keras.layers.Flatten(name="flattened")(x)
    x = keras.layers.Dense(512, activation="relu", activity_regularizer=regularizers.get(FEATURES), name=FEATURES)(x)
    x = keras.layers.Dropout(2 * dropout, name=f"{FEATURES}_dropout")(x)
    return model_class(inputs, keras.layers.Dense(10, dtype="float32", name="logits")(x), name="cifar10_cnn")
