"""False claims are refused for their reasons, and the owner is believed beside each of them."""

import shutil

import pytest

pytest.importorskip("rfc3161_client", reason="claims are dated with the extra `evidence`")

from benchmarks import false_claims  # noqa: E402

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the authority is `openssl ts`, which is not here"
)

# Claimant -> what the judge says.
REASONS = {
    "fitted_key_inputs": "committed to after the model was published",
    "picked_key_inputs": "p = 10^",
    "chosen_signature": "not a key: ",
    "flipped_signs": "not a key: ",
    "ground_seeds": "p = 10^",
    "many_commitments": "p = 10^",
    "shopped_layers": "p = 10^",
    "late_map": "p = 10^0.0, above 10^-6",
    "own_reference": "p = 10^",
    "adversarial_triggers": "committed to after the model was published",
    "picked_triggers": "p = 10^",
    "overwritten": "committed to after the model was published",
    "replayed_key": "p = 10^",
    "replayed_evidence": "committed to after the model was published",
    "without_date": "no earlier commitment was shown, or one without a date",
    "altered_time_stamp": "refused: one that was altered",
    "foreign_time_stamp": "refused: a time-stamp that does not hold",
    "insider": "an earlier claim is valid too",
}
# What would be believed if nobody asked further.
CONVINCING = {"fitted_key_inputs", "chosen_signature", "flipped_signs", "adversarial_triggers", "picked_triggers"}
CONVINCING |= {
    "overwritten",
    "replayed_evidence",
    "without_date",
    "altered_time_stamp",
    "foreign_time_stamp",
    "insider",
}


def _check(monkeypatch, tmp_path, names):
    claimants = [each for each in false_claims.CLAIMANTS if each.__name__ in names]
    monkeypatch.setattr(false_claims, "CLAIMANTS", claimants)
    config = false_claims.Config("mnist5k", epochs=8, num_seeds=20, num_committed=5, results_dir=str(tmp_path))
    rows = false_claims.run(config)["rows"]
    for claimant, row in zip(claimants, rows, strict=True):
        assert not row["accepted"] and row["reason"].startswith(REASONS[claimant.__name__]), row
        assert row["owner_accepted"] in (True, None), row
        assert (row["log10_p_undefended"] < -19) == (claimant.__name__ in CONVINCING), row
        # At the level of committed claims.
        assert claimant.__name__ != "late_map" or row["log10_p_undefended"] < -6


def test_every_claimant_is_known():
    assert [each.__name__ for each in false_claims.CLAIMANTS] == list(REASONS)


def test_some_false_claims(monkeypatch, tmp_path):
    _check(monkeypatch, tmp_path, {"fitted_key_inputs", "many_commitments", "picked_triggers", "insider"})


@pytest.mark.slow
def test_all_false_claims(monkeypatch, tmp_path):
    _check(monkeypatch, tmp_path, set(REASONS))
