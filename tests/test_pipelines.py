"""Training batches: the same ones for the same seed and epoch, and images moved as NumPy would move them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def pipelines():
    """The module `scripts.pipelines`, imported here: the environments of the other backends have no TensorFlow."""
    import scripts.pipelines

    return scripts.pipelines


def taken(batches):
    return [(inputs.tolist(), labels.tolist()) for inputs, labels in batches.as_numpy_iterator()]


def pictures(num_images=10, height=8, width=8, channels=1, dtype="uint8"):
    return np.random.default_rng(3).integers(0, 256, (num_images, height, width, channels)).astype(dtype)


# Batches


def test_batches_depend_on_seed_and_epoch_alone(pipelines):
    x, y = np.arange(10)[:, None], np.arange(10)

    def order(seed, epochs):
        batches, steps = pipelines.training_batches(x, y, 3, seed, epochs)
        rows = [labels.tolist() for inputs, labels in batches.as_numpy_iterator() if (inputs[:, 0] == labels).all()]
        assert steps == 3 and len(rows) == 3 * len(epochs)
        return rows

    assert order(0, range(1, 3)) == order(0, range(3))[3:]
    assert order(0, range(1)) != order(1, range(1)) and order(0, range(1)) != order(0, range(1, 2))
    for epoch in range(3):
        seen = sum(order(0, range(epoch, epoch + 1)), [])
        assert len(set(seen)) == 9


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    num_examples=st.integers(1, 12),
    batch_size=st.integers(1, 12),
    first_epoch=st.integers(0, 3),
    augmented=st.booleans(),
    one_hot=st.booleans(),
)
def test_a_resumed_training_sees_the_batches_of_an_uninterrupted_one(
    pipelines, seed, num_examples, batch_size, first_epoch, augmented, one_hot
):
    batch_size = min(batch_size, num_examples)
    x, y = pictures(num_examples), np.arange(num_examples) % 3
    settings_ = (batch_size, seed)
    how = {"augmentation": pipelines.crop_and_flip if augmented else None, "num_classes": 3 if one_hot else None}
    whole, steps = pipelines.training_batches(x, y, *settings_, range(4), **how)
    rest, _ = pipelines.training_batches(x, y, *settings_, range(first_epoch, 4), **how)
    assert steps == num_examples // batch_size
    assert taken(rest) == taken(whole)[first_epoch * steps :]


def test_another_seed_gives_other_batches_and_another_augmentation(pipelines):
    x, y = np.repeat(pictures(1), 6, axis=0), np.zeros(6, "int64")

    def seen(seed, epoch):
        return taken(
            pipelines.training_batches(x, y, 3, seed, range(epoch, epoch + 1), augmentation=pipelines.crop_and_flip)[0]
        )

    # All images are the same one: only their augmentation can differ, from seed to seed, epoch to epoch, batch to batch.
    batches = [str(batch) for seed, epoch in itertools.product((0, 1), (0, 1)) for batch in seen(seed, epoch)]
    assert len(batches) == 8 == len(set(batches))


def test_every_example_is_left_over_in_some_epoch(pipelines):
    batches, steps = pipelines.training_batches(np.arange(5), np.arange(5), 4, 0, range(40))
    left_over = {(set(range(5)) - set(labels)).pop() for _, labels in taken(batches)}
    assert steps == 1 and left_over == set(range(5))


def test_labels_are_numbers_or_one_hot_rows(pipelines):
    y = np.array([2, 0, 1, 2], "int64")
    numbers, _ = pipelines.training_batches(np.arange(4), y, 2, 0, range(1))
    one_hot, _ = pipelines.training_batches(np.arange(4), y, 2, 0, range(1), num_classes=4)
    assert (numbers.element_spec[1].dtype, numbers.element_spec[1].shape) == (np.int64, (2,))
    assert (one_hot.element_spec[1].dtype, one_hot.element_spec[1].shape) == (np.float32, (2, 4))
    for (rows, labels), (same_rows, hot) in zip(taken(numbers), taken(one_hot), strict=True):
        assert rows == same_rows and labels == y[rows].tolist()
        assert hot == np.eye(4)[labels].tolist()


@pytest.mark.parametrize("batch_size", [-1, 0, 5])
def test_a_batch_that_the_data_cannot_fill_is_refused(pipelines, batch_size):
    with pytest.raises(ValueError) as error:
        pipelines.training_batches(np.zeros((4, 2)), np.zeros(4), batch_size, 0, range(1))
    assert str(error.value) == (
        "The training set does not fill a batch. Expected 1 <= batch_size <= number of examples. "
        f"Received: batch_size={batch_size}, 4 examples"
    )


# Images moved and mirrored


def possibilities(image):
    """`{(rows down, columns to the right, mirrored): image}` of all that may come out, by NumPy."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    height, width, _ = image.shape
    crops = {
        (down, right): padded[4 + down : 4 + down + height, 4 + right : 4 + right + width]
        for down, right in itertools.product(range(-4, 5), repeat=2)
    }
    return {(*shift, flip): crop[:, ::-1] if flip else crop for shift, crop in crops.items() for flip in (False, True)}


def moves(before, after):
    """What was done to each image; it must be one thing."""
    return [
        next(move for move, image in possibilities(one).items() if np.array_equal(image, other))
        for one, other in zip(before, after, strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
    channels=st.integers(1, 3),
    dtype=st.sampled_from(["uint8", "int32", "float16", "float32"]),
)
def test_images_are_cropped_from_their_reflected_surroundings(pipelines, seed, height, width, channels, dtype):
    before = pictures(6, height, width, channels, dtype)
    after = pipelines.crop_and_flip(before, [seed, 7]).numpy()
    assert after.shape == before.shape and after.dtype == before.dtype
    assert len(moves(before, after)) == 6


def test_every_shift_and_both_flips_occur_equally_often_and_independently(pipelines):
    before = np.repeat(pictures(1, 12, 12), 8100, axis=0)
    after = pipelines.crop_and_flip(before, [0, 0]).numpy()
    table = {image.tobytes(): move for move, image in possibilities(before[0]).items()}
    found = [table[image.tobytes()] for image in after]
    # 81 shifts, mirrored or not, 50 each on average; six standard deviations.
    counts = {move: found.count(move) for move in table.values()}
    assert len(counts) == 162 and all(abs(count - 50) < 6 * 50**0.5 for count in counts.values())


def test_only_images_are_augmented(pipelines):
    with pytest.raises(ValueError) as error:
        pipelines.crop_and_flip(np.zeros((2, 784), "float32"), (0, 0))
    assert str(error.value) == (
        "Only images can be shifted and mirrored. Expected inputs of shape (batch, height, width, channels), or `--augment=false`. "
        "Received: shape (2, 784)"
    )


def test_the_seed_fixes_the_augmentation(pipelines):
    before = pictures(20)
    once, again, other = (pipelines.crop_and_flip(before, [seed, 1]).numpy() for seed in (5, 5, 6))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
