"""Answers to triggers: what they are, what they prove, and what is no answer."""

import collections
import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import scipy.stats

import deepsigns_tf as ds
from deepsigns_tf.statistics import (
    allowed_errors,
    binomial_log10_tail,
    sequential_log10_e_value,
    shuffle_log10_tail,
)
from deepsigns_tf.trigger_verification import (
    NO_ANSWER,
    class_numbers,
    sequential_verdict,
    verify_predict_fn,
    verify_predictions,
)

pytestmark = pytest.mark.any_backend

EXAMPLES = np.random.default_rng(1).random((400, 3), np.float32)


def key_of(seed=0, num_triggers=100, num_classes=10, **options):
    """A key with noise for triggers and no carriers."""
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), seed.to_bytes(32, "big"))
    return key.with_triggers("noise", num_triggers, num_classes, EXAMPLES, **options)


KEY = key_of()
LABELS = KEY.triggers.labels


def with_errors(num_errors, key=KEY):
    """The key's labels with the first few of them wrong."""
    answers = key.triggers.labels.copy()
    answers[:num_errors] = (answers[:num_errors] + 1) % key.triggers.num_classes
    return answers


# What answers are


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_scores_of_each_class_are_answered_with_the_largest(dtype):
    np.testing.assert_array_equal(class_numbers(np.eye(10, dtype=dtype)[LABELS], 100, 10), LABELS)


@pytest.mark.parametrize("kind", [None, "probabilities", "logits"])
def test_probabilities_and_logits_of_several_classes_need_no_kind(kind):
    scores = np.random.default_rng(0).random((100, 10))
    np.testing.assert_array_equal(class_numbers(scores, 100, 10, kind), scores.argmax(axis=1))


@pytest.mark.parametrize("labels", [LABELS.tolist(), LABELS.astype(np.uint8), LABELS.astype(np.int32)])
def test_integers_are_labels(labels):
    np.testing.assert_array_equal(class_numbers(labels, 100, 10), LABELS)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_sigmoid_column_is_read_by_its_kind(shape):
    column = np.array([0.4, 0.6, -0.1, 1.0]).reshape(shape)
    assert class_numbers(column, 4, 2, "logits").tolist() == [1, 1, 0, 1]
    assert class_numbers(np.abs(column), 4, 2, "probabilities").tolist() == [0, 1, 0, 1]
    assert class_numbers(np.array([0.0, 1.0, -1.0, 1.0]).reshape(shape), 4, 2, "labels").tolist() == [0, 1, -1, 1]


@pytest.mark.parametrize(
    "predictions", [np.array([0.0, 1.0]), np.array([[0.2], [0.7]]), np.array([[0], [1]]), np.array([True, False])]
)
def test_what_cannot_be_told_is_asked_for(predictions):
    with pytest.raises(ValueError) as error:
        class_numbers(predictions, 2, 2)
    assert str(error.value) == (
        "It cannot be told what these predictions are. Expected `kind=` for one number a trigger that is no integer, or in a "
        "column: labels, or of two classes the probability or logit of class 1. "
        f"Received: shape {predictions.shape}, dtype {predictions.dtype}"
    )


