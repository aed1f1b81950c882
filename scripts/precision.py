"""The precision in which layers compute."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def dtype_policy(mixed_precision: str) -> Iterator[None]:
    """The policy under which layers are made; it is Keras' and global, so it is put back.

    Args:
        mixed_precision: Name of a policy, or `"none"` to leave all as it is.
    """
    outer = keras.config.dtype_policy()
    if mixed_precision != "none":
        keras.config.set_dtype_policy(mixed_precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(outer)
