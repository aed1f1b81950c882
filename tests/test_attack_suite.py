"""The suite of attacks, and the program that runs it."""

import dataclasses
import inspect
import json
import os
import re
import sys
import types
import typing

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from benchmarks import studies
from deepsigns_tf.activations import named_layers
from deepsigns_tf.attacks import informed, outcomes
from deepsigns_tf.attacks import suite as suites
from deepsigns_tf.attacks.graphs import flat_name
from deepsigns_tf.attacks.outcomes import Examiner, survived
from deepsigns_tf.attacks.recipes import Recipe
from deepsigns_tf.attacks.same_function import permute_units
from deepsigns_tf.attacks.suite import suite
from deepsigns_tf.attacks.thief import Attack, Family, Thief, thiefs_key
from deepsigns_tf.files import file_digest
from deepsigns_tf.recovery import read_aligned
from deepsigns_tf.verification import each_way
from models.cifar10_cnn import cifar10_cnn
from models.imdb_lstm import imdb_lstm
from models.wide_resnet import wide_resnet
from scripts import attack

pytest.importorskip("matplotlib", reason="reports of attacks are drawn in the environment of requirements.txt")

from scripts.attack_report import attacks_picture, attacks_table  # noqa: E402

FULL = suite("full", (1, 2), (1,))


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    """A marked model, its key, and data, as a reviewer has them."""
    folder = tmp_path_factory.mktemp("task")
    random = np.random.default_rng(0)
    y = np.arange(320) % 4
    x = (random.normal(size=(4, 16))[y] + 0.3 * random.normal(size=(320, 16))).astype("float32")
    np.savez(folder / "task.npz", x_train=x[:256], y_train=y[:256], x_test=x[256:], y_test=y[256:])
    keras.utils.set_random_seed(0)

    def build(regularizer=None, model_class=keras.Model):
        inputs = keras.Input((16,))
        hidden = keras.layers.Dense(256, "relu", activity_regularizer=regularizer, name="hidden")(inputs)
        return model_class(inputs, keras.layers.Dense(4, name="logits")(hidden))

    def trained(model, epochs, learning_rate=1e-2):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(learning_rate), loss)
        model.fit(x[:256], y[:256], batch_size=64, epochs=epochs, verbose=0)
        return model

    reference = trained(build(), 5)
    reference.save(folder / "reference.keras")
    key = ds.OwnerKey("ACME Vision", [ds.Carrier("features", range(4), 32)], ds.DecisionRule(), bytes(range(32)))
    key = key.with_reference(folder / "reference.keras").with_key_inputs(x[:256], y[:256], 32)
    marked = build(ds.SignatureRegularizer(key, "features", strength=3.0), ds.WatermarkedModel)
    marked.set_weights(reference.get_weights())
    plain, key = ds.release(trained(marked, 40, 1e-3), key)
    plain.save(folder / "marked.keras")
    key.save(folder / "owner.key")
    (folder / "unrelated").mkdir()
    # One that is begun anew again and again need not be compiled again.
    unrelated = trained(build(), 1)
    for number in range(10):
        unrelated.set_weights(build().get_weights())
        unrelated.fit(x[:256], y[:256], batch_size=64, epochs=2, verbose=0)
        unrelated.save(folder / "unrelated" / f"{number:02}.keras")
    return folder


@pytest.fixture(scope="module")
def released(task_files):
    return keras.models.load_model(task_files / "marked.keras"), ds.OwnerKey.load(task_files / "owner.key")


@pytest.fixture
def thief(blobs, released):
    carriers = {"hidden": released[1].carrier("features")}
    return Thief(*blobs, Recipe(epochs=1, batch_size=64), 1.0, carriers, carriers, seed=0)


# Which attacks there are


@pytest.mark.parametrize("name", suites.SUITES)
def test_names_are_unique_and_what_an_attack_starts_from_stands_before_it(name):
    names = [each.name for each in suite(name)]
    assert len(set(names)) == len(names)
    for number, each in enumerate(suite(name)):
        assert each.after is None or each.after in names[:number]


def test_suites_are_what_they_say():
    quick, paper, brief, full = (suite(name) for name in suites.SUITES)
    assert not any(each.trains for each in quick) and {each.family for each in paper} == {"paper"}
    names = [{each.name for each in attacks} for attacks in (quick, paper, brief, full)]
    assert names[2] - names[0] - names[1] == {"all of these, then fine-tuned, 10 epochs"} and names[2] < names[3]
    assert names[0] | names[1] < names[2]
    assert {each.family for each in full} == set(typing.get_args(Family))
    assert [each.name for each in suite("paper", (5, 20)) if "fine-tuned" in each.name] == [
        "fine-tuned, 5 epochs",
        "fine-tuned, 20 epochs",
    ]
    # Longer trainings go on where shorter ones ended.
    after = {each.name: each.after for each in paper}
    assert after["fine-tuned, 50 epochs"] == "fine-tuned, 10 epochs" and after["fine-tuned, 10 epochs"] is None
    assert after["overwritten, 1 x, 100 epochs"] == "overwritten, 1 x, 10 epochs"
    # Whoever damages a mark hides it too, at no cost.
    for each in full:
        if each.family == "adaptive" or each.name.startswith("overwritten"):
            base = each.name.removesuffix(", then disguised")
            (hidden,) = (other for other in full if other.name == f"{base}, then disguised")
            assert (hidden.after, hidden.family, hidden.run) == (base, each.family, suites._disguised)


