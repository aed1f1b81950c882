"""What a model in this process answers to whoever reads it."""

import keras
import numpy as np
import pytest

from deepsigns_tf import responses
from deepsigns_tf.responses import LocalModel, Remembered, Role

pytestmark = pytest.mark.any_backend

INPUTS, LABELS = np.random.default_rng(0).normal(size=(300, 12)).astype("float32"), np.arange(300) % 3


@pytest.fixture
def network():
    """Hidden layers of 40 and 20 units, and three scores."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((12,)), *(keras.layers.Dense(units, "relu") for units in (40, 20, 3))])


def _role(least, most, bits=8, pooling="mean"):
    return Role((0, 1, 2), pooling, bits, least, most)


def _compare(found, expected):
    for each, other in zip(found, expected, strict=True):
        assert each.num_admissible == other.num_admissible and list(each.arrays) == list(other.arrays)
        for place, array in other.arrays.items():
            np.testing.assert_allclose(each.arrays[place], array, rtol=1e-6, atol=1e-6)


def test_a_remembered_model_answers_as_any_other(network):
    roles = [_role(10, 50), _role(20, 20, bits=16)]
    remembered = Remembered(network)
    for asked in (roles, [_role(20, 50), _role(20, 20, bits=16)], [_role(40, 40), _role(99, 99, bits=16)]):
        _compare(remembered.features(INPUTS, asked), LocalModel(network).features(INPUTS, asked))
        means = remembered.class_means(INPUTS, LABELS, asked)
        _compare(means, LocalModel(network).class_means(INPUTS, LABELS, asked))
    assert Remembered(network, "ab").file_digest == "ab" and remembered.file_digest is None


def test_a_remembered_model_is_run_once_for_what_was_heard_and_again_for_what_was_not(network, monkeypatch):
    runs = []

    def record(*arguments):
        runs.append(arguments)
        return original(*arguments)

    original = responses.record_activations
    monkeypatch.setattr(responses, "record_activations", record)
    remembered = Remembered(network)
    for _ in range(2):
        remembered.features(INPUTS, [_role(10, 50)])
        remembered.class_means(INPUTS, LABELS, [_role(20, 40)])
    assert len(runs) == 1
    others = (
        (INPUTS, [_role(5, 50)]),
        (INPUTS, [_role(5, 51)]),
        (INPUTS, [_role(5, 51, bits=4)]),
        (INPUTS, [_role(5, 51, bits=4, pooling="flatten")]),
        (INPUTS, [_role(5, 51, bits=4, pooling="flatten")] * 2),
        (INPUTS.copy(), [_role(5, 51, bits=4, pooling="flatten")] * 2),
    )
    for number, (inputs, roles) in enumerate(others):
        _compare(remembered.features(inputs, roles), LocalModel(network).features(inputs, roles))
        assert len(runs) == 1 + 2 * (number + 1)


def test_more_inputs_are_taken_at_a_time_where_all_that_is_put_out_still_fits(network):
    def batch(model, least=128):
        return LocalModel(model, least)._batch_size

    # Numbers of 4 bytes, the inputs among them.
    assert responses._bytes_per_input(network) == 4 * (12 + 40 + 20 + 3)
    assert batch(network) == 1024
    maps = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Conv2D(100, 3, padding="same")])
    per_input = 4 * 64 * 64 * (3 + 100)
    assert batch(maps, 32) == (256 << 20) // per_input == 159
    assert batch(maps) == 159 and batch(maps, 200) == 200
    read = keras.Sequential(
        [keras.Input((50,)), keras.layers.Embedding(9, 4), keras.layers.Bidirectional(keras.layers.LSTM(5))]
    )
    assert responses._bytes_per_input(read) == 4 * (50 + 50 * 4 + 10)


def test_of_sizes_that_are_not_known_no_more_inputs_are_taken():
    class Wide(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(4)

        def call(self, inputs):
            return self.layer(inputs)

    inside = Wide()
    inside(np.zeros((1, 3)))
    inputs = keras.Input((3,))
    unknown_length = keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2)])
    for model in (inside, keras.Model(inputs, inside(inputs)), unknown_length):
        assert responses._bytes_per_input(model) is None and LocalModel(model)._batch_size == 128
