"""The folder that is handed out: what is written, what is refused, what a verdict makes of it; and the programs around it."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deepsigns_tf as ds
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.statistics import binomial_log10_tail

evidence = pytest.importorskip("deepsigns_tf.evidence", reason="evidence needs `deepsigns_tf[evidence]`")

from benchmarks.authorities import TIME_STAMPING, certified, time_stamp  # noqa: E402
from deepsigns_tf.commitments import TimeStamp  # noqa: E402
from deepsigns_tf.evidence import add_statement, add_time_stamp, load_evidence, statement_file  # noqa: E402
from deepsigns_tf.signatures import SigningKey  # noqa: E402
from deepsigns_tf.timestamps import time_stamp_request  # noqa: E402
from deepsigns_tf.weights_digest import weights_digest  # noqa: E402
from tests.authorities import authority  # noqa: E402
from tests.servers import drip, reply, served  # noqa: E402
from tests.test_secrecy import Scanner  # noqa: E402

M, N, NUM_CLASSES = 128, 32, 4
LABELS = np.arange(32) % NUM_CLASSES
# An example is its class, one-hot: the rows of the first kernel are then the class means themselves.
ONE_HOT = np.eye(NUM_CLASSES, dtype="float32")[LABELS]
WEIGHTS = 64 * "a"

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the authority is `openssl ts`, which is not here"
)


def make_key(seed=bytes(range(32)), path="hidden"):
    key = ds.OwnerKey("ACME Vision", [ds.Carrier("features", range(NUM_CLASSES), N)], ds.DecisionRule(), seed)
    return key.with_key_inputs(ONE_HOT, LABELS, 4).with_layers([CarrierLayer("features", path, M)])


def make_model(key, names=("hidden", "other"), marked=0, num_wrong=0):
    """Two layers of the carrier's width beside each other; the one with the mark by its place."""
    signs = 2.0 * key.signature("features") - 1.0
    signs.ravel()[:num_wrong] *= -1
    inputs = keras.Input((NUM_CLASSES,))
    layers = [keras.layers.Dense(M, use_bias=False, name=name) for name in names]
    outputs = keras.layers.Dense(NUM_CLASSES, name="logits")(
        keras.layers.Add(name="sum")([each(inputs) for each in layers])
    )
    model = keras.Model(inputs, outputs)
    layers[marked].set_weights([(signs @ np.linalg.pinv(key.projection("features", M))).astype("float32")])
    return model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "evidence").mkdir()
    return tmp_path / "evidence"


SIGNING_KEY = SigningKey(bytes(range(32)))
KEY = make_key()


# The folder


def test_statements_that_are_added_at_a_time_stand_one_after_the_other(tmp_path):
    signing_key, keys = SigningKey.generate(), [dataclasses.replace(KEY, seed=bytes([n]) * 32) for n in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda key: add_statement(tmp_path, signing_key, key), keys))
    found = load_evidence(tmp_path)
    assert [each.number for each in found.statements] == list(range(1, 9))
    assert {each.digest() for each in found.statements} == {each.digest() for each in added}


def test_a_statement_is_two_files_and_is_made_once(folder):
    first = add_statement(folder, SIGNING_KEY, KEY)
    assert sorted(each.name for each in folder.iterdir()) == ["0001.json", "0001.sig"]
    assert statement_file(folder, 1).read_bytes() == first.encode()
    assert add_statement(folder, SIGNING_KEY, KEY) == first
    assert add_statement(folder, SIGNING_KEY, KEY, "1.0", WEIGHTS) == add_statement(
        folder, SIGNING_KEY, KEY, "1.0", WEIGHTS
    )
    assert add_statement(folder, SIGNING_KEY, make_key(bytes(32))).number == 3
    found = load_evidence(folder)
    assert [each.number for each in found.statements] == [1, 2, 3]
    assert found.opened_by(KEY).releases == ("1.0",)


def test_a_statement_without_its_signature_is_none(folder):
    """What a killed process leaves: the signature is written first."""
    (folder / "0001.sig").write_bytes(b"half")
    assert add_statement(folder, SIGNING_KEY, KEY).number == 1
    assert load_evidence(folder).opened_by(KEY).num_seeds == 1


