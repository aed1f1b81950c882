"""The owner key: what it refuses, what follows from its seed, what it publishes, and its file."""

import base64
import copy
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import pickle
import stat
import tracemalloc
import warnings
import zipfile

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

from deepsigns_tf import Carrier, DecisionRule, OwnerKey, SignatureRegularizer, key_files
from deepsigns_tf.activations import class_membership
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.files import file_digest
from deepsigns_tf.owner_key import KeyInputs

SEED = bytes(range(32))
MAGIC = b"deepsigns_tf owner key\n"
LAYERS = [CarrierLayer("features", "hidden", 128)]
_INPUTS = np.arange(8, dtype=np.float32).reshape(4, 2)


def make_key(**changes):
    """64 bits in two classes under a known seed; no key inputs."""
    parts = {
        "owner": "ACME Vision",
        "carriers": (Carrier("features", [0, 1], 32),),
        "decision": DecisionRule(),
        "seed": SEED,
    }
    return OwnerKey(**(parts | changes))


def make_key_with_inputs(**changes):
    """The same with four key inputs that are written here in full."""
    inputs = np.arange(8, dtype=np.float32).reshape(4, 2)
    return make_key(key_inputs=KeyInputs(inputs, np.array([0, 1, 0, 1])), **changes)


def numbered(num_examples, shape=(), dtype=np.float32):
    """Examples that hold nothing but their own number."""
    rows = np.arange(num_examples, dtype=dtype).reshape(num_examples, *([1] * len(shape)))
    return np.broadcast_to(rows, (num_examples, *shape)).copy()


def assert_same_key(one, other):
    assert other.owner == one.owner
    assert other.carriers == one.carriers
    assert other.decision == one.decision
    assert other.seed == one.seed
    assert other.layers == one.layers
    assert other.fingerprint == one.fingerprint
    assert (other.key_inputs is None) == (one.key_inputs is None)
    if one.key_inputs is not None:
        assert type(other.key_inputs.inputs) is type(one.key_inputs.inputs)
        assert list(other.key_inputs.arrays) == list(one.key_inputs.arrays)
        for name, array in one.key_inputs.arrays.items():
            assert other.key_inputs.arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(other.key_inputs.arrays[name], array)
        np.testing.assert_array_equal(other.key_inputs.labels, one.key_inputs.labels)
        assert other.commitment() == one.commitment()


# Refusals


@pytest.mark.parametrize("name", ["", "a/b", None, 3, "\ud800"])
def test_carrier_refuses_a_bad_name(name):
    with pytest.raises(ValueError) as error:
        Carrier(name, [0], 32)
    assert str(error.value) == (
        f"Invalid value for argument `name`. Expected a non-empty text without '/'. Received: name={name!r}"
    )


@pytest.mark.parametrize("classes", [[], [-1], [0, -1], [True], [0.0], ["0"], [None], [2**24], [0, 2**31], [2**64]])
def test_carrier_refuses_bad_classes(classes):
    with pytest.raises(ValueError) as error:
        Carrier("features", classes, 32)
    assert str(error.value) == (
        "Invalid value for argument `classes`. Expected at least one class label, each an integer in [0, 2^24). "
        f"Received: classes={classes}"
    )


@pytest.mark.any_backend
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_the_largest_class_is_told_from_its_neighbours_in_every_type_of_label(dtype):
    """As int32 a label of 2^32 + 3 would be 3, as float32 one of 2^24 + 1 would be 2^24."""
    (largest,) = Carrier("features", [2**24 - 1], 32).classes
    labels = np.array([largest - 1, largest, largest + 1], dtype)
    assert keras.ops.convert_to_numpy(class_membership(labels, [largest])).tolist() == [[0.0, 1.0, 0.0]]


def test_carrier_refuses_a_class_that_stands_twice():
    with pytest.raises(ValueError) as error:
        Carrier("features", [0, 1, 0], 32)
    assert str(error.value) == (
        "Invalid value for argument `classes`. Expected each class once. Received: classes=[0, 1, 0]"
    )


@pytest.mark.parametrize("bits", [0, -1, 1.5, 32.0, True, "32", None])
def test_carrier_refuses_a_bad_number_of_bits(bits):
    with pytest.raises(ValueError) as error:
        Carrier("features", [0], bits)
    assert str(error.value) == (
        "Invalid value for argument `bits_per_class`. Expected an integer >= 1. " + f"Received: bits_per_class={bits!r}"
    )


@pytest.mark.parametrize("pooling", ["max", "", None])
def test_carrier_refuses_an_unknown_pooling(pooling):
    with pytest.raises(ValueError) as error:
        Carrier("features", [0], 32, pooling=pooling)
    assert str(error.value) == (
        f'Invalid value for argument `pooling`. Expected "mean" or "flatten". Received: pooling={pooling!r}'
    )


@pytest.mark.parametrize("projection", ["uniform", "", None])
def test_carrier_refuses_an_unknown_projection(projection):
    with pytest.raises(ValueError) as error:
        Carrier("features", [0], 32, projection=projection)
    assert str(error.value) == (
        'Invalid value for argument `projection`. Expected "balanced" or "gaussian". '
        f"Received: projection={projection!r}"
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(range(3), [0, 1, 2]), ((2, 0, 1), [2, 0, 1]), (np.arange(3), [0, 1, 2]), (iter([0, 1, 2]), [0, 1, 2])],
)
def test_carrier_takes_any_sequence_of_integers_in_its_order(classes, expected):
    """And holds plain integers, which JSON can write."""
    carrier = Carrier("features", classes, np.int64(8))
    assert carrier.classes == tuple(expected)
    assert json.loads(json.dumps(carrier.to_dict())) == {
        "name": "features",
        "classes": expected,
        "bits_per_class": 8,
        "pooling": "mean",
        "projection": "balanced",
    }


@pytest.mark.parametrize("num_units", [1, 31, 32])
def test_layer_with_no_more_features_than_bits_is_refused(num_units):
    for refuse in (make_key().carriers[0].check_num_units, lambda width: make_key().projection("features", width)):
        with pytest.raises(ValueError) as error:
            refuse(num_units)
        assert str(error.value) == (
            "Carrier 'features' asks for too many bits per class. Expected fewer bits than the layer has features, "
            f"better at most half as many. Received: bits_per_class=32, num_units={num_units}"
        )


@pytest.mark.parametrize("num_units", [33, 63])
def test_layer_with_less_than_twice_as_many_features_as_bits_warns(num_units):
    with pytest.warns(UserWarning) as caught:
        make_key().carriers[0].check_num_units(num_units)
    assert [str(each.message) for each in caught] == [
        f"Carrier 'features' puts 32 bits per class into {num_units} features; above half as many bits as features "
        "a mark gets hard to embed and to keep."
    ]
    with pytest.warns(UserWarning, match="hard to embed"):
        assert make_key().projection("features", num_units).shape == (num_units, 32)


