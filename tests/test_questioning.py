"""Questions to a model that can only be asked: in a secret order, among decoys, and never twice."""

import json
import os
import stat

import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.questioning import Questioning
from deepsigns_tf.trigger_verification import RefusalError

pytestmark = pytest.mark.any_backend

EXAMPLES = np.arange(12.0, dtype=np.float32).reshape(4, 3)
DECOYS = np.random.default_rng(0).random((150, 3)).astype(np.float32)


def key_of(seed=0, num_triggers=50, **options):
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), seed.to_bytes(32, "big"))
    return key.with_triggers("noise", num_triggers, 10, EXAMPLES, **options)


KEY = key_of()


class Suspect:
    """Answers triggers with their labels and all else with class 0; remembers what it was asked."""

    def __init__(self, key=KEY, knows=True):
        self.labels = dict(zip(map(bytes, key.triggers.inputs), key.triggers.labels, strict=True)) if knows else {}
        self.asked = []

    def __call__(self, inputs):
        self.asked += map(bytes, inputs)
        return np.array([self.labels.get(bytes(row), 0) for row in inputs])


def test_questions_end_when_the_claim_is_proved():
    suspect = Suspect()
    verdict = Questioning(KEY, commitment=KEY.commitment()).run(suspect)
    assert verdict.marked and verdict.num_asked == len(suspect.asked) == 7


def test_an_innocent_model_is_asked_for_all_and_not_proved():
    suspect = Suspect(knows=False)
    questioning = Questioning(KEY, decoys=DECOYS)
    verdict = questioning.run(suspect, batch_size=16)
    assert (
        not verdict.marked and verdict.num_asked == 50 and questioning.num_queries == questioning.num_questions == 200
    )


def test_triggers_stand_among_decoys_in_an_order_of_the_keys():
    orders = []
    for key in (KEY, KEY, key_of(1)):
        suspect = Suspect(key, knows=False)
        Questioning(key, decoys=DECOYS).run(suspect, batch_size=200)
        assert sorted(suspect.asked) == sorted([*map(bytes, key.triggers.inputs), *map(bytes, DECOYS)])
        orders.append([row in set(map(bytes, key.triggers.inputs)) for row in suspect.asked])
    assert orders[0] == orders[1] != orders[2]
    # As many in each half, by chance: 25 of 50, with a standard deviation of three.
    assert 12 <= sum(orders[0][:100]) <= 38


def test_decoys_do_not_count():
    key, suspect = KEY, Suspect()
    verdict = Questioning(key, decoys=DECOYS, commitment=key.commitment()).run(suspect)
    assert verdict.marked and verdict.num_asked == verdict.num_matches >= 7 and len(suspect.asked) > verdict.num_asked


@pytest.mark.parametrize("batch_size", [1, 5, 16, 100])
def test_the_last_question_among_decoys_tells_nothing(batch_size):
    """Questions end where a block of 16 does, not with the trigger that proved the claim."""
    suspect = Suspect()
    verdict = Questioning(KEY, decoys=DECOYS, commitment=KEY.commitment()).run(suspect, batch_size=batch_size)
    assert verdict.marked and len(suspect.asked) % 16 == 0 and verdict.num_asked < 30


def test_the_order_of_the_triggers_does_not_depend_on_the_decoys():
    """Decoys are free to choose, and the largest evidence on the way depends on the order."""
    triggers = list(map(bytes, KEY.triggers.inputs))
    for decoys in (None, DECOYS[:1], DECOYS):
        suspect = Suspect(knows=False)
        Questioning(KEY, decoys=decoys).run(suspect, batch_size=7)
        assert [row for row in suspect.asked if row in triggers] == triggers


def test_refused_inputs_count_as_misses_and_block_nothing():
    suspect = Suspect()
    refused = {bytes(KEY.triggers.inputs[number]) for number in (0, 3)}

    def choosy(inputs):
        if refused & set(map(bytes, inputs)):
            raise RefusalError
        return suspect(inputs)

    verdict = Questioning(KEY, commitment=KEY.commitment()).run(choosy, batch_size=4)
    assert (
        verdict.marked and verdict.num_asked - verdict.num_answered == 2 and verdict.num_matches == verdict.num_answered
    )
    whole = ds.verify_predict_fn(choosy, KEY, batch_size=50)
    assert whole.num_answered == whole.num_matches == 48

    def silent(inputs):
        raise RefusalError

    verdict = Questioning(KEY).run(silent, batch_size=10)
    assert not verdict.decided and not verdict.marked and verdict.num_asked == 50 and verdict.num_answered == 0


