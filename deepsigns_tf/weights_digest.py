"""Which weights a model has, as one number.

Both a key's reference and a stated release go by it, so it never changes.
"""

import hashlib
import json

import keras
import numpy as np


def weights_digest(model: keras.Model) -> str:
    """SHA-256 over types, shapes and contents of a model's weights, in their order, in hexadecimal; names do not count.

    For each weight of `model.get_weights()`: the length of its header in eight bytes, the header, `["float32", [784, 512]]`, and its
    numbers, row by row, little-endian. A scalar counts as an array of one number.

    Args:
        model: Any built Keras model.

    Returns:
        64 hexadecimal digits.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> len(weights_digest(model))
    64
    """
    digest = hashlib.sha256()
    for weight in model.get_weights():
        array = np.ascontiguousarray(weight)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        header = json.dumps([array.dtype.name, array.shape])
        digest.update(len(header).to_bytes(8, "big") + header.encode() + array.tobytes())
    return digest.hexdigest()