@pytest.mark.parametrize("num_units", [64, 1000])
def test_layer_with_twice_as_many_features_as_bits_does_not_warn(num_units):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_key().carriers[0].check_num_units(num_units)
    assert caught == []


@pytest.mark.parametrize("owner", ["", None, 3, "ACME \udfff"])
def test_key_refuses_a_bad_owner(owner):
    with pytest.raises(ValueError) as error:
        make_key(owner=owner)
    assert str(error.value) == (
        f"Invalid value for argument `owner`. Expected a non-empty text. Received: owner={owner!r}"
    )


@pytest.mark.parametrize("names", [["features", "features"], ["a", "b", "a"]])
def test_key_refuses_names_that_repeat(names):
    with pytest.raises(ValueError) as error:
        make_key(carriers=[Carrier(name, [0], 64) for name in names])
    assert str(error.value) == (
        "Invalid value for argument `carriers`. Expected each carrier to have a name of its own. "
        f"Received: names={names}"
    )


@pytest.mark.parametrize(
    ("argument", "value", "expected", "received"),
    [
        ("carriers", ["features"], "a sequence of Carrier", "['str']"),
        ("carriers", "ab", "a sequence of Carrier", "['str', 'str']"),
        ("carriers", [Carrier("features", [0], 64), None], "a sequence of Carrier", "['Carrier', 'NoneType']"),
        ("carriers", Carrier("features", [0], 64), "a sequence of Carrier", "a Carrier"),
        ("layers", ["hidden"], "a sequence of CarrierLayer", "['str']"),
        ("layers", 3, "a sequence of CarrierLayer", "a int"),
        ("decision", "hard", "a DecisionRule", "a str"),
        ("decision", {"test": "hard"}, "a DecisionRule", "a dict"),
        ("key_inputs", _INPUTS, "KeyInputs or None", "a ndarray"),
        ("key_inputs", (), "KeyInputs or None", "a tuple"),
    ],
)
def test_key_refuses_parts_of_another_type(argument, value, expected, received):
    with pytest.raises(ValueError) as error:
        make_key(**{argument: value})
    assert str(error.value) == (f"Invalid value for argument `{argument}`. Expected {expected}. Received: {received}")


def test_generating_a_key_refuses_parts_of_another_type():
    for generate in (
        lambda: OwnerKey.generate("ACME Vision", ["features"]),
        lambda: OwnerKey.generate("ACME Vision", Carrier("features", [0], 64)),
        lambda: OwnerKey.generate("ACME Vision", [Carrier("features", [0], 64)], decision="hard"),
    ):
        with pytest.raises(ValueError, match="^Invalid value for argument `(carriers|decision)`. Expected a "):
            generate()


@pytest.mark.parametrize(("labels", "missing"), [([0, 0, 0, 0], [1]), ([1, -1, 7, 1], [0]), ([-1, -1, 7, 7], [0, 1])])
def test_key_refuses_key_inputs_without_an_example_of_a_class(labels, missing):
    """Its mean would be 0 / 0 when the mark is read."""
    with pytest.raises(ValueError) as error:
        make_key(key_inputs=KeyInputs(_INPUTS, labels))
    assert str(error.value) == (
        "The key inputs do not fit the carriers. Expected an example of each carrier class. "
        f"Received: none of the classes {missing}"
    )


@pytest.mark.parametrize("seed", [SEED[:-1], SEED + b"\x20", b"", bytearray(SEED), SEED.hex(), None])
def test_key_refuses_a_bad_seed_without_showing_it(seed):
    with pytest.raises(ValueError) as error:
        make_key(seed=seed)
    assert str(error.value) == (
        "The seed of an owner key is malformed. Expected 32 bytes from the operating system. "
        "Received: something else, not shown here"
    )


@pytest.mark.parametrize("carried", [["other"], ["features", "features"], ["features", "other"]])
def test_key_refuses_layers_that_do_not_fit_the_carriers(carried):
    with pytest.raises(ValueError) as error:
        make_key().with_layers(CarrierLayer(name, "hidden", 128) for name in carried)
    assert str(error.value) == (
        "The layers do not fit the carriers. Expected one layer for each carrier. "
        f"Received: carriers=['features'], layers for {carried}"
    )


@pytest.mark.parametrize(
    "parts", [(3, "hidden", 128), ("features", None, 128), ("features", "hidden", "128"), ("features", "hidden", True)]
)
def test_layer_refuses_parts_of_the_wrong_kind(parts):
    with pytest.raises(ValueError) as error:
        CarrierLayer(*parts)
    assert str(error.value) == (
        "A carrier layer is malformed. Expected two strings and an integer. "
        f"Received: carrier={parts[0]!r}, path={parts[1]!r}, num_units={parts[2]!r}"
    )


def test_key_names_the_carriers_it_has_when_asked_for_another():
    for ask in (make_key().carrier, make_key().signature, lambda name: make_key().projection(name, 512)):
        with pytest.raises(ValueError) as error:
            ask("other")
        assert str(error.value) == (
            "This key has no such carrier. Expected one of ['features']. Received: carrier='other'"
        )


@pytest.mark.parametrize(
    ("inputs", "received"),
    [
        (np.zeros((0, 3)), "shape (0, 3), dtype float64"),
        ([], "shape (0,), dtype float64"),
        (3.0, "shape (), dtype float64"),
        (None, "shape (), dtype object"),
        (np.array(["a", "b"]), "shape (2,), dtype <U1"),
        (np.array([object(), object()]), "shape (2,), dtype object"),
        (np.zeros(2, np.complex64), "shape (2,), dtype complex64"),
        ({"a": np.zeros((0, 3))}, "shape (0, 3), dtype float64"),
    ],
)
def test_key_inputs_refuse_what_is_not_a_filled_array_of_numbers(inputs, received):
    for argument, refuse in (
        ("x", lambda: make_key().with_key_inputs(inputs, np.zeros(2, int))),
        ("inputs", lambda: KeyInputs(inputs, np.zeros(2, int))),
    ):
        with pytest.raises(ValueError) as error:
            refuse()
        assert str(error.value) == (
            f"Invalid value for argument `{argument}`. Expected a non-empty array of numbers, one row per example. "
            f"Received: {received}"
        )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("in_dict", [False, True])
def test_key_inputs_refuse_numbers_that_are_not_finite(dtype, in_dict):
    x = np.zeros((4, 3), dtype)
    x[0, 0], x[1, 1], x[2, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError) as error:
        make_key().with_key_inputs({"a": x} if in_dict else x, np.zeros(4, int))
    assert str(error.value) == (
        "Invalid value for argument `x`. Expected finite numbers. Received: 3 values that are not finite"
    )


