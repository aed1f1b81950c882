"""The recorded measurements: what turns runs into rows, and rows into the README."""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import json
import math
import operator
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.readings import SignatureReading
from deepsigns_tf.statistics import binomial_log10_tail

pytest.importorskip("tqdm", reason="the measurements are made in the environment of requirements.txt")

from benchmarks import (
    accelerator,
    calibration,
    cells,
    invariants,
    overhead,
    pictures,
    redundancy,
    studies,
    tables,
    train_normalized_mlp,
    trigger_calibration,
    trigger_power,
    trigger_tables,
)  # noqa: E402
from benchmarks import attacks as network_attacks  # noqa: E402
from benchmarks.attacks import Attacks  # noqa: E402
from deepsigns_tf.attacks import suite as suites  # noqa: E402
from deepsigns_tf.attacks.same_function import permute_units, rescale_units  # noqa: E402
from models.mnist_mlp import mnist_mlp  # noqa: E402
from scripts import (
    attack,  # noqa: E402
    cores,  # noqa: E402
    folders,  # noqa: E402
    records,  # noqa: E402
)
from scripts.configs import result_settings  # noqa: E402
from scripts.marking import regularizers  # noqa: E402
from tests.finished_runs import MILD_MARK, verified_here  # noqa: E402


def test_the_documents_show_what_was_recorded():
    texts = [document.read_text() for document in tables.DOCUMENTS]
    assert [tables.filled(text) for text in texts] == texts
    shown = re.findall(r"<!-- table: (\w+) -->", "".join(texts))
    assert sorted(shown) == sorted(tables.TABLES)


def test_a_result_without_a_file_is_told_as_such(monkeypatch):
    monkeypatch.setattr(tables, "recorded", tables.Recorded)
    text = tables.filled("<!-- table: accuracy_cnn -->\n<!-- end of table -->")
    assert "\nNot recorded yet: `results/cnn_default.json`.\n" in text


def test_only_marked_places_are_filled():
    text = "a\n<!-- table: errors -->\nold\n<!-- end of table -->\nb"
    result = tables.filled(text)
    assert result.startswith("a\n<!-- table: errors -->\n| bits |") and result.endswith("<!-- end of table -->\nb")
    assert "old" not in result


TAILS = [binomial_log10_tail(matches, 640) for matches in range(641)]


def test_calibration_accepts_true_p_values_and_sees_false_ones():
    random = np.random.default_rng(0)
    tails = np.array(TAILS)
    matches = random.binomial(640, 0.5, size=(4000, 20))
    assert calibration.acceptance("hard", 1e-2, tails[matches], TAILS)["as_promised"]
    # One message reused over ten classes: the variance of the matches is ten times too large.
    reused = 10 * random.binomial(64, 0.5, size=(4000, 20))
    assert not calibration.acceptance("hard", 1e-2, tails[reused], TAILS)["as_promised"]
    assert not calibration.acceptance("soft", 1e-2, tails[reused])["as_promised"]


def test_the_attained_size_is_the_largest_tail_below_the_level():
    row = calibration.acceptance("hard", 1e-3, np.zeros((10, 20)), TAILS)
    assert row["attained"] <= 1e-3
    assert any(math.isclose(row["attained"], 10**tail) for tail in TAILS)


def test_calibration_reads_each_key_from_each_model(monkeypatch):
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    activations = random.random((2, 1000, 512), np.float32)
    monkeypatch.setattr(calibration, "_shared", (activations, labels), raising=False)
    log10_p = calibration._log10_p_values(np.array([0, 1, 2]))
    assert log10_p.shape == (3, 2, 2) and (log10_p <= 0).all()
    # Each model for itself: alone it reads as among others.
    for model in range(2):
        monkeypatch.setattr(calibration, "_shared", (activations[model : model + 1], labels))
        np.testing.assert_array_equal(calibration._log10_p_values(np.array([0, 1, 2]))[:, 0], log10_p[:, model])
    assert (log10_p[:, 0] != log10_p[:, 1]).any() and len(np.unique(log10_p[:, :, 1])) > 3


def test_calibration_asks_each_model_with_each_key():
    """The network, and a model that knows a key's labels."""
    network = mnist_mlp()
    knows = types.SimpleNamespace(predict_on_batch=lambda inputs: np.eye(10)[trigger_calibration._labels(3, "uniform")])
    log10_p = []
    for number in (3, 4):
        inputs = trigger_calibration._inputs(number)
        assert inputs.shape == (100, 784) and 0 <= inputs.min() < 0.001 and 0.999 < inputs.max() <= 1
        answers = trigger_calibration._answers(number, inputs, [network, knows, network])
        assert answers.shape == (5, 100) and set(answers[2]) == {0} and len(set(answers[3])) == 10
        np.testing.assert_array_equal(answers[0], network.predict(inputs, verbose=0).argmax(axis=1))
        log10_p.append(trigger_calibration._log10_p_values(number, answers))
    # Suspects x tests: whoever knows the labels is found by the tests of these labels, with this key alone.
    assert log10_p[0].shape == (4, 4)
    assert log10_p[0][1, 0] == pytest.approx(-100) and -100 < log10_p[0][1, 1] < -90 and log10_p[0][1, 2] > -6
    assert (log10_p[1] > -6).all() and (log10_p[0][[0, 2, 3]] > -6).all()
    # What the network had wrong before: about nine in ten triggers, of a hundred. The network has them wrong still.
    assert -90 < log10_p[0][1, 3] < -65 and log10_p[0][0, 3] == log10_p[1][0, 3] == 0
    # Ten of each class: whoever answers one class always meets ten, and nothing follows.
    assert log10_p[0][2, 2] == log10_p[1][2, 2] == 0


