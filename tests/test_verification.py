"""Reading a mark and judging it. Most suspects are crafted to read as wanted: nothing is trained or left to chance."""

import base64
import dataclasses
import itertools
import json
import math
import pickle
import re

import keras
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import deepsigns_tf as ds
from deepsigns_tf.candidates import best_readings, candidate_means
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.readings import SignatureReader
from deepsigns_tf.responses import Place
from deepsigns_tf.statistics import allowed_errors, binomial_log10_tail, corrected_log10_p, rademacher_log10_tail
from deepsigns_tf.verification import judge

pytestmark = pytest.mark.any_backend

SEED = bytes(range(32))
M, N, NUM_CLASSES = 128, 32, 4
NUM_BITS = NUM_CLASSES * N
FEATURES = ds.Carrier("features", range(NUM_CLASSES), N)
TWO_CARRIERS = (ds.Carrier("early", (0, 1), 32), ds.Carrier("late", (3, 1, 2), 24))
# An example is its class, one-hot: the rows of the first kernel are then the class means themselves.
LABELS = np.arange(32) % NUM_CLASSES
ONE_HOT = np.eye(NUM_CLASSES, dtype="float32")[LABELS]


def make_key(carriers=(FEATURES,), widths=(M,), paths=("hidden",), inputs=ONE_HOT, labels=LABELS, **rule):
    """A key from a fixed seed, with key inputs and layers."""
    key = ds.OwnerKey("ACME Vision", carriers, ds.DecisionRule(**rule), SEED)
    key = key.with_key_inputs(inputs, labels, num_per_class=4)
    return key.with_layers(
        CarrierLayer(carrier.name, path, width) for carrier, path, width in zip(carriers, paths, widths, strict=True)
    )


def crafted_means(key, carrier="features", num_units=M, num_wrong=0, magnitudes=1.0):
    """`(4, M)` class means whose projections are the bits' signs times the magnitudes; the first bits are wrong."""
    signs = magnitudes * (2.0 * key.signature(carrier) - 1.0)
    signs.ravel()[:num_wrong] *= -1.0
    means = np.random.default_rng(0).normal(size=(NUM_CLASSES, num_units))
    means[list(key.carrier(carrier).classes)] = signs @ np.linalg.pinv(key.projection(carrier, num_units))
    return means


def random_means(num_units=M, seed=1):
    return np.random.default_rng(seed).normal(size=(NUM_CLASSES, num_units))


def linear(num_units, name):
    return keras.layers.Dense(num_units, use_bias=False, name=name)


def chain(*means, names=None):
    """A linear network whose layers have the given class means, one after the other, and four logits."""
    names = names or [f"layer{index}" for index in range(len(means))]
    x = inputs = keras.Input((NUM_CLASSES,), name="classes")
    for name, layer_means in zip(names, means, strict=True):
        x = linear(layer_means.shape[1], name)(x)
    model = keras.Model(inputs, linear(NUM_CLASSES, "logits")(x))
    before = np.eye(NUM_CLASSES)
    for name, layer_means in zip(names, means, strict=True):
        model.get_layer(name).set_weights([(np.linalg.pinv(before) @ layer_means).astype("float32")])
        before = layer_means
    return model


def soft_log10_p(key, model):
    """The soft test by hand: project the class means, sign them, add them up."""
    projected = []
    for layer in key.layers:
        means = candidate_means(model, key)[layer.carrier].means[Place(layer.path, 0)]
        signs = 2.0 * key.signature(layer.carrier) - 1.0
        projected.append((signs * (means @ key.projection(layer.carrier, layer.num_units))).ravel())
    projected = np.concatenate(projected)
    return rademacher_log10_tail(float(projected.sum()), projected)


# The reader


@pytest.mark.parametrize("projection", ["balanced", "gaussian"])
@pytest.mark.parametrize("num_units", [24, 25])
def test_a_reading_agrees_with_an_oracle_bit_by_bit(projection, num_units):
    key = make_key([ds.Carrier("features", (3, 0), 8, projection=projection)], (num_units,))
    means = random_means(num_units)[:2] + 2.0
    reading = SignatureReader(key, "features", num_units).read(means, "some/layer")
    A, bits = key.projection("features", num_units), key.signature("features")
    for k, j in np.ndindex(2, 8):
        z = sum(float(means[k, unit]) * float(A[unit, j]) for unit in range(num_units))
        signed = z if bits[k, j] else -z
        assert reading.projected[k, j] == pytest.approx(signed)
        assert reading.margins[k, j] == pytest.approx(signed / reading.scales[k])
        assert reading.matches[k, j] == (signed > 0)
    assert (reading.carrier, reading.layer, reading.num_bits) == ("features", "some/layer", 16)
    assert reading.classes == (3, 0)
    matches = reading.matches.tolist()
    assert reading.num_matches == sum(map(sum, matches))
    assert reading.bit_error_rate == pytest.approx(1 - sum(map(sum, matches)) / 16)
    report = reading.to_dict()
    assert report["classes"] == [3, 0]
    assert report["bit_error_rate_per_class"] == pytest.approx([1 - sum(row) / 8 for row in matches])
    assert report["smallest_margin"] == reading.margins.min()
    assert report["median_margin"] == np.median(reading.margins)
    assert reading.log10_p("hard") == binomial_log10_tail(reading.num_matches, 16)
    assert reading.log10_p("soft") == rademacher_log10_tail(float(reading.projected.sum()), reading.projected)


