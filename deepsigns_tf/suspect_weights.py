"""A suspect's weights, looked at in the child before the framework starts: HDF5 is read by a C library, never in the parent."""

import io
import math
from collections.abc import Iterator
from typing import BinaryIO

import h5py
import numpy as np

from deepsigns_tf.suspect_files import refuse, shown

_WRONG = "These weights are not loaded"
_MAX_DEPTH = 64
_MAX_OBJECTS = 100_000
_CHUNK = 1 << 22


def look_at_weights(file: BinaryIO) -> int:
    """Looks at every object of an HDF5 file, and at every number.

    Args:
        file: HDF5, as Keras writes it into an archive.

    Returns:
        How many numbers there are.

    Raises:
        ValueError: If there is a link to somewhere else, data kept elsewhere or not at all, or a number that is none.

    Example:

    >>> import io
    >>> file = io.BytesIO()
    >>> with h5py.File(file, "w") as weights:
    ...     weights["layers/dense/vars/0"] = np.ones((4, 2), "float32")
    >>> look_at_weights(file)
    8
    """
    num_bytes = file.seek(0, io.SEEK_END)
    try:
        with h5py.File(file, "r") as weights:
            return sum(_check_dataset(name, dataset, num_bytes) for name, dataset in _datasets(weights))
    except (OSError, RuntimeError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        refuse(_WRONG, "a whole HDF5 file", shown(str(error)))


def _datasets(root: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset by its path; each object may be there once, so that there are no circles either."""
    seen = {_address(root)}
    waiting = [("", root)]
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            path = f"{prefix}/{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                refuse(_WRONG, "objects of the file itself", f"an {type(link).__name__} at {shown(path)}")
            found = group[name]
            address = _address(found)
            if address in seen:
                refuse(_WRONG, "each object under one name", f"another name, {shown(path)}")
            seen.add(address)
            if len(seen) > _MAX_OBJECTS or path.count("/") > _MAX_DEPTH:
                refuse(_WRONG, f"at most {_MAX_OBJECTS} objects in {_MAX_DEPTH} levels", f"more, at {shown(path)}")
            if isinstance(found, h5py.Group):
                waiting.append((path, found))
            elif isinstance(found, h5py.Dataset):
                yield path, found
            else:
                refuse(_WRONG, "groups and datasets", f"a {type(found).__name__} at {shown(path)}")


def _address(found: h5py.HLObject) -> object:
    info = h5py.h5o.get_info(found.id)
    return info.fileno, info.addr


def _check_dataset(path: str, dataset: h5py.Dataset, num_bytes: int) -> int:
    if dataset.is_virtual or dataset.external:
        kind = "a virtual dataset" if dataset.is_virtual else "data in another file"
        refuse(_WRONG, "datasets that lie in the file itself", f"{kind} at {shown(path)}")
    try:
        dtype = dataset.dtype
    except ValueError as error:  # A floating-point format that NumPy has not.
        refuse(_WRONG, "numbers", f"{shown(str(error))} at {shown(path)}")
    bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None
    if dtype.kind not in "biuf" and not bfloat16:
        refuse(_WRONG, "numbers", f"type {shown(str(dtype))} at {shown(path)}")
    if dataset.shape is None or dataset.id.get_create_plist().get_nfilters():
        refuse(_WRONG, "datasets as Keras writes them", f"one that is compressed or empty at {shown(path)}")
    # The size that is said to be stored is the file's word too.
    declared, stored = math.prod(dataset.shape) * dtype.itemsize, min(dataset.id.get_storage_size(), num_bytes)
    if declared > stored:
        refuse(_WRONG, f"{declared} bytes of shape {dataset.shape} at {shown(path)}", f"{stored} bytes in the file")
    for part in _parts(dataset):
        # All ones in the exponent: infinite or no number.
        finite = (part.view(np.uint16) & 0x7F80) != 0x7F80 if bfloat16 else np.isfinite(part)
        if not finite.all():
            refuse(_WRONG, "finite numbers", f"{np.count_nonzero(~finite)} others at {shown(path)}")
    return math.prod(dataset.shape)


def _parts(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """A few rows at a time."""
    if dataset.ndim == 0:
        yield np.asarray(dataset[()]).reshape(1)
    elif dataset.size:
        rows = max(1, _CHUNK * dataset.shape[0] // dataset.size)
        for start in range(0, dataset.shape[0], rows):
            yield np.ascontiguousarray(dataset[start : start + rows])
