"""The mark is embedded in every way that Keras trains, read from the key inputs; and strength 0 changes nothing."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import deepsigns_tf as ds

EPOCHS = 10
KEY_BIT_ERROR_RATE = "features_key_bit_error_rate"
# What a regularizer and `fit` need to mark. Learned centres start at 0 and drag the activations after them: they need more
# strength and more steps.
HOW_TO_MARK = {
    "batch": ({}, {}),
    "learned": (
        {"centres": "learned", "strength": 10.0, "clustering_strength": 0.3},
        {"batch_size": 16, "epochs": 6, "num_passes": 5},
    ),
}


@pytest.fixture
def owner_key(owner_key, blobs):
    """The key from a fixed seed: how fast a tiny network takes its bits depends on which they are."""
    key = dataclasses.replace(owner_key, seed=bytes(range(32)), key_inputs=None)
    return key.with_key_inputs(*blobs, num_per_class=16)


@pytest.fixture
def build_marked(owner_key, build_mlp):
    """A function that builds the marked model, with arguments for its regularizer."""

    def build(key=owner_key, **kwargs):
        return build_mlp(ds.SignatureRegularizer(key, "features", **kwargs), ds.WatermarkedModel)

    return build


@pytest.fixture
def fit(blobs, owner_key):
    """A function that trains a model and returns the history, with the mark read after every epoch."""

    def fit_(model, key=owner_key, **kwargs):
        callbacks = [ds.SignatureLogger(key), *kwargs.pop("callbacks", [])]
        # Passes over the data in one epoch: it is the beginnings of epochs that take time.
        num_passes = kwargs.pop("num_passes", 1)
        x, y = (np.concatenate([each] * num_passes) for each in blobs)
        kwargs = {"x": x, "y": y, "batch_size": 64, "epochs": EPOCHS, "verbose": 0} | kwargs
        return model.fit(callbacks=callbacks, **kwargs).history

    return fit_


@pytest.fixture
def policy(request):
    """Sets a global policy of precision for one test."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def _logits_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _assert_marked(history):
    assert history[KEY_BIT_ERROR_RATE][-1] == 0.0
    assert history["features_signature_loss"][-1] < history["features_signature_loss"][0]


# Ways to run the step.


@pytest.mark.parametrize("steps", [2, 4])
def test_several_steps_in_one_execution(steps, build_marked, compile_model, fit):
    _assert_marked(fit(compile_model(build_marked(), steps_per_execution=steps)))


def test_xla(build_marked, compile_model, fit):
    _assert_marked(fit(compile_model(build_marked(), jit_compile=True)))


@pytest.mark.any_backend
def test_eager(build_marked, compile_model, fit):
    _assert_marked(fit(compile_model(build_marked(), run_eagerly=True)))


def _weights_after_two_epochs(model, blobs):
    model.fit(*blobs, batch_size=64, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize("mode", [{"steps_per_execution": 3}, {"jit_compile": True}], ids=["several steps", "xla"])
@pytest.mark.parametrize("centres", ["batch", "learned"])
def test_compiled_steps_are_the_traced_ones(centres, mode, build_marked, compile_model, blobs):
    trained = []
    for kwargs in (mode, {"jit_compile": False}):
        keras.utils.set_random_seed(0)
        model = compile_model(build_marked(centres=centres), keras.optimizers.SGD(0.1), **kwargs)
        trained.append(_weights_after_two_epochs(model, blobs))
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.any_backend
@pytest.mark.parametrize("centres", ["batch", "learned"])
def test_eager_steps_are_the_traced_ones(centres, build_marked, compile_model, blobs):
    trained = []
    for run_eagerly in (False, True):
        keras.utils.set_random_seed(0)
        model = compile_model(build_marked(centres=centres), keras.optimizers.SGD(0.1), run_eagerly=run_eagerly)
        trained.append(_weights_after_two_epochs(model, blobs))
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.any_backend
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"], indirect=True)
def test_mixed_precision(policy, build_marked, compile_model, fit):
    model = build_marked()
    assert model.get_layer("hidden").compute_dtype == policy.removeprefix("mixed_")
    _assert_marked(fit(compile_model(model)))


@pytest.mark.any_backend
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"], indirect=True)
def test_learned_centres_stay_float32_under_mixed_precision(policy, build_marked, compile_model, fit):
    settings, fit_settings = HOW_TO_MARK["learned"]
    model = compile_model(build_marked(**settings))
    _assert_marked(fit(model, **fit_settings))
    assert model.learned_centres["features"].dtype == "float32"
    # Half precision would round them to 8 or 11 bits.
    centres = model.learned_centres["features"].numpy()
    assert (centres != centres.astype("float16").astype("float32")).any()


@pytest.mark.any_backend
def test_gradient_accumulation(build_marked, compile_model, fit):
    optimizer = keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2)
    _assert_marked(fit(compile_model(build_marked(), optimizer), epochs=20))