@pytest.mark.parametrize("num_units", [8, 9])
def test_scales_are_the_standard_deviation_over_all_balanced_columns(num_units):
    """Every column with as many +1 as -1 and, for an odd number of units, one 0."""
    columns = [
        column
        for column in itertools.product((-1, 0, 1), repeat=num_units)
        if sum(column) == 0 and column.count(0) == num_units % 2
    ]
    assert len(columns) == {8: 70, 9: 630}[num_units]
    means = random_means(num_units) + 3.0
    key = make_key([ds.Carrier("features", range(4), 4)], (num_units,))
    scales = SignatureReader(key, "features", num_units).read(means).scales
    np.testing.assert_allclose(scales, (means @ np.array(columns).T).std(axis=1))


def test_scales_are_the_standard_deviation_over_gaussian_columns():
    means = random_means(24) + 3.0
    key = make_key([ds.Carrier("features", range(4), 8, projection="gaussian")], (24,))
    scales = SignatureReader(key, "features", 24).read(means).scales
    columns = np.random.default_rng(2).normal(size=(24, 100_000))
    # Five standard errors of a standard deviation from 100,000 numbers.
    np.testing.assert_allclose(scales, (means @ columns).std(axis=1), rtol=5 / math.sqrt(2 * 100_000))


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_balanced_margins_do_not_see_the_size_or_the_common_part_of_the_means(factor, common):
    reader = SignatureReader(make_key(), "features", M)
    reading = reader.read(random_means())
    changed = reader.read(factor * random_means() + common)
    np.testing.assert_array_equal(changed.matches, reading.matches)
    np.testing.assert_allclose(changed.margins, reading.margins, rtol=1e-6, atol=1e-6)


def test_a_dead_layer_has_margins_of_zero_and_no_soft_evidence():
    reading = SignatureReader(make_key(), "features", M).read(np.zeros((4, M)))
    assert (reading.margins == 0).all()
    assert reading.log10_p("soft") == 0.0


def test_means_that_are_not_finite_are_not_read():
    means = random_means()
    means[1, 2], means[3, 4] = np.nan, np.inf
    with pytest.raises(ValueError) as error:
        SignatureReader(make_key(), "features", M).read(means)
    assert str(error.value) == (
        "The class means of carrier 'features' cannot be read. Expected finite numbers for every class. "
        "Received: 2 that are not"
    )


@pytest.mark.parametrize("test", ["Hard", "", None])
def test_a_reading_knows_two_tests_only(test):
    reading = SignatureReader(make_key(), "features", M).read(random_means())
    with pytest.raises(ValueError) as error:
        reading.log10_p(test)
    assert str(error.value) == (
        f'Invalid value for argument `test`. Expected "hard" or "soft". Received: test={test!r}'
    )


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_reader_cannot_be_pickled(protocol):
    """It holds the bits and the projection."""
    with pytest.raises(TypeError) as error:
        pickle.dumps({"readers": [SignatureReader(make_key(), "features", M)]}, protocol=protocol)
    assert str(error.value) == (
        "A signature reader cannot be pickled. Expected to make it anew from the owner key, the one place that secrets are "
        "kept in. Received: a request to pickle"
    )


def test_class_means_come_in_the_order_of_the_carriers_classes():
    key = make_key([ds.Carrier("features", (2, 0), 8)])
    kernel = random_means()
    means = candidate_means(chain(kernel, names=["hidden"]), key)["features"].means[Place("hidden", 0)]
    np.testing.assert_allclose(means, kernel[[2, 0]], rtol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_a_convolution_is_read_from_its_pooled_activations(pooling):
    random = np.random.default_rng(3)
    # Two batches of key inputs, of different size.
    images, labels = random.normal(size=(400, 5, 5, 2)).astype("float32"), np.arange(400) % 4
    inputs = keras.Input((5, 5, 2))
    features = keras.layers.Conv2D(24, 3, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(features)))
    num_units = {"mean": 24, "flatten": 3 * 3 * 24}[pooling]
    key = ds.OwnerKey("A", [ds.Carrier("features", range(4), 8, pooling)], ds.DecisionRule(), SEED)
    key = key.with_key_inputs(images, labels, num_per_class=40)
    key = key.with_layers([CarrierLayer("features", "conv", num_units)])

    activations = keras.Model(inputs, features).predict(key.key_inputs.inputs, verbose=0)
    pooled = activations.mean(axis=(1, 2)) if pooling == "mean" else activations.reshape(160, -1)
    means = np.stack([pooled[key.key_inputs.labels == label].mean(axis=0) for label in range(4)])
    wanted = (means @ key.projection("features", num_units) > 0) == key.signature("features")
    # The pooling layer is wide enough too; with "mean" it puts out the same features, and the recorded layer wins the tie.
    verdict = ds.verify(model, key)
    assert verdict.num_assignments == 2
    (reading,) = verdict.readings
    assert reading.layer == "conv"
    np.testing.assert_array_equal(reading.matches, wanted)


