"""What the README shows of attacks, from made-up rows whose tables can be told by hand."""

import re

import numpy as np
import pytest

pytest.importorskip("tqdm", reason="the measurements are made in the environment of requirements.txt")

from benchmarks import bars, pictures, suite_tables, tables  # noqa: E402
from deepsigns_tf.attacks.suite import suite  # noqa: E402


def _outcome(attack, family, accuracy, rate, log10_p, **more):
    weights = {"bit_error_rate": rate, "log10_p_value": log10_p, "marked": log10_p <= -6}
    weights |= {"num_matches": round(640 * (1 - rate)), "num_bits": 640, "median_margin": 1.0 - rate}
    return {
        "attack": attack,
        "family": family,
        "accuracy": accuracy,
        "accuracy_before": 0.98,
        "weights": weights,
    } | more


def _referred(rate, log10_p):
    return {"referred": {"bit_error_rate": rate, "log10_p_value": log10_p, "marked": log10_p <= -6}}


def _row(seed, lost):
    marked = _outcome("", "", 0.98, 0.0, -192.0, **_referred(0.01, -180.0))
    no_reading = {"weights": {"marked": False, "log10_p_value": 0.0, "refused": "no layer"}}
    return {
        "settings": {
            "seed": seed,
            "carriers": "features:64",
            "strength": 1.0,
            "num_classes": 10,
            "centres": "batch",
            "projection": "balanced",
            "unmarked_epochs": 5 * seed,
        },
        "num_bits": 640,
        "accuracy": {"marked": 0.98, "unmarked": 0.98},
        "margin": {"median": 1.2, "smallest": 0.5},
        "suite": {
            "marked": marked,
            "rows": [
                _outcome("pruned", "paper", 0.97, 0.1, -100.0 + lost, **_referred(0.2, -60.0)),
                _outcome("split", "same function", 0.98, 0.5, 0.0, **_referred(0.02, -150.0)) | no_reading,
                {
                    "attack": "folded",
                    "family": "same function",
                    "refused": "no BatchNorm",
                    "survived": "not applicable",
                },
                _outcome("class means moved by 1", "adaptive", 0.96, 0.2, -50.0, **_referred(0.5, -0.1)),
                _outcome("class means moved by 8", "adaptive", 0.95, 0.45, -2.0, **_referred(0.5, -0.1)),
                # Only a match finds this one again.
                _outcome("hidden", "adaptive", 0.98, 0.5, -0.1, **_referred(0.3, -20.0)),
                _outcome("drawn anew", "adaptive", 0.90, 0.5, -0.1, **_referred(0.5, -0.1)),
            ],
        },
    }


RESULT = {
    "date": "2026-11-26",
    "data": "made up",
    "hardware": "none",
    "versions": {"python": "3"},
    "command": "python -m x",
    "rows": [_row(0, 0.0), _row(1, 10.0)],
}


def _defences():
    """Two ways on two seeds, one thief; the second way loses .1 and .3 bits less, and is at a loss where the thief failed."""
    payload = {"payload": {"num_bits": 64, "num_copies": 9, "num_matches": 60, "log10_p_value": -13.2}}
    rows = []
    for normalized, rates in ((False, (0.4, 0.5)), (True, (0.3, 0.2))):
        for seed, rate in enumerate(rates):
            settings = _row(0, 0.0)["settings"] | {"seed": seed, "normalized": normalized}
            failed = {"attack": "overwritten", "family": "paper", "refused": "OSError: disk full", "survived": "failed"}
            second = failed if normalized and seed else _outcome("overwritten", "paper", 0.98, 0.1, -99.0) | payload
            outcomes = [_outcome("moved", "paper", 0.98, rate, -10.0 - seed) | payload, second]
            rows.append(_row(0, 0.0) | {"settings": settings, "suite": {"rows": outcomes}})
    return RESULT | {"rows": rows}


