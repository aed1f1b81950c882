"""Attacks that train do what they say."""

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.attacks.adaptive import move_class_means
from deepsigns_tf.attacks.adversarial import neural_cleanse, train_adversarially
from deepsigns_tf.attacks.extraction import distill
from deepsigns_tf.attacks.fine_tuning import (
    corrupt_labels,
    fine_prune,
    fine_tune,
    prune_and_retrain,
    shrink_and_tune,
    smooth_labels,
)
from deepsigns_tf.attacks.overwriting import overwrite
from deepsigns_tf.attacks.recipes import Recipe
from deepsigns_tf.carriers import CarrierLayer

ONCE = Recipe(epochs=1)


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
        keras.layers.BatchNormalization(name="batch_normalization"),
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
    "tuned": lambda model, x, y: fine_tune(model, x, y, seed=1, recipe=ONCE),
    "pruned": lambda model, x, y: prune_and_retrain(model, x, y, seed=1, fraction=0.5, recipe=ONCE),
    "fine-pruned": lambda model, x, y: fine_prune(model, x, y, seed=1, layer="maps", fraction=0.5, recipe=ONCE),
    "shrunk": lambda model, x, y: shrink_and_tune(model, x, y, seed=1, shrinking=ONCE, tuning=ONCE),
    "smoothed": lambda model, x, y: smooth_labels(model, x, y, seed=1, recipe=ONCE),
    "corrupted": lambda model, x, y: corrupt_labels(model, x, y, seed=1, recipe=ONCE),
    "hardened": lambda model, x, y: train_adversarially(model, x, y, seed=1, num_steps=2, recipe=ONCE),
    "cleansed": lambda model, x, y: neural_cleanse(model, x, y, seed=1, num_steps=3, recipe=ONCE),
    "moved": lambda model, x, y: move_class_means(model, x, y, seed=1, layers={"features": "mean"}, recipe=ONCE),
    "distilled": lambda model, x, y: distill(model, x, seed=1, recipe=ONCE),
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
        float(loss(data[1], each(data[0]))) for each in (model, fine_tune(model, *data, seed=0, recipe=Recipe(5, 1e-3)))
    ]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"layers": "all"}, {"maps", "features", "batch_normalization", "logits"}),
        ({"layers": "last"}, {"logits"}),
        ({"layers": "last", "new_layers": ("logits",)}, {"logits"}),
    ],
)
def test_the_layers_that_are_asked_for_are_tuned(settings, changed, model, data):
    tuned = fine_tune(model, *data, seed=5, recipe=ONCE, **settings)
    assert set(_changed(model, tuned)) == changed
    kernels = [each.get_layer("logits").get_weights()[0] for each in (model, tuned)]
    correlation = np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]
    assert correlation < 0.6 if "new_layers" in settings else correlation > 0.95


def test_what_was_pruned_stays_zero(model, data):
    retrained = prune_and_retrain(model, *data, seed=0, fraction=0.7, recipe=Recipe(2, 1e-3))
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
    silenced = fine_prune(model, *data, seed=0, layer="maps", fraction=0.5, recipe=ONCE)
    kernel, bias = silenced.get_layer("maps").get_weights()
    assert set(np.flatnonzero((kernel == 0).all(axis=(0, 1)))) == set(idle) == set(np.flatnonzero(bias == 0))


def test_overwriting_embeds_the_thiefs_mark(model, data):
    thiefs = ds.OwnerKey("thief", (ds.Carrier("mark", range(3), 32),), ds.DecisionRule(), bytes(32)).with_key_inputs(
        *data, 16
    )
    overwritten = overwrite(
        model, *data, seed=0, thiefs_key=thiefs, layers={"mark": "features"}, recipe=Recipe(30, 1e-3), strength=3.0
    )
    assert not isinstance(overwritten, ds.WatermarkedModel) and _accuracy(overwritten, data) > 0.9
    thiefs = thiefs.with_layers([CarrierLayer("mark", "features", 64)])
    rates = [ds.verify(each, thiefs).bit_error_rate for each in (model, overwritten)]
    assert rates[0] > 0.3 and rates[1] < 0.05


def test_a_student_learns_the_answers_and_has_weights_of_its_own(model, data):
    def smaller():
        return keras.Sequential([keras.Input((10,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])

    answers, sureness, students = model.predict(data[0], verbose=0).argmax(axis=1), [], []
    for settings in ({}, {"hard_labels": True}, {"build": smaller}):
        student = distill(model, data[0], seed=5, recipe=Recipe(15, 1e-2), **settings)
        students.append(student)
        logits = student.predict(data[0], verbose=0)
        assert (logits.argmax(axis=1) == answers).mean() > 0.9
        assert ("build" in settings) == (student.count_params() != model.count_params())
        sureness.append(float(keras.ops.max(keras.ops.softmax(logits), axis=1).numpy().mean()))
    # Labels alone make it surer.
    assert sureness[0] < sureness[1]
    kernels = [each.get_layer("features").get_weights()[0] for each in (model, students[0])]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.3


def test_probabilities_are_trained_as_such(data):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(3, "softmax")])
    tuned = fine_tune(model, *data, seed=0, recipe=Recipe(5, 0.01))
    assert not tuned.loss.get_config()["from_logits"] and _accuracy(tuned, data) > 0.9
    assert _accuracy(distill(tuned, data[0], seed=0, recipe=Recipe(10, 0.01)), data) > 0.85