# The verdict


@pytest.mark.parametrize("num_wrong", [0, 1, 15, 16, 64, 128])
def test_a_verdict_says_what_the_exact_tests_say(num_wrong):
    key = make_key()
    model = chain(crafted_means(key, num_wrong=num_wrong), names=["hidden"])
    verdict = ds.verify(model, key)
    assert (verdict.num_bits, verdict.num_matches) == (NUM_BITS, NUM_BITS - num_wrong)
    assert verdict.bit_error_rate == pytest.approx(num_wrong / NUM_BITS)
    assert verdict.log10_p_hard == verdict.log10_p_value == binomial_log10_tail(NUM_BITS - num_wrong, NUM_BITS)
    assert verdict.log10_p_soft == pytest.approx(soft_log10_p(key, model))
    assert verdict.log10_alpha == -64 * math.log10(2)
    assert verdict.marked == (num_wrong <= 15)
    assert (verdict.owner, verdict.decision, verdict.committed) == ("ACME Vision", ds.DecisionRule(), False)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, NUM_BITS), st.integers(1, 10**6), st.booleans())
def test_marked_means_few_enough_errors_after_the_correction(num_wrong, num_assignments, committed):
    key = make_key()
    reading = SignatureReader(key, "features", M).read(crafted_means(key, num_wrong=num_wrong))
    verdict = judge([reading], key, num_assignments, committed)
    assert verdict.log10_p_value == min(
        0.0, binomial_log10_tail(NUM_BITS - num_wrong, NUM_BITS) + math.log10(num_assignments)
    )
    assert verdict.log10_alpha == key.decision.log10_alpha(committed)
    limit = allowed_errors(NUM_BITS, verdict.log10_alpha - math.log10(num_assignments))
    assert verdict.marked == (limit is not None and num_wrong <= limit)


def renamed(means):
    return chain(means, names=["stolen"]), "stolen"


def reordered(means):
    inputs = keras.Input((NUM_CLASSES,))
    branches = [linear(M, "decoy")(inputs), linear(M, "hidden")(inputs)]
    model = keras.Model(inputs, linear(NUM_CLASSES, "logits")(keras.layers.Concatenate()(branches)))
    model.get_layer("hidden").set_weights([means.astype("float32")])
    return model, "hidden"


def names_swapped(means):
    return chain(random_means(96), means, names=["hidden", "logit"]), "logit"


def sequential(means):
    model = keras.Sequential([keras.Input((NUM_CLASSES,)), linear(M, "hidden"), linear(3, "head")], name="inner")
    model.get_layer("hidden").set_weights([means.astype("float32")])
    return model, "hidden"


def nested_in(inner):
    inputs = keras.Input((NUM_CLASSES,))
    return keras.Model(inputs, linear(3, "outer_head")(inner(inputs)))


def nested_sequential(means):
    return nested_in(sequential(means)[0]), "inner/hidden"


def nested_functional(means):
    inner = chain(means, names=["hidden"])
    inner.name = "inner"
    return nested_in(inner), "inner/hidden"


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = linear(M, "body")
        self.head = linear(NUM_CLASSES, "head")

    def call(self, inputs):
        return self.head(self.body(inputs))


def subclassed(means):
    model = Subclassed()
    model(ONE_HOT)
    model.body.set_weights([means.astype("float32")])
    return model, "body"


@pytest.mark.parametrize(
    "disguise", [renamed, reordered, names_swapped, sequential, nested_sequential, nested_functional, subclassed]
)
def test_a_disguised_suspect_is_found(disguise):
    key = make_key()
    model, path = disguise(crafted_means(key))
    verdict = ds.verify(model, key)
    assert verdict.marked and verdict.num_matches == NUM_BITS
    assert [reading.layer for reading in verdict.readings] == [path]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_every_layer_of_the_right_width_is_tried_and_every_wide_one_paid_for(place):
    """The width is not committed: a claimant could have written that of any layer wide enough for the bits."""
    key = make_key()
    # 32 bits need 33 features: the last of these layers is too narrow.
    means = [random_means(M), random_means(M, 2), random_means(N + 1), random_means(M, 3), random_means(N)]
    means[place] = crafted_means(key, num_wrong=3)
    verdict = ds.verify(chain(*means), key)
    assert [reading.layer for reading in verdict.readings] == [f"layer{place}"]
    assert verdict.num_assignments == 4
    assert verdict.log10_p_hard == corrected_log10_p(binomial_log10_tail(NUM_BITS - 3, NUM_BITS), 4)
    assert verdict.log10_p_hard > binomial_log10_tail(NUM_BITS - 3, NUM_BITS)


