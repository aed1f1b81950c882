"""The two losses against NumPy, their gradients against closed forms, and their edges."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from deepsigns_tf.losses import clustering_loss, signature_loss

pytestmark = pytest.mark.any_backend

SIGNS = np.array([[1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, -1.0]], "float32")
LOGITS = np.array([[0.5, 2.0, -1.0, 3.0], [-0.25, 1.5, 0.0, -2.0]], "float32")
BOTH = np.ones(2, "float32")


def _gradient(loss, value):
    """The backend's own gradient of a scalar loss at a point, by one step of SGD at learning rate 1.

    The variable is the step away from the point and starts at 0, so nothing is lost when it is subtracted.
    """

    class Probe(keras.Model):
        def __init__(self):
            super().__init__()
            self.step = self.add_weight(shape=value.shape, initializer="zeros", name="step")

        def call(self, inputs):
            self.add_loss(loss(ops.convert_to_tensor(value) + ops.convert_to_tensor(self.step)))
            return inputs

    probe = Probe()
    probe.compile(keras.optimizers.SGD(1.0))
    probe.train_on_batch(np.zeros((1, 1), "float32"))
    return -probe.get_weights()[0]


def _in_precision(array, dtype):
    # JAX has no float64 tensors, but takes such arrays.
    return array.astype(dtype) if dtype == "float64" else ops.cast(array, dtype)


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _signature_oracle(logits, signs, present):
    return sum(
        p * np.mean([np.log(1.0 + np.exp(-sign * z)) for sign, z in zip(s, row, strict=True)])
        for row, s, p in zip(logits.astype("float64"), signs, present, strict=True)
    ) / len(present)


# Signature loss.


def test_signature_loss_equals_a_sum_by_hand():
    expected = _signature_oracle(LOGITS, SIGNS, BOTH)
    assert float(signature_loss(LOGITS, SIGNS, BOTH)) == pytest.approx(expected, rel=1e-6)


def test_signature_loss_is_binary_crossentropy_from_logits():
    expected = ops.mean(ops.binary_crossentropy((SIGNS + 1.0) / 2.0, LOGITS, from_logits=True))
    assert float(signature_loss(LOGITS, SIGNS, BOTH)) == pytest.approx(float(expected), rel=1e-6)


def test_gradient_of_the_signature_loss_has_its_closed_form():
    gradient = _gradient(lambda logits: signature_loss(logits, SIGNS, BOTH), LOGITS)
    np.testing.assert_allclose(gradient, -SIGNS * _sigmoid(-SIGNS * LOGITS) / LOGITS.size, rtol=1e-5)


def test_gradient_of_the_signature_loss_equals_finite_differences():
    gradient = _gradient(lambda logits: signature_loss(logits, SIGNS, BOTH), LOGITS)
    for place in np.ndindex(LOGITS.shape):
        step = np.zeros_like(LOGITS)
        step[place] = 0.05
        difference = float(signature_loss(LOGITS + step, SIGNS, BOTH)) - float(
            signature_loss(LOGITS - step, SIGNS, BOTH)
        )
        assert gradient[place] == pytest.approx(difference / 0.1, abs=1e-4)


def test_gradient_of_a_saturated_wrong_bit_does_not_vanish():
    """A cross-entropy on probabilities gives 0 at logit 40, and the bit could never be turned."""
    gradient = _gradient(lambda logits: signature_loss(logits, SIGNS, BOTH), -40.0 * SIGNS)
    np.testing.assert_array_equal(gradient, -SIGNS / SIGNS.size)


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_signature_loss_stays_finite_at_extreme_logits(scale):
    value = float(signature_loss(scale * SIGNS, SIGNS, BOTH))
    gradient = _gradient(lambda logits: signature_loss(logits, SIGNS, BOTH), scale * SIGNS)
    assert value == pytest.approx(max(0.0, -scale), rel=1e-6)
    assert np.isfinite(gradient).all()


def test_absent_class_contributes_nothing():
    """Its row may hold anything; the mean is still over all classes."""
    present = np.array([1.0, 0.0], "float32")
    expected = _signature_oracle(LOGITS, SIGNS, present)
    assert float(signature_loss(LOGITS, SIGNS, present)) == pytest.approx(expected, rel=1e-6)
    other = np.stack([LOGITS[0], 100.0 * LOGITS[1]])
    assert float(signature_loss(other, SIGNS, present)) == pytest.approx(expected, rel=1e-6)


def test_absent_class_gets_no_gradient():
    present = np.array([1.0, 0.0], "float32")
    gradient = _gradient(lambda logits: signature_loss(logits, SIGNS, present), LOGITS)
    np.testing.assert_array_equal(gradient[1], np.zeros(4))
    assert np.isfinite(gradient[0]).all() and (gradient[0] != 0).all()


def test_signature_loss_of_a_batch_without_any_carrier_class_is_zero():
    assert float(signature_loss(LOGITS, SIGNS, np.zeros(2, "float32"))) == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_signature_loss_is_float32_whatever_the_precision(dtype):
    value = signature_loss(*(_in_precision(array, dtype) for array in (LOGITS, SIGNS, BOTH)))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert tuple(value.shape) == ()
    # These logits are exact in every one of the types.
    assert float(value) == float(signature_loss(LOGITS, SIGNS, BOTH))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4), st.lists(st.sampled_from([-1.0, 1.0]), min_size=4)
)
def test_signature_loss_depends_on_the_signed_logits_alone(logits, signs):
    """Turning a bit and the sign of its logit together changes nothing; the loss is never negative."""
    z, signs = np.array([logits], "float32"), np.array([signs[:4]], "float32")
    one = np.ones(1, "float32")
    value = float(signature_loss(z, signs, one))
    assert value >= 0.0
    assert value == float(signature_loss(z * signs, np.ones_like(signs), one))


@settings(deadline=None, max_examples=50)
@given(st.floats(-30, 30, width=32), st.floats(0.5, 10, width=32))
def test_signature_loss_falls_as_a_bit_moves_to_its_side(logit, step):
    one = np.ones((1, 1), "float32")
    before, after = (float(signature_loss(z * one, one, one[0])) for z in (logit, logit + step))
    # Below float32's resolution the softplus of a large logit is 0 and stays 0.
    assert after < before or before < 1e-6


@pytest.mark.parametrize(
    "logits, signs, present",
    [
        ((2, 3), (2, 4), (2,)),
        ((2, 3), (3, 3), (3,)),
        ((2, 3), (2, 3), (3,)),
        ((2, 3), (2, 3), (2, 1)),
        ((6,), (6,), (6,)),
    ],
)
def test_signature_loss_refuses_shapes_that_would_broadcast(logits, signs, present):
    with pytest.raises(ValueError) as error:
        signature_loss(*(np.ones(shape, "float32") for shape in (logits, signs, present)))
    assert str(error.value) == (
        "The arguments of `signature_loss` do not fit together. Expected logits (s, N), signs (s, N), present (s,). "
        f"Received: logits {logits}, signs {signs}, present {present}"
    )


# Clustering loss.

ACTIVATIONS = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0], [9.0, 9.0]], "float32")
# Examples of class 0, 1, 0 and one to ignore, a column each; class 2 is absent.
MEMBERSHIP = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], "float32")
CENTRES = np.array([[0.5, 3.0], [0.75, 3.25], [4.0, 0.0]], "float32")
# Activations and membership of a batch that attracts neither of two centres.
NOTHING = np.zeros((1, 2), "float32"), np.zeros((2, 1), "float32")


def _clustering_oracle(activations, membership, centres, separation):
    columns = np.transpose(membership)
    rows = [(f, centres[m.argmax()]) for f, m in zip(activations, columns, strict=True) if m.any()]
    attraction = np.mean([np.sum((f - centre) ** 2) for f, centre in rows]) if rows else 0.0
    pairs = itertools.permutations(centres, 2)
    hinges = [max(0.0, separation - np.sum((one - other) ** 2)) for one, other in pairs]
    return attraction + (np.mean(hinges) if hinges else 0.0)


@pytest.mark.parametrize("separation", [0.0, 0.1, 1.0, 20.0])
def test_clustering_loss_equals_a_sum_by_hand(separation):
    """With an absent class and a row to ignore."""
    value = clustering_loss(ACTIVATIONS, MEMBERSHIP, CENTRES, separation)
    expected = _clustering_oracle(ACTIVATIONS, MEMBERSHIP, CENTRES, separation)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_clustering_loss_ignores_unlabelled_rows():
    masked = clustering_loss(ACTIVATIONS, MEMBERSHIP, CENTRES)
    sliced = clustering_loss(ACTIVATIONS[:3], MEMBERSHIP[:, :3], CENTRES)
    assert float(masked) == pytest.approx(float(sliced), rel=1e-6)


def test_clustering_loss_without_labelled_rows_is_the_repulsion_alone():
    value = clustering_loss(ACTIVATIONS, np.zeros_like(MEMBERSHIP), CENTRES)
    assert float(value) == pytest.approx(_clustering_oracle([], [], CENTRES, 1.0), rel=1e-5)


def test_clustering_loss_of_one_class_has_no_repulsion():
    value = clustering_loss(ACTIVATIONS[:2], np.ones((1, 2), "float32"), np.zeros((1, 2), "float32"))
    assert float(value) == 7.5


@pytest.mark.parametrize("distance, expected", [(0.0, 4.0), (1.0, 3.0), (2.0, 0.0), (3.0, 0.0), (100.0, 0.0)])
def test_repulsion_ends_where_the_squared_distance_reaches_the_separation(distance, expected):
    """The paper's repulsion has no lower bound; here separation 4 ends it at distance 2."""
    centres = np.array([[0.0, 0.0], [distance, 0.0]], "float32")
    value = clustering_loss(*NOTHING, centres, separation=4.0)
    assert float(value) == expected