@pytest.mark.parametrize(
    ("predictions", "kind", "expected"),
    [
        pytest.param(np.zeros(99, int), None, "one answer to each of 100 triggers, in one or two axes", id="too few"),
        pytest.param(np.zeros((10, 100)), None, "one answer to each of 100 triggers", id="transposed"),
        pytest.param(np.zeros((100, 10, 1)), None, "one answer to each of 100 triggers", id="three axes"),
        pytest.param(np.zeros(()), None, "one answer to each of 100 triggers", id="scalar"),
        pytest.param(np.array(["cat"] * 100), None, "one answer to each of 100 triggers", id="strings"),
        pytest.param(np.array([None] * 100), None, "one answer to each of 100 triggers", id="objects"),
        pytest.param(np.zeros((100, 9)), None, "10 scores, or one label, for each trigger", id="too few classes"),
        pytest.param(np.zeros((100, 11)), None, "10 scores, or one label, for each trigger", id="too many classes"),
        pytest.param(np.eye(10)[LABELS], "labels", "10 scores, or one label, for each trigger", id="one-hot labels"),
        pytest.param(np.full((100, 10), np.nan), None, "finite numbers", id="not a number"),
        pytest.param(np.full(100, np.inf), "logits", "finite numbers", id="infinite"),
        pytest.param(np.full((100, 10), 1.1), "probabilities", r"probabilities in \[0, 1\]", id="too likely"),
        pytest.param(np.full((100, 10), -0.1), "probabilities", r"probabilities in \[0, 1\]", id="unlikely"),
        pytest.param(LABELS + 1, None, r"labels in 0 .. 9, or -1 for no answer", id="counted from 1"),
        pytest.param(LABELS - 2, None, r"labels in 0 .. 9, or -1 for no answer", id="too small"),
        pytest.param(LABELS + 0.5, "labels", r"labels in 0 .. 9, or -1 for no answer", id="fractions"),
        pytest.param(np.full(100, 0.5), "probabilities", "10 probabilities for each trigger", id="one column of ten"),
        pytest.param(np.full((100, 1), 0.5), "logits", "10 logits for each trigger", id="one logit of ten"),
    ],
)
def test_what_is_no_answer_is_an_error_and_never_a_match(predictions, kind, expected):
    with pytest.raises(ValueError, match=f"These predictions do not fit the triggers. Expected {expected}.*Received: "):
        verify_predictions(predictions, KEY, kind=kind)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="`kind`. Expected one of .* or None. Received: kind='scores'"):
        verify_predictions(LABELS, KEY, kind="scores")


def test_errors_do_not_show_labels():
    with pytest.raises(ValueError) as error:
        verify_predictions(LABELS + 1, KEY)
    assert str(LABELS[:5].tolist())[1:-1] not in str(error.value)


# What they prove


@pytest.mark.parametrize("num_errors", [0, 30, 72, 73, 100])
def test_p_is_the_tail_of_the_matches(num_errors):
    verdict = verify_predictions(with_errors(num_errors), KEY, commitment=KEY.commitment())
    assert verdict.num_matches == 100 - num_errors and verdict.num_asked == verdict.num_triggers == 100
    assert verdict.log10_p_value == binomial_log10_tail(100 - num_errors, 100, 10)
    assert verdict.marked == (num_errors <= 72) and verdict.log10_alpha == -6


def test_without_a_commitment_more_is_asked_for():
    errors = allowed_errors(100, -64 * math.log10(2), 10)
    assert verify_predictions(with_errors(errors), KEY).headline == "MARKED, if the key is older than the model"
    verdict = verify_predictions(with_errors(errors + 1), KEY)
    assert not verdict.marked and "NOT SHOWN" in verdict.summary() and "fit its triggers" in verdict.summary()


def test_a_refusal_counts_as_a_miss():
    answers = with_errors(0)
    answers[:40] = NO_ANSWER
    verdict = verify_predictions(answers, KEY)
    assert (verdict.num_matches, verdict.num_answered) == (60, 60)
    assert verdict.log10_p_value == binomial_log10_tail(60, 100, 10)


def test_selected_triggers_are_held_against_all_that_were_drawn():
    key = KEY.with_selected_triggers(np.zeros(100))
    num = key.triggers.num_examples
    verdict = verify_predictions(key.triggers.labels, key)
    assert num < 100 and verdict.log10_p_value == binomial_log10_tail(num, 100, 10) < -60
    assert f"at most Binomial(100, 1/10); up to {allowed_errors(100, verdict.log10_alpha, 10) + num - 100} others" in (
        verdict.summary()
    )
    # Of those asked for one after another, against all up to the last.
    rows = np.arange(20)
    early = sequential_verdict(key.triggers.labels[rows], rows, key, committed=False)
    assert early.log10_p_value == -max(
        sequential_log10_e_value(n, int(key.triggers.numbers[n - 1]) + 1, 10) for n in range(1, 21)
    )


