"""The paper's network for MNIST."""

from collections.abc import Callable, Mapping

import keras

# The layers that may carry a mark.
HIDDEN = "hidden"
FEATURES = "features"


def mnist_mlp(
    activity_regularizers: Mapping[str, keras.regularizers.Regularizer] | None = None,
    model_class: Callable[..., keras.Model] = keras.Model,
) -> keras.Model:
    """784-512-512-10 with ReLU and dropout.

    Args:
        activity_regularizers: For the layers `"hidden"` and `"features"`, by name; none by default.
        model_class: What to build with: `keras.Model`, or a class that takes its place.

    Returns:
        A functional model from `(batch, 784)` pixels in [0, 1] to `(batch, 10)` logits; 669,706 parameters.

    Source: Rouhani, Chen, Koushanfar, "DeepSigns", table 1, benchmark 1.
    """
    x = inputs = keras.Input((784,), name="pixels")
    for name in (HIDDEN, FEATURES):
        regularizer = (activity_regularizers or {}).get(name)
        x = keras.layers.Dense(512, activation="relu", activity_regularizer=regularizer, name=name)(x)
        x = keras.layers.Dropout(0.2, name=f"{name}_dropout")(x)
    return model_class(inputs, keras.layers.Dense(10, dtype="float32", name="logits")(x), name="mnist_mlp")