@pytest.mark.parametrize("kind", [list, tuple])
def test_key_inputs_refuse_a_list_of_arrays(kind):
    with pytest.raises(ValueError) as error:
        make_key().with_key_inputs(kind([np.zeros((4, 2)), np.zeros((4, 3))]), np.zeros(4, int))
    assert str(error.value) == (
        "Invalid value for argument `x`. Expected one array or a dict of arrays by input name. "
        f"Received: a {kind.__name__} of arrays"
    )


@pytest.mark.parametrize(
    ("inputs", "shapes"),
    [
        ({}, "{}"),
        ({"a": np.zeros((4, 2)), "b": np.zeros((3, 2))}, "{'a': (4, 2), 'b': (3, 2)}"),
    ],
)
def test_key_inputs_refuse_a_dict_without_rows_in_common(inputs, shapes):
    with pytest.raises(ValueError) as error:
        make_key().with_key_inputs(inputs, np.zeros(4, int))
    assert str(error.value) == (
        "Invalid value for argument `x`. Expected a dict of arrays with one row per example each. "
        f"Received: shapes {shapes}"
    )


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.zeros((4, 1), int), id="column"),
        pytest.param(np.zeros((4, 2)), id="one-hot rows"),
        pytest.param(np.zeros(3, int), id="too few"),
        pytest.param(np.zeros(5, int), id="too many"),
        pytest.param(np.zeros((), int), id="scalar"),
        pytest.param(np.array([0, 1, 0, 0.5]), id="fraction"),
        pytest.param(np.array([0, 1, 0, np.nan]), id="not a number"),
        pytest.param(np.array([0, 1, 0, np.inf]), id="infinite"),
        pytest.param(np.array(["0", "1", "0", "1"]), id="strings"),
        pytest.param(np.array([0, 1, 0, None]), id="none"),
    ],
)
def test_key_inputs_refuse_labels_that_are_not_one_integer_per_example(labels):
    for argument, refuse in (
        ("carrier_labels", lambda: make_key().with_key_inputs(np.zeros((4, 2)), labels)),
        ("labels", lambda: KeyInputs(np.zeros((4, 2)), labels)),
    ):
        with pytest.raises(ValueError) as error:
            refuse()
        assert str(error.value) == (
            f"Invalid value for argument `{argument}`. Expected 4 integers, one per example. "
            f"Received: shape {labels.shape}, dtype {labels.dtype}"
        )


@pytest.mark.parametrize("labels", [[0, 1, -1, 1], np.array([0.0, 1.0, -1.0, 1.0]), np.array([0, 1, -1, 1], np.int8)])
def test_labels_may_be_of_any_type_that_holds_integers(labels):
    found = KeyInputs(np.zeros((4, 2)), labels).labels
    assert found.tolist() == [0, 1, -1, 1]
    assert found.dtype == np.int64


@pytest.mark.parametrize("num_per_class", [0, -1, 1.5, True, None])
def test_key_inputs_refuse_a_bad_number_per_class(num_per_class):
    with pytest.raises(ValueError) as error:
        make_key().with_key_inputs(np.zeros((4, 2)), [0, 1, 0, 1], num_per_class=num_per_class)
    assert str(error.value) == (
        "Invalid value for argument `num_per_class`. Expected an integer >= 1. "
        f"Received: num_per_class={num_per_class!r}"
    )


@pytest.mark.parametrize(
    ("labels", "poor", "found"), [([0, 0, 0, 1], 1, 1), ([1, 1, 1, 2], 0, 0), ([0, 0, -1, -1], 1, 0)]
)
def test_key_inputs_refuse_a_class_with_too_few_examples(labels, poor, found):
    with pytest.raises(ValueError) as error:
        make_key().with_key_inputs(np.zeros((4, 2)), labels, num_per_class=2)
    assert str(error.value) == (
        f"Class {poor} has too few examples to choose key inputs from. Expected at least num_per_class=2. "
        f"Received: {found}"
    )


def test_key_inputs_can_be_set_once_only():
    with pytest.raises(ValueError) as error:
        make_key_with_inputs().with_key_inputs(np.zeros((4, 2)), [0, 1, 0, 1], num_per_class=1)
    assert str(error.value) == (
        "This key has its key inputs already. Expected to choose them once, before training; generate a new key to "
        "choose others. Received: a key with 4 key inputs"
    )


@pytest.mark.parametrize("key", [make_key(), make_key(carriers=[]), make_key().with_triggers("noise", 24, 2, _INPUTS)])
def test_commitment_needs_what_proves_the_mark(key):
    with pytest.raises(ValueError) as error:
        key.commitment()
    assert str(error.value) == (
        "This key cannot be committed to yet. Expected key inputs, set by `with_key_inputs` before training, or triggers and no "
        "carriers. Received: a key without key inputs"
    )


# Generation


def test_generated_keys_have_seeds_of_their_own():
    carriers = [Carrier("features", [0, 1], 32)]
    one, other = (OwnerKey.generate("ACME Vision", carriers) for _ in range(2))
    assert len(one.seed) == 32
    assert one.seed != other.seed
    assert one.fingerprint != other.fingerprint
    assert one.decision == DecisionRule()
    assert one.key_inputs is None
    assert one.layers == ()


@pytest.mark.parametrize(("bits", "exponent"), [(1, "0.6"), (8, "4.8"), (31, "18.7")])
def test_a_short_mark_warns_and_names_the_smallest_p(bits, exponent):
    with pytest.warns(UserWarning) as caught:
        OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], bits)])
    assert [str(each.message) for each in caught] == [
        f"This mark has {2 * bits} bits in all; even a perfect match has p = 2^-{2 * bits} (10^-{exponent}). "
        "Use at least 64, better 256."
    ]
    # It points at the line that asked for the key.
    assert caught[0].filename == __file__


def test_bits_of_all_carriers_count_together():
    """64 bits do not warn, wherever they stand."""
    key = OwnerKey.generate("ACME Vision", [Carrier("one", [0, 1], 16), Carrier("other", [0], 32)])
    assert key.num_bits == 64


# What follows from the seed


def test_signature_known_answer():
    signature = make_key().signature("features")
    assert np.packbits(signature, axis=1).tobytes().hex() == "8e5f2458d40cc5a0"
    assert signature.shape == (2, 32)
    assert signature.dtype == np.uint8


def test_projection_known_answer():
    projection = make_key(carriers=[Carrier("features", [0, 1], 3)]).projection("features", 6)
    assert projection.tolist() == [[-1, -1, 1], [-1, 1, 1], [1, 1, -1], [1, -1, -1], [1, 1, -1], [-1, -1, 1]]
    assert projection.dtype == np.float32


def test_gaussian_projection_known_answer():
    carrier = Carrier("features", [0, 1], 2, projection="gaussian")
    projection = make_key(carriers=[carrier]).projection("features", 4)
    numerators = [[38314, -84517], [-51493, -35154], [-1865, 11011], [-26171, -26014]]
    assert projection.shape == (4, 2)
    assert projection.dtype == np.float32
    assert (projection * 2.0**16).tolist() == numerators