def test_somebody_elses_folder_is_not_gone_on_with(folder):
    add_statement(folder, SIGNING_KEY, KEY)
    with pytest.raises(ValueError, match="Statement 2 is somebody else's"):
        add_statement(folder, SigningKey.generate(), make_key(bytes(32)))
    with pytest.raises(ValueError, match="Statement 2 releases what was not committed to"):
        add_statement(folder, SIGNING_KEY, make_key(bytes(32)), "1.0", WEIGHTS)
    assert len(list(folder.iterdir())) == 2


def spoil_bit(name):
    def spoil(folder):
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    return spoil


def resign(folder):
    """A thief puts their own key under a statement and signs it."""
    value = json.loads((folder / "0002.json").read_bytes()) | {"public_key": SigningKey(bytes(32)).public_key}
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    (folder / "0002.json").write_bytes(data)
    (folder / "0002.sig").write_bytes(SigningKey(bytes(32)).sign(data))


def replace_by(make):
    def replace(folder):
        (folder / "0002.json").unlink()
        make(folder / "0002.json")

    return replace


@pytest.mark.parametrize(
    ("spoil", "error", "told"),
    [
        (
            lambda folder: [each.unlink() for each in folder.iterdir()],
            ValueError,
            "There is no evidence in this folder.",
        ),
        (
            lambda folder: (folder / "0001.json").unlink(),
            ValueError,
            "This evidence has gaps. Expected statements from 1 to 3.",
        ),
        (lambda folder: (folder / "0002.json").unlink(), ValueError, "This evidence has gaps."),
        (lambda folder: (folder / "0002.sig").unlink(), FileNotFoundError, "0002.sig"),
        (spoil_bit("0001.json"), ValueError, "Statement 1 of "),
        (spoil_bit("0002.sig"), ValueError, "The signature does not fit."),
        (lambda folder: (folder / "0002.sig").write_bytes(b""), ValueError, "The signature does not fit."),
        (
            lambda folder: (folder / "0002.json").write_bytes(b"x" * 2**19),
            ValueError,
            "This file is no part of any evidence.",
        ),
        (resign, ValueError, "Statement 2 is somebody else's."),
        (replace_by(os.mkfifo), ValueError, "This file is no part of any evidence."),
        (replace_by(os.mkdir), ValueError, "This file is no part of any evidence."),
        (replace_by(lambda path: path.symlink_to("/etc/passwd")), OSError, "0002.json"),
        (replace_by(lambda path: path.symlink_to("0001.json")), OSError, "0002.json"),
    ],
)
def test_a_folder_that_does_not_hold_is_refused(folder, spoil, error, told):
    for key in (KEY, make_key(bytes(32)), make_key(bytes([1]) * 32)):
        add_statement(folder, SIGNING_KEY, key)
    spoil(folder)
    with pytest.raises(error, match=told):
        load_evidence(folder)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.binary(max_size=80))
def test_whatever_lies_there_has_one_kind_of_error(folder, data, signature):
    (folder / "0001.json").write_bytes(data)
    (folder / "0001.sig").write_bytes(signature)
    with pytest.raises(ValueError, match=r" Expected .* Received: "):
        load_evidence(folder)


def test_other_files_mean_nothing(folder):
    add_statement(folder, SIGNING_KEY, KEY)
    for name in ("README", "0001.tsq", "verdict.json", "00002.json", "٠٠٠٢.json", "1.json"):
        (folder / name).write_text("anything")
    assert len(load_evidence(folder).statements) == 1


def test_nothing_secret_lies_there(folder):
    add_statement(folder, SIGNING_KEY, KEY)
    add_statement(folder, SIGNING_KEY, KEY, "1.0", WEIGHTS)
    scanner = Scanner(KEY, "features", M)
    verdict = ds.verify(make_model(KEY), KEY, evidence=load_evidence(folder))
    for name, data in {
        **{each.name: each.read_bytes() for each in folder.iterdir()},
        "verdict": json.dumps(verdict.to_dict()).encode(),
        "summary": verdict.summary().encode(),
        "representation": repr((load_evidence(folder), verdict.opened, SIGNING_KEY)).encode(),
    }.items():
        assert scanner.scan(data, name) == []
        # The signing key's secret, and the map: which layer carries what is nobody's business.
        assert bytes(range(32)) not in data and bytes(range(32)).hex().encode() not in data
        assert name in ("verdict", "summary") or b"hidden" not in data