def test_power_falls_as_answers_are_degraded(monkeypatch):
    monkeypatch.setattr(trigger_power, "NUM_DRAWS", 40)
    examples = np.random.default_rng(0).random((50, 8), np.float32)
    key = ds.OwnerKey("owner", (), ds.DecisionRule(), bytes(32)).with_triggers("noise", 100, 10, examples)
    probabilities = np.full((100, 10), 0.01)
    probabilities[np.arange(100), key.triggers.labels] = 0.91
    rows = {
        (name, rate): trigger_power.power(probabilities, key, degrade, rate > 0)
        for name, rate, degrade in trigger_power._ways(10)
    }
    best = {"num_matches": 100, "proved": 1.0, "proved_early": 1.0, "num_asked": 7.0}
    for name in ("probabilities", "labels", "probabilities of two digits", "probabilities of one digit"):
        assert rows[name, 0.0] == best
    for name in ("another class at random", "refused"):
        series = [rows[name, rate] for rate in trigger_power.RATES]
        assert [row["num_matches"] for row in series] == pytest.approx([90, 75, 50, 25, 10], abs=3)
        assert series[0]["proved"] == series[2]["proved_early"] == 1 and series[-1]["proved"] < 0.2
        assert 7 < series[0]["num_asked"] < series[1]["num_asked"] < series[2]["num_asked"] < 60
    # One digit left of two classes that were nearly even: the first of them is taken.
    even = np.full((100, 10), 0.0)
    even[np.arange(100), key.triggers.labels] = 0.51
    even[np.arange(100), (key.triggers.labels + 5) % 10] += 0.49
    ways = {name: degrade for name, _, degrade in trigger_power._ways(10)}
    assert trigger_power.power(even, key, ways["probabilities of two digits"], False) == best
    assert 30 < trigger_power.power(even, key, ways["probabilities of one digit"], False)["num_matches"] < 70


def test_the_interval_of_the_median_covers_it_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [overhead._interval(list(random.exponential(size=41))) for _ in range(400)]
    covered = np.mean([low <= np.log(2) <= high for low, high in intervals])
    # 95 %, a little more as ranks are whole numbers; three standard errors of 400 are 0.03.
    assert 0.92 < covered < 0.995