def test_a_strong_penalty_shrinks_the_weights_and_goes_again(model, data):
    def size(network):
        return sum(np.abs(each).sum() for each in network.get_weights() if each.ndim > 1)

    steps = Recipe(3, 1e-2)
    shrunk = shrink_and_tune(model, *data, seed=0, l2=0.1, shrinking=steps, tuning=ONCE)
    assert size(shrunk) < 0.5 * size(model)
    assert not any(variable.regularizer for variable in shrunk.trainable_variables)


def test_labels_are_smoothed_and_corrupted_as_asked(model, data):
    """What is learned shows in the answers: less sure of themselves, and less so the more labels are drawn."""

    def sureness(network):
        return float(keras.ops.max(keras.ops.softmax(network(data[0])), axis=1).numpy().mean())

    steps = Recipe(10, 3e-3)
    tuned = sureness(fine_tune(model, *data, seed=0, recipe=steps))
    smoothed = [sureness(smooth_labels(model, *data, seed=0, share=share, recipe=steps)) for share in (0.3, 0.6)]
    corrupted = [sureness(corrupt_labels(model, *data, seed=0, share=share, recipe=steps)) for share in (0.3, 0.9)]
    assert tuned > smoothed[0] > smoothed[1] and tuned > corrupted[0] > corrupted[1]
    # A share of 0.3 leaves the right one of three classes 0.8, of 0.6 0.6.
    assert smoothed[0] < 0.85 and smoothed[1] < 0.65


def test_hardened_training_withstands_more(model, data):
    """The accuracy under small steps along the gradient's sign."""
    import tensorflow as tf

    x, y = data
    epsilon = 0.15 * (x.max() - x.min())

    def robust_accuracy(network):
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, network(inputs))
        return _accuracy(network, (x + epsilon * np.sign(tape.gradient(loss, inputs)), y))

    steps = Recipe(10, 3e-3)
    hardened = train_adversarially(model, x, y, seed=0, relative_epsilon=0.15, recipe=steps)
    plain = fine_tune(model, x, y, seed=0, recipe=steps)
    assert robust_accuracy(hardened) > robust_accuracy(plain) + 0.05


def test_a_patch_that_was_trained_is_found_and_unlearnt():
    """Classes are patterns over the whole image, a bright corner is one alone."""
    random = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = random.normal(size=(600, 8, 8, 1)) + 0.5 * random.normal(size=(3, 8, 8, 1))[y]
    x = np.clip(x, -3, 3).astype("float32")

    def patched(images):
        images = images.copy()
        images[:, 6:, 6:] = 3.0
        return images

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(32, "relu"), keras.layers.Dense(3)]
    )
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    both = np.concatenate([x, patched(x[:200])]), np.concatenate([y, np.full(200, 2)])
    model.fit(*both, epochs=15, verbose=0)
    backdoor = patched(x[200:]), np.full(400, 2)
    assert _accuracy(model, backdoor) > 0.9 and _accuracy(model, (x, y)) > 0.9
    cleansed, tuned = (attack(model, x, y, seed=0, recipe=Recipe(10, 1e-3)) for attack in (neural_cleanse, fine_tune))
    assert _accuracy(cleansed, backdoor) < 0.8 < 0.9 < _accuracy(tuned, backdoor)
    assert _accuracy(cleansed, (x, y)) > 0.9


def test_class_means_are_moved_as_far_as_asked(model, data):
    """Where the training arrives, not where it was told to go."""

    def means(network):
        features = keras.Model(network.inputs, network.get_layer("features").output).predict(data[0], verbose=0)
        return np.stack([features[data[1] == label].mean(axis=0) for label in range(3)])

    before = means(model)
    spread = before.std(axis=1, keepdims=True)
    apart = [
        np.sqrt((((means(each) - before) / spread) ** 2).mean())
        for each in (
            move_class_means(
                model, *data, seed=0, layers={"features": "mean"}, distance=distance, recipe=Recipe(30, 3e-3)
            )
            for distance in (0.0, 1.0, 4.0)
        )
    ]
    # A ReLU's means cannot go below 0: half of the way is lost where they were near it.
    assert apart[0] < 0.5 < apart[1] < 1.5 < apart[2] < 4.0


