"""Statements, their chain, and what they say about the key that opens them."""

import dataclasses
import datetime
import json
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsigns_tf import Carrier, DecisionRule, OwnerKey
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.commitments import Evidence, Release, Statement, TimeStamp, release_commitment
from deepsigns_tf.owner_key import KeyInputs
from deepsigns_tf.statistics import factor_of_nth

SEED = bytes(range(32))
PUBLIC_KEY = 64 * "1"
WEIGHTS = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
STAMP = TimeStamp(datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "CN=Authority", 7)
LATER = STAMP.time + datetime.timedelta(days=1)


def make_key(seed=SEED, layers=(CarrierLayer("features", "hidden", 128),), **changes):
    """The key of the example in docs/evidence-format.md."""
    inputs = KeyInputs(np.arange(8, dtype=np.float32).reshape(4, 2), np.array([0, 1, 0, 1]))
    parts = {"owner": "ACME Vision", "carriers": (Carrier("features", [0, 1], 32),), "decision": DecisionRule()}
    return OwnerKey(**(parts | {"seed": seed, "key_inputs": inputs, "layers": layers} | changes))


KEY = make_key()
OTHERS = [make_key(bytes([number]) * 32) for number in range(3)]


def chain_of(*links):
    """A chain of commitments to keys, or of (key, release id, weights)."""
    statements = []
    for link in links:
        key, *released = link if isinstance(link, tuple) else (link,)
        release = None
        if released:
            release = Release(*released, release_commitment(key, released[1], released[0]))
        previous = statements[-1].digest() if statements else None
        number = len(statements) + 1
        statements.append(Statement("ACME Vision", PUBLIC_KEY, number, previous, key.commitment(), release))
    return tuple(statements)


# What is specified


def vectors():
    """The table of docs/evidence-format.md."""
    page = pathlib.Path(__file__).parents[1].joinpath("docs", "evidence-format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| `(.+)` \|$", page.partition("<!-- vectors -->")[2], flags=re.MULTILINE)
    assert len(rows) == 13
    return rows


def test_the_vectors_of_the_specification():
    """They are published: keys and statements in the field depend on them. Never change them."""
    signatures = pytest.importorskip("deepsigns_tf.signatures", reason="needs `deepsigns_tf[evidence]`")
    signing_key = signatures.SigningKey(bytes(range(32, 64)))
    c2 = release_commitment(KEY, WEIGHTS, "1.0")
    first = Statement("ACME Vision", signing_key.public_key, 1, None, KEY.commitment())
    second = Statement(
        "ACME Vision", signing_key.public_key, 2, first.digest(), KEY.commitment(), Release("1.0", WEIGHTS, c2)
    )
    values = {what: value for what, value in vectors() if what != "its SHA-256"}
    assert [value for what, value in vectors() if what == "its SHA-256"] == [first.digest(), second.digest()]
    assert values.pop("hash of the key inputs") == KEY.key_inputs.digest()
    assert values.pop("C1") == KEY.commitment() and values.pop("C2") == c2
    assert values.pop("weights") == WEIGHTS and values.pop("public key") == signing_key.public_key
    for name, statement in (("0001", first), ("0002", second)):
        assert values.pop(f"`{name}.json`") == statement.encode().decode()
        assert values.pop(f"`{name}.sig`") == signing_key.sign(statement.encode()).hex()
    # What C1 and C2 are hashes of; the second verifier makes them from these.
    assert json.loads(values.pop("S of C1"))["key_inputs"] == KEY.key_inputs.digest()
    assert json.loads(values.pop("S of C2"))["commitment"] == KEY.commitment()
    assert not values


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": bytes(32)},
        {"layers": (CarrierLayer("features", "hidden2", 128),)},
        {"layers": (CarrierLayer("features", "hidden", 127),)},
        {"owner": "ACME"},
        {"decision": DecisionRule("soft")},
    ],
)
def test_everything_changes_what_is_stated_before_a_release(changes):
    assert release_commitment(make_key(**changes), WEIGHTS, "1.0") != release_commitment(KEY, WEIGHTS, "1.0")


def test_weights_and_name_do_so_too_and_the_order_of_layers_does_not():
    digests = {release_commitment(KEY, weights, name) for weights in (WEIGHTS, 64 * "a") for name in ("1.0", "1.1")}
    assert len(digests) == 4
    carriers = (Carrier("a", [0, 1], 32), Carrier("b", [0, 1], 32))
    layers = (CarrierLayer("a", "one", 128), CarrierLayer("b", "two", 128))
    one, other = (make_key(carriers=carriers, layers=each) for each in (layers, layers[::-1]))
    assert release_commitment(one, WEIGHTS, "1.0") == release_commitment(other, WEIGHTS, "1.0")


def test_a_key_that_does_not_know_its_layers_cannot_release():
    with pytest.raises(
        ValueError, match="This key does not know where its mark is yet. Expected the key that `release` returned."
    ):
        release_commitment(make_key(layers=()), WEIGHTS, "1.0")