def test_overhead_adds_pairs_until_the_interval_is_narrow(monkeypatch):
    """Training that takes 1.1 times as long, on a clock with noise."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(overhead, "_timed", lambda train: (train() * random.normal(1, 0.05), train()))

    def plain():
        return 1.0

    def marked():
        return 1.1

    config = overhead.Config(half_width=0.005, min_pairs=40, max_pairs=100_000)
    pairs = overhead.measured_pairs(plain, marked, config)
    assert len(pairs.wall) == len(pairs.cpu) == len(pairs.plain) > 40
    assert overhead._half_width(pairs.wall) <= 0.005 < overhead._half_width(pairs.wall[: len(pairs.wall) // 2])
    assert np.median(pairs.wall) == pytest.approx(1.1, abs=0.01) and set(pairs.cpu) == {1.1}
    for limit in ({"max_pairs": 20}, {"max_minutes": 0.0}):
        few = overhead.measured_pairs(plain, marked, dataclasses.replace(config, min_pairs=20, **limit))
        assert len(few.wall) == 20


def test_a_row_is_of_several_processes_and_says_what_each_of_them_found():
    row = overhead.summary([overhead.Pairs([ratio] * 30, [2.0] * 30, [0.5] * 30) for ratio in (1.0, 1.01, 1.05)])
    assert row["wall_ratio"] == 1.01 and row["wall_ratio_of_processes"] == [1.0, 1.01, 1.05]
    assert row["wall_ratio_interval"] == [1.01, 1.01]
    assert row["num_pairs"] == 90 and row["cpu_ratio"] == 2.0 and row["plain_ms"] == 500.0


def test_a_begun_overhead_goes_on_on_such_a_machine_alone(tmp_path, monkeypatch):
    measured = []
    shared = {name: records.circumstances("")[name] for name in ("date", "hardware", "versions")}

    def measure(setting, config):
        measured.append(setting.name)
        return {"setting": setting.name} | shared

    settings = tuple(overhead.Setting(name, all_cores=True) for name in "abc")
    monkeypatch.setitem(overhead.STUDIES, "networks", settings)
    config, path = overhead.Config(results_dir=str(tmp_path)), tmp_path / "overhead_networks.json"
    monkeypatch.setattr(
        overhead, "_measure", lambda setting, config: measure(setting, config) if setting.name < "b" else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        overhead.run(config)
    begun = json.loads(path.read_text())
    assert begun["num_missing"] == 2 and [row["setting"] for row in begun["rows"]] == ["a"]
    monkeypatch.setattr(overhead, "_measure", measure)
    assert overhead.run(config)["num_missing"] == 0 and measured == ["a", "b", "c"]
    # A whole one is measured anew, and so is one from another machine or of another precision.
    overhead.run(config)
    path.write_text(json.dumps(begun | {"hardware": "another"}))
    overhead.run(config)
    path.write_text(json.dumps(begun))
    overhead.run(dataclasses.replace(config, half_width=0.1))
    assert measured == list("abc" * 4)


_FEW = overhead.Config(num_processes=2, min_pairs=20, max_pairs=20)


def _carried(setting):
    settings = overhead._settings(setting)
    key, plain, marked = overhead._key_and_models(setting, settings)
    assert plain.count_params() <= marked.count_params() and not ds.watermarked_model.attached_regularizers(plain)
    carried = [metric.regularizer.carrier.num_bits for metric in marked.metrics]
    assert sum(carried) == key.num_bits
    return carried, settings


# By how a setting's name begins; the others have 640.
_BITS = {"LSTM": 384, "MLP, 64 bits": 64, "MLP, 640 bits": 640, "MLP, 4,100 bits": 4100, "MLP": 1280}


@pytest.mark.parametrize("setting", overhead.STUDIES["networks"], ids=lambda setting: setting.name)
def test_overhead_marks_as_many_bits_as_it_says_as_the_programs_do(setting):
    carried, settings = _carried(setting)
    expected = next((bits for words, bits in _BITS.items() if setting.name.startswith(words)), 640)
    assert sum(carried) == expected and len(carried) == len(setting.carriers.split(","))
    if setting.name in ("MLP", "CNN", "WRN-16-2", "LSTM"):
        assert settings == dataclasses.replace(type(settings)(output_dir=""))


@pytest.mark.parametrize(
    ("number", "name", "num_bits"),
    [(0, "64 bits", 64), (5, "2,048 bits", 2048), (10, "1,000 classes", 2000), (11, "128 units", 256)],
)
def test_the_costs_are_those_of_the_settings(number, name, num_bits):
    setting = overhead.STUDIES["costs"][number]
    carried, _ = _carried(setting)
    assert setting.name == name and carried == [num_bits]


def test_triggers_are_timed_alone_and_beside_bits():
    settings_ = {setting.name: setting for setting in overhead.STUDIES["triggers"]}
    assert len(settings_) == 8
    for name in ("MLP, triggers", "MLP, triggers and bits", "LSTM, triggers", "LSTM, triggers and bits"):
        setting = settings_[name]
        key, plain, marked = overhead._key_and_models(setting, overhead._settings(setting))
        assert key.triggers.num_examples == 100 and key.triggers.num_classes == plain.output_shape[-1]
        assert bool(key.carriers) == setting.name.endswith("bits") == isinstance(marked, ds.WatermarkedModel)
    num_bits, pairs = overhead._measured_here(settings_["MLP, triggers and bits"], _FEW)
    assert len(pairs.wall) == 20 and num_bits == 1280


def test_a_pair_trains_a_plain_and_a_marked_model():
    row = overhead._measure(overhead.Setting("64 units", "hidden layer", "features:8", 2, 64), _FEW)
    assert row["num_pairs"] == 40 and row["num_bits"] == 16 and len(row["cpu_ratio_of_processes"]) == 2
    assert row["wall_ratio_interval"][0] <= row["wall_ratio"] <= row["wall_ratio_interval"][1]
    assert 0 < row["plain_step_ms"] == row["plain_ms"]


@pytest.mark.slow
def test_the_accelerators_program_says_where_it_ran(tmp_path):
    config = accelerator.Config(str(tmp_path), depth=10, width=1, batch_size=1, num_steps=2, min_pairs=20, max_pairs=20)
    result = accelerator.run(config)
    (row,) = result["rows"]
    assert row["setting"] == "WRN-10-1" and row["num_bits"] == 160 and result["device"]
    assert row["plain_step_ms"] == pytest.approx(row["plain_ms"] / 2)
    assert json.loads((tmp_path / "accelerator.json").read_text()) == result
    assert keras.config.dtype_policy().name == "float32"


def test_the_table_says_where_nothing_was_measured():
    assert "not measured" in tables.accelerator_table({})
    row = {"setting": "WRN-28-10", "num_bits": 6400, "num_pairs": 40, "plain_step_ms": 80.0}
    row |= {"wall_ratio": 1.001, "wall_ratio_interval": [1.0, 1.002]}
    recorded = {"accelerator": {"rows": [row], "device": ["gpu:0"], "command": "c", "date": "d", "data": "x"}}
    recorded["accelerator"] |= {"hardware": "h", "versions": {"keras": "k"}}
    text = tables.accelerator_table(recorded)
    assert "1.001 [1.000, 1.002]" in text and "gpu:0" in text and "not measured" not in text


def _row(seed=0, marked=0.81, wrong=0, **settings):
    """A row of a study with a mark of 640 bits in each of one or more layers; its unmarked model has 82 %."""
    carriers = settings.get("carriers", "features:64")
    names = [each.partition(":")[0] for each in carriers.split(",")]
    num_bits = 640 * len(names)
    rates = {"key inputs": wrong / num_bits, "held out": 0.0, "last epoch": dict.fromkeys(names, 0.0126)}
    return {
        "settings": {"seed": seed, "carriers": carriers, "pooling": "mean", "strength": 0.3} | settings,
        "accuracy": {"marked": marked, "unmarked": 0.82},
        "num_bits": num_bits,
        "bit_error_rate": rates,
        "margin": {"smallest": 0.1, "median": 1.2},
        "carriers": {name: {"bit_error_rate": wrong / num_bits, "median_margin": 1.2} for name in names},
        "log10_p_value": {"marked": -192.1 + wrong, "unmarked twin": 0.0, "wrong key": 0.0},
    }


def _recorded(*rows):
    return {"rows": rows, "command": "c", "date": "d", "data": "x", "hardware": "h", "versions": {"keras": "k"}}


_MLP = "scripts.train_mnist_mlp"


def test_the_summary_has_a_row_a_network_over_all_seeds(monkeypatch):
    monkeypatch.setattr(
        tables, "_NETWORKS", {"a": ("A, digits", "80 / 79", _MLP), "b": ("B", "", _MLP), "c": ("C", "1 / 2", _MLP)}
    )
    several = _recorded(_row(0, 0.81), _row(1, 0.82, wrong=3), _row(2, 0.83))
    begun = _recorded(_row(0, 0.815)) | {"num_missing": 4}
    time = {"setting": "A", "wall_ratio": 1.01, "wall_ratio_interval": [1.0, 1.02], "plain_step_ms": 7.42}
    text = tables.summary_table({"a_default": several, "b_default": begun, "overhead_networks": {"rows": [time]}})
    first, second, third = text.splitlines()[2:]
    # Student's t with two degrees of freedom: 4.303 standard errors of 1 / sqrt(3).
    assert (
        first == "| A, digits | 669,706 | 82.00 | 82.00 | +0.00 [-2.48, +2.48] | 3 | 640 | 3 | -189.1 "
        "| 1.010 [1.000, 1.020] of 7.4 ms | 80 / 79 |"
    )
    assert second == "| B | 669,706 | 82.00 | 81.50 | -0.50 | 1 of 5 | 640 | 0 | -192.1 | not measured yet |  |"
    assert third == "| C | 669,706 | not recorded yet |  |  |  |  |  |  |  | 1 / 2 |"


def test_an_accuracy_table_shows_what_inference_mode_changes():
    old = _row(1, marked=0.82)
    del old["bit_error_rate"]["last epoch"], old["margin"]["smallest"]
    lines = tables.accuracy_table({"a_default": _recorded(_row(wrong=3), old)}, "a_default").splitlines()
    assert lines[2:4] == [
        "| 0 | 82.00 | 81.00 | -1.00 | 0.0126 | 3 of 640 | 0 of 640 | 0.10 | -189.1 | 0.0 | 0.0 |",
        "| 1 | 82.00 | 82.00 | +0.00 |  | 0 of 640 | 0 of 640 |  | -192.1 | 0.0 | 0.0 |",
    ]


def test_the_search_shows_each_place_of_the_mark():
    two = _row(carriers="features:64,pooled:64", strength=0.1)
    # A verdict names them in the order of the model's layers.
    two["carriers"] = {
        "pooled": {"bit_error_rate": 0.25, "median_margin": 0.5},
        "features": {"bit_error_rate": 0.0, "median_margin": 1.2},
    }
    rows = [
        _row(),
        two,
        _row(pooling="flatten", wrong=64),
        _row(subclasses=4),
    ]
    lines = tables.search_table({"b_search": _recorded(*rows)}, "b_search").splitlines()[2:6]
    assert lines == [
        "| features x 64 | 640 | 0.3 | 81.00 (-1.00) | 0.0126 | 0.0000 | 0.0000 | 0.10 | 1.20 |",
        "| features x 64, pooled x 64 | 1280 | 0.1 | 81.00 (-1.00) | 0.0126 / 0.0126 | 0.0000 / 0.2500 | 0.0000 | 0.10 | 1.20 / 0.50 |",
        "| features x 64; every pixel a feature | 640 | 0.3 | 81.00 (-1.00) | 0.0126 | 0.1000 | 0.0000 | 0.10 | 1.20 |",
        "| features x 64; labels in 4 parts by length | 640 | 0.3 | 81.00 (-1.00) | 0.0126 | 0.0000 | 0.0000 | 0.10 | 1.20 |",
    ]


def test_capacities_come_in_order():
    rows = [_row() | {"num_bits": 640}, _row(wrong=7, marked=0.8) | {"num_bits": 70}]
    lines = tables.capacity_table({"cnn_capacity": _recorded(*rows)}).splitlines()[2:4]
    assert lines == [
        "| 70 | 80.00 (-2.00) | 0.0109 | 0.0000 | 0.10 | 1.20 | -185.1 |",
        "| 640 | 81.00 (-1.00) | 0.0000 | 0.0000 | 0.10 | 1.20 | -192.1 |",
    ]


def _trigger_row(seed, marked, num_matches, **more):
    def outcome(lost):
        found = {"num_matches": num_matches - lost, "log10_p_value": -float(num_matches - lost)}
        return {"accuracy": marked, "bit_error_rate": 0.0, "log10_p_value": -100.0, "triggers": found}

    of_all = {"marked": num_matches, "unmarked twin": 9, "wrong key": 12}
    return {
        "settings": {"seed": seed, "trigger_family": "noise"},
        "accuracy": {"marked": marked, "unmarked": 0.98},
        "triggers": {
            "num_triggers": 100,
            "num_matches": of_all,
            "smallest_margin": 0.25,
            "batch_norm": {"num_layers": 0},
            "log10_p_value": {name: -float(each) for name, each in of_all.items()},
        },
        "pruned": {"0.5": outcome(10)},
        "fine_tuned": {"epochs": 50} | outcome(20),
        "overwritten": {"epochs": 20} | outcome(30),
        "changed_inputs": {"blur": outcome(40)},
    } | more


def test_triggers_are_shown_alone_and_beside_bits():
    bits = {"num_bits": 640, "bit_error_rate": {"key inputs": 0.0125}}
    rows = [_trigger_row(0, 0.97, 99), _trigger_row(1, 0.98, 100), _trigger_row(0, 0.96, 90, **bits)]
    before, after = ({"accuracy": accuracy, "num_matches": num} for accuracy, num in ((0.95, 92), (0.96, 90)))
    both = {"with triggers": before, "of task data": after}
    rows[2]["triggers"]["batch_norm"] = {"num_layers": 3, "released": "with triggers"} | both
    results = {"x_triggers": _recorded(*rows)}
    lines = trigger_tables.accuracy_table(results, "x_triggers").splitlines()
    assert lines[2:5] == [
        "| triggers | 0 | 98.00 | 97.00 | 99 of 100 | 9 of 100 | 12 of 100 | 0.25 | -99.0 |  |",
        "| triggers | 1 | 98.00 | 98.00 | 100 of 100 | 9 of 100 | 12 of 100 | 0.25 | -100.0 |  |",
        "| triggers and bits | 0 | 98.00 | 96.00 | 90 of 100 | 9 of 100 | 12 of 100 | 0.25 | -90.0 | 0.0125 |",
    ]
    assert lines[6] == (
        "triggers: paired difference -0.500 points, 95 % interval [-6.853, +5.853]. "
        "triggers and bits: paired difference -2.000 points. "
        "triggers and bits, seed 0: with BatchNorm statistics of task data in place of those with triggers among it 96.00 % in place of "
        "95.00 %, 90 triggers in place of 92; released: those with triggers."
    )
    lines = trigger_tables.robustness_table(results, "x_triggers").splitlines()
    assert lines[2:6] == [
        "| 50 % pruned | 97.50 | 89.5 | -89.0 | 96.00 | 80.0 | -80.0 |",
        "| 50 epochs of fine-tuning | 97.50 | 79.5 | -79.0 | 96.00 | 70.0 | -70.0 |",
        "| overwritten by other triggers, 20 epochs | 97.50 | 69.5 | -69.0 | 96.00 | 60.0 | -60.0 |",
        "| blur | 97.50 | 59.5 | -59.0 | 96.00 | 50.0 | -50.0 |",
    ]
    # A model that was not fine-tuned has no such row.
    for row in rows:
        del row["fine_tuned"]
    assert trigger_tables.robustness_table(results, "x_triggers").splitlines()[2:5] == [lines[2], *lines[4:6]]


def test_families_stand_side_by_side():
    rows = [_trigger_row(100, 0.97, 99), _trigger_row(100, 0.98, 100)]
    rows[1]["settings"] = {"seed": 100, "trigger_family": "blends"}
    lines = trigger_tables.families_table({"x_families": _recorded(*rows)}, "x_families").splitlines()
    assert lines[0] == "| triggers answered | noise | blends |" and lines[2:7] == [
        "| accuracy, % (difference) | 97.00 (-1.00) | 98.00 (+0.00) |",
        "| released | 99 of 100 | 100 of 100 |",
        "| 50 % pruned | 89 | 90 |",
        "| blur | 59 | 60 |",
        "| 50 epochs of fine-tuning | 79 | 80 |",
    ]
    assert lines[8] == "Answered better than noise in more than half of the rows of changed inputs: blends."
    begun = _recorded(*rows) | {"num_missing": 1}
    assert "than noise" not in trigger_tables.families_table({"x_families": begun}, "x_families")
    for row in rows:
        row["changed_inputs"]["mirrored"] = {"triggers": {"num_matches": 90}}
    lines = trigger_tables.families_table({"x_families": _recorded(*rows)}, "x_families").splitlines()
    assert lines[9] == "Answered better than noise in more than half of the rows of changed inputs: none."
    for row in rows:
        del row["changed_inputs"]
    assert "than noise" not in trigger_tables.families_table({"x_families": _recorded(*rows)}, "x_families")


def test_the_most_accurate_way_to_mix_triggers_that_is_enough_is_chosen():
    rows = [_trigger_row(100, 0.98, 99), _trigger_row(100, 0.97, 100), _trigger_row(100, 0.96, 100)]
    ways = [{"num_triggers_per_batch": rate, "augment_triggers": rate > 2} for rate in (2, 4, 8)]
    for row, way in zip(rows, ways, strict=True):
        row["settings"] = {"seed": 100} | way
        row["fine_tuned"]["triggers"]["num_matches"] = 98
    rows[2]["fine_tuned"]["triggers"]["num_matches"] = 99
    # None is answered wholly after fine-tuning.
    assert trigger_tables.chosen_mixing(_recorded(*rows)) == ways[2]
    for row in rows:
        row["fine_tuned"]["triggers"]["num_matches"] = 100
    lines = trigger_tables.mixing_table({"x": _recorded(*rows)}, "x").splitlines()
    assert lines[0] == "| triggers answered | 2 a batch, as they are | 4 a batch, augmented | 8 a batch, augmented |"
    assert "By the rule: 4 a batch, augmented." in lines
    rows[0]["triggers"]["num_matches"]["marked"] = 100
    assert trigger_tables.chosen_mixing(_recorded(*rows)) == ways[0]
    assert "By the rule" not in trigger_tables.mixing_table({"x": _recorded(*rows) | {"num_missing": 1}}, "x")


def test_the_default_way_to_mix_triggers_is_the_one_that_the_study_chose():
    result = tables.recorded().get("cnn_trigger_mixing")
    if not result or result.get("num_missing"):
        pytest.skip("the study `trigger_mixing` is not recorded yet")
    config = importlib.import_module("scripts.train_cifar10_cnn").Config(output_dir="x")
    chosen = trigger_tables.chosen_mixing(result)
    assert {name: getattr(config, name) for name in chosen} == chosen


@pytest.mark.parametrize("program", ["mnist_mlp", "cifar10_cnn", "cifar10_wrn"])
def test_noise_is_the_default_unless_another_family_does_better_in_both_networks(program):
    results = [tables.recorded().get(f"{network}_families") for network in ("mnist", "cnn")]
    better = [set(trigger_tables.better_than_noise(each)) for each in results if each and not each.get("num_missing")]
    if not better or (len(better) < 2 and better[0]):
        pytest.skip("what the studies `families` say is not recorded yet")
    (default,) = set.intersection(*better) or {"noise"}
    config = importlib.import_module(f"scripts.train_{program}").Config
    assert config(output_dir="x").trigger_family == default


def test_calibration_and_power_of_triggers_are_shown():
    shared = {"test": "t", "suspect": "s", "nominal": 0.01, "observed": 0.009, "interval": [0.008, 0.01]}
    result = _recorded(shared | {"as_promised": False}, shared | {"attained": 0.0085, "as_promised": True})
    lines = trigger_tables.calibration_table({"trigger_calibration": result}).splitlines()[2:4]
    assert lines == [
        "| t | s | 0.01 | a bound | 0.00900 | [0.00800, 0.01000] | **no** |",
        "| t | s | 0.01 | 0.00850 | 0.00900 | [0.00800, 0.01000] | yes |",
    ]
    shared = {"num_matches": 50.0, "proved": 0.5, "proved_early": 0.0, "num_asked": None}
    result = _recorded(
        {"answers": "labels", "rate": 0.0} | shared, {"answers": "refused", "rate": 0.5, **shared, "num_asked": 7}
    )
    lines = trigger_tables.power_table({"trigger_power": result}).splitlines()[2:4]
    assert lines == [
        "| labels |  | 50.0 | 50.0 % | 0.0 % |  |",
        "| refused | 50 % | 50.0 | 50.0 % | 0.0 % | 7.0 |",
    ]


# Studies


@pytest.fixture
def network(monkeypatch):
    """A network whose study trains three small models on made-up data, in this process."""
    monkeypatch.setattr(studies, "pool_on_cores", lambda num_workers: concurrent.futures.ThreadPoolExecutor(1))
    monkeypatch.setattr("scripts.training._verify_in_fresh_process", verified_here)
    quick = {"dataset": "synthetic", "epochs": 2, **MILD_MARK}
    attacks = Attacks(pruned_fractions=(0.0, 1.0), fine_tuning_epochs=1)
    study = studies.Study(range(5, 6), (quick, quick | {"strength": 0.0}), attacks, twins_of="both")
    return studies.Network("made_up", "scripts.train_mnist_mlp", {"both": study})


def test_a_study_makes_a_row_of_each_run_and_goes_on_where_it_stopped(network, tmp_path, monkeypatch):
    config = studies.Config("both", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    with pytest.warns(UserWarning, match="The released model does not carry the mark"):  # That of strength 0.
        result = studies.run(network, config)
    assert json.loads((tmp_path / "results" / "made_up_both.json").read_text()) == result
    assert "made up" in result["data"] and "--study=both" in result["command"]
    marked, twin = result["rows"]
    assert [row["settings"]["strength"] for row in result["rows"]] == [1.0, 0.0]
    assert {row["settings"]["seed"] for row in result["rows"]} == {5}
    # The second run took the first one's twin.
    assert marked["accuracy"]["unmarked"] == twin["accuracy"]["unmarked"]
    folders = [tmp_path / "runs" / "made_up" / "both" / name for name in ("5_0", "5_1")]
    assert (folders[0] / "unmarked.keras").read_bytes() == (folders[1] / "unmarked.keras").read_bytes()
    assert marked["bit_error_rate"]["key inputs"] < 0.3 < twin["bit_error_rate"]["key inputs"]
    # Nothing pruned is the released model; with every kernel at 0 it answers one class.
    for row in result["rows"]:
        assert row["pruned"]["0.0"]["bit_error_rate"] == row["bit_error_rate"]["key inputs"]
        assert row["pruned"]["0.0"]["accuracy"] == row["accuracy"]["marked"]
        assert row["pruned"]["1.0"]["accuracy"] == pytest.approx(0.1)
        assert row["fine_tuned"]["epochs"] == 1
        assert row["carriers"]["features"]["median_margin"] == row["margin"]["median"]
    # Other attacks are made on the models that lie there.
    monkeypatch.setattr("scripts.train_mnist_mlp.run", lambda settings: pytest.fail("measured again"))
    assert studies.run(network, config) == result
    study = network.studies["both"]
    attacks = dataclasses.replace(study.attacks, pruned_fractions=(0.0, 0.5, 1.0))
    network.studies["both"] = dataclasses.replace(study, attacks=attacks)
    more = studies.run(network, config)
    for row, before in zip(more["rows"], result["rows"], strict=True):
        assert set(row["pruned"]) == {"0.0", "0.5", "1.0"} and row["fine_tuned"] == before["fine_tuned"]
    monkeypatch.setattr(network_attacks, "_Run", lambda *args: pytest.fail("attacked again"))
    assert studies.run(network, config) == more


@pytest.mark.slow
def test_a_study_of_answers_attacks_the_triggers(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "pool_on_cores", lambda num_workers: concurrent.futures.ThreadPoolExecutor(1))
    monkeypatch.setattr("scripts.training._verify_in_fresh_process", verified_here)
    monkeypatch.setattr(suites, "INPUT_CHANGES", {"none": lambda x, _: x, "all": lambda x, _: 0 * x})
    setting = {"dataset": "synthetic", "epochs": 4, "num_triggers": 20, "num_triggers_per_batch": 16, "batch_size": 64}
    setting |= MILD_MARK
    attacks = Attacks((0.0, 1.0), fine_tuning_epochs=1, overwrites=True, changes_inputs=True)
    study = studies.Study(range(5, 6), (setting, setting | {"carriers": ""}), attacks, twins_of="triggers")
    network = studies.Network("made_up", "scripts.train_mnist_mlp", {"triggers": study})
    config = studies.Config("triggers", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    both, alone = studies.run(network, config)["rows"]
    assert both["num_bits"] == 640 and "num_bits" not in alone and "log10_p_value" not in alone["pruned"]["0.0"]
    for row in (both, alone):
        triggers = row["triggers"]
        assert triggers["num_triggers"] == 20 and set(triggers["num_matches"]) == {
            "marked",
            "unmarked twin",
            "wrong key",
        }
        assert triggers["num_matches"]["marked"] >= 15 and triggers["log10_p_value"]["marked"] < -10
        for same in (row["pruned"]["0.0"], row["changed_inputs"]["none"]):
            assert same["triggers"]["num_matches"] == triggers["num_matches"]["marked"]
            assert same["accuracy"] == row["accuracy"]["marked"]
        for gone in (row["pruned"]["1.0"], row["changed_inputs"]["all"]):
            assert gone["triggers"]["num_matches"] < 10 and gone["accuracy"] == pytest.approx(0.1, abs=0.05)
        assert row["fine_tuned"]["epochs"] == 1 and row["overwritten"]["epochs"] == 4
        # The thief's triggers are learnt as the owner's were.
        assert row["overwritten"]["thiefs_matches"] >= 15
    # An attack that was killed goes on with the model that lies there, and is not made again once it stands in the row.
    before = (tmp_path / "results" / "made_up_triggers.json").read_bytes()
    monkeypatch.setattr("scripts.fitting.fit_classifier", lambda *args, **kwargs: pytest.fail("trained again"))
    studies.run(network, config)
    assert (tmp_path / "results" / "made_up_triggers.json").read_bytes() == before


def test_no_epochs_of_fine_tuning_are_none(monkeypatch):
    monkeypatch.setattr(network_attacks, "_Run", lambda *args: pytest.fail("attacked"))
    row, settings = {"pruned": {"0.5": {}}}, types.SimpleNamespace(epochs=2)
    attacks = Attacks((0.5,), fine_tuning_epochs=0)
    assert not list(network_attacks.attacked(row, None, settings, attacks))


def test_models_of_the_first_settings_alone_are_attacked(network, tmp_path, monkeypatch):
    study = dataclasses.replace(network.studies["both"], num_attacked=1)
    network = dataclasses.replace(network, studies={"both": study})
    (setting, other) = study.settings
    program = importlib.import_module(network.program)
    for number, each in enumerate((setting, other)):
        folder = tmp_path / "runs" / "made_up" / "both" / f"5_{number}"
        folder.mkdir(parents=True)
        row = {"settings": result_settings(program.Config(output_dir="", seed=5, **each)), "data": "x"}
        row |= {"date": "2026-01-01", "hardware": "machine", "versions": {}}
        (folder / "row.json").write_text(json.dumps(row))
    monkeypatch.setattr(studies, "_wait_for_twin", str)
    monkeypatch.setattr(studies, "attacked", lambda *args: iter([{"pruned": {}}]))
    config = studies.Config("both", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    first, second = studies.run(network, config)["rows"]
    assert "pruned" in first and "pruned" not in second


def test_a_result_is_written_run_for_run_and_outlives_the_runs_folders(network, tmp_path, monkeypatch):
    """Seeds that are finished in it are not run again, until all are: then a study begins anew."""
    network.studies["both"] = dataclasses.replace(network.studies["both"], seeds=range(5, 8))
    config = studies.Config("both", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    path = tmp_path / "results" / "made_up_both.json"
    ran = []

    def run_at_most(num_runs):
        ran.clear()

        def run(network, config, number, seed):
            if len(ran) == num_runs:
                raise RuntimeError("cut off")
            ran.append((seed, number))
            settings = result_settings(studies._settings(network, config, number, seed))
            same = {"data": "x", "date": "2026-01-01", "hardware": "machine", "versions": {"keras": "3.14"}}
            return same | {"settings": settings, "number": len(ran)}

        monkeypatch.setattr(studies, "_run", run)
        with contextlib.suppress(RuntimeError):
            studies.run(network, config)
        return json.loads(path.read_text())

    begun = run_at_most(3)
    assert ran == [(5, 0), (5, 1), (6, 0)] and begun["num_missing"] == 3
    assert "(3 of 6 runs are still to come)" in cells.circumstances(begun)
    # Of seed 6 one run stands there, which could be the other's twin; a folder that is here knows more than the result.
    (tmp_path / "runs" / "made_up" / "both" / "7_0").mkdir(parents=True)
    assert run_at_most(1)["rows"][0] == begun["rows"][0] and ran == [(6, 0)]
    whole = run_at_most(6)
    assert ran == [(6, 0), (6, 1), (7, 0), (7, 1)] and whole["num_missing"] == 0
    assert [(row["settings"]["strength"], row["settings"]["seed"]) for row in whole["rows"]] == [
        (strength, seed) for strength in (1.0, 0.0) for seed in (5, 6, 7)
    ]
    assert "to come" not in cells.circumstances(whole)
    assert run_at_most(6) and len(ran) == 6
    # Rows of other settings are not put beside these.
    begun["rows"][0]["settings"]["strength"] = 3.0
    path.write_text(json.dumps(begun))
    with pytest.raises(ValueError, match="measured with other settings"):
        run_at_most(6)


def test_a_record_names_the_accelerator(monkeypatch):
    monkeypatch.setattr(records, "accelerators", lambda: ["NVIDIA H100", "TPU v5"])
    assert records.circumstances("command")["hardware"].endswith(", NVIDIA H100, TPU v5")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")
def test_a_record_says_which_state_of_the_sources_it_comes_from(tmp_path, monkeypatch):
    def state():
        return records.circumstances("command")["versions"]["deepsigns_tf"]

    def git(*arguments):
        identity = ["-c", "user.name=N", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.setattr(records, "_ROOT", tmp_path)
    assert state() == ds.__version__
    (tmp_path / "source.py").write_text("1")
    for arguments in (["init"], ["add", "source.py"], ["commit", "-m", "first"]):
        git(*arguments)
    assert re.fullmatch(re.escape(ds.__version__) + ", commit [0-9a-f]{12}", state())
    (tmp_path / "source.py").write_text("2")
    assert state().endswith("-dirty")
    monkeypatch.setattr(records, "_ROOT", inside)
    assert state() == ds.__version__


def test_a_result_tells_the_circumstances_of_its_runs(network, tmp_path, monkeypatch):
    """Not those in which they were put together."""
    config = studies.Config("both", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    (setting, _) = network.studies["both"].settings
    settings = result_settings(importlib.import_module(network.program).Config(output_dir="", seed=5, **setting))
    row = {"settings": settings, "data": "x", "pruned": {"0.0": {}, "1.0": {}}, "fine_tuned": {"epochs": 1}}
    for number, strength in enumerate((1.0, 0.0)):
        folder = tmp_path / "runs" / "made_up" / "both" / f"5_{number}"
        folder.mkdir(parents=True)
        row["settings"] |= {"strength": strength}
        row |= {"date": f"2026-01-0{2 - number}", "hardware": f"machine {number}", "versions": {"keras": "3.14"}}
        row["versions"] |= {"deepsigns_tf": f"0.1.0, commit {number}"} if number else {}
        (folder / "row.json").write_text(json.dumps(row))
    monkeypatch.setattr(studies, "_wait_for_twin", str)
    result = studies.run(network, config)
    assert result["date"] == "2026-01-01 to 2026-01-02" and result["hardware"] == "machine 0 and machine 1"
    # The earlier one's record knew no commit.
    assert result["versions"] == {"keras": "3.14", "deepsigns_tf": "0.1.0, commit 1"}


def test_an_error_of_one_run_ends_the_others():
    """Which may wait for it, or train for hours."""
    begin = time.monotonic()
    with pytest.raises(ZeroDivisionError), cores.pool_on_cores(2) as pool:
        sleeping, failing = pool.submit(time.sleep, 300), pool.submit(operator.truediv, 1, 0)
        failing.result()
    assert time.monotonic() - begin < 100 and sleeping.exception()


def test_workers_end_with_the_process_that_made_them(tmp_path):
    """Killed, it can no longer tell them to."""
    program = (
        "import os, time\n"
        "from scripts.cores import pool_on_cores\n"
        "if __name__ == '__main__':\n"
        "    with pool_on_cores(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 300).result()\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    command = [sys.executable, tmp_path / "program.py"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        assert _is_running(worker)
        process.kill()
    deadline = time.monotonic() + 30
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(worker)


def _is_running(number):
    """A process that has ended and that nobody has waited for is none."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{number}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes to cores")
