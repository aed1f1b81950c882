"""Activations: pooled to one row per example, summed per class, read out of any model."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from deepsigns_tf.activations import (
    class_means,
    class_membership,
    class_sums,
    named_layers,
    num_features,
    pool,
    record_activations,
)

pytestmark = pytest.mark.any_backend


class _Zero(keras.regularizers.Regularizer):
    """A regularizer of the layer's own, to see that it is put back."""

    def __call__(self, activations):
        return ops.zeros((), "float32")


def _numpy(tensor):
    return ops.convert_to_numpy(tensor)


def _random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# Pooling.


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_pool_leaves_dense_outputs_as_they_are(pooling):
    activations = _random(5, 7)
    np.testing.assert_array_equal(_numpy(pool(activations, pooling)), activations)


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 4, 5, 3), (2, 2, 3, 4, 3)], ids=["1D", "2D", "3D"])
def test_pool_averages_over_all_positions(shape):
    """Pixels of a convolution and time steps of a sequence alike."""
    activations = _random(*shape)
    expected = activations.reshape(shape[0], -1, shape[-1]).mean(axis=1)
    np.testing.assert_allclose(_numpy(pool(activations, "mean")), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 4, 5, 3), (2, 2, 3, 4, 3)], ids=["1D", "2D", "3D"])
def test_pool_flatten_keeps_every_position(shape):
    activations = _random(*shape)
    np.testing.assert_array_equal(_numpy(pool(activations, "flatten")), activations.reshape(shape[0], -1))


@pytest.mark.parametrize("dtype, step", [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_pool_casts_up_before_the_mean(dtype, step):
    """The mean of two neighbouring half-precision numbers is not itself one."""
    activations = ops.cast(np.array([[[1.0], [1.0 + step]]], "float32"), dtype)
    features = _numpy(pool(activations, "mean"))
    assert features.dtype == np.float32
    assert features.item() == 1.0 + step / 2


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3)])
def test_pool_returns_float32(pooling, dtype, shape):
    assert _numpy(pool(_random(*shape).astype(dtype), pooling)).dtype == np.float32


def test_pool_refuses_activations_without_feature_axis():
    with pytest.raises(ValueError) as error:
        pool(np.zeros(3, "float32"), "mean")
    assert str(error.value) == (
        "These activations cannot carry a mark. Expected a tensor (batch, ..., features). Received: shape (3,)"
    )


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3), (2, 4, 5, 3), (2, 2, 3, 4, 3)])
def test_num_features_is_the_width_that_pool_gives(pooling, shape):
    features = pool(np.zeros(shape, "float32"), pooling)
    assert tuple(features.shape) == (2, num_features((None, *shape[1:]), pooling))


def test_num_features_of_a_mean_needs_no_fixed_length():
    assert num_features((None, None, 16), "mean") == 16


@pytest.mark.parametrize(
    "shape, pooling", [((None, None, 16), "flatten"), ((None, 8, None), "mean"), ((None,), "flatten")]
)
def test_num_features_refuses_unknown_sizes(shape, pooling):
    with pytest.raises(ValueError) as error:
        num_features(shape, pooling)
    assert str(error.value) == (
        "The number of features of this layer is not fixed. Expected an output whose kept axes have known sizes. "
        f"Received: shape {shape} with pooling={pooling!r}"
    )


# Sums per class.


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "float32", "float64"])
def test_membership_is_one_hot_of_carrier_classes_and_zero_elsewhere(dtype):
    labels = np.array([7, 2, -1, 0, 2], dtype)
    membership = _numpy(class_membership(labels, (2, 7)))
    assert membership.dtype == np.float32
    assert membership.tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_membership_accepts_unsigned_labels():
    """MNIST's labels come as uint8."""
    labels = np.array([9, 0, 255], "uint8")
    assert _numpy(class_membership(labels, range(10))).sum(axis=0).tolist() == [1, 1, 0]


def test_membership_does_not_wrap_classes_into_a_narrow_label_type():
    """Class 256 is no label that uint8 can hold, and it is not label 0 either."""
    labels = np.array([0, 1], "uint8")
    assert _numpy(class_membership(labels, (0, 256))).tolist() == [[1, 0], [0, 0]]