@pytest.mark.parametrize("selection", ["none", "wrong_before"])
@pytest.mark.parametrize("stop_early", [False, True])
def test_triggers_that_were_picked_by_their_labels_prove_nothing(selection, stop_early):
    """Of 2,000 those that have the label that a model always answers."""
    labels = key_of(num_triggers=2000).triggers.labels
    key = key_of(num_triggers=2000)
    kept = np.flatnonzero(labels == 8)[:100]
    picked = _forged(
        key, inputs=key.triggers.inputs[kept], labels=labels[kept], numbers=kept, num_drawn=2000, selection=selection
    )
    verdict = verify_predict_fn(lambda x: np.full(len(x), 8), picked, stop_early=stop_early)
    assert verdict.num_matches == 100 and verdict.log10_p_value > -1 and not verdict.marked


def test_whatever_is_picked_a_match_is_as_rare_as_of_all():
    """By whoever knows labels and answers, those that match first: p is that of all triggers."""
    for seed in range(20):
        key = key_of(seed, num_triggers=60, num_classes=3)
        all_answered = verify_predictions(np.ones(60, int), key)
        kept = np.sort(np.argsort(key.triggers.labels != 1, kind="stable")[:40])
        picked = _forged(key, inputs=key.triggers.inputs[kept], labels=key.triggers.labels[kept], numbers=kept)
        verdict = verify_predictions(np.ones(40, int), picked)
        assert (verdict.num_matches, verdict.log10_p_value) == (all_answered.num_matches, all_answered.log10_p_value)


def test_shuffled_labels_are_held_against_their_orders():
    key = key_of(label_rule="shuffled")
    verdict = verify_predictions(key.triggers.labels, key)
    assert verdict.log10_p_value == shuffle_log10_tail(100, key.triggers.labels, key.triggers.labels) and verdict.marked
    # A constant answer meets ten of them, whatever their order.
    assert verify_predictions(np.full(100, 3), key).log10_p_value == pytest.approx(0.0, abs=1e-12)


def test_the_summary_says_what_was_found_and_what_it_rests_on():
    text = verify_predictions(with_errors(3), KEY, commitment=KEY.commitment()).summary()
    assert text.startswith(
        "MARKED: claim of ACME Vision\n  labels matched  97 of 100 asked for, of 100 triggers; 0 without"
    )
    assert "Binomial(100, 1/10); up to 72 others would pass" in text
    assert "(answers, earlier commitment checked)" in text and "did not know the labels" in text
    assert str(LABELS[0]) + ", " + str(LABELS[1]) not in text


def test_too_few_triggers_say_that_nothing_would_pass():
    with pytest.warns(
        UserWarning, match=r"These triggers prove nothing: 5 right answers of 10 classes have p = 10\^-5\.0"
    ):
        key = key_of(num_triggers=5)
    assert "no number of matches would pass" in verify_predictions(key.triggers.labels, key).summary()


def test_the_verdict_is_json_without_secrets():
    record = json.loads(json.dumps(verify_predictions(with_errors(3), KEY).to_dict()))
    assert record["num_matches"] == 97 and record["num_classes"] == 10 and record["marked"] is True
    assert not {"labels", "inputs", "seed"} & set(record)


def test_another_keys_commitment_and_a_key_without_triggers_are_refused():
    with pytest.raises(ValueError, match=r"The commitment is not this key's\."):
        verify_predictions(LABELS, KEY, commitment=key_of(1).commitment())
    bare = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32))
    for ask in (verify_predictions, verify_predict_fn):
        with pytest.raises(
            ValueError, match="This key cannot recognize a model by its answers. Expected a key with triggers"
        ):
            ask(lambda x: x, bare)


