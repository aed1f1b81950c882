"""Pruning takes the smallest weights of every kernel, shaking changes all of them, and nothing else."""

import keras
import numpy as np
import pytest

from deepsigns_tf import prune_weights, shake_weights

pytestmark = pytest.mark.any_backend


@pytest.fixture
def model():
    """Kernels of two, three and four axes, and vectors of every kind: biases, scales, moving statistics."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(5, 3, name="convolution"),
            keras.layers.BatchNormalization(name="normalization"),
            keras.layers.Reshape((-1, 5)),
            keras.layers.Conv1D(4, 2, name="sequence"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(7, name="dense"),
        ]
    )
    random = np.random.default_rng(0)
    # No weight is 0 or as large as another, the vectors' included.
    model.set_weights([random.permutation(1.0 + np.arange(w.size)).reshape(w.shape) for w in model.get_weights()])
    signs = [random.choice([-1.0, 1.0], w.shape) if w.ndim > 1 else 1.0 for w in model.get_weights()]
    model.set_weights([s * w for s, w in zip(signs, model.get_weights(), strict=True)])
    return model


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_that_share_of_every_kernel_is_zero(model, fraction):
    for weights in prune_weights(model, fraction).get_weights():
        if weights.ndim > 1:
            assert np.count_nonzero(weights == 0.0) == round(fraction * weights.size)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_smallest_go_first_and_the_rest_stay(model, fraction):
    for before, after in zip(model.get_weights(), prune_weights(model, fraction).get_weights(), strict=True):
        if before.ndim > 1:
            gone = after == 0.0
            assert np.abs(before[gone]).max() < np.abs(before[~gone]).min()
            np.testing.assert_array_equal(after[~gone], before[~gone])


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_biases_and_other_vectors_stay(model, fraction):
    vectors = [weights for weights in model.get_weights() if weights.ndim == 1]
    pruned = [weights for weights in prune_weights(model, fraction).get_weights() if weights.ndim == 1]
    assert len(vectors) == 7
    for before, after in zip(vectors, pruned, strict=True):
        np.testing.assert_array_equal(after, before)


def test_equal_weights_are_pruned_to_the_same_share():
    """A threshold on the size would take all of them or none."""
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10, kernel_initializer="ones")])
    kernel = prune_weights(model, 0.3).get_weights()[0]
    assert np.count_nonzero(kernel == 0.0) == 30
    assert np.count_nonzero(kernel == 1.0) == 70


def test_original_is_left_as_it_is(model):
    before = [weights.copy() for weights in model.get_weights()]
    pruned = prune_weights(model, 0.5)
    assert pruned is not model
    for weights, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, expected)
    pruned.set_weights([0.0 * weights for weights in pruned.get_weights()])
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_fraction_0_is_the_same_function(model):
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    pruned = prune_weights(model, 0.0)
    for before, after in zip(model.get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(pruned.predict(x, verbose=0), model.predict(x, verbose=0))


def test_fraction_1_leaves_no_kernel(model):
    for weights in prune_weights(model, 1.0).get_weights():
        assert (weights == 0.0).all() == (weights.ndim > 1)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan"), float("inf")])
def test_share_out_of_range_is_refused(model, fraction):
    with pytest.raises(ValueError) as error:
        prune_weights(model, fraction)
    assert str(error.value) == (
        f"Invalid value for argument `fraction`. Expected a share in [0, 1]. Received: fraction={fraction!r}"
    )


# Noise


@pytest.mark.parametrize("relative_std", [0.01, 0.5])
def test_noise_is_a_share_of_each_kernels_spread(model, relative_std):
    for before, after in zip(
        model.get_weights(), shake_weights(model, relative_std, seed=0).get_weights(), strict=True
    ):
        if before.ndim < 2:
            np.testing.assert_array_equal(after, before)
        else:
            assert after.dtype == before.dtype and (after != before).all()
            assert (after - before).std() == pytest.approx(relative_std * before.std(), rel=0.4)


def test_noise_follows_the_seed_and_leaves_the_model_as_it_is(model):
    before = model.get_weights()
    one, again, other = (shake_weights(model, 0.1, seed).get_weights() for seed in (0, 0, 1))
    for kept, now, first, second, third in zip(before, model.get_weights(), one, again, other, strict=True):
        np.testing.assert_array_equal(now, kept)
        np.testing.assert_array_equal(first, second)
        assert kept.ndim < 2 or (first != third).any()
    for kept, same in zip(before, shake_weights(model, 0.0, seed=0).get_weights(), strict=True):
        np.testing.assert_array_equal(same, kept)


@pytest.mark.parametrize("relative_std", [-0.1, float("nan")])
def test_a_negative_share_of_noise_is_refused(model, relative_std):
    with pytest.raises(ValueError) as error:
        shake_weights(model, relative_std, seed=0)
    assert str(error.value) == (
        f"Invalid value for argument `relative_std`. Expected a number >= 0. Received: relative_std={relative_std!r}"
    )
