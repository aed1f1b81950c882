"""Examples as a key holds them: checked, frozen, with a digest that a commitment can cover."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from deepsigns_tf.activations import Inputs
from deepsigns_tf.arguments import as_array


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their labels, frozen.

    Args:
        inputs: Array `(K, ...)` or dict of such arrays.
        labels: `(K,)` integers, kept as int64.

    Raises:
        ValueError: If the arrays are empty, of different length, of a type that cannot be stored, or not finite.

    Example:

    >>> examples = Examples({"image": np.zeros((2, 28, 28)), "text": np.ones((2, 100), "int32")}, labels=[3, 7])
    >>> examples.num_examples, sorted(examples.arrays), len(examples.digest())
    (2, ['image', 'text'], 64)
    """

    inputs: Inputs = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        inputs = as_inputs(self.inputs, "inputs")
        if isinstance(inputs, Mapping):
            frozen: Inputs = {name: _frozen(array) for name, array in inputs.items()}
        else:
            frozen = _frozen(inputs)
        object.__setattr__(self, "inputs", frozen)
        object.__setattr__(self, "labels", _frozen(as_labels(self.labels, self.num_examples, "labels")))

    @property
    def num_examples(self) -> int:
        """K, the number of examples."""
        return len(next(iter(self.arrays.values())))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, sorted; a single array has the empty name."""
        if isinstance(self.inputs, Mapping):
            return dict(sorted(self.inputs.items()))
        return {"": self.inputs}

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and contents, in hexadecimal."""
        digest = hashlib.sha256()
        for name, array in [*self.arrays.items(), ("labels", self.labels)]:
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            header = json.dumps([name, array.dtype.str, array.shape])
            digest.update(len(header).to_bytes(8, "big") + header.encode() + array.tobytes())
        return digest.hexdigest()


def as_inputs(x: Inputs, argument: str) -> Inputs:
    """Inputs as arrays.

    Args:
        x: What can become an array of numbers `(n, ...)`, or a dict of such.
        argument: What errors call it.

    Returns:
        An array, or a dict of arrays of equal length.

    Raises:
        ValueError: If that is not possible, or a number is not finite.

    Example:

    >>> as_inputs([[1, 2], [3, 4]], "x").shape
    (2, 2)
    """
    if isinstance(x, Mapping):
        arrays = {str(name): _as_array(array, argument) for name, array in x.items()}
        if len(arrays) != len(x) or len({len(array) for array in arrays.values()}) != 1:
            raise ValueError(
                f"Invalid value for argument `{argument}`. Expected a dict of arrays with one row per example each. "
                f"Received: shapes { {name: array.shape for name, array in arrays.items()} }"
            )
        return arrays
    if isinstance(x, (list, tuple)) and any(getattr(part, "ndim", 0) > 0 for part in x):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected one array or a dict of arrays by input name. "
            f"Received: a {type(x).__name__} of arrays"
        )
    return _as_array(x, argument)


def _as_array(x: Any, argument: str) -> np.ndarray:
    array = as_array(argument, x)
    if array.ndim == 0 or len(array) == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a non-empty array of numbers, one row per example. "
            f"Received: shape {array.shape}, dtype {array.dtype}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected finite numbers. "
            f"Received: {np.count_nonzero(~np.isfinite(array))} values that are not finite"
        )
    return array


def as_labels(labels: Any, num_examples: int, argument: str) -> np.ndarray:
    """Labels as integers.

    Args:
        labels: Integers, or floats that hold integers.
        num_examples: How many are expected.
        argument: What errors call it.

    Returns:
        `(num_examples,)` int64 array.

    Raises:
        ValueError: If they are anything else.

    Example:

    >>> as_labels([3.0, -1.0], 2, "labels").tolist()
    [3, -1]
    """
    array = as_array(argument, labels)
    numbers = array.shape == (num_examples,) and array.dtype.kind in "biuf" and bool(np.isfinite(array).all())
    if not numbers or not (array == np.floor(array)).all() or (np.abs(array.astype(np.float64)) >= 2.0**63).any():
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected {num_examples} integers, one per example. "
            f"Received: shape {array.shape}, dtype {array.dtype}"
        )
    return array.astype(np.int64)


def _frozen(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy
