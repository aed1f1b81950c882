"""The way by which a batch's labels reach the regularizers, which Keras shows nothing but activations.

The scope is local to the thread: each replica of a `MirroredStrategy` runs its step in a thread of its own.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any

Tensor = Any


@dataclasses.dataclass(frozen=True)
class BatchReading:
    """What one call of a regularizer saw inside a scope.

    Args:
        sums: `(s, M)` class sums over the global batch.
        counts: `(s,)` class counts over the global batch.
        bit_error_rate: Scalar, share of wrong bits in the batch's own class means.
        loss: Scalar, the unweighted signature loss.
    """

    sums: Tensor
    counts: Tensor
    bit_error_rate: Tensor
    loss: Tensor


@dataclasses.dataclass
class LabelScope:
    """One step of one replica.

    Args:
        labels: `(batch,)` carrier labels, -1 for rows to ignore.
        training: Whether the regularizers shall add to the loss, or only measure.
        centres: Carrier name -> `(s, M)` learned centres, where the carrier has any.
        activations: Carrier name -> what its regularizer saw, once per call.
        collected: Whether the step has computed its loss with the mark's, from what the regularizers saw.
    """

    labels: Tensor
    training: bool
    centres: Mapping[str, Any]
    activations: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    collected: bool = False


_local = threading.local()


def current_label_scope() -> LabelScope | None:
    """The scope of this thread, or None outside training and evaluation of a `WatermarkedModel`."""
    return getattr(_local, "scope", None)


@contextlib.contextmanager
def label_scope(scope: LabelScope) -> Iterator[LabelScope]:
    """Makes a scope the current one of this thread.

    Args:
        scope: The scope of the step that is about to run.

    Yields:
        The same scope; afterwards the one before it is current again, whatever the step raised.
    """
    outer = current_label_scope()
    _local.scope = scope
    try:
        yield scope
    finally:
        _local.scope = outer
