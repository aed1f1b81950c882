"""The derivations are a format: what they give today they must give for ever, on every platform."""

import hashlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from deepsigns_tf import derivation
from deepsigns_tf.derivation import (
    derive_balanced_signs,
    derive_bits,
    derive_bytes,
    derive_choice,
    derive_integers,
    derive_normals,
    derive_permutations,
    derive_uniforms,
)

# The known answers below were worked out once with hashlib, math and Python integers, without NumPy.
SEED = bytes(range(32))
DOMAIN = ("known answer", 1)

# Few letters and small numbers, so that parts often run together in the same way.
DOMAINS = st.lists(st.text("1-ä\0", max_size=3) | st.integers(-12, 12), max_size=3).map(tuple)


def test_bytes_known_answer():
    assert derive_bytes(SEED, DOMAIN, 32).hex() == "18b986a45168b3a6e170707716d2ab9de0f1d0a261379b2863a29c235a98047a"
    assert derive_bytes(b"", ("Zoë", -7), 16).hex() == "27b09bacd9ec4cc46852341b84aa0551"
    assert derive_bytes(b"", (), 16).hex() == "7913460c0da0e900194a866bbd1262e3"


def test_bytes_are_shake_256_of_typed_parts_with_their_lengths():
    hashed = (
        b"b\x00\x00\x00\x00\x00\x00\x00\x04seed"
        b"s\x00\x00\x00\x00\x00\x00\x00\x04bits"
        b"i\x00\x00\x00\x00\x00\x00\x00\x03-12"
    )
    assert derive_bytes(b"seed", ("bits", -12), 20) == hashlib.shake_256(hashed).digest(20)


def test_bits_known_answer():
    bits = derive_bits(SEED, DOMAIN, 20)
    assert bits.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0]
    assert bits.dtype == np.uint8


def test_permutations_known_answer():
    permutations = derive_permutations(SEED, DOMAIN, 3, 7)
    assert permutations.tolist() == [[6, 0, 5, 2, 3, 4, 1], [2, 3, 1, 0, 6, 4, 5], [4, 1, 3, 2, 5, 6, 0]]
    assert permutations.dtype == np.int64


def test_choice_known_answer():
    choice = derive_choice(SEED, DOMAIN, 50, 6)
    assert choice.tolist() == [6, 18, 30, 36, 9, 15]
    assert choice.dtype == np.int64


def test_balanced_signs_known_answer():
    even = derive_balanced_signs(SEED, DOMAIN, 6, 4)
    assert even.tolist() == [
        [1, 1, -1, 1],
        [-1, -1, -1, 1],
        [1, -1, -1, -1],
        [-1, 1, 1, -1],
        [-1, 1, 1, -1],
        [1, -1, 1, 1],
    ]
    assert even.dtype == np.int8
    odd = derive_balanced_signs(SEED, DOMAIN, 5, 3)
    assert odd.tolist() == [[1, -1, 1], [0, 1, -1], [1, 0, 0], [-1, -1, 1], [-1, 1, -1]]


def test_uniforms_known_answer():
    uniforms = derive_uniforms(SEED, DOMAIN, 4)
    numerators = [5865263345209559, 5547561268997646, 1428707653999134, 4293124944065428]
    assert uniforms.tolist() == [numerator / 2**53 for numerator in numerators]
    assert uniforms.dtype == np.float64


def test_normals_known_answer():
    normals = derive_normals(SEED, DOMAIN, 5)
    assert normals.tolist() == [numerator / 2**16 for numerator in (95037, -10904, -26935, -56390, -23626)]
    assert normals.dtype == np.float64


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((b"seed", ("ab", "c")), (b"seed", ("a", "bc")), id="where a part ends"),
        pytest.param((b"seed", ("ab",)), (b"seed", ("a", "b")), id="number of parts"),
        pytest.param((b"seed", ("a", "")), (b"seed", ("a",)), id="empty part"),
        pytest.param((b"seed", (1,)), (b"seed", ("1",)), id="integer or string"),
        pytest.param((b"seed", ("a",)), (b"seed", (b"a",)), id="string or bytes"),
        pytest.param((b"seed", (12,)), (b"seed", (1, 2)), id="digits"),
        pytest.param((b"seed", ("a", "b")), (b"seed", ("b", "a")), id="order"),
        pytest.param((b"ab", (b"c",)), (b"a", (b"bc",)), id="where the seed ends"),
        pytest.param((b"seed", ("a",)), (b"Seed", ("a",)), id="seed"),
    ],
)
def test_different_domains_give_different_bytes(one, other):
    assert derive_bytes(*one, 32) != derive_bytes(*other, 32)