def _table(lines):
    """The rows of a Markdown table, by the names of the columns."""
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_best_adaptive_attack_stands_on_top():
    """It removes the mark for three points; the one that takes eight is no better, those that leave it a match neither."""
    lines = suite_tables.suite_table({"x_suite": RESULT}, "x_suite").splitlines()
    rows = _table(lines)
    matched = "matched with the reference: BER, log10 p of the worst seed"
    shown = ("attack", "accuracy, %", "BER", "log10 p, worst seed", matched, "survived")
    assert [tuple(row[name] for name in shown) for row in rows] == [
        ("none", "98.00", "0.0000", "-192.0", "0.0100, -180.0", "yes"),
        ("class means moved by 8", "95.00", "0.4500", "-2.0", "0.5000, -0.1", "removed"),
        ("pruned", "97.00", "0.1000", "-90.0", "0.2000, -60.0", "yes"),
        ("split", "98.00", "no reading", "0.0", "0.0200, -150.0", "recovered"),
        ("class means moved by 1", "96.00", "0.2000", "-50.0", "0.5000, -0.1", "yes"),
        ("hidden", "98.00", "0.5000", "-0.1", "0.3000, -20.0", "recovered"),
        ("drawn anew", "90.00", "0.5000", "-0.1", "0.5000, -0.1", "with the model"),
        ("folded", "", "", "", "", "not applicable: no BatchNorm"),
    ]
    assert (
        rows[2]["bits, worst seed"] == "576 of 640" and rows[2]["median margin"] == "0.90" and rows[2]["seeds"] == "2"
    )
    # Columns that no row has anything for are left out.
    assert not any("triggers" in name or "seconds" in name for name in rows[0])


def test_the_price_of_a_mark_is_read_off_the_curve():
    """From 50 to 2 for one point more: the level of 6 is crossed at 44 of 48 of the way."""
    assert suite_tables.curves(RESULT) == {
        "class means moved by {}": [
            (1.0, pytest.approx(2.0), pytest.approx(50.0)),
            (8.0, pytest.approx(3.0), pytest.approx(2.0)),
        ]
    }
    lost, name = suite_tables.price(RESULT)
    assert lost == pytest.approx(2 + 44 / 48) and name == "class means moved by 1 to 8"
    text = suite_tables.suite_table({"x_suite": RESULT}, "x_suite")
    assert "brings p above 1e-6 for 2.9 points of accuracy (class means moved by 1 to 8)." in text
    marks_stay = [row | {"suite": row["suite"] | {"rows": row["suite"]["rows"][:4]}} for row in RESULT["rows"]]
    assert suite_tables.price(RESULT | {"rows": marks_stay}) is None


def test_what_was_asked_stands_beside_the_worst_row():
    """Whatever was not recorded is not known; readings after the match are those of the match alone."""
    outcomes = [
        *(_outcome(f"{share} % pruned", "paper", 0.97, 0.0, -192.0) for share in (50, 60, 70, 80)),
        _outcome("90 % pruned", "paper", 0.80, 0.01, -180.0),
        *(_outcome(f"{share} % pruned", "paper", 0.50, 0.4, -5.0) for share in (95, 99, 99.9)),
        _outcome("fine-tuned, 50 epochs", "paper", 0.98, 0.0, -192.0),
        _outcome("overwritten, 1 x, 10 epochs", "paper", 0.98, 0.14, -90.0),
        _outcome("overwritten, 1 x, 100 epochs", "paper", 0.98, 0.16, -80.0),
        _outcome("overwritten, 1 x, 100 epochs, then disguised", "paper", 0.98, 0.5, 0.0, **_referred(0.4, -3.0)),
        *(
            _outcome(name, "same function", 0.98, 0.5, 0.0, largest_difference=1e-5, **_referred(0.02, -150.0))
            for name in (*bars._DISGUISES, bars._TUNED)
        ),
        _outcome("units cloned", "same function", 0.98, 0.5, 0.0, largest_difference=2e-4, **_referred(0.0, -190.0)),
        _outcome("units cloned, then 50 % pruned", "same function", 0.97, 0.5, 0.0, largest_difference=9.0)
        | _referred(0.04, -140.0),
    ]
    row = _row(0, 0.0)
    suite = RESULT | {"rows": [row | {"suite": row["suite"] | {"rows": outcomes}}]}
    fewer = RESULT | {"rows": [row | {"suite": row["suite"] | {"rows": outcomes[5:]}}, *suite["rows"]]}
    rows = _table(bars.bars_table({"mnist_suite": suite, "cnn_suite": fewer}).splitlines())
    held = {
        (each["asked"].split(":")[0], each["of"]): (each["worst row"], each["seeds"], each["held"]) for each in rows
    }
    assert held["pruned up to 90 %", "MLP"] == ("90 % pruned", "1", "**no**")
    assert held["pruned up to 99.9 %, or to a loss of 20 points", "CNN"] == ("90 % pruned", "1", "**no**")
    assert held["overwritten at equal strength", "CNN"] == ("overwritten, 1 x, 100 epochs", "2", "yes")
    assert held["overwritten at equal strength", "MLP"] == ("overwritten, 1 x, 100 epochs", "1", "**no**")
    equal = "equal functions, also pruned or fine-tuned"
    assert held[equal, "MLP"] == ("units cloned, then 50 % pruned", "1", "yes")
    assert held["equal functions", "MLP"] == ("units cloned", "1", "**no**")
    assert held["fine-tuned", "MLP"] == ("not recorded: fine-tuned, 200 epochs", "", "not known")
    assert held["quantized to 8 and 5 bits", "MLP"] == ("not recorded: quantized to 8 bits", "", "not known")
    assert ("fine-tuned", "WRN") not in held
    with pytest.raises(tables.NotRecordedError, match="mnist_suite"):
        bars.bars_table(tables.Recorded())