def test_centres_apart_feel_no_repulsion_and_close_ones_do():
    apart = np.array([[0.0, 0.0], [2.0, 0.0]], "float32")
    close = np.array([[0.0, 0.0], [0.5, 0.0]], "float32")
    np.testing.assert_array_equal(_gradient(lambda c: clustering_loss(*NOTHING, c), apart), np.zeros((2, 2)))
    # Two ordered pairs, divided by s (s - 1) = 2: d/dc_1 of 1 - |c_1 - c_0|^2.
    np.testing.assert_allclose(
        _gradient(lambda c: clustering_loss(*NOTHING, c), close), [[1.0, 0.0], [-1.0, 0.0]], rtol=1e-5
    )


def test_gradient_of_the_attraction_has_its_closed_form():
    """2 (f - mu_y) / n towards the activations, and 0 for rows to ignore; separation 0 leaves the attraction alone."""
    gradient = _gradient(lambda f: clustering_loss(f, MEMBERSHIP, CENTRES, separation=0.0), ACTIVATIONS)
    expected = 2.0 * (ACTIVATIONS - MEMBERSHIP.T @ CENTRES) / 3.0
    expected[3] = 0.0
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_gradient_of_the_clustering_loss_by_the_centres_equals_finite_differences():
    gradient = _gradient(lambda centres: clustering_loss(ACTIVATIONS, MEMBERSHIP, centres), CENTRES)
    for place in np.ndindex(CENTRES.shape):
        step = np.zeros_like(CENTRES, "float64")
        step[place] = 1e-3
        difference = _clustering_oracle(ACTIVATIONS, MEMBERSHIP, CENTRES + step, 1.0) - _clustering_oracle(
            ACTIVATIONS, MEMBERSHIP, CENTRES - step, 1.0
        )
        assert gradient[place] == pytest.approx(difference / 2e-3, abs=1e-3)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), num_classes=st.integers(1, 3), separation=st.floats(0, 10, width=32))