# Time-stamps


@pytest.fixture(scope="module")
def trusted(tmp_path_factory):
    """A root, an authority below it, and the authority's folder."""
    root = certified("Root")
    return root, certified("Authority", root, purposes=TIME_STAMPING), tmp_path_factory.mktemp("authority")


@needs_openssl
def test_time_stamps_are_checked_where_somebody_is_trusted(folder, trusted):
    root, signer, place = trusted
    data = add_statement(folder, SIGNING_KEY, KEY).encode()
    reply = time_stamp(time_stamp_request(data), signer, place)
    stamped = add_time_stamp(folder, 1, reply)
    assert load_evidence(folder, root.pem).opened_by(KEY).time_stamp == stamped
    assert load_evidence(folder).opened_by(KEY).time_stamp is None
    with pytest.raises(ValueError, match=r"Statement 1 of .*: This time-stamp is refused\."):
        load_evidence(folder, certified("Somebody").pem)
    # Of another statement: neither taken in nor, if somebody put it there, believed.
    add_statement(folder, SIGNING_KEY, make_key(bytes(32)))
    with pytest.raises(ValueError, match="Received: the time-stamp of something else"):
        add_time_stamp(folder, 2, reply)
    assert not (folder / "0002.tsr").exists()
    (folder / "0002.tsr").write_bytes(reply)
    with pytest.raises(ValueError, match=r"Statement 2 of .* Received: the time-stamp of something else"):
        load_evidence(folder, root.pem)


# The verdict


STATED, LATER = (datetime.datetime(year, 1, 2, tzinfo=datetime.UTC) for year in (2026, 2027))


def loaded(folder, *links, suspect_since=LATER):
    """What was stated, and dated by somebody who is trusted."""
    for key, *release in links:
        add_statement(folder, SIGNING_KEY, key, *release)
    found = load_evidence(folder)
    stamps = {each.number: TimeStamp(STATED, "CN=Authority", each.number) for each in found.statements}
    return dataclasses.replace(found, time_stamps=stamps, suspect_since=suspect_since)


def test_evidence_decides_the_level(folder):
    """Twenty wrong bits of 128: few enough with an earlier commitment, too many without."""
    model, found = make_model(KEY, num_wrong=20), loaded(folder, (KEY,))
    plain = ds.verify(model, KEY)
    assert not plain.marked and plain.log10_alpha == -64 * math.log10(2) and plain.opened is None
    assert "no earlier commitment checked" in plain.summary()
    digits = ds.verify(model, KEY, commitment=KEY.commitment())
    assert digits.marked and digits.log10_alpha == -6 and "(hard test, earlier commitment checked)" in digits.summary()
    opened = ds.verify(model, KEY, evidence=found)
    assert opened.marked and opened.committed and opened.log10_alpha == -6 and opened.headline == "MARKED"
    assert "earlier commitment checked in signed statements" in opened.summary()
    assert (
        "it existed on 2026-01-02 00:00:00 UTC by the time-stamp of CN=Authority, the suspect not before 2027"
        in opened.summary()
    )
    assert opened.num_assignments == digits.num_assignments and opened.seed_factor == 2
    assert opened.log10_p_value == pytest.approx(digits.log10_p_value + math.log10(2))
    assert ds.verify(model, KEY, commitment=KEY.commitment(), evidence=found).log10_p_value == opened.log10_p_value
    report = opened.to_dict()
    assert report["opened"]["num_seeds"] == 1 and report["seed_factor"] == 2 and plain.to_dict()["opened"] is None