def test_each_process_has_one_core():
    with cores.pool_on_cores(2) as pool:
        assert {len(pool.submit(os.sched_getaffinity, 0).result()) for _ in range(4)} == {1}


def test_a_row_of_other_settings_is_refused(network, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "made_up" / "both" / "5_0"
    folder.mkdir(parents=True)
    (folder / "row.json").write_text(json.dumps({"settings": {"epochs": 3}}))
    config = studies.Config("both", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path))
    # The other run waits for a twin that never comes.
    monkeypatch.setattr(studies, "_wait_for_twin", str)
    with pytest.raises(ValueError, match="This row was measured with other settings. Expected "):
        studies.run(network, config)


def test_an_unknown_study_is_refused(network):
    with pytest.raises(ValueError, match=r"Invalid value for flag `study`. Expected one of \['both'\]. Received: "):
        studies.run(network, studies.Config("none"))


@pytest.mark.parametrize("name", ["mnist", "cnn", "wrn", "lstm"])
def test_the_studies_settings_are_flags_of_their_programs(name):
    network = importlib.import_module(f"benchmarks.{name}").NETWORK
    assert network.name == name and "default" in network.studies
    for study in network.studies.values():
        program = importlib.import_module(study.program or network.program)
        configs = [program.Config(output_dir="", **settings) for settings in study.settings]
        assert len(set(configs)) == len(configs)
        if study.twins_of:
            twins = network.studies[study.twins_of]
            assert set(study.seeds) <= set(twins.seeds)
            first = program.Config(output_dir="", **twins.settings[0])
            for config in configs:
                recorded = {"program": program.__name__} | result_settings(config)
                assert not folders.other_settings(first, program.__name__, recorded, folders.OF_THE_MARK)
        for flags in study.suites:
            suite = attack.Config("marked.keras", "owner.key", "attacked", **flags)
            epochs = [attack._epochs(suite, f"{name}_epochs") for name in ("fine_tuning", "overwriting")]
            names = [each.name for each in suites.suite(suite.suite, *epochs) if re.search(suite.only, each.name)]
            assert f"overwritten, 1 x, {epochs[1][-1]} epochs" in names
            assert "defences" in network.studies or f"fine-tuned, {epochs[0][-1]} epochs" in names
    assert network.studies["default"].settings == ({},)