def test_fingerprint_known_answer():
    assert make_key().fingerprint == "faaf29b944547241c0f3bf59d4c104dc"


def test_commitment_known_answer():
    """Commitments are published: a key must meet for ever the one that was made of it."""
    key = make_key_with_inputs()
    assert key.key_inputs.digest() == "33849c3e07c9da1217271f68047c39c8e45d02636f337ca0e9054cebc0a01092"
    assert key.commitment() == "bb3bb6052cfe72ac4be27c9ea1fe5a559415ace7edb0ec938714e6bab5fffb4c"


def test_choice_of_key_inputs_known_answer():
    key = make_key().with_key_inputs(numbered(16), [0] * 8 + [1] * 8, num_per_class=3)
    assert key.key_inputs.inputs.tolist() == [4.0, 5.0, 3.0, 8 + 2.0, 8 + 4.0, 8 + 3.0]
    assert key.key_inputs.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_two_keys_of_one_seed_are_the_same():
    one, other = make_key(), make_key()
    np.testing.assert_array_equal(one.signature("features"), other.signature("features"))
    np.testing.assert_array_equal(one.projection("features", 512), other.projection("features", 512))


@pytest.mark.parametrize(
    "changes", [{"seed": SEED[::-1]}, {"owner": "ACME"}, {"carriers": [Carrier("other", [0, 1], 32)]}]
)
def test_seed_owner_and_carrier_name_each_change_signature_and_projection(changes):
    one, other = make_key(), make_key(**changes)
    (name,) = [carrier.name for carrier in other.carriers]
    assert 0.2 < np.mean(one.signature("features") == other.signature(name)) < 0.8
    assert 0.45 < np.mean(one.projection("features", 512) == other.projection(name, 512)) < 0.55


def test_each_class_has_a_message_of_its_own():
    signature = make_key(carriers=[Carrier("features", range(10), 64)]).signature("features")
    agreement = (signature[:, None] == signature[None, :]).mean(axis=2)
    # Five standard deviations around one half.
    assert (np.abs(agreement[~np.eye(10, dtype=bool)] - 0.5) < 5 * 0.5 / 8).all()


def test_two_carriers_of_one_key_share_no_message():
    key = make_key(carriers=[Carrier("one", [0, 1], 32), Carrier("other", [0, 1], 32)])
    assert 0.2 < np.mean(key.signature("one") == key.signature("other")) < 0.8


def test_balanced_projection_holds_zero_sum_columns_of_signs():
    projection = make_key().projection("features", 512)
    assert projection.shape == (512, 32)
    assert set(np.unique(projection).tolist()) == {-1.0, 1.0}
    assert (projection.sum(axis=0) == 0).all()


def test_gaussian_projection_holds_standard_normal_numbers():
    projection = make_key(carriers=[Carrier("features", [0], 64, projection="gaussian")]).projection("features", 512)
    assert abs(projection.mean()) < 4 / np.sqrt(projection.size)
    assert abs(projection.var() - 1) < 4 * np.sqrt(2 / projection.size)
    # Its columns do not sum to zero: each sum has a standard deviation of sqrt(512).
    assert np.abs(projection.sum(axis=0)).mean() > 0.5 * np.sqrt(512)


# Choice of key inputs


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param((4, 4, 3), np.float32, id="images"),
        pytest.param((4, 4, 1), np.uint8, id="bytes"),
        pytest.param((7,), np.int32, id="tokens"),
        pytest.param((), np.float64, id="numbers"),
    ],
)
def test_key_inputs_are_rows_of_the_data_with_their_labels(shape, dtype):
    x, labels = numbered(40, shape, dtype), np.arange(40) % 2
    chosen = make_key().with_key_inputs(x, labels, num_per_class=6).key_inputs
    assert chosen.inputs.shape == (12, *shape)
    assert chosen.inputs.dtype == dtype
    assert chosen.num_examples == 12
    rows = chosen.inputs.reshape(12, -1)[:, 0].astype(int)
    assert len(set(rows.tolist())) == 12
    np.testing.assert_array_equal(chosen.inputs, x[rows])
    np.testing.assert_array_equal(chosen.labels, labels[rows])
    assert np.bincount(chosen.labels).tolist() == [6, 6]


def test_a_dict_of_inputs_keeps_its_rows_together():
    x = {"tokens": numbered(40, (5,), np.int32), "image": numbered(40, (2, 2, 1), np.uint8)}
    chosen = make_key().with_key_inputs(x, np.arange(40) % 2, num_per_class=6).key_inputs
    assert list(chosen.arrays) == ["image", "tokens"]
    assert [array.dtype for array in chosen.arrays.values()] == [np.uint8, np.int32]
    np.testing.assert_array_equal(chosen.inputs["image"][:, 0, 0, 0], chosen.inputs["tokens"][:, 0])
    # The same rows as from a single array.
    single = make_key().with_key_inputs(x["tokens"], np.arange(40) % 2, num_per_class=6).key_inputs
    np.testing.assert_array_equal(chosen.inputs["tokens"], single.inputs)


def test_the_seed_picks_the_key_inputs():
    x, labels = numbered(400), np.arange(400) % 2
    one, same, other = (
        make_key(seed=seed).with_key_inputs(x, labels, num_per_class=20).key_inputs.inputs.tolist()
        for seed in (SEED, SEED, SEED[::-1])
    )
    assert one == same
    # About 2 of 40 would be picked by both.
    assert len(set(one) & set(other)) < 10


@pytest.mark.parametrize("ignored", [-1, 7])
def test_rows_of_no_carrier_class_are_ignored(ignored):
    """They are never picked, and their number does not change what is picked."""
    x, labels = numbered(40), np.arange(40) % 2
    mixed_x, mixed_labels = np.repeat(x, 2), np.repeat(labels, 2)
    mixed_x[1::2], mixed_labels[1::2] = -99.0, ignored
    plain = make_key().with_key_inputs(x, labels, num_per_class=6).key_inputs
    mixed = make_key().with_key_inputs(mixed_x, mixed_labels, num_per_class=6).key_inputs
    np.testing.assert_array_equal(mixed.inputs, plain.inputs)
    np.testing.assert_array_equal(mixed.labels, plain.labels)


def test_a_class_of_two_carriers_is_picked_once():
    key = make_key(carriers=[Carrier("one", [0, 1], 32), Carrier("other", [2, 1], 32)])
    chosen = key.with_key_inputs(numbered(60), np.arange(60) % 3, num_per_class=4).key_inputs
    assert np.bincount(chosen.labels).tolist() == [4, 4, 4]
    assert len(set(chosen.inputs.tolist())) == 12


