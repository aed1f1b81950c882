"""The signature regularizer: on every kind of layer, in configs and archives, and its weight in the loss."""

import base64
import json

import keras
import numpy as np
import pytest
from keras import layers

import deepsigns_tf as ds
from deepsigns_tf.label_scope import current_label_scope

pytestmark = pytest.mark.any_backend

BITS = 32
UNITS = 64
EPOCHS = 5
STEPS = 10


@pytest.fixture
def two_class_key():
    """64 bits in 2 classes from a fixed seed: how fast a tiny network takes its bits depends on which they are."""
    return ds.OwnerKey("ACME Vision", [ds.Carrier("features", [0, 1], BITS)], ds.DecisionRule(), bytes(range(32)))


def _flatten_key():
    return ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", [0, 1], BITS, pooling="flatten")])


def _logits_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _simple_rnn(regularizer):
    """Keras' SimpleRNN takes the argument and drops it; the attribute works."""
    layer = layers.SimpleRNN(UNITS)
    layer.activity_regularizer = regularizer
    return layer


# On which layers it works: the shape of an example, and the layer with the regularizer.
LAYERS = {
    "Dense": ((6,), lambda r: layers.Dense(UNITS, "relu", activity_regularizer=r)),
    "Dense on sequences": ((3, 6), lambda r: layers.Dense(UNITS, activity_regularizer=r)),
    "Conv1D": ((6, 2), lambda r: layers.Conv1D(UNITS, 3, activation="relu", activity_regularizer=r)),
    "Conv2D": ((5, 5, 2), lambda r: layers.Conv2D(UNITS, 3, activation="relu", activity_regularizer=r)),
    "Conv3D": ((3, 3, 3, 2), lambda r: layers.Conv3D(UNITS, 2, activation="relu", activity_regularizer=r)),
    "EinsumDense": ((3, 6), lambda r: layers.EinsumDense("abc,cd->abd", (3, UNITS), activity_regularizer=r)),
    "SimpleRNN": ((3, 6), _simple_rnn),
    "LSTM": ((3, 6), lambda r: layers.LSTM(UNITS, activity_regularizer=r)),
    "GRU": ((3, 6), lambda r: layers.GRU(UNITS, activity_regularizer=r)),
    "RNN of a cell": ((3, 6), lambda r: layers.RNN(layers.GRUCell(UNITS), activity_regularizer=r)),
    "LSTM over time": ((3, 6), lambda r: layers.LSTM(UNITS, return_sequences=True, activity_regularizer=r)),
    "Bidirectional": ((3, 6), lambda r: layers.Bidirectional(layers.LSTM(UNITS // 2), activity_regularizer=r)),
    "Activation": ((UNITS,), lambda r: layers.Activation("tanh", activity_regularizer=r)),
}


def _data(shape, num_rows=32):
    """Two classes that any of the layers can tell apart."""
    random = np.random.default_rng(0)
    labels = np.arange(num_rows) % 2
    centres = random.normal(size=(2, *shape))
    return (centres[labels] + 0.1 * random.normal(size=(num_rows, *shape))).astype("float32"), labels


class _Counting(ds.SignatureRegularizer):
    """Counts what it is shown inside of steps; while Keras builds a model there is no projection yet."""

    calls = 0

    def __call__(self, activations):
        self.calls += current_label_scope() is not None and self.projection is not None
        return super().__call__(activations)


def _assert_layer_carries_the_mark(kind, key):
    """It fires once in a step, and the released model proves the mark."""
    shape, layer_of = LAYERS[kind]
    key = key.with_key_inputs(*_data(shape), num_per_class=16)
    steps = []

    class Model(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            steps.append(y)
            return super().carrier_labels(x, y)

    def build(model_class, regularizer=None):
        inputs = keras.Input(shape)
        # A trainable layer below, so that a carrier without weights can be marked too.
        x = layer_of(regularizer)(layers.Dense(shape[-1])(inputs))
        if len(x.shape) > 2:
            x = layers.Flatten()(x)
        return model_class(inputs, layers.Dense(2)(x))

    regularizer = _Counting(key, "features")
    model = build(Model, regularizer)
    model.compile(keras.optimizers.Adam(1e-2), _logits_loss())
    # Few long epochs: it is their beginnings that take time.
    x, y = (np.concatenate([each] * STEPS) for each in _data(shape))
    losses = model.fit(x, y, batch_size=32, epochs=EPOCHS, shuffle=False, verbose=0).history["features_signature_loss"]
    # Both are counted as often as the step is traced, or run.
    assert regularizer.calls == len(steps) > 0
    assert losses[-1] < 0.9 * losses[0]
    plain, key = ds.release(model, key, build=lambda: build(keras.Model))
    assert ds.verify(plain, key, commitment=key.commitment()).marked


# 64 bits cannot reach the level that holds without a checked commitment where there is more than one layer to read.
_level_out_of_reach = pytest.mark.filterwarnings("ignore:The released model does not carry the mark at the key's level")


@_level_out_of_reach
@pytest.mark.parametrize("kind", LAYERS)
def test_layer_carries_the_mark(kind, two_class_key):
    _assert_layer_carries_the_mark(kind, two_class_key)


@_level_out_of_reach
@pytest.mark.parametrize("kind", ["Conv1D", "Conv2D", "LSTM over time"])
def test_layer_carries_the_mark_in_every_position(kind):
    """With `pooling="flatten"`."""
    _assert_layer_carries_the_mark(kind, _flatten_key())


def test_regularizer_that_the_layer_drops_is_missed(two_class_key):
    """Keras' SimpleRNN takes the argument and drops it; training must not go on unmarked."""
    inputs = keras.Input((3, 6))
    x = layers.SimpleRNN(UNITS, activity_regularizer=ds.SignatureRegularizer(two_class_key, "features"))(inputs)
    model = ds.WatermarkedModel(inputs, layers.Dense(2)(x))
    model.compile("sgd", _logits_loss())
    with pytest.raises(ValueError, match="No layer of this model carries a mark."):
        model.fit(*_data((3, 6)), verbose=0)


# Configs.


def _regularizer(key):
    return ds.SignatureRegularizer(
        key, "features", strength=0.25, centres="learned", clustering_strength=0.5, separation=2.0
    )


def test_config_holds_public_parameters_alone(two_class_key):
    assert _regularizer(two_class_key).get_config() == {
        "carrier": {
            "name": "features",
            "classes": [0, 1],
            "bits_per_class": BITS,
            "pooling": "mean",
            "projection": "balanced",
        },
        "key_fingerprint": two_class_key.fingerprint,
        "strength": 0.25,
        "centres": "learned",
        "clustering_strength": 0.5,
        "separation": 2.0,
    }


def test_config_survives_json_and_holds_no_secret(two_class_key):
    """Also after the projection was derived."""
    regularizer = _regularizer(two_class_key)
    regularizer.observe((None, UNITS))
    regularizer.build()
    text = json.dumps(regularizer.get_config())
    assert json.loads(text) == regularizer.get_config()
    seed, bits = two_class_key.seed, two_class_key.signature("features")
    for secret in (seed.hex(), base64.b64encode(seed).decode(), repr(seed), np.packbits(bits).tobytes().hex()):
        assert secret not in text
    assert str(bits[0].tolist())[1:-1] not in text


@pytest.mark.parametrize("projection", ["balanced", "gaussian"])
def test_config_round_trip_keeps_what_is_not_default(projection):
    carrier = ds.Carrier("block/1".replace("/", "_"), [3, 1], 40, pooling="flatten", projection=projection)
    key = ds.OwnerKey.generate("ACME Vision", [carrier])
    regularizer = ds.SignatureRegularizer(key, carrier.name, 0.25, "learned", 0.5, 2.0)
    with ds.owner_key_scope(key):
        revived = keras.regularizers.deserialize(
            json.loads(json.dumps(keras.regularizers.serialize(regularizer))),
        )
    assert type(revived) is ds.SignatureRegularizer
    assert revived.get_config() == regularizer.get_config()
    assert revived.carrier == carrier
    assert revived.owner_key is key


def test_revival_outside_a_scope_has_no_key(two_class_key):
    revived = ds.SignatureRegularizer.from_config(_regularizer(two_class_key).get_config())
    assert revived.owner_key is None
    assert revived.key_fingerprint == two_class_key.fingerprint


def test_scopes_nest_and_end(two_class_key):
    config, other = _regularizer(two_class_key).get_config(), _flatten_key()
    with pytest.raises(RuntimeError), ds.owner_key_scope(two_class_key):
        with pytest.raises(RuntimeError), ds.owner_key_scope(other):
            raise RuntimeError
        assert ds.SignatureRegularizer.from_config(config).owner_key is two_class_key
        raise RuntimeError
    assert ds.SignatureRegularizer.from_config(config).owner_key is None


def test_scope_of_another_key_is_refused(two_class_key):
    other = ds.OwnerKey.generate("ACME Vision", two_class_key.carriers)
    with pytest.raises(ValueError) as error, ds.owner_key_scope(other):
        ds.SignatureRegularizer.from_config(_regularizer(two_class_key).get_config())
    assert str(error.value) == (
        "This model was marked with another owner key. Expected the key with fingerprint "
        f"{two_class_key.fingerprint} and carrier 'features'. Received: fingerprint {other.fingerprint}"
    )


def test_scope_of_a_key_with_another_carrier_is_refused(two_class_key):
    """A config that somebody edited does not get the key's bits for another carrier."""
    config = _regularizer(two_class_key).get_config()
    config["carrier"] = config["carrier"] | {"classes": [0, 2]}
    with pytest.raises(ValueError, match="marked with another owner key"), ds.owner_key_scope(two_class_key):
        ds.SignatureRegularizer.from_config(config)


# Arguments.


@pytest.mark.parametrize("name", ["strength", "clustering_strength", "separation"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", None, True])
def test_numbers_must_be_finite_and_not_negative(name, value, two_class_key):
    with pytest.raises(ValueError) as error:
        ds.SignatureRegularizer(two_class_key, "features", **{name: value})
    assert str(error.value) == (
        f"Invalid value for argument `{name}`. Expected a finite number >= 0. Received: {name}={value!r}"
    )


@pytest.mark.parametrize("centres", ["means", None, 1])
def test_centres_are_of_two_kinds(centres, two_class_key):
    with pytest.raises(ValueError) as error:
        ds.SignatureRegularizer(two_class_key, "features", centres=centres)
    assert str(error.value) == (
        f'Invalid value for argument `centres`. Expected "batch" or "learned". Received: centres={centres!r}'
    )


def test_carrier_must_be_the_keys(two_class_key):
    with pytest.raises(ValueError) as error:
        ds.SignatureRegularizer(two_class_key, "head")
    assert str(error.value) == ("This key has no such carrier. Expected one of ['features']. Received: carrier='head'")


@pytest.mark.parametrize("strength", [0, 2, 0.5, np.float64(0.5)])
def test_strength_may_be_any_real_number(strength, two_class_key):
    regularizer = ds.SignatureRegularizer(two_class_key, "features", strength=strength)
    assert type(regularizer.strength) is float
    assert regularizer.strength == strength


def test_one_regularizer_on_two_widths_is_refused(two_class_key):
    regularizer = ds.SignatureRegularizer(two_class_key, "features")
    inputs = keras.Input((6,))
    x = layers.Dense(UNITS, activity_regularizer=regularizer)(inputs)
    outputs = layers.Dense(UNITS + 1, activity_regularizer=regularizer)(x)
    with pytest.raises(ValueError) as error:
        ds.WatermarkedModel(inputs, outputs)
    assert str(error.value) == (
        "The regularizer of carrier 'features' is attached to layers of different width. Expected a regularizer "
        "of its own for each layer. Received: num_units=64 and 65"
    )


@pytest.mark.parametrize("num_units", [BITS, BITS - 1])
def test_layer_too_narrow_for_the_bits_is_refused_when_the_model_is_built(num_units, two_class_key):
    inputs = keras.Input((6,))
    x = layers.Dense(num_units, activity_regularizer=ds.SignatureRegularizer(two_class_key, "features"))(inputs)
    with pytest.raises(ValueError) as error:
        ds.WatermarkedModel(inputs, layers.Dense(2)(x))
    assert str(error.value) == (
        "Carrier 'features' asks for too many bits per class. Expected fewer bits than the layer has features, better at "
        f"most half as many. Received: bits_per_class={BITS}, num_units={num_units}"
    )


def test_layer_with_less_than_two_features_a_bit_is_warned_of_when_the_model_is_built(two_class_key):
    inputs = keras.Input((6,))
    x = layers.Dense(UNITS - 1, activity_regularizer=ds.SignatureRegularizer(two_class_key, "features"))(inputs)
    with pytest.warns(UserWarning, match="above half as many bits as features"):
        ds.WatermarkedModel(inputs, layers.Dense(2)(x))


# Value.


def test_value_outside_a_step_is_a_float32_zero(two_class_key):
    value = ds.SignatureRegularizer(two_class_key, "features")(np.ones((3, UNITS), "float16"))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert tuple(value.shape) == () and float(value) == 0.0


def test_plain_model_with_a_regularizer_trains_as_without(two_class_key):
    """Outside a `WatermarkedModel` no labels are known, so nothing is added to the loss."""

    def train(regularizer):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = layers.Dense(UNITS, "relu", activity_regularizer=regularizer)(inputs)
        model = keras.Model(inputs, layers.Dense(2)(x))
        model.compile(keras.optimizers.SGD(0.1), _logits_loss())
        return model.fit(*_data((6,)), epochs=2, verbose=0, shuffle=False).history["loss"], model.get_weights()

    marked, plain = train(ds.SignatureRegularizer(two_class_key, "features")), train(None)
    assert marked[0] == plain[0]
    for one, other in zip(marked[1], plain[1], strict=True):
        np.testing.assert_array_equal(one, other)


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _signature_loss(means, present, key):
    signs = 2.0 * key.signature("features") - 1.0
    logits = means @ key.projection("features", means.shape[1]).astype("float64")
    return float(np.mean(present[:, None] * np.logaddexp(0.0, -signs * logits)))


def _means(activations, labels):
    masks = [labels == label for label in (0, 1)]
    return np.stack([activations[mask].mean(axis=0) if mask.any() else np.zeros(UNITS) for mask in masks])


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 1, 1, 0, 0], [-1, 0, 7, 1], [1, 1, 1], [-1, -1], [7]])
def test_added_loss_is_strength_times_the_signature_loss_whatever_the_batch_size(labels, two_class_key):
    """The task's loss is 0 here; absent classes and rows without carrier class add nothing."""

    class Model(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            return y["label"]

    labels = np.array(labels)
    inputs = keras.Input((UNITS,))
    regularizer = ds.SignatureRegularizer(two_class_key, "features", strength=0.3)
    outputs = layers.Activation("linear", activity_regularizer=regularizer)(inputs)
    # A weight, without which Keras does not train; nothing depends on it.
    outputs = layers.Dense(1, kernel_initializer="zeros")(outputs)
    model = Model(inputs, {"label": outputs})
    model.compile(keras.optimizers.SGD(0.0), {"label": lambda y_true, y_pred: 0.0 * y_pred}, run_eagerly=True)
    x = np.random.default_rng(1).normal(size=(len(labels), UNITS)).astype("float32")
    logs = model.train_on_batch(x, {"label": labels}, return_dict=True)
    present = np.array([(labels == 0).any(), (labels == 1).any()])
    expected = _signature_loss(_means(x, labels), present, two_class_key)
    assert float(logs["loss"]) == pytest.approx(0.3 * expected, rel=1e-5)
    # Without any row of a carrier class nothing was measured.
    measured = expected if present.any() else float("nan")
    assert float(logs["features_signature_loss"]) == pytest.approx(measured, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("num_rows", [1, 2, 5, 16])
def test_one_step_of_a_linear_model_is_the_one_worked_out_by_hand(num_rows, two_class_key):
    """Two kernels, no biases, SGD: task gradient plus strength times the mark's, whatever the batch size."""
    strength, rate = 0.7, 0.1
    inputs = keras.Input((3,))
    regularizer = ds.SignatureRegularizer(two_class_key, "features", strength)
    x = layers.Dense(UNITS, use_bias=False, activity_regularizer=regularizer)(inputs)
    model = ds.WatermarkedModel(inputs, layers.Dense(2, use_bias=False)(x))
    model.compile(keras.optimizers.SGD(rate), _logits_loss(), run_eagerly=True)
    data, labels = _data((3,), num_rows)
    first, second = (weights.astype("float64") for weights in model.get_weights())

    hidden = data @ first
    logits = hidden @ second
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    by_logits = (probabilities - np.eye(2)[labels]) / num_rows
    membership = np.eye(2)[labels]
    counts = membership.sum(axis=0)
    present = np.minimum(counts, 1.0)
    shares = membership / np.maximum(counts, 1.0)
    projection = two_class_key.projection("features", UNITS).astype("float64")
    signs = 2.0 * two_class_key.signature("features") - 1.0
    projected = shares.T @ hidden @ projection
    by_projected = -present[:, None] * signs * _sigmoid(-signs * projected) / signs.size
    by_hidden = by_logits @ second.T + strength * shares @ by_projected @ projection.T

    loss = model.train_on_batch(data, labels)
    task_loss = -np.log(probabilities[np.arange(num_rows), labels]).mean()
    signature_loss = np.mean(present[:, None] * np.logaddexp(0.0, -signs * projected))
    assert float(np.ravel(loss)[0]) == pytest.approx(task_loss + strength * signature_loss, rel=1e-4)
    after = model.get_weights()
    np.testing.assert_allclose(after[0], first - rate * data.T @ by_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after[1], second - rate * hidden.T @ by_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_rows, separation", [(1, 1.0), (2, 1.0), (5, 1.0), (16, 1.0), (5, 0.1)])
def test_one_step_of_learned_centres_is_the_one_worked_out_by_hand(num_rows, separation, two_class_key):
    """The bits move the centres, the clustering loss ties centres and activations; both ways are compared."""
    strength, clustering_strength, rate = 0.7, 0.3, 0.1
    inputs = keras.Input((3,))
    regularizer = ds.SignatureRegularizer(
        two_class_key, "features", strength, "learned", clustering_strength, separation
    )
    x = layers.Dense(UNITS, use_bias=False, activity_regularizer=regularizer)(inputs)
    model = ds.WatermarkedModel(inputs, layers.Dense(2, use_bias=False, trainable=False)(x))
    model.compile(keras.optimizers.SGD(rate), _logits_loss(), run_eagerly=True)
    data, labels = _data((3,), num_rows)
    # Their squared distance lies between the separations: the repulsion acts at the larger one alone.
    centres = np.random.default_rng(2).normal(scale=0.04, size=(2, UNITS))
    model.learned_centres["features"].assign(centres)
    kernel, head = (layer.get_weights()[0].astype("float64") for layer in (model.layers[1], model.layers[2]))

    hidden = data @ kernel
    logits = hidden @ head
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    membership = np.eye(2)[labels]
    by_logits = (probabilities - membership) / num_rows
    by_hidden = by_logits @ head.T + clustering_strength * 2.0 * (hidden - membership @ centres) / num_rows
    projection = two_class_key.projection("features", UNITS).astype("float64")
    signs = 2.0 * two_class_key.signature("features") - 1.0
    by_projected = -signs * _sigmoid(-signs * (centres @ projection)) / signs.size
    apart = centres - centres[::-1]
    assert 0.1 < (apart[0] ** 2).sum() < 1.0
    apart = apart * (separation == 1.0)
    # Both ordered pairs hold the same distance; their mean has the gradient -2 (mu_k - mu_l).
    by_centres = strength * by_projected @ projection.T + clustering_strength * (
        -2.0 * membership.T @ (hidden - membership @ centres) / num_rows - 2.0 * apart
    )

    model.train_on_batch(data, labels)
    after = model.layers[1].get_weights()[0]
    np.testing.assert_allclose(after, kernel - rate * data.T @ by_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        model.learned_centres["features"].numpy(), centres - rate * by_centres, rtol=1e-4, atol=1e-5
    )


# Archives. How every kind of model is revived from one stands in test_watermarked_model.py.


@pytest.fixture(params=["batch", "learned"])
def saved(request, blobs, owner_key, build_mlp, compile_model, tmp_path):
    """The archive of a model that was trained for an epoch."""
    regularizer = ds.SignatureRegularizer(owner_key, "features", centres=request.param)
    model = compile_model(build_mlp(regularizer, ds.WatermarkedModel))
    model.fit(*blobs, batch_size=64, verbose=0)
    model.save(tmp_path / "marked.keras")
    return tmp_path / "marked.keras"


def test_archive_without_key_refuses_to_train(saved, blobs, owner_key):
    loaded = keras.saving.load_model(saved)
    with pytest.raises(ValueError) as error:
        loaded.fit(*blobs, verbose=0)
    # Keras says before and after it which layer was called.
    assert (
        "The regularizer of carrier 'features' has no owner key and cannot train. Expected the model to be loaded inside "
        "`with deepsigns_tf.owner_key_scope(owner_key):`, and the regularizer to stand on a `Bidirectional` wrapper rather "
        "than on the layer inside it, which Keras copies without its key. Received: a regularizer revived from a config, "
        f"key fingerprint {owner_key.fingerprint}"
    ) in str(error.value)


def test_archive_in_another_keys_scope_is_refused(saved, owner_key):
    other = ds.OwnerKey.generate("ACME Vision", owner_key.carriers)
    # Keras turns what a `from_config` raises into a TypeError that quotes every config and ends with the reason.
    with pytest.raises(TypeError) as error, ds.owner_key_scope(other):
        keras.saving.load_model(saved)
    assert str(error.value).endswith(
        "This model was marked with another owner key. Expected the key with fingerprint "
        f"{owner_key.fingerprint} and carrier 'features'. Received: fingerprint {other.fingerprint}"
    )


def test_archive_holds_no_secret(saved, owner_key):
    """Neither the seed nor projection nor bits, in no file of the archive."""
    import io
    import zipfile

    import h5py

    with zipfile.ZipFile(saved) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    text = (files["config.json"] + files["metadata.json"]).decode()
    assert owner_key.seed.hex() not in text
    assert not any(owner_key.seed in content for content in files.values())
    shapes = []
    with h5py.File(io.BytesIO(files["model.weights.h5"])) as weights:
        weights.visititems(lambda _, item: shapes.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    assert (128, 32) not in shapes and (4, 32) not in shapes
    assert (16, 128) in shapes
