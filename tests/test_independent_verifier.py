"""The second verifier against the package, on random cases: bits, matches, factors, p, and the two commitments."""

import ast
import contextlib
import dataclasses
import datetime
import itertools
import json
import pathlib
import subprocess
import sys
import types
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deepsigns_tf as ds
from deepsigns_tf import verification
from deepsigns_tf.candidates import Candidates, Place
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.commitments import Evidence, Release, Statement, TimeStamp, release_commitment
from scripts.dumps import write_dump
from tests import independent_verifier as second

SOURCE = pathlib.Path(second.__file__)


def test_it_needs_numpy_and_the_standard_library_only():
    tops = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8")))
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert tops - sys.stdlib_module_names == {"numpy"}
    assert "__import__" not in SOURCE.read_text() and "importlib" not in SOURCE.read_text()


def random_key(random):
    """Any key: carriers, classes, projections, inputs of one or several names, a reference or none, triggers or none."""
    carriers = []
    for number in range(random.integers(1, 4)):
        classes = random.permutation(6)[: random.integers(1, 5)].tolist()
        projection = ["balanced", "gaussian"][random.integers(2)]
        num_bits = int(random.integers(1, 12 if random.integers(2) else 40))
        carriers.append(ds.Carrier(f"carrier {number} é", classes, num_bits, "mean", projection))
    rule = ds.DecisionRule(
        alpha=float(2.0 ** -random.integers(64, 100)), alpha_committed=[1e-6, 1e-9][random.integers(2)]
    )
    key = ds.OwnerKey("Öwner 😀", carriers, rule, random.bytes(32))
    if random.integers(2):
        key = dataclasses.replace(key, reference=random.bytes(32).hex())
    dtype = ["float32", "float64", "int16", "uint8", "bool"][random.integers(5)]
    arrays = {name: random.integers(0, 2, (60, 2, 3)).astype(dtype) for name in ("b", "a")[: random.integers(1, 3)]}
    labels, num_per_class = np.arange(60) % 6, int(random.integers(1, 10))
    key = key.with_key_inputs(arrays["b"] if len(arrays) == 1 else arrays, labels, num_per_class)
    if random.integers(2):
        family = ["noise", "tokens"][random.integers(2)]
        dtype = ["int16", "uint8", "int64"][random.integers(3)]
        examples = {name: random.integers(0, 100, (5, 3)).astype(dtype) for name in ("x", "y")[: random.integers(1, 3)]}
        if family == "noise" and random.integers(2):
            examples = {
                name: (array / 7).astype(f"float{32 << random.integers(2)}") for name, array in examples.items()
            }
        key = key.with_triggers(family, 12, 10, examples["x"] if len(examples) == 1 else examples)
        if random.integers(2):
            # Of which some were right already.
            answers = np.where(random.random(12) < 0.2, key.triggers.labels, -1)
            key = dataclasses.replace(key, triggers=key.triggers.selected(answers))
    layers = [
        CarrierLayer(
            carrier.name,
            f"layer {at}",
            int(random.integers(2 * carrier.bits_per_class, 4 * carrier.bits_per_class + 2)),
        )
        for at, carrier in enumerate(carriers)
    ]
    return key.with_layers(layers), labels, num_per_class


def random_means(random, key, layer):
    """Class means that spell the bits with some errors, or nothing; now and then a number that is none."""
    carrier = key.carrier(layer.carrier)
    means = random.normal(size=(len(carrier.classes), layer.num_units))
    kind = random.integers(10)
    if kind >= 2:
        signs = (2.0 * key.signature(layer.carrier) - 1.0) * np.where(
            random.random((len(means), carrier.bits_per_class)) < 0.1 * random.random(), -1, 1
        )
        means = signs @ np.linalg.pinv(key.projection(layer.carrier, layer.num_units)) + 0.05 * means
    if kind == 0:
        means[0, 0] = np.nan
    return means