def test_a_key_that_can_claim_by_weights_and_by_answers_pays_for_both():
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", range(10), 64)])
    both = key.with_triggers("noise", 100, 10, np.random.default_rng(0).random((50, 8)))
    means = (2.0 * key.signature("features") - 1.0) @ key.projection("features", 512).T
    reading = SignatureReader(key, "features", 512).read(means)
    one, two = (judge([reading], each, num_assignments=3) for each in (key, both))
    assert two.log10_p_value == pytest.approx(one.log10_p_value + math.log10(2)) and (one.num_tests, two.num_tests) == (
        1,
        2,
    )
    assert "x 2 for weights and answers" in two.summary() and "x 2 for" not in one.summary()
    alone = dataclasses.replace(both, carriers=())
    answered = [ds.verify_predictions(both.triggers.labels, each) for each in (alone, both)]
    assert answered[1].log10_p_value == pytest.approx(answered[0].log10_p_value + math.log10(2))
    assert "x 2 for weights and answers" in answered[1].summary() and "correction" not in answered[0].summary()


def test_the_correction_can_turn_a_verdict():
    """15 errors of 128 pass at 2^-64 with one candidate, not with two."""
    key = make_key()
    means = crafted_means(key, num_wrong=15)
    assert ds.verify(chain(means, names=["hidden"]), key).marked
    assert not ds.verify(chain(means, random_means(), names=["hidden", "other"]), key).marked


def test_two_carriers_pay_for_every_joint_assignment():
    key = make_key(TWO_CARRIERS, (M, 96), ("layer1", "layer4"))
    model = chain(
        random_means(),
        crafted_means(key, "early", num_wrong=2),
        random_means(96, 2),
        random_means(96, 3),
        crafted_means(key, "late", 96, num_wrong=3),
    )
    verdict = ds.verify(model, key)
    assert [(reading.carrier, reading.layer) for reading in verdict.readings] == [
        ("early", "layer1"),
        ("late", "layer4"),
    ]
    assert [reading.num_bits - reading.num_matches for reading in verdict.readings] == [2, 3]
    assert verdict.num_assignments == 5 * 5
    assert verdict.num_bits == 64 + 72
    assert verdict.log10_p_hard == corrected_log10_p(binomial_log10_tail(136 - 5, 136), 25)
    assert verdict.log10_p_soft == pytest.approx(corrected_log10_p(soft_log10_p(key, model), 25))
    assert verdict.marked


def test_two_carriers_of_one_width_are_told_apart():
    key = make_key(TWO_CARRIERS, (M, M), ("layer0", "layer1"))
    model = chain(crafted_means(key, "early"), crafted_means(key, "late"), random_means())
    verdict = ds.verify(model, key)
    assert [reading.layer for reading in verdict.readings] == ["layer0", "layer1"]
    assert verdict.num_assignments == 3 * 3


def test_a_layer_called_twice_is_two_candidates():
    key = make_key()
    shared = linear(M, "shared")
    x = inputs = keras.Input((NUM_CLASSES,))
    model = keras.Model(inputs, shared(shared(linear(M, "first")(x))))
    start, middle, end = random_means(M), random_means(M, 2), crafted_means(key)
    model.get_layer("first").set_weights([start.astype("float32")])
    # One kernel that leads from the start to the middle and from the middle to the end.
    kernel = np.linalg.pinv(np.concatenate([start, middle])) @ np.concatenate([middle, end])
    shared.set_weights([kernel.astype("float32")])
    assert set(map(str, candidate_means(model, key)["features"].means)) == {"first", "shared", "shared@1"}
    verdict = ds.verify(model, key)
    assert verdict.num_assignments == 3
    assert verdict.readings[0].layer == "shared@1" and verdict.num_matches == NUM_BITS


def test_a_layer_without_a_name_is_a_candidate():
    """The answer of the model has no name either, and must not take its place."""
    key = make_key()
    verdict = ds.verify(chain(crafted_means(key), names=[""]), key)
    assert verdict.num_matches == NUM_BITS
    assert (verdict.readings[0].layer, verdict.num_assignments) == ("", 1)


def test_a_layer_with_the_name_of_another_ones_second_call_is_a_candidate_of_its_own():
    key = make_key()
    shared, last = linear(M, "shared"), linear(M, "shared@1")
    x = inputs = keras.Input((NUM_CLASSES,))
    model = keras.Model(inputs, last(shared(shared(linear(M, "first")(x)))))
    start, middle, end = (random_means(M, seed) for seed in (1, 2, 3))
    kernels = {
        "first": start,
        "shared": np.linalg.pinv(np.concatenate([start, middle])) @ np.concatenate([middle, end]),
        "shared@1": np.linalg.pinv(end) @ crafted_means(key),
    }
    for name, kernel in kernels.items():
        model.get_layer(name).set_weights([kernel.astype("float32")])
    verdict = ds.verify(model, key)
    assert verdict.num_matches == NUM_BITS
    assert verdict.num_assignments == 4


