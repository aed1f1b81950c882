"""Trigger sets: labels that follow from the seed alone, inputs of the task's own shape, and the tests that exist for them."""

import dataclasses

import keras
import numpy as np
import pytest
import scipy.stats

import deepsigns_tf as ds
from deepsigns_tf.owner_key import KeyInputs
from deepsigns_tf.statistics import binomial_log10_tail
from deepsigns_tf.triggers import TriggerSet, derive_inputs, derive_labels

pytestmark = pytest.mark.any_backend

SEED = bytes(range(32))
DOMAIN = ("triggers", 1)


def key_of(seed=SEED, **changes):
    """A key without carriers."""
    return ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), seed, **changes)


def photographs(num=40, dtype="uint8"):
    """Images of 6 x 5 pixels from 10 to 210."""
    return np.random.default_rng(0).integers(10, 211, (num, 6, 5, 3)).astype(dtype)


# Labels


def test_uniform_labels_are_uniform_and_independent():
    labels = derive_labels(SEED, DOMAIN, 100_000, 10, "uniform")
    pairs = np.bincount(10 * labels[::2] + labels[1::2], minlength=100)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize(("num", "num_classes"), [(100, 10), (7, 3), (2, 5)])
def test_shuffled_labels_are_as_many_of_each_class(num, num_classes):
    labels = derive_labels(SEED, DOMAIN, num, num_classes, "shuffled")
    counts = np.bincount(labels, minlength=num_classes)
    assert counts.sum() == num and counts.max() - counts.min() <= 1


def test_every_order_of_shuffled_labels_is_equally_likely():
    orders = [tuple(derive_labels(SEED, ("order", i), 4, 2, "shuffled").tolist()) for i in range(3000)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_labels_do_not_depend_on_family_and_examples():
    """Nor on anything else that could be chosen after a model is known."""
    x = photographs()
    one = key_of().with_triggers("noise", 50, 10, x).triggers
    other = key_of().with_triggers("blends", 50, 10, x[::-1]).triggers
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.labels != key_of(SEED[::-1]).with_triggers("noise", 50, 10, x).triggers.labels).any()


# Inputs


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
def test_noise_fills_the_range_of_the_examples(dtype):
    noise = derive_inputs(SEED, DOMAIN, "noise", 200, photographs(dtype=dtype))
    assert noise.shape == (200, 6, 5, 3) and noise.dtype == dtype
    assert 10 <= noise.min() < 11 and 209 < noise.max() <= 210
    assert scipy.stats.kstest(noise.ravel() + 0.0, scipy.stats.uniform(10, 200).cdf).statistic < 0.02


def test_a_blend_is_the_mean_of_two_examples():
    x = photographs()
    for dtype in ("uint8", "float32"):
        for blend in derive_inputs(SEED, DOMAIN, "blends", 30, x.astype(dtype)):
            means = (x[:, None] / 2 + x[None] / 2).astype(dtype)
            one, other = np.argwhere((means == blend).all(axis=(2, 3, 4)))[0]
            assert one != other


def test_token_strings_are_made_of_the_vocabulary():
    texts = np.array([[5, 7, 9, 0], [7, 11, 0, 0]], np.int32)
    drawn = derive_inputs(SEED, DOMAIN, "tokens", 500, texts)
    assert drawn.shape == (500, 4) and drawn.dtype == np.int32
    values, counts = np.unique(drawn, return_counts=True)
    # All that lie between: of a vocabulary with gaps somebody could leave out what does not suit the labels.
    assert values.tolist() == [5, 6, 7, 8, 9, 10, 11] and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_of_the_examples_their_range_alone_enters_what_is_derived():
    """Else whoever claims a model could choose them to suit the labels."""
    for family, x in (("tokens", [[5, 7, 9, 0], [7, 11, 0, 0]]), ("noise", [[-1.0, 2.0, 9.0], [0.5, 3.0, 4.0]])):
        examples = np.array(x)
        ends = np.resize([max(examples.min(), 5 if family == "tokens" else -1), examples.max()], examples.shape)
        one, other = (derive_inputs(SEED, DOMAIN, family, 20, each) for each in (examples, ends))
        np.testing.assert_array_equal(one, other)