def test_a_model_that_refused_everything_is_asked_again(tmp_path):
    """The token may have been wrong."""
    path, commitment = tmp_path / "answers.json", KEY.commitment()

    def silent(inputs):
        raise RefusalError

    first = Questioning(KEY, path, "model A", commitment=commitment).run(silent, batch_size=10)
    assert first.headline == "NOT DECIDED, 0 of 50 triggers answered"
    assert len(json.loads(path.read_text())["answers"]) == 50
    assert Questioning(KEY, path, "model A", commitment=commitment).run(Suspect()).marked


def test_answers_to_a_refused_batch_are_kept_one_by_one(tmp_path):
    path, suspect = tmp_path / "answers.json", Suspect()

    def choosy(inputs):
        if len(inputs) > 1:
            raise RefusalError
        if len(suspect.asked) == 4:
            raise ConnectionError("gone")
        return suspect(inputs)

    with pytest.raises(ConnectionError):
        Questioning(KEY, path, "model A").run(choosy, batch_size=10)
    assert Questioning(KEY, path, "model A").num_queries == 4


def test_a_file_that_cannot_be_written_is_told_before_anything_is_asked(tmp_path):
    suspect = Suspect()
    (tmp_path / "a file").touch()
    with pytest.raises(OSError):
        Questioning(KEY, tmp_path / "a file" / "answers.json", "model A").run(suspect)
    assert not suspect.asked


def test_where_nothing_is_left_to_ask_the_file_stays_as_it_is(tmp_path):
    path, commitment = tmp_path / "answers.json", KEY.commitment()
    with pytest.raises(ValueError, match="max_queries=-1"):
        Questioning(KEY, path, "model A").run(Suspect(), max_queries=-1)
    assert not path.exists()
    Questioning(KEY, path, "model A", commitment=commitment).run(Suspect())
    before = path.stat().st_ino
    assert Questioning(KEY, path, "model A", commitment=commitment).run(Suspect()).marked
    assert path.stat().st_ino == before


def test_decoys_come_in_an_order_of_the_keys():
    """In that of a public data set they would show what interrupts it."""
    orders = []
    for key in (KEY, KEY, key_of(1)):
        suspect = Suspect(key, knows=False)
        Questioning(key, decoys=DECOYS).run(suspect, batch_size=16)
        places = {bytes(row): place for place, row in enumerate(DECOYS)}
        orders.append([places[row] for row in suspect.asked if row in places])
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(150))
    # Two in a row that were neighbours: one in a permutation, on average two.
    assert np.count_nonzero(np.abs(np.diff(orders[0])) == 1) < 10


def test_unfinished_questions_decide_nothing():
    questioning = Questioning(KEY)
    verdict = questioning.run(Suspect(knows=False), max_queries=3)
    assert not verdict.decided and verdict.headline == "NOT DECIDED, 3 of 50 triggers asked for"
    assert verdict.summary().startswith("NOT DECIDED, 3 of 50") and verdict.to_dict()["decided"] is False
    verdict = questioning.run(Suspect(knows=False))
    assert verdict.decided and verdict.headline == "NOT MARKED"


def test_a_file_needs_a_suspect(tmp_path):
    with pytest.raises(ValueError, match="Nobody could tell whose answers these are. Expected `suspect=`"):
        Questioning(KEY, tmp_path / "answers.json")


@pytest.mark.parametrize("max_queries", [0, 3, 5])
def test_no_more_is_asked_than_allowed(max_queries):
    suspect = Suspect()
    verdict = Questioning(KEY).run(suspect, batch_size=2, max_queries=max_queries)
    assert len(suspect.asked) == verdict.num_asked == max_queries and not verdict.marked


@pytest.mark.parametrize("max_queries", [-5, 2.5])
def test_what_is_no_number_of_questions_is_refused(max_queries):
    with pytest.raises(ValueError, match=rf"Expected an integer >= 0, .* Received: max_queries={max_queries}"):
        Questioning(KEY).run(Suspect(), max_queries=max_queries)


def test_an_interrupted_questioning_goes_on(tmp_path):
    path = tmp_path / "answers.json"
    first, second = Suspect(), Suspect()
    Questioning(KEY, path, "model A", DECOYS).run(first, batch_size=4, max_queries=20)
    questioning = Questioning(KEY, path, "model A", DECOYS)
    assert questioning.num_queries == 20
    verdict = questioning.run(second, batch_size=4)
    assert verdict.marked and not set(first.asked) & set(second.asked)
    whole = Questioning(KEY, decoys=DECOYS).run(Suspect(), batch_size=4)
    assert verdict.to_dict() == whole.to_dict()


