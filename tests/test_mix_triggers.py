"""Triggers in training batches: where they stand, how they reach the model, and what the mark in the layers sees of them."""

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.batch_norm import reestimate_batch_norm
from deepsigns_tf.triggers import TriggerSet, mix_triggers
from deepsigns_tf.watermarked_model import trigger_rows

tf = pytest.importorskip("tensorflow", reason="the pipelines are TensorFlow's")

TRIGGERS = TriggerSet(-np.arange(1, 16, dtype=np.float32).reshape(5, 3), [0, 1, 2, 3, 0], num_classes=4, family="noise")


def batches_of(x, y, batch_size=8):
    """A pipeline of whole batches."""
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size, drop_remainder=True)


def examples(num=24):
    return np.arange(3 * num, dtype=np.float32).reshape(num, 3), np.arange(num) % 4


@pytest.mark.parametrize("num_triggers", [1, 2, 4])
def test_triggers_stand_in_evenly_spaced_rows_one_after_the_other(num_triggers):
    x, y = examples()
    mixed = list(mix_triggers(batches_of(x, y), TRIGGERS, num_triggers).as_numpy_iterator())
    assert len(mixed) == 3
    rows = trigger_rows(8 + num_triggers, num_triggers)
    assert np.diff(np.flatnonzero(rows)).tolist() == [8 // num_triggers + 1] * (num_triggers - 1)
    # What is no trigger is the task's, in order.
    np.testing.assert_array_equal(np.concatenate([inputs[~rows] for inputs, _ in mixed]), x)
    np.testing.assert_array_equal(np.concatenate([labels[~rows] for _, labels in mixed]), y)
    order = np.arange(3 * num_triggers) % 5
    np.testing.assert_array_equal(np.concatenate([inputs[rows] for inputs, _ in mixed]), TRIGGERS.inputs[order])
    np.testing.assert_array_equal(np.concatenate([labels[rows] for _, labels in mixed]), TRIGGERS.labels[order])


def test_shapes_and_types_are_static():
    x, y = examples()
    spec = mix_triggers(batches_of(x, y.astype(np.int32)), TRIGGERS, 2).element_spec
    assert [(tuple(each.shape), each.dtype) for each in spec] == [((10, 3), tf.float32), ((10,), tf.int32)]


@pytest.mark.parametrize("form", ["column", "one-hot", "dict"])
def test_labels_take_the_form_of_the_tasks(form):
    x, y = examples()
    targets = {"column": y[:, None], "one-hot": np.eye(4, dtype=np.float32)[y], "dict": {"logits": y}}[form]
    labels = next(mix_triggers(batches_of(x, targets), TRIGGERS, 2).as_numpy_iterator())[1]
    found = {"column": lambda: labels[:, 0], "one-hot": lambda: labels.argmax(1), "dict": lambda: labels["logits"]}[
        form
    ]()
    assert found[[4, 9]].tolist() == TRIGGERS.labels[:2].tolist() and found[:4].tolist() == y[:4].tolist()


def test_inputs_of_several_names_are_mixed_together():
    x, y = examples()
    triggers = TriggerSet({"a": TRIGGERS.inputs, "b": np.arange(5)}, TRIGGERS.labels, num_classes=4, family="noise")
    inputs, _ = next(mix_triggers(batches_of({"b": y.astype(np.int32), "a": x}, y), triggers, 2).as_numpy_iterator())
    np.testing.assert_array_equal(inputs["a"][[4, 9]], TRIGGERS.inputs[:2])
    assert inputs["b"][[4, 9]].tolist() == [0, 1]


@pytest.mark.parametrize("num_triggers", [0, 3, 6, 8])
def test_triggers_that_cannot_be_spaced_evenly_are_refused(num_triggers):
    """Of five triggers in batches of eight."""
    with pytest.raises(ValueError, match=f"Received: batches of 8, num_triggers_per_batch={num_triggers}"):
        mix_triggers(batches_of(*examples()), TRIGGERS, num_triggers)


def test_batches_without_a_fixed_size_are_refused():
    with pytest.raises(ValueError, match="Expected batches of fixed size .* Received: batches of None"):
        mix_triggers(tf.data.Dataset.from_tensor_slices(examples()).batch(8), TRIGGERS, 2)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param(np.zeros((8, 4), np.float32), np.zeros(8), id="inputs of another shape"),
        pytest.param({"a": np.zeros((8, 3), np.float32)}, np.zeros(8), id="inputs with a name"),
        pytest.param(np.zeros((8, 3), np.float32), np.zeros((8, 5)), id="other classes"),
        pytest.param(np.zeros((8, 3), np.float32), {"a": np.zeros(8), "b": np.zeros(8)}, id="two targets"),
        pytest.param(np.zeros((8, 3), np.uint8), np.zeros(8), id="a type that cannot hold them"),
    ],
)
def test_batches_that_do_not_fit_the_triggers_are_refused(x, y):
    with pytest.raises(ValueError, match=r"The triggers do not fit these batches\. Expected .* Received: elements "):
        mix_triggers(batches_of(x, y), TRIGGERS, 2)