@pytest.mark.parametrize("which", ["undated", "no date of the suspect", "younger than the suspect"])
def test_a_statement_that_may_be_younger_than_the_suspect_counts_seeds_alone(folder, which):
    """Anybody can fit a key to a model and state it afterwards."""
    links = (KEY,), (KEY, "1.0", WEIGHTS)
    found = loaded(folder, *links, suspect_since={"younger than the suspect": STATED}.get(which))
    if which == "undated":
        found = dataclasses.replace(load_evidence(folder), suspect_since=LATER)
    model = make_model(KEY, num_wrong=20)
    verdict, plain = ds.verify(model, KEY, evidence=found), ds.verify(model, KEY)
    assert not verdict.marked and not verdict.committed and verdict.log10_alpha == plain.log10_alpha
    assert verdict.num_assignments == plain.num_assignments > 1 and verdict.seed_factor == 2
    assert "NOT SHOWN" in verdict.summary() and "it counts as not committed" in verdict.summary()
    whole = ds.verify(make_model(KEY), KEY, evidence=found)
    assert whole.headline == "MARKED, if the key is older than the model"
    # Digits from a source of the verifier's own are dated there.
    assert ds.verify(model, KEY, commitment=KEY.commitment(), evidence=found).marked
    triggers = ds.OwnerKey("ACME Vision", [], ds.DecisionRule(), bytes(32)).with_triggers("noise", 100, 10, ONE_HOT)
    late = dataclasses.replace(
        loaded(folder, (triggers,)), suspect_since=found.suspect_since, time_stamps=found.time_stamps
    )
    assert not ds.verify_predictions(triggers.triggers.labels, triggers, evidence=late).committed


def test_a_map_that_is_younger_than_the_suspect_spares_no_search(folder):
    """The key is older, the map was chosen to suit the suspect."""
    found = loaded(folder, (KEY,), (KEY, "1.0", WEIGHTS))
    late = dataclasses.replace(found.time_stamps[2], time=LATER)
    verdict = ds.verify(
        make_model(KEY), KEY, evidence=dataclasses.replace(found, time_stamps=found.time_stamps | {2: late})
    )
    assert verdict.committed and verdict.num_assignments == ds.verify(make_model(KEY), KEY).num_assignments > 1


def test_a_date_without_a_time_zone_is_none(folder):
    with pytest.raises(
        ValueError, match="Expected a moment with a time zone. Received: suspect_since=2027-01-01T00:00:00"
    ):
        loaded(folder, (KEY,), suspect_since=datetime.datetime(2027, 1, 1))


def test_every_committed_seed_is_paid_for(folder):
    keys = [make_key(bytes([number]) * 32) for number in range(1, 5)]
    found = loaded(folder, *((key,) for key in [*keys, KEY]))
    verdict = ds.verify(make_model(KEY), KEY, evidence=found)
    assert verdict.opened.num_seeds == 5 and verdict.seed_factor == 30
    expected = binomial_log10_tail(128, 128) + math.log10(30 * verdict.num_assignments)
    assert verdict.log10_p_hard == pytest.approx(expected) and "x 30 for commitment 5" in verdict.summary()


def test_a_committed_map_spares_the_search(folder):
    found = loaded(folder, (KEY,), (KEY, "1.0", WEIGHTS))
    verdict = ds.verify(make_model(KEY), KEY, evidence=found)
    assert verdict.num_assignments == 1 and verdict.readings[0].layer == "hidden"
    assert verdict.log10_p_hard == pytest.approx(binomial_log10_tail(128, 128) + math.log10(2))
    assert "bear the names in the committed carrier-to-layer map" in verdict.summary()


def test_a_copy_of_a_stated_release_is_told_as_such(folder):
    """Number for number: one that differs in the last bit is judged by its mark alone."""
    model, other = make_model(KEY), make_key(bytes(32))
    weights = weights_digest(model)
    found = loaded(folder, (KEY,), (KEY, "0.9", WEIGHTS), (KEY, "1.0", weights), (other,), (other, "2.0", weights))
    verdict = ds.verify(model, KEY, evidence=found)
    assert verdict.copy_of == ("1.0",) and verdict.to_dict()["copy_of"] == ["1.0"]
    assert "weights         those of release '1.0', number for number" in verdict.summary()
    assert ds.verify(model, KEY).copy_of == () == ds.verify(model, KEY, commitment=KEY.commitment()).copy_of
    # Who has seen a suspect can state its weights.
    for undated in ({"time_stamps": {}}, {"suspect_since": None}, {"suspect_since": STATED}):
        assert ds.verify(model, KEY, evidence=dataclasses.replace(found, **undated)).copy_of == ()
    kernel = model.get_layer("hidden").kernel
    kernel.assign(np.nextafter(kernel.numpy(), np.float32(np.inf), dtype="float32"))
    changed = ds.verify(model, KEY, evidence=found)
    assert changed.copy_of == () and "number for number" not in changed.summary()
    assert changed.log10_p_value == verdict.log10_p_value


