"""What the results' page shows of claims, files and verdicts, and the measurements behind it."""

import types

import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.carriers import CarrierLayer

pytest.importorskip("tqdm", reason="the measurements are made in the environment of requirements.txt")

from benchmarks import evidence_tables, suspects, verdict_calibration  # noqa: E402
from models import wide_resnet  # noqa: E402
from models.mnist_mlp import FEATURES, mnist_mlp  # noqa: E402
from tests import honest_models, malicious_files  # noqa: E402

_CIRCUMSTANCES = {"command": "c", "date": "d", "data": "e", "hardware": "h", "versions": {}}


def _cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_an_accepted_false_claim_stands_out():
    row = {"claimant": "A thief", "log10_p_undefended": -190.04, "accepted": False, "reason": "late"}
    rows = [row | {"owner_accepted": True}, row | {"accepted": True, "owner_accepted": False}]
    table = evidence_tables.claims_table({"false_claims": _CIRCUMSTANCES | {"rows": rows}})
    _, _, refused, accepted = _cells(table)
    assert refused == ["A thief", "-190.0", "refused", "late", "believed"]
    assert accepted[2:] == ["**accepted**", "late", "**not believed**"]


def test_files_are_counted_by_kind():
    opened = {"opened": True, "isolation": "alone", "peak_memory_gib": 1.0, "seconds": 9.0}
    rows = [
        {"kind": "malicious", "opened": False, "acted": False, "peak_memory_gib": 0.5, "seconds": 0.1},
        {"kind": "malicious", "acted": True, **opened},
        {"kind": "honest", **opened},
    ]
    result = _CIRCUMSTANCES | {"rows": rows, "verification": {"isolated_s": 20.04, "one_pass_s": 3.96}}
    table = evidence_tables.suspects_table({"suspects": result})
    assert _cells(table)[2:] == [
        ["malicious", "2", "1", "1", "4.5, 9.0", "1.00"],
        ["honest", "1", "1", "", "9.0, 9.0", "1.00"],
    ]
    assert "ran alone." in table and "took 20.0 s" in table and "process 4.0 s" in table


def test_a_model_that_is_looked_up_gets_the_verdict_of_the_model(tmp_path):
    inputs = np.random.default_rng(0).random((300, 784), np.float32)
    labels = np.arange(300) % 10
    models = [mnist_mlp() for _ in range(2)]
    for number, model in enumerate(models):
        verdict_calibration.record(model, inputs, tmp_path / str(number), saved=number == 0)
    numbers = np.arange(300)[:, None]
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", range(10), 64)])
    key = key.with_reference(tmp_path / "0" / "model.keras").with_layers([CarrierLayer("features", FEATURES, 512)])
    asked = key.with_key_inputs(numbers, labels, num_per_class=20)
    rows = np.asarray(asked.key_inputs.inputs)[:, 0]
    given = key.with_key_inputs(inputs, labels, num_per_class=20)
    np.testing.assert_array_equal(given.key_inputs.inputs, inputs[rows])
    known = verdict_calibration.LookedUp(tmp_path / "0")
    for number, model in enumerate(models):
        for reference in (False, True):
            expected = ds.verify(model, given, reference=tmp_path / "0" / "model.keras" if reference else None)
            found = ds.verify(
                verdict_calibration.LookedUp(tmp_path / str(number)), asked, reference=known if reference else None
            )
            # Four layers, and after a match these and all outputs together, for four of the reference, with and without sizes.
            num_assignments = 4 + 2 * 5 * 4 if reference else 4
            assert found.num_assignments == expected.num_assignments == num_assignments
            assert (found.num_matches, found.matched) == (expected.num_matches, expected.matched)
            assert found.log10_p_soft == pytest.approx(expected.log10_p_soft, abs=1e-3)


def test_each_key_judges_each_model_in_every_way_once(tmp_path, monkeypatch):
    labels = np.arange(800) % 10
    suspects_ = [tmp_path / str(number) for number in range(2)]
    for number, suspect in enumerate(suspects_):
        inputs = np.random.default_rng(0).random((800, 784), np.float32)
        verdict_calibration.record(mnist_mlp(), inputs, suspect, saved=number == 0)
    ways = {}
    for judge, numbers in (("_searched", range(2)), ("_matched", range(1)), ("_stated", range(10))):
        found = [verdict_calibration._part(getattr(verdict_calibration, judge), numbers, labels, suspects_, tmp_path)]
        # What is there is not measured again.
        stub = types.SimpleNamespace(__name__=judge)
        found.append(verdict_calibration._part(stub, numbers, labels, suspects_, tmp_path))
        for name, (log10_p, factors) in found[0].items():
            assert (log10_p <= 0).all()
            np.testing.assert_array_equal(log10_p, found[1][name][0])
            np.testing.assert_array_equal(factors, found[1][name][1])
            ways[name] = log10_p.shape, int(factors.max())
    assert ways == {
        "search": ((2, 2, 2), 4),
        "search and match": ((1, 2, 2), 4 + 2 * 5 * 4),
        "map stated in time, luckiest of 5 commitments": ((2, 2, 1), 1),
        "map stated to suit the suspect, luckiest of 5 commitments": ((2, 2, 1), 4),
        "weights or answers, luckiest of 5 commitments": ((2, 2, 1), 1),
    }


def test_statements_of_a_calibrated_key_say_what_they_are_meant_to():
    key = verdict_calibration.key_of(7, np.arange(800) % 10)
    for released, committed in ((verdict_calibration._BEFORE, True), (verdict_calibration._AFTER, False)):
        opened = verdict_calibration.stated(key, 7, released).opened_by(key)
        assert (opened.num_seeds, opened.factor, opened.committed) == (3, 12, True)
        assert opened.layers_committed == committed
    np.testing.assert_array_equal(key.projection("features", 512), ds.OwnerKey.projection(key, "features", 512))


@pytest.mark.slow
def test_hostile_and_honest_files_are_told_apart_and_one_is_verified(tmp_path, monkeypatch):
    """Few files; the corpora are tested elsewhere."""
    monkeypatch.setattr(malicious_files, "MALICIOUS", {"Lambda": malicious_files.MALICIOUS["Lambda"]})
    monkeypatch.setattr(honest_models, "HONEST", {"dense": honest_models.HONEST["dense"]})
    small = wide_resnet.wide_resnet(10, 2)
    monkeypatch.setattr(wide_resnet, "wide_resnet", lambda depth, width: small)
    result = suspects.run(suspects.Config(str(tmp_path)))
    assert [row["opened"] for row in result["rows"]] == [False, True, True]
    assert not result["rows"][0]["acted"] and "Lambda" in result["rows"][0]["reason"]
    assert result["verification"]["isolated_s"] > result["verification"]["one_pass_s"] > 0
