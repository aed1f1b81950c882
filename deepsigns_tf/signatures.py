"""The key with which an owner signs statements, in a file of its own; needs `cryptography` (`pip install "deepsigns_tf[evidence]"`).

It is another secret than the owner key: whoever opens a claim hands over the owner key and keeps this one.

Source: RFC 8032 (Ed25519), RFC 8410 (its form in PEM).
"""

import os
import pathlib
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from deepsigns_tf.files import write_atomically


class SigningKey:
    """An Ed25519 key pair.

    Args:
        secret: 32 bytes, the private key; never shown.

    Raises:
        ValueError: If they are anything else.

    Example:

    >>> key = SigningKey.generate()
    >>> check_signature(b"statement", key.sign(b"statement"), key.public_key)
    """

    def __init__(self, secret: bytes) -> None:
        if not isinstance(secret, bytes) or len(secret) != 32:
            raise ValueError(
                "The secret of a signing key is malformed. Expected 32 bytes. Received: something else, not shown here"
            )
        self._private = Ed25519PrivateKey.from_private_bytes(secret)

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public_key(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        """64 bytes, the signature of `data`."""
        return self._private.sign(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the key as PEM, unencrypted, to one file that only its owner may read (mode 0600).

        Args:
            path: Where to; an existing file is replaced as a whole.

        Raises:
            OSError: If the folder cannot be written.

        Example:

        >>> import tempfile
        >>> path, key = pathlib.Path(tempfile.mkdtemp(), "signing.pem"), SigningKey.generate()
        >>> key.save(path)
        >>> SigningKey.load(path).public_key == key.public_key
        True
        """
        data = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(path, data, mode=0o600)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SigningKey":
        """Reads a key that `save` wrote, or another program: `openssl genpkey -algorithm ed25519`.

        Args:
            path: The file.

        Returns:
            The key.

        Raises:
            ValueError: If it holds anything else, or is encrypted.
            OSError: If it cannot be opened.
        """
        data = pathlib.Path(path).read_bytes()
        try:
            private = load_pem_private_key(data, password=None)
            if not isinstance(private, Ed25519PrivateKey):
                raise ValueError("another kind of key")
        except Exception as error:  # `cryptography` has no closed list either.
            # Without the cause: its text may quote the file.
            raise ValueError(
                "This file is not a readable signing key. Expected an unencrypted Ed25519 private key in PEM. "
                f"Received: {os.fspath(path)} ({type(error).__name__})"
            ) from None
        return cls(private.private_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self.public_key!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A signing key cannot be pickled. Expected `SigningKey.save`, the one place that it is written to. "
            "Received: a request to pickle"
        )


def check_signature(data: bytes, signature: bytes, public_key: str) -> None:
    """Refuses a signature that is not of these bytes by this key.

    Args:
        data: What was signed.
        signature: 64 bytes.
        public_key: 64 hexadecimal digits.

    Raises:
        ValueError: If it does not fit.

    Example:

    >>> key = SigningKey.generate()
    >>> try:
    ...     check_signature(b"another statement", key.sign(b"statement"), key.public_key)
    ... except ValueError as error:
    ...     print(str(error)[:27])
    The signature does not fit.
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, data)
    except (InvalidSignature, ValueError) as error:
        raise ValueError(
            f"The signature does not fit. Expected one of these {len(data)} bytes by the key {public_key}. "
            f"Received: {len(signature)} bytes that are not"
        ) from error