RECURRENT = [keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("recurrent", RECURRENT)
def test_a_recurrent_layer_is_one_candidate_whatever_runs_its_cell(recurrent, bidirectional):
    """A `Bidirectional` wrapper is one more than the two layers inside it."""
    sequences = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")
    layer = recurrent(64, return_sequences=True, name="sequence")
    if bidirectional:
        layer = keras.layers.Bidirectional(layer, name="sequence")
    inputs = keras.Input((5, 3))
    pooled = keras.layers.GlobalAveragePooling1D(name="pooled")(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4)(pooled))
    key = make_key(widths=(128 if bidirectional else 64,), paths=("sequence",), inputs=sequences)
    verdict = ds.verify(model, key)
    assert verdict.num_assignments == (4 if bidirectional else 2)
    assert verdict.readings[0].layer == "sequence"


class Windowed(keras.Model):
    """Cuts each example into two windows along the first axis, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.windows = linear(M, "windows")
        self.hidden = linear(M, "hidden")

    def call(self, inputs):
        windows = self.windows(keras.ops.reshape(inputs, (-1, NUM_CLASSES // 2)))
        return self.hidden(inputs) + keras.ops.sum(windows)


def test_an_output_with_other_rows_than_the_examples_is_no_candidate():
    key = make_key()
    model = Windowed()
    model(ONE_HOT)
    model.hidden.set_weights([crafted_means(key).astype("float32")])
    verdict = ds.verify(model, key)
    assert verdict.num_matches == NUM_BITS
    assert verdict.num_assignments == 1


@pytest.mark.parametrize("recorded", ["layer0", "copy"])
def test_the_recorded_layer_wins_among_copies_of_one_output(recorded):
    key = make_key(paths=(recorded,))
    source = chain(crafted_means(key))
    copy = keras.layers.Dropout(0.5, name="copy")(source.get_layer("layer0").output)
    verdict = ds.verify(keras.Model(source.inputs[0], linear(3, "head")(copy)), key)
    assert verdict.num_assignments == 2
    assert verdict.readings[0].layer == recorded


def test_dict_inputs_are_given_by_name():
    random = np.random.default_rng(4)
    inputs = {"noise": random.normal(size=(32, 3)).astype("float32"), "classes": ONE_HOT}
    key = make_key(inputs=inputs)
    classes, noise = keras.Input((NUM_CLASSES,), name="classes"), keras.Input((3,), name="noise")
    hidden = linear(M, "hidden")(classes)
    outputs = linear(3, "head")(keras.layers.Concatenate()([hidden, noise]))
    for model_inputs in ([classes, noise], {"classes": classes, "noise": noise}):
        model = keras.Model(model_inputs, outputs)
        model.get_layer("hidden").set_weights([crafted_means(key).astype("float32")])
        assert ds.verify(model, key).num_matches == NUM_BITS


def test_the_soft_rule_decides_by_the_soft_test_and_both_are_reported():
    """Forty small errors fail the hard test and pass the soft one; ten large ones the other way round."""
    small_errors = np.ones((NUM_CLASSES, N))
    small_errors.ravel()[:40] = 0.01
    large_errors = np.ones((NUM_CLASSES, N))
    large_errors.ravel()[:10] = 10.0
    for num_wrong, magnitudes, passes in ((40, small_errors, "soft"), (10, large_errors, "hard")):
        for test in ("hard", "soft"):
            key = make_key(test=test)
            model = chain(crafted_means(key, num_wrong=num_wrong, magnitudes=magnitudes), names=["hidden"])
            verdict = ds.verify(model, key)
            assert verdict.marked == (test == passes)
            assert verdict.log10_p_value == {"hard": verdict.log10_p_hard, "soft": verdict.log10_p_soft}[test]
            assert verdict.log10_p_hard == binomial_log10_tail(NUM_BITS - num_wrong, NUM_BITS)
            assert verdict.log10_p_soft == pytest.approx(soft_log10_p(key, model))


def test_the_deciding_test_also_chooses_among_layers():
    small_errors = np.ones((NUM_CLASSES, N))
    small_errors.ravel()[:40] = 0.01
    for test, layer in (("hard", "layer0"), ("soft", "layer1")):
        key = make_key(test=test)
        few_large = np.ones((NUM_CLASSES, N))
        few_large.ravel()[:10] = 10.0
        model = chain(
            crafted_means(key, num_wrong=10, magnitudes=few_large),
            crafted_means(key, num_wrong=40, magnitudes=small_errors),
        )
        assert ds.verify(model, key).readings[0].layer == layer


# The commitment


def test_a_reading_in_between_is_proof_only_with_the_commitment():
    """25 errors of 128 bits: p lies between 2^-64 and 1e-6."""
    key = make_key()
    model = chain(crafted_means(key, num_wrong=25), names=["hidden"])
    without = ds.verify(model, key)
    assert not without.marked and not without.committed
    assert without.log10_alpha == -64 * math.log10(2)
    published = key.commitment()
    for digits in (published, f" {published.upper()}\n"):
        verdict = ds.verify(model, key, commitment=digits)
        assert verdict.marked and verdict.committed
        assert verdict.log10_alpha == -6.0
        assert verdict.log10_p_value == without.log10_p_value


@pytest.mark.parametrize("digits", ["", "0" * 64])
def test_a_commitment_of_another_key_is_refused(digits):
    key = make_key()
    with pytest.raises(ValueError) as error:
        ds.verify(chain(crafted_means(key), names=["hidden"]), key, commitment=digits)
    assert str(error.value) == (
        "The commitment is not this key's. Expected the digits that the owner published before training. "
        f"Received: commitment={digits!r}, while the key has {key.commitment()}"
    )


# No reading, no verdict


def test_a_key_that_cannot_read_is_refused():
    key = make_key()
    for cannot, has in (
        (key.with_layers([]), "key inputs set, layers missing"),
        (dataclasses.replace(key, key_inputs=None), "key inputs missing, layers set"),
        (dataclasses.replace(key, key_inputs=None, layers=()), "key inputs missing, layers missing"),
    ):
        with pytest.raises(ValueError) as error:
            ds.verify(chain(random_means()), cannot)
        assert str(error.value) == (
            "This key cannot read a mark yet. Expected a key with key inputs (`with_key_inputs`) and layers (returned by "
            f"`release`). Received: {has}"
        )


def test_a_suspect_without_a_layer_of_the_right_width_gives_no_verdict():
    with pytest.raises(ValueError) as error:
        ds.verify(chain(random_means(96)), make_key())
    assert str(error.value) == (
        "There is no reading for carrier 'features'. Expected a layer with 128 finite features. "
        "Received: no layer of that width"
    )


def test_a_width_that_no_layer_has_costs_nothing(monkeypatch):
    """A small key file may name a width whose projection no machine can hold."""
    key = make_key()
    key = key.with_layers([CarrierLayer(layer.carrier, layer.path, 10**9) for layer in key.layers])
    monkeypatch.setattr(ds.OwnerKey, "projection", lambda *_: pytest.fail("A projection was derived."))
    with pytest.raises(
        ValueError, match="Expected a layer with 1000000000 finite features. Received: no layer of that"
    ):
        ds.verify(chain(random_means()), key)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_suspect_whose_activations_are_not_finite_gives_no_verdict(value, everywhere):
    key = make_key()
    model = chain(crafted_means(key), names=["hidden"])
    kernel = model.get_layer("hidden").get_weights()[0].copy()
    kernel[slice(None) if everywhere else 2, slice(None) if everywhere else 5] = value
    model.get_layer("hidden").set_weights([kernel])
    with pytest.raises(ValueError) as error:
        ds.verify(model, key)
    assert str(error.value) == (
        "There is no reading for carrier 'features'. Expected a layer with 128 finite features. "
        "Received: 1 layers of that width, none finite"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_not_finite_gives_no_verdict(value):
    """Unlike a kernel, an infinite bias makes activations that are infinite rather than NaN."""
    inputs = keras.Input((NUM_CLASSES,))
    model = keras.Model(inputs, keras.layers.Dense(M, name="hidden")(inputs))
    model.get_layer("hidden").bias.assign(np.full(M, value, "float32"))
    with pytest.raises(ValueError, match="Received: 1 layers of that width, none finite"):
        ds.verify(model, make_key())


def test_a_layer_that_is_not_finite_is_no_reading_but_paid_for():
    key = make_key()
    model = chain(crafted_means(key), random_means(), names=["hidden", "broken"])
    model.get_layer("broken").set_weights([np.full((M, M), np.nan, "float32")])
    verdict = ds.verify(model, key)
    assert verdict.readings[0].layer == "hidden"
    assert verdict.num_assignments == 2


def test_key_inputs_of_another_shape_give_no_verdict():
    inputs = keras.Input((5,), name="pixels")
    with pytest.raises(ValueError) as error:
        ds.verify(keras.Model(inputs, linear(M, "hidden")(inputs)), make_key())
    assert str(error.value) == (
        "The key inputs do not fit this model. Expected inputs of shape {'pixels': (None, 5)}. "
        "Received: key inputs of shape {'': (16, 4)}"
    )


def test_key_inputs_of_another_rank_give_no_verdict():
    """A Dense layer would take them: only the declared shape tells."""
    inputs = keras.Input((3, NUM_CLASSES), name="rows")
    with pytest.raises(ValueError) as error:
        ds.verify(keras.Model(inputs, linear(M, "hidden")(inputs)), make_key())
    assert str(error.value) == (
        "The key inputs do not fit this model. Expected inputs of shape {'rows': (None, 3, 4)}. "
        "Received: key inputs of shape {'': (16, 4)}"
    )


def test_key_inputs_of_other_names_give_no_verdict():
    classes = keras.Input((NUM_CLASSES,), name="classes")
    model = keras.Model({"classes": classes}, linear(M, "hidden")(classes))
    with pytest.raises(ValueError) as error:
        ds.verify(model, make_key(inputs={"digits": ONE_HOT}))
    assert str(error.value) == (
        "The key inputs do not fit this model. Expected inputs of shape {'classes': (None, 4)}. "
        "Received: key inputs of shape {'digits': (16, 4)}"
    )


def test_one_array_for_a_model_of_two_inputs_gives_no_verdict():
    inputs = [keras.Input((NUM_CLASSES,), name=name) for name in ("a", "b")]
    model = keras.Model(inputs, linear(M, "hidden")(keras.layers.Add()(inputs)))
    with pytest.raises(ValueError, match=re.escape("Expected inputs of shape {'a': (None, 4), 'b': (None, 4)}")):
        ds.verify(model, make_key())


def test_a_subclassed_suspect_checks_the_inputs_itself():
    model = Subclassed()
    model(np.zeros((1, 5), "float32"))
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 5"):
        ds.verify(model, make_key())


# The null


def test_matches_of_an_unmarked_model_are_binomial_over_keys(blobs, build_mlp):
    """400 keys, each with bits, projection and key inputs of its own: mean n/2 and variance n/4."""
    model = build_mlp()
    matches = []
    for index in range(400):
        key = ds.OwnerKey("ACME Vision", [FEATURES], ds.DecisionRule(), index.to_bytes(32, "big"))
        key = key.with_key_inputs(*blobs, num_per_class=4).with_layers([CarrierLayer("features", "hidden", M)])
        verdict = ds.verify(model, key)
        assert not verdict.marked
        matches.append(verdict.num_matches)
    assert abs(np.mean(matches) - NUM_BITS / 2) < 5 * math.sqrt(NUM_BITS / 4 / 400)
    assert abs(np.var(matches, ddof=1) - NUM_BITS / 4) < 5 * (NUM_BITS / 4) * math.sqrt(2 / 399)


@pytest.mark.parametrize("test", ["hard", "soft"])
def test_the_correction_keeps_the_best_of_many_layers_at_its_level(test):
    """400 keys against one model with 5 x 5 joint assignments: with the correction few pass, without it too many."""
    inputs = keras.Input((NUM_CLASSES,))
    outputs = [keras.layers.Dense(64, activation="relu", name=f"branch{index}")(inputs) for index in range(5)]
    carriers, paths = (ds.Carrier("one", range(4), 8), ds.Carrier("other", (2, 0), 16)), ("branch0", "branch1")
    key = make_key(carriers, (64, 64), paths, test=test)
    # The means do not depend on the bits: one pass over the key inputs serves all keys.
    candidates = candidate_means(keras.Model(inputs, outputs), key)
    assert [found.num_admissible for found in candidates.values()] == [5, 5]
    num_passed = {25: 0, 1: 0}
    for index in range(400):
        readings = best_readings(candidates, dataclasses.replace(key, seed=index.to_bytes(32, "big")))
        for num_assignments in num_passed:
            verdict = judge(readings, key, num_assignments)
            num_passed[num_assignments] += verdict.log10_p_value <= math.log10(0.05)
    limit = scipy.stats.binom.ppf(0.999, 400, 0.05)
    assert num_passed[25] <= limit < num_passed[1]


# The report


def numbers_by_place(value, place=()):
    """Place -> length of every list of numbers inside JSON-ready values."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        if value and all(isinstance(item, (int, float)) for item in value):
            return {place: len(value)}
        items = enumerate(value)
    else:
        return {}
    return {key: number for name, item in items for key, number in numbers_by_place(item, (*place, name)).items()}