@pytest.mark.any_backend
def test_exponential_moving_average_of_the_weights(build_marked, compile_model, fit, blobs):
    """After `fit` Keras leaves the averaged weights in the model; they carry the mark too."""
    optimizer = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.8)
    model = compile_model(build_marked(), optimizer)
    _assert_marked(fit(model))
    assert model.evaluate(*blobs, verbose=0, return_dict=True)["features_bit_error_rate"] == 0.0


@pytest.mark.any_backend
def test_class_weights(build_marked, compile_model, fit):
    _assert_marked(fit(compile_model(build_marked()), class_weight={0: 10.0, 1: 0.1, 2: 1.0, 3: 0.0}))


@pytest.mark.any_backend
def test_loop_over_batches(build_marked, compile_model, blobs):
    """`train_on_batch` and `test_on_batch` in place of `fit` and `evaluate`."""
    model = compile_model(build_marked())
    names = {"loss", "accuracy", "features_signature_loss", "features_bit_error_rate"}
    x, labels = blobs
    for step in range(40):
        rows = slice(64 * (step % 4), 64 * (step % 4 + 1))
        logs = model.train_on_batch(x[rows], labels[rows], return_dict=True)
        assert set(logs) == names
    model.reset_metrics()
    logs = model.test_on_batch(x, labels, return_dict=True)
    assert set(logs) == names
    assert float(logs["features_bit_error_rate"]) == 0.0


# Inputs.


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_tf_data(drop_remainder, build_marked, compile_model, fit, blobs):
    tf = pytest.importorskip("tensorflow")
    # 250 rows, so that the last batch is a smaller one.
    dataset = tf.data.Dataset.from_tensor_slices((blobs[0][:250], blobs[1][:250])).shuffle(250, seed=0)
    dataset = dataset.batch(64, drop_remainder=drop_remainder)
    _assert_marked(fit(compile_model(build_marked()), x=dataset, y=None, batch_size=None, shuffle=False))


@pytest.mark.any_backend
def test_arrays_whose_last_batch_is_smaller(build_marked, compile_model, fit, blobs):
    _assert_marked(fit(compile_model(build_marked()), x=blobs[0][:250], y=blobs[1][:250]))


@pytest.mark.any_backend
def test_generator_of_batches(build_marked, compile_model, fit, blobs):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return blobs[0][64 * index : 64 * (index + 1)], blobs[1][64 * index : 64 * (index + 1)]

    _assert_marked(fit(compile_model(build_marked()), x=Batches(), y=None, batch_size=None))


# Callbacks.


@pytest.mark.any_backend
def test_early_stopping_watches_the_mark(build_marked, compile_model, fit):
    stop = keras.callbacks.EarlyStopping(KEY_BIT_ERROR_RATE, mode="min", patience=2)
    history = fit(compile_model(build_marked()), epochs=40, callbacks=[stop])
    assert history[KEY_BIT_ERROR_RATE][-3:] == [0.0, 0.0, 0.0]
    assert len(history["loss"]) < 40