def test_every_row_that_is_asked_for_is_one_of_the_suites():
    """Under the names that the networks' studies give them, on one of the seeds at least."""
    import importlib

    from scripts import attack

    for network in ("mnist", "cnn", "wrn", "lstm"):
        study = importlib.import_module(f"benchmarks.{network}").NETWORK.studies["suite"]
        families = {}
        for flags in study.suites:
            config = attack.Config("marked.keras", "owner.key", "attacked", **flags)
            epochs = [attack._epochs(config, f"{name}_epochs") for name in ("fine_tuning", "overwriting")]
            tried = [each for each in suite(config.suite, *epochs) if re.search(config.only, each.name)]
            families |= {each.name: each.family for each in tried}
        for bar in bars.BARS:
            judged = {name for name in families if families[name] == bar.family and re.fullmatch(bar.rows, name)}
            assert set(bar.needed.get(network, ())) <= judged, (network, bar.words)
            assert bar.words.startswith("equal functions:") <= (not any(", then " in name for name in judged))


def test_the_soks_cell_stands_beside_ours():
    outcomes = [
        _outcome("units permuted", "same function", 0.98, 0.5, 0.0, seconds=1.0, **_referred(0.02, -150.0)),
        _outcome("units permuted, then 50 % pruned", "same function", 0.97, 0.5, 0.0, **_referred(0.04, -140.0)),
    ]
    row = _row(0, 0.0)
    recorded = {"mnist_suite": RESULT | {"rows": [row | {"suite": row["suite"] | {"rows": outcomes}}]}}
    permuted, pruned = _table(suite_tables.sok_table(recorded).splitlines())
    assert permuted["SoK"] == "removed, in 0 hours" and pruned["SoK"] == "not tried"
    assert permuted["survived"] == "recovered" and permuted["seconds"] == "1"
    del recorded["mnist_suite"]["rows"][0]["suite"]["rows"][1]
    assert _table(suite_tables.sok_table(recorded).splitlines())[1]["survived"] == "not recorded"
    with pytest.raises(tables.NotRecordedError, match="mnist_suite"):
        suite_tables.sok_table(tables.Recorded())


def test_what_was_not_tried_is_not_said_to_have_failed():
    """A suite without adaptive attacks says nothing of their price."""
    rows = [row | {"suite": row["suite"] | {"rows": row["suite"]["rows"][:2]}} for row in RESULT["rows"]]
    text = suite_tables.suite_table({"x_suite": RESULT | {"rows": rows}}, "x_suite")
    assert "Adaptive attacks were not tried on this network." in text and "brings p" not in text


def test_the_best_defence_is_chosen_by_its_payload_among_those_that_cost_little():
    result = _defences()
    assert (
        suite_tables.ranked_defences(result)[0] == "features x 64, strength 1"
    )  # The thief's failure shows nothing of the other.
    for row in result["rows"][2:]:
        for outcome in row["suite"]["rows"]:
            outcome["payload"] = {"num_bits": 64, "num_copies": 9, "num_matches": 64, "log10_p_value": -19.3}
    other = "features x 64, strength 1, normalised loss"
    assert suite_tables.ranked_defences(result)[0] == other
    for cost, chosen in ((0.001, other), (0.0011, "features x 64, strength 1")):
        for row in result["rows"][2:]:
            row["accuracy"] = {"marked": 0.98 - cost, "unmarked": 0.98}
        assert suite_tables.ranked_defences(result)[0] == chosen


