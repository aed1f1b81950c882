"""Units found again by their responses."""

import numpy as np
import pytest

from deepsigns_tf.alignment import align

RANDOM = np.random.default_rng(0)
# ReLU units of random inputs: alike in size, different in what they respond to.
REFERENCE = np.maximum(RANDOM.normal(size=(400, 20)) @ RANDOM.normal(size=(20, 30)), 0)


def test_permuted_and_rescaled_units_are_found():
    order, factors = RANDOM.permutation(30), RANDOM.uniform(0.2, 5, 30)
    alignment = align(REFERENCE, (REFERENCE * factors)[:, order])
    np.testing.assert_array_equal(order[alignment.sources], np.arange(30))
    np.testing.assert_allclose(alignment.scales, 1 / factors)
    np.testing.assert_allclose(alignment.applied((REFERENCE * factors)[:, order]), REFERENCE, atol=1e-9)
    assert alignment.quality == pytest.approx(1.0)


def test_copies_and_strangers_do_not_disturb():
    """Split units respond alike up to a factor; idle ones are noise, or never move."""
    widened = np.concatenate(
        [REFERENCE, 0.3 * REFERENCE[:, :5], RANDOM.random((400, 10)), np.zeros((400, 3)), np.full((400, 2), 7.0)],
        axis=1,
    )
    order = RANDOM.permutation(widened.shape[1])
    alignment = align(REFERENCE, widened[:, order])
    np.testing.assert_allclose(alignment.applied(widened[:, order]), REFERENCE, atol=1e-9)
    assert alignment.quality == pytest.approx(1.0)


def test_what_is_missing_is_told():
    alignment = align(REFERENCE, REFERENCE[:, :25])
    assert (alignment.sources[:25] == np.arange(25)).all() and (alignment.sources[25:] == -1).all()
    assert (alignment.applied(REFERENCE[:, :25])[:, 25:] == 0).all() and alignment.quality == pytest.approx(25 / 30)


def test_a_huge_idle_unit_hides_no_other():
    huge = np.concatenate([REFERENCE[:, ::-1], 1e9 * RANDOM.random((400, 1))], axis=1)
    alignment = align(REFERENCE, huge)
    assert alignment.quality == pytest.approx(1.0) and (alignment.sources == np.arange(30)[::-1]).all()


def test_a_unit_of_the_reference_that_never_moves_does_not_count():
    still = np.concatenate([REFERENCE, np.zeros((400, 5))], axis=1)
    alignment = align(still, REFERENCE)
    assert alignment.quality == pytest.approx(1.0) and np.isnan(alignment.correlations[30:]).all()
    assert (alignment.sources[30:] == -1).all()


def test_unrelated_units_match_less_than_noisy_copies():
    unrelated = np.maximum(RANDOM.normal(size=(400, 20)) @ RANDOM.normal(size=(20, 30)), 0)
    noisy = REFERENCE + 0.5 * REFERENCE.std() * RANDOM.normal(size=REFERENCE.shape)
    assert align(REFERENCE, unrelated).quality < 0.3 < 0.8 < align(REFERENCE, noisy[:, ::-1]).quality
    assert (align(REFERENCE, noisy[:, ::-1]).sources == np.arange(30)[::-1]).all()


def test_units_that_mostly_do_the_same_are_told_by_what_they_do_alone():
    """Two shared factors make up nearly all of each; how much of them goes where is what has changed since."""
    factors, own, order = RANDOM.normal(size=(400, 2)), RANDOM.normal(size=(400, 30)), RANDOM.permutation(30)
    before, after = (8 * factors @ RANDOM.normal(size=(2, 30)) + own for _ in range(2))
    right = np.argsort(order)
    assert (align(before, after[:, order]).sources == right).mean() < 0.3
    found = align(before, (after * RANDOM.uniform(0.2, 5, 30))[:, order], decorrelated=True)
    assert (found.sources == right).all() and 0.5 < found.quality < 1
    # Units that were split, or added and never move, change nothing about that.
    widened = np.concatenate([after[:, order], 0.3 * after[:, order[:5]], np.zeros((400, 3))], axis=1)
    found = align(before, widened, decorrelated=True)
    np.testing.assert_array_equal(np.r_[order, order[:5]][found.sources], np.arange(30))
    copy = align(before, (3 * before)[:, order], decorrelated=True)
    assert (copy.sources == right).all() and copy.quality == pytest.approx(1.0)
    np.testing.assert_allclose(copy.applied((3 * before)[:, order]), before, atol=1e-9)


def test_units_are_brought_to_one_spread():
    """Whatever their sizes; one that is missing stays so."""
    factors, order = RANDOM.uniform(0.2, 5, 30), RANDOM.permutation(30)
    spread = REFERENCE.std(axis=0)
    suspect = (REFERENCE * factors)[:, order]
    evened = align(REFERENCE, suspect).evened(suspect)
    np.testing.assert_allclose(evened.applied(suspect), REFERENCE / spread, atol=1e-9)
    narrow = align(REFERENCE, suspect[:, :25])
    assert (narrow.evened(suspect[:, :25]).applied(suspect[:, :25])[:, narrow.sources < 0] == 0).all()