def random_candidates(random, key):
    candidates = {}
    for layer in key.layers:
        places = [Place(layer.path, 0)] if random.integers(5) else []
        places += [Place(f"other {at}", int(random.integers(2))) for at in range(random.integers(0, 3))]
        order = random.permutation(len(places))
        means = {places[at]: random_means(random, key, layer) for at in order}
        copies = list(means)
        if copies and random.integers(3) == 0:
            # Copies of one output read the same: the tie is decided alike.
            means[Place("copy", 0)] = means[copies[0]].copy()
        if not any(np.isfinite(each).all() for each in means.values()):
            means[Place("finite", 0)] = random.normal(size=(len(key.carrier(layer.carrier).classes), layer.num_units))
        candidates[layer.carrier] = Candidates(means, len(means) + int(random.integers(3)))
    return candidates


def random_chain(random, key):
    """Statements of other seeds before and after that of the key, and releases."""

    def released(layers):
        weights, name = random.bytes(32).hex(), f"release {random.integers(100)}"
        return Release(name, weights, release_commitment(dataclasses.replace(key, layers=layers), weights, name))

    links = [(random.bytes(32).hex(), None) for _ in range(random.integers(0, 4))]
    links.append((key.commitment(), None))
    links += [(random.bytes(32).hex(), None) for _ in range(random.integers(0, 2))]
    links += [(key.commitment(), released(key.layers)) for _ in range(random.integers(0, 3))]
    if len(links) and links[-1][1] is not None and random.integers(4) == 0:
        moved = tuple(dataclasses.replace(layer, path="elsewhere") for layer in key.layers)
        links.append((key.commitment(), released(moved)))
    statements = []
    for number, (commitment, release) in enumerate(links, 1):
        previous = statements[-1].digest() if statements else None
        statements.append(Statement(key.owner, 64 * "1", number, previous, commitment, release))
    return Evidence(tuple(statements))


def dated(evidence):
    """The same chain, all of it stated before the suspect existed."""
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    stamps = {each.number: TimeStamp(moment, "CN=Authority", each.number) for each in evidence.statements}
    return Evidence(evidence.statements, stamps, moment + datetime.timedelta(days=1))


def compare(seed, folder):
    """One random case, read by both."""
    random = np.random.default_rng(seed)
    key, labels, num_per_class = random_key(random)
    candidates = random_candidates(random, key)
    evidence = random_chain(random, key) if random.integers(3) else None
    search, is_dated = bool(random.integers(2)), bool(random.integers(2))
    if evidence is not None and is_dated:
        evidence = dated(evidence)
    key.save(folder / "owner.key")
    write_dump(folder / "dump.npz", candidates)
    chain = None
    if evidence is not None:
        chain = folder / "evidence"
        chain.mkdir(exist_ok=True)
        for each in chain.iterdir():
            each.unlink()
        for statement in evidence.statements:
            (chain / f"{statement.number:04d}.json").write_bytes(statement.encode())
    suspect = types.SimpleNamespace(caveats=(), digest_of_weights=lambda: 64 * "0")
    with mock.patch.object(verification, "candidate_means", lambda model, owner_key: candidates):
        verdict = ds.verify(suspect, key, evidence=evidence, search=search)
    found = second.verify(folder / "owner.key", folder / "dump.npz", chain, is_dated, search)

    assert (found["num_bits"], found["num_matches"]) == (verdict.num_bits, verdict.num_matches)
    assert found["factor"] == verdict.num_assignments * verdict.seed_factor * verdict.num_tests
    assert found["log10_p"] == pytest.approx(verdict.log10_p_hard, rel=1e-12, abs=1e-12)
    assert found["marked"] == verdict.marked
    for reading in verdict.readings:
        place, matches = found["readings"][reading.carrier]
        assert str(Place(*place)) == reading.layer
        np.testing.assert_array_equal(matches, reading.matches)
    if key.triggers is not None:
        answers = np.where(random.random(key.triggers.num_examples) < 0.3, 0, key.triggers.labels)
        by_answers = ds.verify_predictions(answers, key, evidence=evidence)
        number = 0 if by_answers.opened is None else by_answers.opened.num_seeds
        num_matches, log10_p = second.verify_answers(folder / "owner.key", answers, number)
        assert num_matches == by_answers.num_matches
        assert log10_p == pytest.approx(by_answers.log10_p_value, rel=1e-12, abs=1e-12)
    opened = second.read_key(folder / "owner.key")
    assert second.c1(opened) == key.commitment()
    assert second.c2(opened, 64 * "a", "é") == release_commitment(key, 64 * "a", "é")
    for layer in key.layers:
        np.testing.assert_array_equal(second.signature(opened, layer.carrier), key.signature(layer.carrier))
        np.testing.assert_array_equal(
            second.projection(opened, layer.carrier, layer.num_units), key.projection(layer.carrier, layer.num_units)
        )
    chosen = second.choose_key_inputs(opened, labels.tolist(), num_per_class)
    np.testing.assert_array_equal(labels[chosen], key.key_inputs.labels)
    return verdict


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**64 - 1))
def test_the_two_agree(tmp_path, seed):
    compare(seed, tmp_path)


