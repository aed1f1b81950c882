"""Models of all families that Keras builds from its own layers, with inputs for them."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from models.cifar10_cnn import cifar10_cnn
from models.imdb_lstm import imdb_lstm
from models.mnist_mlp import mnist_mlp
from models.wide_resnet import wide_resnet

NUM_EXAMPLES = 12


def sequential(*parts: keras.Layer, shape: tuple[int, ...]) -> keras.Model:
    return keras.Sequential([keras.Input(shape, name="inputs"), *parts])


def tokens(*parts: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((9,), dtype="int32", name="inputs"), layers.Embedding(20, 8), *parts])


def residual() -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    shortcut = x
    x = layers.Activation("gelu")(layers.BatchNormalization()(x))
    x = layers.Add()([layers.Conv2D(8, 3, padding="same", kernel_regularizer="l2")(x), shortcut])
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def operations() -> keras.Model:
    inputs = keras.Input((6, 4))
    x = ops.mean(2 * inputs[:, 1:] + 1.0, axis=1)
    return keras.Model(
        inputs, layers.Dense(4, activation=keras.activations.silu)(ops.concatenate([x, ops.relu(x)], axis=-1))
    )


def attention() -> keras.Model:
    inputs = keras.Input((7, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    x = layers.LayerNormalization()(layers.Add()([inputs, x]))
    x = layers.EinsumDense("...x,xy->...y", output_shape=8, bias_axes="y")(x)
    x = layers.Attention()([x, x])
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling1D()(x)))


def nested() -> keras.Model:
    inner = sequential(layers.Dense(8, activation="relu"), layers.Dropout(0.5), shape=(5,))
    outer = sequential(inner, layers.LeakyReLU(), shape=(5,))
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(4)(outer(inputs)))


def several_inputs() -> keras.Model:
    image, text = keras.Input((6, 6, 1), name="image"), keras.Input((5,), dtype="int32", name="text")
    x = layers.Flatten()(layers.Conv2D(4, 3)(image))
    y = layers.GlobalAveragePooling1D()(layers.Embedding(10, 4, mask_zero=True)(text))
    return keras.Model({"image": image, "text": text}, layers.Dense(4)(layers.Concatenate()([x, y])))


def shared() -> keras.Model:
    inputs = keras.Input((8,))
    layer = layers.Dense(8, activation="tanh")
    return keras.Model(inputs, layers.Dense(4)(layer(layer(inputs))))


def own_loss(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))


def compiled_with_its_own_loss() -> keras.Model:
    model = sequential(layers.Dense(8), layers.Dense(4), shape=(5,))
    model.compile("adam", loss=own_loss)
    model.fit(np.ones((4, 5), "float32"), np.ones((4, 4), "float32"), verbose=0)
    return model


def half_precision() -> keras.Model:
    return sequential(
        layers.Dense(8, dtype="mixed_bfloat16"), layers.Dense(8, dtype="bfloat16"), layers.Dense(4), shape=(5,)
    )


def convolutions_of_images() -> keras.Model:
    return sequential(
        layers.Rescaling(1 / 255),
        layers.DepthwiseConv2D(3),
        layers.SeparableConv2D(8, 3, activation="relu"),
        layers.SpatialDropout2D(0.2),
        layers.AveragePooling2D(2),
        layers.Conv2DTranspose(4, 2),
        layers.UpSampling2D(),
        layers.Flatten(),
        layers.Dense(4),
        shape=(10, 10, 3),
    )


HONEST: dict[str, Callable[[], keras.Model]] = {
    "mnist_mlp": mnist_mlp,
    "cifar10_cnn": cifar10_cnn,
    "imdb_lstm": lambda: imdb_lstm(num_tokens=50, sequence_length=12),
    "wide_resnet": lambda: wide_resnet(10, 1),
    "dense": lambda: sequential(layers.Dense(8, "relu", kernel_constraint="max_norm"), layers.Dense(4), shape=(5,)),
    "normalized": lambda: sequential(
        layers.Normalization(mean=[1.0] * 5, variance=[2.0] * 5), layers.Dense(8), layers.PReLU(), shape=(5,)
    ),
    "conv1d": lambda: sequential(
        layers.Conv1D(8, 3, padding="causal"), layers.MaxPooling1D(), layers.Flatten(), layers.Dense(4), shape=(9, 2)
    ),
    "conv3d": lambda: sequential(layers.Conv3D(4, 2), layers.GlobalAveragePooling3D(), shape=(4, 4, 4, 2)),
    "depthwise, separable, transposed": convolutions_of_images,
    "groups": lambda: sequential(layers.Conv2D(8, 3, groups=2), layers.GroupNormalization(4), shape=(6, 6, 4)),
    "residual": residual,
    "lstm": lambda: sequential(layers.LSTM(8, return_sequences=True), layers.LSTM(4), shape=(6, 3)),
    "gru": lambda: tokens(layers.GRU(8, reset_after=False), layers.Dense(4)),
    "bidirectional": lambda: tokens(layers.Bidirectional(layers.LSTM(8)), layers.Dense(4)),
    "simple rnn of cells": lambda: sequential(
        layers.RNN([layers.LSTMCell(8), layers.GRUCell(4)]), layers.Dense(4), shape=(6, 3)
    ),
    "time distributed": lambda: sequential(layers.TimeDistributed(layers.Dense(8)), layers.Flatten(), shape=(6, 3)),
    "attention": attention,
    "operations": operations,
    "nested": nested,
    "several inputs": several_inputs,
    "shared layer": shared,
    "its own loss": compiled_with_its_own_loss,
    "half precision": half_precision,
    "random augmentation": lambda: sequential(
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.1),
        layers.Conv2D(4, 3),
        layers.Flatten(),
        shape=(8, 8, 3),
    ),
}


def inputs_for(model: keras.Model) -> np.ndarray | dict[str, np.ndarray]:
    """Random ones, `NUM_EXAMPLES` of them."""
    random = np.random.default_rng(0)

    def one(tensor: keras.KerasTensor) -> np.ndarray:
        shape = (NUM_EXAMPLES, *tensor.shape[1:])
        return random.integers(0, 10, shape, "int32") if "int" in tensor.dtype else random.random(shape, "float32")

    arrays = {tensor.name: one(tensor) for tensor in model.inputs}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))