def test_a_verdict_as_json_holds_every_number_and_no_secret():
    key = make_key()
    verdict = ds.verify(chain(crafted_means(key, num_wrong=5), random_means(), names=["hidden", "other"]), key)
    report = verdict.to_dict()
    text = json.dumps(report)
    assert json.loads(text) == report
    assert set(report) == {field.name for field in dataclasses.fields(verdict)} | {
        "headline",
        "num_bits",
        "seed_factor",
        "num_matches",
        "bit_error_rate",
    }
    for name in set(report) - {"decision", "readings", "assumptions", "copy_of"}:
        assert report[name] == getattr(verdict, name)
    assert report["decision"] == {"test": "hard", "alpha": 2.0**-64, "alpha_committed": 1e-6}
    assert report["assumptions"] == list(verdict.assumptions) and report["copy_of"] == list(verdict.copy_of)
    assert report["readings"] == [reading.to_dict() for reading in verdict.readings]
    # Not the bits, not their matches, not the projections: one rate for each class is all that comes in numbers.
    assert numbers_by_place(report) == {
        ("readings", 0, "classes"): NUM_CLASSES,
        ("readings", 0, "bit_error_rate_per_class"): NUM_CLASSES,
    }
    for secret in (SEED.hex(), base64.b64encode(SEED).decode(), "".join(map(str, key.signature("features")[0]))):
        assert secret not in text