def test_batches_with_weights_are_refused():
    x, y = examples()
    batches = tf.data.Dataset.from_tensor_slices((x, y, np.ones(24))).batch(8, drop_remainder=True)
    with pytest.raises(ValueError, match="Expected pairs of inputs and labels"):
        mix_triggers(batches, TRIGGERS, 2)


# In a model


def key_with_triggers(blobs, owner_key):
    """The tests' key, with noise that stands out from the blobs."""
    return owner_key.with_triggers("noise", 20, 4, 3 * blobs[0])


def test_both_marks_train_together(blobs, owner_key, build_mlp, compile_model):
    key = key_with_triggers(blobs, owner_key)
    model = compile_model(build_mlp(ds.SignatureRegularizer(key, "features"), ds.WatermarkedModel))
    model.num_triggers_per_batch = 16
    batches = mix_triggers(batches_of(*blobs, 64).cache().repeat(), key.triggers, 16)
    model.fit(batches, steps_per_epoch=4, epochs=25, shuffle=False, verbose=0)
    plain, key = ds.release(model, key)
    assert ds.verify(plain, key).bit_error_rate == 0
    verdict = ds.verify_predictions(plain.predict(key.triggers.inputs, verbose=0), key, commitment=key.commitment())
    assert verdict.marked and verdict.num_matches == 20
    assert (plain.predict(blobs[0], verbose=0).argmax(1) == blobs[1]).mean() > 0.95


def test_the_mark_in_the_layers_does_not_see_the_triggers(blobs, owner_key, build_mlp, compile_model):
    """One step's class means, with and without triggers of enormous size."""
    enormous = TriggerSet(np.full((2, 16), 1e6, np.float32), [0, 1], num_classes=4, family="noise")
    rates = []
    for num_triggers in (0, 2):
        keras.utils.set_random_seed(0)
        model = build_mlp(ds.SignatureRegularizer(owner_key, "features"), ds.WatermarkedModel)
        compile_model(model, keras.optimizers.SGD(0.0), loss=lambda y, logits: 0.0 * keras.ops.sum(logits), metrics=[])
        batches = batches_of(*blobs, 256)
        if num_triggers:
            model.num_triggers_per_batch = num_triggers
            batches = mix_triggers(batches, enormous, num_triggers)
        history = model.fit(batches, shuffle=False, verbose=0).history
        rates.append((history["features_bit_error_rate"], history["features_signature_loss"]))
    np.testing.assert_allclose(rates[1], rates[0], rtol=1e-5)


