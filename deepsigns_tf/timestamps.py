"""Time-stamps of statements: what to ask an authority, and whether its reply holds, without a network.

Needs `rfc3161-client` (`pip install "deepsigns_tf[evidence]"`). What is confirmed is that bytes existed at a time. Whom to trust with that
is for whoever verifies: the root certificates are theirs, never the claimant's.

Source: RFC 3161, RFC 5816.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import cryptography.x509
import rfc3161_client

from deepsigns_tf.commitments import TimeStamp

_SHA256 = cryptography.x509.ObjectIdentifier("2.16.840.1.101.3.4.2.1")
_MAX_BYTES = 2**18
# What OpenSSL says of the commonest faults.
_IN_WORDS = {
    "certificate has expired": "one whose certificate had expired at the time that it confirms",
    "certificate is not yet valid or the system clock is incorrect": "one whose certificate was not valid yet at the time that it confirms",
    "unable to get local issuer certificate": "one of somebody whom none of the roots leads to",
    "self signed certificate": "one of somebody whom none of the roots leads to",
    "self-signed certificate": "one of somebody whom none of the roots leads to",
    "signer certificate not found": "one without the certificate of its signer",
    "digest failure": "one that was altered: its digest does not fit",
    "signature failure": "one that was altered: its signature does not fit",
}


def time_stamp_request(data: bytes) -> bytes:
    """What to send to an authority, as `application/timestamp-query`: SHA-256 of the data, a nonce, and the wish for its certificate.

    Args:
        data: The bytes of a statement. They do not leave the house, their hash does.

    Returns:
        A `TimeStampReq` in DER, what `openssl ts -query -sha256 -cert` writes.

    Example:

    >>> import hashlib
    >>> hashlib.sha256(b"statement").digest() in time_stamp_request(b"statement")
    True
    """
    builder = rfc3161_client.TimestampRequestBuilder(
        data, rfc3161_client.HashAlgorithm.SHA256, nonce=True, cert_req=True
    )
    return bytes(builder.build().as_bytes())


def read_time_stamp(reply: bytes, data: bytes) -> TimeStamp:
    """What a reply says, without any check of who says it.

    Args:
        reply: A `TimeStampResp` in DER, what an authority sent.
        data: The bytes of the statement.

    Returns:
        Its time-stamp; `check_time_stamp` tells whether it holds.

    Raises:
        ValueError: If it is no reply, was not granted, or is one to other bytes.
    """
    return _granted(reply, data)[1]


def check_time_stamp(reply: bytes, data: bytes, roots: bytes) -> TimeStamp:
    """Checks a time-stamp offline.

    The authority's certificate must lead to one of the roots, be made for time-stamping, and have been valid at the time that it confirms;
    that it expired later does not matter. Whether it was revoked is not looked up.

    Args:
        reply: A `TimeStampResp` in DER, what the authority sent, with its certificate in it.
        data: The bytes of the statement.
        roots: Certificates in PEM, one or several, that whoever verifies trusts.

    Returns:
        When the bytes existed, and who says so.

    Raises:
        ValueError: If the reply is of other bytes, was altered, is somebody else's, or was made with a certificate that had expired; the
            text tells which. Also if `roots` holds no certificate.
    """
    try:
        certificates = cryptography.x509.load_pem_x509_certificates(roots)
    except Exception as error:  # Not all that it raises is a ValueError: `InvalidVersion`.
        raise ValueError(
            "There is nobody to trust with the time. Expected root certificates of a time-stamping authority, in PEM. "
            f"Received: {len(roots)} bytes without one"
        ) from error
    response, time_stamp = _granted(reply, data)
    with _refusing(_reason):
        rfc3161_client.VerifierBuilder(roots=certificates).build().verify_message(response, data)
    return time_stamp


def _granted(reply: bytes, data: bytes) -> tuple[Any, TimeStamp]:
    """A reply that grants a time-stamp of these bytes, and what it says, as it says itself."""
    if len(reply) > _MAX_BYTES:
        raise _refused(f"{len(reply)} bytes, more than any time-stamp needs")
    with _refusing():
        response = rfc3161_client.decode_timestamp_response(_with_certificates_in_order(reply))
        status, status_string = rfc3161_client.PKIStatus(response.status), response.status_string
    if status != rfc3161_client.PKIStatus.GRANTED:
        raise _refused(f"the status {status.name.lower()}, {status_string}")
    with _refusing():
        info = response.tst_info
        imprint = info.message_imprint.hash_algorithm, info.message_imprint.message
        time_stamp = TimeStamp(info.gen_time, _signer(response), int(info.serial_number))
    if imprint != (_SHA256, hashlib.sha256(data).digest()):
        raise _refused("the time-stamp of something else")
    return response, time_stamp


def _with_certificates_in_order(reply: bytes) -> bytes:
    """The same reply with its certificates in the order of their bytes, as DER wants a set to be.

    `openssl ts` leaves a chain in the order in which it was given, and the library refuses that. No signature covers the order.
    """
    try:
        response = _elements(reply, 0, len(reply))[0]
        token = _elements(reply, *response[1:])[1]
        content = _elements(reply, *token[1:])[1]
        signed_data = _elements(reply, *content[1:])[0]
        _, start, end = next(each for each in _elements(reply, *signed_data[1:]) if reply[each[0]] == 0xA0)
        ordered = b"".join(sorted(reply[first:last] for first, _, last in _elements(reply, start, end)))
    except (IndexError, StopIteration):
        return reply
    return reply[:start] + ordered + reply[end:]


def _elements(data: bytes, start: int, end: int) -> list[tuple[int, int, int]]:
    """Where each element of DER begins, its content begins, and it ends."""
    found = []
    while start < end:
        content, size = start + 2, data[start + 1]
        if size >= 0x80:
            content += size - 0x80
            size = int.from_bytes(data[start + 2 : content], "big")
        found.append((start, content, content + size))
        start = content + size
    return found


def _signer(response: Any) -> str:
    """The name in the signer's certificate, or its issuer's where the reply does not hold it."""
    for each in response.signed_data.signer_infos:
        for encoded in response.signed_data.certificates:
            certificate = cryptography.x509.load_der_x509_certificate(encoded)
            if (certificate.issuer, certificate.serial_number) == (each.issuer, each.serial_number):
                return certificate.subject.rfc4514_string()
        return f"somebody certified by {each.issuer.rfc4514_string()}"
    return "nobody"


@contextlib.contextmanager
def _refusing(reason: Callable[[BaseException], str] = lambda error: "something else") -> Iterator[None]:
    """Whatever a made-up reply makes the library raise is a refusal."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # A panic of the library's Rust is no `Exception`.
        raise _refused(reason(error)) from error


def _reason(error: BaseException) -> str:
    """What is wrong, in one line, from the many that the library and OpenSSL give."""
    text = str(error)
    for found in (re.search('Verify error: ([^"]*)', text), *re.finditer('reason: "([^"]*)"', text)):
        if found is not None:
            return _IN_WORDS.get(found[1], f"a time-stamp that does not hold: {found[1]}")
    return f"a time-stamp that does not hold: {text}"


def _refused(received: str) -> ValueError:
    return ValueError(
        "This time-stamp is refused. Expected the reply of an authority that the given roots lead to, which grants a time-stamp of this "
        f"statement by SHA-256. Received: {received}"
    )
