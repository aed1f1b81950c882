"""Changes of the inputs on their way to a model, made by whoever answers questions with it.

Each takes images `(n, height, width)` or `(n, height, width, channels)` of any number type and gives images of the same shape
and type. A thief changes all inputs alike, so what a change costs the task's own accuracy belongs beside what it costs the mark.
"""

import io
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import PIL.Image
import scipy.ndimage

ImageChange = Callable[[np.ndarray, tuple[float, float]], np.ndarray]


def add_noise(images: np.ndarray, relative_std: float, value_range: tuple[float, float], seed: int) -> np.ndarray:
    """Adds Gaussian noise to every number, kept within the range.

    Args:
        images: Images.
        relative_std: Standard deviation as a share of the range, >= 0; 0.01 to 0.1 are on record.
        value_range: Smallest and largest number that a pixel can have.
        seed: Of the noise.

    Raises:
        ValueError: If these are no images, or a number is out of range.

    Example:

    >>> images = np.full((2, 8, 8), 0.5, "float32")
    >>> float(np.abs(add_noise(images, 0.1, (0.0, 1.0), seed=0) - images).mean()) > 0.05
    True

    Source: Lukas et al., "SoK: How robust is image classification deep neural network watermarking?", S&P 2022, "input noising".
    """
    images = _checked(images)
    if not relative_std >= 0.0:
        raise _out_of_range("relative_std", "a number >= 0", relative_std)
    noise = np.random.default_rng(seed).normal(scale=relative_std, size=images.shape)
    return _restored(_unit(images, value_range) + noise, images, value_range)


def compress_jpeg(images: np.ndarray, quality: int, value_range: tuple[float, float]) -> np.ndarray:
    """Compresses and expands every image.

    Args:
        images: Images of one or three channels.
        quality: 1 to 95, 95 the finest; 45 to 95 are on record.
        value_range: Smallest and largest number that a pixel can have.

    Raises:
        ValueError: If these are no images of one or three channels, or a number is out of range.

    Example:

    >>> compress_jpeg(np.zeros((2, 8, 8, 3), "uint8"), 75, (0, 255)).shape
    (2, 8, 8, 3)

    Source: Lukas et al., S&P 2022, "JPEG compression".
    """
    images = _checked(images)
    if not 1 <= quality <= 95:
        raise _out_of_range("quality", "an integer from 1 to 95", quality)
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        raise _out_of_range("images", "one or three channels", images.shape)
    pixels = np.rint(255 * _unit(images, value_range)).astype(np.uint8)
    if images.ndim == 4 and images.shape[-1] == 1:
        pixels = pixels[..., 0]
    expanded = np.stack([_through_jpeg(each, quality) for each in pixels]).reshape(images.shape)
    return _restored(expanded / 255.0, images, value_range)


def blur(images: np.ndarray, std: float, value_range: tuple[float, float]) -> np.ndarray:
    """Blurs every image with a Gaussian.

    Args:
        images: Images.
        std: Standard deviation of the Gaussian, in pixels, >= 0.
        value_range: Smallest and largest number that a pixel can have.

    Raises:
        ValueError: If these are no images, or a number is out of range.

    Example:

    >>> image = np.zeros((1, 9, 9)); image[0, 4, 4] = 1.0
    >>> blurred = blur(image, 1.0, (0.0, 1.0))
    >>> round(float(blurred.sum()), 6), round(float(blurred.max()), 3)
    (1.0, 0.159)

    Source: Lukas et al., S&P 2022, "input smoothing".
    """
    images = _checked(images)
    if not std >= 0.0:
        raise _out_of_range("std", "a number >= 0", std)
    blurred = scipy.ndimage.gaussian_filter(_unit(images, value_range), std, axes=(1, 2))
    return _restored(blurred, images, value_range)


def reduce_bit_depth(images: np.ndarray, num_bits: int, value_range: tuple[float, float]) -> np.ndarray:
    """Rounds every number to one of 2^bits values, evenly spaced over the range.

    Args:
        images: Images.
        num_bits: 1 to 8; 4 to 7 are on record.
        value_range: Smallest and largest number that a pixel can have.

    Raises:
        ValueError: If these are no images, or a number is out of range.

    Example:

    >>> reduce_bit_depth(np.array([[[0.1, 0.4], [0.6, 0.9]]]), 1, (0.0, 1.0)).tolist()
    [[[0.0, 0.0], [1.0, 1.0]]]

    Source: Xu, Evans, Qi, "Feature squeezing", NDSS 2018, section IV.
    """
    images = _checked(images)
    if not 1 <= num_bits <= 8:
        raise _out_of_range("num_bits", "an integer from 1 to 8", num_bits)
    steps = 2**num_bits - 1
    return _restored(np.rint(steps * _unit(images, value_range)) / steps, images, value_range)


