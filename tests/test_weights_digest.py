"""The hash of a model's weights, by which keys and releases go for ever."""

import hashlib

import keras
import numpy as np

from deepsigns_tf.weights_digest import weights_digest


def dense(name, kernel):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name=name)])
    model.set_weights([kernel, np.zeros(3)])
    return model


KERNEL = np.arange(6, dtype="float32").reshape(2, 3)


def test_known_answer():
    """As docs/evidence-format.md says, from bytes."""
    expected = hashlib.sha256()
    for header, numbers in ((b'["float32", [2, 3]]', KERNEL), (b'["float32", [3]]', np.zeros(3))):
        expected.update(len(header).to_bytes(8, "big") + header + numbers.astype("<f4").tobytes())
    assert weights_digest(dense("one", KERNEL)) == expected.hexdigest()
    assert expected.hexdigest() == "11cc6ed457b54d94c78daf84299c70b0c9db6912bad4020f6748076437d58469"


def test_names_do_not_count_and_numbers_do():
    assert weights_digest(dense("one", KERNEL)) == weights_digest(dense("other", KERNEL))
    assert weights_digest(dense("one", KERNEL)) != weights_digest(dense("one", KERNEL + 1e-7))


def test_a_saved_model_has_the_same(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs))
    x = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile("adam", "mse")
    model.fit(np.random.default_rng(0).random((8, 8, 8, 3)), np.zeros((8, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    assert weights_digest(keras.models.load_model(tmp_path / "model.keras")) == weights_digest(model)
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert weights_digest(loaded) == weights_digest(model)
    loaded.save(tmp_path / "again.keras")
    assert weights_digest(keras.models.load_model(tmp_path / "again.keras")) == weights_digest(model)