def test_bad_names_are_refused():
    with pytest.raises(
        ValueError, match=r"^Invalid value for argument `name`\. Expected one of .*\. Received: name='all'"
    ):
        suite("all")
    with pytest.raises(
        ValueError, match=r"^Invalid value for argument `family`\. Expected .*\. Received: family='magic'"
    ):
        Attack("a", "magic", lambda model, thief: model)


def test_names_say_what_is_asked_for(thief, released, monkeypatch):
    """The numbers in a name are those that the attack's function gets."""
    asked = {}

    def noted(function):
        def note(model, *args, **kwargs):
            bound = inspect.signature(function).bind(model, *args, **kwargs)
            bound.apply_defaults()
            asked[name] = {"function": function.__name__} | bound.arguments
            return model

        return note

    functions = [(module, each) for module in (suites, informed) for each in vars(module) if each in _FUNCTIONS]
    assert {each for _, each in functions} == _FUNCTIONS
    for module, each in functions:
        monkeypatch.setattr(module, each, noted(getattr(module, each)))
    thief = dataclasses.replace(thief, recipe=Recipe(20, learning_rate=1e-2, batch_size=64), strength=2.0)
    named = {each.name: each for each in suite("full")}
    for name, each in named.items():
        if each.change is None and each.run is not suites._disguised and "another layer" not in each.name:
            each.run(released[0], thief)
            assert asked[name]["model"] is released[0] and asked[name].get("seed", thief.seed) == thief.seed

    def epochs(name):
        if "recipe" not in asked.get(name, ()):
            return 0
        goes_on = named[name].after and named[name].after.split(",")[0] == name.split(",")[0]
        return asked[name]["recipe"].epochs + (epochs(named[name].after) if goes_on else 0)

    for name in asked:
        said = re.search(r"(\d+) epochs$", name)
        assert said is None or epochs(name) == int(said[1]), name
        if named[name].family in ("paper", "modification", "same function") and "recipe" in asked[name]:
            rate = 1e-2 if "overwritten" in name else 1e-3
            assert asked[name]["recipe"].learning_rate == pytest.approx(rate), name
    for name, expected in {
        "95 % pruned": ("prune_weights", "fraction", 0.95),
        "80 % pruned over all layers": ("prune_globally", "fraction", 0.8),
        "90 % pruned and retrained, 10 epochs": ("prune_and_retrain", "over_all_layers", False),
        "90 % pruned over all layers and retrained, 10 epochs": ("prune_and_retrain", "over_all_layers", True),
        "overwritten, 0.1 x, 10 epochs": ("overwrite", "strength", 0.2),
        "overwritten, 3 x, 10 epochs": ("overwrite", "strength", 6.0),
        "quantized to 5 bits": ("quantize_weights", "num_bits", 5),
        "weights shaken by 0.3": ("shake_weights", "relative_std", 0.3),
        "weights shifted by 2.5": ("shift_weights", "mean_share", 2.5),
        "weights shifted by 1.5 and shaken by 1": ("shift_weights", "relative_std", 1.0),
        "fine-pruned, 96 %": ("fine_prune", "fraction", 0.96),
        "L2 of 0.1 and fine-tuned, 5 epochs each": ("shrink_and_tune", "l2", 0.1),
        "labels smoothed by 0.3, 10 epochs": ("smooth_labels", "share", 0.3),
        "30 % of the labels random, 10 epochs": ("corrupt_labels", "share", 0.3),
        "adversarial training within 0.25, 5 epochs": ("train_adversarially", "relative_epsilon", 0.25),
        "overwritten, 1 x at a falling rate, 10 epochs": ("overwrite", "strength", 2.0),
        "80 % of the labels random, 10 epochs": ("corrupt_labels", "share", 0.8),
        "units split": ("split_units", "fraction", 0.2),
        "idle units, 8 x as wide": ("add_idle_units", "fraction", 7),
        "layers divided into 4": ("divide_layers", "layers", {"hidden"}),
        "distilled from labels alone": ("distill", "hard_labels", True),
        "class means moved by 8": ("move_class_means", "distance", 8.0),
        "overwritten with twice the bits, 10 x": ("overwrite", "strength", 20.0),
        "units among look-alikes, 8 of each": ("add_lookalike_units", "pairs_per_unit", 4),
        "units among decoys, 14 of each": ("add_decoy_units", "pairs_per_unit", 7),
        "marked layers drawn anew": ("fine_tune", "new_layers", ("hidden",)),
        "marked layers drawn anew at a falling rate": ("fine_tune", "new_layers", ("hidden",)),
        "marked layers and the next ones drawn anew": ("fine_tune", "new_layers", ("hidden", "logits")),
    }.items():
        function, argument, value = expected
        assert (asked[name]["function"], asked[name][argument]) == (function, value), name
    for name, layers, new_layers in (
        ("FTLL, 10 epochs", "last", ()),
        ("RTLL, 10 epochs", "last", ("logits",)),
        ("RTAL, 10 epochs", "all", ("logits",)),
        ("fine-tuned, 10 epochs", "all", ()),
    ):
        assert (asked[name]["layers"], tuple(asked[name]["new_layers"])) == (layers, new_layers), name
    for name in asked:
        if "recipe" in asked[name]:
            assert asked[name]["recipe"].falls == ("at a falling rate" in name), name
    # All of an adaptive thief's training is a tenth of the owner's.
    for name, each in asked.items():
        if named[name].family == "adaptive" and named[name].trains:
            assert (each["recipe"].epochs, each["recipe"].learning_rate) == (2, 1e-2), name
    assert asked["overwritten with twice the bits, 10 x"]["thiefs_key"].carriers[0].bits_per_class == 64