def test_a_renamed_suspect_is_searched_and_pays(folder):
    found, searched = loaded(folder, (KEY,), (KEY, "1.0", WEIGHTS)), ds.verify(make_model(KEY), KEY).num_assignments
    verdict = ds.verify(make_model(KEY, names=("stolen", "other")), KEY, evidence=found)
    assert verdict.marked and verdict.num_assignments == searched > 1 and verdict.readings[0].layer == "stolen"
    assert "is committed, and was not gone by" in verdict.summary()
    # Names swapped: found when a search is asked for.
    swapped = make_model(KEY, marked=1)
    assert not ds.verify(swapped, KEY, evidence=found).marked
    verdict = ds.verify(swapped, KEY, evidence=found, search=True)
    assert verdict.marked and verdict.num_assignments == searched and verdict.readings[0].layer == "other"


def test_a_suspect_without_numbers_in_the_recorded_layer_is_searched(folder):
    found = loaded(folder, (KEY,), (KEY, "1.0", WEIGHTS))
    model = make_model(KEY, marked=1)
    model.get_layer("hidden").set_weights([np.full((NUM_CLASSES, M), np.nan, "float32")])
    assert ds.verify(model, KEY, evidence=found).readings[0].layer == "other"


def test_anothers_evidence_gives_no_verdict(folder):
    found = loaded(folder, (KEY,))
    thief = make_key(bytes(32))
    for ask in (
        lambda: ds.verify(make_model(KEY), thief, evidence=found),
        lambda: ds.verify(make_model(KEY), KEY, commitment=thief.commitment(), evidence=found),
    ):
        with pytest.raises(ValueError, match=r"(The evidence|The commitment) is not this key's\. "):
            ask()


def test_a_reference_goes_with_evidence(folder, tmp_path):
    # Examples that differ within a class, to match units by.
    inputs = ONE_HOT + np.random.default_rng(0).normal(size=ONE_HOT.shape).astype("float32")
    key = dataclasses.replace(make_key(), layers=(), key_inputs=None).with_key_inputs(inputs, LABELS, 8)
    model = make_model(key)
    path = tmp_path / "reference.keras"
    model.save(path)
    key = key.with_reference(path).with_layers(KEY.layers)
    marked = make_model(key)
    verdict = ds.verify(marked, key, evidence=loaded(folder, (key,), (key, "1.0", WEIGHTS)), reference=path)
    # As it is, and matched with and without sizes; no other layer, and not all outputs together.
    assert verdict.num_assignments == 3


def test_answers_pay_for_seeds_too(folder):
    keys = [
        ds.OwnerKey("ACME Vision", [], ds.DecisionRule(), bytes([at]) * 32).with_triggers(
            "noise", 100, 10, np.random.rand(4, 8)
        )
        for at in range(2)
    ]
    found = loaded(folder, *((key,) for key in keys))
    labels = keys[1].triggers.labels
    verdict = ds.verify_predictions(labels, keys[1], evidence=found)
    assert verdict.marked and verdict.log10_p_value == pytest.approx(-100 + math.log10(6))
    assert "x 6 for commitment 2" in verdict.summary() and verdict.to_dict()["opened"]["num_seeds"] == 2
    answers = {row.tobytes(): label for row, label in zip(keys[1].triggers.inputs, labels, strict=True)}

    def predict(inputs):
        return [answers[row.tobytes()] for row in inputs]

    assert ds.verify_predict_fn(predict, keys[1], evidence=found).log10_p_value == verdict.log10_p_value
    early = ds.verify_predict_fn(predict, keys[1], evidence=found, batch_size=1, stop_early=True)
    without = ds.verify_predict_fn(predict, keys[1], commitment=keys[1].commitment(), batch_size=1, stop_early=True)
    assert early.marked and early.num_asked >= without.num_asked and early.seed_factor == 6
    questioning = ds.Questioning(keys[1], evidence=found)
    assert questioning.run(predict).opened.num_seeds == 2