@hypothesis.settings(deadline=None)
@hypothesis.given(DOMAINS, DOMAINS)
def test_only_equal_domains_give_equal_bytes(one, other):
    assert (derive_bytes(SEED, one, 32) == derive_bytes(SEED, other, 32)) == (one == other)


def test_numpy_integers_name_the_same_domain_as_python_integers():
    assert derive_bytes(SEED, ("classes", np.int64(10)), 32) == derive_bytes(SEED, ("classes", 10), 32)


def test_bits_and_bytes_of_bits_are_fair():
    data = np.packbits(derive_bits(SEED, ("fair bits",), 8 * 2**16))
    counts = np.bincount(data, minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    ones = int(np.unpackbits(data).sum())
    assert scipy.stats.binomtest(ones, 8 * 2**16).pvalue > 1e-3


def _p_value_of_equal_chances(outcomes, num_outcomes):
    """The chi-square test that all rows of `outcomes` are equally likely; every one of `num_outcomes` must occur."""
    _, counts = np.unique(outcomes, axis=0, return_counts=True)
    assert len(counts) == num_outcomes
    return scipy.stats.chisquare(counts).pvalue


def test_every_permutation_is_equally_likely():
    assert _p_value_of_equal_chances(derive_permutations(SEED, ("fair order",), 24 * 200, 4), 24) > 1e-3


def test_every_ordered_choice_is_equally_likely():
    choices = [derive_choice(SEED, ("fair choice", trial), 5, 2) for trial in range(20 * 100)]
    assert _p_value_of_equal_chances(choices, 20) > 1e-3


@pytest.mark.parametrize(("num_rows", "num_columns_possible"), [(4, 6), (5, 30)])
def test_every_balanced_column_is_equally_likely(num_rows, num_columns_possible):
    signs = derive_balanced_signs(SEED, ("fair signs",), num_rows, num_columns_possible * 200)
    assert _p_value_of_equal_chances(signs.T, num_columns_possible) > 1e-3


def test_uniforms_are_uniform():
    assert scipy.stats.kstest(derive_uniforms(SEED, ("fair numbers",), 20_000), "uniform").pvalue > 1e-3


def test_normals_are_standard_normal():
    normals = derive_normals(SEED, ("normal",), 20_000)
    # Four standard errors of the mean and of the variance.
    assert abs(normals.mean()) < 4 / np.sqrt(20_000)
    assert abs(normals.var() - 1.0) < 4 * np.sqrt(2 / 20_000)
    assert scipy.stats.kstest(normals, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(normals[:-1], normals[1:])[0, 1]) < 4 / np.sqrt(20_000)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(0, 200))
def test_as_many_bits_as_asked_for(num_bits):
    bits = derive_bits(SEED, DOMAIN, num_bits)
    assert bits.shape == (num_bits,)
    assert set(bits.tolist()) <= {0, 1}


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(0, 5), st.integers(0, 40))
def test_each_row_is_a_permutation(num_permutations, num_items):
    permutations = derive_permutations(SEED, DOMAIN, num_permutations, num_items)
    assert permutations.shape == (num_permutations, num_items)
    assert (np.sort(permutations, axis=1) == np.arange(num_items)).all()


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_chosen_items_are_distinct_and_exist(sizes):
    num_items, num_chosen = sizes
    choice = derive_choice(SEED, DOMAIN, num_items, num_chosen)
    assert len(set(choice.tolist())) == num_chosen
    assert ((choice >= 0) & (choice < num_items)).all()


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 65), st.integers(1, 20))
def test_balanced_columns_sum_to_zero(num_rows, num_columns):
    """With an odd number of rows exactly one entry of a column is 0, else none."""
    signs = derive_balanced_signs(SEED, DOMAIN, num_rows, num_columns)
    assert signs.shape == (num_rows, num_columns)
    assert (signs.sum(axis=0, dtype=int) == 0).all()
    assert ((signs == 0).sum(axis=0) == num_rows % 2).all()
    assert set(np.unique(signs).tolist()) <= {-1, 0, 1}


def test_more_items_than_there_are_cannot_be_chosen():
    with pytest.raises(ValueError) as error:
        derive_choice(SEED, DOMAIN, 3, 4)
    assert str(error.value) == (
        "Cannot choose that many items. Expected 0 <= num_chosen <= num_items. Received: num_chosen=4, num_items=3"
    )


