"""The folder that an owner hands out: signed statements and their time-stamps, nothing secret.

`0001.json` is the first statement, `0001.sig` its signature, `0001.tsr` an authority's reply, where there is one; and so on without a
gap. Any folder may be hostile: files are looked at before they are read, and nothing in them is executed. docs/evidence-format.md says
how to check it without this package. Needs the extra `evidence` (`pip install "deepsigns_tf[evidence]"`).
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
from collections.abc import Iterator

from deepsigns_tf.commitments import Evidence, Release, Statement, TimeStamp, release_commitment
from deepsigns_tf.files import read_regular_file, write_atomically
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.signatures import SigningKey, check_signature
from deepsigns_tf.timestamps import check_time_stamp, read_time_stamp

_MAX_BYTES = 2**18
_MAX_STATEMENTS = 9999

Folder = str | os.PathLike[str]


def load_evidence(
    folder: Folder, roots: bytes | None = None, suspect_since: datetime.datetime | None = None
) -> Evidence:
    """Reads a folder and checks it: every statement, every signature, the chain, and the time-stamps.

    Args:
        folder: The folder.
        roots: Certificates in PEM of the time-stamping authorities that whoever verifies trusts. Without them time-stamps are not
            looked at.
        suspect_since: Since when the suspect is known to exist, with a time zone, from a source of the verifier's own. Only statements
            with an older time-stamp count as commitments.

    Returns:
        The evidence.

    Raises:
        ValueError: If a statement is missing, malformed or not signed by the chain's key, the chain is broken, or a time-stamp is refused.
        OSError: If the folder or a file cannot be read.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> folder, signing_key = tempfile.mkdtemp(), SigningKey.generate()
    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 50, 10, np.random.rand(4, 8))
    >>> add_statement(folder, signing_key, key).number
    1
    >>> load_evidence(folder).opened_by(key).num_seeds
    1
    """
    folder = pathlib.Path(folder)
    numbers = sorted(int(each.stem) for each in folder.iterdir() if _is_statement(each.name))
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(
            f"This evidence has gaps. Expected statements from 1 to {max(numbers)}. "
            f"Received: {len(numbers)} of them, in folder={os.fspath(folder)}"
        )
    statements, time_stamps = [], {}
    for number in numbers:
        data = _content(_file(folder, number, "json"))
        try:
            statement = Statement.decode(data)
            check_signature(data, _content(_file(folder, number, "sig")), statement.public_key)
            if roots is not None and _file(folder, number, "tsr").exists():
                time_stamps[number] = check_time_stamp(_content(_file(folder, number, "tsr")), data, roots)
        except ValueError as error:
            raise ValueError(f"Statement {number} of {os.fspath(folder)}: {error}") from error
        statements.append(statement)
    if not statements:
        raise ValueError(
            f"There is no evidence in this folder. Expected 0001.json and what goes with it. Received: folder={os.fspath(folder)}"
        )
    return Evidence(tuple(statements), time_stamps, suspect_since)


def add_statement(
    folder: Folder,
    signing_key: SigningKey,
    owner_key: OwnerKey,
    release_id: str | None = None,
    weights: str | None = None,
) -> Statement:
    """States that an owner has a key or, with a release, that a model leaves the house; signs it, and writes it.

    What was stated already is not stated again: the statement that stands there is returned.

    Args:
        folder: A folder that exists. It holds the chain of this signing key or nothing.
        signing_key: Signs; one for all keys of an owner, with one folder.
        owner_key: The key that is committed to: before marking, and as `release` returned it for a release.
        release_id: Name of the release.
        weights: `weights_digest` of the released model.

    Returns:
        The statement, whose `digest()` is to be published or time-stamped.

    Raises:
        ValueError: If the folder holds somebody else's statements or broken ones, or a release of what was not committed to.
        OSError: If it cannot be read or written.
    """
    folder = pathlib.Path(folder)
    with _locked(folder):
        return _added(folder, signing_key, owner_key, release_id, weights)


def _added(
    folder: pathlib.Path, signing_key: SigningKey, owner_key: OwnerKey, release_id: str | None, weights: str | None
) -> Statement:
    empty = not any(_is_statement(each.name) for each in folder.iterdir())
    chain = () if empty else load_evidence(folder).statements
    release = None
    if release_id is not None:
        release = Release(release_id, weights or "", release_commitment(owner_key, weights or "", release_id))
    statement = Statement(
        owner_key.owner,
        signing_key.public_key,
        number=len(chain) + 1,
        previous=chain[-1].digest() if chain else None,
        commitment=owner_key.commitment(),
        release=release,
    )
    # Somebody else's chain, or a release without a commitment, is refused here.
    Evidence((*chain, statement))
    for each in chain:
        if (each.commitment, each.release) == (statement.commitment, release):
            return each
    if statement.number > _MAX_STATEMENTS:
        raise ValueError(
            f"This folder is full. Expected at most {_MAX_STATEMENTS} statements. Received: folder={os.fspath(folder)}"
        )
    data = statement.encode()
    # The signature first: a statement that is there is signed.
    write_atomically(_file(folder, statement.number, "sig"), signing_key.sign(data))
    write_atomically(_file(folder, statement.number, "json"), data)
    return statement


def add_time_stamp(folder: Folder, number: int, reply: bytes, roots: bytes | None = None) -> TimeStamp:
    """Puts an authority's reply beside the statement that it belongs to.

    Args:
        folder: The folder.
        number: Of the statement.
        reply: What the authority sent, `application/timestamp-reply`.
        roots: Certificates in PEM to check it with; without them it must only fit the statement.

    Returns:
        What it says.

    Raises:
        ValueError: If it belongs to something else or is refused; nothing is written then.
        OSError: If there is no such statement, or the folder cannot be written.
    """
    data = _content(_file(pathlib.Path(folder), number, "json"))
    time_stamp = read_time_stamp(reply, data) if roots is None else check_time_stamp(reply, data, roots)
    write_atomically(_file(pathlib.Path(folder), number, "tsr"), reply)
    return time_stamp


def statement_file(folder: Folder, number: int) -> pathlib.Path:
    """Where a statement lies: what `sha256sum` and a time-stamping authority are shown.

    Args:
        folder: The folder.
        number: Of the statement.
    """
    return _file(pathlib.Path(folder), number, "json")


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Makes other processes wait that add to the folder: two statements of one number would be neither."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Closing, or the end of the process, gives it back.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _file(folder: pathlib.Path, number: int, kind: str) -> pathlib.Path:
    return folder / f"{number:04d}.{kind}"


def _is_statement(name: str) -> bool:
    stem, _, kind = name.partition(".")
    return kind == "json" and len(stem) == 4 and stem.isascii() and stem.isdecimal()


def _content(path: pathlib.Path) -> bytes:
    """A small, regular file: no link, pipe or device that somebody put there."""
    return read_regular_file(path, _MAX_BYTES, "This file is no part of any evidence", follow_links=False)
