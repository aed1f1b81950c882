"""The mark as training goes on: what the callback adds to the logs, and who sees it."""

import csv

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.candidates import candidate_means
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.readings import SignatureReader
from deepsigns_tf.responses import Place

ENTRIES = ["features_key_bit_error_rate", "features_key_margin", "features_key_signature_loss"]


@pytest.fixture
def marked_training(blobs, owner_key, build_mlp, compile_model):
    """A function that trains a fresh marked model with the given callbacks; it returns model and `History`."""

    def train(callbacks, epochs=2, **kwargs):
        model = compile_model(build_mlp(ds.SignatureRegularizer(owner_key, "features", **kwargs), ds.WatermarkedModel))
        return model, model.fit(*blobs, batch_size=64, epochs=epochs, callbacks=callbacks, verbose=0)

    return train


class ReadByHand(keras.callbacks.Callback):
    """The three entries, worked out with NumPy from the class means of the key inputs."""

    def __init__(self, owner_key):
        super().__init__()
        self.owner_key = owner_key
        self.values = {name: [] for name in ENTRIES}

    def on_epoch_end(self, epoch, logs=None):
        key = self.owner_key
        x, labels = key.key_inputs.inputs, key.key_inputs.labels
        hidden = keras.Model(self.model.inputs[0], self.model.get_layer("hidden").output)
        activations = keras.ops.convert_to_numpy(hidden(x, training=False)).astype(np.float64)
        means = np.stack([activations[labels == label].mean(axis=0) for label in range(4)])
        logits = means @ key.projection("features", 128)
        signs = 2.0 * key.signature("features") - 1.0
        deviation = np.sqrt(((means - means.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) * 128 / 127)
        values = (
            np.mean((logits > 0) != (signs > 0)),
            np.median(signs * logits / deviation[:, None]),
            np.mean(np.log1p(np.exp(-signs * logits))),
        )
        for name, value in zip(ENTRIES, values, strict=True):
            self.values[name].append(value)


@pytest.mark.any_backend
def test_history_holds_what_a_reading_by_hand_gives(owner_key, marked_training):
    by_hand = ReadByHand(owner_key)
    _, history = marked_training([ds.SignatureLogger(owner_key), by_hand], epochs=3)
    for name in ENTRIES:
        np.testing.assert_allclose(history.history[name], by_hand.values[name], rtol=1e-5)
    # It moves: a logger that read once and repeated itself would pass otherwise.
    assert len(set(history.history["features_key_margin"])) == 3


@pytest.mark.any_backend
def test_the_last_reading_is_the_verdict_of_the_released_model(blobs, owner_key, marked_model):
    history = marked_model.fit(*blobs, batch_size=64, callbacks=[ds.SignatureLogger(owner_key)], verbose=0).history
    (reading,) = ds.verify(*ds.release(marked_model, owner_key)).readings
    assert history["features_key_bit_error_rate"] == [reading.bit_error_rate] == [0.0]
    assert history["features_key_margin"][0] == pytest.approx(np.median(reading.margins), rel=1e-5)


@pytest.mark.any_backend
def test_every_carrier_has_entries_of_its_own(blobs, compile_model):
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("early", (0, 1), 16), ds.Carrier("late", (1, 2, 3), 16)])
    key = key.with_key_inputs(*blobs, num_per_class=8)
    inputs = keras.Input((16,))
    x = keras.layers.Dense(48, activity_regularizer=ds.SignatureRegularizer(key, "early"), name="first")(inputs)
    x = keras.layers.Dense(64, activity_regularizer=ds.SignatureRegularizer(key, "late"), name="second")(x)
    model = compile_model(ds.WatermarkedModel(inputs, keras.layers.Dense(4)(x)))
    history = model.fit(*blobs, callbacks=[ds.SignatureLogger(key)], verbose=0).history
    key = key.with_layers([CarrierLayer("early", "first", 48), CarrierLayer("late", "second", 64)])
    for carrier, path, width in (("early", "first", 48), ("late", "second", 64)):
        means = candidate_means(model, key)[carrier].means[Place(path, 0)]
        reading = SignatureReader(key, carrier, width).read(means)
        assert history[f"{carrier}_key_bit_error_rate"] == [reading.bit_error_rate]


@pytest.mark.any_backend
def test_a_model_that_is_not_finite_is_logged_as_such(blobs, owner_key, build_mlp, compile_model):
    model = compile_model(build_mlp(ds.SignatureRegularizer(owner_key, "features"), ds.WatermarkedModel))
    model.get_layer("hidden").bias.assign(np.full(128, np.nan, "float32"))
    history = model.fit(*blobs, callbacks=[ds.SignatureLogger(owner_key)], verbose=0).history
    assert all(np.isnan(history[name]).all() for name in ENTRIES)