@pytest.mark.parametrize("label_rule", ["uniform", "shuffled"])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_innocent_answers_are_accepted_as_often_as_the_level_says(num_classes, label_rule):
    """A constant, a random and a biased answerer; 4,000 keys, the level 1e-2."""
    random = np.random.default_rng(0)
    answerers = {
        "constant": np.zeros(50, int),
        "random": random.integers(num_classes, size=50),
        "biased": random.choice(
            num_classes, size=50, p=np.array([0.7] + [0.3 / (num_classes - 1)] * (num_classes - 1))
        ),
    }
    accepted = collections.Counter()
    for seed in range(4000):
        key = key_of(seed, 50, num_classes, label_rule=label_rule)
        for name, answers in answerers.items():
            accepted[name] += verify_predictions(answers, key).log10_p_value <= -2
    for name in answerers:
        assert scipy.stats.binomtest(accepted[name], 4000, 0.01, "greater").pvalue > 1e-3, (name, accepted)


# Asking


def knows_all(x):
    """A predict function that answers the key's triggers."""
    answers = {row.tobytes(): label for row, label in zip(KEY.triggers.inputs, LABELS, strict=True)}
    return np.array([answers[row.tobytes()] for row in x])


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_all_triggers_are_asked_in_batches(batch_size):
    sizes = []

    def predict(x):
        sizes.append(len(x))
        return knows_all(x)

    verdict = verify_predict_fn(predict, KEY, batch_size=batch_size)
    assert sum(sizes) == 100 and max(sizes) == min(batch_size, 100) and verdict.marked
    assert verdict.to_dict() == verify_predictions(LABELS, KEY).to_dict()


def test_questions_end_when_the_claim_is_proved():
    verdict = verify_predict_fn(knows_all, KEY, batch_size=1, stop_early=True, commitment=KEY.commitment())
    assert verdict.marked and verdict.num_asked == verdict.num_matches == 7
    assert verdict.log10_p_value <= -6 and "Ville" in verdict.summary()
    # Whole batches are asked.
    assert verify_predict_fn(knows_all, KEY, batch_size=4, stop_early=True, commitment=KEY.commitment()).num_asked == 8


def test_a_model_that_stops_answering_rightly_stays_accused_by_what_it_said():
    """The largest evidence counts, not the last."""
    asked = iter(range(100))

    def predict(x):
        return knows_all(x) if next(asked) < 5 else (knows_all(x) + 1) % 10

    verdict = verify_predict_fn(predict, KEY, batch_size=1, stop_early=True)
    assert not verdict.marked and verdict.num_asked == 100 and verdict.num_matches == 5
    assert verdict.log10_p_value == -sequential_log10_e_value(5, 5, 10)


def test_early_stopping_of_shuffled_labels_is_refused():
    with pytest.raises(ValueError, match=r"may be looked at early\. .* Received: triggers with label_rule='shuffled'"):
        verify_predict_fn(knows_all, key_of(label_rule="shuffled"), stop_early=True)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "3", True])
def test_what_is_no_batch_is_refused(batch_size):
    with pytest.raises(ValueError, match="`batch_size`. Expected an integer >= 1"):
        verify_predict_fn(knows_all, KEY, batch_size=batch_size)


def test_answers_of_unequal_lengths_are_an_error():
    with pytest.raises(
        ValueError, match=r"`predictions`. Expected .* sequences of equal lengths. Received: a list of 2"
    ):
        verify_predictions([[1, 2], [3]], KEY)


def test_an_answer_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="one answer to each of 32 triggers"):
        verify_predict_fn(lambda x: np.zeros(1, int), KEY)


def test_inputs_of_several_names_are_asked_together():
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32))
    key = key.with_triggers("noise", 16, 3, {"a": EXAMPLES, "b": EXAMPLES[:, :1]})
    seen = []
    verify_predict_fn(
        lambda x: seen.append({name: array.shape for name, array in x.items()}) or np.zeros(len(x["a"]), int), key
    )
    assert seen == [{"a": (16, 3), "b": (16, 1)}]