def test_clustering_loss_is_never_negative(data, num_classes, separation):
    numbers = st.floats(-10, 10, width=32)
    centres = np.array(data.draw(st.lists(numbers, min_size=2 * num_classes, max_size=2 * num_classes)), "float32")
    labels = data.draw(st.lists(st.integers(-1, num_classes - 1), min_size=4, max_size=4))
    membership = (np.arange(num_classes)[:, None] == np.array(labels)).astype("float32")
    assert float(clustering_loss(ACTIVATIONS, membership, centres.reshape(num_classes, 2), separation)) >= 0.0


def test_clustering_loss_is_zero_at_its_minimum():
    activations = MEMBERSHIP.T @ CENTRES
    assert float(clustering_loss(activations, MEMBERSHIP, CENTRES, separation=0.0)) == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_clustering_loss_is_float32_whatever_the_precision(dtype):
    value = clustering_loss(*(_in_precision(array, dtype) for array in (ACTIVATIONS, MEMBERSHIP, CENTRES)))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    # These numbers are exact in every one of the types.
    assert float(value) == float(clustering_loss(ACTIVATIONS, MEMBERSHIP, CENTRES))


def test_attraction_sums_squares_and_counts_over_replicas():
    """Two replicas with 1 and 2 labelled rows give the loss of one device, which no mean of their losses is."""
    parts = [(ACTIVATIONS[:1], MEMBERSHIP[:, :1]), (ACTIVATIONS[1:], MEMBERSHIP[:, 1:])]
    local = []
    for activations, membership in parts:
        seen = []

        def keep(tensor, seen=seen):
            seen.append(float(tensor))
            return tensor

        clustering_loss(activations, membership, CENTRES, all_reduce=keep)
        local.append(seen)
    totals = iter([sum(values) for values in zip(*local, strict=True)])
    assert sorted(len(seen) for seen in local) == [2, 2]
    value = clustering_loss(*parts[0], CENTRES, all_reduce=lambda tensor: ops.cast(next(totals), "float32"))
    assert float(value) == pytest.approx(float(clustering_loss(ACTIVATIONS, MEMBERSHIP, CENTRES)), rel=1e-6)