def test_inputs_of_several_names_are_drawn_together():
    x = {"image": photographs(), "code": np.arange(40)[:, None]}
    noise = derive_inputs(SEED, DOMAIN, "noise", 8, x)
    assert noise["image"].shape == (8, 6, 5, 3) and noise["code"].shape == (8, 1)
    blends = derive_inputs(SEED, DOMAIN, "blends", 8, {"one": x["code"], "other": 2 * x["code"]})
    # The same pair of examples in both.
    assert (np.abs(blends["other"] - 2 * blends["one"]) <= 1).all()


@pytest.mark.parametrize("family", ["noise", "blends", "tokens"])
def test_the_same_seed_gives_the_same_inputs_and_another_seed_others(family):
    x = photographs()
    one, again = (derive_inputs(SEED, DOMAIN, family, 8, x) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert (one != derive_inputs(SEED[::-1], DOMAIN, family, 8, x)).any()


@pytest.fixture
def task_model():
    """Features that are the inputs, and two classes: whichever of two corners is nearer."""
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(2, name="logits")(keras.layers.Identity(name="features")(inputs))
    model = keras.Model(inputs, outputs)
    model.get_layer("logits").set_weights([np.array([[-1.0, 1.0], [0.0, 0.0]]), np.zeros(2)])
    return model


def test_triggers_of_low_density_lie_between_the_classes(task_model):
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 2)).astype("float32")
    x[:, 0] += np.where(np.arange(200) % 2, 5, -5)
    drawn = derive_inputs(SEED, DOMAIN, "low_density", 20, x, task_model, "features")
    assert drawn.shape == (20, 2) and (np.abs(drawn[:, 0]) < 1).all()
    blends = derive_inputs(SEED, DOMAIN, "blends", 20, x)
    assert np.abs(blends[:, 0]).max() > 3
    key = key_of().with_triggers("low_density", 20, 2, x, model=task_model, layer="features")
    assert key.triggers.family == "low_density" and key.triggers.num_examples == 20


def test_a_model_that_sees_one_class_has_nothing_between_them(task_model):
    x = np.ones((10, 2), "float32")
    with pytest.raises(ValueError, match=r"There is nothing between classes\. Expected .* Received: 1 class"):
        derive_inputs(SEED, DOMAIN, "low_density", 2, x, task_model, "features")
    with pytest.raises(
        ValueError, match=r"This model has no such layer\. Expected one of .*'features'.* Received: layer='a'"
    ):
        derive_inputs(SEED, DOMAIN, "low_density", 2, x, task_model, "a")


def test_of_few_examples_triggers_of_low_density_are_those_that_differ(task_model):
    x = np.stack([np.linspace(-5, 5, 12), np.arange(12.0)], axis=1).astype("float32")
    drawn = derive_inputs(SEED, DOMAIN, "low_density", 20, x, task_model, "features")
    assert len(np.unique(drawn, axis=0)) == 20


@pytest.mark.parametrize(
    ("family", "examples", "num_contradicted"),
    [("noise", np.ones((5, 4)), 20), ("tokens", np.array([[1, 2]]), None), ("blends", photographs(2), 20)],
)
def test_triggers_that_no_model_can_learn_are_warned_of(family, examples, num_contradicted):
    with pytest.warns(UserWarning, match=rf"{num_contradicted or ''} of 20 have the input of another") as warned:
        key = key_of().with_triggers(family, 20, 10, examples)
    assert f"triggers: {key.triggers.num_contradicted} of 20" in str(warned[0].message)


# Selection