def test_the_cases_are_of_all_kinds(tmp_path):
    """Else agreement would mean little."""
    verdicts = [compare(seed, tmp_path) for seed in range(100)]
    kinds = {
        (verdict.marked, verdict.committed, verdict.num_assignments == 1, len(verdict.readings) > 1)
        for verdict in verdicts
    }
    assert {kind[:2] for kind in kinds} >= set(itertools.product((False, True), (False, True)))
    assert {kind[2] for kind in kinds} == {kind[3] for kind in kinds} == {False, True}
    assert len({verdict.seed_factor for verdict in verdicts}) >= 4


@pytest.mark.slow
@settings(deadline=None, max_examples=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**64 - 1))
def test_the_two_agree_on_ten_thousand_cases(tmp_path, seed):
    compare(seed, tmp_path)


def test_the_choice_of_key_inputs(tmp_path):
    inputs, labels = np.arange(200.0).reshape(100, 2), np.random.default_rng(0).integers(0, 5, 100) - 1
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", [3, 0, 2], 32)]).with_key_inputs(
        inputs, labels, 7
    )
    key.save(tmp_path / "owner.key")
    rows = second.choose_key_inputs(second.read_key(tmp_path / "owner.key"), labels.tolist(), 7)
    np.testing.assert_array_equal(inputs[rows], key.key_inputs.inputs)