def test_all_attacks_can_train_as_a_task_with_smoothed_labels_does(model, data):
    """What class an input is of is no matter of its target; answers are learned as they are."""
    smoothed = Recipe(1, 1e-3, label_smoothing=0.2)
    layers = {"features": "mean"}
    thiefs = ds.OwnerKey("thief", (ds.Carrier("features", range(3), 32),), ds.DecisionRule(), bytes(32))
    moved = move_class_means(model, *data, seed=0, layers=layers, distance=8.0, recipe=smoothed)
    assert "features" in _changed(model, moved)
    for attacked in (
        fine_tune(model, *data, seed=0, recipe=smoothed),
        overwrite(model, *data, 0, thiefs, {"features": "features"}, recipe=smoothed),
        train_adversarially(model, *data, seed=0, num_steps=1, recipe=smoothed),
    ):
        assert _changed(model, attacked)
    assert fine_tune(model, *data, seed=0, recipe=smoothed).loss.label_smoothing == 0.2
    assert distill(model, data[0], seed=0, recipe=smoothed).loss.label_smoothing == 0.0


def test_the_rate_falls_to_nothing_where_asked(model, data):
    rates = [
        float(fine_tune(model, *data, seed=0, recipe=Recipe(2, 1e-3, falls=falls)).optimizer.learning_rate)
        for falls in (False, True)
    ]
    assert rates == pytest.approx([1e-3, 0.0])


def test_trainings_leave_no_data_behind(model, data, monkeypatch):
    """Else a suite of a hundred attacks holds a hundred copies."""
    import gc
    import weakref

    import tensorflow as tf

    constant, kept = tf.constant, []

    def noted(value, *args, **kwargs):
        tensor = constant(value, *args, **kwargs)
        if np.shape(value) == data[0].shape:
            kept.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(tf, "constant", noted)
    gc.disable()
    try:
        for _ in range(3):
            fine_tune(model, *data, seed=0, recipe=ONCE)
    finally:
        gc.enable()
    assert len(kept) == 3 and sum(each() is not None for each in kept) <= 1


def test_an_interrupted_training_goes_on(model, data, tmp_path):
    class KilledError(Exception):
        pass

    recipe = Recipe(3, 1e-3, batch_size=100, backup_dir=str(tmp_path / "backup"))
    fit, epochs = keras.Model.fit, []

    def fit_one_epoch(self, *args, callbacks, **kwargs):
        def stop(epoch, logs):
            epochs.append(epoch)
            if len(epochs) == 1:
                raise KilledError

        return fit(self, *args, callbacks=[*callbacks, keras.callbacks.LambdaCallback(on_epoch_end=stop)], **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "fit", fit_one_epoch)
        with pytest.raises(KilledError):
            fine_tune(model, *data, seed=0, recipe=recipe)
        assert list((tmp_path / "backup").iterdir())
        tuned = fine_tune(model, *data, seed=0, recipe=recipe)
    assert epochs == [0, 1, 2] and int(tuned.optimizer.iterations.numpy()) == 18
    assert not (tmp_path / "backup").exists()


def test_batches_are_augmented_anew_in_every_step(data):
    seeds = []

    def noted(inputs, seed):
        import tensorflow as tf

        tf.py_function(lambda drawn: seeds.append(tuple(drawn.numpy())), [seed], [])
        return inputs + 0.0

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(3)])
    fine_tune(model, *data, seed=0, recipe=Recipe(2, batch_size=200, augmentation=noted))
    assert len(seeds) >= 6 and len(set(seeds)) == len(seeds)


_OF_TOKENS = keras.Sequential([keras.Input((10,), dtype="int32"), keras.layers.Dense(3)])


@pytest.mark.parametrize(
    "attempt",
    [
        lambda model, x, y: fine_prune(model, x, y, seed=0, layer="none"),
        lambda model, x, y: fine_prune(model, x, y, seed=0, layer="maps", fraction=1.2),
        lambda model, x, y: fine_tune(model, x, y, seed=0, new_layers=("none",)),
        lambda model, x, y: prune_and_retrain(model, x, y, seed=0, fraction=-0.1),
        lambda model, x, y: shrink_and_tune(model, x, y, seed=0, l2=-1.0),
        lambda model, x, y: smooth_labels(model, x, y, seed=0, share=1.0),
        lambda model, x, y: corrupt_labels(model, x, y, seed=0, share=-0.1),
        lambda model, x, y: train_adversarially(_OF_TOKENS, x, y, seed=0),
        lambda model, x, y: train_adversarially(model, x, y, seed=0, num_steps=0),
        lambda model, x, y: neural_cleanse(model, x, y, seed=0, num_steps=0),
        lambda model, x, y: move_class_means(model, x, y, seed=0, layers={"none": "mean"}),
        lambda model, x, y: move_class_means(model, x, y, seed=0, layers={}),
        lambda model, x, y: Recipe(label_smoothing=1.0),
        lambda model, x, y: Recipe(epochs=0),
        lambda model, x, y: Recipe(learning_rate=float("nan")),
        lambda model, x, y: overwrite(
            model, x, y, 0, ds.OwnerKey("t", (ds.Carrier("mark", range(3), 32),), ds.DecisionRule(), bytes(32)), {}
        ),
    ],
)
def test_what_makes_no_sense_is_refused(attempt, model, data):
    with pytest.raises(ValueError, match=r"\. Expected .*\. Received: "):
        attempt(model, *data)
