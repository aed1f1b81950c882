"""JSON of which every value has one writing, byte for byte, so that a hash or signature of it means the value.

Source: RFC 8259 (JSON); the rules that make it unique are in docs/evidence-format.md.
"""

import json
import math
from typing import Any

# Integers that every reader of JSON holds exactly.
_LARGEST = 2**53 - 1
_MAX_DEPTH = 32


def encode_canonical(value: Any) -> bytes:
    r"""The one writing of a value.

    ASCII without blanks; members of an object in the order of their names' code points; in strings `\"`, `\\`, `\b`, `\f`, `\n`, `\r`, `\t`
    and for all else outside 0x20 .. 0x7e `\uXXXX` with small hexadecimal digits, two of them beyond U+FFFF; integers in decimal; other
    numbers with the fewest digits that give them back.

    Args:
        value: Objects with string names, arrays (lists, tuples), strings, integers of at most 2^53 - 1, finite floats, booleans, None;
            32 levels deep at most.

    Returns:
        The bytes.

    Raises:
        ValueError: If there is anything else in it.

    Example:

    >>> encode_canonical({"b": [1, None], "a": "é"})
    b'{"a":"\\u00e9","b":[1,null]}'
    """
    _check(value, 0)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode_canonical(data: bytes) -> Any:
    """The value of which these bytes are the one writing.

    Args:
        data: What `encode_canonical` wrote.

    Returns:
        The value, with lists for arrays.

    Raises:
        ValueError: If they are no JSON, or another writing of a value: blanks, another order, a name twice, and the like.

    Example:

    >>> decode_canonical(b'{"a":[1,2]}')
    {'a': [1, 2]}
    """
    try:
        value = json.loads(data.decode("ascii"))
        canonical = encode_canonical(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            "These bytes cannot be read. Expected JSON in its canonical writing. "
            f"Received: {len(data)} bytes that are not ({type(error).__name__})"
        ) from error
    if canonical != data:
        raise ValueError(
            "These bytes are not canonical. Expected the one writing of their value that docs/evidence-format.md specifies. "
            f"Received: another one, of {len(data)} bytes where {len(canonical)} were expected"
        )
    return value


def _check(value: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _invalid(f"more than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        for name, member in value.items():
            if not isinstance(name, str):
                raise _invalid(f"a name of type {type(name).__name__}")
            _check(name, depth + 1)
            _check(member, depth + 1)
    elif isinstance(value, (list, tuple)):
        for member in value:
            _check(member, depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _invalid("half of a surrogate pair")
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _LARGEST:
            raise _invalid("an integer beyond 2^53 - 1")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _invalid("a number that is not finite")
    elif value is not None and not isinstance(value, bool):
        raise _invalid(f"a {type(value).__name__}")


def _invalid(received: str) -> ValueError:
    return ValueError(
        "This value has no canonical writing. Expected objects, arrays, strings, integers of at most 2^53 - 1, finite floats, booleans "
        f"and null. Received: {received}"
    )