def test_triggers_and_controls_stand_in_the_table():
    answers = {"answers": {"num_matches": 97, "num_asked": 100, "log10_p_value": -80.0, "marked": True}}
    rows = []
    for row in RESULT["rows"]:
        suite = row["suite"] | {
            "marked": row["suite"]["marked"] | answers,
            "unmarked_twin": _outcome("", "", 0.98, 0.51, 0.0) | answers | {"largest_difference": 3.0},
            "rows": [each | answers | {"seconds": 7.0} for each in row["suite"]["rows"][3:4]],
            "unrelated": {
                "num_models": 201,
                "gate": 0.7,
                "largest_quality": 0.69,
                "num_through_the_gate": 0,
                "smallest_bit_error_rate": 0.08,
            },
        }
        rows.append(row | {"suite": suite})
    text = suite_tables.suite_table({"x_suite": RESULT | {"rows": rows}}, "x_suite")
    none, twin, moved = _table(text.splitlines())
    assert twin["attack"] == "none, the unmarked twin" and twin["BER"] == "0.5100" and twin["survived"] == ""
    assert twin["largest change of an output"] == "3.0e+00"
    assert (
        moved["triggers, worst seed"] == "97 of 100"
        and moved["survived, triggers"] == "yes"
        and moved["seconds"] == "7"
    )
    assert "Seed 1: of 201 unrelated models the best match is 0.690, against a gate of 0.700 that 0 pass" in text


def test_defences_stand_against_the_same_thief():
    lines = suite_tables.defences_table({"x": _defences()}, "x").splitlines()
    payload = "60 of 64, x 9 (-13)"
    # Differences of -.1 and -.3: mean -.2, and 12.7 times a standard error of .1.
    assert lines[2:4] == [
        f"| features x 64, strength 1 | 640 | 98.00 | 1.20 | 0.450 (-10) |  | {payload} | 0.100 (-99) |  | {payload} |",
        "| features x 64, strength 1, normalised loss | 640 | 98.00 | 1.20 "
        f"| 0.250 (-10) | -0.200 [-1.471, +1.071] | {payload} | failed |  |  |",
    ]
    assert lines[5] == "Seeds 0, 1, of owner and thief." and "the best" not in "".join(lines)
    for missing, said in ((0, "features x 64, strength 1."), (3, "not known before all runs are.")):
        results = {"mnist_defences": _defences() | {"num_missing": missing}}
        assert f"By the rule the best is: {said}\n" in suite_tables.defences_table(results, "mnist_defences")


def test_lengths_before_the_mark_stand_in_one_row_each():
    """Means of error rates over the seeds, beside the p of the worst; without a reference nothing is matched."""
    rows = []
    for epochs in (0, 2):
        for seed, rate in enumerate((0.2, 0.4)):
            matched = _referred(rate / 10, -300.0 * (1 - rate)) if epochs else {}
            names = ("overwritten, 1 x, 10 epochs", "units permuted", "all of these", "all of these, then 50 % pruned")
            outcomes = [
                _outcome(name, "paper", 0.98, rate, -100.0 * rate, **matched)
                for name in (*names, "overwritten, 1 x, 10 epochs, then disguised")
            ]
            row = _row(seed, 0.0)
            settings = row["settings"] | {"unmarked_epochs": epochs, "epochs": 20}
            rows.append(row | {"settings": settings, "suite": {"rows": outcomes}})
    lines = suite_tables.references_table({"mnist_references": RESULT | {"rows": rows}}).splitlines()
    assert lines[2] == "| 0 of 20 | 98.00 | 0.300 (-20) |" + 4 * " no reference |"
    assert lines[3] == "| 2 of 20 | 98.00 | 0.300 (-20) |" + 4 * " 0.030 (-180) |"