def _all_equal(data, num_items):
    return bytes(len(data))


def _two_equal_in_the_last_row(data, num_items):
    return data[:-8] + data[-8 * num_items : -8 * num_items + 8]


@pytest.mark.parametrize("spoil", [_all_equal, _two_equal_in_the_last_row])
def test_a_draw_with_equal_sort_keys_is_made_again(monkeypatch, spoil):
    """Rejected as a whole: the rows without a tie come from the second attempt too."""
    attempts = []

    def spoil_first_attempt(seed, domain, num_bytes):
        attempts.append(domain)
        data = derive_bytes(seed, domain, num_bytes)
        return spoil(data, 7) if len(attempts) == 1 else data

    monkeypatch.setattr(derivation, "derive_bytes", spoil_first_attempt)
    permutations = derive_permutations(SEED, DOMAIN, 3, 7)
    assert attempts == [(*DOMAIN, "attempt", 0), (*DOMAIN, "attempt", 1)]
    # The known answer of the second attempt.
    assert permutations.tolist() == [[6, 3, 2, 4, 5, 1, 0], [2, 0, 6, 4, 1, 3, 5], [5, 2, 1, 3, 4, 0, 6]]


@pytest.mark.parametrize(("byte", "expected"), [(0x00, 0.0), (0xFF, 1.0 - 2.0**-53)])
def test_uniforms_lie_in_the_half_open_interval(monkeypatch, byte, expected):
    monkeypatch.setattr(derivation, "derive_bytes", lambda seed, domain, num_bytes: bytes([byte]) * num_bytes)
    assert derive_uniforms(SEED, DOMAIN, 2).tolist() == [expected, expected]
    # The largest uniform is the one whose logarithm could be infinite.
    assert np.isfinite(derive_normals(SEED, DOMAIN, 2)).all()


def test_normals_are_multiples_of_a_power_of_two():
    normals = derive_normals(SEED, ("multiples",), 1000)
    assert (normals * 2.0**16 == np.round(normals * 2.0**16)).all()


def test_normals_follow_box_and_muller_to_the_rounding():
    u, v = derive_uniforms(SEED, ("multiples",), 2000).reshape(2, 1000)
    exact = np.sqrt(-2.0 * np.log(1.0 - u)) * np.cos(2.0 * np.pi * v)
    np.testing.assert_allclose(derive_normals(SEED, ("multiples",), 1000), exact, rtol=0, atol=0.5001 * 2.0**-16)


# Integers


def test_integers_known_answer():
    """The remainders of 64-bit words of the hash."""
    parts = [(b"b", b"seed"), (b"s", b"labels"), (b"s", b"attempt"), (b"i", b"0")]
    shake = hashlib.shake_256(b"".join(kind + len(data).to_bytes(8, "big") + data for kind, data in parts))
    words = shake.digest(8 * 8)
    expected = [int.from_bytes(words[8 * i : 8 * i + 8], "little") % 10 for i in range(8)]
    assert derive_integers(b"seed", ("labels",), 8, 10).tolist() == expected


@hypothesis.given(st.integers(0, 50), st.integers(1, 2**63))
def test_integers_lie_in_their_range(num, num_values):
    integers = derive_integers(b"seed", ("integers",), num, num_values)
    assert integers.shape == (num,) and integers.dtype == np.int64
    assert (integers >= 0).all() and (integers < num_values).all()


@pytest.mark.parametrize("num_values", [2, 3, 10])
def test_every_integer_is_equally_likely(num_values):
    counts = np.bincount(derive_integers(b"seed", ("integers",), 20_000, num_values), minlength=num_values)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_draws_that_would_favour_small_integers_are_made_again(monkeypatch):
    """Of 2^64 words, those from 3 * 2^62 on have no partner among the multiples of 3 * 2^62."""
    num_values = 3 * 2**61
    words = iter([[2**64 - 1, 5, 3 * 2**62], [3 * 2**62 - 1, 7, 8]])

    def derive(seed, domain, num_bytes):
        return np.array(next(words), "<u8").tobytes()

    monkeypatch.setattr(derivation, "derive_bytes", derive)
    assert derive_integers(b"", (), 3, num_values).tolist() == [5, num_values - 1, 7]


@pytest.mark.parametrize("num_values", [0, -1, 2**63 + 1])
def test_integers_of_no_values_are_refused(num_values):
    with pytest.raises(ValueError, match=r"Expected 1 <= num_values <= 2\^63. Received: num_values="):
        derive_integers(b"seed", (), 1, num_values)
