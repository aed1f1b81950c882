"""Training batches that depend on seed and epoch alone, so that a resumed run sees the same ones."""

import numpy as np
import tensorflow as tf


def training_batches(
    x: np.ndarray, y: np.ndarray, batch_size: int, seed: int, epochs: range
) -> tuple[tf.data.Dataset, int]:
    """Shuffled batches of equal size, one epoch after the other.

    Args:
        x: `(n, ...)` inputs.
        y: `(n,)` labels.
        batch_size: Examples of a batch, 1 .. n. The n % batch_size examples that are left over differ in every epoch.
        seed: With the number of an epoch it fixes the order of its examples.
        epochs: The epochs to go through.

    Returns:
        The batches, and how many make an epoch.

    Raises:
        ValueError: If a batch is larger than the data.
    """
    num_examples = len(x)
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            "The training set does not fill a batch. Expected 1 <= batch_size <= number of examples. "
            f"Received: batch_size={batch_size}, {num_examples} examples"
        )
    inputs, labels = tf.constant(x), tf.constant(y)

    def rows_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(num_examples), tf.stack([seed, epoch]))
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)

    rows = tf.data.Dataset.range(epochs.start, epochs.stop, output_type=tf.int32).flat_map(rows_of_epoch)
    batches = rows.map(
        lambda numbers: (tf.gather(inputs, numbers), tf.gather(labels, numbers)), num_parallel_calls=tf.data.AUTOTUNE
    )
    return batches.prefetch(tf.data.AUTOTUNE), num_examples // batch_size
