"""JSON with one writing for each value: what it looks like, and that no other writing is read."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsigns_tf.canonical_json import decode_canonical, encode_canonical

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({}, b"{}"),
        ([], b"[]"),
        ({"b": 1, "a": 2, "B": 3}, b'{"B":3,"a":2,"b":1}'),
        # By code points, not by the halves of surrogate pairs.
        ({"\U0001f600": 1, "\uffff": 2}, b'{"\\uffff":2,"\\ud83d\\ude00":1}'),
        ('\x00\b\t\n\f\r\x1f "\\/~\x7f', b'"\\u0000\\b\\t\\n\\f\\r\\u001f \\"\\\\/~\\u007f"'),
        (
            [True, False, None, -0.0, 0.5, 1e16, 1e15, 1e-4, 1e-5],
            b"[true,false,null,-0.0,0.5,1e+16,1000000000000000.0,0.0001,1e-05]",
        ),
        ((1, 2**53 - 1), b"[1,9007199254740991]"),
    ],
)
def test_known_writings(value, written):
    assert encode_canonical(value) == written


@settings(deadline=None, max_examples=500)
@given(VALUES)
def test_what_is_written_is_read_again(value):
    data = encode_canonical(value)
    assert decode_canonical(data) == value and data.isascii()
    assert encode_canonical(decode_canonical(data)) == data == encode_canonical(json.loads(data))


@settings(deadline=None, max_examples=500)
@given(VALUES, VALUES)
def test_two_values_have_one_writing_only_if_they_are_one(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (encode_canonical(one) == encode_canonical(other)) == same


@settings(deadline=None, max_examples=500)
@given(
    VALUES,
    st.sampled_from([{"indent": 1}, {"separators": (", ", ":")}, {"separators": (",", ": ")}, {"ensure_ascii": False}]),
)
def test_another_writing_is_refused(value, style):
    data = encode_canonical(value)
    other = json.dumps(value, sort_keys=True, **({"separators": (",", ":")} | style)).encode()
    if other != data:
        with pytest.raises(ValueError, match=r"^These bytes (are not canonical|cannot be read)\. Expected "):
            decode_canonical(other)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=60) | st.text('{}[]",:\\u0123456789aedtrufalsn.-+ ', max_size=40).map(str.encode))
def test_any_bytes_are_canonical_or_refused(data):
    try:
        value = decode_canonical(data)
    except ValueError as error:
        assert str(error).startswith(
            ("These bytes are not canonical. Expected ", "These bytes cannot be read. Expected ")
        )
    else:
        assert encode_canonical(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b"1.0e0",
        b"1E5",
        b"01",
        b"NaN",
        b"-Infinity",
        b"1e400",
        b'"\\u0041"',
        b'"\\u00E9"',
        b'"\\/"',
        b'"\\ud800"',
        '"é"'.encode(),
        b"[1] ",
        b"\xef\xbb\xbf1",
        b"9007199254740992",
        b"9" * 5000,
        b"[" * 100_000,
        b"[" * 40 + b"]" * 40,
        b"",
    ],
)
def test_bytes_that_are_refused(data):
    with pytest.raises(ValueError, match=r"^These bytes (are not canonical|cannot be read)\. Expected .* Received: "):
        decode_canonical(data)


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (2**53, "an integer beyond 2^53 - 1"),
        ([-(2**53)], "an integer beyond 2^53 - 1"),
        ({"a": math.nan}, "a number that is not finite"),
        (math.inf, "a number that is not finite"),
        ({1: 2}, "a name of type int"),
        ({"\ud800": 2}, "half of a surrogate pair"),
        (b"bytes", "a bytes"),
        ({1, 2}, "a set"),
    ],
)
def test_values_without_a_writing(value, received):
    with pytest.raises(ValueError) as error:
        encode_canonical(value)
    assert str(error.value) == (
        "This value has no canonical writing. Expected objects, arrays, strings, integers of at most 2^53 - 1, finite floats, booleans and "
        f"null. Received: {received}"
    )