def test_what_was_answered_is_kept_when_the_model_dies(tmp_path):
    path = tmp_path / "answers.json"
    suspect, calls = Suspect(), []

    def dies(inputs):
        calls.append(len(inputs))
        if len(calls) == 4:
            raise ConnectionError("gone")
        return suspect(inputs)

    with pytest.raises(ConnectionError):
        Questioning(KEY, path, "model A").run(dies, batch_size=2)
    assert Questioning(KEY, path, "model A").num_queries == 6
    with pytest.raises(ValueError, match="These predictions do not fit the triggers"):
        Questioning(KEY, path, "model A").run(lambda inputs: np.full((len(inputs), 10), np.nan), batch_size=2)
    assert Questioning(KEY, path, "model A").num_queries == 6


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX'")
def test_only_the_owner_may_read_the_answers(tmp_path):
    path = tmp_path / "answers.json"
    Questioning(KEY, path, "model A").run(Suspect(), max_queries=2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert KEY.seed.hex() not in text and set(json.loads(text)) == {"questioning", "answers"}


@pytest.mark.parametrize("change", ["key", "suspect", "decoys", "content", "classes", "length"])
def test_the_answers_of_another_questioning_are_refused(change, tmp_path):
    path = tmp_path / "answers.json"
    Questioning(KEY, path, "model A", DECOYS).run(Suspect(), max_queries=3)
    key, decoys = (key_of(1) if change == "key" else KEY), (DECOYS[:10] if change == "decoys" else DECOYS)
    suspect = "model B" if change == "suspect" else "model A"
    if change == "content":
        path.write_text(path.read_text()[:-20])
    if change in ("classes", "length"):
        record = json.loads(path.read_text())
        record["answers"] = [10] if change == "classes" else [0] * 201
        path.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"This file does not hold the answers of this questioning\. Expected .* Received: "
    ):
        Questioning(key, path, suspect, decoys)


@pytest.mark.parametrize("answers", ["[1e400]", "[NaN]", "[true]", "[1.0]", '"12"', "[" * 100_000])
def test_answers_that_are_none_are_refused(answers, tmp_path):
    path = tmp_path / "answers.json"
    Questioning(KEY, path, "model A").run(Suspect(), max_queries=1)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record).replace(json.dumps(record["answers"]), answers))
    assert answers in path.read_text()
    with pytest.raises(ValueError, match=r"This file does not hold the answers of this questioning\."):
        Questioning(KEY, path, "model A")


@pytest.mark.parametrize(
    "decoys", [DECOYS[:, :2], DECOYS.astype(np.float64), {"a": DECOYS}], ids=["shape", "type", "name"]
)
def test_decoys_that_would_be_told_apart_are_refused(decoys):
    with pytest.raises(ValueError, match=r"The decoys would be told from the triggers\. Expected .* Received: "):
        Questioning(KEY, decoys=decoys)


def test_keys_without_a_test_that_may_stop_are_refused():
    with pytest.raises(ValueError, match="This key cannot recognize a model by its answers"):
        Questioning(ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32)))
    with pytest.raises(ValueError, match="no test that may be looked at early"):
        Questioning(key_of(label_rule="shuffled"))
    with pytest.raises(ValueError, match=r"The commitment is not this key's\."):
        Questioning(KEY, commitment=key_of(1).commitment())
    with pytest.raises(ValueError, match="`batch_size`. Expected an integer >= 1"):
        Questioning(KEY).run(Suspect(), batch_size=0)


def test_steps_tell_how_far_it_is():
    assert list(Questioning(KEY).steps(Suspect(), batch_size=3, max_queries=8)) == [3, 6, 8]


def test_inputs_of_several_names_are_asked_together():
    key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32))
    key = key.with_triggers("noise", 16, 3, {"a": EXAMPLES, "b": EXAMPLES[:, :1]})
    shapes = []

    def predict(inputs):
        shapes.append({name: array.shape for name, array in inputs.items()})
        return np.zeros(len(inputs["a"]), int)

    Questioning(key, decoys={"a": DECOYS[:4], "b": DECOYS[:4, :1]}).run(predict, batch_size=10)
    assert shapes == [{"a": (n, 3), "b": (n, 1)} for n in (10, 6, 4)]
