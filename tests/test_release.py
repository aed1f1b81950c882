"""The released model: the same function, and an archive that nobody can tell from an unmarked one's."""

import json
import re
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

import deepsigns_tf as ds

pytestmark = pytest.mark.any_backend

LABELS = np.arange(32) % 4
ROWS = np.random.default_rng(0).normal(size=(32, 16)).astype("float32")
SEQUENCES = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")


def functional(regularizer=None, model_class=keras.Model):
    """Automatic names throughout; state that is not trained (BatchNormalization) and a seed (Dropout)."""
    inputs = keras.Input((16,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(24, activation="relu")(inputs))
    x = keras.layers.Dense(128, activation="relu", activity_regularizer=regularizer)(x)
    return model_class(inputs, keras.layers.Dense(4)(keras.layers.Dropout(0.2)(x)))


def sequential(regularizer=None, model_class=keras.Sequential):
    carrier = keras.layers.Dense(128, activation="relu", activity_regularizer=regularizer)
    return model_class([keras.Input((16,)), carrier, keras.layers.Dropout(0.2), keras.layers.Dense(4)])


def bidirectional(regularizer=None, model_class=keras.Model):
    inputs = keras.Input((5, 3))
    x = keras.layers.Bidirectional(keras.layers.LSTM(64), activity_regularizer=regularizer)(inputs)
    return model_class(inputs, keras.layers.Dense(4)(x))


def shared(regularizer=None, model_class=keras.Model):
    """One weight penalty and one initializer for all layers, as in a residual network."""
    shared = {"kernel_regularizer": keras.regularizers.L2(1e-4), "kernel_initializer": keras.initializers.HeNormal(1)}
    inputs = keras.Input((16,))
    x = keras.layers.Dense(128, activity_regularizer=regularizer, **shared)(keras.layers.Dense(24, **shared)(inputs))
    return model_class(inputs, keras.layers.Dense(4, **shared)(x))


class Shift(keras.layers.Layer):
    """Adds a number that is not a weight."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def call(self, inputs):
        return inputs + self.shift


# Name -> builder, the class that marks, inputs, settings of the regularizer, dtype policy.
VARIANTS = {
    "functional": (functional, ds.WatermarkedModel, ROWS, {}, "float32"),
    "sequential": (sequential, ds.WatermarkedSequential, ROWS, {}, "float32"),
    "bidirectional": (bidirectional, ds.WatermarkedModel, SEQUENCES, {}, "float32"),
    "shared": (shared, ds.WatermarkedModel, ROWS, {}, "float32"),
    "learned": (functional, ds.WatermarkedModel, ROWS, {"centres": "learned"}, "float32"),
    "mixed_float16": (functional, ds.WatermarkedModel, ROWS, {}, "mixed_float16"),
}


def make_key(inputs=ROWS, carriers=(ds.Carrier("features", range(4), 32),)):
    return ds.OwnerKey.generate("ACME Vision", carriers).with_key_inputs(inputs, LABELS, num_per_class=8)


def train_one_step(model, inputs=ROWS):
    """Enough for optimizer slots, metrics and moved weights; eager, because tracing would take seconds."""
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    model.train_on_batch(inputs, LABELS)
    return model


def release_unread(model, owner_key, **kwargs):
    """Releases a model that was trained too little to be marked."""
    with pytest.warns(UserWarning, match="^The released model does not carry the mark at the key's level"):
        return ds.release(model, owner_key, **kwargs)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Variant -> marked model, plain model, key, path of its archive, path of its twin's archive."""
    folder, made = tmp_path_factory.mktemp("released"), {}
    for name, (build, model_class, inputs, settings, policy) in VARIANTS.items():
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            keras.utils.clear_session()
            key = make_key(inputs)
            model = train_one_step(build(ds.SignatureRegularizer(key, "features", **settings), model_class), inputs)
            plain, key = release_unread(model, key)
            plain.save(folder / f"{name}.keras")
            keras.utils.clear_session()
            build().save(folder / f"{name}_twin.keras")
        finally:
            keras.config.set_dtype_policy(before)
        made[name] = (model, plain, key, folder / f"{name}.keras", folder / f"{name}_twin.keras")
    return made


def without_addresses(config):
    """Keras names an object that several layers share by its address in memory; number them in order instead."""
    addresses = []

    def number(match):
        if match[1] not in addresses:
            addresses.append(match[1])
        return f'"shared_object_id": {addresses.index(match[1])}'

    return re.sub(r'"shared_object_id": (\d+)', number, config)


def structure(path):
    """What an archive shows beside the numbers of its weights: members, configuration, metadata, variables."""
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        config = json.loads(without_addresses(archive.read("config.json").decode()))
        metadata = json.loads(archive.read("metadata.json"))
        del metadata["date_saved"]
        variables = []
        with archive.open("model.weights.h5") as file, h5py.File(file) as weights:
            weights.visititems(
                lambda name, item: variables.append(
                    (name, dict(item.attrs), *((item.shape, item.dtype.str) if isinstance(item, h5py.Dataset) else ()))
                )
            )
    return members, config, metadata, variables


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_released_archive_has_the_structure_of_an_unmarked_twins(released, variant):
    *_, path, twin_path = released[variant]
    for part, twins_part in zip(structure(path), structure(twin_path), strict=True):
        assert part == twins_part
    assert len(structure(path)[3]) > 4  # the variables were really listed


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_member_of_a_released_archive_names_the_method_or_the_key(released, variant):
    _, _, key, path, _ = released[variant]
    words = [b"deepsigns", b"watermark", b"signature", b"carrier", b"centres", key.fingerprint.encode()]
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            content = archive.read(member)
            assert content
            for word in words:
                assert word not in content.lower() and word not in member.filename.encode().lower()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_released_model_is_plain_uncompiled_and_gives_the_same_answers(released, variant):
    model, plain, _, _, _ = released[variant]
    build, model_class, inputs, _, _ = VARIANTS[variant]
    assert type(plain) is type(build())
    assert not plain.compiled and not hasattr(plain, "optimizer") and plain.metrics == []
    assert "SignatureRegularizer" in model.to_json() and "SignatureRegularizer" not in plain.to_json()
    assert all(layer.activity_regularizer is None for layer in plain.layers)
    marked_answers, answers = (keras.ops.convert_to_numpy(each(inputs, training=False)) for each in (model, plain))
    assert answers.dtype == marked_answers.dtype
    np.testing.assert_allclose(answers, marked_answers, rtol=1e-6, atol=1e-6)


def test_released_files_work_where_the_package_was_never_imported(released, marked_model, owner_key, blobs, tmp_path):
    """A fresh process loads each file, predicts, and saves the marked one again: it still carries its mark."""
    plain, key = ds.release(marked_model, owner_key)
    plain.save(tmp_path / "marked.keras")
    program = """
import sys
import keras, numpy as np
*files, again = sys.argv[1:]
answers = {}
for file in files:
    model = keras.models.load_model(file)
    inputs = np.load(file + ".npy")
    answers[file] = keras.ops.convert_to_numpy(model(inputs, training=False))
    assert model.predict(inputs, verbose=0).shape == answers[file].shape
model.save(again)
np.savez(again + ".npz", **answers)
assert "deepsigns_tf" not in sys.modules
"""
    cases = [(model, path, VARIANTS[name][2]) for name, (model, _, _, path, _) in released.items()]
    cases.append((marked_model, tmp_path / "marked.keras", blobs[0]))
    for _, path, inputs in cases:
        np.save(f"{path}.npy", inputs)
    again = tmp_path / "again.keras"
    command = [sys.executable, "-c", program, *(str(path) for _, path, _ in cases), str(again)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    answers = np.load(f"{again}.npz")
    for model, path, inputs in cases:
        wanted = keras.ops.convert_to_numpy(model(inputs, training=False))
        np.testing.assert_allclose(answers[str(path)], wanted, rtol=1e-5, atol=1e-5)
    verdict = ds.verify(keras.models.load_model(again), key)
    assert verdict.marked and verdict.num_matches == verdict.num_bits


def test_the_key_learns_its_layers_and_keeps_its_commitment(marked_model, owner_key):
    commitment = owner_key.commitment()
    _, key = ds.release(marked_model, owner_key)
    assert [(layer.carrier, layer.path, layer.num_units) for layer in key.layers] == [("features", "hidden", 128)]
    assert key.commitment() == commitment
    assert key.fingerprint == owner_key.fingerprint
    assert owner_key.layers == ()


def test_the_marked_model_is_left_as_it_is(marked_model, owner_key, blobs):
    weights = [keras.ops.convert_to_numpy(variable) for variable in marked_model.variables]
    ds.release(marked_model, owner_key)
    for before, after in zip(weights, marked_model.variables, strict=True):
        np.testing.assert_array_equal(before, keras.ops.convert_to_numpy(after))
    assert marked_model.compiled
    marked_model.fit(*blobs, batch_size=64, verbose=0)


def test_two_carriers_are_told_apart():
    carriers = [ds.Carrier("early", (0, 1), 32), ds.Carrier("late", range(4), 16)]
    key = make_key(carriers=carriers)
    inputs = keras.Input((16,))
    x = keras.layers.Dense(64, activity_regularizer=ds.SignatureRegularizer(key, "late"), name="first")(inputs)
    x = keras.layers.Dense(96, activity_regularizer=ds.SignatureRegularizer(key, "early"), name="second")(x)
    model = train_one_step(ds.WatermarkedModel(inputs, keras.layers.Dense(4)(x)))
    _, key = release_unread(model, key)
    assert {(layer.carrier, layer.path, layer.num_units) for layer in key.layers} == {
        ("late", "first", 64),
        ("early", "second", 96),
    }


def simple_rnn(num_units, **kwargs):
    """Keras' SimpleRNN takes an activity regularizer and loses it; the general layer around its cell keeps it."""
    return keras.layers.RNN(keras.layers.SimpleRNNCell(num_units), **kwargs)


@pytest.mark.parametrize("recurrent", [keras.layers.LSTM, keras.layers.GRU, simple_rnn])
def test_a_recurrent_carrier_is_released_and_pays_for_itself_alone(recurrent):
    """Its cell, called once per time step on some backends and never on others, is no candidate."""
    key = make_key(SEQUENCES)
    inputs = keras.Input((5, 3))
    x = recurrent(64, activity_regularizer=ds.SignatureRegularizer(key, "features"), name="sequence")(inputs)
    plain, key = release_unread(train_one_step(ds.WatermarkedModel(inputs, keras.layers.Dense(4)(x)), SEQUENCES), key)
    assert [(layer.path, layer.num_units) for layer in key.layers] == [("sequence", 64)]
    assert ds.verify(plain, key).num_assignments == 1


@pytest.mark.parametrize(("scale", "step", "passes"), [(100.0, 5e-5, True), (100.0, 5e-4, False), (0.01, 1e-5, False)])
def test_the_tolerance_of_a_release_grows_with_the_answers(scale, step, passes):
    """1e-6 of the largest answer, or 1e-6 where that is below 1."""
    key = make_key()

    def build(shift, regularizer=None, model_class=keras.Model):
        inputs = keras.Input((16,))
        x = keras.layers.Dense(128, activity_regularizer=regularizer)(inputs)
        x = keras.layers.Dense(4, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(scale))(x)
        return model_class(inputs, Shift(shift)(x))

    model = build(0.0, ds.SignatureRegularizer(key, "features"), ds.WatermarkedModel)
    if passes:
        release_unread(model, key, build=lambda: build(step))
    else:
        with pytest.raises(ValueError, match="^The plain model does not answer like the marked one"):
            ds.release(model, key, build=lambda: build(step))


def inner_functional(regularizer):
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(128, activity_regularizer=regularizer, name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(8)(hidden), name="inner")


def inner_sequential(regularizer):
    hidden = keras.layers.Dense(128, activity_regularizer=regularizer, name="hidden")
    return keras.Sequential([keras.Input((16,)), hidden, keras.layers.Dense(8)], name="inner")


@pytest.mark.parametrize("inner", [inner_functional, inner_sequential])
def test_a_carrier_inside_a_nested_model_keeps_its_path(inner):
    key = make_key()
    inputs = keras.Input((16,))
    outputs = keras.layers.Dense(4)(inner(ds.SignatureRegularizer(key, "features"))(inputs))
    model = train_one_step(ds.WatermarkedModel(inputs, outputs))
    plain, key = release_unread(model, key)
    assert [layer.path for layer in key.layers] == ["inner/hidden"]
    assert "SignatureRegularizer" not in plain.to_json()
    assert ds.verify(plain, key).readings[0].layer == "inner/hidden"


def test_a_marked_model_inside_a_marked_model_is_refused():
    """Its class would stand in the archive."""
    key = make_key()
    inner = functional(ds.SignatureRegularizer(key, "features"), lambda *args: ds.WatermarkedModel(*args, name="inner"))
    inputs = keras.Input((16,))
    model = ds.WatermarkedModel(inputs, keras.layers.Dense(4)(inner(inputs)))
    with pytest.raises(ValueError) as error:
        ds.release(model, key)
    assert str(error.value) == (
        "The released model would show that it was marked. Expected `WatermarkedModel` as the outermost model only, with plain "
        "Keras models inside it. Received: ['inner']"
    )


def test_a_sequential_model_without_a_declared_input_is_released():
    key = make_key()
    carrier = keras.layers.Dense(128, activation="relu", activity_regularizer=ds.SignatureRegularizer(key, "features"))
    model = train_one_step(ds.WatermarkedSequential([carrier, keras.layers.Dense(4)]))
    plain, _ = release_unread(model, key)
    assert type(plain) is keras.Sequential
    np.testing.assert_allclose(plain.predict(ROWS, verbose=0), model.predict(ROWS, verbose=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "model_class", "prefix"),
    [(functional, ds.WatermarkedModel, "functional"), (sequential, ds.WatermarkedSequential, "sequential")],
)
def test_the_second_automatic_name_tells_nothing_either(build, model_class, prefix):
    keras.utils.clear_session()
    key = make_key()
    build(None, model_class)
    plain, _ = release_unread(build(ds.SignatureRegularizer(key, "features"), model_class), key)
    assert plain.name == f"{prefix}_1"


def test_a_name_that_the_engineer_gave_is_kept():
    key = make_key()

    def named(*args):
        return ds.WatermarkedModel(*args, name="watermarked_functional_net")

    plain, _ = release_unread(functional(ds.SignatureRegularizer(key, "features"), named), key)
    assert plain.name == "watermarked_functional_net"


def test_a_mark_that_does_not_read_is_warned_of():
    key = make_key()
    model = functional(ds.SignatureRegularizer(key, "features"), ds.WatermarkedModel)
    with pytest.warns(UserWarning) as caught:
        plain, key = ds.release(model, key)
    verdict = ds.verify(plain, key)
    assert [str(warning.message) for warning in caught if warning.category is UserWarning] == [
        f"The released model does not carry the mark at the key's level: {verdict.num_matches} of 128 bits match, "
        f"p = 10^{verdict.log10_p_value:.1f}. Train longer or with more strength before it leaves the house."
    ]


# What cannot be released


def test_a_model_that_cannot_have_been_marked_is_refused():
    with pytest.raises(ValueError) as error:
        ds.release(functional(), make_key())
    assert str(error.value) == (
        "This model cannot have been marked. Expected a `WatermarkedModel`, whose train step embeds the mark. "
        "Received: a Functional"
    )


def test_a_key_without_key_inputs_is_refused():
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", range(4), 32)])
    model = functional(ds.SignatureRegularizer(key, "features"), ds.WatermarkedModel)
    with pytest.raises(ValueError) as error:
        ds.release(model, key)
    assert str(error.value) == (
        "This key cannot prove anything about a released model. Expected a key with key inputs, set by `with_key_inputs` "
        "before training. Received: a key without key inputs"
    )


def test_a_carrier_without_a_layer_is_refused():
    carriers = [ds.Carrier("features", range(4), 16), ds.Carrier("early", range(4), 16)]
    key = make_key(carriers=carriers)
    model = functional(ds.SignatureRegularizer(key, "features"), ds.WatermarkedModel)
    with pytest.raises(ValueError) as error:
        ds.release(model, key)
    assert str(error.value) == (
        "This model was not marked with this key. Expected one layer for each of the carriers ['early', 'features'], marked by "
        f"the key with fingerprint {key.fingerprint}. Received: carriers ['features']"
    )


def test_a_model_of_another_key_is_refused():
    key, other = make_key(), make_key()
    model = functional(ds.SignatureRegularizer(other, "features"), ds.WatermarkedModel)
    with pytest.raises(ValueError) as error:
        ds.release(model, key)
    assert str(error.value) == (
        "This model was not marked with this key. Expected one layer for each of the carriers ['features'], marked by "
        f"the key with fingerprint {key.fingerprint}. Received: carriers ['features'], keys with fingerprints "
        f"['{other.fingerprint}']"
    )


@keras.saving.register_keras_serializable(package="tests")
class Scale(keras.layers.Layer):
    """State that is neither a weight nor in the configuration."""

    factor = 1.0

    def call(self, inputs):
        return self.factor * inputs


def test_a_model_with_state_outside_weights_and_configuration_is_refused():
    key = make_key()
    inputs = keras.Input((16,))
    scale = Scale()
    x = keras.layers.Dense(128, activity_regularizer=ds.SignatureRegularizer(key, "features"))(scale(inputs))
    model = ds.WatermarkedModel(inputs, keras.layers.Dense(4)(x))
    scale.factor = 2.0
    with pytest.raises(ValueError) as error:
        ds.release(model, key)
    assert re.fullmatch(
        "The plain model does not answer like the marked one. Expected differences of at most "
        r"1e-6 x max\(1, largest answer\) on the key inputs. Received: [\d.e+-]+ with a largest answer of [\d.e+-]+; a layer "
        r"with state outside its weights \(an adapted vocabulary, say\) needs `build`",
        str(error.value),
    )


# Subclassed models


def make_network(
    base, activity_regularizer=None, num_units=128, activation="relu", num_layers=1, head=keras.layers.Dense
):
    """The same subclassed network over any base class."""

    class Network(base):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(
                num_units, activation=activation, activity_regularizer=activity_regularizer, name="body"
            )
            self.blocks = [head(4) for _ in range(num_layers)]

        def call(self, inputs):
            x = self.hidden(inputs)
            for block in self.blocks:
                x = block(x)
            return x

    return Network()


@pytest.fixture
def subclassed():
    """A subclassed model after one step, and its key."""
    key = make_key()
    return train_one_step(make_network(ds.WatermarkedModel, ds.SignatureRegularizer(key, "features"))), key


def test_a_subclassed_model_without_build_is_refused(subclassed):
    with pytest.raises(ValueError) as error:
        ds.release(*subclassed)
    assert str(error.value) == (
        "A subclassed model cannot be rebuilt from its configuration. Expected `release(model, owner_key, build=...)` with a "
        "function that makes its unmarked twin. Received: build=None for a Network"
    )


@pytest.mark.parametrize("settings", [{}, {"centres": "learned"}])
def test_a_subclassed_model_is_released_with_build(settings):
    key = make_key()
    model = train_one_step(make_network(ds.WatermarkedModel, ds.SignatureRegularizer(key, "features", **settings)))
    plain, key = release_unread(model, key, build=lambda: make_network(keras.Model))
    assert not isinstance(plain, ds.WatermarkedModel) and not plain.compiled
    assert [(layer.carrier, layer.path, layer.num_units) for layer in key.layers] == [("features", "body", 128)]
    np.testing.assert_allclose(plain.predict(ROWS, verbose=0), model.predict(ROWS, verbose=0), rtol=1e-6, atol=1e-6)


def test_a_functional_model_may_come_with_build_too():
    key = make_key()
    model = train_one_step(functional(ds.SignatureRegularizer(key, "features"), ds.WatermarkedModel))
    twin = functional()
    plain, key = release_unread(model, key, build=lambda: twin)
    assert plain is twin
    # The path is the twin's own: that is the model which leaves the house.
    assert key.layers[0].path == plain.layers[3].name


@pytest.mark.parametrize(
    ("make_twin", "received"),
    [
        (lambda: make_network(keras.Model, num_layers=2), "['Dense', 'Dense', 'Dense']"),
        (lambda: make_network(keras.Model, head=keras.layers.RepeatVector), "['Dense', 'RepeatVector']"),
        (functional, "['InputLayer', 'Dense', 'BatchNormalization', 'Dense', 'Dropout', 'Dense']"),
    ],
)
def test_a_twin_of_another_architecture_is_refused(subclassed, make_twin, received):
    with pytest.raises(ValueError) as error:
        ds.release(*subclassed, build=lambda: make_twin())
    assert str(error.value) == (
        "The twin that `build` makes has another architecture. Expected the marked model's layers in the same order. "
        f"Received: {received}, while the marked model has ['Dense', 'Dense']"
    )


def test_a_twin_of_another_width_is_refused(subclassed):
    with pytest.raises(ValueError) as error:
        ds.release(*subclassed, build=lambda: make_network(keras.Model, num_units=64))
    assert str(error.value) == (
        "The plain model has other weights than the marked one. Expected the same shapes in the same order. "
        "Received: [(16, 64), (64,), (64, 4), (4,)], while the marked model has [(16, 128), (128,), (128, 4), (4,)]"
    )


def test_a_twin_that_computes_something_else_is_refused(subclassed):
    with pytest.raises(ValueError, match="^The plain model does not answer like the marked one"):
        ds.release(*subclassed, build=lambda: make_network(keras.Model, activation="tanh"))


@pytest.mark.parametrize("base", [keras.Model, ds.WatermarkedModel])
def test_a_twin_that_is_not_plain_is_refused(subclassed, base):
    _, key = subclassed
    with pytest.raises(ValueError) as error:
        ds.release(*subclassed, build=lambda: make_network(base, ds.SignatureRegularizer(key, "features")))
    assert str(error.value) == (
        "The twin that `build` makes is not plain. Expected a `keras.Model` without `SignatureRegularizer`. "
        "Received: a Network"
    )
