"""The model class: every way to build one, every kind of labels, every misuse, and what it shows while it trains."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import deepsigns_tf as ds

pytestmark = pytest.mark.any_backend


@pytest.fixture
def fixed_key(owner_key):
    """The key's carriers with a seed that is the same in every run, for comparisons bit by bit."""
    return dataclasses.replace(owner_key, seed=bytes(range(32)), key_inputs=None)


@pytest.fixture
def two_carrier_key():
    """Two carriers with classes and bits of their own."""
    return ds.OwnerKey.generate("ACME Vision", [ds.Carrier("early", [0, 1, 2], 32), ds.Carrier("late", [3, 1], 16)])


def _dense(key, carrier="features", units=128, **kwargs):
    return layers.Dense(units, "relu", activity_regularizer=ds.SignatureRegularizer(key, carrier), **kwargs)


def _numpy_bit_error_rate(activations, labels, key, carrier="features"):
    """From the class means of all rows, in float64."""
    bits = key.signature(carrier)
    projection = key.projection(carrier, activations.shape[1]).astype("float64")
    present = [k for k, label in enumerate(key.carrier(carrier).classes) if (labels == label).any()]
    means = [activations[labels == key.carrier(carrier).classes[k]].mean(axis=0) for k in present]
    return np.mean([((mean @ projection > 0) != bits[k]).mean() for k, mean in zip(present, means, strict=True)])


def _numpy_signature_loss(activations, labels, key):
    signs = 2.0 * key.signature("features") - 1.0
    projection = key.projection("features", activations.shape[1]).astype("float64")
    return np.mean(
        [
            (labels == label).any()
            * np.logaddexp(
                0.0, -s * (activations[labels == label].sum(axis=0) / max(1, (labels == label).sum()) @ projection)
            ).mean()
            for label, s in zip(key.carrier("features").classes, signs, strict=True)
        ]
    )


def _hidden(model, x):
    kernel, bias = model.get_layer("hidden").get_weights()
    return np.maximum(x @ kernel.astype("float64") + bias, 0)


# Ways to build a model around its hidden layer.


def _functional(hidden):
    inputs = keras.Input((16,))
    return ds.WatermarkedModel(inputs, layers.Dense(4)(hidden(inputs)))


def _functional_by_keywords(hidden):
    inputs = keras.Input((16,))
    return ds.WatermarkedModel(inputs=inputs, outputs=layers.Dense(4)(hidden(inputs)), name="classifier")


def _sequential(hidden):
    return ds.WatermarkedSequential([keras.Input((16,)), hidden, layers.Dense(4)])


def _sequential_by_two_positional_arguments(hidden):
    """Layers and `trainable`, which Keras would take for inputs and outputs."""
    return ds.WatermarkedSequential([keras.Input((16,)), hidden, layers.Dense(4)], True)


def _sequential_built_by_fit(hidden):
    return ds.WatermarkedSequential([hidden, layers.Dense(4)])


def _sequential_by_add(hidden):
    model = ds.WatermarkedSequential()
    for layer in (keras.Input((16,)), hidden, layers.Dense(4)):
        model.add(layer)
    return model


class _MadeOfALayer(ds.WatermarkedModel):
    """Says in its configuration which layer it is made of."""

    def get_config(self):
        return {"hidden": keras.saving.serialize_keras_object(self.hidden)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["hidden"]))


@keras.saving.register_keras_serializable("deepsigns_tf_tests")
class WithCall(_MadeOfALayer):
    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden
        self.head = layers.Dense(4)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


@keras.saving.register_keras_serializable("deepsigns_tf_tests")
class WithBuild(WithCall):
    """Its layers are built before any of them is called."""

    def build(self, input_shape):
        for layer, shape in ((self.hidden, input_shape), (self.head, (None, 128))):
            # Keras builds what it revives from a configuration at once.
            if not layer.built:
                layer.build(shape)


@keras.saving.register_keras_serializable("deepsigns_tf_tests")
class SelfFunctional(_MadeOfALayer):
    def __init__(self, hidden):
        inputs = keras.Input((16,))
        super().__init__(inputs, layers.Dense(4)(hidden(inputs)))
        self.hidden = hidden


def _nested(hidden):
    inner_inputs = keras.Input((16,))
    inner = keras.Model(inner_inputs, hidden(inner_inputs), name="backbone")
    inputs = keras.Input((16,))
    return ds.WatermarkedModel(inputs, layers.Dense(4)(inner(inputs)))