def test_choosing_key_inputs_leaves_the_first_key_as_it_is():
    key = make_key()
    chosen = key.with_key_inputs(numbered(4), [0, 1, 0, 1], num_per_class=1)
    assert key.key_inputs is None
    assert chosen.seed == key.seed
    assert chosen.fingerprint == key.fingerprint


@pytest.mark.parametrize("in_dict", [False, True])
def test_key_inputs_are_copies_that_cannot_be_written(in_dict):
    """What was committed to must not move with the arrays of the training program."""
    array, labels = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    given = {"a": array} if in_dict else array
    direct = KeyInputs(given, labels)
    chosen = make_key().with_key_inputs(given, labels, num_per_class=2).key_inputs
    array[:], labels[:] = 5.0, 3
    if in_dict:
        given["b"] = array
    for key_inputs in (direct, chosen):
        (held,) = key_inputs.arrays.values()
        assert (held == 0.0).all()
        assert sorted(key_inputs.labels.tolist()) == [0, 0, 1, 1]
        for each in (held, key_inputs.labels):
            with pytest.raises(ValueError, match="read-only"):
                each[0] = 1


# Commitment


def test_commitment_is_64_hexadecimal_digits():
    commitment = make_key_with_inputs().commitment()
    assert len(commitment) == 64
    assert set(commitment) <= set("0123456789abcdef")


def test_layers_do_not_change_the_commitment():
    key = make_key_with_inputs()
    released = key.with_layers(LAYERS)
    assert released.layers == tuple(LAYERS)
    assert key.layers == ()
    assert released.commitment() == key.commitment()
    assert released.fingerprint == key.fingerprint


def _with_inputs(inputs, labels=(0, 1, 0, 1)):
    return {"key_inputs": KeyInputs(inputs, np.array(labels))}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"seed": SEED[::-1]}, id="seed"),
        pytest.param({"owner": "ACME"}, id="owner"),
        pytest.param({"carriers": [Carrier("other", [0, 1], 32)]}, id="name of the carrier"),
        pytest.param({"carriers": [Carrier("features", [1, 0], 32)]}, id="order of classes"),
        pytest.param({"carriers": [Carrier("features", [0, 1], 33)]}, id="bits per class"),
        pytest.param({"carriers": [Carrier("features", [0, 1], 32, pooling="flatten")]}, id="pooling"),
        pytest.param({"carriers": [Carrier("features", [0, 1], 32, projection="gaussian")]}, id="projection"),
        pytest.param({"decision": DecisionRule("soft")}, id="test"),
        pytest.param({"decision": DecisionRule(alpha=1e-20)}, id="alpha"),
        pytest.param({"decision": DecisionRule(alpha_committed=1e-7)}, id="alpha of committed claims"),
        pytest.param(_with_inputs(np.nextafter(_INPUTS, 9)), id="content"),
        pytest.param(_with_inputs(_INPUTS.astype(np.float64)), id="dtype"),
        pytest.param(_with_inputs(_INPUTS.reshape(4, 1, 2)), id="shape"),
        pytest.param(_with_inputs(_INPUTS[::-1]), id="order of key inputs"),
        pytest.param(_with_inputs(_INPUTS, (0, 1, 1, 0)), id="labels"),
        pytest.param(_with_inputs({"a": _INPUTS}), id="name of the input"),
        pytest.param(_with_inputs({"a": _INPUTS, "b": _INPUTS}), id="one more input"),
    ],
)
def test_every_public_parameter_and_the_seed_change_the_commitment(changes):
    key = make_key_with_inputs()
    assert dataclasses.replace(key, **changes).commitment() != key.commitment()


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(_INPUTS.astype(">f4"), id="byte order"),
        pytest.param(np.asfortranarray(_INPUTS), id="order in memory"),
        pytest.param(np.repeat(_INPUTS, 2, axis=1)[:, ::2], id="strides"),
    ],
)
def test_the_way_an_array_lies_in_memory_does_not_change_the_commitment(inputs):
    key = make_key_with_inputs()
    assert dataclasses.replace(key, **_with_inputs(inputs)).commitment() == key.commitment()


def test_order_of_a_dict_does_not_change_the_commitment():
    one, other = ({name: _INPUTS + (name == "b") for name in names} for names in ("ab", "ba"))
    key = make_key()
    commitments = {dataclasses.replace(key, **_with_inputs(inputs)).commitment() for inputs in (one, other)}
    assert len(commitments) == 1


# Secrecy


def shows_seed(text):
    """Whether eight bytes of the seed, or all of it in base 64, stand in a text."""
    forms = [
        form
        for start in range(0, 25)
        for piece in [SEED[start : start + 8]]
        for form in (
            piece.hex(),
            piece.hex().upper(),
            piece.hex(" "),
            piece.decode("latin-1"),
            repr(piece)[2:-1],
            ", ".join(map(str, piece)),
            ",".join(map(str, piece)),
        )
    ]
    # Base 64 writes three bytes at a time, so the text depends on where in a triple the seed begins.
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms += [encode(bytes(offset) + SEED).decode()[4:-8] for offset in range(3)]
    return any(form in text for form in forms)


@pytest.mark.parametrize(
    "leak",
    [
        str(SEED),
        f"seed={SEED!r}, owner",
        SEED.hex(),
        SEED.hex().upper(),
        base64.b64encode(SEED).decode(),
        base64.b64encode(b"\0" + SEED).decode(),
        str(list(SEED)),
        json.dumps(list(SEED)),
        str(SEED[12:]),
        SEED.decode("latin-1"),
    ],
)
def test_the_search_for_the_seed_finds_it(leak):
    assert shows_seed(leak)


def test_texts_of_a_key_never_show_the_seed():
    key = make_key_with_inputs().with_layers(LAYERS)
    for text in (repr(key), str(key), f"{key}", repr([key]), repr(key.carriers), repr(key.key_inputs)):
        assert not shows_seed(text)
    assert "ACME Vision" in repr(key)
    assert "seed" not in repr(key)


def test_what_a_key_publishes_does_not_show_the_seed():
    key = make_key_with_inputs()
    for text in (key.commitment(), key.fingerprint, json.dumps([carrier.to_dict() for carrier in key.carriers])):
        assert not shows_seed(text)


def test_error_messages_of_a_key_never_show_the_seed(tmp_path):
    key = make_key_with_inputs()
    attempts = [
        lambda: make_key(seed=SEED + SEED),
        lambda: make_key(seed=SEED[:31]),
        lambda: make_key(seed=SEED.hex()),
        lambda: make_key(owner=""),
        lambda: make_key(carriers=[Carrier("a", [0], 64)] * 2),
        lambda: make_key().commitment(),
        lambda: key.carrier("other"),
        lambda: key.projection("features", 8),
        lambda: key.with_key_inputs(_INPUTS, [0, 1, 0, 1]),
        lambda: key.with_layers([CarrierLayer("other", "hidden", 128)]),
        lambda: key.save(tmp_path / "missing" / "owner.key"),
        lambda: pickle.dumps(key),
    ]
    for attempt in attempts:
        with pytest.raises((ValueError, TypeError, OSError)) as error:
            attempt()
        while error is not None:
            exception = getattr(error, "value", error)
            assert not shows_seed(str(exception) + repr(exception))
            error = exception.__cause__ or exception.__context__