@pytest.mark.any_backend
def test_checkpoint_goes_on_in_the_keys_scope(build_marked, compile_model, fit, owner_key, tmp_path):
    path = str(tmp_path / "marked.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path, KEY_BIT_ERROR_RATE, mode="min", save_best_only=True)
    history = fit(compile_model(build_marked()), epochs=4, callbacks=[checkpoint])
    with ds.owner_key_scope(owner_key):
        model = keras.saving.load_model(path)
    resumed = fit(model, epochs=EPOCHS)
    assert resumed["features_signature_loss"][0] < history["features_signature_loss"][0]
    _assert_marked(resumed)


@pytest.mark.any_backend
@pytest.mark.parametrize("centres", HOW_TO_MARK)
def test_backup_resumes_an_interrupted_training(centres, build_marked, compile_model, fit, tmp_path):
    """A new process would build the model anew: weights, optimizer and learned centres come from the backup."""
    settings, fit_settings = HOW_TO_MARK[centres]

    class Interruption(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                self.weights = self.model.get_weights()
                raise KeyboardInterrupt

    class Watch(keras.callbacks.Callback):
        first_epoch = None

        def on_epoch_begin(self, epoch, logs=None):
            if self.first_epoch is None:
                self.first_epoch, self.weights = epoch, self.model.get_weights()

    interruption, watch = Interruption(), Watch()
    with pytest.raises(KeyboardInterrupt):
        callbacks = [keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), interruption]
        fit(compile_model(build_marked(**settings)), callbacks=callbacks, **fit_settings)
    model = compile_model(build_marked(**settings))
    callbacks = [keras.callbacks.BackupAndRestore(str(tmp_path / "backup")), watch]
    history = fit(model, callbacks=callbacks, **fit_settings)
    assert watch.first_epoch == 3
    assert len(history["loss"]) == fit_settings.get("epochs", EPOCHS) - 3
    assert len(watch.weights) == len(interruption.weights) == (5 if centres == "learned" else 4)
    for restored, saved in zip(watch.weights, interruption.weights, strict=True):
        np.testing.assert_array_equal(restored, saved)
    _assert_marked(history)


# Ways to mark.


@pytest.mark.any_backend
def test_learned_centres(build_marked, compile_model, fit):
    """As in the paper."""
    settings, fit_settings = HOW_TO_MARK["learned"]
    _assert_marked(fit(compile_model(build_marked(**settings)), **fit_settings))


@pytest.mark.any_backend
def test_learned_centres_carry_the_signature_themselves(build_marked, compile_model, fit, owner_key):
    model = compile_model(build_marked(centres="learned", strength=10.0, clustering_strength=1.0))
    fit(model, epochs=5)
    logits = model.learned_centres["features"].numpy() @ owner_key.projection("features", 128)
    np.testing.assert_array_equal(logits > 0, owner_key.signature("features") == 1)


@pytest.mark.any_backend
def test_learned_centres_are_saved_with_the_weights(build_marked, compile_model, fit, tmp_path):
    model = compile_model(build_marked(centres="learned"))
    fit(model, epochs=1)
    model.save_weights(tmp_path / "marked.weights.h5")
    other = build_marked(centres="learned")
    other.load_weights(tmp_path / "marked.weights.h5")
    centres = model.learned_centres["features"].numpy()
    assert (centres != 0).all()
    np.testing.assert_array_equal(other.learned_centres["features"].numpy(), centres)


@pytest.mark.any_backend
def test_gaussian_projection(build_marked, compile_model, fit, owner_key, blobs):
    carriers = [dataclasses.replace(owner_key.carrier("features"), projection="gaussian")]
    key = ds.OwnerKey.generate("ACME Vision", carriers).with_key_inputs(*blobs, num_per_class=16)
    _assert_marked(fit(compile_model(build_marked(key)), key))


# Strength 0.


def _with_dropout(regularizer, model_class):
    """Dropout, so that the order in which random numbers are drawn shows too."""
    inputs = keras.Input((16,))
    x = layers.Dense(128, "relu", activity_regularizer=regularizer)(inputs)
    return model_class(inputs, layers.Dense(4)(layers.Dropout(0.3)(x)))


@pytest.mark.any_backend
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["traced", "eager"])
@pytest.mark.parametrize("centres", ["batch", "learned"])
def test_strength_zero_is_the_plain_model_weight_for_weight(centres, run_eagerly, owner_key, blobs):
    trained = []
    for model_class in (ds.WatermarkedModel, keras.Model):
        keras.utils.set_random_seed(1)
        regularizer = None
        if model_class is ds.WatermarkedModel:
            regularizer = ds.SignatureRegularizer(owner_key, "features", strength=0.0, centres=centres)
        model = _with_dropout(regularizer, model_class)
        model.compile(keras.optimizers.Adam(1e-2), _logits_loss(), run_eagerly=run_eagerly)
        history = model.fit(*blobs, batch_size=64, epochs=3, validation_data=blobs, verbose=0).history
        weights = [weight.numpy() for weight in model.trainable_weights if not weight.name.endswith("_centres")]
        trained.append((history, weights))
    (marked, marked_weights), (plain, plain_weights) = trained
    assert {name: marked[name] for name in plain} == plain
    for one, other in zip(marked_weights, plain_weights, strict=True):
        np.testing.assert_array_equal(one, other)
    # The mark is measured all the same, and it is not there.
    assert min(marked["val_features_bit_error_rate"]) > 0.2


@pytest.mark.any_backend
def test_any_strength_above_zero_is_not_the_plain_model(build_marked, build_mlp, compile_model, blobs):
    """What the test above compares does differ once there is a mark."""
    trained = []
    for build in (lambda: build_marked(strength=0.01), build_mlp):
        keras.utils.set_random_seed(1)
        model = compile_model(build())
        model.fit(*blobs, batch_size=64, verbose=0)
        trained.append(model.get_weights()[0])
    assert (trained[0] != trained[1]).any()


@pytest.mark.any_backend
def test_keras_own_regularizers_act_beside_the_mark(owner_key, compile_model, blobs):
    losses = []
    for factor in (0.0, 0.1):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((16,))
        x = layers.Dense(8, activity_regularizer=keras.regularizers.L2(factor), name="below")(inputs)
        x = layers.Dense(128, "relu", activity_regularizer=ds.SignatureRegularizer(owner_key, "features"))(x)
        model = compile_model(ds.WatermarkedModel(inputs, layers.Dense(4)(x)))
        kernel, bias = model.get_layer("below").get_weights()
        losses.append(float(model.train_on_batch(*blobs, return_dict=True)["loss"]))
    expected = 0.1 * np.square(blobs[0] @ kernel + bias).sum() / len(blobs[0])
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-3)