# Statements

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
STATEMENTS = st.integers(1, 2**53 - 1).flatmap(
    lambda number: st.builds(
        Statement,
        NAMES,
        DIGESTS,
        st.just(number),
        st.none() if number == 1 else DIGESTS,
        DIGESTS,
        st.none() | st.builds(Release, NAMES, DIGESTS, DIGESTS),
    )
)


@settings(deadline=None, max_examples=300)
@given(STATEMENTS)
def test_a_statement_is_its_bytes(statement):
    assert Statement.decode(statement.encode()) == statement


@settings(deadline=None, max_examples=300)
@given(STATEMENTS, st.data())
def test_altered_bytes_are_another_statement_or_refused(statement, data):
    altered = bytearray(statement.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Statement.decode(bytes(altered))
    except ValueError as error:
        assert " Expected " in str(error) and " Received: " in str(error)
    else:
        assert found.encode() == bytes(altered) and (found == statement) == (bytes(altered) == statement.encode())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"owner": ""}, "Expected the name of an owner and a number from 1"),
        ({"owner": 3}, "Expected the name of an owner"),
        ({"number": 0}, "Expected the name of an owner and a number from 1"),
        ({"number": True}, "a number from 1"),
        ({"number": 1.0}, "a number from 1"),
        ({"public_key": 64 * "A"}, "Expected a public key and a commitment of 64 hexadecimal digits"),
        ({"commitment": 63 * "a"}, "Expected a public key and a commitment of 64 hexadecimal digits"),
        ({"commitment": None}, "Expected a public key and a commitment of 64 hexadecimal digits"),
        ({"previous": 64 * "a"}, "Expected the hash of the statement before, and none for the first"),
        ({"number": 2}, "Expected the hash of the statement before, and none for the first"),
        ({"version": 2}, "This is not a statement that this release can read."),
        ({"format": "other"}, "This is not a statement that this release can read."),
        ({"kind": "release"}, "This is not a statement that this release can read."),
        ({"more": 1}, "This is not a statement that this release can read."),
        ({"kind": "release", "release": 1}, "A release is malformed. Expected id, weights and digest."),
        (
            {"kind": "release", "release": {"id": "1", "weights": WEIGHTS}},
            "A release is malformed. Expected id, weights and digest.",
        ),
        ({"version": True}, "This is another writing of a statement. Expected an integer as version"),
        ({"version": 1.0}, "This is another writing of a statement. Expected an integer as version"),
        (
            {"release": None},
            "This is another writing of a statement. Expected an integer as version, and a release only where",
        ),
        (
            {"kind": "release", "release": {"id": "", "weights": WEIGHTS, "digest": WEIGHTS}},
            "A release is malformed. Expected a name,",
        ),
    ],
)
def test_statements_that_are_none(changes, told):
    value = json.loads(chain_of(KEY)[0].encode()) | changes
    with pytest.raises(ValueError, match=re.escape(told)):
        Statement.decode(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("data", [b"[]", b"null", b'"x"', b"x", b"{}", b" " * 70_000])
def test_bytes_that_are_no_statement(data):
    with pytest.raises(ValueError, match=r" Expected .* Received: "):
        Statement.decode(data)


# The chain


def test_a_chain_opens_for_the_keys_that_it_commits_to():
    chain = chain_of(OTHERS[0], KEY, OTHERS[1], (KEY, "1.0", WEIGHTS), OTHERS[2])
    evidence = Evidence(chain, {2: STAMP, 4: dataclasses.replace(STAMP, serial_number=8)}, LATER)
    opened = evidence.opened_by(KEY)
    assert (opened.statement, opened.num_seeds, opened.factor) == (chain[1], 2, 6)
    assert opened.time_stamp == STAMP and opened.release_time_stamp.serial_number == 8
    assert opened.releases == ("1.0",) and opened.layers_committed
    assert [evidence.opened_by(other).num_seeds for other in OTHERS] == [1, 3, 4]
    assert not evidence.opened_by(OTHERS[0]).layers_committed


def test_a_time_stamp_dates_what_was_stated_before_too():
    chain = chain_of(OTHERS[0], KEY, (KEY, "1.0", WEIGHTS), OTHERS[1], OTHERS[2])
    earlier = dataclasses.replace(STAMP, time=STAMP.time - datetime.timedelta(hours=1))
    opened = [Evidence(chain, {2: STAMP, 4: earlier}, LATER).opened_by(key) for key in (OTHERS[0], KEY, *OTHERS[1:])]
    assert [each.time_stamp for each in opened] == [earlier, earlier, earlier, None]
    assert opened[1].release_time_stamp == earlier and opened[1].layers_committed
    assert [each.committed for each in opened] == [True, True, True, False]


def test_the_same_commitment_stated_twice_is_one_seed():
    opened = Evidence(chain_of(OTHERS[0], OTHERS[0], (OTHERS[0], "1.0", WEIGHTS), KEY)).opened_by(KEY)
    assert (opened.num_seeds, opened.statement.number) == (2, 4)
    assert Evidence(chain_of(KEY, OTHERS[0], KEY)).opened_by(KEY).num_seeds == 1


def test_all_seeds_of_a_chain_together_err_no_more_often_than_one():
    assert sum(1 / factor_of_nth(number) for number in range(1, 10_000)) < 1
    assert sum(1 / factor_of_nth(number) for number in range(1, 10_000)) > 0.9998
    with pytest.raises(ValueError, match="Expected number >= 1. Received: number=0"):
        factor_of_nth(0)


def broken(change):
    statements = list(chain_of(OTHERS[0], KEY, (KEY, "1.0", WEIGHTS)))
    change(statements)
    return lambda: Evidence(tuple(statements))


def replaced(at, **changes):
    def change(statements):
        statements[at] = dataclasses.replace(statements[at], **changes)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (list.clear, "This evidence is empty. Expected at least one statement."),
        (
            lambda statements: statements.pop(0),
            "Statement 1 does not follow the one before. Expected number 1 and the hash None",
        ),
        (lambda statements: statements.pop(1), "Statement 2 does not follow the one before. Expected number 2"),
        (list.reverse, "Statement 1 does not follow the one before."),
        (
            replaced(0, commitment=64 * "a"),
            "Statement 2 does not follow the one before. Expected number 2 and the hash",
        ),
        (replaced(1, previous=64 * "a"), "Statement 2 does not follow the one before."),
        (
            replaced(2, owner="Thief"),
            "Statement 3 is somebody else's. Expected the owner and the public key of the first one,",
        ),
        (replaced(2, public_key=64 * "2"), "Statement 3 is somebody else's."),
        (replaced(2, commitment=64 * "a"), "Statement 3 releases what was not committed to."),
    ],
)
def test_a_broken_chain_is_refused(change, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        broken(change)()


def test_evidence_of_another_key_is_refused():
    evidence = Evidence(chain_of(OTHERS[0], OTHERS[1]))
    with pytest.raises(ValueError) as error:
        evidence.opened_by(KEY)
    assert str(error.value) == (
        "The evidence is not this key's. Expected a statement that commits to the key, made before marking. "
        f"Received: 2 statements without its commitment {KEY.commitment()}"
    )
    with pytest.raises(ValueError, match="Expected statements of 'ACME'. Received: those of 'ACME Vision'"):
        evidence.opened_by(make_key(owner="ACME"))


def test_layers_that_were_not_released_are_refused():
    """Whoever looks for a better layer afterwards cannot open what was stated."""
    evidence = Evidence(chain_of(KEY, (KEY, "1.0", WEIGHTS)))
    with pytest.raises(
        ValueError, match="The releases that were stated are not those of this key. Expected the carrier-to-layer map"
    ):
        evidence.opened_by(make_key(layers=[CarrierLayer("features", "other", 128)]))
    # A copy of the key from before the release has no layers to hold against it.
    opened = evidence.opened_by(make_key(layers=()))
    assert not opened.layers_committed and opened.num_other_maps == 1


def test_several_maps_are_no_committed_map():
    """Else one could state a map for each layer, and choose afterwards."""
    moved = make_key(layers=[CarrierLayer("features", "other", 128)])
    evidence = Evidence(chain_of(KEY, (KEY, "1.0", WEIGHTS), (moved, "2.0", WEIGHTS)))
    for key, name in ((KEY, "1.0"), (moved, "2.0")):
        opened = evidence.opened_by(key)
        assert opened.releases == (name,) and opened.num_other_maps == 1 and not opened.layers_committed
        assert any("no map counts as committed" in line for line in opened.in_words())
    # The same map with other weights is the same map.
    again = Evidence(chain_of(KEY, (KEY, "1.0", WEIGHTS), (KEY, "1.1", 64 * "a")), {2: STAMP}, LATER).opened_by(KEY)
    assert again.layers_committed and again.releases == ("1.0", "1.1")


def test_a_mark_in_the_answers_alone_has_no_layers_to_open():
    key = OwnerKey.generate("ACME Vision").with_triggers("noise", 50, 10, np.random.default_rng(0).random((4, 8)))
    evidence = Evidence(chain_of(key, (key, "1.0", WEIGHTS)))
    assert evidence.opened_by(key).releases == ("1.0",)


def test_what_is_said_of_it():
    stamped = Evidence(chain_of(KEY, (KEY, "1.0", WEIGHTS)), {1: STAMP, 2: STAMP}, LATER).opened_by(KEY)
    text = "\n".join(stamped.in_words())
    assert "it existed on 2026-01-02 03:04:05 UTC by the time-stamp of CN=Authority" in text
    assert "it is commitment 1 of that signing key" in text and "p was multiplied by 2" in text
    assert "that signing key is the claimant's, who holds no other" in text
    assert "the carrier-to-layer map was stated before release '1.0', by 2026-01-02" in text
    plain = "\n".join(Evidence(chain_of(KEY)).opened_by(KEY).in_words())
    assert "no time-stamp of it was checked, so it may be younger than the suspect" in plain and "map" not in plain
    report = stamped.to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["time"] == "2026-01-02T03:04:05+00:00" and report["factor"] == 2 and report["layers_committed"]
