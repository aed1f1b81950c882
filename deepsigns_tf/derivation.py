"""Everything secret follows from one seed: SHAKE-256 expanded into bits, signs, choices and numbers.

The same seed and domain give the same values on every platform and with every version of Python and NumPy:
integers come straight from the hash, floating-point numbers are exact multiples of a power of two.

Source: FIPS 202 (SHAKE-256).
"""

import hashlib

import numpy as np

Domain = tuple[str | int, ...]


def derive_bytes(seed: bytes, domain: Domain, num_bytes: int) -> bytes:
    r"""Expands a seed into bytes that belong to one purpose.

    \( \mathrm{SHAKE256}(\ell(p_0) \| p_0 \| \ell(p_1) \| p_1 \| \dots) \), where \( p_0 \) is the seed, the other
    parts are the domain's, and \( \ell \) is a part's type and length: two different domains never hash the same input.

    Args:
        seed: The secret, any number of bytes.
        domain: Names and integers that say what the bytes are for.
        num_bytes: How many bytes, >= 0.

    Returns:
        `num_bytes` bytes.

    Example:

    >>> derive_bytes(b"seed", ("bits", "features"), 4).hex()
    'ecdad029'
    """
    shake = hashlib.shake_256()
    for part in (seed, *domain):
        kind, data = _encode(part)
        shake.update(kind + len(data).to_bytes(8, "big") + data)
    return shake.digest(num_bytes)