def crop_randomly(images: np.ndarray, share: float, value_range: tuple[float, float], seed: int) -> np.ndarray:
    """Cuts a window out of every image, at a place of its own, and enlarges it to the image's size.

    Args:
        images: Images.
        share: Of height and width, that the window keeps, in (0, 1].
        value_range: Smallest and largest number that a pixel can have.
        seed: Of the places.

    Raises:
        ValueError: If these are no images, or a number is out of range.

    Example:

    >>> crop_randomly(np.zeros((3, 28, 28), "float32"), 0.9, (0.0, 1.0), seed=0).shape
    (3, 28, 28)

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NeurIPS 2012 (the crop).
    """
    images = _checked(images)
    if not 0.0 < share <= 1.0:
        raise _out_of_range("share", "a number above 0, at most 1", share)
    height, width = images.shape[1:3]
    rows, columns = (max(1, round(share * size)) for size in (height, width))
    random = np.random.default_rng(seed)
    tops, lefts = (
        random.integers(0, size - kept + 1, len(images)) for size, kept in ((height, rows), (width, columns))
    )
    unit = _unit(images, value_range).reshape(*images.shape[:3], -1)
    windows = [
        image[top : top + rows, left : left + columns] for image, top, left in zip(unit, tops, lefts, strict=True)
    ]
    enlarged = keras.ops.image.resize(
        np.stack(windows), (height, width), interpolation="bilinear", data_format="channels_last"
    )
    return _restored(keras.ops.convert_to_numpy(enlarged).reshape(images.shape), images, value_range)


def mirror(images: np.ndarray) -> np.ndarray:
    """Mirrors every image, left to right.

    Args:
        images: Images.

    Raises:
        ValueError: If these are no images.

    Example:

    >>> mirror(np.array([[[1, 2], [3, 4]]])).tolist()
    [[[2, 1], [4, 3]]]

    Source: Lukas et al., S&P 2022, "input flipping".
    """
    return np.ascontiguousarray(_checked(images)[:, :, ::-1])


def of_model(change: ImageChange, x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A change of images as one of a model's inputs.

    Args:
        change: `(images, value_range) -> images`.
        x: Inputs that the model was trained on, whose range is that of a pixel: images, or rows of a square image's pixels.

    Returns:
        From inputs to changed inputs of the same shape and type. What lies outside of the range, as noise may, is cut off first.

    Raises:
        ValueError: If these are neither images nor rows of a square image's pixels.

    Example:

    >>> pixels = np.array([[0.0, 0.25, 0.5, 1.0]])
    >>> of_model(lambda images, value_range: mirror(images), pixels)(pixels).tolist()
    [[0.25, 0.0, 1.0, 0.5]]
    """
    side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    # Integers in rows are tokens.
    if not (x.ndim == 4 or (x.dtype.kind == "f" and x.ndim == 2 and side * side == x.shape[1])):
        raise ValueError(
            "These inputs are no images. Expected arrays (n, height, width, channels), or rows of a square image's pixels, real numbers. "
            f"Received: shape {x.shape}, dtype {x.dtype}"
        )
    value_range = float(x.min()), float(x.max())

    def changed(inputs: np.ndarray) -> np.ndarray:
        images = np.clip(inputs.reshape(-1, side, side) if inputs.ndim == 2 else inputs, *value_range)
        return change(images.astype(inputs.dtype), value_range).reshape(inputs.shape)

    return changed


def _checked(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim not in (3, 4) or images.dtype.kind not in "iuf" or not images.size:
        raise ValueError(
            "These are no images. Expected numbers of shape (n, height, width) or (n, height, width, channels). "
            f"Received: shape {images.shape}, dtype {images.dtype}"
        )
    return images


def _unit(images: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Numbers in [0, 1]."""
    low, high = value_range
    if not low < high or images.min() < low or images.max() > high:
        raise _out_of_range(
            "value_range",
            f"the smallest and the largest number of a pixel; the images have {images.min()} to {images.max()}",
            value_range,
        )
    return (images.astype(np.float64) - low) / (high - low)


def _restored(unit: np.ndarray, images: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    values = low + (high - low) * np.clip(unit, 0.0, 1.0)
    return np.asarray(np.rint(values) if images.dtype.kind in "iu" else values, images.dtype)


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    with io.BytesIO() as file:
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.asarray(PIL.Image.open(file))


def _out_of_range(name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"Invalid value for argument `{name}`. Expected {expected}. Received: {name}={value!r}")
