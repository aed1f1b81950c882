"""The file that an owner key is kept in: a header and arrays, behind their digest. Nothing in it is executed when it is read."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from deepsigns_tf.activations import Inputs
from deepsigns_tf.examples import Examples
from deepsigns_tf.files import read_regular_file, write_atomically

Key = TypeVar("Key")

_FORMAT_VERSION = 1
_MAGIC = b"deepsigns_tf owner key\n"
# All that a key file holds, unpacked: a small file may unpack to more than a machine has.
_MAX_BYTES = 2**31
# What cannot be compressed grows a little.
_MAX_FILE_BYTES = _MAX_BYTES + _MAX_BYTES // 1000


def write_key_file(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file that only its owner may read (mode 0600).

    Args:
        path: Where to; an existing file is replaced as a whole.
        header: JSON-ready values.
        arrays: By names other than `"header"`.

    Raises:
        ValueError: If they hold more than 2 GiB.
        OSError: If the folder cannot be written.

    Example: see `read_key_file`.
    """
    # A file from which a part was taken is not a key without it.
    whole = json.dumps({**header, "arrays": sorted(arrays)}, sort_keys=True)
    payload = io.BytesIO()
    np.savez_compressed(payload, **arrays, header=np.frombuffer(whole.encode(), np.uint8))  # type: ignore[arg-type]
    _check_size(payload)
    data = _FORMAT_VERSION.to_bytes(4, "big") + payload.getvalue()
    write_atomically(path, _MAGIC + hashlib.sha256(data).digest() + data, mode=0o600)


def read_key_file(path: str | os.PathLike[str], revive: Callable[[dict[str, Any], dict[str, np.ndarray]], Key]) -> Key:
    """Reads what `write_key_file` wrote.

    Args:
        path: The file.
        revive: From header and arrays to what they describe. Whatever it raises is told as malformed content.

    Returns:
        What `revive` makes of it.

    Raises:
        ValueError: If the file is no regular one, foreign, truncated, altered, of a newer version, malformed, or holds more than 2 GiB.
        OSError: If it cannot be opened.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "owner.key")
    >>> write_key_file(path, {"owner": "ACME Vision"}, {"seed": np.zeros(32, np.uint8)})
    >>> read_key_file(path, lambda header, arrays: (header["owner"], arrays["seed"].shape))
    ('ACME Vision', (32,))
    """
    content = read_regular_file(path, _MAX_FILE_BYTES, "This file is not a readable owner key")
    if not content.startswith(_MAGIC):
        raise _unreadable(path, "it does not begin like one")
    digest, data = content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if hashlib.sha256(data).digest() != digest:
        raise _unreadable(path, "its content does not match its digest: it was truncated or altered")
    version = int.from_bytes(data[:4], "big")
    if version != _FORMAT_VERSION:
        raise _unreadable(path, f"it has format version {version}, this release reads {_FORMAT_VERSION}")
    try:
        _check_size(io.BytesIO(data[4:]))
        with np.load(io.BytesIO(data[4:]), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
        if sorted(arrays) != header["arrays"]:
            raise ValueError("other arrays than were written")
        return revive(header, arrays)
    except Exception as error:  # NumPy and zipfile have no closed list of what a made-up payload raises.
        raise _unreadable(path, f"its content is malformed ({type(error).__name__})") from error


def stored(examples: Examples | None, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a key file that hold some examples."""
    if examples is None:
        return {}
    return {f"{prefix}labels": examples.labels} | stored_inputs(examples.inputs, prefix)


def stored_inputs(inputs: Inputs | None, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a key file that hold inputs without labels."""
    if isinstance(inputs, Mapping):
        return {f"{prefix}input:{name}": array for name, array in inputs.items()}
    return {} if inputs is None else {f"{prefix}input": inputs}


def taken_out(arrays: dict[str, np.ndarray], prefix: str) -> tuple[Inputs, np.ndarray] | None:
    """What `stored` put among the arrays; they are removed from there."""
    labels, inputs = arrays.pop(f"{prefix}labels", None), inputs_taken_out(arrays, prefix)
    if (labels is None) != (inputs is None):
        raise ValueError("examples without labels")
    return None if inputs is None or labels is None else (inputs, labels)


def inputs_taken_out(arrays: dict[str, np.ndarray], prefix: str) -> Inputs | None:
    """What `stored_inputs` put among the arrays; they are removed from there."""
    single, start = arrays.pop(f"{prefix}input", None), f"{prefix}input:"
    named = {name.removeprefix(start): arrays.pop(name) for name in list(arrays) if name.startswith(start)}
    if named and single is not None:
        raise ValueError("inputs of two kinds")
    return named or single


def _check_size(payload: io.BytesIO) -> None:
    with zipfile.ZipFile(payload) as archive:
        num_bytes = sum(member.file_size for member in archive.infolist())
    if num_bytes > _MAX_BYTES:
        raise ValueError(
            f"This key is too large. Expected key inputs and triggers of at most {_MAX_BYTES} bytes in all. Received: {num_bytes} bytes"
        )


def _unreadable(path: str | os.PathLike[str], why: str) -> ValueError:
    return ValueError(
        f"This file is not a readable owner key: {why}. Expected a whole, unaltered file written by `OwnerKey.save`. "
        f"Received: {os.fspath(path)}"
    )
