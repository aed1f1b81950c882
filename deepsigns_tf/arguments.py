"""Arguments of callers: what they may be, and the error where they are something else."""

import re
from typing import Any

import numpy as np


def is_text(value: Any) -> bool:
    """Whether it is a string with something in it, and no half of a surrogate pair, which has no UTF-8 to derive from."""
    return isinstance(value, str) and value != "" and not re.search("[\ud800-\udfff]", value)


def is_integer(value: Any) -> bool:
    """Whether it is an integer of Python or NumPy, and no boolean."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_number_of(argument: str, value: Any, least: int = 1, meaning: str = "") -> None:
    """Refuses what is no number of anything.

    Args:
        argument: What errors call it.
        value: An integer.
        least: The smallest that there is.
        meaning: What errors say of it beside that.

    Raises:
        ValueError: If it is no integer, or smaller.

    Example:

    >>> check_number_of("batch_size", 2.5)
    Traceback (most recent call last):
    ValueError: Invalid value for argument `batch_size`. Expected an integer >= 1. Received: batch_size=2.5
    """
    if not is_integer(value) or value < least:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected an integer >= {least}{meaning}. Received: {argument}={value!r}"
        )


def as_array(argument: str, value: Any) -> np.ndarray:
    """What can become an array, as one.

    Args:
        argument: What errors call it.
        value: An array, a tensor, or nested sequences of equal lengths.

    Raises:
        ValueError: If the lengths differ.

    Example:

    >>> as_array("predictions", [[1, 2], [3]])
    Traceback (most recent call last):
    ValueError: Invalid value for argument `predictions`. Expected an array, or sequences of equal lengths. Received: a list of 2
    """
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected an array, or sequences of equal lengths. "
            f"Received: a {type(value).__name__} of {len(value)}"
        ) from None
