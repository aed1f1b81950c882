"""What the README shows of attacks, from made-up rows whose tables can be told by hand."""

import pytest

pytest.importorskip("tqdm", reason="the measurements are made in the environment of requirements.txt")

from benchmarks import pictures, suite_tables, tables  # noqa: E402


def _outcome(attack, family, accuracy, rate, log10_p, **more):
    weights = {"bit_error_rate": rate, "log10_p_value": log10_p, "marked": log10_p <= -6}
    return {"attack": attack, "family": family, "accuracy": accuracy, "weights": weights} | more


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
                _outcome("moved by 1", "adaptive", 0.96, 0.2, -50.0, **_referred(0.5, -0.1)),
                _outcome("moved by 8", "adaptive", 0.95, 0.45, -2.0, **_referred(0.5, -0.1)),
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
    payload = {"payload": {"num_bits": 64, "num_copies": 9, "num_matches": 60, "log10_p_value": -13.2}}
    rows = [
        {**row, "suite": {"rows": [outcome | payload for outcome in row["suite"]["rows"][3:5]]}}
        for row in RESULT["rows"]
    ]
    rows[1]["settings"] = rows[1]["settings"] | {"normalized": True}
    return RESULT | {"rows": rows}


def test_the_best_adaptive_attack_stands_on_top():
    """It removes the mark for three points; the one that takes eight is no better, the one that leaves the mark neither."""
    lines = suite_tables.suite_table({"x_suite": RESULT}, "x_suite").splitlines()
    assert lines[2:9] == [
        "| none |  | 98.00 | 0.0000 | -192.0 | 0.0100, -180.0 |  | yes |",
        "| moved by 8 | adaptive | 95.00 | 0.4500 | -2.0 | 0.5000, -0.1 |  | removed |",
        "| pruned | paper | 97.00 | 0.1000 | -90.0 | 0.2000, -60.0 |  | yes |",
        "| split | same function | 98.00 | no reading | 0.0 | 0.0200, -150.0 |  | recovered |",
        "| moved by 1 | adaptive | 96.00 | 0.2000 | -50.0 | 0.5000, -0.1 |  | yes |",
        "| drawn anew | adaptive | 90.00 | 0.5000 | -0.1 | 0.5000, -0.1 |  | with the model |",
        "| folded | same function |  |  |  |  |  | not applicable: no BatchNorm |",
    ]


def test_defences_stand_against_the_same_thief():
    lines = suite_tables.defences_table({"x": _defences()}, "x").splitlines()
    payload = "60 of 64, x 9 (-13)"
    assert lines[2:4] == [
        f"| features x 64, strength 1 | 640 | 98.00 | 1.20 | 0.200 (-50) | 0.450 (-2) | {payload} | {payload} |",
        "| features x 64, strength 1, from epoch 5, normalised loss | 640 | 98.00 | 1.20 | 0.200 (-50) | 0.450 (-2) "
        f"| {payload} | {payload} |",
    ]


def test_a_picture_stands_below_its_table_where_there_is_one():
    recorded = {"wrn_suite": RESULT, "cnn_suite": RESULT, "mnist_defences": _defences()}
    shown = {name: tables.TABLES[name](recorded) for name in ("suite_wrn", "suite_cnn", "defences")}
    assert shown["suite_wrn"].count("| moved by 8 | adaptive |") == 1 and ".png" not in shown["suite_wrn"]
    for name, picture in (("suite_cnn", "cnn_suite"), ("defences", "mnist_defences")):
        assert shown[name].endswith(f"]({picture}.png)\n") and picture in pictures.PICTURES


def test_detectors_stand_with_their_intervals():
    area = {"auc": 0.631, "interval": [0.52, 0.74]}
    row = {"kind": "default", "num_models": 60, "num_features": 9, "logistic regression": area}
    control = {"kind": "strength 100", "auc": 0.961, "seen": True}
    lines = suite_tables.detector_table({"detector": RESULT | {"rows": [row], "control": control}}).splitlines()
    assert lines[0] == "| mark | networks of each kind | AUC, logistic regression |"
    assert lines[2] == "| default | 60 | 0.63 [0.52, 0.74] |"
    assert lines[4] == "The positive control, strength 100, is seen (AUC 0.96)."


def test_pictures_are_drawn(tmp_path):
    pictures.adaptive_picture(RESULT, tmp_path / "adaptive.png")
    pictures.defences_picture(_defences(), tmp_path / "defences.png")
    for name in ("adaptive", "defences"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
