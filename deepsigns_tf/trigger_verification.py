"""Recognizes a model by its answers to the owner's triggers, and says what the answers prove.

Source: DeepSigns, section 3.3, with the exact null of independent uniform labels in place of a threshold on mismatches.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np

from deepsigns_tf.activations import Inputs
from deepsigns_tf.arguments import as_array, check_number_of
from deepsigns_tf.commitments import Evidence, Opened, seed_factor
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.statistics import (
    binomial_log10_tail,
    corrected_log10_p,
    sequential_log10_e_value,
    shuffle_log10_tail,
)
from deepsigns_tf.triggers import TriggerSet
from deepsigns_tf.verification import Decision, assumptions_about_the_date, grounds_of

PredictionKind = Literal["labels", "probabilities", "logits"]

# In place of a label, where a model gave no answer.
NO_ANSWER = -1


class RefusalError(Exception):
    """Raised by a function that asks a model, where the model refuses an input for good. It counts as no answer, a miss."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TriggerVerdict(Decision):
    """What a suspect's answers say about an owner's claim.

    Args:
        owner: Who claims the model.
        marked: Whether the decision rule, fixed in the key, is met.
        log10_p_value: log10 p of the deciding test.
        log10_alpha: log10 of the level it was held against.
        decision: The rule.
        committed: Whether a commitment to this key was shown that is older than the suspect (`verification.grounds_of`).
        assumptions: What the p-value rests on, in words.
        opened: What the owner's signed statements say about the key; None where no evidence was given.
        num_tests: Tests that a claim with this key may rest on, `OwnerKey.num_tests`; p was multiplied by it.
        num_triggers: K, triggers of the key.
        num_asked: How many were asked for: all, unless the claim was proved before, or the questions ended early.
        num_answered: How many of them were answered.
        num_matches: How many were answered with the key's label.
        num_classes: C.
        provable: Whether right answers wherever there are answers would have proved the claim. A model that refuses, or gives
            no answer to most of them, shows nothing.
        inputs_derived: Whether the triggers' inputs were derived from the seed again, as noise and tokens are; nobody can then have
            picked them to suit their labels.
        null: How many labels an innocent model meets, in words.
    """

    num_triggers: int
    num_asked: int
    num_answered: int
    num_matches: int
    num_classes: int
    provable: bool
    inputs_derived: bool
    null: str

    @property
    def decided(self) -> bool:
        """Whether the claim is proved, or all triggers were asked for and all answered, or enough of them that it could have been."""
        enough = self.provable or self.num_answered == self.num_triggers
        return self.marked or (enough and self.num_asked == self.num_triggers)

    @property
    def headline(self) -> str:
        """The verdict in a few words; nothing is decided where too few answers came and those that did prove nothing."""
        if self.decided:
            return super().headline
        if self.num_asked < self.num_triggers:
            return f"NOT DECIDED, {self.num_asked} of {self.num_triggers} triggers asked for"
        return f"NOT DECIDED, {self.num_answered} of {self.num_triggers} triggers answered"

    @property
    def _conditions(self) -> list[str]:
        conditions = super()._conditions
        return conditions if self.inputs_derived else [*conditions, "its triggers were not picked to suit their labels"]

    def summary(self) -> str:
        """The verdict for people, in a few lines."""
        findings = [
            f"  labels matched  {self.num_matches} of {self.num_asked} asked for, of {self.num_triggers} triggers; "
            f"{self.num_asked - self.num_answered} without an answer",
            f"  by chance       {self.null}",
            *([f"  correction      {', '.join(self._corrections)}"] if self._corrections else []),
        ]
        return self._in_words(findings, "answers")

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready values; nothing in it is secret."""
        return super().to_dict() | {
            "decided": self.decided,
            "num_triggers": self.num_triggers,
            "num_asked": self.num_asked,
            "num_answered": self.num_answered,
            "num_matches": self.num_matches,
            "num_classes": self.num_classes,
            "provable": self.provable,
            "inputs_derived": self.inputs_derived,
            "null": self.null,
        }


def verify_predictions(
    predictions: Any,
    owner_key: OwnerKey,
    *,
    kind: PredictionKind | None = None,
    commitment: str | None = None,
    evidence: Evidence | None = None,
) -> TriggerVerdict:
    r"""Judges a suspect's answers to all triggers by the rule fixed in the key.

    The labels follow from the seed, so whatever an innocent model answers, it meets

    - uniform labels: \( \mathrm{Binomial}(K, 1/C) \) of them, exactly;
    - uniform labels of K triggers that were picked among N: at most \( \mathrm{Binomial}(N, 1/C) \), as many as of all N, whoever
      picked them and whatever they knew;
    - shuffled labels: as many as a random order of them would give (`statistics.shuffle_log10_tail`), exactly.

    Args:
        predictions: Answers to `owner_key.triggers.inputs`, in their order: `(K,)` labels, `(K, C)` probabilities or logits, or, of two
            classes, the probability or logit of class 1 as `(K,)` or `(K, 1)`. The label -1 stands for no answer.
        owner_key: The claimant's key, with triggers.
        kind: What the predictions are, `"labels"`, `"probabilities"` or `"logits"`. Needed where their shape does not tell: for
            numbers with a fractional part in one column.
        commitment: The commitment that the claimant published before training, taken by whoever verifies from a dated
            source of their own. With it the rule's level for committed claims applies.
        evidence: The owner's signed statements, checked by `evidence.load_evidence`: they count the seeds that the owner committed to, and
            what is dated before the suspect does what a commitment does.

    Returns:
        The verdict.

    Raises:
        ValueError: If the key has no triggers, the predictions have another shape, are not finite or out of range, or commitment or
            evidence are not this key's.

    Example:

    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
    >>> verify_predictions(key.triggers.labels, key, commitment=key.commitment()).headline
    'MARKED'
    >>> verify_predictions(np.zeros((100, 10)), key).headline
    'NOT MARKED'

    Source: DeepSigns, section 3.3.
    """
    triggers = owner_key.derived_triggers
    committed, opened = grounds_of(owner_key, commitment, evidence)
    answers = class_numbers(predictions, triggers.num_examples, triggers.num_classes, kind)
    if triggers.label_rule == "shuffled":
        null = f"as many as {triggers.num_examples} labels of which the order alone is secret"
    else:
        log10_alpha = owner_key.decision.log10_alpha(committed) - math.log10(seed_factor(opened) * owner_key.num_tests)
        errors = triggers.allowed_errors(log10_alpha)
        null = (
            f"{'' if triggers.all_drawn else 'at most '}Binomial({triggers.num_drawn}, 1/{triggers.num_classes}); "
            + ("no number of matches would pass" if errors is None else f"up to {errors} others would pass")
        )
    return _verdict(owner_key, answers, triggers.labels, _log10_p_of_all, null, committed, opened)


def _log10_p_of_all(answers: np.ndarray, triggers: TriggerSet) -> float:
    num_matches = int(np.count_nonzero(answers == triggers.labels))
    if triggers.label_rule == "shuffled":
        return shuffle_log10_tail(num_matches, answers, triggers.labels)
    assert triggers.num_drawn is not None
    return binomial_log10_tail(num_matches, triggers.num_drawn, triggers.num_classes)


def verify_predict_fn(
    predict_fn: Callable[[Inputs], Any],
    owner_key: OwnerKey,
    *,
    kind: PredictionKind | None = None,
    commitment: str | None = None,
    evidence: Evidence | None = None,
    batch_size: int = 32,
    stop_early: bool = False,
) -> TriggerVerdict:
    """Asks a suspect for its answers, and judges them.

    Args:
        predict_fn: From inputs `(n, ...)`, an array or dict of arrays, to answers in a form of `verify_predictions`. Where it raises
            `RefusalError`, each input is asked by itself; those that are refused alone count as not answered.
        owner_key: The claimant's key, with triggers.
        kind: As in `verify_predictions`.
        commitment: As in `verify_predictions`.
        evidence: As in `verify_predictions`.
        batch_size: Inputs of a call, >= 1.
        stop_early: Whether to ask no more once the claim is proved. The test is then one that may be looked at after every answer
            (`statistics.sequential_log10_e_value`), whatever comes of it; it needs a few answers more than the test of a
            number of triggers that was fixed beforehand.

    Returns:
        The verdict.

    Raises:
        ValueError: As `verify_predictions`; also if early stopping is asked for with shuffled labels, which are not independent.

    Example:

    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
    >>> answers = {row.tobytes(): label for row, label in zip(key.triggers.inputs, key.triggers.labels)}
    >>> verdict = verify_predict_fn(lambda x: [answers[row.tobytes()] for row in x], key, batch_size=1, stop_early=True)
    >>> verdict.headline, verdict.num_asked
    ('MARKED, if the key is older than the model', 21)
    """
    triggers = owner_key.derived_triggers
    check_number_of("batch_size", batch_size)
    committed, opened = grounds_of(owner_key, commitment, evidence)
    answers = np.empty(0, np.int64)
    if stop_early:
        # Refuses labels that have no such test before anything is asked.
        sequential_verdict(answers, np.arange(0), owner_key, committed, opened)
    for start in range(0, triggers.num_examples, batch_size):
        rows = np.arange(start, min(start + batch_size, triggers.num_examples))
        for found in answers_to(triggers.arrays, rows, predict_fn, triggers.num_classes, kind):
            answers = np.append(answers, found)
        if stop_early:
            verdict = sequential_verdict(answers, np.arange(len(answers)), owner_key, committed, opened)
            if verdict.marked:
                break
    if stop_early:
        return verdict
    return verify_predictions(answers, owner_key, kind="labels", commitment=commitment, evidence=evidence)


def sequential_verdict(
    answers: np.ndarray, numbers: np.ndarray, owner_key: OwnerKey, committed: bool, opened: Opened | None = None
) -> TriggerVerdict:
    """Judges answers to some of the triggers by a test that may be looked at after every answer, whatever the reason to stop.

    Args:
        answers: `(n,)` class numbers, in the order in which they were asked for, -1 for none.
        numbers: `(n,)` which triggers were asked for; their order was fixed before the first answer.
        owner_key: The claimant's key, with triggers.
        committed: Whether an earlier commitment was checked.
        opened: What signed statements say about the key.

    Returns:
        The verdict. Its p-value is one over the largest evidence seen after any answer (`statistics.sequential_log10_e_value`).

    Raises:
        ValueError: If the labels are shuffled: they are not independent; or a trigger was asked for twice.

    Example:

    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
    >>> sequential_verdict(key.triggers.labels[5:12], np.arange(5, 12), key, committed=True).headline
    'MARKED'
    """
    triggers = owner_key.derived_triggers
    if triggers.label_rule == "shuffled":
        raise ValueError(
            "These triggers have no test that may be looked at early. Expected labels that are independent of each other. "
            "Received: triggers with label_rule='shuffled'"
        )
    if len(np.unique(numbers)) != len(numbers):
        raise ValueError(
            "An answer counts once. Expected different triggers. "
            f"Received: {len(numbers)} answers to {len(np.unique(numbers))} triggers"
        )
    labels, num_trials = triggers.labels[numbers], triggers.num_trials(numbers)

    def log10_p(answers: np.ndarray, triggers: TriggerSet) -> float:
        matches = np.cumsum(answers == labels)
        evidence = [
            sequential_log10_e_value(int(m), int(n), triggers.num_classes)
            for n, m in zip(num_trials, matches, strict=True)
        ]
        return min(0.0, -max(evidence, default=0.0))

    null = (
        f"one in {triggers.num_classes} each{'' if triggers.all_drawn else ' of all that were drawn'}; the largest evidence seen after "
        "any answer counts (Ville's inequality)"
    )
    return _verdict(owner_key, answers, labels, log10_p, null, committed, opened)


def answers_to(
    inputs: Mapping[str, np.ndarray],
    rows: np.ndarray,
    predict_fn: Callable[[Inputs], Any],
    num_classes: int,
    kind: PredictionKind | None,
) -> Iterator[np.ndarray]:
    """Asks for some inputs: for all at once, and for each by itself if they were refused together.

    Args:
        inputs: Arrays by name; a single one has the empty name.
        rows: `(n,)` which to ask for.
        predict_fn: As in `verify_predict_fn`.
        num_classes: C.
        kind: As in `verify_predictions`.

    Yields:
        In their order, as they come, arrays of class numbers, -1 for an input that was refused.

    Raises:
        ValueError: As `class_numbers`.

    Example:

    >>> list(answers_to({"": np.arange(6.0)}, np.array([5, 1]), lambda x: (x > 3).astype(int), num_classes=2, kind=None))
    [array([1, 0])]
    """
    asked = {name: array[rows] for name, array in inputs.items()}
    try:
        predictions = predict_fn(asked.get("", asked))
    except RefusalError:
        if len(rows) == 1:
            yield np.array([NO_ANSWER])
            return
        for row in rows:
            yield from answers_to(inputs, np.array([row]), predict_fn, num_classes, kind)
        return
    yield class_numbers(predictions, len(rows), num_classes, kind)


def class_numbers(
    predictions: Any, num_examples: int, num_classes: int, kind: PredictionKind | None = None
) -> np.ndarray:
    """The classes that a model answers.

    Args:
        predictions: In a form of `verify_predictions`.
        num_examples: K, answers that are expected.
        num_classes: C.
        kind: What they are, where their shape does not tell.

    Returns:
        `(K,)` int64 array in 0 .. C - 1, or -1 for no answer. Of equal scores the first counts.

    Raises:
        ValueError: If shape, type or range are others than expected, or it cannot be told what the numbers mean.

    Example:

    >>> class_numbers([[0.1, 0.9], [0.8, 0.2]], 2, num_classes=2).tolist()
    [1, 0]
    >>> class_numbers([[-3.0], [0.5]], 2, num_classes=2, kind="logits").tolist()
    [0, 1]
    """
    if kind is not None and kind not in get_args(PredictionKind):
        raise ValueError(
            f"Invalid value for argument `kind`. Expected one of {list(get_args(PredictionKind))} or None. Received: kind={kind!r}"
        )
    array = as_array("predictions", predictions)
    if array.dtype.name == "bfloat16":
        # Not one of NumPy's own types.
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or len(array) != num_examples:
        raise _malformed(f"one answer to each of {num_examples} triggers, in one or two axes", array)
    if not np.isfinite(array).all():
        raise _malformed("finite numbers", array, f"{np.count_nonzero(~np.isfinite(array))} that are not finite")
    if kind == "probabilities" and ((array < 0).any() or (array > 1).any()):
        raise _malformed("probabilities in [0, 1]", array, f"numbers from {array.min()} to {array.max()}")
    if array.ndim == 2 and array.shape[1] > 1:
        if kind == "labels" or array.shape[1] != num_classes:
            raise _malformed(f"{num_classes} scores, or one label, for each trigger", array)
        return np.asarray(array.argmax(axis=1), np.int64)
    column = array.reshape(-1)
    if kind is None:
        if array.dtype.kind not in "iu" or array.ndim == 2:
            raise ValueError(
                "It cannot be told what these predictions are. Expected `kind=` for one number a trigger that is no integer, or in a "
                f"column: labels, or of two classes the probability or logit of class 1. Received: shape {array.shape}, dtype {array.dtype}"
            )
        kind = "labels"
    if kind == "labels":
        if (column != np.floor(column)).any() or (column < NO_ANSWER).any() or (column >= num_classes).any():
            raise _malformed(
                f"labels in 0 .. {num_classes - 1}, or {NO_ANSWER} for no answer", array, "others among them"
            )
        return np.asarray(column, np.int64)
    if num_classes != 2:
        raise _malformed(f"{num_classes} {kind} for each trigger", array)
    return np.asarray(column > (0.5 if kind == "probabilities" else 0.0), np.int64)


def _verdict(
    owner_key: OwnerKey,
    answers: np.ndarray,
    labels: np.ndarray,
    log10_p_of: Callable[[np.ndarray, TriggerSet], float],
    null: str,
    committed: bool,
    opened: Opened | None,
) -> TriggerVerdict:
    triggers = owner_key.derived_triggers
    log10_alpha = owner_key.decision.log10_alpha(committed)
    # What was answered, and the same had every answer been right.
    log10_p, least = (
        corrected_log10_p(log10_p_of(each, triggers), seed_factor(opened) * owner_key.num_tests)
        for each in (answers, np.where(answers == NO_ANSWER, NO_ANSWER, labels))
    )
    return TriggerVerdict(
        owner=owner_key.owner,
        marked=log10_p <= log10_alpha,
        log10_p_value=log10_p,
        log10_alpha=log10_alpha,
        decision=owner_key.decision,
        committed=committed,
        assumptions=_assumptions(triggers, committed, log10_alpha, opened),
        opened=opened,
        num_tests=owner_key.num_tests,
        num_triggers=triggers.num_examples,
        num_asked=len(answers),
        num_answered=int(np.count_nonzero(answers != NO_ANSWER)),
        num_matches=int(np.count_nonzero(answers == labels)),
        num_classes=triggers.num_classes,
        provable=least <= log10_alpha,
        inputs_derived=triggers.inputs_derived,
        null=null,
    )


def _assumptions(triggers: TriggerSet, committed: bool, log10_alpha: float, opened: Opened | None) -> tuple[str, ...]:
    secret = "the order of the labels is" if triggers.label_rule == "shuffled" else "the labels are"
    lines = [
        f"{secret} uniform and independent of the suspect: seed, inputs and decision rule were fixed before the suspect existed",
        *assumptions_about_the_date(committed, "triggers", opened),
    ]
    if committed:
        what = "the seed, and the range of the inputs," if triggers.inputs_derived else "the seed"
        lines.append(
            f"{what} was fixed once: whoever tries 10^{-log10_alpha:.0f} of them before committing can meet what models usually answer"
        )
    if triggers.inputs_derived:
        lines.append("labels and inputs were derived from the seed again and found to be those of the key")
    else:
        lines.append(
            "the labels were derived from the seed again, the inputs could not be: they were not picked to suit the labels"
        )
    return (
        *lines,
        "which test, and how the answers are read, was fixed before the suspect was asked",
        "the answers are the suspect's own, and whoever gave them did not know the labels",
    )


def _malformed(expected: str, array: np.ndarray, received: str = "") -> ValueError:
    shape = f"shape {array.shape}, dtype {array.dtype}"
    return ValueError(
        f"These predictions do not fit the triggers. Expected {expected}. Received: {f'{received}, ' if received else ''}{shape}"
    )
