"""The signing key: its file, its signatures, what other programs make of both."""

import copy
import pickle
import shutil
import stat
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography", reason="signatures need `deepsigns_tf[evidence]`")

from deepsigns_tf.signatures import SigningKey, check_signature  # noqa: E402

# RFC 8032, section 7.1, TEST 3.
SECRET = "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"
PUBLIC = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
SIGNATURE = (
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


def test_the_vector_of_the_standard():
    key = SigningKey(bytes.fromhex(SECRET))
    assert key.public_key == PUBLIC and key.sign(bytes.fromhex("af82")).hex() == SIGNATURE
    check_signature(bytes.fromhex("af82"), bytes.fromhex(SIGNATURE), PUBLIC)


def test_a_file_only_for_its_owner(tmp_path):
    key = SigningKey.generate()
    key.save(tmp_path / "signing.pem")
    assert stat.S_IMODE((tmp_path / "signing.pem").stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["signing.pem"]
    assert SigningKey.load(tmp_path / "signing.pem").sign(b"data") == key.sign(b"data")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_keys_and_checks_signatures(tmp_path):
    """With the commands of docs/evidence-format.md."""
    run = {"cwd": tmp_path, "check": True, "capture_output": True}
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "signing.pem"], **run)
    key = SigningKey.load(tmp_path / "signing.pem")
    (tmp_path / "data").write_bytes(b"statement")
    (tmp_path / "signature").write_bytes(key.sign(b"statement"))
    encoded = bytes.fromhex("302a300506032b6570032100" + key.public_key)
    subprocess.run(["openssl", "pkey", "-pubin", "-inform", "DER", "-out", "public.pem"], input=encoded, **run)
    command = "openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in data -sigfile signature"
    assert b"Signature Verified Successfully" in subprocess.run(command.split(), **run).stdout


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=50), st.binary(max_size=70), st.integers(0, 511))
def test_what_does_not_fit_is_refused(data, other, bit):
    key = SigningKey(bytes.fromhex(SECRET))
    signature = bytearray(key.sign(data))
    signature[bit // 8] ^= 1 << bit % 8
    cases = [
        (data, bytes(signature), PUBLIC),
        (data, other, PUBLIC),
        (data, key.sign(data), SigningKey.generate().public_key),
    ]
    for case in [*cases, (data + b"x", key.sign(data), PUBLIC)]:
        with pytest.raises(
            ValueError,
            match=r"^The signature does not fit\. Expected one of these \d+ bytes by the key [0-9a-f]{64}\. ",
        ):
            check_signature(*case)


@pytest.mark.parametrize("kind", ["garbage", "certificate", "rsa", "public", "encrypted"])
def test_files_that_are_no_signing_key(tmp_path, kind):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    key, pem, pkcs8 = ed25519.Ed25519PrivateKey.generate(), s.Encoding.PEM, s.PrivateFormat.PKCS8
    content = {
        "garbage": lambda: b"my secret",
        "certificate": lambda: b"-----BEGIN CERTIFICATE-----\nbXkgc2VjcmV0\n-----END CERTIFICATE-----\n",
        "rsa": lambda: rsa.generate_private_key(65537, 2048).private_bytes(pem, pkcs8, s.NoEncryption()),
        "public": lambda: key.public_key().public_bytes(pem, s.PublicFormat.SubjectPublicKeyInfo),
        "encrypted": lambda: key.private_bytes(pem, pkcs8, s.BestAvailableEncryption(b"password")),
    }[kind]()
    path = tmp_path / "signing.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        SigningKey.load(path)
    assert str(error.value).startswith(
        f"This file is not a readable signing key. Expected an unencrypted Ed25519 private key in PEM. Received: {path} ("
    )
    assert "secret" not in str(error.value) and error.value.__cause__ is None


def test_a_secret_of_another_length_is_refused_and_not_shown():
    with pytest.raises(ValueError) as error:
        SigningKey(b"my secret")
    assert "Expected 32 bytes." in str(error.value) and "my secret" not in str(error.value)


def test_nothing_shows_the_secret():
    key = SigningKey(bytes.fromhex(SECRET))
    assert repr(key) == f"SigningKey(public_key={PUBLIC!r})"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="A signing key cannot be pickled"):
            leak(key)