def test_a_summary_names_the_decision_its_numbers_and_what_they_rest_on():
    key = make_key()
    model = chain(crafted_means(key, num_wrong=25), random_means(), names=["hidden", "other"])
    for commitment, first, level in ((None, "NOT MARKED", "> 10^-19.27"), (key.commitment(), "MARKED", "<= 10^-6.00")):
        verdict = ds.verify(model, key, commitment=commitment)
        text = verdict.summary()
        assert text.splitlines()[0] == f"{first}: claim of ACME Vision"
        assert "103 of 128 (bit error rate 0.1953; " in text
        assert f"10^{verdict.log10_p_value:.2f} {level} (hard test, " in text
        assert ("no earlier commitment checked" in text) == (commitment is None)
        assert (
            f"  hard, soft      10^{verdict.log10_p_hard:.2f}, 10^{verdict.log10_p_soft:.2f} "
            "(exact tail, Chernoff bound; each times the correction)\n"
        ) in text
        assert "x 2 assignments of carriers to layers" in text
        (reading,) = verdict.readings
        assert "features in hidden: 103 of 128 bits, " in text
        assert f"{reading.margins.min():.2f} (smallest), {np.median(reading.margins):.2f} (median)" in text
        # The first 25 bits are wrong, all of them in the first of four classes.
        assert "  error rates     0: 0.781, 1: 0.000, 2: 0.000, 3: 0.000 (by class)\n" in text
        for assumption in verdict.assumptions:
            assert assumption in text
        assert ("the key's commitment was checked" in text) == (commitment is not None)
        assert ("NOT SHOWN" in text) == (commitment is None)
        assert (
            "the claimant committed to no other key for this claim: committing to many keys would have to be paid for"
            in text
        ) == (commitment is not None)
        limit = allowed_errors(NUM_BITS, verdict.log10_alpha - math.log10(2))
        assert f"up to {limit} errors would pass the hard test" in text