def test_sizes_are_left_alone_when_asked():
    alignment = align(REFERENCE, 3 * REFERENCE).unscaled
    assert (alignment.scales == 1).all()


@pytest.mark.parametrize("decorrelated", [False, True])
def test_units_that_move_the_other_way_are_turned(decorrelated):
    """Of an odd function, as an LSTM's: whoever changes its sign, and that of what takes it in, changes no output."""
    order, odd = RANDOM.permutation(30), np.tanh(RANDOM.normal(size=(400, 20)) @ RANDOM.normal(size=(20, 30)))
    suspect = (odd * RANDOM.choice([-3.0, 3.0], 30))[:, order]
    alignment = align(odd, suspect, decorrelated=decorrelated)
    assert (order[alignment.sources] == np.arange(30)).all() and alignment.quality == pytest.approx(1.0)
    np.testing.assert_allclose(alignment.applied(suspect), odd, atol=1e-9)
    np.testing.assert_allclose(alignment.unscaled.applied(suspect), 3 * odd, atol=1e-9)
    np.testing.assert_allclose(alignment.evened(suspect).applied(suspect), odd / odd.std(axis=0), atol=1e-9)


@pytest.mark.parametrize(
    ("reference", "suspect"),
    [
        (REFERENCE, REFERENCE[:-1]),
        (REFERENCE[0], REFERENCE[0]),
        (REFERENCE[:1], REFERENCE[:1]),
        (REFERENCE, np.where(REFERENCE > 1, np.nan, REFERENCE)),
    ],
)
def test_features_that_do_not_belong_together_are_refused(reference, suspect):
    with pytest.raises(ValueError, match=r"^These features cannot be matched\. Expected .*\. Received: "):
        align(reference, suspect)