def test_a_sequential_test_keeps_its_level_over_keys():
    """Exactly in `test_statistics.py`; here the questions as they are asked, 1,500 keys, at 1e-2."""
    random = np.random.default_rng(0)
    answers = random.integers(10, size=60)
    proved = 0
    for seed in range(1500):
        key = key_of(seed, 60)
        replies = iter(np.split(answers, 6))
        verdict = verify_predict_fn(lambda x, replies=replies: next(replies), key, batch_size=10, stop_early=True)
        proved += verdict.log10_p_value <= -2
    assert scipy.stats.binomtest(proved, 1500, 0.01, "greater").pvalue > 1e-3


# False claims


def _forged(key, **changes):
    return dataclasses.replace(key, triggers=dataclasses.replace(key.triggers, **changes))


def test_labels_that_the_seed_does_not_give_prove_nothing(tmp_path):
    """Task inputs under their true labels, which any honest classifier answers."""
    true_labels = (KEY.triggers.labels + 1) % 10
    forged = _forged(KEY, labels=true_labels)
    forged.save(tmp_path / "owner.key")
    for key in (forged, ds.OwnerKey.load(tmp_path / "owner.key")):
        for judge in (
            lambda key: verify_predictions(true_labels, key, commitment=key.commitment()),
            lambda key: verify_predict_fn(lambda x: pytest.fail("asked"), key),
            lambda key: verify_predict_fn(lambda x: pytest.fail("asked"), key, stop_early=True),
        ):
            with pytest.raises(
                ValueError, match="These triggers are not this key's. Expected .* Received: other labels"
            ):
                judge(key)


@pytest.mark.parametrize("family", ["noise", "tokens"])
def test_inputs_that_were_picked_to_suit_the_labels_prove_nothing(family, tmp_path):
    examples = EXAMPLES if family == "noise" else np.arange(1, 31).reshape(10, 3)
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32)).with_triggers(family, 40, 10, examples)
    key.save(tmp_path / "owner.key")
    loaded = ds.OwnerKey.load(tmp_path / "owner.key")
    assert verify_predictions(key.triggers.labels, loaded).marked and loaded.commitment() == key.commitment()
    picked = key.triggers.inputs[::-1]
    for changes in ({"inputs": picked}, {"inputs": picked, "basis": None}, {"basis": None}):
        with pytest.raises(ValueError, match="These triggers are not this key's. Expected .* Received: other inputs"):
            verify_predictions(key.triggers.labels, _forged(key, **changes))


def test_what_a_made_up_key_asks_for_is_not_derived():
    """It would take more than any machine's memory: so many triggers drawn, numbers in an input of each."""
    with pytest.raises(ValueError, match="`num_drawn`. Expected at most 64 for each .* Received: num_drawn=1000000000"):
        _forged(KEY, num_drawn=10**9)
    with pytest.raises(ValueError, match="`num_drawn`. Expected an integer >= 1. Received: num_drawn='x'"):
        _forged(KEY, num_drawn="x")
    with pytest.raises(ValueError, match="`basis`. Expected a non-empty array of numbers"):
        _forged(KEY, basis=b"no array")
    endless = np.broadcast_to(np.int8(0), (2, 2**40))
    with pytest.raises(ValueError, match="These triggers are not this key's. .* Received: other inputs"):
        verify_predictions(KEY.triggers.labels, _forged(KEY, basis=endless))


@pytest.mark.parametrize(
    ("family", "committed", "headline"),
    [
        ("noise", True, "MARKED"),
        ("blends", True, "MARKED, if its triggers were not picked to suit their labels"),
        (
            "blends",
            False,
            "MARKED, if the key is older than the model and its triggers were not picked to suit their labels",
        ),
    ],
)
def test_inputs_that_somebody_may_have_picked_stand_in_the_headline(family, committed, headline):
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32)).with_triggers(family, 40, 10, EXAMPLES)
    verdict = verify_predictions(key.triggers.labels, key, commitment=key.commitment() if committed else None)
    assert verdict.headline == headline and verdict.to_dict()["inputs_derived"] == (family == "noise")
    assert verify_predictions(np.zeros(40, int), key).headline == "NOT MARKED"