# The programs


@pytest.fixture
def files(tmp_path):
    """A key, its model and a stranger's, as a training leaves them."""
    KEY.save(tmp_path / "owner.key")
    make_model(KEY).save(tmp_path / "marked.keras")
    make_model(make_key(bytes(32))).save(tmp_path / "stranger.keras")
    return tmp_path


def settings_of(files, **more):
    return {
        "owner_key": str(files / "owner.key"),
        "signing_key": str(files / "signing.pem"),
        "evidence": str(files / "evidence"),
    } | more


@needs_openssl
def test_a_claim_from_commitment_to_verdict(files, trusted, capsys):
    from scripts import commit, release, verify

    root, signer, place = trusted
    (files / "root.pem").write_bytes(root.pem)
    with authority(signer, place) as url:
        stamping = {"tsa_url": url, "tsa_roots": str(files / "root.pem")}
        digest = commit.run(commit.Config(**settings_of(files, **stamping)))
        printed = capsys.readouterr().out
        assert f"SHA-256 to publish or time-stamp: {digest}\n" in printed and KEY.commitment() in printed
        assert "New signing key" in printed and "UTC by CN=Authority, serial number" in printed
        released = {"model": str(files / "marked.keras"), "release_id": "1.0"}
        release.run(release.Config(**settings_of(files, **stamping, **released)))
        # Once more: nothing is stated or asked twice.
        before = sorted((each.name, each.read_bytes()) for each in (files / "evidence").iterdir())
        assert commit.run(commit.Config(**settings_of(files, **stamping))) == digest
        assert before == sorted((each.name, each.read_bytes()) for each in (files / "evidence").iterdir())
    assert [name for name, _ in before] == [f"000{at}.{kind}" for at in (1, 2) for kind in ("json", "sig", "tsr")]
    assert (files / "signing.pem").stat().st_mode & 0o777 == 0o600
    model = keras.models.load_model(files / "marked.keras")
    assert load_evidence(files / "evidence").statements[1].release.weights == weights_digest(model)
    asked = {
        "owner_key": str(files / "owner.key"),
        "evidence": str(files / "evidence"),
        "tsa_roots": str(files / "root.pem"),
        "suspect_since": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    config = verify.Config(
        str(files / "marked.keras"), **asked, dump=str(files / "dump.npz"), verdict=str(files / "verdict.json")
    )
    capsys.readouterr()
    assert verify.run(config) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("MARKED: claim of ACME Vision\n") and "UTC by the time-stamp of CN=Authority" in printed
    # The suspect's process told the digest.
    assert "those of release '1.0', number for number" in printed
    assert json.loads((files / "verdict.json").read_text())["num_assignments"] == 1
    assert verify.run(verify.Config(str(files / "stranger.keras"), **asked)) == 1
    # Stated today, of a suspect that is older.
    capsys.readouterr()
    assert verify.run(verify.Config(str(files / "marked.keras"), **asked | {"suspect_since": "2020-01-01"})) == 0
    assert capsys.readouterr().out.startswith("MARKED, if the key is older than the model: claim of ACME Vision\n")
    with pytest.raises(ValueError, match="Invalid value for flag `suspect_since`. Expected a date, as in 2026-11-26"):
        verify.run(verify.Config(str(files / "marked.keras"), **asked | {"suspect_since": "yesterday"}))
    with np.load(files / "dump.npz") as dump:
        assert set(json.loads(dump["header"].tobytes())) == {"carriers", "means"} and dump["0"].shape == (
            NUM_CLASSES,
            M,
        )
    assert (files / "dump.npz").stat().st_mode & 0o777 == 0o600


@needs_openssl
def test_a_time_stamp_that_is_fetched_by_hand(files, trusted, capsys):
    from scripts import commit

    root, signer, place = trusted
    commit.run(commit.Config(**settings_of(files)))
    assert "Request for a time-stamp, to send to an authority" in capsys.readouterr().out
    (files / "reply").write_bytes(time_stamp((files / "evidence" / "0001.tsq").read_bytes(), signer, place))
    commit.run(commit.Config(**settings_of(files, reply=str(files / "reply"))))
    assert "nobody checked who that is, for want of --tsa_roots" in capsys.readouterr().out
    assert not (files / "evidence" / "0001.tsq").exists()
    assert load_evidence(files / "evidence", root.pem).opened_by(KEY).time_stamp.authority == "CN=Authority"


def answering(handler, body):
    """A server that is no authority."""
    handler.send_response(200 if handler.path == "/page" else 404)
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"Hello")


