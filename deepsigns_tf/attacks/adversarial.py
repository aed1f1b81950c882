"""Attacks that train on inputs which are changed to mislead the model; TensorFlow alone, since they follow gradients to the inputs."""

from typing import Any

import keras
import numpy as np

from deepsigns_tf.arguments import check_number_of
from deepsigns_tf.attacks.graphs import as_functional
from deepsigns_tf.attacks.recipes import Recipe, copied, fit, puts_out_probabilities

Tensor = Any

# Of Neural Cleanse: what a mask's size weighs in the search, and how many of the inputs get the patch, as in the source.
_MASK_WEIGHT, _PATCHED_SHARE = 0.01, 0.2


def train_adversarially(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    relative_epsilon: float = 0.03,
    num_steps: int = 7,
    recipe: Recipe = Recipe(epochs=5),
) -> keras.Model:
    r"""Trains on with inputs that projected gradient descent made as hard as it could.

    Each step adds \( 2.5 \epsilon / K \) times the sign of the loss's gradient, and keeps the input within \( \epsilon \) of the
    original in every number, and within the range of the data.

    Args:
        model: The model; it is left as it is.
        x: `(n, ...)` training inputs, of a model that takes real numbers.
        y: `(n,)` integer labels.
        seed: Of order, dropout and starting points.
        relative_epsilon: Largest change as a share of the data's range, >= 0; 0.01 to 0.25 on record.
        num_steps: K, >= 1.
        recipe: 3 to 10 epochs on record.

    Returns:
        A trained copy.

    Raises:
        ValueError: If the model is subclassed or takes integers, a number is out of range, or the backend is another.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> train_adversarially(model, x, y, seed=0, recipe=Recipe(epochs=1)).output_shape
    (None, 2)

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1.
    """
    _check_gradients(model)
    if not relative_epsilon >= 0.0 or num_steps < 1:
        raise ValueError(
            "These inputs cannot be made harder. Expected relative_epsilon >= 0 and at least one step. "
            f"Received: relative_epsilon={relative_epsilon!r}, num_steps={num_steps!r}"
        )
    import tensorflow as tf

    lowest, highest = float(x.min()), float(x.max())
    epsilon = relative_epsilon * (highest - lowest)
    copy = copied(model, seed)
    random = keras.random.SeedGenerator(seed)

    class Hardened(keras.Model):
        """Takes its training step on hardened inputs."""

        def train_step(self, data: tuple[Tensor, Tensor]) -> Any:
            inputs, labels = tf.cast(data[0], "float32"), data[1]
            hard = inputs + keras.random.uniform(tf.shape(inputs), -epsilon, epsilon, seed=random)
            for _ in range(num_steps):
                hard = tf.clip_by_value(tf.clip_by_value(hard, inputs - epsilon, inputs + epsilon), lowest, highest)
                with tf.GradientTape() as tape:
                    tape.watch(hard)
                    value = self.compute_loss(y=labels, y_pred=self(hard, training=False))
                hard += 2.5 * epsilon / num_steps * tf.sign(tape.gradient(value, hard))
            hard = tf.clip_by_value(tf.clip_by_value(hard, inputs - epsilon, inputs + epsilon), lowest, highest)
            return super().train_step((tf.stop_gradient(hard), labels))

    fit(Hardened(copy.inputs, copy.outputs[0]), x, y, seed, recipe)
    return copy


def neural_cleanse(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    num_steps: int = 200,
    recipe: Recipe = Recipe(epochs=5),
) -> keras.Model:
    r"""Looks for the small patch that turns most inputs to one class, and trains on with the patch and the right labels.

    For each class t, \( \min_{m, p} \mathrm{CE}(f((1 - m) x + m p), t) + w \|m\|_1 \) with a mask m in [0, 1] and a pattern p in the range
    of the data, and w = 0.01. A fifth of the inputs get the patch of the smallest mask of all, which is unlearnt; the source asks that it
    be an outlier, a thief need not.

    Args:
        model: The model; it is left as it is.
        x: `(n, ...)` training inputs, of a model that takes real numbers.
        y: `(n,)` integer labels.
        seed: Of batches, order and dropout.
        num_steps: Of Adam with learning rate 0.1, for each class, >= 1.
        recipe: 5 to 80 epochs on record.

    Returns:
        A trained copy.

    Raises:
        ValueError: As `train_adversarially`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> x, y = np.random.rand(64, 4).astype("float32"), np.arange(64) % 2
    >>> neural_cleanse(model, x, y, seed=0, num_steps=5, recipe=Recipe(epochs=1)).output_shape
    (None, 2)

    Source: Wang et al., "Neural cleanse: Identifying and mitigating backdoor attacks in neural networks", S&P 2019.
    """
    _check_gradients(model)
    check_number_of("num_steps", num_steps)
    copy = copied(model, seed)
    patches = [_smallest_patch(copy, x, target, seed, num_steps) for target in np.unique(y)]
    mask, pattern = min(patches, key=lambda patch: float(patch[0].sum()))
    chosen = np.random.default_rng(seed).random(len(x)) < _PATCHED_SHARE
    patched = x.astype(np.float32)
    patched[chosen] = (1.0 - mask) * patched[chosen] + mask * pattern
    return fit(copy, patched, y, seed, recipe)


def _smallest_patch(
    model: keras.Model, x: np.ndarray, target: int, seed: int, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and pattern for one class."""
    import tensorflow as tf

    lowest, highest = float(x.min()), float(x.max())
    # One mask for all channels of an image.
    shape = (*x.shape[1:-1], 1) if x.ndim > 2 else x.shape[1:]
    # Halves, before the sigmoid.
    mask, pattern = tf.Variable(tf.zeros(shape)), tf.Variable(tf.zeros(x.shape[1:]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not puts_out_probabilities(model))
    optimizer = keras.optimizers.Adam(0.1)

    def patch() -> tuple[Tensor, Tensor]:
        return tf.sigmoid(mask), lowest + (highest - lowest) * tf.sigmoid(pattern)

    @tf.function
    def step(inputs: Tensor) -> None:
        with tf.GradientTape() as tape:
            share, values = patch()
            answers = model((1.0 - share) * inputs + share * values, training=False)
            value = loss(tf.fill((tf.shape(inputs)[0],), target), answers) + _MASK_WEIGHT * tf.reduce_sum(share)
        optimizer.apply_gradients(zip(tape.gradient(value, [mask, pattern]), [mask, pattern], strict=True))

    random = np.random.default_rng(seed)
    for _ in range(num_steps):
        step(tf.constant(x[random.integers(len(x), size=min(128, len(x)))], "float32"))
    share, values = patch()
    return share.numpy(), values.numpy()


def _check_gradients(model: keras.Model) -> None:
    kinds = [keras.backend.standardize_dtype(each.dtype) for each in as_functional(model).inputs]
    if keras.backend.backend() != "tensorflow" or not all("float" in kind for kind in kinds):
        raise ValueError(
            "The way to these inputs cannot be differentiated. Expected a model of real numbers, and TensorFlow as Keras' backend. "
            f"Received: inputs of type {kinds}, {keras.backend.backend()}"
        )