@settings(deadline=None, max_examples=50)
@given(
    labels=st.lists(st.integers(-1, 5), min_size=1, max_size=8),
    classes=st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
)
def test_membership_rows_count_their_class(labels, classes):
    membership = _numpy(class_membership(np.array(labels), classes))
    assert membership.sum(axis=1).tolist() == [labels.count(label) for label in classes]


@settings(deadline=None, max_examples=50)
@given(data=st.data(), num_rows=st.integers(1, 6), num_units=st.integers(1, 5), num_classes=st.integers(1, 3))
def test_class_sums_equal_numpys(data, num_rows, num_units, num_classes):
    labels = np.array(data.draw(st.lists(st.integers(-1, num_classes), min_size=num_rows, max_size=num_rows)))
    features = _random(num_rows, num_units)
    sums, counts = class_sums(features, class_membership(labels, range(num_classes)))
    for label in range(num_classes):
        np.testing.assert_allclose(_numpy(sums)[label], features[labels == label].sum(axis=0), atol=1e-6)
        assert _numpy(counts)[label] == (labels == label).sum()


def test_class_sums_of_half_precision_features_are_float32():
    """300 rows of 256.0 overflow float16, which ends at 65504."""
    sums, counts = class_sums(np.full((300, 2), 256.0, "float16"), np.ones((1, 300), "float32"))
    assert _numpy(sums).dtype == _numpy(counts).dtype == np.float32
    assert _numpy(sums).tolist() == [[76800.0, 76800.0]]
    assert _numpy(counts).tolist() == [300.0]


def test_class_means_divide_sums_by_counts():
    sums, counts = (ops.convert_to_tensor(values, "float32") for values in ([[6.0, 3.0], [8.0, 0.0]], [3.0, 2.0]))
    means = class_means(sums, counts)
    assert _numpy(means).tolist() == [[2.0, 1.0], [4.0, 0.0]]


def test_class_means_of_an_absent_class_are_zero():
    sums, counts = (ops.convert_to_tensor(values, "float32") for values in ([[6.0, 3.0], [0.0, 0.0]], [3.0, 0.0]))
    means = class_means(sums, counts)
    assert _numpy(means).tolist() == [[2.0, 1.0], [0.0, 0.0]]


# Layers by path.


def test_named_layers_of_a_functional_model_stand_in_its_order():
    inputs = keras.Input((4,), name="pixels")
    x = layers.Dense(3, name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="second")(x))
    assert list(named_layers(model)) == ["pixels", "first", "second"]
    assert named_layers(model)["second"] is model.layers[2]


def test_named_layers_look_into_nested_models():
    inner_inputs = keras.Input((4,), name="inner_pixels")
    inner = keras.Model(inner_inputs, layers.Dense(3, name="features")(inner_inputs), name="backbone")
    head = keras.Sequential([keras.Input((3,), name="head_input"), layers.Dense(2, name="features")], name="head")
    model = keras.Sequential([keras.Input((4,), name="pixels"), inner, head])
    assert list(named_layers(model)) == [
        "pixels",
        "backbone",
        "backbone/inner_pixels",
        "backbone/features",
        "head",
        "head/head_input",
        "head/features",
    ]
    assert named_layers(model)["backbone/features"] is inner.layers[1]
    assert named_layers(model)["head/features"] is head.layers[0]


def test_named_layers_look_into_subclassed_models():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem = layers.Dense(3, name="stem")
            self.blocks = [layers.Dense(3, name="block_0"), layers.Dense(3, name="block_1")]

        def call(self, inputs):
            return self.blocks[1](self.blocks[0](self.stem(inputs)))

    assert list(named_layers(Model())) == ["stem", "block_0", "block_1"]


def test_named_layers_look_into_wrappers():
    inputs = keras.Input((5, 4), name="tokens")
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm"), name="both_ways")(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(2, name="dense"), name="each_step")(x))
    found = named_layers(model)
    assert {"both_ways", "both_ways/forward_lstm", "both_ways/backward_lstm", "each_step/dense"} <= set(found)
    assert found["both_ways/forward_lstm"] is found["both_ways"].forward_layer
    assert found["each_step/dense"] is found["each_step"].layer


def test_named_layers_show_a_shared_layer_once():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,), name="pixels")
    inner = keras.Sequential([shared], name="inner")
    model = keras.Model(inputs, inner(shared(inputs)))
    assert [path for path, layer in named_layers(model).items() if layer is shared] == ["shared"]