def test_triggers_that_were_wrong_before_are_kept():
    x = photographs()
    key = key_of().with_triggers("noise", 60, 3, x)
    answers = np.arange(60) % 3
    selected = key.with_selected_triggers(answers).triggers
    wrong = answers != key.triggers.labels
    np.testing.assert_array_equal(selected.labels, key.triggers.labels[wrong])
    np.testing.assert_array_equal(selected.inputs, key.triggers.inputs[wrong])
    assert selected.num_drawn == 60
    # Each draw counts, from the first one that was left out.
    np.testing.assert_array_equal(selected.num_trials(np.arange(wrong.sum())), np.flatnonzero(wrong) + 1)
    np.testing.assert_array_equal(selected.num_trials(np.array([5, 2, 7])), np.flatnonzero(wrong)[[5, 5, 7]] + 1)
    np.testing.assert_array_equal(key.triggers.num_trials(np.array([5, 2, 7])), [1, 2, 3])
    # What was left out counts as right.
    assert selected.allowed_errors(-6.0) == key.triggers.allowed_errors(-6.0) - (60 - wrong.sum())


def test_too_few_selected_triggers_are_warned_of():
    key = key_of().with_triggers("noise", 30, 4, photographs())
    with pytest.warns(
        UserWarning, match=r"^These triggers prove nothing: 12 right answers of 4 classes have p = 10\^-1\.\d, above"
    ):
        key.with_selected_triggers(np.where(np.arange(30) < 12, -1, key.triggers.labels))


@pytest.mark.parametrize("selection", ["right_after", "none", "random"])
def test_a_selection_without_an_exact_test_is_refused(selection):
    triggers = key_of().with_triggers("noise", 20, 3, photographs()).triggers
    with pytest.raises(ValueError) as error:
        triggers.selected(np.zeros(10), selection)
    assert str(error.value) == (
        "Triggers cannot be selected in this way. Expected one selection, `wrong_before`; for triggers that a marked model got "
        "right there is no exact p-value, as their labels then depend on their inputs. "
        f"Received: selection={selection!r} of triggers with selection='none'"
    )


def test_triggers_are_selected_once():
    key = key_of().with_triggers("noise", 60, 3, photographs()).with_selected_triggers(np.zeros(60))
    with pytest.raises(ValueError, match="of triggers with selection='wrong_before'"):
        key.with_selected_triggers(np.zeros(key.triggers.num_examples))
    with pytest.raises(ValueError, match="This key has no triggers to select from"):
        key_of().with_selected_triggers(np.zeros(30))


@pytest.mark.parametrize(("num_classes", "label_rule"), [(2, "uniform"), (3, "shuffled")])
def test_selected_triggers_of_two_classes_or_shuffled_labels_are_refused(num_classes, label_rule):
    key = key_of().with_triggers("noise", 30, num_classes, photographs(), label_rule=label_rule)
    with pytest.raises(ValueError, match=r"These triggers have no exact test\. Expected .* at least three classes"):
        key.with_selected_triggers(np.zeros(30))


def test_shuffled_labels_of_which_some_were_left_out_are_refused():
    triggers = key_of().with_triggers("noise", 30, 3, photographs(), label_rule="shuffled").triggers
    with pytest.raises(
        ValueError, match=r"no exact test\. Expected all that were drawn.* Received: 30 triggers, num_drawn=31"
    ):
        dataclasses.replace(triggers, num_drawn=31)


