"""Wide residual networks for images of 32 x 32 pixels."""

from collections.abc import Callable, Mapping

import keras

# The layers that may carry a mark: what enters the last group of blocks, and what enters the classifier.
MIDDLE = "middle"
FEATURES = "features"

_FIRST_CHANNELS = 16


def wide_resnet(
    depth: int,
    width: int,
    activity_regularizers: Mapping[str, keras.regularizers.Regularizer] | None = None,
    model_class: Callable[..., keras.Model] = keras.Model,
    num_classes: int = 10,
    l2: float = 2.5e-4,
) -> keras.Model:
    """WRN-depth-width: three groups of pre-activation blocks with BatchNorm, He initialization and L2.

    Args:
        depth: Convolutions and the classifier on the longest path: 6 n + 4 with n >= 1 blocks in each group.
        width: Factor on the channels 16, 32 and 64 of the groups, >= 1.
        activity_regularizers: For the activations `"middle"`, which enter the last group (32 x width channels on 16 x 16
            pixels), and `"features"`, the last ones (64 x width channels on 8 x 8 pixels), by name; none by default.
        model_class: What to build with: `keras.Model`, or a class that takes its place.
        num_classes: Number of logits.
        l2: Factor of the squared kernels in the loss, >= 0; half of what the literature calls weight decay.

    Returns:
        A functional model from `(batch, 32, 32, 3)` pixels in [0, 255] to `(batch, num_classes)` logits. WRN-28-10 has
        36,479,194 trainable parameters, WRN-16-2 691,674.

    Raises:
        ValueError: If depth or width is out of range.

    Source: Zagoruyko, Komodakis, "Wide residual networks", BMVC 2016, table 1 and section 3 (without dropout).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"Invalid value for argument `depth`. Expected 10, 16, 22, ... Received: depth={depth}")
    if width < 1:
        raise ValueError(f"Invalid value for argument `width`. Expected an integer >= 1. Received: width={width}")
    regularizers = activity_regularizers or {}
    decay = {"kernel_regularizer": keras.regularizers.L2(l2)} if l2 else {}

    def convolution(x: keras.KerasTensor, channels: int, size: int, strides: int, name: str) -> keras.KerasTensor:
        return keras.layers.Conv2D(
            channels,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=name,
            **decay,
        )(x)

    def activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
        return keras.layers.Activation("relu", activity_regularizer=regularizers.get(name), name=name)(x)

    inputs = keras.Input((32, 32, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0, name="rescaled")(inputs)
    x = convolution(x, _FIRST_CHANNELS, 3, 1, "first")
    for group in range(3):
        channels = _FIRST_CHANNELS * 2**group * width
        for block in range((depth - 4) // 6):
            name = f"block_{group + 1}_{block + 1}"
            strides = 2 if group > 0 and block == 0 else 1
            shortcut = x
            x = activated(x, MIDDLE if (group, block) == (2, 0) else f"{name}_entered")
            if x.shape[-1] != channels or strides > 1:
                shortcut = convolution(x, channels, 1, strides, f"{name}_shortcut")
            x = convolution(x, channels, 3, strides, f"{name}_conv_1")
            x = convolution(activated(x, f"{name}_between"), channels, 3, 1, f"{name}_conv_2")
            x = keras.layers.Add(name=f"{name}_sum")([x, shortcut])
    x = activated(x, FEATURES)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    # Half-precision policies compute everything in half precision but the logits, whose exponentials the loss takes.
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits", **decay)(x)
    return model_class(inputs, logits, name=f"wide_resnet_{depth}_{width}")