# What the suite calls.
_FUNCTIONS = {
    *("prune_weights", "prune_globally", "prune_and_retrain", "fine_tune", "overwrite", "quantize_weights"),
    *("round_to_float16", "shake_weights", "shift_weights", "fine_prune", "shrink_and_tune", "smooth_labels"),
    *("corrupt_labels", "train_adversarially", "neural_cleanse", "permute_units", "rescale_units", "split_units"),
    *("clone_units", "add_idle_units", "add_cancelling_units", "fold_batch_norm", "rename_layers", "distill"),
    *("move_class_means", "add_lookalike_units", "divide_layers", "turn_units", "add_decoy_units"),
}


# What they do


@pytest.mark.parametrize("chosen", [each for each in FULL if not each.trains], ids=lambda each: each.name)
def test_attacks_without_training_change_a_copy(chosen, released, thief, blobs):
    _check_attack(chosen, released[0], thief, blobs)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [each for each in FULL if each.trains], ids=lambda each: each.name)
def test_attacks_that_train_change_a_copy(chosen, released, thief, blobs):
    _check_attack(chosen, released[0], thief, blobs)


def _check_attack(chosen, model, thief, blobs):
    before = model.get_weights()
    for name, told in (
        ("BatchNorm folded", "No BatchNorm can be folded"),
        ("units turned", "This model has no units that"),
    ):
        if name in (chosen.name, chosen.after):
            with pytest.raises(ValueError, match=told):
                next(each for each in FULL if each.name == name).run(model, thief)
            return
    if "another layer" in chosen.name and chosen.after is None:
        with pytest.raises(ValueError, match="There is no other layer to mark"):
            chosen.run(model, thief)
        return
    if chosen.change is not None:
        # Sixteen features are an image of four by four.
        changed = chosen.change(thief)(blobs[0])
        assert chosen.run(model, thief) is model
        assert changed.shape == blobs[0].shape and changed.dtype == blobs[0].dtype and (changed != blobs[0]).any()
        return
    attacked = chosen.run(model, thief)
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    after = attacked.get_weights()
    changed = len(after) != len(before) or any(
        a.shape != b.shape or (a != b).any() for a, b in zip(before, after, strict=True)
    )
    assert changed != (chosen.name == "layers renamed")
    assert attacked.predict(blobs[0], verbose=0).shape == (256, 4)


def test_a_thief_knows_nothing_of_the_key(thief, released):
    """Other bits, whatever the owner's seed."""
    bits, again = (thiefs_key(thief, thief.carriers.values()).signature("features") for _ in range(2))
    assert (bits == again).all() and 0.3 < (bits != released[1].signature("features")).mean() < 0.7
    assert not any(isinstance(value, ds.OwnerKey) for value in vars(thief).values())


def test_recipes_are_the_literatures(thief):
    thief = dataclasses.replace(thief, recipe=Recipe(epochs=20, learning_rate=0.1, backup_dir="backups"))
    assert (thief.tuning(50).epochs, thief.tuning(50).learning_rate) == (50, pytest.approx(0.01))
    assert (thief.tenth.epochs, thief.tenth.learning_rate, thief.tenth.backup_dir) == (2, 0.1, None)


def test_the_maker_of_a_marked_output_is_found():
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(4, 3, name="maps")(inputs)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(keras.layers.BatchNormalization()(maps))
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(keras.layers.Dense(5, name="wide")(pooled)))
    assert informed.kernels_around(model, "pooled") == (["maps"], ["wide", "logits"])
    assert informed.kernels_around(model, "wide") == (["wide"], ["logits"])


def test_layers_are_found_by_the_graph_and_not_by_their_order_or_names():
    """Beside the marked branch runs another one, called earlier and deeper."""
    inputs = keras.Input((16,))
    other = keras.layers.Dense(6, name="a_other")(keras.layers.Dense(6, name="b_other")(inputs))
    marked = keras.layers.Dense(8, name="z_maker")(inputs)
    marked = keras.layers.Activation("relu", name="features")(keras.layers.BatchNormalization()(marked))
    other = keras.layers.Dense(6, name="z_other")(other)
    joined = keras.layers.Concatenate()([keras.layers.Dense(5, name="b_next")(marked), other])
    model = keras.Model(inputs, keras.layers.Dense(4, name="a_logits")(joined))
    assert informed.kernels_around(model, "features") == (["z_maker"], ["b_next", "a_logits"])
    # What a key calls backbone/features, in a model inside another.
    backbone = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, "relu", name="features")], name="backbone")
    nested = keras.Sequential([keras.Input((16,)), backbone, keras.layers.Dense(4, name="logits")])
    assert "backbone/features" in named_layers(nested)
    assert informed.kernels_around(nested, flat_name("backbone/features")) == (["backbone.features"], ["logits"])