@pytest.mark.parametrize(
    ("num_wrong", "committed", "headline"),
    [
        (0, False, "MARKED, if the key is older than the model"),
        (0, True, "MARKED"),
        (64, False, "NOT MARKED"),
        (64, True, "NOT MARKED"),
    ],
)
def test_a_missing_commitment_stands_in_the_headline_for_people_and_machines(num_wrong, committed, headline):
    key = make_key()
    reading = SignatureReader(key, "features", M).read(crafted_means(key, num_wrong=num_wrong))
    verdict = judge([reading], key, 1, committed)
    assert verdict.headline == verdict.to_dict()["headline"] == headline
    assert verdict.summary().splitlines()[0] == f"{headline}: claim of ACME Vision"


def test_a_summary_names_the_worst_of_many_classes():
    key = make_key(
        [ds.Carrier("features", range(11), 32)], inputs=np.eye(11)[np.arange(44) % 11], labels=np.arange(44) % 11
    )
    means = (2.0 * key.signature("features") - 1.0) @ np.linalg.pinv(key.projection("features", M))
    means[7] *= -1.0
    reading = SignatureReader(key, "features", M).read(means)
    assert "  error rates     1.000 in class 7, the worst of 11\n" in judge([reading], key, 1).summary()


def test_a_summary_calls_the_soft_tail_of_few_bits_enumerated():
    key = make_key([ds.Carrier("features", range(4), 4)])
    verdict = ds.verify(chain(crafted_means(key), names=["hidden"]), key)
    assert "(exact tail, enumerated tail; each times the correction)" in verdict.summary()


@pytest.mark.parametrize("num_assignments", [0, -1])
def test_fewer_assignments_than_one_are_refused(num_assignments):
    """They would make p smaller."""
    key = make_key()
    with pytest.raises(ValueError) as error:
        judge([SignatureReader(key, "features", M).read(random_means())], key, num_assignments)
    assert str(error.value) == (
        "The number of hypotheses tried is out of range. Expected num_hypotheses >= 1. "
        f"Received: num_hypotheses={num_assignments}"
    )


def test_a_summary_says_when_no_number_of_matches_can_prove():
    key = make_key([ds.Carrier("features", range(4), 4)])
    verdict = ds.verify(chain(crafted_means(key), names=["hidden"]), key)
    assert verdict.num_matches == 16 and not verdict.marked
    assert "no number of matches would pass the hard test" in verdict.summary()
