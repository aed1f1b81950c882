"""Attacks that train do what they say."""

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.attacks.retraining import distill, fine_prune, fine_tune, overwrite, prune_and_retrain
from deepsigns_tf.owner_key import CarrierLayer


@pytest.fixture(scope="module")
def data():
    """Blobs of three classes."""
    random = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = random.normal(size=(600, 10)) + 2 * random.normal(size=(3, 10))[y]
    return x.astype("float32"), y


@pytest.fixture(scope="module")
def model(data):
    """A trained network with a kernel of each kind, BatchNorm and dropout."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Reshape((10, 1)),
        keras.layers.Conv1D(8, 3, activation="relu", name="maps"),
        keras.layers.Flatten(),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(64, "relu", name="features"),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(3, name="logits"),
    ]
    network = keras.Sequential([keras.Input((10,)), *layers])
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(*data, epochs=5, verbose=0)
    return network


def _accuracy(model, data):
    return float((model.predict(data[0], verbose=0).argmax(axis=1) == data[1]).mean())


def _changed(model, other):
    return [
        layer.name
        for layer, now in zip(model.layers, other.layers[1:], strict=True)
        if any((a != b).any() for a, b in zip(layer.get_weights(), now.get_weights(), strict=True))
    ]


ATTACKS = {
    "tuned": lambda model, x, y: fine_tune(model, x, y, seed=1, epochs=1),
    "pruned": lambda model, x, y: prune_and_retrain(model, x, y, seed=1, fraction=0.5, epochs=1),
    "fine-pruned": lambda model, x, y: fine_prune(model, x, y, seed=1, layer="maps", fraction=0.5, epochs=1),
    "distilled": lambda model, x, y: distill(model, x, seed=1, epochs=1),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_copy_is_trained_and_the_seed_decides(attack, model, data):
    before = model.get_weights()
    one, two = (attack(model, *data) for _ in range(2))
    for old, now, a, b in zip(before, model.get_weights(), one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert any((a != b).any() for a, b in zip(before, one.get_weights(), strict=True))


def test_fine_tuning_lowers_the_loss(model, data):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = [
        float(loss(data[1], each(data[0])))
        for each in (model, fine_tune(model, *data, seed=0, epochs=5, learning_rate=1e-3))
    ]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"layers": "all"}, {"maps", "features", "batch_normalization", "logits"}),
        ({"layers": "last"}, {"logits"}),
        ({"layers": "last", "new_head": True}, {"logits"}),
    ],
)
def test_the_layers_that_are_asked_for_are_tuned(settings, changed, model, data):
    tuned = fine_tune(model, *data, seed=5, epochs=1, **settings)
    assert {name.split("_1")[0] for name in _changed(model, tuned)} == changed
    kernels = [each.get_layer("logits").get_weights()[0] for each in (model, tuned)]
    correlation = np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]
    assert correlation < 0.6 if settings.get("new_head") else correlation > 0.95


def test_what_was_pruned_stays_zero(model, data):
    retrained = prune_and_retrain(model, *data, seed=0, fraction=0.7, epochs=2, learning_rate=1e-3)
    for old, new in zip(model.get_weights(), retrained.get_weights(), strict=True):
        if new.ndim > 1:
            gone = new == 0
            assert gone.sum() == round(0.7 * gone.size)
            assert np.abs(old[gone]).max() <= np.abs(old[~gone]).min() and (new[~gone] != old[~gone]).any()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = [float(loss(data[1], each(data[0]))) for each in (ds.prune_weights(model, 0.7), retrained)]
    assert losses[1] < losses[0]


def test_the_units_that_the_task_excites_least_are_silenced(model, data):
    maps = keras.Model(model.inputs, model.get_layer("maps").output).predict(data[0], verbose=0)
    idle = np.argsort(np.abs(maps).sum(axis=(0, 1)))[:4]
    silenced = fine_prune(model, *data, seed=0, layer="maps", fraction=0.5, epochs=1)
    kernel, bias = silenced.get_layer("maps").get_weights()
    assert set(np.flatnonzero((kernel == 0).all(axis=(0, 1)))) == set(idle) == set(np.flatnonzero(bias == 0))


def test_overwriting_embeds_the_thiefs_mark(model, data):
    thiefs = ds.OwnerKey("thief", (ds.Carrier("mark", range(3), 32),), ds.DecisionRule(), bytes(32)).with_key_inputs(
        *data, 16
    )
    overwritten = overwrite(
        model, *data, seed=0, thiefs_key=thiefs, layers={"mark": "features"}, epochs=20, strength=3.0
    )
    assert not isinstance(overwritten, ds.WatermarkedModel) and _accuracy(overwritten, data) > 0.9
    thiefs = thiefs.with_layers([CarrierLayer("mark", "features", 64)])
    rates = [ds.verify(each, thiefs).bit_error_rate for each in (model, overwritten)]
    assert rates[0] > 0.3 and rates[1] < 0.05


def test_a_student_learns_the_answers_and_has_weights_of_its_own(model, data):
    def smaller():
        return keras.Sequential([keras.Input((10,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])

    answers = model.predict(data[0], verbose=0).argmax(axis=1)
    for settings in ({}, {"hard_labels": True}, {"temperature": 4.0}, {"build": smaller}):
        student = distill(model, data[0], seed=0, epochs=20, learning_rate=1e-2, **settings)
        assert (student.predict(data[0], verbose=0).argmax(axis=1) == answers).mean() > 0.9
        assert ("build" in settings) == (student.count_params() != model.count_params())
    kernels = [
        each.get_layer("features").get_weights()[0] for each in (model, distill(model, data[0], seed=5, epochs=1))
    ]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.3


def test_probabilities_are_trained_as_such(data):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(3, "softmax")])
    tuned = fine_tune(model, *data, seed=0, epochs=5, learning_rate=0.01)
    assert not tuned.loss.get_config()["from_logits"] and _accuracy(tuned, data) > 0.9
    assert _accuracy(distill(tuned, data[0], seed=0, epochs=10, learning_rate=0.01), data) > 0.85


@pytest.mark.parametrize(
    "attempt",
    [
        lambda model, x, y: fine_prune(model, x, y, seed=0, layer="none"),
        lambda model, x, y: fine_prune(model, x, y, seed=0, layer="maps", fraction=1.2),
        lambda model, x, y: distill(model, x, seed=0, temperature=0.0),
        lambda model, x, y: overwrite(
            model, x, y, 0, ds.OwnerKey("t", (ds.Carrier("mark", range(3), 32),), ds.DecisionRule(), bytes(32)), {}
        ),
    ],
)
def test_what_makes_no_sense_is_refused(attempt, model, data):
    with pytest.raises(ValueError, match=r"\. Expected .*\. Received: "):
        attempt(model, *data)