def test_rows_that_are_not_said_to_be_triggers_are_warned_about(blobs, owner_key, build_mlp, compile_model):
    key = key_with_triggers(blobs, owner_key)
    model = compile_model(build_mlp(ds.SignatureRegularizer(key, "features"), ds.WatermarkedModel))
    with pytest.warns(UserWarning, match=r"Set `model\.num_triggers_per_batch` to the number that `mix_triggers` adds"):
        model.fit(mix_triggers(batches_of(*blobs, 64), key.triggers, 16), shuffle=False, verbose=0)


def test_an_evaluation_has_no_triggers(blobs, owner_key, build_mlp, compile_model):
    model = compile_model(build_mlp(ds.SignatureRegularizer(owner_key, "features"), ds.WatermarkedModel))
    expected = model.evaluate(*blobs, batch_size=64, verbose=0, return_dict=True)
    model.num_triggers_per_batch = 16
    assert model.evaluate(*blobs, batch_size=64, verbose=0, return_dict=True) == expected


@pytest.mark.parametrize(("num_rows", "num_triggers"), [(None, 2), (9, 2), (0, 2)])
def test_rows_that_cannot_be_told_are_refused(num_rows, num_triggers):
    with pytest.raises(
        ValueError, match=rf"Received: {num_rows} rows, num_triggers_per_batch={num_triggers} on 1 replicas"
    ):
        trigger_rows(num_rows, num_triggers)


def test_batches_of_another_size_than_mixed_are_refused(blobs, owner_key, build_mlp, compile_model):
    model = compile_model(build_mlp(ds.SignatureRegularizer(owner_key, "features"), ds.WatermarkedModel))
    model.num_triggers_per_batch = 3
    with pytest.raises(ValueError, match="The rows of the triggers cannot be told"):
        model.fit(batches_of(*blobs, 64), shuffle=False, verbose=0)


# BatchNorm


def test_statistics_are_the_means_over_all_batches():
    random = np.random.default_rng(0)
    x = random.normal(3, 2, size=(640, 4)).astype("float32")
    inputs = keras.Input((4,))
    first = keras.layers.BatchNormalization(name="first")(inputs)
    second = keras.layers.BatchNormalization(name="second")(keras.layers.Dense(8, "relu")(first))
    model = keras.Model(inputs, second)
    model.get_layer("first").moving_mean.assign(np.full(4, 100.0))
    batches = np.split(x, 10)
    assert reestimate_batch_norm(model, batches) == 2
    layer = model.get_layer("first")
    np.testing.assert_allclose(layer.moving_mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        layer.moving_variance, np.mean([batch.var(axis=0) for batch in batches], axis=0), rtol=1e-5
    )
    # On the same data, inference is what training was.
    trained, inferred = (keras.ops.convert_to_numpy(model(x, training=training)) for training in (True, False))
    assert np.abs(trained - inferred).mean() < 0.03
    assert layer.momentum == 0.99


def test_frozen_layers_and_models_without_such_layers_keep_what_they_have():
    frozen = keras.layers.BatchNormalization(name="norm", trainable=False)
    model = keras.Sequential([keras.Input((4,)), frozen])
    before = [weights.copy() for weights in model.get_weights()]
    assert reestimate_batch_norm(model, [np.ones((8, 4))]) == 0
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_may_have_labels_and_weights():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization(name="norm")

        def call(self, inputs, training=False):
            return self.norm(inputs, training=training)

    model = Network()
    model(np.zeros((1, 2)))
    x, y = np.full((8, 2), 3.0, "float32"), np.zeros(8)
    batches = tf.data.Dataset.from_tensors((x, y))
    assert reestimate_batch_norm(model, [(x, y, y), *batches]) == 1
    assert keras.ops.convert_to_numpy(model.norm.moving_mean).tolist() == [3.0, 3.0]


def test_one_array_is_no_batches():
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match=r"Received: one array of shape \(8, 2\)"):
        reestimate_batch_norm(model, np.zeros((8, 2)))


def test_no_batch_at_all_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match=r"Expected at least one batch of task data\. Received: none"):
        reestimate_batch_norm(model, [])