# Verdicts


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A trained network, and the one that was marked from there, with its key.

    The bits follow from the reference's file, so that every run has others. 32 bits for 128 units leave all of them legible
    after a match (log10 p at most -48 in each of 12 runs); 64 bits were not in one run of ten.
    """
    import keras

    import deepsigns_tf as ds

    random = np.random.default_rng(0)
    y = np.arange(1200) % 8
    x = (random.normal(size=(8, 16))[y] + 0.5 * random.normal(size=(1200, 16))).astype("float32")

    def build(regularizer=None, model_class=keras.Model):
        inputs = keras.Input((16,))
        hidden = keras.layers.Dense(128, "relu", activity_regularizer=regularizer, name="hidden")(inputs)
        return model_class(inputs, keras.layers.Dense(8, name="logits")(hidden))

    def train(model, epochs, learning_rate=1e-3):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(learning_rate), loss)
        model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
        return model

    keras.utils.set_random_seed(0)
    reference = train(build(), 5)
    key = ds.OwnerKey("ACME Vision", (ds.Carrier("features", range(8), 32),), ds.DecisionRule(), bytes(32))
    path = tmp_path_factory.mktemp("reference") / "reference.keras"
    reference.save(path)
    key = key.with_reference(path).with_key_inputs(x, y, 100)
    model = build(ds.SignatureRegularizer(key, "features", strength=3.0), ds.WatermarkedModel)
    model.set_weights(reference.get_weights())
    plain, key = ds.release(train(model, 20), key)
    unrelated = [train(build(), 5) for _ in range(3)]
    return path, plain, key, [reference, *unrelated]


def test_a_permuted_copy_is_read_after_matching_it_with_what_does_not_know_the_bits(marked):
    import deepsigns_tf as ds
    from deepsigns_tf.attacks.same_function import add_cancelling_units, permute_units, rescale_units, split_units

    reference, model, key, _ = marked
    assert ds.verify(model, key).marked
    for attacked in (permute_units(model, 1), rescale_units(permute_units(model, 1), 2)):
        assert not ds.verify(attacked, key).marked
        verdict = ds.verify(attacked, key, commitment=key.commitment(), reference=reference)
        # One layer of each is wide enough; read plainly, and, beside all outputs together, matched with and without sizes.
        assert verdict.marked and verdict.matched and verdict.num_assignments == 1 + 2 * 2
        assert any("units were matched" in line for line in verdict.assumptions)
    wider = add_cancelling_units(split_units(model, 3, 0.2), 4, 0.2)
    assert ds.verify(wider, key, commitment=key.commitment(), reference=reference).marked


def test_layers_many_times_as_wide_are_matched(marked):
    """Idle units cost a thief little: a few times the width must not be enough to be left out."""
    import keras

    from deepsigns_tf.attacks.same_function import add_idle_units
    from deepsigns_tf.candidates import matched_candidates

    reference, model, key, _ = marked
    for fraction, tried in ((7.0, True), (31.0, True), (32.0, False)):
        widened = add_idle_units(model, 5, fraction)
        assert widened.get_layer("hidden").units == 128 * (1 + fraction)
        found = matched_candidates(widened, key, keras.models.load_model(reference), decorrelated=True)
        # By itself, and among all outputs.
        assert [each.shape for each in found.evened["features"].means.values()] == [(8, 128)] * 2 * tried


def test_a_divided_layer_is_found_among_all_outputs(marked):
    """Into four of as many units as the carrier has bits, so that none could carry it alone."""
    import deepsigns_tf as ds
    from deepsigns_tf.attacks.division import divide_layers
    from deepsigns_tf.recovery import read_aligned

    reference, model, key, _ = marked
    divided = divide_layers(model, seed=1, num_parts=4)
    assert max(layer.units for layer in divided.layers if hasattr(layer, "units")) == 32
    verdict = ds.verify(divided, key, commitment=key.commitment(), reference=reference)
    assert verdict.marked and verdict.matched
    # No layer is admissible by itself.
    assert verdict.readings[0].layer == "all layers together" and verdict.num_assignments == 0 + 2 * 1
    assert read_aligned(divided, key, model).bit_error_rate == 0.0


def test_a_unit_that_is_not_finite_hides_no_other(marked):
    """Nobody listens to it."""
    import keras

    import deepsigns_tf as ds

    reference, model, key, _ = marked
    inputs = keras.Input((16,))
    hidden, logits = keras.layers.Dense(129, "relu", name="hidden"), keras.layers.Dense(8, name="logits")
    suspect = keras.Model(inputs, logits(hidden(inputs)[:, 1:]))
    kernel, bias = model.get_layer("hidden").get_weights()
    hidden.set_weights([np.c_[np.zeros(16), kernel], np.r_[np.inf, bias]])
    logits.set_weights(model.get_layer("logits").get_weights())
    verdict = ds.verify(suspect, key, commitment=key.commitment(), reference=reference)
    assert verdict.marked and verdict.matched


def test_a_suspect_is_run_once_however_it_is_read(marked):
    import deepsigns_tf as ds
    from deepsigns_tf.responses import LocalModel

    reference, model, key, _ = marked
    asked = []

    class Counted(LocalModel):
        def features(self, *args):
            asked.append("features")
            return super().features(*args)

        def class_means(self, *args):
            asked.append("class means")
            return super().class_means(*args)

    verdict, plain = ds.verify(Counted(model), key, reference=reference), ds.verify(model, key)
    assert asked == ["features"] and not verdict.matched and verdict.num_matches == plain.num_matches
    np.testing.assert_allclose(verdict.readings[0].margins, plain.readings[0].margins, rtol=1e-5)


def test_unrelated_models_stay_unmarked_after_matching(marked):
    import deepsigns_tf as ds

    reference, _, key, unrelated = marked
    for suspect in unrelated:
        assert ds.verify(suspect, key, reference=reference).log10_p_value > -3


def test_bits_read_after_a_match_are_fair_coins(tmp_path):
    """Whatever is matched with whatever: over keys, half of the bits of a suspect that knows none of them match."""
    import keras

    import deepsigns_tf as ds
    from deepsigns_tf.candidates import matched_candidates
    from deepsigns_tf.carriers import CarrierLayer
    from deepsigns_tf.readings import SignatureReader

    keras.utils.set_random_seed(0)
    x, y = RANDOM.random((200, 16)).astype("float32"), np.arange(200) % 2
    reference, suspect = (
        keras.Sequential([keras.Input((16,)), keras.layers.Dense(96, "relu", name="hidden"), keras.layers.Dense(2)])
        for _ in range(2)
    )
    reference.save(tmp_path / "reference.keras")
    matches = []
    for number in range(60):
        seed = number.to_bytes(32, "big")
        key = ds.OwnerKey("ACME Vision", (ds.Carrier("features", range(2), 40),), ds.DecisionRule(), seed)
        key = key.with_reference(tmp_path / "reference.keras").with_key_inputs(x, y, 60)
        key = key.with_layers([CarrierLayer("features", "hidden", 96)])
        for model in (suspect, reference):
            found = matched_candidates(model, key, reference, decorrelated=True)
            by_itself, together = found.evened["features"].means.values()
            reader = SignatureReader(key, "features", 96)
            matches.append(np.mean([reader.read(means).num_matches for means in (by_itself, together)]))
    # 120 readings of 80 bits, the second ones at most as far from the first: four standard deviations of the mean rate.
    assert np.mean(matches) / 80 == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(120 * 80))


def test_another_reference_is_refused(marked, tmp_path):
    """Also the same weights behind another graph, with which any reading could be had."""
    import keras

    import deepsigns_tf as ds

    path, model, key, unrelated = marked
    reference = keras.models.load_model(path)
    hidden = reference.get_layer("hidden")
    permuted = keras.ops.take(hidden.output, np.arange(128)[::-1].copy(), axis=1)
    forged = keras.Model(reference.inputs, keras.layers.Activation("linear", name="forged")(permuted))
    unrelated[1].save(tmp_path / "other.keras")
    forged.save(tmp_path / "forged.keras")
    with pytest.raises(ValueError, match=r"The reference is not this key's\. Expected .* Received: another one"):
        ds.verify(model, key, reference=tmp_path / "other.keras")
    with pytest.raises(ValueError, match=r"The reference is not this key's"):
        ds.verify(model, key, reference=tmp_path / "forged.keras")