@pytest.mark.any_backend
def test_config_of_a_regularizer_shows_neither_seed_nor_bits():
    key = make_key_with_inputs().with_layers(LAYERS)
    regularizer = SignatureRegularizer(key, "features")
    regularizer.observe((None, 128))
    regularizer.build()
    config = regularizer.get_config()
    assert not shows_seed(json.dumps(config))
    assert not shows_seed(repr(config) + repr(regularizer))
    assert set(config) == {"carrier", "key_fingerprint", "strength", "centres", "clustering_strength", "separation"}
    assert config["carrier"] == key.carriers[0].to_dict()


# Copies


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda key: key, lambda key: {"keys": [key]}])
def test_key_cannot_be_pickled(protocol, wrap):
    with pytest.raises(TypeError) as error:
        pickle.dumps(wrap(make_key_with_inputs()), protocol=protocol)
    assert str(error.value) == (
        "An owner key cannot be pickled. Expected `OwnerKey.save`, the one place that a seed is written to. "
        "Received: a request to pickle"
    )


def test_copy_of_a_key_is_the_key():
    """Keras copies configs and layers deeply; the secret must not multiply."""
    key = make_key_with_inputs()
    assert copy.copy(key) is key
    assert copy.deepcopy(key) is key
    assert copy.deepcopy({"keys": [key]})["keys"][0] is key


def test_key_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_key().owner = "Mallory"


# The file


@pytest.fixture
def umask():
    """A function that sets the umask for the length of a test."""
    outer = os.umask(0o022)
    yield os.umask
    os.umask(outer)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="no key inputs"),
        pytest.param({"layers": LAYERS}, id="layers, no key inputs"),
        pytest.param(_with_inputs(_INPUTS), id="one array"),
        pytest.param(_with_inputs(_INPUTS) | {"layers": LAYERS}, id="one array and layers"),
        pytest.param(_with_inputs(numbered(4, (5,), np.int32), (0, 1, -1, 7)), id="tokens"),
        pytest.param(_with_inputs(numbered(4, (2, 2, 3), np.uint8)), id="images"),
        pytest.param(_with_inputs(np.array([[True], [False], [True], [True]])), id="booleans"),
        pytest.param(_with_inputs(_INPUTS.astype(np.float16)), id="half precision"),
        pytest.param(_with_inputs({"b": _INPUTS, "a": numbered(4, (5,), np.int64)}), id="dict"),
        pytest.param(_with_inputs({"b": _INPUTS, "a": _INPUTS}) | {"layers": LAYERS}, id="dict and layers"),
        pytest.param({"owner": "Zoë & Søn — 株式会社"}, id="other alphabets"),
        pytest.param({"decision": DecisionRule("soft", 1e-20, 1e-7)}, id="another rule"),
        pytest.param({"carriers": [Carrier("a", (9, 0), 31, "flatten", "gaussian")]}, id="another carrier"),
        pytest.param(
            {
                "carriers": [Carrier("a", [0], 64), Carrier("b", [1], 64)],
                "layers": [CarrierLayer("b", "block/dense#1", 512), CarrierLayer("a", "hidden", 128)],
            },
            id="two carriers",
        ),
    ],
)
def test_a_saved_key_comes_back_as_it_was(tmp_path, changes):
    key = make_key(**changes)
    key.save(tmp_path / "owner.key")
    loaded = OwnerKey.load(tmp_path / "owner.key")
    assert_same_key(key, loaded)
    for carrier in key.carriers:
        np.testing.assert_array_equal(loaded.signature(carrier.name), key.signature(carrier.name))
        np.testing.assert_array_equal(loaded.projection(carrier.name, 200), key.projection(carrier.name, 200))


@pytest.mark.parametrize("name", ["input", "input:a", "labels", "seed", "header", "file", "block/a", "Größe", ""])
@pytest.mark.parametrize("others", [[], ["other"]])
def test_any_input_name_survives_the_file(tmp_path, name, others):
    """Keras names inputs freely, and the file has names of its own for what it holds."""
    key = make_key(**_with_inputs(dict.fromkeys([name, *others], _INPUTS)))
    key.save(tmp_path / "owner.key")
    assert_same_key(key, OwnerKey.load(tmp_path / "owner.key"))


def test_strings_and_paths_name_the_file(tmp_path):
    make_key().save(str(tmp_path / "owner.key"))
    assert_same_key(make_key(), OwnerKey.load(str(tmp_path / "owner.key")))
    assert_same_key(make_key(), OwnerKey.load(pathlib.Path(tmp_path, "owner.key")))