@pytest.mark.parametrize(
    ("path", "told"),
    [("/page", "This time-stamp is refused."), ("/none", "The authority gave no time-stamp; the statement stands")],
)
def test_an_authority_that_is_none_leaves_the_statement(files, path, told):
    from scripts import commit

    with served(answering) as url, pytest.raises(ValueError, match=told):
        commit.run(commit.Config(**settings_of(files, tsa_url=url + path)))
    assert sorted(each.name for each in (files / "evidence").iterdir()) == ["0001.json", "0001.sig"]
    with pytest.raises(ValueError, match=r"Received: Connect"):
        commit.run(commit.Config(**settings_of(files, tsa_url="http://127.0.0.1:1", timeout=2.0)))


def compressing(handler, body):
    """A server whose reply of 1 KB becomes a megabyte."""
    content = gzip.compress(bytes(2**20))
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def flooding(handler, body):
    """A server that says more than a time-stamp takes."""
    reply(handler, bytes(2**19))


@pytest.mark.parametrize(
    ("handle", "told"),
    [
        (drip, r"no whole reply within 0\.5 s"),
        (compressing, "a compressed reply, which was not asked for"),
        (flooding, "a reply of more than 262144 bytes"),
    ],
)
def test_an_authority_cannot_hold_or_flood_whoever_asks(handle, told):
    from scripts import statements

    with served(handle) as url:
        began = time.monotonic()
        with pytest.raises(
            ValueError, match=rf"^The authority gave no time-stamp; .*\. Expected .*\. Received: {told}$"
        ):
            statements._asked(url, b"request", timeout=0.5)
        assert time.monotonic() - began < 2.5


def test_a_lost_signing_key_is_not_replaced(files):
    from scripts import commit

    commit.run(commit.Config(**settings_of(files)))
    (files / "signing.pem").unlink()
    with pytest.raises(ValueError, match="The signing key of these statements is missing"):
        commit.run(commit.Config(**settings_of(files)))
    assert not (files / "signing.pem").exists()


def test_another_model_is_not_released(files):
    from scripts import commit, release

    commit.run(commit.Config(**settings_of(files)))
    make_model(KEY, names=("renamed", "other")).save(files / "renamed.keras")
    with pytest.raises(ValueError, match=r"Expected the layers that the key names\. Received: .* without \['hidden'\]"):
        release.run(release.Config(**settings_of(files, model=str(files / "renamed.keras"), release_id="1.0")))


def test_programs_end_with_their_statuses(files):
    """In processes of their own, as a person starts them."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def run(program, **flags):
        command = [sys.executable, "-m", f"scripts.{program}", *(f"--{name}={value}" for name, value in flags.items())]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)

    assert run("commit", **settings_of(files, owner_key=str(files / "marked.keras"))).returncode == 1
    process = run("commit", **settings_of(files))
    assert process.returncode == 0 and KEY.commitment() in process.stdout, process.stderr
    (files / "evidence" / "0001.sig").write_bytes(b"")
    asked = {"model": files / "marked.keras", "owner_key": files / "owner.key", "evidence": files / "evidence"}
    process = run("verify", **asked)
    assert process.returncode == 2 and "The signature does not fit." in process.stderr and not process.stdout


def test_a_dump_needs_class_means(files):
    from scripts import verify

    with contextlib.suppress(FileNotFoundError), pytest.raises(ValueError, match="There is nothing to dump"):
        verify.run(verify.Config(str(files / "marked.keras"), str(files / "owner.key"), by="answers", dump="dump.npz"))