def test_a_suite_stands_in_the_row_with_its_circumstances_and_tries_again_what_failed(tmp_path, monkeypatch):
    asked = []

    def run(config):
        asked.append(config)
        return {"command": "c", "date": "d", "settings": attack.suite_settings(config), "rows": []}

    monkeypatch.setattr(attack, "run", run)
    monkeypatch.setattr(attack, "with_settings_of_run", lambda config: dataclasses.replace(config, epochs=7))
    study = studies.Study(range(1), suites=({"suite": "paper"},), unrelated="unmarked")
    row, config = {}, studies.Config("suite", runs_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"^There are too few networks of the kind 'unmarked'\. Expected 223, "):
        studies._check_unrelated(study, config)
    monkeypatch.setattr(attack, "run", lambda config: run(attack.with_settings_of_run(config)))
    studies._go_through_suite(row, tmp_path / "0_0", config, study, seed=0)
    (suite,) = asked
    assert suite.num_unrelated == 223 and suite.seed == 0
    assert suite.unrelated == str(tmp_path / "populations" / "unmarked") and suite.reference is None and suite.resume
    assert row["suite"]["date"] == "d" and row["suite"]["settings"]["suite"] == "paper"
    assert row["suite"]["settings"]["epochs"] == 7
    # The suite itself knows what it has done; a row that failed was not kept.
    row["suite"]["rows"] = [{"attack": "a", "refused": "OSError: disk full", "survived": "failed"}]
    studies._go_through_suite(row, tmp_path / "0_0", config, study, seed=0)
    assert len(asked) == 2 and row["suite"]["rows"] == []
    # Seeds may share attacks out, and have a thief of their own.
    study = dataclasses.replace(study, seeds=range(2), suites=({"suite": "paper"}, {"suite": "brief"}))
    for seed in study.seeds:
        studies._go_through_suite(row, tmp_path / "0_0", config, study, seed)
    assert [(each.suite, each.seed) for each in asked[2:]] == [("paper", 0), ("brief", 1)]


def test_sorted_class_means_are_read_in_whatever_order_the_units_are():
    """And not whatever their size is; the loss asks for the same bits that are read."""
    keras.utils.set_random_seed(0)
    x, y = np.random.default_rng(0).random((100, 784), "float32"), np.arange(100) % 10
    key = ds.OwnerKey("trial", (ds.Carrier("features", range(10), 64),), ds.DecisionRule(), bytes(32))
    key = key.with_key_inputs(x, y, 8)
    model = mnist_mlp()
    rate = invariants.sorted_bit_error_rate(model, key)
    assert invariants.sorted_bit_error_rate(permute_units(model, 1), key) == rate
    assert invariants.sorted_bit_error_rate(rescale_units(model, 1), key) != rate
    means, logits = np.random.default_rng(1).random((10, 512)).astype("float32"), []
    for kind, each in (
        (invariants.SortedSignatureRegularizer, means),
        (ds.SignatureRegularizer, np.sort(means, axis=1)),
    ):
        regularizer = kind(key, "features")
        regularizer.observe((None, 512))
        regularizer.build()
        logits.append(keras.ops.convert_to_numpy(regularizer.logits(each)))
    np.testing.assert_allclose(*logits, rtol=1e-5)


def test_a_payload_is_decoded_by_majority_and_is_a_fair_coin_by_chance():
    random = np.random.default_rng(0)

    def reading(matches, name="features"):
        return SignatureReading(name, (0,), "layer", matches[None] * 1.0, np.ones(1), matches[None])

    matches = np.ones(640, bool)
    # Four of nine copies of the first payload bit are wrong, five of the second; what is left over counts nowhere.
    matches[64 * np.arange(4)] = matches[64 * np.arange(5) + 1] = matches[576:] = False
    found = redundancy.decoded([reading(matches)], 64)
    assert found == {"num_bits": 64, "num_copies": 9, "num_matches": 63, "log10_p_value": binomial_log10_tail(63, 64)}
    # The order of the carriers is that of their names; ways to read are paid for; one copy is no code.
    parts = [reading(matches[320:], "b"), reading(matches[:320], "a")]
    assert redundancy.decoded(parts, 64, num_assignments=10)["log10_p_value"] == pytest.approx(
        found["log10_p_value"] + 1
    )
    assert redundancy.decoded([reading(matches[:70])], 64)["num_copies"] == 1
    chance = [redundancy.decoded([reading(random.random(320) < 0.5)], 64)["num_matches"] for _ in range(400)]
    # Of a mean of 400 binomials with variance 16: four standard errors of 0.2.
    assert np.mean(chance) == pytest.approx(32, abs=0.8) and np.var(chance) == pytest.approx(16, rel=0.3)
    with pytest.raises(ValueError, match=r"^This payload has no room\. Expected 1 to 320 bits\. Received: "):
        redundancy.decoded([reading(matches[:320])], 321)