def derive_bits(seed: bytes, domain: Domain, num_bits: int) -> np.ndarray:
    """Independent fair bits.

    Args:
        seed: The secret.
        domain: Names and integers that say what the bits are for.
        num_bits: How many.

    Returns:
        `(num_bits,)` uint8 array of 0 and 1.

    Example:

    >>> derive_bits(b"seed", ("bits", "features"), 8).tolist()
    [1, 1, 1, 0, 1, 1, 0, 0]
    """
    data = np.frombuffer(derive_bytes(seed, domain, -(-num_bits // 8)), np.uint8)
    return np.unpackbits(data, bitorder="big")[:num_bits]


def derive_permutations(seed: bytes, domain: Domain, num_permutations: int, num_items: int) -> np.ndarray:
    """Independent permutations, each of the `num_items!` equally likely.

    Every item gets a 64-bit sort key. A draw with two equal keys in one row is rejected and made again from the next
    attempt's bytes, so no permutation is favoured.

    Args:
        seed: The secret.
        domain: Names and integers that say what the permutations are for.
        num_permutations: How many rows.
        num_items: Length of each permutation.

    Returns:
        `(num_permutations, num_items)` int64 array; each row holds 0 .. num_items - 1.

    Example:

    >>> derive_permutations(b"seed", ("order",), 2, 6).tolist()
    [[3, 5, 1, 2, 0, 4], [1, 4, 3, 2, 5, 0]]
    """
    attempt = 0
    while True:
        data = derive_bytes(seed, (*domain, "attempt", attempt), 8 * num_permutations * num_items)
        keys = np.frombuffer(data, "<u8").reshape(num_permutations, num_items)
        order = np.argsort(keys, axis=1).astype(np.int64)
        ordered = np.take_along_axis(keys, order, axis=1)
        if not (ordered[:, 1:] == ordered[:, :-1]).any():
            return order
        attempt += 1


def derive_integers(seed: bytes, domain: Domain, num: int, num_values: int) -> np.ndarray:
    """Independent integers, each value equally likely.

    Draws above the largest multiple of `num_values` are rejected, so that no value is favoured.

    Args:
        seed: The secret.
        domain: Names and integers that say what the integers are for.
        num: How many.
        num_values: They lie in 0 .. num_values - 1; 1 .. 2^63.

    Returns:
        `(num,)` int64 array.

    Raises:
        ValueError: If `num_values` is out of range.

    Example:

    >>> derive_integers(b"seed", ("labels",), 8, 10).tolist()
    [3, 6, 9, 5, 9, 8, 2, 9]
    """
    if not 1 <= num_values <= 2**63:
        raise ValueError(
            "The number of values is out of range. Expected 1 <= num_values <= 2^63. "
            f"Received: num_values={num_values!r}"
        )
    limit = 2**64 // num_values * num_values - 1
    kept, attempt = np.empty(0, np.uint64), 0
    while len(kept) < num:
        drawn = np.frombuffer(derive_bytes(seed, (*domain, "attempt", attempt), 8 * num), "<u8")
        kept = np.concatenate([kept, drawn[drawn <= np.uint64(limit)]])
        attempt += 1
    return (kept[:num] % np.uint64(num_values)).astype(np.int64)


def derive_choice(seed: bytes, domain: Domain, num_items: int, num_chosen: int) -> np.ndarray:
    """Distinct items, every ordered selection equally likely.

    Args:
        seed: The secret.
        domain: Names and integers that say what the choice is for.
        num_items: How many there are to choose from.
        num_chosen: How many to choose, <= `num_items`.

    Returns:
        `(num_chosen,)` int64 array of distinct indices below `num_items`.

    Raises:
        ValueError: If more are to be chosen than there are.

    Example:

    >>> derive_choice(b"seed", ("key inputs",), 1000, 3).tolist()
    [97, 547, 602]
    """
    if not 0 <= num_chosen <= num_items:
        raise ValueError(
            "Cannot choose that many items. Expected 0 <= num_chosen <= num_items. "
            f"Received: num_chosen={num_chosen}, num_items={num_items}"
        )
    return derive_permutations(seed, domain, 1, num_items)[0, :num_chosen]


def derive_balanced_signs(seed: bytes, domain: Domain, num_rows: int, num_columns: int) -> np.ndarray:
    """Columns with as many +1 as -1, each balanced column equally likely.

    Class means after a ReLU share a large common part along the all-ones vector; a column that sums to zero does not
    see it and reads only what distinguishes the units. With an odd number of rows one entry of each column is 0.

    Args:
        seed: The secret.
        domain: Names and integers that say what the signs are for.
        num_rows: Length of each column.
        num_columns: How many columns.

    Returns:
        `(num_rows, num_columns)` int8 array of -1, 0 and +1.

    Example:

    >>> derive_balanced_signs(b"seed", ("projection",), 4, 3).sum(axis=0).tolist()
    [0, 0, 0]
    """
    half = num_rows // 2
    order = derive_permutations(seed, domain, num_columns, num_rows)
    signs = np.zeros((num_columns, num_rows), np.int8)
    np.put_along_axis(signs, order[:, :half], 1, axis=1)
    np.put_along_axis(signs, order[:, half : 2 * half], -1, axis=1)
    return np.ascontiguousarray(signs.T)


def derive_uniforms(seed: bytes, domain: Domain, num: int) -> np.ndarray:
    """Numbers spread evenly over [0, 1).

    Args:
        seed: The secret.
        domain: Names and integers that say what the numbers are for.
        num: How many.

    Returns:
        `(num,)` float64 array of multiples of 2^-53.

    Example:

    >>> derive_uniforms(b"seed", ("noise",), 2).round(4).tolist()
    [0.1862, 0.2388]
    """
    data = np.frombuffer(derive_bytes(seed, domain, 8 * num), "<u8")
    return (data >> np.uint64(11)) * 2.0**-53


def derive_normals(seed: bytes, domain: Domain, num: int) -> np.ndarray:
    r"""Standard normal numbers, for the projection of the paper.

    Box and Muller (1958): \( \sqrt{-2 \ln(1 - u)} \cos(2 \pi v) \). The result is rounded to multiples of 2^-16, so that
    two mathematical libraries that differ in the last bit of a logarithm still give the same number (but for a chance of
    about 10^-11 an entry).

    Args:
        seed: The secret.
        domain: Names and integers that say what the numbers are for.
        num: How many.

    Returns:
        `(num,)` float64 array.

    Example:

    >>> derive_normals(b"seed", ("noise",), 2).round(4).tolist()
    [0.4557, -0.4872]
    """
    u, v = derive_uniforms(seed, domain, 2 * num).reshape(2, num)
    normals = np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * v)
    return np.asarray(np.round(normals * 2.0**16) * 2.0**-16)


def _encode(part: bytes | str | int) -> tuple[bytes, bytes]:
    if isinstance(part, bytes):
        return b"b", part
    if isinstance(part, str):
        return b"s", part.encode("utf-8")
    return b"i", str(part).encode("ascii")
