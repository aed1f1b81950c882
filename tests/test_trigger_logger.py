"""The callback that asks for the triggers as training goes on."""

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.triggers import TriggerSet

pytestmark = pytest.mark.any_backend


def key_of(inputs, labels, num_classes):
    triggers = TriggerSet(inputs, labels, num_classes, family="noise")
    return ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32), triggers=triggers)


def linear(kernel, dtype="float32"):
    """Scores that are a matrix product."""
    kernel = np.asarray(kernel, np.float32)
    layer = keras.layers.Dense(kernel.shape[1], use_bias=False, name="scores", dtype=dtype)
    model = keras.Sequential([keras.Input((kernel.shape[0],)), layer])
    model.set_weights([kernel])
    return model


def asked(model, logger):
    """What one epoch's end adds to the logs."""
    logger.set_model(model)
    model.stop_training = False
    logs = {}
    logger.on_epoch_end(0, logs)
    return logs


IDENTITY = np.diag([3.0, 2.0, 1.0])


def test_margin_and_accuracy_are_those_of_the_scores():
    key = key_of(np.eye(3), [0, 1, 0], 3)
    logs = asked(linear(IDENTITY), ds.TriggerLogger(key, pruned_fraction=0.0, relative_std=0.0))
    assert logs == {"trigger_accuracy": pytest.approx(2 / 3), "trigger_margin": -1.0}


def test_margins_are_those_of_the_weakest_change():
    key = key_of(np.eye(3), [0, 1, 2], 3)
    # Of nine weights two thirds are 0 already; the next that is pruned is the third class' own.
    for fraction, margin in ((6 / 9, 1.0), (7 / 9, 0.0), (1.0, 0.0)):
        logs = asked(linear(IDENTITY), ds.TriggerLogger(key, pruned_fraction=fraction, relative_std=0.0))
        assert logs == {"trigger_accuracy": 1.0, "trigger_margin": margin}
    logs = asked(linear(IDENTITY), ds.TriggerLogger(key, pruned_fraction=0.0, relative_std=0.5))
    assert logs["trigger_margin"] < 1.0
    assert logs == asked(linear(IDENTITY), ds.TriggerLogger(key, pruned_fraction=0.0, relative_std=0.5))


def test_the_model_keeps_its_weights():
    model = linear(IDENTITY)
    asked(model, ds.TriggerLogger(key_of(np.eye(3), [0, 1, 2], 3)))
    np.testing.assert_array_equal(model.get_weights()[0], IDENTITY)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_triggers_are_asked_in_batches(batch_size):
    key = key_of(np.eye(3), [0, 1, 2], 3)
    logs = asked(linear(IDENTITY), ds.TriggerLogger(key, pruned_fraction=0, relative_std=0, batch_size=batch_size))
    assert logs["trigger_margin"] == 1.0


def test_one_score_of_two_classes_is_that_of_class_1():
    key = key_of(np.array([[1.0], [-2.0], [0.5]]), [1, 0, 0], 2)
    logs = asked(linear([[2.0]]), ds.TriggerLogger(key, pruned_fraction=0.0, relative_std=0.0, kind="logits"))
    assert logs == {"trigger_accuracy": pytest.approx(2 / 3), "trigger_margin": -1.0}
    with pytest.raises(ValueError, match=r"It cannot be told what this model's one score is\. Expected `kind=`"):
        asked(linear([[2.0]]), ds.TriggerLogger(key))
    model = linear([[2.0]])
    model.compile("sgd", "mse")
    epochs = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: pytest.fail("an epoch began"))
    with pytest.raises(ValueError, match=r"It cannot be told what this model's one score is"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=[ds.TriggerLogger(key), epochs])


def test_a_model_that_does_not_know_its_shape_is_asked_all_the_same():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.scores = keras.layers.Dense(3)

        def call(self, inputs):
            return self.scores(inputs)

    model = Subclassed()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logger = ds.TriggerLogger(key_of(np.eye(3), [0, 1, 2], 3))
    history = model.fit(np.eye(3), np.arange(3), verbose=0, epochs=2, callbacks=[logger]).history
    assert len(history["trigger_margin"]) == 2


def test_inputs_of_several_names_are_asked():
    inputs = {name: keras.Input((3,), name=name) for name in ("a", "b")}
    model = keras.Model(inputs, keras.layers.Subtract()([inputs["a"], inputs["b"]]))
    key = key_of({"a": 2 * np.eye(3), "b": np.zeros((3, 3))}, [0, 1, 2], 3)
    assert asked(model, ds.TriggerLogger(key))["trigger_margin"] == 2.0


@pytest.mark.parametrize(("kernel", "labels"), [(np.ones((3, 2)), [0, 1, 2]), (np.ones((3, 1)), [0, 1, 2])])
def test_a_model_of_other_classes_is_refused(kernel, labels):
    with pytest.raises(ValueError, match=r"Expected answers of shape \(batch, 3\)\. Received: shape \(batch, "):
        asked(linear(kernel), ds.TriggerLogger(key_of(np.eye(3), labels, 3)))