def test_several_marked_layers_cost_an_adaptive_thief_no_more_training(thief, blobs, monkeypatch):
    """All carriers within one tenth of the task's own training."""
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(128, "relu", name="hidden")(inputs)
    deeper = keras.layers.Dense(128, "relu", name="deeper")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(deeper))
    carriers = {name: ds.Carrier(name, range(4), 32) for name in ("hidden", "deeper")}
    thief = dataclasses.replace(thief, recipe=Recipe(20, batch_size=64), carriers=carriers, marks=carriers)
    epochs, fit = [], keras.Model.fit

    def counted(self, *args, **kwargs):
        epochs.append(kwargs["epochs"])
        return fit(self, *args, **kwargs | {"epochs": 1})

    monkeypatch.setattr(keras.Model, "fit", counted)
    for name in ("class means moved by 8", "overwritten with twice the bits, 1 x", "marked layers drawn anew"):
        attacked = next(each for each in FULL if each.name == name).run(model, thief)
        for layer in carriers:
            pairs = zip(model.get_layer(layer).get_weights(), attacked.get_layer(layer).get_weights(), strict=True)
            assert all((old != new).any() for old, new in pairs)
    assert epochs == [2, 2, 2]


@pytest.mark.parametrize(
    ("build", "bits", "other", "last", "first"),
    [
        (cifar10_cnn, {"features": 64}, "conv_4", "conv_4", ["features"]),
        (
            lambda: wide_resnet(16, 1),
            {"features": 40},
            "block_3_2_conv_2",
            "block_3_2_conv_2",
            # All whose outputs the residual sums before it add.
            ["block_3_1_shortcut", "block_3_1_conv_2", "block_3_2_conv_2"],
        ),
        (imdb_lstm, {"features": 128}, "pooled", "features", ["features"]),
    ],
)
def test_the_networks_of_the_results_have_layers_for_the_suite(build, bits, other, last, first, thief, monkeypatch):
    """What a thief who overwrites marks there: another layer at half of its units, and no more bits than there is room for."""
    keras.utils.set_random_seed(0)
    model, asked = build(), []
    carriers = {name: ds.Carrier(name, range(2), number) for name, number in bits.items()}
    thief = dataclasses.replace(thief, carriers=carriers, marks=carriers)
    assert informed._unmarked_layer(model, thief) == other and suites._last_kernel(model) == last
    makers, after = informed.kernels_around(model, "features")
    assert sorted(makers) == sorted(first) and after == ["logits"]
    monkeypatch.setattr(informed, "overwrite", lambda *args: asked.append((args[4].carriers[0], args[5])))
    named = {each.name: each for each in FULL}
    for name in ("overwritten in another layer, 1 epochs", "overwritten with twice the bits, 1 x"):
        named[name].run(model, thief)
    (elsewhere, layers), (crowded, _) = asked
    num_units = model.get_layer(other).output.shape[-1]
    assert layers == {other: other} and elsewhere.bits_per_class == min(bits["features"], num_units // 2)
    assert crowded.bits_per_class == min(2 * bits["features"], model.get_layer("features").output.shape[-1] - 1)


def test_disguises_draw_apart(released, thief, monkeypatch):
    """Idle units and cancelling ones of one seed would be the same units."""
    seeds = []

    def noted(model, seed, layers=None):
        seeds.append(seed)
        return model

    for name in ("permute_units", "rescale_units", "split_units", "clone_units", "add_idle_units"):
        monkeypatch.setattr(suites, name, noted)
    for name in ("add_cancelling_units", "divide_layers", "turn_units", "rename_layers"):
        monkeypatch.setattr(suites, name, noted)
    suites._disguised(released[0], thief)
    assert len(set(seeds)) == 9


def test_what_cannot_be_rescaled_or_divided_is_disguised_in_the_other_ways(thief):
    """Two recurrent layers, of which the last is marked."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.LSTM(5, return_sequences=True, name="first")(keras.layers.Embedding(20, 4)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LSTM(5, name="features")(x)))
    disguised = suites._disguised(model, dataclasses.replace(thief, carriers={"features": None}))
    tokens = np.random.default_rng(0).integers(0, 20, (8, 6))
    np.testing.assert_allclose(disguised(tokens), model(tokens), atol=1e-5)
    assert [layer.units for layer in disguised.layers if isinstance(layer, keras.layers.LSTM)] == 2 * [10]


# What is left


def test_outcomes_say_what_is_read_in_each_way(released, task_files):
    marked, key = released
    unrelated = [read_aligned(keras.models.clone_model(marked), key, marked) for _ in range(3)]
    with np.load(task_files / "task.npz") as archive:
        task = archive["x_test"], archive["y_test"]
    examiner = Examiner(key, marked, *task, gate=0.5, unrelated=unrelated)
    before = examiner.outcome(marked)
    assert before["accuracy"] > 0.95 and before["weights"]["bit_error_rate"] < 0.02 and before["weights"]["marked"]
    assert before["aligned"]["recovered"] and "referred" not in before and "answers" not in before
    assert survived(before, 1.0) == "yes"
    assert before["largest_difference"] == before["changed_answers"] == 0.0
    permuted = examiner.outcome(permute_units(marked, 0))
    assert 0.0 < permuted["largest_difference"] < 1e-4 and permuted["changed_answers"] == 0.0
    assert not permuted["weights"]["marked"] and permuted["aligned"]["bit_error_rate"] < 0.02
    assert survived(permuted, 1.0) == "recovered by counting"
    json.dumps(permuted)


def test_what_is_no_copy_is_read_beside_the_attacks(released, task_files, tmp_path, blobs):
    """The unmarked twin lies in the folder of a training run; a model that comes with its data has none."""
    marked, key = released
    readings = [
        read_aligned(keras.models.load_model(path), key, marked)
        for path in sorted((task_files / "unrelated").iterdir())
    ]
    gate = readings[0].quality
    examiner = Examiner(
        key, marked, *blobs, reference=task_files / "reference.keras", gate=gate, unrelated=readings[1:]
    )
    (tmp_path / "unmarked.keras").write_bytes((task_files / "unrelated" / "00.keras").read_bytes())
    of_run = attack.Config(str(tmp_path / "marked.keras"), "owner.key", "out")
    controls = attack._controls(of_run, examiner)
    assert not controls["unmarked_twin"]["weights"]["marked"] and not controls["unmarked_twin"]["referred"]["marked"]
    assert controls["unrelated"]["num_models"] == 9 and controls["unrelated"]["gate"] == gate
    through = sum(reading.quality > gate for reading in readings[1:])
    assert controls["unrelated"]["num_through_the_gate"] == through
    assert "unmarked_twin" not in attack._controls(dataclasses.replace(of_run, data="task.npz"), examiner)
    before = examiner.outcome(marked)
    result = {"marked": before, "rows": [], **controls}
    assert "| unmarked twin | control |" in attacks_table(result)


def test_the_best_adaptive_attack_stands_on_top_of_the_table():
    """What is found again after a match has a column of its own."""

    def row(attack, family, accuracy, log10_p, survived, **more):
        weights = {"num_matches": 90, "num_bits": 128, "bit_error_rate": 0.3, "median_margin": 0.5}
        weights |= {"log10_p_value": log10_p, "marked": log10_p <= -6}
        found = {"attack": attack, "family": family, "accuracy": accuracy, "accuracy_before": 0.98, "weights": weights}
        return found | {"survived": survived} | more

    rows = [
        row("half pruned", "paper", 0.97, -30.0, "yes"),
        row("moved by 4", "adaptive", 0.95, -3.0, "removed", recovered=False),
        row("moved by 2", "adaptive", 0.97, -5.0, "removed", recovered=False),
        row("permuted", "same function", 0.98, 0.0, "recovered", recovered=True),
        {"attack": "folded", "family": "adaptive", "refused": "no BatchNorm", "survived": "not applicable"},
    ]
    marked = {"accuracy": 0.98, "weights": rows[0]["weights"]}
    header, _, *lines = attacks_table({"marked": marked, "rows": rows}).splitlines()
    cells = [
        dict(zip(header.strip("| ").split(" | "), (each.strip() for each in line.strip("|").split("|")), strict=True))
        for line in lines
    ]
    assert [each["attack"] for each in cells] == [
        "none",
        "moved by 2",
        "half pruned",
        "moved by 4",
        "permuted",
        "folded",
    ]
    assert [each["recovered"] for each in cells] == ["", "no", "", "no", "yes", ""]
    assert cells[1]["accuracy before, %"] == "98.00" and cells[1]["accuracy, %"] == "97.00"


def test_a_model_without_such_a_layer_has_no_reading(released, blobs):
    marked, key = released
    suspect = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    unrelated = [read_aligned(marked, key, marked)]
    found = Examiner(key, marked, *blobs, unrelated=unrelated).outcome(suspect)
    assert "refused" in found["weights"] and "refused" in found["aligned"]
    # Five points are five points, however they are rounded.
    assert survived(found, found["accuracy"] + 0.05) == "removed"
    assert survived(found, found["accuracy"] + 0.06) == "with the model"


def test_triggers_are_asked_through_a_change_of_the_inputs(released, blobs):
    marked, _ = released
    x, _ = blobs
    key = ds.OwnerKey.generate("ACME Vision").with_triggers("noise", 64, 4, x)
    answers = {"": key.triggers.arrays[""], "labels": key.triggers.labels}

    class Knows:
        """Answers what the triggers ask for, by the first number of each."""

        def predict(self, inputs, **_):
            near = np.abs(inputs[:, None, 0] - answers[""][None, :, 0])
            scores = np.eye(4)[answers["labels"][near.argmin(axis=1)]]
            return np.where((near.min(axis=1) < 1e-6)[:, None], scores, 0.25)

    examiner = Examiner(key, marked, *blobs)
    assert examiner.outcome(Knows())["answers"]["num_matches"] == 64
    assert survived(examiner.outcome(Knows()), 1.0) == "yes"
    # Each mark is judged by itself.
    both = examiner.outcome(Knows()) | {"weights": {"marked": False}}
    assert survived(both, both["accuracy"]) == "removed" and survived(both, both["accuracy"], "answers") == "yes"
    assert examiner.outcome(Knows(), lambda inputs: inputs + 1.0)["answers"]["num_matches"] < 40


# The program


def _config(folder, output_dir, **settings):
    files = {"model": folder / "marked.keras", "owner_key": folder / "owner.key", "data": folder / "task.npz"}
    given = {name: str(path) for name, path in files.items()} | {"output_dir": str(output_dir)}
    return attack.Config(**given | {"epochs": 2, "num_workers": 1} | settings)


@pytest.fixture
def _here(monkeypatch):
    """In this process, and spares the seconds that a fresh one needs to start."""
    import contextlib

    class Pool:
        def submit(self, function, *args):
            import concurrent.futures

            job = concurrent.futures.Future()
            try:
                job.set_result(function(*args))
            except Exception as error:
                job.set_exception(error)
            return job

    monkeypatch.setattr("scripts.cores.pool_on_cores", lambda num_workers: contextlib.nullcontext(Pool()))
    yield
    for cached in (attack._data, attack._examiner):
        cached.cache_clear()


def test_a_better_plain_reading_is_not_taken_for_one_after_a_match():
    ways = [
        types.SimpleNamespace(matched=matched, log10_p_value=p)
        for matched, p in ((False, -30), (True, -10), (True, -12))
    ]
    assert outcomes._best_match(ways) is ways[2]
    with pytest.raises(ValueError, match="Nothing can be read after a match"):
        outcomes._best_match(ways[:1])


def test_a_suite_is_run_reported_and_gone_on_with(task_files, tmp_path, _here, capsys):
    settings = {
        "reference": str(task_files / "reference.keras"),
        "unrelated": str(task_files / "unrelated"),
        "suite": "full",
        "fine_tuning_epochs": "1,2",
        "overwriting_epochs": "1",
        "only": "^(50 % pruned|quantized to 5 bits|units permuted|fine-tuned, 2|BatchNorm folded, then 50)",
    }
    config = _config(task_files, tmp_path / "out", **settings)
    result = attack.run(config)
    rows = {row["attack"]: row for row in result["rows"]}
    expected = {
        "50 % pruned",
        "50 % pruned over all layers",
        "50 % pruned and retrained, 10 epochs",
        "BatchNorm folded",
    }
    expected |= {
        "quantized to 5 bits",
        "fine-tuned, 1 epochs",
        "fine-tuned, 2 epochs",
        "BatchNorm folded, then 50 % pruned",
    }
    expected |= {f"units permuted{then}" for then in ("", ", then 50 % pruned", ", then fine-tuned, 10 epochs")}
    assert set(rows) == expected
    assert rows["units permuted"]["survived"] == "recovered" and rows["units permuted"]["referred"]["marked"]
    assert rows["units permuted"]["aligned"]["num_unrelated"] == 9
    assert rows["quantized to 5 bits"]["survived"] == "yes"
    # The reading after a match is shown, not the better of it and the plain one.
    key, attacked = ds.OwnerKey.load(config.owner_key), attack.result_path(config, "quantized to 5 bits")
    ways = each_way(
        keras.models.load_model(attacked), key, commitment=key.commitment(), reference=task_files / "reference.keras"
    )
    matched = min(way.log10_p_value for way in ways if way.matched)
    assert rows["quantized to 5 bits"]["referred"]["log10_p_value"] == pytest.approx(matched, abs=1e-6)
    assert result["unrelated"]["num_models"] == 9
    assert result["unrelated"]["largest_quality"] < 0.99 and all(
        "date" in row for row in rows.values() if "refused" not in row
    )
    for name in ("BatchNorm folded", "BatchNorm folded, then 50 % pruned"):
        assert rows[name]["survived"] == "not applicable" and rows[name]["refused"]
    folder = tmp_path / "out"
    report = (folder / "attacks.md").read_text()
    assert "| units permuted | same function |" in report and (folder / "attacks.png").exists()
    assert json.loads((folder / "attacks.json").read_text())["rows"] == result["rows"]
    assert not any((folder / "backups").glob("*"))
    payload = studies._payload(task_files, attack.result_path(config, "quantized to 5 bits"), 32)
    assert (payload["num_matches"], payload["num_copies"]) == (32, 3)
    # Nothing is done twice, and what was killed is done again.
    (folder / "rows" / "quantized_to_5_bits.json").unlink()
    attack._examiner.cache_clear()
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}
    again = attack.run(dataclasses.replace(config, resume=True))
    assert [row["attack"] for row in again["rows"]] == [row["attack"] for row in result["rows"]]
    assert {name: (folder / "rows" / name).stat().st_mtime_ns for name in kept} == kept
    for refused in (config, dataclasses.replace(config, resume=True, seed=1)):
        with pytest.raises(ValueError, match=r"^This folder .*\. Expected .*\. Received: "):
            attack.run(refused)
    # Files are told by what is in them, not by where they lie.
    other_data = tmp_path / "other.npz"
    with np.load(task_files / "task.npz") as archive:
        np.savez(other_data, **dict(archive) | {"x_test": archive["x_test"] + 1})
    with pytest.raises(ValueError, match=r"^This folder holds a suite of other settings or files\. .*'data': "):
        attack.run(dataclasses.replace(config, resume=True, data=str(other_data)))
    other_data.write_bytes((task_files / "task.npz").read_bytes())
    attack.run(dataclasses.replace(config, resume=True, data=str(other_data)))
    files = json.loads((folder / "config.json").read_text())["files"]
    assert files["model"] == file_digest(task_files / "marked.keras") and set(files) == set(attack._FILES)
    assert files == result["files"] and {"command", "date", "hardware", "versions", "settings"} <= set(result)


def test_what_was_attacked_is_not_attacked_again_and_all_its_seconds_count(task_files, tmp_path, _here, monkeypatch):
    def attack_of(run):
        module = types.ModuleType("slow_attacks")
        module.ATTACKS = (Attack("slow", "modification", run, trains=True),)
        monkeypatch.setitem(sys.modules, "slow_attacks", module)

    config = _config(task_files, tmp_path / "out", extra="slow_attacks", only="slow", resume=True)
    folder = tmp_path / "out"
    backup, clock, result = (
        folder / "backups" / "slow" / "epoch",
        folder / "seconds" / "slow.json",
        attack.result_path(config, "slow"),
    )

    def killed(model, thief):
        # A hundred seconds of work are kept, and some more are lost.
        backup.parent.mkdir(parents=True)
        backup.touch()
        os.utime(backup, (0, clock.stat().st_mtime + 100))
        raise MemoryError

    attack_of(killed)
    (row,) = attack.run(config)["rows"]
    assert row["survived"] == "failed" and not result.exists()
    attack_of(lambda model, thief: permute_units(model, thief.seed))
    (row,) = attack.run(config)["rows"]
    assert row["survived"] == "removed" and 100 <= row["seconds"] < 110 and result.exists()
    # The reading alone is missing.
    (folder / "rows" / "slow.json").unlink()
    attack_of(lambda model, thief: pytest.fail("attacked again"))
    assert attack.run(config)["rows"] == [row]


def test_a_reviewers_own_attack_is_tried(task_files, tmp_path, _here):
    config = _config(task_files, tmp_path / "out", extra="examples.own_attack", only="sparse")
    rows = attack.run(config)["rows"]
    assert [row["attack"] for row in rows] == ["sparse, half of each unit", "sparse, a tenth of each unit"]
    model = keras.models.load_model(tmp_path / "out" / "models" / "sparse_half_of_each_unit.keras")
    assert (model.get_layer("hidden").get_weights()[0] == 0).mean(axis=0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"only": "nothing of that name"}, "These attacks cannot be run"),
        ({"fine_tuning_epochs": "100,50"}, "Invalid value for flag `fine_tuning_epochs`"),
        ({"overwriting_epochs": "0"}, "Invalid value for flag `overwriting_epochs`"),
        ({"overwriting_epochs": "ten"}, "Invalid value for flag `overwriting_epochs`"),
        ({"data": None}, "There is no data to attack with"),
        ({"unrelated": "."}, "Too few models to count by"),
        ({"only": "("}, "Invalid value for flag `only`"),
        (
            {"only": "overwritten, 1 x", "suite": "paper", "thiefs_carriers": "hidden"},
            "Invalid value for flag `thiefs_carriers`",
        ),
    ],
)
def test_bad_settings_are_refused(settings, words, task_files, tmp_path, _here):
    with pytest.raises(ValueError, match=rf"^{words}.*\. Expected .*\. Received: "):
        attack.run(_config(task_files, tmp_path / "out", **settings))


def test_data_of_another_task_is_refused(task_files, tmp_path, _here):
    with np.load(task_files / "task.npz") as archive:
        arrays = dict(archive)
    wrong = {
        "columns": {"y_test": arrays["y_test"][:, None]},
        "labels": {"y_train": arrays["y_train"] + 1},
        "width": {"x_train": arrays["x_train"][:, 1:]},
        "number": {"x_test": arrays["x_test"][1:]},
    }
    for name, changes in wrong.items():
        np.savez(tmp_path / f"{name}.npz", **arrays | changes)
        with pytest.raises(ValueError, match=r"^This data is not the model's\. Expected .*\. Received: "):
            attack.run(_config(task_files, tmp_path / "out", data=str(tmp_path / f"{name}.npz")))
    assert not (tmp_path / "out").exists()


def test_inputs_are_changed_where_answers_are_marked(task_files, tmp_path, _here, monkeypatch):
    """A model that learned its triggers, asked through blurred and mirrored images."""
    with np.load(task_files / "task.npz") as archive:
        x, y = archive["x_train"], archive["y_train"]
    key = ds.OwnerKey.generate("ACME Vision").with_triggers("noise", 24, 4, x)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(4)])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs = np.concatenate([x, *[key.triggers.arrays[""]] * 4]), np.concatenate([y, *[key.triggers.labels] * 4])
    model.fit(*inputs, batch_size=64, epochs=40, verbose=0)
    model.save(tmp_path / "asked.keras")
    key.save(tmp_path / "asked.key")
    files = {"model": str(tmp_path / "asked.keras"), "owner_key": str(tmp_path / "asked.key")}
    only = "^(noise, 1 %|blur, 1|mirrored|half)"
    rows = {row["attack"]: row for row in attack.run(_config(task_files, tmp_path / "out", only=only, **files))["rows"]}
    assert list(rows) == ["half precision", "noise, 1 % of the range", "blur, 1 pixels", "mirrored"]
    matches = {name: row["answers"]["num_matches"] for name, row in rows.items()}
    assert matches["half precision"] == matches["noise, 1 % of the range"] == 24 and matches["mirrored"] < 20
    # What the thief's customers get through the same change.
    assert rows["mirrored"]["accuracy"] < rows["noise, 1 % of the range"]["accuracy"] - 0.2
    assert "seconds" not in rows["mirrored"] and not (tmp_path / "out" / "models" / "mirrored.keras").exists()


def test_what_carries_no_mark_is_not_attacked(task_files, tmp_path, _here):
    for changes, words in (
        ({"model": str(task_files / "unrelated" / "00.keras")}, "There is no mark to attack"),
        ({"reference": str(task_files / "unrelated" / "00.keras")}, "The reference is not this key's"),
    ):
        with pytest.raises(ValueError, match=rf"^{words}"):
            attack.run(_config(task_files, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_an_attack_that_fails_ends_no_other(task_files, tmp_path, _here, monkeypatch):
    def fails(model, thief):
        raise ZeroDivisionError("by accident")

    module = types.ModuleType("failing_attacks")
    module.ATTACKS = (Attack("fails", "modification", fails),)
    monkeypatch.setitem(sys.modules, "failing_attacks", module)
    rows = attack.run(_config(task_files, tmp_path / "out", extra="failing_attacks", only="fails|half precision"))[
        "rows"
    ]
    assert [row["survived"] for row in rows] == ["yes", "failed"] and "by accident" in rows[1]["refused"]
    assert "failed: ZeroDivisionError: by accident" in (tmp_path / "out" / "attacks.md").read_text()
    # It is tried again when the suite goes on.
    module.ATTACKS = (Attack("fails", "modification", lambda model, thief: permute_units(model, thief.seed)),)
    config = _config(task_files, tmp_path / "out", extra="failing_attacks", only="fails|half precision", resume=True)
    assert [row["survived"] for row in attack.run(config)["rows"]] == ["yes", "removed"]


def test_what_starts_from_a_failed_attack_has_failed(task_files, tmp_path, _here, monkeypatch):
    """It is not said that it cannot be done."""

    def fails(model, thief):
        raise ZeroDivisionError

    module = types.ModuleType("failing_attacks")
    module.ATTACKS = (
        Attack("fails", "modification", fails),
        Attack("later", "modification", fails, after="fails"),
    )
    monkeypatch.setitem(sys.modules, "failing_attacks", module)
    config = _config(task_files, tmp_path / "out", extra="failing_attacks", only="later|half precision")
    rows = {row["attack"]: row for row in attack.run(config)["rows"]}
    assert rows["later"]["survived"] == "failed" and "no result of 'fails'" in rows["later"]["refused"]
    # One whose row could not be written has a reading, and its place in the picture.
    rows["half precision"]["survived"] = "failed"
    result = json.loads((tmp_path / "out" / "attacks.json").read_text()) | {"rows": [rows["half precision"]]}
    attacks_picture(result, tmp_path / "failed.png")
    assert (tmp_path / "failed.png").exists()


def test_answers_have_a_picture_of_their_own(tmp_path):
    """Where no layer is marked; without any reading there is none."""
    read = {"num_matches": 90, "num_asked": 100, "log10_p_value": -70.0, "marked": True}
    row = {"attack": "half precision", "survived": "yes", "accuracy": 0.98, "answers": read}
    result = {"marked": {"accuracy": 0.98, "answers": read}, "log10_alpha": -6.0, "rows": [row]}
    attacks_picture(result, tmp_path / "answers.png")
    assert (tmp_path / "answers.png").stat().st_size > 1000
    attacks_picture(result | {"rows": [{"attack": "a", "survived": "failed", "refused": "b"}]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_folder_that_was_just_begun_is_gone_on_with(task_files, tmp_path, _here, monkeypatch):
    def killed(path, value):
        records_write(path, value)
        raise MemoryError

    import scripts.records

    records_write = scripts.records.write_json
    with monkeypatch.context() as patch:
        patch.setattr(scripts.records, "write_json", killed)
        with pytest.raises(MemoryError):
            attack.run(_config(task_files, tmp_path / "out", only="half"))
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["config.json"]
    assert attack.run(_config(task_files, tmp_path / "out", only="half", resume=True))["rows"][0]["survived"] == "yes"


def test_too_few_unrelated_models_are_told_before_a_folder_is_made(task_files, tmp_path, _here):
    unrelated = {"unrelated": str(task_files / "unrelated"), "num_unrelated": 11}
    with pytest.raises(ValueError, match=r"^Too few models to count by\. Expected at least 11 .*\. Received: 10 in "):
        attack.run(_config(task_files, tmp_path / "out", **unrelated))
    assert not (tmp_path / "out").exists()
    # Later ones are not those that the suite has counted.
    config = _config(task_files, tmp_path / "out", **unrelated | {"num_unrelated": 9})
    assert [path.name for path in attack._unrelated_files(config)] == [f"0{number}.keras" for number in range(9)]


def test_a_thief_draws_nothing_that_the_owner_drew(task_files, tmp_path, _here):
    config = _config(task_files, tmp_path / "out")
    seeds = [attack._thief(dataclasses.replace(config, seed=seed), tmp_path).seed for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2] and not set(seeds) & {0, 1}
    # The same whatever is attacked: ways to mark are compared in pairs.
    other = dataclasses.replace(config, model=str(task_files / "reference.keras"))
    assert attack._thief(other, tmp_path).seed == seeds[0]


def test_other_arrays_are_no_data(task_files, tmp_path, _here):
    np.savez(tmp_path / "other.npz", x_train=np.zeros(3))
    with pytest.raises(ValueError, match=r"^This is no data to attack with\. Expected the arrays .*\. Received: "):
        attack.run(_config(task_files, tmp_path / "out", data=str(tmp_path / "other.npz")))


def test_nothing_secret_is_in_what_the_program_leaves(task_files, tmp_path, _here):
    config = _config(task_files, tmp_path / "out", only="quantized")
    attack.run(config)
    seed = ds.OwnerKey.load(task_files / "owner.key").seed
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert seed not in content and seed.hex().encode() not in content
