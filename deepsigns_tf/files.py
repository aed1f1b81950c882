"""Files that are either whole or absent, and what they are told by."""

import hashlib
import os
import pathlib
import stat
import tempfile


def write_atomically(path: str | os.PathLike[str], data: bytes, mode: int | None = None) -> None:
    """Writes a file beside its place and renames it there, so that no reader ever sees half of it.

    Args:
        path: Where the file goes; its folder must exist.
        data: The content.
        mode: Permissions of the file; None for what the umask leaves.

    Raises:
        OSError: If the folder is missing or cannot be written; `path` is then unchanged.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "note.txt")
    >>> write_atomically(path, b"whole")
    >>> path.read_bytes()
    b'whole'
    """
    path = pathlib.Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o666 & ~_umask() if mode is None else mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_regular_file(path: str | os.PathLike[str], max_bytes: int, wrong: str, follow_links: bool = True) -> bytes:
    """Content of a file that somebody else may have put there: looked at before it is read.

    Args:
        path: The file.
        max_bytes: The most that it may hold.
        wrong: What the error says first.
        follow_links: Whether `path` may be a symbolic link.

    Returns:
        The content; of a file that grows meanwhile, what it held at first.

    Raises:
        ValueError: If it is a folder, pipe, socket or device, or too large.
        OSError: If it cannot be read, or is a link that is not followed.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "note.txt")
    >>> write_atomically(path, b"whole")
    >>> read_regular_file(path, 5, "This note is not read")
    b'whole'
    """
    # A pipe without a writer would keep us waiting.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        received = ""
        if stat.S_ISDIR(status.st_mode):
            received = "a folder"
        elif not stat.S_ISREG(status.st_mode):
            received = "a pipe, socket or device"
        elif status.st_size > max_bytes:
            received = f"{status.st_size} bytes"
        if received:
            raise ValueError(
                f"{wrong}. Expected a regular file of at most {max_bytes} bytes. Received: {received}, {os.fspath(path)}"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be read.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "note.txt")
    >>> _ = path.write_bytes(b"")
    >>> file_digest(path)[:16]
    'e3b0c44298fc1c14'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    # The umask can only be read by setting it.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