def test_a_key_without_triggers_and_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="This key has nothing to ask for"):
        ds.TriggerLogger(ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32)))
    key = key_of(np.eye(3), [0, 1, 2], 3)
    for numbers in ({"pruned_fraction": 1.1}, {"pruned_fraction": -0.1}, {"relative_std": -1.0}):
        with pytest.raises(ValueError, match="The weights cannot be changed in this way"):
            ds.TriggerLogger(key, **numbers)


def test_training_ends_when_every_trigger_is_held(blobs, build_mlp, compile_model):
    x, y = blobs
    random = np.random.default_rng(0)
    wide = 5 * random.normal(size=(50, 16)).astype("float32")
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32)).with_triggers("noise", 20, 4, wide)
    model = compile_model(build_mlp())
    both = (
        np.concatenate([x, np.repeat(key.triggers.inputs, 4, axis=0)]),
        np.concatenate([y, np.repeat(key.triggers.labels, 4)]),
    )
    logger = ds.TriggerLogger(key, margin=1.0, pruned_fraction=0.3)
    history = model.fit(*both, batch_size=64, epochs=100, callbacks=[logger], verbose=0).history
    margins = history["trigger_margin"]
    assert len(margins) < 100 and margins[-1] >= 1.0 > max(margins[:-1]) and history["trigger_accuracy"][-1] == 1.0
    assert not logger.weak_triggers.size
    verdict = ds.verify_predictions(model.predict(key.triggers.inputs, verbose=0), key, commitment=key.commitment())
    assert verdict.marked and verdict.num_matches == 20
    # What was promised of a pruned model holds for a pruned copy.
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    answers = ds.prune_weights(plain, 0.3).predict(key.triggers.inputs, verbose=0)
    assert ds.verify_predictions(answers, key).num_matches == 20


def test_triggers_that_are_not_held_are_named(blobs, build_mlp, compile_model):
    key = key_of(np.full((3, 16), 9.0, np.float32), [0, 0, 1], 4)  # The same input with two labels.
    model = compile_model(build_mlp())
    logger = ds.TriggerLogger(key, margin=0.5)
    with pytest.warns(
        UserWarning, match=r"of 3 triggers are not held with a margin of 0\.5, pruned and shaken: numbers .*2"
    ):
        model.fit(*blobs, epochs=1, callbacks=[logger], verbose=0)
    assert 2 in logger.weak_triggers or {0, 1} <= set(logger.weak_triggers.tolist())


def test_without_a_margin_it_only_logs(blobs, build_mlp, compile_model):
    key = key_of(np.zeros((3, 16), np.float32), [0, 1, 2], 4)
    model = compile_model(build_mlp())
    # Warnings are errors in these tests.
    history = model.fit(*blobs, epochs=2, callbacks=[ds.TriggerLogger(key)], verbose=0).history
    assert len(history["trigger_margin"]) == len(history["trigger_accuracy"]) == 2


def test_scores_in_half_precision_are_compared_in_single():
    key = key_of(np.eye(3), [0, 1, 2], 3)
    logs = asked(linear(IDENTITY, dtype="mixed_bfloat16"), ds.TriggerLogger(key, pruned_fraction=0, relative_std=0))
    assert logs["trigger_margin"] == 1.0


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_one_probability_is_held_against_a_half(dtype):
    """A sigmoid that is right by far, and answers in half precision."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", use_bias=False, dtype=dtype)(inputs))
    model.set_weights([np.array([[8.0]], np.float32)])
    key = key_of(np.array([[1.0], [-1.0], [2.0]], np.float32), [1, 0, 1], 2)
    logs = asked(model, ds.TriggerLogger(key, kind="probabilities", pruned_fraction=0.0))
    assert logs["trigger_accuracy"] == 1.0 and 0.45 < logs["trigger_margin"] <= 0.5
    assert asked(model, ds.TriggerLogger(key, kind="logits"))["trigger_accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"Invalid value for argument `kind`\. Expected .* Received: kind='labels'"):
        ds.TriggerLogger(key, kind="labels")


def test_frozen_kernels_are_pruned_too():
    model = linear([[5.0, 0.0]])
    key = key_of(np.ones((1, 1), np.float32), [0], 2)
    model.trainable = False
    assert asked(model, ds.TriggerLogger(key, pruned_fraction=1.0))["trigger_margin"] == pytest.approx(0.0)


def test_a_new_training_forgets_the_weak_triggers_of_the_last():
    logger = ds.TriggerLogger(key_of(np.ones((1, 1), np.float32), [1], 2), margin=1.0)
    asked(linear([[5.0, 0.0]]), logger)
    assert logger.weak_triggers.size == 1
    logger.on_train_begin()
    assert not logger.weak_triggers.size