def _siblings(names):
    """A model whose layers have these names; only subclassed models may repeat one."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [layers.Dense(1, name=name) for name in names]

    return Model()


def test_named_layers_number_siblings_of_one_name():
    model = _siblings(["twin", "other", "twin", "twin"])
    found = named_layers(model)
    assert list(found) == ["twin", "other", "twin#1", "twin#2"]
    assert [found[path] for path in found] == list(model.parts)


@settings(deadline=None, max_examples=30)
@given(names=st.lists(st.sampled_from(["a", "a#1", "a#2", "a#1#1"]), min_size=1, max_size=5))
def test_named_layers_lose_no_layer_whatever_the_names(names):
    """Whoever renames a stolen model's layers must not be able to hide one from the reader."""
    assert len(named_layers(_siblings(names))) == len(names)


# Activations out of a model.


def _two_dense(first_regularizer=None):
    inputs = keras.Input((4,), name="pixels")
    x = layers.Dense(3, activation="relu", activity_regularizer=first_regularizer, name="first")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="second")(x))


def test_recorded_activations_are_the_layers_outputs():
    """After the activation function, as the regularizer sees them."""
    model, x = _two_dense(), _random(5, 4)
    ((rows, outputs, answer),) = record_activations(model, x, {"first": model.get_layer("first")})
    kernel, bias = model.get_layer("first").get_weights()
    assert rows == slice(0, 5)
    assert set(outputs) == {"first"}
    np.testing.assert_allclose(_numpy(outputs["first"][0]), np.maximum(x @ kernel + bias, 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(_numpy(answer), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


def test_recorded_activations_come_in_batches_that_cover_all_rows():
    model, x = _two_dense(), _random(7, 4)
    parts = list(record_activations(model, x, named_layers(model), batch_size=3))
    ((_, whole, _),) = record_activations(model, x, named_layers(model))
    assert [rows for rows, _, _ in parts] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    joined = np.concatenate([_numpy(outputs["second"][0]) for _, outputs, _ in parts])
    np.testing.assert_allclose(joined, _numpy(whole["second"][0]), rtol=1e-4, atol=1e-5)


def test_recording_is_in_inference_mode():
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.9, name="dropout")])
    ((_, outputs, _),) = record_activations(model, np.ones((8, 4), "float32"), named_layers(model))
    np.testing.assert_array_equal(_numpy(outputs["dropout"][0]), np.ones((8, 4)))


def test_recording_puts_the_layers_own_regularizers_back():
    own = _Zero()
    model = _two_dense(own)
    for _ in record_activations(model, _random(5, 4), named_layers(model), batch_size=2):
        # Between the batches too: the reader may stop early.
        assert model.get_layer("first").activity_regularizer is own
        assert model.get_layer("second").activity_regularizer is None
    assert model.get_layer("first").activity_regularizer is own


def test_recording_puts_regularizers_back_when_the_model_raises():
    class Broken(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, activity_regularizer=_Zero(), name="dense")

        def call(self, inputs):
            self.dense(inputs)
            raise RuntimeError("broken on purpose")

    model = Broken()
    own = model.dense.activity_regularizer
    with pytest.raises(RuntimeError, match="broken on purpose"):
        list(record_activations(model, _random(2, 4), {"dense": model.dense}))
    assert model.dense.activity_regularizer is own


def test_recording_shows_a_layer_called_twice_in_the_order_of_its_calls():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    ((_, outputs, answer),) = record_activations(model, _random(3, 4), {"shared": shared})
    first, second = outputs["shared"]
    np.testing.assert_allclose(_numpy(shared(first)), _numpy(second), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(_numpy(second), _numpy(answer))


def test_recording_accepts_a_dict_of_inputs():
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    model = keras.Model({"left": left, "right": right}, layers.Concatenate(name="join")([left, right]))
    x = {"left": _random(5, 2), "right": _random(5, 3)}
    parts = list(record_activations(model, x, named_layers(model), batch_size=2))
    assert [rows.stop for rows, _, _ in parts] == [2, 4, 5]
    joined = np.concatenate([_numpy(outputs["join"][0]) for _, outputs, _ in parts])
    np.testing.assert_array_equal(joined, np.concatenate([x["left"], x["right"]], axis=1))


def test_recording_shows_no_output_of_a_layer_that_does_not_fire():
    """`TimeDistributed` calls the layer inside it past the place where activity regularizers are called."""
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(2, name="dense"), name="each_step")(inputs))
    ((_, outputs, _),) = record_activations(model, _random(3, 5, 4), named_layers(model))
    assert outputs["each_step/dense"] == []
    assert len(outputs["each_step"]) == 1


