"""Suspects read in the units of the marked model, and compared with unrelated ones."""

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.attacks.same_function import permute_units, rescale_units, split_units
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.recovery import AlignedReading, read_aligned, recover


@pytest.fixture
def released(marked_model, owner_key):
    return ds.release(marked_model, owner_key)


@pytest.fixture
def unrelated(blobs, build_mlp, compile_model):
    models = []
    for seed in range(4):
        keras.utils.set_random_seed(100 + seed)
        model = compile_model(build_mlp())
        model.fit(*blobs, batch_size=64, epochs=3, verbose=0)
        models.append(model)
    return models


def test_disguised_copies_are_recovered_and_unrelated_models_are_not(released, unrelated):
    marked, key = released
    readings = [read_aligned(model, key, marked) for model in unrelated]
    gate = readings[0].quality
    for disguised in (
        marked,
        permute_units(marked, 1),
        split_units(rescale_units(permute_units(marked, 1), 2), 3, 0.3),
    ):
        reading = read_aligned(disguised, key, marked)
        assert reading.bit_error_rate == 0.0 and reading.quality == pytest.approx(1.0, abs=1e-5)
        outcome = recover(reading, gate, readings[1:])
        assert (
            outcome.recovered and outcome.p_value == 0.25 and outcome.summary().startswith("RECOVERED, p <= 1/4: 128")
        )
    outcome = recover(readings[0], gate, readings[1:])
    assert not outcome.recovered and outcome.p_value == 1.0 and outcome.summary().startswith("NOT RECOVERED")


def test_the_layer_is_chosen_by_its_match_and_not_by_its_bits(released):
    """A decoy that spells the signature, beside a damaged copy of the marked layer."""
    marked, key = released
    inputs = keras.Input((16,))
    copy = keras.layers.Dense(128, "relu", name="copy")
    decoy = keras.layers.Dense(128, name="decoy")
    suspect = keras.Model(inputs, [copy(inputs), decoy(inputs)])
    kernel, bias = marked.get_layer("hidden").get_weights()
    copy.set_weights([kernel + 0.3 * kernel.std() * np.random.default_rng(0).normal(size=kernel.shape), bias])
    labels = key.key_inputs.labels
    means = np.stack([key.key_inputs.inputs[labels == label].mean(axis=0) for label in range(4)])
    spelt = (2.0 * key.signature("features") - 1.0) @ key.projection("features", 128).T
    decoy.set_weights([np.linalg.pinv(means) @ spelt, np.zeros(128)])
    alone = {}
    for name in ("copy", "decoy"):
        alone[name] = read_aligned(keras.Model(inputs, suspect.get_layer(name).output), key, marked)
    assert alone["copy"].quality > alone["decoy"].quality
    # All outputs together match a little better than the copy: a unit or two of the decoy's are more alike.
    found = read_aligned(suspect, key, marked)
    assert found.num_matches == alone["copy"].num_matches
    assert found.quality == pytest.approx(alone["copy"].quality, abs=0.01) and found.quality >= alone["copy"].quality


def test_p_values_are_ranks():
    readings = [AlignedReading(500 + 10 * number, 640, 0.8) for number in range(9)]

    def p_value(num_matches, quality=0.8):
        return recover(AlignedReading(num_matches, 640, quality), 0.75, readings).p_value

    # Ties count against the owner; a match that is no better than unrelated ones gets nowhere.
    assert [p_value(640), p_value(580), p_value(579), p_value(0), p_value(640, 0.75)] == [0.1, 0.2, 0.2, 1.0, 1.0]
    below = [AlignedReading(640, 640, 0.7)] * 9
    assert recover(AlignedReading(400, 640, 0.8), 0.75, below).p_value == 0.1


def test_an_outcome_says_what_it_rests_on_and_where_models_are_too_few():
    readings = [AlignedReading(500, 640, 0.7)] * 200
    few, enough = (recover(AlignedReading(640, 640, 0.9), 0.8, readings[:num]) for num in (199, 200))
    assert few.recovered and enough.recovered and enough.p_value == 1 / 201
    assert (
        few.assumptions[:-1] == enough.assumptions and "199 unrelated models where at least 200" in few.assumptions[-1]
    )
    assert "below 1/200" in few.summary() and "at least 200" not in enough.summary()
    assert all(sentence in enough.summary() for sentence in enough.assumptions)
    assert few.to_dict()["assumptions"] == list(few.assumptions)


def test_p_values_are_uniform_among_exchangeable_models():
    """At most the nominal share of suspects, drawn as the unrelated models are, gets a p of a tenth or less."""
    random = np.random.default_rng(0)

    def reading():
        return AlignedReading(int(random.integers(300, 600)), 640, float(random.uniform(0.5, 1.0)))

    p_values = np.array([recover(reading(), 0.9, [reading() for _ in range(19)]).p_value for _ in range(2000)])
    # A standard error of .0067 below a tenth.
    assert (p_values <= 0.1).mean() < 0.12 and (p_values <= 0.05).mean() < 0.065


def test_what_cannot_be_compared_is_refused(released):
    marked, key = released
    reading = read_aligned(marked, key, marked)
    for unrelated in ([], [AlignedReading(3, 4, 0.5)]):
        with pytest.raises(
            ValueError, match=r"^There is nothing to compare the suspect with\. Expected .*\. Received: "
        ):
            recover(reading, 0.5, unrelated)
    narrow = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match=r"^There is no reading for carrier 'features'\. Expected .*\. Received: none"):
        read_aligned(narrow, key, marked)
    elsewhere = key.with_layers([CarrierLayer("features", "elsewhere", 128)])
    with pytest.raises(ValueError, match=r"^The reference has another architecture"):
        read_aligned(marked, elsewhere, marked)
