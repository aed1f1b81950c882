"""Where a mark sits: the role that a layer is to play, and the layer that plays it in a released model."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from deepsigns_tf.activations import Pooling
from deepsigns_tf.arguments import check_number_of, is_integer, is_text

# Labels are compared as int32 or, where they come as floats, as float32, which holds every integer below this.
_NUM_LABELS = 2**24


@dataclasses.dataclass(frozen=True)
class Carrier:
    """A role for a layer to play: which classes and how many bits its activation means carry.

    Args:
        name: What the owner calls it; becomes part of metric names.
        classes: Class labels in 0 .. 2^24 - 1 that carry bits, each once: integers that float32 holds exactly, as some data
            sets give their labels. -1 is kept for rows to ignore.
        bits_per_class: N, bits in the mean of each class.
        pooling: `"mean"` over pixels or time steps, or `"flatten"`. Without effect on a Dense layer.
        projection: `"balanced"`, keyed columns of as many +1 as -1, or `"gaussian"`, the paper's.

    Raises:
        ValueError: If an argument is out of range or a class stands twice.

    Example:

    >>> Carrier("features", classes=range(10), bits_per_class=64).num_bits
    640
    """

    name: str
    classes: Sequence[int]
    bits_per_class: int
    pooling: Pooling = "mean"
    projection: Literal["balanced", "gaussian"] = "balanced"

    def __post_init__(self) -> None:
        values = list(self.classes)
        if not is_text(self.name) or "/" in self.name:
            raise ValueError(
                f"Invalid value for argument `name`. Expected a non-empty text without '/'. Received: name={self.name!r}"
            )
        if not values or any(not is_integer(value) or not 0 <= value < _NUM_LABELS for value in values):
            raise ValueError(
                "Invalid value for argument `classes`. Expected at least one class label, each an integer in [0, 2^24). "
                f"Received: classes={values}"
            )
        if len(set(values)) != len(values):
            raise ValueError(
                f"Invalid value for argument `classes`. Expected each class once. Received: classes={values}"
            )
        check_number_of("bits_per_class", self.bits_per_class)
        if self.pooling not in ("mean", "flatten"):
            raise ValueError(
                'Invalid value for argument `pooling`. Expected "mean" or "flatten". '
                f"Received: pooling={self.pooling!r}"
            )
        if self.projection not in ("balanced", "gaussian"):
            raise ValueError(
                'Invalid value for argument `projection`. Expected "balanced" or "gaussian". '
                f"Received: projection={self.projection!r}"
            )
        object.__setattr__(self, "classes", tuple(int(value) for value in values))
        object.__setattr__(self, "bits_per_class", int(self.bits_per_class))

    @property
    def num_bits(self) -> int:
        """Bits over all classes, s N."""
        return len(self.classes) * self.bits_per_class

    def check_num_units(self, num_units: int) -> None:
        """Refuses a layer too narrow for the bits.

        Args:
            num_units: M, features of the layer after pooling.

        Raises:
            ValueError: If N >= M: the bits then fix the mean altogether. Above M/2 it warns.

        Example:

        >>> Carrier("features", [0], 64).check_num_units(512)
        """
        if self.bits_per_class >= num_units:
            raise ValueError(
                f"Carrier {self.name!r} asks for too many bits per class. Expected fewer bits than the layer has features, "
                f"better at most half as many. Received: bits_per_class={self.bits_per_class}, num_units={num_units}"
            )
        if 2 * self.bits_per_class > num_units:
            warnings.warn(
                f"Carrier {self.name!r} puts {self.bits_per_class} bits per class into {num_units} features; above half "
                "as many bits as features a mark gets hard to embed and to keep.",
                stacklevel=2,
            )

    def to_dict(self) -> dict[str, Any]:
        """The public parameters as JSON-ready values."""
        return dataclasses.asdict(self) | {"classes": list(self.classes)}


@dataclasses.dataclass(frozen=True)
class CarrierLayer:
    """Which layer of the released model plays a carrier's role.

    Args:
        carrier: Name of the carrier.
        path: Path of the layer, as `named_layers` gives it.
        num_units: M, its features after pooling.

    Raises:
        ValueError: If a part is of another type.

    Example:

    >>> CarrierLayer("features", path="backbone/hidden", num_units=512).path
    'backbone/hidden'
    """

    carrier: str
    path: str
    num_units: int

    def __post_init__(self) -> None:
        if not isinstance(self.carrier, str) or not isinstance(self.path, str) or not is_integer(self.num_units):
            raise ValueError(
                "A carrier layer is malformed. Expected two strings and an integer. "
                f"Received: carrier={self.carrier!r}, path={self.path!r}, num_units={self.num_units!r}"
            )