def test_the_normalized_loss_does_not_see_the_size_of_a_layer(owner_key, blobs, build_mlp, compile_model):
    plain, normalized = (
        kind(owner_key, "features", strength=3.0)
        for kind in (ds.SignatureRegularizer, train_normalized_mlp.NormalizedSignatureRegularizer)
    )
    means = np.random.default_rng(0).random((4, 128), "float32")
    for regularizer in (plain, normalized):
        regularizer.observe((None, 128))
        regularizer.build()
    logits = [np.asarray(each.logits(factor * means)) for each in (plain, normalized) for factor in (1.0, 10.0)]
    np.testing.assert_allclose(logits[1], 10 * logits[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(logits[3], logits[2], rtol=1e-3, atol=1e-3)
    assert ((logits[2] > 0) == (logits[0] > 0)).all()
    model = compile_model(
        build_mlp(train_normalized_mlp.NormalizedSignatureRegularizer(owner_key, "features"), ds.WatermarkedModel)
    )
    model.fit(*blobs, batch_size=64, epochs=10, verbose=0)
    assert ds.verify(*ds.release(model, owner_key)).bit_error_rate < 0.02


def test_the_programs_flag_chooses_the_loss():
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", range(10), 64)])
    for wanted, kind in ((False, ds.SignatureRegularizer), (True, train_normalized_mlp.NormalizedSignatureRegularizer)):
        config = train_normalized_mlp.Config("", dataset="synthetic", normalized=wanted, strength=3.0)
        task = train_normalized_mlp.task(config)
        model = task.build(regularizers(config, key), ds.WatermarkedModel)
        found = model.get_layer("features").activity_regularizer
        assert type(found) is kind and found.strength == 3.0 and task.program == train_normalized_mlp.__name__


# Pictures


def test_the_pictures_are_drawn(tmp_path):
    ratio = {"wall_ratio": 1.01, "wall_ratio_interval": [1.0, 1.02]}
    rows = [{"setting": setting.name} | ratio for setting in overhead.STUDIES["costs"]]
    pictures.costs_picture({"rows": rows}, tmp_path / "costs.png")
    rows = [
        {
            "num_bits": bits,
            "bit_error_rate": {"key inputs": 0.0, "held out": 0.1},
            "accuracy": {"marked": 0.8, "unmarked": 0.81},
            "margin": {"smallest": -0.1, "median": 1.0},
        }
        for bits in (640, 70)
    ]
    pictures.capacity_picture({"rows": rows}, tmp_path / "capacity.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