@pytest.mark.any_backend
def test_callbacks_after_it_see_its_entries_and_those_before_do_not(owner_key, marked_training, tmp_path):
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    callbacks = [keras.callbacks.CSVLogger(before), ds.SignatureLogger(owner_key), keras.callbacks.CSVLogger(after)]
    _, history = marked_training(callbacks)
    with after.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ENTRIES:
        assert [float(row[name]) for row in rows] == pytest.approx(history.history[name])
        assert name not in before.read_text()


@pytest.mark.any_backend
def test_a_callback_that_decides_can_monitor_its_entries(owner_key, marked_training):
    """Keras stops when the value does not rise, and the bit error rate falls from the first epoch to the second."""
    stop = keras.callbacks.EarlyStopping("features_key_bit_error_rate", mode="max", patience=1)
    _, history = marked_training([ds.SignatureLogger(owner_key), stop], epochs=5)
    first, second = history.history["features_key_bit_error_rate"]
    assert second < first


@pytest.mark.any_backend
def test_reading_changes_nothing_in_training(owner_key, marked_training):
    with_logger, _ = marked_training([ds.SignatureLogger(owner_key)])
    keras.utils.set_random_seed(0)
    without, _ = marked_training([])
    for read, unread in zip(with_logger.weights, without.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(read), keras.ops.convert_to_numpy(unread))


def test_tensorboard_after_it_draws_its_entries(owner_key, marked_training, tmp_path):
    import tensorflow as tf

    callbacks = [ds.SignatureLogger(owner_key), keras.callbacks.TensorBoard(tmp_path, write_graph=False)]
    _, history = marked_training(callbacks)
    (path,) = tmp_path.rglob("*tfevents*")
    seen = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            seen[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    for name in ENTRIES:
        for epoch, value in enumerate(history.history[name]):
            assert seen[f"epoch_{name}", epoch] == pytest.approx(value)


@pytest.mark.any_backend
def test_a_key_without_key_inputs_is_refused():
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", range(4), 32)])
    with pytest.raises(ValueError) as error:
        ds.SignatureLogger(key)
    assert str(error.value) == (
        "This key cannot read a mark yet. Expected a key with key inputs, set by `with_key_inputs` before training. "
        "Received: a key without key inputs"
    )


class Epochs(keras.callbacks.Callback):
    """Counts the epochs that begin."""

    begun = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.begun += 1


@pytest.mark.any_backend
@pytest.mark.parametrize("case", ["another key", "another carrier", "no mark"])
def test_a_model_that_another_key_marks_is_refused_before_the_first_epoch(
    blobs, owner_key, build_mlp, compile_model, case
):
    name = "other" if case == "another carrier" else "features"
    other = ds.OwnerKey.generate("ACME Vision", [ds.Carrier(name, range(4), 32)])
    if case == "no mark":
        model, received = build_mlp(), "carriers []"
    else:
        model = build_mlp(ds.SignatureRegularizer(other, name), ds.WatermarkedModel)
        received = f"carriers ['{name}'], keys with fingerprints ['{other.fingerprint}']"
    epochs = Epochs()
    with pytest.raises(ValueError) as error:
        compile_model(model).fit(*blobs, callbacks=[ds.SignatureLogger(owner_key), epochs], verbose=0)
    assert str(error.value) == (
        "This model was not marked with this key. Expected one layer for each of the carriers ['features'], marked by the key "
        f"with fingerprint {owner_key.fingerprint}. Received: {received}"
    )
    assert epochs.begun == 0


@pytest.mark.any_backend
def test_a_logger_reads_one_model_after_another(blobs, owner_key, compile_model):
    """The second is wider than the first: what was derived for the first does not fit it."""
    logger = ds.SignatureLogger(owner_key)
    for num_units in (64, 96):
        inputs = keras.Input((16,))
        regularizer = ds.SignatureRegularizer(owner_key, "features")
        x = keras.layers.Dense(num_units, activity_regularizer=regularizer)(inputs)
        model = compile_model(ds.WatermarkedModel(inputs, keras.layers.Dense(4)(x)))
        history = model.fit(*blobs, callbacks=[logger], verbose=0).history
        assert 0.0 <= history["features_key_bit_error_rate"][0] < 0.6


@pytest.mark.any_backend
def test_a_subclassed_model_that_is_built_by_training_is_read(blobs, owner_key, compile_model):
    class Network(ds.WatermarkedModel):
        def __init__(self):
            super().__init__()
            regularizer = ds.SignatureRegularizer(owner_key, "features")
            self.hidden = keras.layers.Dense(128, activity_regularizer=regularizer)
            self.head = keras.layers.Dense(4)

        def call(self, inputs):
            return self.head(self.hidden(inputs))

    history = compile_model(Network()).fit(*blobs, callbacks=[ds.SignatureLogger(owner_key)], verbose=0).history
    assert set(ENTRIES) <= set(history)