def test_ways_are_compared_on_the_seeds_that_all_have():
    whole = _defences()
    begun = whole | {
        "rows": [row for row in whole["rows"] if not row["settings"]["normalized"] or not row["settings"]["seed"]]
    }
    lines = suite_tables.defences_table({"x": begun}, "x").splitlines()
    assert (
        "| 0.400 (-10) |" in lines[2] and "| 0.300 (-10) | -0.100 |" in lines[3] and lines[5].startswith("Seeds 0, of")
    )


def test_the_ways_that_are_confirmed_are_those_that_were_chosen():
    from benchmarks import mnist

    result = tables.recorded().get("mnist_defences")
    if not result or result.get("num_missing"):
        pytest.skip("the study `defences` is not recorded as a whole yet")
    confirmed = [suite_tables.way_to_mark(result["rows"][0]["settings"] | each) for each in mnist._BEST_DEFENCES]
    assert confirmed == suite_tables.ranked_defences(result)[:2]


def test_the_mlps_default_is_the_way_that_was_confirmed():
    from scripts.train_mnist_mlp import Config

    result = tables.recorded().get("mnist_defences_again")
    if not result or result.get("num_missing"):
        pytest.skip("the study `defences_again` is not recorded as a whole yet")
    default = {name: getattr(Config(output_dir=""), name) for name in ("carriers", "strength")}
    way = suite_tables.way_to_mark(result["rows"][0]["settings"] | default)
    rows = suite_tables.ways_of(result)[way]
    assert way == suite_tables.ranked_defences(result)[0]
    assert np.mean([row["accuracy"]["marked"] - row["accuracy"]["unmarked"] for row in rows]) >= -0.001


def test_a_picture_stands_below_its_table_where_there_is_one():
    recorded = {"wrn_suite": RESULT, "cnn_suite": RESULT, "mnist_defences": _defences()}
    shown = {name: tables.TABLES[name](recorded) for name in ("suite_wrn", "suite_cnn", "defences")}
    assert shown["suite_wrn"].count("| class means moved by 8 | adaptive |") == 1 and ".png" not in shown["suite_wrn"]
    for name, picture in (("suite_cnn", "cnn_suite"), ("defences", "mnist_defences")):
        assert shown[name].endswith(f"]({picture}.png)\n") and picture in pictures.PICTURES


def test_readings_without_a_match_stand_beside_the_one_with():
    attacks = {
        "none": {"bit_error_rate": 0.0, "accuracy": 0.981},
        "units split": {"bit_error_rate": 0.49, "accuracy": 0.98},
    }
    row = {"way": "sorted", "bits_per_class": 16, "strength": 1.0, "attacks": attacks}
    lines = suite_tables.invariants_table({"invariants": RESULT | {"rows": [row]}}).splitlines()
    assert lines[0].endswith("| none: BER (accuracy, %) | units split: BER (accuracy, %) |")
    assert lines[2] == "| sorted class means, no match | 16 | 1 | 0.000 (98.10) | 0.490 (98.00) |"


def test_detectors_stand_with_their_intervals():
    area = {"auc": 0.631, "interval": [0.52, 0.74]}
    row = {"kind": "default", "epochs": 5, "num_marked": 120, "num_unmarked": 223, "num_features": 9}
    row |= {"mark": {"bit_error_rate": 0.0012, "largest_log10_p_value": -88.4}}
    row |= {"classifiers": {"logistic regression": area}}
    control = {"kind": "strength 1000", "auc": 0.961, "seen": True}
    result = RESULT | {"rows": [row], "control": control, "missing": ["2 classes"]}
    lines = suite_tables.detector_table({"detector": result}).splitlines()
    assert lines[0].startswith(
        "| mark | wrong bits, % (log10 p, weakest network) | epochs | networks, marked and not |"
    )
    assert lines[0].endswith(" AUC, logistic regression: 95 %, out of bag |")
    assert lines[2] == "| default | 0.12 (-88) | 5 | 120, 223 | 0.63 [0.52, 0.74] |"
    assert lines[4] == "The positive control, strength 1000, is seen (AUC 0.96)."
    assert lines[5] == "Not recorded yet: 2 classes."


def test_pictures_are_drawn(tmp_path):
    pictures.adaptive_picture(RESULT, tmp_path / "adaptive.png")
    pictures.defences_picture(_defences(), tmp_path / "defences.png")
    for name in ("adaptive", "defences"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