@pytest.mark.parametrize("kind", ["sequential", "subclassed", "nested"])
def test_recording_works_for_every_kind_of_model(kind):
    dense = layers.Dense(3, name="dense")
    if kind == "sequential":
        model = keras.Sequential([keras.Input((4,)), dense])
    elif kind == "nested":
        model = keras.Sequential([keras.Input((4,)), keras.Sequential([keras.Input((4,)), dense])])
    else:

        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = dense

            def call(self, inputs):
                return self.dense(inputs)

        model = Model()
    ((_, outputs, answer),) = record_activations(model, _random(3, 4), {"dense": dense})
    np.testing.assert_array_equal(_numpy(outputs["dense"][0]), _numpy(answer))


def test_a_layer_without_a_name_is_not_mixed_up_with_the_answer():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name=""), layers.Dense(2)])
    ((_, outputs, answer),) = record_activations(model, _random(5, 4), named_layers(model))
    assert [tuple(output.shape) for output in outputs[""]] == [(5, 3)]
    assert tuple(answer.shape) == (5, 2)


def _recurrent(layer, shape=(5, 3)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    ("model", "calls"),
    [
        (lambda: _recurrent(layers.LSTM(6, name="rnn")), {"rnn": 1, "rnn/lstm_cell": 0}),
        (lambda: _recurrent(layers.GRU(6, name="rnn")), {"rnn": 1, "rnn/gru_cell": 0}),
        (lambda: _recurrent(layers.SimpleRNN(6, name="rnn")), {"rnn": 1, "rnn/simple_rnn_cell": 0}),
        (lambda: _recurrent(layers.LSTM(6, name="rnn", unroll=True)), {"rnn": 1, "rnn/lstm_cell": 0}),
        (
            lambda: _recurrent(layers.RNN([layers.GRUCell(6, name="a"), layers.LSTMCell(6, name="b")], name="rnn")),
            {"rnn": 1, "rnn/stacked_rnn_cells": 0, "rnn/stacked_rnn_cells/a": 0, "rnn/stacked_rnn_cells/b": 0},
        ),
        (
            lambda: _recurrent(layers.ConvLSTM2D(6, 2, name="rnn"), (3, 4, 4, 2)),
            {"rnn": 1, "rnn/conv_lstm_cell": 0},
        ),
        (
            lambda: _recurrent(layers.Bidirectional(layers.LSTM(6, name="rnn"), name="both")),
            {
                "both": 1,
                "both/forward_rnn": 1,
                "both/forward_rnn/lstm_cell": 0,
                "both/backward_rnn": 1,
                "both/backward_rnn/lstm_cell": 0,
            },
        ),
    ],
    ids=["LSTM", "GRU", "SimpleRNN", "unrolled", "stacked cells", "ConvLSTM2D", "Bidirectional"],
)
def test_recording_does_not_listen_inside_a_recurrent_layer(model, calls):
    """A cell fires at every time step of a loop in Python, and never in cuDNN's kernel or in JAX's compiled loop."""
    keras.utils.clear_session()
    model = model()
    x = _random(3, *model.input_shape[1:])
    ((_, outputs, _),) = record_activations(model, x, named_layers(model))
    assert {path: len(each) for path, each in outputs.items() if path != "input_layer"} == calls


def test_recording_leaves_out_what_only_stands_in_for_a_tensor():
    """Inside a compiled function or loop a layer puts out a tracer, which is of no use once that has ended."""

    class Traced(keras.Model):
        def __init__(self):
            super().__init__()
            self.inside = layers.Dense(3, name="inside")
            self.outside = layers.Dense(2, name="outside")

        def build(self, shape):
            self.inside.build(shape)
            self.outside.build((None, 3))
            self.built = True

        def call(self, inputs):
            return self.outside(_compiled(self.inside)(inputs))

    model = Traced()
    ((_, outputs, answer),) = record_activations(model, _random(3, 4), named_layers(model))
    assert len(outputs["outside"]) == 1
    assert all(_numpy(output).shape == (3, 3) for output in outputs["inside"])
    assert _numpy(answer).shape == (3, 2)


def _compiled(function):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function  # PyTorch has concrete tensors everywhere.
