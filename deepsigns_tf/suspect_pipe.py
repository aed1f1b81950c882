"""Messages between a suspect's process and the one that asks: JSON and arrays, each behind its length.

Arrays travel as plain numbers behind a list of types and shapes: no archive and no pickle is unpacked on either side.
"""

import json
import math
import os
import select
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsigns_tf.suspect_files import parse_json

_DTYPES = frozenset({"|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"})
# Characters of a message for people, or of a layer's path.
MAX_TEXT = 2000
_MAX_HEADER_BYTES = 1 << 24
_MAX_HEADER_DEPTH = 16
_MAX_AXES = 16
# The most bytes that NumPy can count.
_MAX_ADDRESS = (1 << 63) - 1
_CHUNK = 1 << 20


class TalkError(Exception):
    """The other side ended, was too slow, or said what is no message."""


class Pipe:
    """One end of a talk over two pipes.

    Args:
        reading: File descriptor to read from.
        writing: File descriptor to write to.

    Example:

    >>> reading, writing = os.pipe()
    >>> pipe = Pipe(reading, writing)
    >>> pipe.send({"ask": "features"}, [np.ones((2, 3), "float32")])
    >>> content, arrays = pipe.receive(max_bytes=100)
    >>> content, arrays[0].shape
    ({'ask': 'features'}, (2, 3))
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing

    def send(self, content: Any, arrays: Sequence[np.ndarray] = (), deadline: float = math.inf) -> None:
        """Sends a message.

        Args:
            content: What JSON can hold.
            arrays: Numbers.
            deadline: When to give up, by `time.monotonic`.

        Raises:
            TalkError: If nobody takes it.
        """
        plain = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for array in arrays]
        header = json.dumps(
            {
                "content": content,
                "arrays": [[each.dtype.str, list(array.shape)] for each, array in zip(plain, arrays, strict=True)],
            }
        ).encode()
        self._write(len(header).to_bytes(8, "big") + header, deadline)
        for each in plain:
            self._write(each.reshape(-1).view(np.uint8), deadline)

    def receive(self, max_bytes: int, deadline: float = math.inf) -> tuple[Any, list[np.ndarray]]:
        """Waits for a message.

        Args:
            max_bytes: The most that its arrays may hold together.
            deadline: When to give up, by `time.monotonic`.

        Returns:
            Content and arrays, of whatever shape and type the other side likes.

        Raises:
            TalkError: If there is none, or it is malformed or too large.
        """
        size = int.from_bytes(self._read(8, deadline), "big")
        if size > _MAX_HEADER_BYTES:
            raise TalkError(f"a header of {size} bytes")
        try:
            header = parse_json(bytes(self._read(size, deadline)), _MAX_HEADER_BYTES, _MAX_HEADER_DEPTH)
        except ValueError as error:
            raise TalkError(str(error)) from None
        if not isinstance(header, dict) or set(header) != {"content", "arrays"}:
            raise TalkError("a malformed header")
        shapes = [_dtype_and_shape(each) for each in _listed(header["arrays"])]
        total = sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes)
        if total > max_bytes:
            raise TalkError(f"arrays of {total} bytes, of which at most {max_bytes} are taken")
        arrays = [
            np.frombuffer(self._read(dtype.itemsize * math.prod(shape), deadline), dtype).reshape(shape)
            for dtype, shape in shapes
        ]
        return header["content"], arrays

    def _write(self, data: Any, deadline: float) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        poll = select.poll()
        poll.register(self._writing, select.POLLOUT)
        while view:
            self._wait(poll, deadline)
            try:
                view = view[os.write(self._writing, view[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise TalkError("nobody who listens") from None

    def _read(self, size: int, deadline: float) -> bytearray:
        data = bytearray()
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        while len(data) < size:
            self._wait(poll, deadline)
            part = os.read(self._reading, min(_CHUNK, size - len(data)))
            if not part:
                raise TalkError("an end")
            data += part
        return data

    def _wait(self, poll: select.poll, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(None if left == math.inf else max(1.0, 1000 * left)):
            raise TalkError("nothing in time")


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > 100_000:
        raise TalkError("a malformed list of arrays")
    return value


def _dtype_and_shape(value: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], list)):
        raise TalkError("a malformed array")
    name, shape = value
    if (
        name not in _DTYPES
        or len(shape) > _MAX_AXES
        or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
    ):
        raise TalkError("an array of another type or shape")
    dtype = np.dtype(name)
    # An axis of none makes an array empty, and its other axes no smaller.
    if dtype.itemsize * math.prod(size or 1 for size in shape) > _MAX_ADDRESS:
        raise TalkError("an array of another type or shape")
    return dtype, tuple(shape)