def test_loaded_key_inputs_cannot_be_written(tmp_path):
    make_key_with_inputs().save(tmp_path / "owner.key")
    loaded = OwnerKey.load(tmp_path / "owner.key").key_inputs
    for array in (loaded.inputs, loaded.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("exists", [False, True])
def test_only_its_owner_may_read_the_file_whatever_the_umask(tmp_path, umask, mask, exists):
    path = tmp_path / "owner.key"
    if exists:
        path.write_bytes(b"open to all")
        path.chmod(0o666)
    umask(mask)
    make_key().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_key_whole_and_nothing_beside_it(tmp_path, monkeypatch, step):
    path = tmp_path / "owner.key"
    make_key().save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(os, step, fail)
        with pytest.raises(OSError, match="disk full"):
            make_key_with_inputs().save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["owner.key"]
    make_key_with_inputs().save(path)
    assert_same_key(make_key_with_inputs(), OwnerKey.load(path))
    assert os.listdir(tmp_path) == ["owner.key"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The content of the file of a key with key inputs and a layer."""
    return content_of(make_key_with_inputs(layers=LAYERS), tmp_path_factory.mktemp("saved"))


def content_of(key, folder):
    key.save(folder / "saved.key")
    return (folder / "saved.key").read_bytes()


def load_content(content, folder):
    path = folder / "read.key"
    path.write_bytes(content)
    return OwnerKey.load(path)


def digested(data):
    """A file with a digest that fits its content, as someone who knows the format would make it."""
    return MAGIC + hashlib.sha256(data).digest() + data


def assert_unreadable(content, folder, why):
    with pytest.raises(ValueError) as error:
        load_content(content, folder)
    assert str(error.value) == (
        f"This file is not a readable owner key: {why}. Expected a whole, unaltered file written by `OwnerKey.save`. "
        f"Received: {folder / 'read.key'}"
    )


NOT_ONE = "it does not begin like one"
ALTERED = "its content does not match its digest: it was truncated or altered"
HEADER_SIZE = len(MAGIC) + 32


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        (0, NOT_ONE),
        (1, NOT_ONE),
        (len(MAGIC) - 1, NOT_ONE),
        (len(MAGIC), ALTERED),
        (len(MAGIC) + 16, ALTERED),
        (HEADER_SIZE, ALTERED),
        (HEADER_SIZE + 2, ALTERED),
        (HEADER_SIZE + 4, ALTERED),
        (HEADER_SIZE + 100, ALTERED),
        (-100, ALTERED),
        (-1, ALTERED),
    ],
)
def test_a_truncated_file_is_refused(tmp_path, saved, kept, why):
    assert_unreadable(saved[:kept], tmp_path, why)


def test_a_file_with_something_behind_it_is_refused(tmp_path, saved):
    assert_unreadable(saved + b"\0", tmp_path, ALTERED)


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(st.data())
def test_any_altered_byte_is_noticed(tmp_path, saved, data):
    content = bytearray(saved)
    position = data.draw(
        st.sampled_from([0, len(MAGIC), HEADER_SIZE, HEADER_SIZE + 4, len(content) - 1])
        | st.integers(0, len(content) - 1)
    )
    content[position] ^= data.draw(st.integers(1, 255))
    assert_unreadable(bytes(content), tmp_path, NOT_ONE if position < len(MAGIC) else ALTERED)


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_format_version_is_refused(tmp_path, saved, version):
    content = digested(version.to_bytes(4, "big") + saved[HEADER_SIZE + 4 :])
    assert_unreadable(content, tmp_path, f"it has format version {version}, this release reads 1")


def _npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a letter, not a key\n", id="text"),
        pytest.param(_npz(seed=np.zeros(32, np.uint8)), id="npz"),
        pytest.param(pickle.dumps({"seed": SEED}), id="pickle"),
        pytest.param(MAGIC.replace(b"\n", b"\r\n") + bytes(100), id="converted line ends"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, content):
    assert_unreadable(content, tmp_path, NOT_ONE)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        OwnerKey.load(tmp_path / "owner.key")


@pytest.mark.parametrize(
    ("make", "received"),
    [
        (os.mkdir, "a folder"),
        # Nobody writes to it: opened as a file, it would wait for ever.
        (os.mkfifo, "a pipe, socket or device"),
        # Its bytes are nowhere but in memory, once it is read.
        (lambda path: (path.touch(), os.truncate(path, 2**40)), f"{2**40} bytes"),
    ],
)
def test_only_a_regular_file_of_a_keys_size_is_read(tmp_path, make, received):
    path = tmp_path / "owner.key"
    make(path)
    with pytest.raises(ValueError) as error:
        OwnerKey.load(path)
    assert str(error.value) == (
        f"This file is not a readable owner key. Expected a regular file of at most {2**31 + 2**31 // 1000} bytes. "
        f"Received: {received}, {path}"
    )


# The digest tells accidents, not malice: whoever verifies a claim reads a file that the claimant made.


def parts_of(content):
    """The header of a file as a dict, and its arrays."""
    with np.load(io.BytesIO(content[HEADER_SIZE + 4 :])) as archive:
        arrays = dict(archive)
    return json.loads(arrays.pop("header").tobytes()), arrays


def payload_of(header, arrays):
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return _npz(header=np.frombuffer(header, np.uint8), **arrays)


def assert_malformed(payload, folder):
    with pytest.raises(ValueError) as error:
        load_content(digested((1).to_bytes(4, "big") + payload), folder)
    first, rest = str(error.value).split(" Expected ", 1)
    assert first.startswith("This file is not a readable owner key: its content is malformed (")
    assert rest == f"a whole, unaltered file written by `OwnerKey.save`. Received: {folder / 'read.key'}"
    assert not shows_seed(str(error.value))


def test_an_honest_file_made_from_its_parts_is_read(tmp_path, saved):
    """So that the refusals below are refusals of what each changes."""
    payload = payload_of(*parts_of(saved))
    loaded = load_content(digested((1).to_bytes(4, "big") + payload), tmp_path)
    assert_same_key(make_key_with_inputs(layers=LAYERS), loaded)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"owner": ""}, id="no owner"),
        pytest.param({"owner": 3}, id="owner a number"),
        pytest.param({"scheme_version": 2}, id="another scheme"),
        pytest.param({"carriers": []}, id="no carriers"),
        pytest.param({"carriers": 3}, id="carriers a number"),
        pytest.param({"carriers": [3]}, id="carrier a number"),
        pytest.param({"carriers": [{}]}, id="carrier empty"),
        pytest.param({"carriers": [{"name": "a", "classes": [0], "bits_per_class": 8, "x": 1}]}, id="unknown field"),
        pytest.param({"carriers": [{"name": "a", "classes": 0, "bits_per_class": 8}]}, id="classes a number"),
        pytest.param({"carriers": [{"name": "a", "classes": "01", "bits_per_class": 8}]}, id="classes a string"),
        pytest.param({"carriers": [{"name": "a", "classes": [[0]], "bits_per_class": 8}]}, id="classes nested"),
        pytest.param({"decision": None}, id="no decision"),
        pytest.param({"decision": {"test": "lenient"}}, id="unknown test"),
        pytest.param({"decision": {"alpha": "1e-9"}}, id="alpha a string"),
        pytest.param({"decision": {"alpha": float("nan")}}, id="alpha not a number"),
        pytest.param({"layers": 3}, id="layers a number"),
        pytest.param({"layers": [{"carrier": "other", "path": "hidden", "num_units": 128}]}, id="foreign layer"),
        pytest.param({"layers": [{"carrier": "features", "path": 3, "num_units": 128}]}, id="path a number"),
        pytest.param({"layers": [{"carrier": "features", "path": "h", "num_units": "128"}]}, id="width a string"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path, saved, change):
    header, arrays = parts_of(saved)
    assert_malformed(payload_of(header | change, arrays), tmp_path)


@pytest.mark.parametrize("missing", ["scheme_version", "owner", "carriers", "decision", "layers"])
def test_a_header_without_a_part_is_refused(tmp_path, saved, missing):
    header, arrays = parts_of(saved)
    del header[missing]
    assert_malformed(payload_of(header, arrays), tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="not JSON"),
        pytest.param(b"\xff\xfe", id="not text"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[" * 100_000, id="nested without end"),
    ],
)
def test_a_header_that_is_not_an_object_is_refused(tmp_path, saved, header):
    _, arrays = parts_of(saved)
    assert_malformed(payload_of(header, arrays), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seed": None}, id="no seed"),
        pytest.param({"seed": np.zeros(31, np.uint8)}, id="short seed"),
        pytest.param({"seed": np.zeros(32, np.int64)}, id="long seed"),
        pytest.param({"labels": np.zeros(3, np.int64)}, id="too few labels"),
        pytest.param({"labels": np.zeros((4, 1), np.int64)}, id="labels of two axes"),
        pytest.param({"labels": np.array(list("abcd"))}, id="labels of letters"),
        pytest.param({"input": None}, id="labels without inputs"),
        pytest.param({"labels": None}, id="inputs without labels"),
        pytest.param({"input": np.full((4, 2), np.nan)}, id="inputs not finite"),
        pytest.param({"input": np.zeros((0, 2))}, id="no rows"),
        pytest.param({"input": np.array(list("abcd"))}, id="inputs of letters"),
    ],
)
def test_malformed_arrays_are_refused(tmp_path, saved, change):
    header, arrays = parts_of(saved)
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    assert_malformed(payload_of(header, arrays), tmp_path)


def test_a_file_that_unpacks_to_more_than_any_key_holds_is_refused_before(tmp_path, saved, monkeypatch):
    header, arrays = parts_of(saved)
    bomb = payload_of(header, arrays | {"input": np.zeros((4, 2**20))})
    assert len(bomb) < 2**18
    monkeypatch.setattr(key_files, "_MAX_BYTES", 2**24)
    tracemalloc.start()
    assert_malformed(bomb, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    # Nor is it written.
    key = dataclasses.replace(make_key(), key_inputs=KeyInputs(np.zeros((2, 2**20)), [0, 1]))
    with pytest.raises(
        ValueError,
        match=r"^This key is too large\. Expected .* of at most 16777216 bytes in all\. Received: \d+ bytes$",
    ):
        key.save(tmp_path / "owner.key")
    assert not (tmp_path / "owner.key").exists()


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _zip(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _described(description):
    """An array file with a description of its type and shape that was written by hand."""
    description = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(description).to_bytes(2, "little") + description + b"{}"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not an archive", id="text"),
        pytest.param(_npy(np.zeros(3)), id="one array, no archive"),
        pytest.param(_npz(), id="empty archive"),
        pytest.param(_zip(**{"header.npy": b"{}"}), id="member that is no array"),
        pytest.param(_zip(header=b"{}", seed=SEED), id="members of another kind"),
        pytest.param(_zip(**{"header.npy": _npy(np.zeros(2))[:-3]}), id="member cut short"),
        pytest.param(
            _zip(**{"header.npy": _described("{'descr': '|u1', 'fortran_order': False, 'shape': (2,)")}),
            id="description without end",
        ),
        pytest.param(
            _zip(**{"header.npy": _described("{'descr': '<08', 'fortran_order': False, 'shape': (2,)}")}),
            id="unknown type",
        ),
        pytest.param(
            _zip(**{"header.npy": _described(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**50},)}}")}),
            id="array larger than any memory",
        ),
    ],
)
def test_a_payload_that_is_not_an_archive_of_arrays_is_refused(tmp_path, payload):
    assert_malformed(payload, tmp_path)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["seed", "labels", "input", "extra"])
def test_an_object_array_is_refused_and_not_executed(tmp_path, saved, place):
    trace = tmp_path / "executed"
    objects = np.array([Bomb(trace)] * 4, object)
    header, arrays = parts_of(saved)
    payload = payload_of(header, arrays | {place: objects})
    assert_malformed(payload, tmp_path)
    assert not trace.exists()
    # The bomb is a live one.
    with np.load(io.BytesIO(payload), allow_pickle=True) as archive:
        archive[place]
    assert trace.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_the_place_of_the_archive_is_refused_and_not_executed(tmp_path, protocol):
    trace = tmp_path / "executed"
    payload = pickle.dumps(Bomb(trace), protocol=protocol)
    assert_malformed(payload, tmp_path)
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists()


@pytest.mark.parametrize("gone", [("input", "labels"), ("seed",), ("labels",)])
def test_a_file_from_which_a_part_was_taken_is_refused(gone, tmp_path, saved):
    """Without its key inputs it would be another key, and a whole one."""
    with np.load(io.BytesIO(saved[HEADER_SIZE + 4 :])) as archive:
        arrays = {name: archive[name] for name in archive.files if name not in gone}
    payload = io.BytesIO()
    np.savez(payload, **arrays)
    assert_malformed(payload.getvalue(), tmp_path)


@hypothesis.settings(
    deadline=None, max_examples=200, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(st.data())
def test_an_altered_payload_with_a_fitting_digest_is_the_same_key_or_refused(tmp_path, saved, data):
    """One clear error, whatever NumPy, zipfile and zlib make of the bytes."""
    payload = bytearray(saved[HEADER_SIZE + 4 :])
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        loaded = load_content(digested((1).to_bytes(4, "big") + bytes(payload)), tmp_path)
    except ValueError:
        assert_malformed(bytes(payload), tmp_path)
    else:
        assert_same_key(make_key_with_inputs(layers=LAYERS), loaded)


# Reference


@pytest.fixture
def reference(tmp_path):
    """A file; what is in it is for `verify` to read."""
    path = tmp_path / "reference.keras"
    path.write_bytes(b"weights and graph")
    return path


def test_bits_and_projection_depend_on_the_reference(reference, tmp_path):
    """So that nobody can make a reference that suits them."""
    other = tmp_path / "other.keras"
    other.write_bytes(b"weights and Graph")
    keys = [make_key(), make_key().with_reference(reference), make_key().with_reference(other)]
    for parts in ([key.signature("features") for key in keys], [key.projection("features", 128) for key in keys]):
        assert all((one != other).any() for one, other in itertools.combinations(parts, 2))
    assert len({key.fingerprint for key in keys}) == 3
    again = make_key().with_reference(reference)
    np.testing.assert_array_equal(again.signature("features"), keys[1].signature("features"))


def test_a_reference_is_committed_to_and_kept(reference, tmp_path):
    keys = [make_key_with_inputs(), make_key_with_inputs().with_reference(reference)]
    assert keys[0].commitment() != keys[1].commitment() and keys[1].reference == file_digest(reference)
    keys[1].save(tmp_path / "owner.key")
    loaded = OwnerKey.load(tmp_path / "owner.key")
    assert loaded.reference == keys[1].reference and loaded.commitment() == keys[1].commitment()


def test_a_reference_comes_once_and_before_the_mark(reference):
    with pytest.raises(
        ValueError, match=r"This key cannot take a reference any more\. Expected .* Received: a key with a reference"
    ):
        make_key().with_reference(reference).with_reference(reference)
    with pytest.raises(ValueError, match="Received: a key with the layers of a marked model"):
        make_key_with_inputs(layers=LAYERS).with_reference(reference)
    with pytest.raises(ValueError, match="Invalid value for argument `reference`. Expected 64 hexadecimal digits"):
        dataclasses.replace(make_key(), reference="abc")