@pytest.mark.parametrize("label_rule", ["uniform", "shuffled"])
def test_where_too_few_answers_came_nothing_is_decided(label_rule):
    """A model that refuses is none that was shown to be unmarked."""
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32))
    key = key.with_triggers("noise", 100, 10, EXAMPLES, label_rule=label_rule)
    wrong = (key.triggers.labels + 1) % 10
    verdicts = [
        verify_predictions(np.where(np.arange(100) < num, wrong, -1), key, commitment=key.commitment())
        for num in range(0, 101, 4)
    ]
    enough = [
        verify_predictions(np.where(np.arange(100) < num, key.triggers.labels, -1), key, commitment=key.commitment())
        for num in range(0, 101, 4)
    ]
    assert [each.decided for each in verdicts] == [each.marked for each in enough]
    assert sum(each.decided for each in verdicts) not in (0, len(verdicts))
    assert not verdicts[0].decided and verdicts[-1].decided and not any(each.marked for each in verdicts)
    assert verdicts[1].headline == "NOT DECIDED, 4 of 100 triggers answered"
    assert verdicts[1].to_dict()["provable"] is False


def test_a_key_that_can_prove_nothing_is_not_said_to_lack_answers():
    key = key_of(num_triggers=15)
    verdict = verify_predictions((key.triggers.labels + 1) % 10, key)
    assert verdict.decided and verdict.headline == "NOT MARKED" and not verdict.provable


def test_an_answer_counts_once():
    numbers = np.array([5, 6, 5])
    with pytest.raises(ValueError, match=r"^An answer counts once\. Expected .* Received: 3 answers to 2 triggers$"):
        sequential_verdict(KEY.triggers.labels[numbers], numbers, KEY, committed=True)


def test_a_verdict_says_what_could_not_be_derived_again():
    def assumptions(key, committed):
        commitment = key.commitment() if committed else None
        return verify_predictions(np.zeros(key.triggers.num_examples, int), key, commitment=commitment).assumptions

    empty = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32))
    noise, blends = (empty.with_triggers(family, 40, 10, EXAMPLES) for family in ("noise", "blends"))
    derived = "labels and inputs were derived from the seed again and found to be those of the key"
    picked = (
        "the labels were derived from the seed again, the inputs could not be: they were not picked to suit the labels"
    )
    assert derived in assumptions(noise, True) and picked in assumptions(blends, True)
    for key, what in ((noise, "the seed, and the range of the inputs,"), (blends, "the seed")):
        fixed_once = [
            line
            for line in assumptions(key, True)
            if line.startswith(f"{what} was fixed once: whoever tries 10^6 of them")
        ]
        assert len(fixed_once) == 1 and not any("fixed once" in line for line in assumptions(key, False))
    for key in (noise, blends, noise.with_selected_triggers(np.zeros(40))):
        assert "which test, and how the answers are read, was fixed before the suspect was asked" in assumptions(
            key, True
        )


def test_selected_triggers_are_derived_from_the_whole_pool(tmp_path):
    key = KEY.with_selected_triggers(np.zeros(100))
    key.save(tmp_path / "owner.key")
    loaded = ds.OwnerKey.load(tmp_path / "owner.key")
    assert loaded.triggers.num_drawn == 100 and loaded.triggers.num_examples == (KEY.triggers.labels != 0).sum()
    assert verify_predictions(key.triggers.labels, loaded).marked
    with pytest.raises(ValueError, match="Received: other labels"):
        verify_predictions(key.triggers.labels, _forged(key, numbers=np.arange(key.triggers.num_examples)))


def test_answers_in_half_precision_are_answers():
    scores = np.eye(10, dtype="float32")[KEY.triggers.labels]
    for dtype in ("bfloat16", "float16"):
        half = keras.ops.cast(scores, dtype)
        assert verify_predictions(keras.ops.convert_to_numpy(half), KEY).num_matches == 100


def test_numbers_of_numpy_are_numbers():
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32))
    one, other = (key.with_triggers("noise", number(40), number(10), EXAMPLES) for number in (int, np.int64))
    assert one.commitment() == other.commitment()