BUILDERS = {
    "functional": _functional,
    "functional by keywords": _functional_by_keywords,
    "sequential": _sequential,
    "sequential by two positional arguments": _sequential_by_two_positional_arguments,
    "sequential built by fit": _sequential_built_by_fit,
    "sequential by add": _sequential_by_add,
    "subclassed": WithCall,
    "subclassed with build": WithBuild,
    "subclassed, functional inside": SelfFunctional,
    "nested": _nested,
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_kind_of_model_has_its_learned_centres_once(kind, blobs, owner_key, compile_model):
    """Beside the two kernels and two biases, trained with them, and none of it is the mark's own bookkeeping."""
    regularizer = ds.SignatureRegularizer(owner_key, "features", centres="learned")
    hidden = layers.Dense(128, "relu", activity_regularizer=regularizer)
    model = compile_model(BUILDERS[kind](hidden), run_eagerly=True)
    model.fit(*blobs, batch_size=128, verbose=0)
    assert len(model.weights) == len(model.trainable_weights) == 5
    assert [weight.name for weight in model.weights].count("features_centres") == 1
    assert np.abs(model.learned_centres["features"].numpy()).max() > 0


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_kind_of_model_carries_the_mark(kind, blobs, owner_key, compile_model):
    model = compile_model(BUILDERS[kind](_dense(owner_key)))
    assert isinstance(model, ds.WatermarkedModel) and isinstance(model, keras.Model)
    history = model.fit(*blobs, batch_size=64, epochs=10, verbose=0).history
    assert set(history) == {"loss", "accuracy", "features_signature_loss", "features_bit_error_rate"}
    assert history["features_signature_loss"][-1] < history["features_signature_loss"][0]
    assert model.evaluate(*blobs, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0


def test_no_way_to_build_a_model_changes_the_class_for_later_ones(blobs, owner_key, compile_model):
    """Keras gives a functional subclass other bases, for good; a later subclass with `call` would break."""

    class MadeBefore(WithCall):
        """Made before the functional models, called after them."""

    _functional(_dense(owner_key))
    _sequential_by_two_positional_arguments(_dense(owner_key))
    assert ds.WatermarkedModel.__bases__ == (keras.Model,)
    assert ds.WatermarkedSequential.__bases__ == (ds.WatermarkedModel, keras.Sequential)

    class FirstFunctional(ds.WatermarkedModel):
        """A class of this test alone, so that it is called for the first time."""

        def __init__(self):
            inputs = keras.Input((16,))
            super().__init__(inputs, layers.Dense(4)(_dense(owner_key)(inputs)))

    assert isinstance(FirstFunctional(), FirstFunctional)
    assert FirstFunctional.__bases__ == (ds.WatermarkedModel,)
    assert ds.WatermarkedModel.__bases__ == (keras.Model,)

    class MadeAfter(WithCall):
        pass

    for cls in (MadeBefore, MadeAfter):
        model = compile_model(cls(_dense(owner_key)))
        model.fit(*blobs, batch_size=128, verbose=0)
        assert tuple(model(blobs[0][:2]).shape) == (2, 4)
    assert ds.WatermarkedModel.__bases__ == (keras.Model,)


def test_functional_model_of_a_subclass_keeps_its_overrides(blobs, owner_key, compile_model):
    class Shifted(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            return y - 1

    inputs = keras.Input((16,))
    model = compile_model(Shifted(inputs, layers.Dense(4)(_dense(owner_key, name="hidden")(inputs))))
    assert isinstance(model, Shifted) and model.name.startswith("shifted")
    x, labels = blobs
    before = _hidden(model, x[:64])
    logs = model.train_on_batch(x[:64], labels[:64], return_dict=True)
    expected = _numpy_signature_loss(before, labels[:64] - 1, owner_key)
    assert float(logs["features_signature_loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("registered", [True, False])
def test_class_of_a_functional_model_stays_a_base_for_others_and_saves(
    registered, blobs, owner_key, compile_model, tmp_path
):
    """Keras would rewrite the bases of the class, and a later subclass with `call` would die when it is made."""

    class Shifted(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            return ops.mod(y + 1, 4)

    if registered:
        keras.saving.register_keras_serializable("deepsigns_tf_tests")(Shifted)

    inputs = keras.Input((16,))
    functional = Shifted(inputs, layers.Dense(4)(_dense(owner_key)(inputs)))

    class Later(Shifted):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = _dense(owner_key), layers.Dense(4)

        def call(self, inputs):
            return self.head(self.hidden(inputs))

    for model in (functional, Later()):
        compile_model(model).fit(*blobs, batch_size=64, epochs=10, verbose=0)
        assert model.evaluate(*blobs, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0

    functional.save(tmp_path / "marked.keras")
    with ds.owner_key_scope(owner_key):
        loaded = keras.saving.load_model(
            tmp_path / "marked.keras", custom_objects=None if registered else {"Shifted": Shifted}
        )
    assert isinstance(loaded, Shifted) and type(loaded) is type(functional)
    if registered:
        assert keras.saving.get_registered_object("deepsigns_tf_tests>Shifted") is Shifted
    logs = loaded.evaluate(*blobs, verbose=0, return_dict=True)
    # Read with the labels of the override.
    assert logs["features_bit_error_rate"] == 0.0
    assert np.isfinite(loaded.fit(*blobs, verbose=0).history["features_signature_loss"]).all()


# Archives and backups.

REVIVED = [
    "functional",
    "sequential",
    "sequential built by fit",
    "subclassed",
    "subclassed with build",
    "subclassed, functional inside",
    "nested",
]


@pytest.fixture
def build_kind(owner_key, compile_model):
    """A function that builds and compiles a model of a kind, with any sort of centres."""

    def build(kind, centres):
        regularizer = ds.SignatureRegularizer(owner_key, "features", centres=centres)
        return compile_model(BUILDERS[kind](layers.Dense(128, "relu", activity_regularizer=regularizer)))

    return build


@pytest.fixture
def saved(kind, centres, blobs, build_kind, tmp_path):
    """A model trained for two epochs, and the archive that it was saved to."""
    model = build_kind(kind, centres)
    model.fit(*blobs, batch_size=64, epochs=2, verbose=0)
    model.save(tmp_path / "marked.keras")
    return model, tmp_path / "marked.keras"


def _assert_same_weights(one, other, **tolerance):
    """Learned centres included."""
    for weights, others in zip(one, other, strict=True):
        np.testing.assert_allclose(weights, others, **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize("centres", ["learned"])
@pytest.mark.parametrize("kind", REVIVED)
def test_archive_without_key_answers_and_evaluates_as_before(saved, blobs):
    model, path = saved
    x, y = blobs
    loaded = keras.saving.load_model(path)
    assert isinstance(loaded, ds.WatermarkedModel)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    before, after = (each.evaluate(x, y, verbose=0, return_dict=True) for each in (model, loaded))
    assert set(after) == {"loss", "accuracy"}
    assert {name: before[name] for name in after} == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize("centres", ["batch", "learned"])
@pytest.mark.parametrize("kind", REVIVED)
def test_archive_in_the_keys_scope_goes_on_training(saved, blobs, owner_key, centres):
    """Weights, optimizer and learned centres are where they were: the next epoch equals that of the model itself."""
    model, path = saved
    with ds.owner_key_scope(owner_key):
        loaded = keras.saving.load_model(path)
    _assert_same_weights(loaded.get_weights(), model.get_weights())
    for name, values in model.learned_centres.items():
        np.testing.assert_array_equal(loaded.learned_centres[name].numpy(), values.numpy())
        assert np.abs(values.numpy()).max() > 0
    assert set(loaded.learned_centres) == ({"features"} if centres == "learned" else set())
    before, after = (each.fit(*blobs, batch_size=64, shuffle=False, verbose=0).history for each in (model, loaded))
    assert set(after) == set(before) >= {"features_signature_loss", "features_bit_error_rate"}
    assert {name: values[0] for name, values in after.items()} == pytest.approx(
        {name: values[0] for name, values in before.items()}, rel=1e-4
    )
    _assert_same_weights(loaded.get_weights(), model.get_weights(), rtol=1e-4, atol=1e-5)


class _Interruption(keras.callbacks.Callback):
    """Stops training in the second epoch, as a lost machine would."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.weights = self.model.get_weights()
            raise KeyboardInterrupt


class _Watch(keras.callbacks.Callback):
    """Keeps the epoch and the weights that training goes on from."""

    first_epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        if self.first_epoch is None:
            self.first_epoch, self.weights = epoch, self.model.get_weights()


@pytest.mark.parametrize("centres", ["batch", "learned"])
@pytest.mark.parametrize("kind", REVIVED)
def test_backup_resumes_a_training_of_every_kind_of_model(kind, centres, blobs, build_kind, tmp_path):
    """A new process would build the model anew: weights, optimizer and learned centres come from the backup."""
    interruption, watch = _Interruption(), _Watch()

    def fit(model, callback):
        # Keras restores no weights into a model that is not built yet.
        model(blobs[0][:1])
        callbacks = [keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), callback]
        return model.fit(*blobs, batch_size=64, epochs=3, callbacks=callbacks, verbose=0).history

    with pytest.raises(KeyboardInterrupt):
        fit(build_kind(kind, centres), interruption)
    history = fit(build_kind(kind, centres), watch)
    assert watch.first_epoch == 1
    assert len(history["features_signature_loss"]) == 2
    assert len(watch.weights) == (5 if centres == "learned" else 4)
    _assert_same_weights(watch.weights, interruption.weights)


# Labels.


def _one_hot(labels):
    return np.eye(4, dtype="float32")[labels]


LABELS = {
    "int64": (lambda y: y, "sparse"),
    "int32": (lambda y: y.astype("int32"), "sparse"),
    "uint8": (lambda y: y.astype("uint8"), "sparse"),
    "float32": (lambda y: y.astype("float32"), "sparse"),
    "column": (lambda y: y[:, None], "sparse"),
    "float column": (lambda y: y[:, None].astype("float32"), "sparse"),
    "one-hot": (_one_hot, "categorical"),
    "smoothed": (lambda y: 0.9 * _one_hot(y) + 0.025, "categorical"),
    "dict of one": (lambda y: {"answer": y}, "dict"),
    "dict of one-hot": (lambda y: {"answer": _one_hot(y)}, "dict categorical"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind_mark_the_same(kind, blobs, owner_key):
    """The first step's signature loss is the one of the true classes."""
    convert, loss_kind = LABELS[kind]
    categorical = "categorical" in loss_kind
    loss = (keras.losses.CategoricalCrossentropy if categorical else keras.losses.SparseCategoricalCrossentropy)(
        from_logits=True
    )
    inputs = keras.Input((16,))
    answer = layers.Dense(4)(_dense(owner_key, name="hidden")(inputs))
    model = ds.WatermarkedModel(inputs, {"answer": answer} if "dict" in loss_kind else answer)
    model.compile("sgd", {"answer": loss} if "dict" in loss_kind else loss)
    x, labels = blobs[0][:64], blobs[1][:64]
    expected = _numpy_signature_loss(_hidden(model, x), labels, owner_key)
    logs = model.train_on_batch(x, convert(labels), return_dict=True)
    assert float(logs["features_signature_loss"]) == pytest.approx(expected, rel=1e-4)


def test_rows_labelled_minus_one_do_not_count(blobs, owner_key):
    """They train the task and leave the mark alone."""

    class HalfLabelled(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            return ops.where(ops.arange(ops.shape(y)[0]) < 32, y, -1)

    inputs = keras.Input((16,))
    model = HalfLabelled(inputs, layers.Dense(4)(_dense(owner_key, name="hidden")(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, labels = blobs[0][:64], blobs[1][:64]
    expected = _numpy_signature_loss(_hidden(model, x)[:32], labels[:32], owner_key)
    logs = model.train_on_batch(x, labels, return_dict=True)
    assert float(logs["features_signature_loss"]) == pytest.approx(expected, rel=1e-4)


def test_batch_without_carrier_classes_trains_as_unmarked(blobs, owner_key, build_mlp, compile_model):
    class Unlabelled(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            return -ops.ones_like(y)

    trained = []
    for model_class, regularizer in ((Unlabelled, ds.SignatureRegularizer(owner_key, "features")), (keras.Model, None)):
        keras.utils.set_random_seed(0)
        model = compile_model(build_mlp(regularizer, model_class), keras.optimizers.SGD(0.1), run_eagerly=True)
        logs = model.train_on_batch(blobs[0][:64], blobs[1][:64], return_dict=True)
        trained.append((float(logs["loss"]), model.get_weights()))
    assert trained[0][0] == pytest.approx(trained[1][0], rel=1e-6)
    for marked, plain in zip(trained[0][1], trained[1][1], strict=True):
        np.testing.assert_allclose(marked, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "weights", [{"sample_weight": np.linspace(0, 2, 64).astype("float32")}, {"class_weight": {0: 0, 1: 5, 2: 1, 3: 2}}]
)
def test_weights_act_on_the_tasks_loss_alone(weights, blobs, fixed_key, build_mlp, compile_model):
    """The mark's part of the loss is the same with and without them."""
    x, labels = blobs[0][:64], blobs[1][:64]
    parts = []
    for kwargs in ({}, weights):
        totals = []
        for model_class, regularizer in (
            (ds.WatermarkedModel, ds.SignatureRegularizer(fixed_key, "features")),
            (keras.Model, None),
        ):
            keras.utils.set_random_seed(0)
            model = compile_model(build_mlp(regularizer, model_class), keras.optimizers.SGD(0.0), run_eagerly=True)
            totals.append(model.train_on_batch(x, labels, return_dict=True, **kwargs))
        marked, plain = totals
        parts.append((float(marked["loss"]) - float(plain["loss"]), float(marked["features_signature_loss"]), plain))
    assert parts[0][0] == pytest.approx(parts[0][1], rel=1e-4)
    assert parts[1][0] == pytest.approx(parts[1][1], rel=1e-4)
    assert parts[1][1] == pytest.approx(parts[0][1], rel=1e-6)
    assert abs(float(parts[0][2]["loss"]) - float(parts[1][2]["loss"])) > 0.01


def test_override_of_carrier_labels_serves_a_model_of_two_tasks(blobs, owner_key):
    class TwoTasks(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            return y["class"]

    inputs = keras.Input((16,))
    x = _dense(owner_key)(inputs)
    model = TwoTasks(inputs, {"class": layers.Dense(4)(x), "size": layers.Dense(1)(x)})
    losses = {"class": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    model.compile(keras.optimizers.Adam(1e-2), losses)
    data, labels = blobs
    targets = {"class": labels, "size": data.sum(axis=1, keepdims=True) / 10.0}
    model.fit(data, targets, batch_size=64, epochs=10, verbose=0)
    assert model.evaluate(data, targets, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0


@pytest.mark.parametrize("targets", ["the inputs", "none"])
def test_override_of_carrier_labels_serves_tasks_without_labels(targets, blobs, owner_key):
    """An autoencoder with its inputs as targets, and one whose loss is its own business."""

    class Autoencoder(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            # Any function of the inputs will do: here the largest of the first four.
            return ops.argmax(x[:, :4], axis=-1)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            return loss if y is not None else loss + ops.mean(ops.square(y_pred - x))

    inputs = keras.Input((16,))
    model = Autoencoder(inputs, layers.Dense(16)(_dense(owner_key, name="hidden")(inputs)))
    data = blobs[0]
    labels = data[:, :4].argmax(axis=-1)
    model.compile(keras.optimizers.Adam(1e-2), None if targets == "none" else "mse")
    model.fit(data, None if targets == "none" else data, batch_size=64, epochs=15, verbose=0)
    assert _numpy_bit_error_rate(_hidden(model, data), labels, owner_key) == 0.0


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
@pytest.mark.parametrize("stage", ["train", "test"])
def test_several_targets_are_refused_without_an_override(stage, run_eagerly, blobs, owner_key):
    inputs = keras.Input((16,))
    x = _dense(owner_key)(inputs)
    model = ds.WatermarkedModel(inputs, [layers.Dense(4)(x), layers.Dense(1)(x)])
    model.compile("sgd", ["mse", "mse"], run_eagerly=run_eagerly)
    targets = [np.zeros((8, 4), "float32"), np.zeros((8, 1), "float32")]
    with pytest.raises(ValueError) as error:
        (model.train_on_batch if stage == "train" else model.test_on_batch)(blobs[0][:8], targets)
    assert str(error.value) == (
        "The carrier labels cannot be told from these targets. Expected one target with class labels (batch,) or (batch, 1) "
        "or one-hot rows (batch, classes); override `carrier_labels(self, x, y)` for other tasks. "
        "Received: targets of shapes [(8, 4), (8, 1)]"
    )


def test_missing_targets_are_refused_without_an_override(blobs, owner_key):
    model = _functional(_dense(owner_key))
    model.compile("sgd")
    with pytest.raises(
        ValueError, match=r"override `carrier_labels\(self, x, y\)` for other tasks. Received: targets of shapes \[\]"
    ):
        model.train_on_batch(blobs[0][:8])


def test_targets_that_are_images_are_refused_without_an_override(owner_key):
    inputs = keras.Input((4, 4, 1))
    x = _dense(owner_key)(layers.Flatten()(inputs))
    model = ds.WatermarkedModel(inputs, layers.Reshape((4, 4, 1))(layers.Dense(16)(x)))
    model.compile("sgd", "mse")
    images = np.zeros((8, 4, 4, 1), "float32")
    with pytest.raises(ValueError, match=r"Received: targets of shapes \[\(8, 4, 4, 1\)\]"):
        model.train_on_batch(images, images)


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
def test_carrier_labels_of_the_wrong_shape_are_refused(run_eagerly, blobs, owner_key, build_mlp, compile_model):
    class OneHot(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            return ops.one_hot(y, 4)

    model = build_mlp(ds.SignatureRegularizer(owner_key, "features"), OneHot)
    compile_model(model, run_eagerly=run_eagerly)
    with pytest.raises(ValueError) as error:
        model.train_on_batch(blobs[0][:8], blobs[1][:8])
    assert str(error.value) == (
        "`carrier_labels` returned labels of the wrong shape. Expected one label per row, shape (batch,). "
        "Received: shape (8, 4)"
    )


# Misuse.


def _called(carrier, times):
    received = (
        "no call; it is not attached, was attached after the model was built, or its layer stands inside `TimeDistributed`, "
        "which hides its activations"
        if times == 0
        else f"{times} calls; the layer is called more than once, two layers share the carrier, a wrapper fires beside the "
        "layer inside it, or the layer has several outputs (`return_state=True`)"
    )
    return (
        f"The regularizer of carrier {carrier!r} must see its layer's activations once in a step. Expected one layer of the "
        f"model to have it as `activity_regularizer`. Received: {received}"
    )


NO_REGULARIZER = (
    "No layer of this model carries a mark. Expected a layer with `activity_regularizer=SignatureRegularizer(owner_key, "
    "carrier)`, attached before the model was built; a layer inside `TimeDistributed` never shows its activations. "
    "Received: no regularizer"
)


def _regularizer(key, carrier="features"):
    return ds.SignatureRegularizer(key, carrier)


def _classifier(inputs, x):
    if len(x.shape) > 2:
        x = layers.Flatten()(x)
    return ds.WatermarkedModel(inputs, layers.Dense(4)(x))


def _unmarked(key):
    inputs = keras.Input((16,))
    return _classifier(inputs, layers.Dense(128)(inputs))


def _in_time_distributed(key):
    inputs = keras.Input((4, 4))
    return _classifier(inputs, layers.TimeDistributed(_dense(key))(inputs))


def _with_return_state(key):
    inputs = keras.Input((4, 4))
    outputs, *_ = layers.LSTM(64, return_state=True, activity_regularizer=_regularizer(key))(inputs)
    return _classifier(inputs, outputs)


def _called_twice(key):
    inputs = keras.Input((16,))
    layer = _dense(key)
    return _classifier(inputs, layer(layers.Dense(128)(layer(layers.Dense(128)(inputs)))))


def _shared_carrier(key):
    inputs = keras.Input((16,))
    return _classifier(inputs, _dense(key)(_dense(key)(inputs)))


def _shared_regularizer(key):
    inputs = keras.Input((16,))
    regularizer = _regularizer(key)
    x = layers.Dense(128, activity_regularizer=regularizer)(inputs)
    return _classifier(inputs, layers.Dense(128, activity_regularizer=regularizer)(x))


MISUSES = {
    "no regularizer": (_unmarked, NO_REGULARIZER),
    "in TimeDistributed": (_in_time_distributed, _called("features", 0)),
    "return_state": (_with_return_state, _called("features", 3)),
    "layer called twice": (_called_twice, _called("features", 2)),
    "two layers, one carrier": (_shared_carrier, _called("features", 2)),
    "two layers, one regularizer": (_shared_regularizer, _called("features", 2)),
}


def _refusal(model, run_eagerly):
    """What training says of a model."""
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=run_eagerly)
    shape = [2 if size is None else size for size in model.input_shape[1:]]
    with pytest.raises(ValueError) as error:
        model.fit(np.ones((8, *shape), "float32"), np.arange(8) % 4, verbose=0)
    return str(error.value)


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_refused_when_training_begins(misuse, run_eagerly, owner_key):
    build, expected = MISUSES[misuse]
    assert _refusal(build(owner_key), run_eagerly) == expected


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Elsewhere `fit` builds the model anew and sees it."
)
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
def test_regularizer_attached_after_the_model_was_built_is_refused(run_eagerly, owner_key):
    model = _unmarked(owner_key)
    model.layers[1].activity_regularizer = _regularizer(owner_key)
    assert _refusal(model, run_eagerly) == _called("features", 0)


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
def test_every_carrier_of_the_key_must_be_attached(run_eagerly, two_carrier_key):
    inputs = keras.Input((16,))
    model = _classifier(inputs, _dense(two_carrier_key, "early")(inputs))
    assert _refusal(model, run_eagerly) == _called("late", 0)


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
def test_regularizer_on_the_layer_inside_bidirectional_is_refused(run_eagerly, owner_key):
    """Keras copies that layer by its config, and the copy has no key."""
    inputs = keras.Input((4, 4))
    layer = layers.Bidirectional(layers.LSTM(64, activity_regularizer=_regularizer(owner_key)))
    refusal = _refusal(_classifier(inputs, layer(inputs)), run_eagerly)
    assert (
        "The regularizer of carrier 'features' has no owner key and cannot train. Expected the model to be loaded inside "
        "`with deepsigns_tf.owner_key_scope(owner_key):`, and the regularizer to stand on a `Bidirectional` wrapper rather "
        "than on the layer inside it, which Keras copies without its key. Received: a regularizer revived from a config, "
        f"key fingerprint {owner_key.fingerprint}"
    ) in refusal


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
def test_regularizer_on_the_layer_inside_bidirectional_is_refused_in_the_keys_scope_too(run_eagerly, owner_key):
    """There both copies have the key; whether they fire in a step depends on how the backend builds the model."""
    inputs = keras.Input((4, 4))
    with ds.owner_key_scope(owner_key):
        layer = layers.Bidirectional(layers.LSTM(64, activity_regularizer=_regularizer(owner_key)))
    refusal = _refusal(_classifier(inputs, layer(inputs)), run_eagerly)
    assert refusal in (_called("features", 0), _called("features", 2))


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
def test_overridden_loss_without_the_marks_is_refused(run_eagerly, blobs, owner_key, build_mlp, compile_model):
    class OwnLoss(ds.WatermarkedModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.mean(ops.square(y_pred))

    model = build_mlp(_regularizer(owner_key), OwnLoss)
    compile_model(model, run_eagerly=run_eagerly)
    with pytest.raises(ValueError) as error:
        model.train_on_batch(blobs[0][:8], blobs[1][:8])
    assert str(error.value) == (
        "The model's losses were computed without the mark's. Expected an overridden `compute_loss` to call "
        "`super().compute_loss(...)`. Received: OwnLoss.compute_loss, which does not"
    )


def _answer(model, args):
    """What a model says in a train step; on JAX the step takes and gives back the model's state."""
    x, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
    if len(args) == 1:
        return model(x, training=True)
    trainable, non_trainable, *_ = args[0]
    return model.stateless_call(trainable, non_trainable, x, training=True)[0]


class OwnLoop(ds.WatermarkedModel):
    """The idiom of a train step with a loss of its own, which never comes by the mark's."""

    def train_step(self, *args):
        logs = {"loss": ops.mean(ops.square(_answer(self, args)))}
        return logs if len(args) == 1 else (logs, args[0])


class LossOutside(ds.WatermarkedModel):
    """A train step that asks for the model's loss, but not in the scope of the mark."""

    def train_step(self, *args):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        return {"loss": self.compute_loss(x=x, y=y, y_pred=_answer(self, args))}


OWN_STEPS = {
    OwnLoop: (
        "The train step of this model leaves the mark out. Expected an overridden `train_step` to call "
        "`super().train_step(...)`. Received: OwnLoop.train_step, which does not"
    ),
    LossOutside: (
        "The loss of a training step was asked for outside the scope that embeds the mark. Expected an overridden "
        "`train_step` to call `super().train_step(...)`. "
        "Received: a call of LossOutside.compute_loss with training=True"
    ),
}


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
@pytest.mark.parametrize("model_class", OWN_STEPS)
def test_overridden_train_step_without_the_mark_is_refused(
    model_class, method, run_eagerly, blobs, owner_key, build_mlp, compile_model
):
    """After the first step, whatever comes later."""
    model = compile_model(build_mlp(_regularizer(owner_key), model_class), run_eagerly=run_eagerly)
    steps = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
    with pytest.raises(ValueError) as error:
        if method == "fit":
            model.fit(*blobs, batch_size=64, callbacks=[callback], verbose=0)
        else:
            model.train_on_batch(*blobs)
    assert str(error.value) == OWN_STEPS[model_class]
    assert steps == []


def test_model_with_a_train_step_without_the_mark_still_evaluates_and_predicts(
    marked_model, blobs, owner_key, build_mlp, compile_model
):
    model = compile_model(build_mlp(_regularizer(owner_key), OwnLoop))
    model.set_weights(marked_model.get_weights())
    assert model.evaluate(*blobs, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0
    np.testing.assert_array_equal(model.predict(blobs[0], verbose=0), marked_model.predict(blobs[0], verbose=0))


def test_overridden_train_step_may_add_to_the_marks(blobs, owner_key, build_mlp, compile_model):
    seen = []

    class MoreToDo(ds.WatermarkedModel):
        def train_step(self, *args):
            seen.append(args)
            return super().train_step(*args)

    model = compile_model(build_mlp(_regularizer(owner_key), MoreToDo))
    model.fit(*blobs, batch_size=64, epochs=10, verbose=0)
    assert seen
    assert model.evaluate(*blobs, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0


class NoTrainingArgument(ds.WatermarkedModel):
    """The signature of before Keras 3.3, which Keras still takes."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, y, y_pred, sample_weight)


class TrainingNotHandedOn(ds.WatermarkedModel):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight)


@pytest.mark.parametrize("model_class", [NoTrainingArgument, TrainingNotHandedOn])
def test_overridden_loss_need_not_know_of_training(model_class, blobs, owner_key, build_mlp, compile_model):
    """Keras asks for the loss on shapes alone, outside of any step, to build it: on JAX, PyTorch and under a strategy."""
    model = compile_model(build_mlp(_regularizer(owner_key), model_class))
    model._symbolic_build(data_batch=(blobs[0][:64], blobs[1][:64]))
    model.fit(*blobs, batch_size=64, epochs=10, verbose=0)
    assert model.evaluate(*blobs, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0


def test_overridden_loss_may_add_to_the_marks(blobs, owner_key, build_mlp, compile_model):
    class MoreLoss(ds.WatermarkedModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            return loss + 1e-3 * ops.mean(ops.square(y_pred))

    model = compile_model(build_mlp(_regularizer(owner_key), MoreLoss))
    model.fit(*blobs, batch_size=64, epochs=10, verbose=0)
    assert model.evaluate(*blobs, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0


def _token_model(key, pool_first):
    """Tokens of which 0 is padding, with the mark on the sequence or after the pooling that honours the mask."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    if pool_first:
        x = layers.LSTM(16, return_sequences=True)(x)
        return _classifier(inputs, _dense(key)(layers.GlobalAveragePooling1D()(x)))
    x = layers.LSTM(128, return_sequences=True, activity_regularizer=_regularizer(key))(x)
    return ds.WatermarkedModel(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
def test_masked_sequence_is_refused(run_eagerly, owner_key):
    refusal = _refusal(_token_model(owner_key, pool_first=False), run_eagerly)
    # A traced step may know the batch size or not.
    assert refusal.replace("(8, ", "(None, ") == (
        "The layer of carrier 'features' puts out a masked sequence, whose padding would enter the mean. Expected the mark "
        "on a layer after `GlobalAveragePooling1D`, which honours the mask. "
        "Received: a mask on activations of shape (None, 6, 128)"
    )


def test_mark_after_the_pooling_of_a_masked_sequence_is_embedded(owner_key, compile_model):
    """What the refusal advises works."""
    random = np.random.default_rng(0)
    labels = np.arange(128) % 4
    tokens = 1 + 4 * labels[:, None] + random.integers(0, 4, (128, 6))
    tokens[:, 4:] *= random.integers(0, 2, (128, 1))
    model = compile_model(_token_model(owner_key, pool_first=True))
    model.fit(tokens.astype("int32"), labels, batch_size=32, epochs=20, verbose=0)
    logs = model.evaluate(tokens.astype("int32"), labels, verbose=0, return_dict=True)
    assert logs["features_bit_error_rate"] == 0.0


def _channels_first(key):
    return layers.Conv1D(
        128, 3, data_format="channels_first", activity_regularizer=_regularizer(key), name="convolution"
    )


def _convolution_functional(hidden, shape):
    inputs = keras.Input(shape)
    return ds.WatermarkedModel(inputs, layers.Dense(4)(layers.Flatten()(hidden(inputs))))


def _convolution_sequential(hidden, shape):
    return ds.WatermarkedSequential([keras.Input(shape), hidden, layers.Flatten(), layers.Dense(4)])


def _convolution_subclassed(hidden, shape):
    return WithCall(hidden)(keras.Input(shape))


@pytest.mark.parametrize("build", [_convolution_functional, _convolution_sequential, _convolution_subclassed])
def test_convolution_with_channels_first_is_refused_when_the_model_is_built(build, owner_key):
    """Its mean over the inner axes would mix channels and keep positions."""
    with pytest.raises(ValueError) as error:
        build(_channels_first(owner_key), (2, 8))
    assert str(error.value) == (
        "The layer of carrier 'features' puts its channels first, where the mean would be taken over the wrong axes. "
        'Expected `data_format="channels_last"`, or a carrier with `pooling="flatten"`. '
        "Received: data_format=\"channels_first\" in layer 'convolution'"
    )


def test_channels_first_is_no_harm_where_nothing_is_averaged(owner_key):
    """In flattened features, and in an output that was pooled already."""
    flat = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", range(4), 32, pooling="flatten")])
    model = _convolution_functional(_channels_first(flat), (2, 8))
    assert [metric.regularizer.num_units for metric in model.metrics] == [128 * 6]
    inputs = keras.Input((128, 4, 4))
    pooled = layers.GlobalAveragePooling2D("channels_first", activity_regularizer=_regularizer(owner_key))(inputs)
    model = ds.WatermarkedModel(inputs, layers.Dense(4)(pooled))
    assert [metric.regularizer.num_units for metric in model.metrics] == [128]


# What it shows.


def test_history_shows_the_mark_in_training_and_validation(blobs, owner_key, build_mlp, compile_model):
    model = compile_model(build_mlp(_regularizer(owner_key), ds.WatermarkedModel))
    history = model.fit(*blobs, batch_size=64, epochs=2, validation_data=blobs, verbose=0).history
    names = {"loss", "accuracy", "features_signature_loss", "features_bit_error_rate"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert all(np.isfinite(values).all() for values in history.values())


def test_callbacks_see_the_mark_in_the_logs_of_every_batch(blobs, owner_key, build_mlp, compile_model):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(set(logs)))
    model = compile_model(build_mlp(_regularizer(owner_key), ds.WatermarkedModel))
    model.fit(*blobs, batch_size=128, callbacks=[callback], verbose=0)
    assert seen == [{"loss", "accuracy", "features_signature_loss", "features_bit_error_rate"}] * 2


def test_loss_in_training_is_the_tasks_plus_the_marks(blobs, fixed_key, build_mlp, compile_model):
    strength = 0.3
    regularizer = ds.SignatureRegularizer(fixed_key, "features", strength)
    model = compile_model(build_mlp(regularizer, ds.WatermarkedModel), keras.optimizers.SGD(0.0))
    plain = compile_model(build_mlp())
    plain.set_weights(model.get_weights())
    x, labels = blobs[0][:64], blobs[1][:64]
    logs = model.train_on_batch(x, labels, return_dict=True)
    signature_loss = _numpy_signature_loss(_hidden(model, x), labels, fixed_key)
    task_loss = plain.evaluate(x, labels, verbose=0, return_dict=True)["loss"]
    assert float(logs["features_signature_loss"]) == pytest.approx(signature_loss, rel=1e-4)
    assert float(logs["loss"]) == pytest.approx(task_loss + strength * signature_loss, rel=1e-4)


def test_loss_in_evaluation_is_the_plain_twins(marked_model, blobs, build_mlp, compile_model):
    plain = compile_model(build_mlp())
    plain.set_weights(marked_model.get_weights())
    marked, unmarked = (model.evaluate(*blobs, verbose=0, return_dict=True) for model in (marked_model, plain))
    assert marked["loss"] == pytest.approx(unmarked["loss"], rel=1e-6)
    assert marked["accuracy"] == unmarked["accuracy"]


def test_validation_loss_in_fit_is_the_plain_twins(blobs, owner_key, build_mlp, compile_model):
    model = compile_model(build_mlp(_regularizer(owner_key), ds.WatermarkedModel))
    plain = compile_model(build_mlp())
    history = model.fit(*blobs, batch_size=64, validation_data=blobs, verbose=0).history
    plain.set_weights(model.get_weights())
    assert history["val_loss"][-1] == pytest.approx(
        plain.evaluate(*blobs, verbose=0, return_dict=True)["loss"], rel=1e-5
    )


def _unsettled(fixed_key, blobs, build_mlp, compile_model):
    """An unmarked model, half of whose bits are wrong, and 250 of its rows in an order of classes."""
    model = compile_model(build_mlp(_regularizer(fixed_key), ds.WatermarkedModel))
    order = np.random.default_rng(1).permutation(250)
    return model, blobs[0][order], blobs[1][order]


@pytest.mark.parametrize("batch_size", [7, 64, 250])
def test_bit_error_rate_of_an_evaluation_is_that_of_the_whole_set(
    batch_size, fixed_key, blobs, build_mlp, compile_model
):
    model, x, labels = _unsettled(fixed_key, blobs, build_mlp, compile_model)
    logs = model.evaluate(x, labels, batch_size=batch_size, verbose=0, return_dict=True)
    expected = _numpy_bit_error_rate(_hidden(model, x), labels, fixed_key)
    assert logs["features_bit_error_rate"] == pytest.approx(expected, abs=1e-6)
    assert 0.2 < expected < 0.8


def test_bit_error_rate_is_not_an_average_over_batches(fixed_key, blobs, build_mlp, compile_model):
    model, x, labels = _unsettled(fixed_key, blobs, build_mlp, compile_model)
    hidden = _hidden(model, x)
    rates = [_numpy_bit_error_rate(hidden[i : i + 5], labels[i : i + 5], fixed_key) for i in range(0, 250, 5)]
    logs = model.evaluate(x, labels, batch_size=5, verbose=0, return_dict=True)
    assert abs(logs["features_bit_error_rate"] - np.mean(rates)) > 1e-3


def test_bit_error_rate_of_a_training_epoch_is_the_mean_over_its_batches(fixed_key, blobs, build_mlp, compile_model):
    """The weights change from step to step, so there are no class means of the whole; here they are held still."""
    model, x, labels = _unsettled(fixed_key, blobs, build_mlp, compile_model)
    compile_model(model, keras.optimizers.SGD(0.0))
    hidden = _hidden(model, x)
    parts = [slice(start, start + 50) for start in range(0, 250, 50)]
    history = model.fit(x, labels, batch_size=50, shuffle=False, verbose=0).history
    rates = [_numpy_bit_error_rate(hidden[part], labels[part], fixed_key) for part in parts]
    losses = [_numpy_signature_loss(hidden[part], labels[part], fixed_key) for part in parts]
    assert history["features_bit_error_rate"] == pytest.approx([np.mean(rates)], rel=1e-4)
    assert history["features_signature_loss"] == pytest.approx([np.mean(losses)], rel=1e-4)


@pytest.mark.parametrize("stage", ["fit", "evaluate"])
def test_batch_without_carrier_classes_is_no_batch_without_errors(stage, fixed_key, blobs, build_mlp):
    """It leaves both metrics alone; where there is no other batch, nothing was measured."""

    class Model(ds.WatermarkedModel):
        def carrier_labels(self, x, y):
            # The second column says whether the row has a label.
            return ops.where(y[:, 1] > 0, y[:, 0], -1)

    model = build_mlp(_regularizer(fixed_key), Model)
    model.compile(keras.optimizers.SGD(0.0), lambda y_true, y_pred: 0.0 * y_pred)
    x, labels = blobs[0][:128], blobs[1][:128]
    targets = np.stack([labels, np.arange(128) < 64], axis=1).astype("float32")

    def measure(rows):
        if stage == "evaluate":
            return model.evaluate(x[rows], targets[rows], batch_size=64, verbose=0, return_dict=True)
        history = model.fit(x[rows], targets[rows], batch_size=64, shuffle=False, verbose=0).history
        return {name: values[0] for name, values in history.items()}

    both, first, second = measure(slice(0, 128)), measure(slice(0, 64)), measure(slice(64, 128))
    for name in ("features_signature_loss", "features_bit_error_rate"):
        assert both[name] == pytest.approx(first[name], rel=1e-5)
        assert first[name] > 0.2
        assert np.isnan(second[name])


def test_validation_between_epochs_leaves_the_training_metrics_alone(fixed_key, blobs, build_mlp, compile_model):
    model, x, labels = _unsettled(fixed_key, blobs, build_mlp, compile_model)
    histories = []
    for validation in ({}, {"validation_data": (x[:100], labels[:100])}):
        compile_model(model, keras.optimizers.SGD(0.0))
        histories.append(model.fit(x, labels, batch_size=50, epochs=2, shuffle=False, verbose=0, **validation).history)
    without, beside = histories
    assert {name: beside[name] for name in without} == without
    assert beside["val_features_bit_error_rate"] != beside["features_bit_error_rate"]


def test_bit_error_rate_leaves_classes_out_that_were_not_seen(fixed_key, blobs, build_mlp, compile_model):
    model, x, labels = _unsettled(fixed_key, blobs, build_mlp, compile_model)
    rows = labels < 2
    logs = model.evaluate(x[rows], labels[rows], verbose=0, return_dict=True)
    expected = _numpy_bit_error_rate(_hidden(model, x[rows]), labels[rows], fixed_key)
    assert logs["features_bit_error_rate"] == pytest.approx(expected, abs=1e-6)


def test_metrics_start_anew_with_every_epoch(marked_model, owner_key, blobs, build_mlp, compile_model):
    """The second epoch runs on the weights of a marked model: nothing of the first may stay in its bit error rate."""
    model = compile_model(build_mlp(_regularizer(owner_key), ds.WatermarkedModel), keras.optimizers.SGD(0.0))

    def swap(epoch, logs):
        model.set_weights(marked_model.get_weights())

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=swap)]
    history = model.fit(*blobs, batch_size=64, epochs=2, callbacks=callbacks, verbose=0).history
    expected = marked_model.evaluate(*blobs, batch_size=256, verbose=0, return_dict=True)
    assert history["features_bit_error_rate"][0] > 0.1
    assert history["features_bit_error_rate"][1] == expected["features_bit_error_rate"] == 0.0
    assert history["features_signature_loss"][1] < 0.5 * history["features_signature_loss"][0]


def test_two_carriers_with_classes_of_their_own_are_embedded_together(two_carrier_key, blobs, compile_model):
    inputs = keras.Input((16,))
    x = _dense(two_carrier_key, "early", name="hidden")(inputs)
    x = _dense(two_carrier_key, "late", units=96)(x)
    model = compile_model(ds.WatermarkedModel(inputs, layers.Dense(4)(x)))
    history = model.fit(*blobs, batch_size=64, epochs=10, verbose=0).history
    assert set(history) == {
        "loss",
        "accuracy",
        "early_signature_loss",
        "early_bit_error_rate",
        "late_signature_loss",
        "late_bit_error_rate",
    }
    logs = model.evaluate(*blobs, verbose=0, return_dict=True)
    assert logs["early_bit_error_rate"] == logs["late_bit_error_rate"] == 0.0
    assert _numpy_bit_error_rate(_hidden(model, blobs[0]), blobs[1], two_carrier_key, "early") == 0.0
