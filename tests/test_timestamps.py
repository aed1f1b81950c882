"""Time-stamps by a real authority on this machine, and those that must be refused, each for its reason."""

import datetime
import shutil
import ssl
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

x509 = pytest.importorskip("cryptography.x509", reason="time-stamps need `deepsigns_tf[evidence]`")
timestamps = pytest.importorskip("deepsigns_tf.timestamps", reason="time-stamps need `deepsigns_tf[evidence]`")

from cryptography.hazmat.primitives.serialization import Encoding  # noqa: E402

from benchmarks.authorities import TIME_STAMPING, certified, time_stamp  # noqa: E402
from deepsigns_tf.timestamps import check_time_stamp, read_time_stamp, time_stamp_request  # noqa: E402
from tests.authorities import authority  # noqa: E402

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the authority is `openssl ts`, which is not here"
)

STATEMENT = b'{"what":"was stated"}'
REFUSED = (
    "This time-stamp is refused. Expected the reply of an authority that the given roots lead to, which grants a time-stamp of this "
    "statement by SHA-256. Received: "
)


@pytest.fixture(scope="module")
def root():
    return certified("Root of trust")


@pytest.fixture(scope="module")
def signer(root):
    return certified("Authority of time", root, purposes=TIME_STAMPING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("authority")


@pytest.fixture(scope="module")
def reply(signer, folder):
    return time_stamp(time_stamp_request(STATEMENT), signer, folder)


def test_a_time_stamp_says_when_and_by_whom(reply, root):
    found = check_time_stamp(reply, STATEMENT, root.pem)
    assert abs(found.time - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=10)
    assert found.authority == "CN=Authority of time" and found.serial_number >= 1
    assert read_time_stamp(reply, STATEMENT) == found


def test_an_authority_is_asked_by_http(signer, root, folder):
    import httpx

    with authority(signer, folder) as url:
        answer = httpx.post(url, content=time_stamp_request(STATEMENT))
    assert check_time_stamp(answer.content, STATEMENT, root.pem).authority == "CN=Authority of time"


def test_a_request_holds_the_hash_and_not_the_statement(tmp_path):
    request = time_stamp_request(STATEMENT)
    assert STATEMENT not in request and request != time_stamp_request(STATEMENT), "a nonce of its own each time"
    (tmp_path / "request").write_bytes(request)
    command = ["openssl", "ts", "-query", "-in", "request", "-text"]
    text = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "Hash Algorithm: sha256" in text and "Certificate required: yes" in text


def test_openssl_agrees(reply, root, tmp_path):
    (tmp_path / "reply").write_bytes(reply)
    (tmp_path / "data").write_bytes(STATEMENT)
    (tmp_path / "root").write_bytes(root.pem)
    command = ["openssl", "ts", "-verify", "-data", "data", "-in", "reply", "-CAfile", "root"]
    assert "Verification: OK" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout


def test_an_authority_below_another_one_and_one_root_of_several(root, folder):
    """Certificates come in any order: whichever of the two is the larger."""
    for _ in range(6):
        middle = certified("Between", root)
        signer = certified("Below", middle, purposes=TIME_STAMPING)
        reply = time_stamp(time_stamp_request(STATEMENT), signer, folder, chain=middle.pem)
        assert check_time_stamp(reply, STATEMENT, certified("Other").pem + root.pem).authority == "CN=Below"


def refused(reply, data, roots):
    with pytest.raises(ValueError) as error:
        check_time_stamp(reply, data, roots)
    assert str(error.value).startswith(REFUSED)
    return str(error.value).removeprefix(REFUSED)


def test_a_time_stamp_of_something_else_is_refused(reply, root):
    assert refused(reply, STATEMENT + b" ", root.pem) == "the time-stamp of something else"
    with pytest.raises(ValueError, match="Received: the time-stamp of something else"):
        read_time_stamp(reply, b"")


def test_a_time_stamp_by_another_hash_is_refused(signer, root, folder):
    import rfc3161_client

    request = rfc3161_client.TimestampRequestBuilder(STATEMENT, rfc3161_client.HashAlgorithm.SHA512).build().as_bytes()
    assert refused(time_stamp(request, signer, folder), STATEMENT, root.pem) == "the time-stamp of something else"


@pytest.mark.parametrize(
    ("days", "reason"),
    [
        ((-100, -1), "one whose certificate had expired at the time that it confirms"),
        ((1, 100), "one whose certificate was not valid yet at the time that it confirms"),
    ],
)
def test_a_certificate_that_was_not_valid_is_refused(root, folder, days, reason):
    signer = certified("Out of time", root, days, TIME_STAMPING)
    assert refused(time_stamp(time_stamp_request(STATEMENT), signer, folder), STATEMENT, root.pem) == reason


def test_a_foreign_authority_is_refused(reply):
    """Even one that bears the same name."""
    for name in ("Root of trust", "Other"):
        assert refused(reply, STATEMENT, certified(name).pem).startswith(
            ("one of somebody whom none of the roots leads to", "a time-stamp that does not hold: ")
        )


def test_an_authority_without_its_certificate_is_refused(signer, root, folder):
    import rfc3161_client

    builder = rfc3161_client.TimestampRequestBuilder(STATEMENT, rfc3161_client.HashAlgorithm.SHA256, cert_req=False)
    reply = time_stamp(builder.build().as_bytes(), signer, folder)
    assert refused(reply, STATEMENT, root.pem) == "one without the certificate of its signer"
    assert read_time_stamp(reply, STATEMENT).authority == "somebody certified by CN=Root of trust"


def signed_by(signer, reply, folder):
    """The time-stamp in a reply, signed by somebody else with `openssl cms`."""
    for name, content in {"granted": reply, "signer": signer.pem, "key": signer.key_pem}.items():
        (folder / name).write_bytes(content)
    for command in (
        "openssl ts -reply -in granted -token_out -out token",
        "openssl cms -verify -noverify -inform DER -in token -out info",
        "openssl cms -sign -binary -nodetach -econtent_type 1.2.840.113549.1.9.16.1.4 -in info -signer signer -inkey key "
        "-outform DER -out forged",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    content = bytes.fromhex("3003020100") + (folder / "forged").read_bytes()
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


@pytest.mark.parametrize("purpose", ["SERVER_AUTH", "EMAIL_PROTECTION", "CODE_SIGNING"])
def test_a_certificate_for_other_purposes_is_refused(reply, root, tmp_path, purpose):
    """Whoever has any certificate below a root could tell the time otherwise: a web server, a writer of letters."""
    other = certified("Other", root, purposes=[getattr(x509.ExtendedKeyUsageOID, purpose)])
    reason = refused(signed_by(other, reply, tmp_path), STATEMENT, root.pem)
    assert reason == "a time-stamp that does not hold: unsuitable certificate purpose"


def test_the_same_way_with_a_certificate_for_it_holds(reply, root, tmp_path):
    """The control of the test above."""
    other = certified("Other authority", root, purposes=TIME_STAMPING)
    assert check_time_stamp(signed_by(other, reply, tmp_path), STATEMENT, root.pem).authority == "CN=Other authority"


def test_a_refusal_is_no_time_stamp(signer, root, folder):
    assert refused(time_stamp(b"no request", signer, folder), STATEMENT, root.pem).startswith("the status rejection, ")


def test_roots_that_are_none_are_told(reply, root):
    # Of a version that there is not.
    altered = root.certificate.public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x42")
    for roots in (b"no certificate", ssl.DER_cert_to_PEM_cert(altered).encode()):
        with pytest.raises(ValueError, match="There is nobody to trust with the time. Expected root certificates"):
            check_time_stamp(reply, STATEMENT, roots)


@pytest.mark.parametrize("reply", [b"", b"0", b"x" * 1000, bytes(2**18 + 1)])
def test_what_is_no_reply_is_refused(reply, root):
    assert refused(reply, STATEMENT, root.pem) in (
        "something else",
        f"{2**18 + 1} bytes, more than any time-stamp needs",
    )


def test_what_makes_the_library_panic_is_refused(signer, root, folder):
    """Its Rust then raises what is no `Exception`: here of a certificate beside the signer's whose name is no UTF-8."""
    reply = time_stamp(time_stamp_request(STATEMENT), signer, folder, chain=certified("Bystander").pem)
    assert check_time_stamp(reply, STATEMENT, root.pem).authority == "CN=Authority of time"
    altered = reply.replace(b"Bystander", b"Bystande\xff")
    # The order of certificates follows from their keys, and which of them is looked at first from that.
    reason = refused(altered, STATEMENT, root.pem)
    assert reason in ("something else", "a time-stamp that does not hold: invalid utf8string")


def test_no_altered_byte_changes_what_is_said(reply, root):
    """Each byte in turn, in one of its bits: nearly all are refused; the few that mean nothing leave the same time-stamp."""
    genuine, random, num_accepted = check_time_stamp(reply, STATEMENT, root.pem), np.random.default_rng(0), 0
    for at, bit in enumerate(random.integers(0, 8, len(reply))):
        altered = bytearray(reply)
        altered[at] ^= 1 << bit
        try:
            found = check_time_stamp(bytes(altered), STATEMENT, root.pem)
        except ValueError as error:
            assert str(error).startswith(REFUSED)
        else:
            num_accepted += 1
            assert found == genuine
    assert num_accepted < 0.02 * len(reply)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_whatever_was_altered_there_is_one_kind_of_error(reply, root, data):
    altered = bytearray(reply)
    for _ in range(data.draw(st.integers(1, 5))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    altered = altered[: data.draw(st.integers(0, len(altered)))]
    try:
        assert check_time_stamp(bytes(altered), STATEMENT, root.pem).time == read_time_stamp(reply, STATEMENT).time
    except ValueError as error:
        assert str(error).startswith(REFUSED)


def test_a_time_stamp_is_checked_without_a_network(reply, root, monkeypatch):
    import socket

    def no_network(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert check_time_stamp(reply, STATEMENT, root.pem).authority == "CN=Authority of time"