def test_a_model_that_knows_all_labels_leaves_no_trigger():
    key = key_of().with_triggers("noise", 30, 3, photographs())
    with pytest.raises(ValueError, match=r"No trigger is left\. .* Received: 30 right answers of 30"):
        key.with_selected_triggers(key.triggers.labels)
    with pytest.raises(ValueError, match="Invalid value for argument `answers`. Expected 30 integers"):
        key.with_selected_triggers(np.zeros(29))


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"family": "photos"},
            r"`family`. Expected one of \['noise', 'blends', 'low_density', 'tokens'\]. Received: family='photos'",
        ),
        (
            {"label_rule": "chosen"},
            r"`label_rule`. Expected one of \['uniform', 'shuffled'\]. Received: label_rule='chosen'",
        ),
        ({"num_triggers": 0}, "`num_triggers`. Expected an integer >= 1. Received: num_triggers=0"),
        ({"num_triggers": 2.5}, "`num_triggers`. Expected an integer >= 1. Received: num_triggers=2.5"),
        ({"num_classes": 1}, "`num_classes`. Expected an integer >= 2, .* Received: num_classes=1"),
        ({"num_classes": True}, "`num_classes`. Expected an integer >= 2, .* Received: num_classes=True"),
        ({"examples": []}, "`examples`. Expected a non-empty array of numbers"),
        (
            {"examples": [[1, 2], [3]]},
            "`examples`. Expected an array, or sequences of equal lengths. Received: a list of 2",
        ),
        (
            {"examples": photographs(1), "family": "blends"},
            "nothing to blend. Expected at least two examples. Received: 1",
        ),
        ({"examples": np.zeros((3, 2)), "family": "tokens"}, "no token strings. .* Received: dtype float64, numbers"),
        (
            {"examples": np.eye(2, dtype=int), "family": "tokens"},
            "no token strings. .* Received: dtype int64, numbers from 0 to 1",
        ),
        (
            {"examples": np.array([[-1, 2, 3]]), "family": "tokens"},
            "no token strings. .* Received: dtype int64, numbers from -1 to 3",
        ),
        ({"family": "low_density"}, "Expected both .* Received: family='low_density', model=missing, layer=None"),
        ({"layer": "features"}, "Expected both .* Received: family='noise', model=missing, layer='features'"),
    ],
)
def test_bad_triggers_are_refused(changes, message):
    arguments = {"family": "noise", "num_triggers": 10, "num_classes": 10, "examples": photographs()}
    with pytest.raises(ValueError, match=message):
        key_of().with_triggers(**(arguments | changes))


def test_triggers_are_made_once():
    key = key_of().with_triggers("noise", 10, 10, photographs())
    with pytest.raises(ValueError, match=r"This key has its triggers already\. .* Received: a key with 10 triggers"):
        key.with_triggers("noise", 10, 10, photographs())


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_of_no_class_are_refused(labels):
    with pytest.raises(ValueError, match=r"`labels`\. Expected integers in 0 \.\. 2\. Received: 1 others"):
        TriggerSet(np.zeros((2, 1)), labels, num_classes=3, family="noise")


# In the key


TRIGGERS = TriggerSet(np.arange(8, dtype=np.float32).reshape(4, 2), [0, 1, 2, 2], num_classes=3, family="noise")


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": TRIGGERS.inputs + 1},
        {"inputs": {"a": TRIGGERS.inputs}},
        {"labels": [0, 1, 2, 1]},
        {"num_classes": 4},
        {"family": "blends"},
        {"label_rule": "shuffled"},
        {"selection": "wrong_before"},
    ],
)
def test_every_part_of_the_triggers_changes_the_commitment(changes):
    key = key_of(triggers=TRIGGERS)
    other = key_of(triggers=dataclasses.replace(TRIGGERS, **changes))
    assert key.commitment() != other.commitment()


@pytest.mark.parametrize("inputs", [TRIGGERS.inputs, {"a": TRIGGERS.inputs, "b": np.arange(4)}])
@pytest.mark.parametrize("with_key_inputs", [False, True])
def test_triggers_survive_the_file(inputs, with_key_inputs, tmp_path):
    triggers = dataclasses.replace(TRIGGERS, inputs=inputs, selection="wrong_before")
    key = key_of(triggers=triggers, key_inputs=KeyInputs(np.zeros((2, 3)), [0, 1]) if with_key_inputs else None)
    key.save(tmp_path / "owner.key")
    loaded = ds.OwnerKey.load(tmp_path / "owner.key")
    assert loaded.commitment() == key.commitment()
    assert loaded.triggers.parameters() == triggers.parameters()
    assert (loaded.key_inputs is not None) == with_key_inputs


def test_a_key_does_not_show_its_triggers():
    assert "triggers" not in repr(key_of(triggers=TRIGGERS))
    for secret in ("inputs", "labels"):
        assert secret not in repr(TRIGGERS)


def test_hundred_triggers_of_ten_classes_prove_with_72_wrong_answers():
    assert binomial_log10_tail(28, 100, 10) <= -6 < binomial_log10_tail(27, 100, 10)