@pytest.mark.parametrize("num_bits", [1, 16, 640, 2000])
def test_tails_of_large_marks(num_bits):
    from deepsigns_tf.statistics import binomial_log10_tail

    for num_matches in {0, 1, num_bits // 2, num_bits - 1, num_bits}:
        expected = binomial_log10_tail(num_matches, num_bits)
        assert second.log10_tail(num_matches, num_bits, 1) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("where", ["chain", "key"])
def test_what_was_altered_is_refused(tmp_path, where):
    random = np.random.default_rng(0)
    key = random_key(random)[0]
    key.save(tmp_path / "owner.key")
    evidence = Evidence((Statement(key.owner, 64 * "1", 1, None, key.commitment()),))
    (tmp_path / "0001.json").write_bytes(evidence.statements[0].encode())
    assert second.opened(second.read_chain(tmp_path), second.read_key(tmp_path / "owner.key")) == (1, False)
    path = tmp_path / {"chain": "0001.json", "key": "owner.key"}[where]
    path.write_bytes(path.read_bytes().replace(b"ACME", b"acme")[:-1] + b" ")
    with pytest.raises((AssertionError, ValueError)):
        second.opened(second.read_chain(tmp_path), second.read_key(tmp_path / "owner.key"))


@pytest.mark.parametrize("change", [{"version": True}, {"version": 1.0}, {"release": None}, {"more": 1}])
def test_another_writing_of_a_statement_is_refused(tmp_path, change):
    value = json.loads(Statement("ACME", 64 * "1", 1, None, 64 * "a").encode())
    for each, refused in ((value, False), (value | change, True)):
        (tmp_path / "0001.json").write_text(second.canonical(each))
        with pytest.raises((AssertionError, AttributeError)) if refused else contextlib.nullcontext():
            second.read_chain(tmp_path)


@pytest.mark.parametrize("changes", [{"num_units": 10**9}, {"bits_per_class": 10**9}])
def test_what_a_made_up_key_asks_for_is_not_derived(tmp_path, changes):
    """It would take hours."""
    random = np.random.default_rng(1)
    key = random_key(random)[0]
    write_dump(tmp_path / "dump.npz", random_candidates(random, key))
    carriers = tuple(
        dataclasses.replace(each, **changes) if "bits_per_class" in changes else each for each in key.carriers
    )
    layers = tuple(dataclasses.replace(each, **changes) if "num_units" in changes else each for each in key.layers)
    dataclasses.replace(key, carriers=carriers, layers=layers).save(tmp_path / "owner.key")
    with pytest.raises(ValueError, match=r"^There is nothing to judge by\. Expected .* Received: AssertionError"):
        second.verify(tmp_path / "owner.key", tmp_path / "dump.npz")


def test_it_is_a_program(tmp_path):
    random = np.random.default_rng(1)
    key = random_key(random)[0]
    key.save(tmp_path / "owner.key")
    write_dump(tmp_path / "dump.npz", random_candidates(random, key))
    command = [sys.executable, "-I", str(SOURCE), str(tmp_path / "owner.key"), str(tmp_path / "dump.npz")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"of {key.num_bits} bits match, p = 10^" in printed and "MARKED" in printed


@pytest.mark.parametrize("family", ["noise", "tokens"])
def test_trigger_inputs_that_somebody_picked_are_refused_by_both(tmp_path, family):
    key = ds.OwnerKey("ACME Vision", [], ds.DecisionRule(), bytes(32))
    key = key.with_triggers(family, 40, 10, np.arange(12).reshape(4, 3))
    picked = dataclasses.replace(key.triggers, inputs=key.triggers.inputs[::-1])
    path = tmp_path / "owner.key"
    key.save(path)
    assert second.verify_answers(path, key.triggers.labels)[0] == 40
    dataclasses.replace(key, triggers=picked).save(path)
    with pytest.raises(ValueError, match="other inputs"):
        second.verify_answers(path, key.triggers.labels)
    with pytest.raises(ValueError, match="Received: other inputs"):
        ds.verify_predictions(key.triggers.labels, ds.OwnerKey.load(path))


@pytest.mark.parametrize("ends", [(-3, 5), (5, 5), (1.5, 5.5)])
def test_tokens_of_no_vocabulary_are_refused_by_both(tmp_path, ends):
    """As whoever draws the inputs would draw them from such a basis."""
    key = ds.OwnerKey("ACME Vision", [], ds.DecisionRule(), bytes(32))
    key = key.with_triggers("tokens", 40, 10, np.arange(1, 13).reshape(2, 6))
    low, high = ends
    domain, num = ("trigger inputs", "ACME Vision", 1, 40, "tokens", ""), 40 * 6
    if isinstance(low, int):
        drawn = low + np.array(second.integers(bytes(32), domain, num, high - low + 1))
    else:
        drawn = low + (high - low) * np.array(
            [(word >> 11) * 2.0**-53 for word in second.words(bytes(32), domain, num)]
        )
    basis = np.repeat(np.array(ends)[:, None], 6, axis=1)
    triggers = dataclasses.replace(key.triggers, inputs=drawn.reshape(40, 6), basis=basis)
    path = tmp_path / "owner.key"
    dataclasses.replace(key, triggers=triggers).save(path)
    with pytest.raises(ValueError, match="There is nothing to judge by"):
        second.verify_answers(path, key.triggers.labels)
    with pytest.raises(ValueError, match="These examples are no token strings"):
        ds.verify_predictions(key.triggers.labels, ds.OwnerKey.load(path))
