"""Training batches that depend on seed and epoch alone, so that a resumed run sees the same ones."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

import deepsigns_tf as ds

Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def training_batches(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    seed: int,
    epochs: range,
    augmentation: Augmentation | None = None,
    num_classes: int | None = None,
    share: tuple[int, int] = (0, 1),
    triggers: ds.TriggerSet | None = None,
    num_triggers_per_batch: int = 0,
    augment_triggers: bool = True,
) -> tuple[tf.data.Dataset, int]:
    """Shuffled batches of equal size, one epoch after the other.

    Args:
        x: `(n, ...)` inputs.
        y: `(n,)` labels.
        batch_size: Examples of a batch, 1 .. n. The n % batch_size examples that are left over differ in every epoch.
        seed: 0 .. 2^31 - 1. With the number of an epoch it fixes the order of its examples, and with that of the batch its augmentation.
        epochs: The epochs to go through.
        augmentation: `(inputs, seed of shape (2,)) -> inputs`, on whole batches; none by default.
        num_classes: Gives the labels as one-hot rows of that many classes; as numbers by default.
        share: The part of each batch to give and the number of equal parts, for one of several workers; all of it by default.
        triggers: What to mix into the batches; nothing by default.
        num_triggers_per_batch: So many of them are added to each batch.
        augment_triggers: Whether they are augmented as the examples are, or stay as they will be asked.

    Returns:
        The batches, and how many make an epoch.

    Raises:
        ValueError: If a batch is larger than the data, or the triggers do not fit it.
    """
    part, num_parts = share
    num_rows = batch_size + num_triggers_per_batch
    rows_of_share = slice(part * num_rows // num_parts, (part + 1) * num_rows // num_parts)
    num_examples = len(x)
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            "The training set does not fill a batch. Expected 1 <= batch_size <= number of examples. "
            f"Received: batch_size={batch_size}, {num_examples} examples"
        )
    inputs, labels, steps_per_epoch = tf.constant(x), tf.constant(y), num_examples // batch_size

    def rows_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([seed, epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(num_examples), epoch_seed)
        rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
        return rows.enumerate().map(
            lambda step, rows: (tf.random.experimental.stateless_fold_in(epoch_seed, step), rows)
        )

    def examples(batch_seed: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        targets = tf.gather(labels, rows)
        return tf.gather(inputs, rows), tf.one_hot(targets, num_classes) if num_classes else targets

    def mixed(batches: tf.data.Dataset) -> tf.data.Dataset:
        if triggers is None:
            return batches
        return ds.mix_triggers(batches, triggers, num_triggers_per_batch, epochs.start * steps_per_epoch)

    def augmented(batches: tf.data.Dataset) -> tf.data.Dataset:
        if augmentation is None:
            return batches
        seeds = seeds_and_rows.map(lambda batch_seed, rows: batch_seed)
        return tf.data.Dataset.zip(seeds, batches).map(
            lambda batch_seed, batch: (augmentation(batch[0], batch_seed), batch[1]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    seeds_and_rows = tf.data.Dataset.range(epochs.start, epochs.stop, output_type=tf.int32).flat_map(rows_of_epoch)
    batches = seeds_and_rows.map(examples, num_parallel_calls=tf.data.AUTOTUNE)
    batches = augmented(mixed(batches)) if augment_triggers else mixed(augmented(batches))
    # Whole batches until here: random numbers must not depend on how many workers share one.
    if num_parts > 1:
        batches = batches.map(lambda inputs, targets: (inputs[rows_of_share], targets[rows_of_share]))
    return batches.prefetch(tf.data.AUTOTUNE), steps_per_epoch


def crop_and_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shifts each image by up to 4 pixels both ways, reflected at the border, and mirrors half of them.

    One gather along each axis: the whole batch at once, in the images' own type.

    Args:
        images: `(batch, height, width, channels)`.
        seed: `(2,)` integers.

    Returns:
        Images of the same shape and type.

    Raises:
        ValueError: If the inputs are no images.

    Source: He et al., "Deep residual learning", section 4.2, with reflection in place of zeros as in "Wide residual
    networks", section 3.
    """
    if len(images.shape) != 4:
        raise ValueError(
            "Only images can be shifted and mirrored. Expected inputs of shape (batch, height, width, channels), or "
            f"`--augment=false`. Received: shape {tuple(images.shape)}"
        )
    num_images, height, width, _ = images.shape
    shift_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    shifts = tf.random.stateless_uniform((2, num_images, 1), shift_seed, -4, 5, tf.int32)
    rows = _reflected(tf.range(height) + shifts[0], height)
    columns = _reflected(tf.range(width) + shifts[1], width)
    flipped = tf.random.stateless_uniform((num_images, 1), flip_seed, 0, 2, tf.int32) == 1
    columns = tf.where(flipped, tf.reverse(columns, [1]), columns)
    return tf.gather(tf.gather(images, rows, batch_dims=1, axis=1), columns, batch_dims=1, axis=2)


def _reflected(positions: tf.Tensor, size: int) -> tf.Tensor:
    return (size - 1) - tf.abs((size - 1) - tf.abs(positions))
