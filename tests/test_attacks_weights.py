"""Attacks on weights do what they say, and leave the model and its vectors alone."""

import keras
import numpy as np
import pytest

from deepsigns_tf.attacks.weights import prune_globally, quantize_weights, round_to_float16, shift_weights


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(6, 3),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
    network = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    random = np.random.default_rng(0)
    network.set_weights(
        [random.normal(0.1, 0.3 + i, w.shape).astype("float32") for i, w in enumerate(network.get_weights())]
    )
    return network


ATTACKS = {
    "pruned": lambda model: prune_globally(model, 0.3),
    "quantized": lambda model: quantize_weights(model, 4),
    "shifted": lambda model: shift_weights(model, seed=0),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_kernels_change_and_nothing_else_does(attack, model):
    before = model.get_weights()
    after = attack(model).get_weights()
    for old, new, now in zip(before, after, model.get_weights(), strict=True):
        assert (old != new).any() if old.ndim > 1 else (old == new).all()
        np.testing.assert_array_equal(old, now)
        assert new.dtype == old.dtype


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_smallest_of_all_kernels_are_pruned(fraction, model):
    kernels = [[w for w in each.get_weights() if w.ndim > 1] for each in (model, prune_globally(model, fraction))]
    before, after = (np.concatenate([kernel.ravel() for kernel in each]) for each in kernels)
    gone = after == 0
    assert gone.sum() == round(fraction * gone.size) and (after[~gone] == before[~gone]).all()
    if 0 < fraction < 1:
        assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
        # The kernel with the smaller entries loses more.
        shares = [(kernel == 0).mean() for kernel in kernels[1]]
        assert shares[0] > 2 * shares[1]


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_so_many_values_are_left_about_zero(num_bits, model):
    for old, new in zip(model.get_weights(), quantize_weights(model, num_bits).get_weights(), strict=True):
        if old.ndim > 1:
            step = np.abs(old).max() / (2 ** (num_bits - 1) - 1)
            assert len(np.unique(new)) <= 2**num_bits - 1 and np.abs(new - old).max() <= 0.5001 * step
            np.testing.assert_allclose(new / step, np.rint(new / step), atol=1e-3)
    empty = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    assert (quantize_weights(empty, num_bits).get_weights()[0] == 0).all()


def test_half_precision_keeps_eleven_bits(model):
    for old, new in zip(model.get_weights(), round_to_float16(model).get_weights(), strict=True):
        np.testing.assert_allclose(new, old, rtol=2**-11, atol=1e-7)
        assert new.dtype == old.dtype and (old != new).any()


def test_shifting_moves_every_filter_by_its_own_mean_and_noise(model):
    (old, new, other, same) = (
        each.get_weights()[0]
        for each in (
            model,
            shift_weights(model, seed=1, mean_share=2.0, relative_std=0.0),
            shift_weights(model, seed=1, mean_share=0.0, relative_std=1.0),
            shift_weights(model, seed=1, mean_share=0.0, relative_std=1.0),
        )
    )
    np.testing.assert_allclose(new.mean(axis=(0, 1, 2)), -old.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(new - new.mean(axis=(0, 1, 2)), old - old.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_array_equal(other, same)
    assert (other - old).std() == pytest.approx(old.std(), rel=0.25)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda model: prune_globally(model, 1.1),
        lambda model: quantize_weights(model, 1),
        lambda model: shift_weights(model, seed=0, relative_std=-1.0),
    ],
)
def test_numbers_out_of_range_are_refused(attempt, model):
    with pytest.raises(ValueError, match=r"\. Expected .*\. Received: "):
        attempt(model)
