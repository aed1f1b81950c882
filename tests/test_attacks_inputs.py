"""Changes of inputs: each does what it says, and keeps shape, type and range."""

import numpy as np
import pytest

from deepsigns_tf.attacks.inputs import (
    add_noise,
    blur,
    compress_jpeg,
    crop_randomly,
    mirror,
    of_model,
    reduce_bit_depth,
)

RANDOM = np.random.default_rng(0)
GREY = RANDOM.random((5, 12, 10)).astype(np.float32)
COLOURS = RANDOM.integers(0, 256, (5, 12, 10, 3)).astype(np.uint8)
# Pixels of photographs as the networks take them.
FLOATS = COLOURS.astype(np.float32)

CHANGES = {
    "noise": lambda images, range_: add_noise(images, 0.1, range_, seed=0),
    "jpeg": lambda images, range_: compress_jpeg(images, 75, range_),
    "blur": lambda images, range_: blur(images, 1.0, range_),
    "depth": lambda images, range_: reduce_bit_depth(images, 3, range_),
    "mirror": lambda images, range_: mirror(images),
    "crop": lambda images, range_: crop_randomly(images, 0.8, range_, seed=0),
}
change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@change
@pytest.mark.parametrize(
    ("images", "value_range"),
    [
        (GREY, (0.0, 1.0)),
        (GREY[..., None], (0.0, 1.0)),
        (COLOURS, (0, 255)),
        (FLOATS, (0.0, 255.0)),
        (GREY - 0.5, (-0.5, 0.5)),
    ],
    ids=["grey", "one channel", "uint8", "floats to 255", "centred"],
)
def test_shape_type_and_range_are_kept(change, images, value_range):
    before = images.copy()
    changed = change(images, value_range)
    assert changed.shape == images.shape and changed.dtype == images.dtype and (changed != images).any()
    assert value_range[0] <= changed.min() and changed.max() <= value_range[1]
    np.testing.assert_array_equal(images, before)


@change
def test_the_unit_of_the_numbers_does_not_matter(change):
    small, large = change(FLOATS / 255, (0.0, 1.0)), change(FLOATS, (0.0, 255.0))
    np.testing.assert_allclose(255 * small, large, atol=1e-3)


def test_noise_has_the_standard_deviation_that_it_is_given():
    images = np.full((20, 32, 32), 100.0)
    changed = add_noise(images, 0.02, (0.0, 255.0), seed=1)
    assert np.std(changed) == pytest.approx(0.02 * 255, rel=0.02) and np.mean(changed) == pytest.approx(100, abs=0.2)
    np.testing.assert_array_equal(changed, add_noise(images, 0.02, (0.0, 255.0), seed=1))
    assert (changed != add_noise(images, 0.02, (0.0, 255.0), seed=2)).any()


def test_jpeg_loses_less_at_higher_quality():
    errors = [np.abs(compress_jpeg(FLOATS, quality, (0.0, 255.0)) - FLOATS).mean() for quality in (10, 50, 95)]
    assert errors[0] > errors[1] > errors[2] > 0
    # A flat image has nothing to lose.
    flat = np.full((1, 16, 16, 3), 64, np.uint8)
    assert np.abs(compress_jpeg(flat, 75, (0, 255)).astype(int) - flat).max() <= 1


def test_a_blur_spreads_a_point_as_a_gaussian_and_leaves_channels_and_images_apart():
    image = np.zeros((2, 21, 21, 2))
    image[0, 10, 10, 0] = 1.0
    blurred = blur(image, 2.0, (0.0, 1.0))
    assert blurred[1].max() == blurred[..., 1].max() == 0 and blurred.sum() == pytest.approx(1.0, abs=1e-3)
    distances = np.arange(21) - 10
    assert (blurred[0, :, :, 0].sum(axis=0) * distances**2).sum() == pytest.approx(4.0, rel=0.02)
    np.testing.assert_allclose(blur(image, 0.0, (0.0, 1.0)), image)


@pytest.mark.parametrize("num_bits", [1, 5, 8])
def test_so_many_values_are_left(num_bits):
    ramp = np.linspace(0, 1, 10_000).reshape(1, 100, 100)
    changed = reduce_bit_depth(ramp, num_bits, (0.0, 1.0))
    assert len(np.unique(changed)) == 2**num_bits and np.abs(changed - ramp).max() <= 0.5 / (2**num_bits - 1) + 1e-9
    np.testing.assert_array_equal(reduce_bit_depth(COLOURS, 8, (0, 255)), COLOURS)


def test_a_crop_is_an_enlarged_window_at_a_place_of_its_own():
    rows = np.tile(np.arange(40.0)[None, :, None], (30, 1, 20))
    changed = crop_randomly(rows, 0.5, (0.0, 39.0), seed=3)
    heights = changed[:, -1, 0] - changed[:, 0, 0]
    # Twenty of forty rows, nineteen steps from the first to the last.
    np.testing.assert_allclose(heights, 19.0, atol=1e-5)
    tops = changed[:, 0, 0]
    assert len(np.unique(tops)) > 5 and tops.min() >= 0 and tops.max() <= 20
    np.testing.assert_allclose(crop_randomly(GREY, 1.0, (0.0, 1.0), seed=0), GREY, atol=1e-6)


def test_a_mirror_turns_left_to_right():
    np.testing.assert_array_equal(mirror(COLOURS)[:, :, 0], COLOURS[:, :, -1])
    np.testing.assert_array_equal(mirror(mirror(GREY)), GREY)


def test_rows_of_pixels_are_changed_as_images():
    rows = RANDOM.random((5, 36)).astype(np.float32)
    changed = of_model(lambda images, range_: blur(images, 1.0, range_), rows)
    expected = blur(rows.reshape(5, 6, 6), 1.0, (float(rows.min()), float(rows.max())))
    np.testing.assert_array_equal(changed(rows), expected.reshape(5, 36))
    # The range is the training data's; a trigger may lie outside.
    assert changed(rows + 1).max() <= rows.max() and changed(rows).dtype == np.float32
    images = of_model(lambda images, range_: mirror(images), COLOURS)
    np.testing.assert_array_equal(images(COLOURS), mirror(COLOURS))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: add_noise(GREY, -0.1, (0.0, 1.0), seed=0),
        lambda: add_noise(GREY, float("nan"), (0.0, 1.0), seed=0),
        lambda: compress_jpeg(GREY, 0, (0.0, 1.0)),
        lambda: compress_jpeg(np.zeros((1, 8, 8, 2)), 75, (0.0, 1.0)),
        lambda: blur(GREY, -1.0, (0.0, 1.0)),
        lambda: reduce_bit_depth(GREY, 0, (0.0, 1.0)),
        lambda: reduce_bit_depth(GREY, 9, (0.0, 1.0)),
        lambda: crop_randomly(GREY, 0.0, (0.0, 1.0), seed=0),
        lambda: crop_randomly(GREY, 1.1, (0.0, 1.0), seed=0),
        lambda: blur(GREY, 1.0, (0.0, 0.5)),
        lambda: blur(GREY, 1.0, (1.0, 0.0)),
        lambda: of_model(blur, np.zeros((3, 35))),
        lambda: of_model(blur, np.zeros((3, 36), np.int32)),
        lambda: blur(GREY[0], 1.0, (0.0, 1.0)),
        lambda: blur(GREY[:0], 1.0, (0.0, 1.0)),
        lambda: blur(GREY.astype(str), 1.0, (0.0, 1.0)),
    ],
)
def test_what_makes_no_sense_is_refused(attempt):
    with pytest.raises(ValueError, match=r"\. Expected .*\. Received: "):
        attempt()
