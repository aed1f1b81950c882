"""A verdict for people who are no engineers: one page that needs nothing else, and the same as JSON.

Nothing secret is in it. Whatever comes from a suspect is escaped.
"""

import dataclasses
import datetime
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import keras
import markupsafe
import matplotlib.figure
import numpy as np

import deepsigns_tf
from deepsigns_tf.commitments import Evidence
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.trigger_verification import TriggerVerdict
from deepsigns_tf.verification import Verdict

_LIMITS = (
    "Who made the key: whoever holds the file can show it. The dates above say since when it exists.",
    "That nobody else has a valid, earlier claim: of two, the earlier commitment counts.",
    "Where the model was before it was looked at, and who changed it.",
    "Anything, where no mark is found: a mark can be removed.",
)
# A reading names its layer.
_CONFIDENTIAL = "This report says in which layer the mark is: it is for the judge and the parties, for whoever knows that can remove it."

_REMOVES_WEIGHTS = (
    "Training anew from other weights, even on this model's answers (distillation, extraction): new weights carry no mark.",
    "Starting from a checkpoint from before the mark, or replacing the marked layer and all that follows it.",
    "Permuting, rescaling, splitting or adding units, unless the key refers to a model from before the mark, with which they are matched.",
    "Rewriting the graph so that the marked values are no layer's output.",
)
_REMOVES_ANSWERS = (
    "Refusing or altering unusual inputs, by whoever answers.",
    "Whether secret answers survive training anew on this model's answers was not measured by the authors of this software.",
)

# What `attacks.outcomes.survived` says.
_OUTCOMES = {
    "yes": "still found",
    "recovered": "found again, after units were matched with those of the key's reference",
    "recovered by counting": "found again by comparison with unrelated models",
    "removed": "REMOVED, the model stayed useful",
    "with the model": "gone, and the model's accuracy with it",
    "not applicable": "not tried: the attack does not fit this model",
    "failed": "not tried: the attack failed",
}


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened on a date.

    Args:
        date: ISO 8601, the time in UTC after it where it is known; empty where nothing shows the date.
        what: In words.
        digits: The hash that fixes it.
        basis: How the date is known.
    """

    date: str
    what: str
    digits: str
    basis: str


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """The same reading where the outcome is known beforehand.

    Args:
        name: What was read, with which key.
        verdict: What came of it.
        expected: Whether the mark must be found: in other inputs of the same classes, say, but not with a wrong key.
    """

    name: str
    verdict: Verdict | TriggerVerdict
    expected: bool = False

    @property
    def as_expected(self) -> bool:
        """Whether the outcome is what it must be."""
        return self.verdict.marked == self.expected


@dataclasses.dataclass(frozen=True)
class AttackOutcome:
    """What an attack on the marked model left of its mark.

    Args:
        attack: Its name.
        survived: In a word, from `attacks.outcomes.survived`, or `"not applicable"` or `"failed"`.
        accuracy: Of the attacked model, in [0, 1]; None where there is none.

    Raises:
        ValueError: If `survived` is another word, or the accuracy none.
    """

    attack: str
    survived: str
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.survived not in _OUTCOMES:
            raise ValueError(
                f"Invalid value for argument `survived`. Expected one of {list(_OUTCOMES)}. Received: survived={self.survived!r}"
            )
        if self.accuracy is not None and not (isinstance(self.accuracy, (int, float)) and 0 <= self.accuracy <= 1):
            raise ValueError(
                f"Invalid value for argument `accuracy`. Expected a number in [0, 1] or None. Received: accuracy={self.accuracy!r}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """All that goes into a report.

    Args:
        verdict: By weights or by answers.
        suspect: What the suspect is called: a file, a server's address.
        controls: The same reading with wrong keys, of unmarked models, from other inputs.
        timeline: In any order; what has no date comes first, in the order given.
        hashes: Name -> digits, of the suspect's file and of all else that the verdict went by.
        attacks: What was tried on the marked model, in any order.
        circumstances: Name -> value, in addition to versions: hardware, isolation of the suspect.
        date: ISO 8601; today by default.

    Example:

    >>> from deepsigns_tf.owner_key import OwnerKey
    >>> from deepsigns_tf.trigger_verification import verify_predictions
    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
    >>> page = Report(verify_predictions(key.triggers.labels, key), "their server").to_html()
    >>> "claim of ACME Vision" in page
    True
    """

    verdict: Verdict | TriggerVerdict
    suspect: str
    controls: Sequence[Control] = ()
    timeline: Sequence[Event] = ()
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attacks: Sequence[AttackOutcome] = ()
    circumstances: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "date": self.date,
            "suspect": self.suspect,
            "verdict": self.verdict.to_dict(),
            "controls": [
                {"name": each.name, "expected": each.expected, "verdict": each.verdict.to_dict()}
                for each in self.controls
            ],
            "timeline": [dataclasses.asdict(event) for event in self._events()],
            "hashes": dict(self.hashes),
            "attacks": [dataclasses.asdict(each) for each in self._attacks()],
            "circumstances": dict(self._circumstances()),
        }

    def to_html(self) -> str:
        """The report as a page of its own: no script, no link to anything outside."""
        verdict = self.verdict
        loader = jinja2.PackageLoader("deepsigns_tf", "")
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        return environment.get_template("report.html.jinja").render(
            version=deepsigns_tf.__version__,
            date=self.date,
            headline=verdict.headline,
            owner=verdict.owner,
            suspect=self.suspect,
            in_plain_words=_in_plain_words(verdict),
            controls_in_plain_words=self._controls_in_plain_words(),
            timeline=self._events(),
            hashes=self.hashes,
            chance=_chance(verdict),
            rule=_rule(verdict),
            corrections=_corrections(verdict),
            assumptions=verdict.assumptions,
            controls=[
                {
                    "name": each.name,
                    "expected": _marked_or_not(each.expected),
                    "found": _found(each.verdict),
                    "p_value": _probability(each.verdict.log10_p_value),
                    "outcome": _marked_or_not(each.verdict.marked),
                }
                for each in self.controls
            ],
            **_readings(verdict),
            removes=_REMOVES_WEIGHTS if isinstance(verdict, Verdict) else _REMOVES_ANSWERS,
            attacks=[
                {
                    "attack": each.attack,
                    "accuracy": "" if each.accuracy is None else f"{100 * each.accuracy:.2f}",
                    "outcome": _OUTCOMES[each.survived],
                }
                for each in self._attacks()
            ],
            num_tried=sum(each.survived not in ("not applicable", "failed") for each in self.attacks),
            num_removed=sum(each.survived == "removed" for each in self.attacks),
            limits=_LIMITS,
            confidential=_CONFIDENTIAL if isinstance(verdict, Verdict) else "",
            steps=_steps(verdict),
            circumstances=self._circumstances(),
        )

    def _controls_in_plain_words(self) -> str:
        if not self.controls:
            return "No controls were run."
        others = sum(not each.as_expected for each in self.controls)
        if others:
            return (
                f"{others} of {len(self.controls)} controls did NOT come out as they must: do not rely on this verdict before that is "
                "explained."
            )
        return f"All {len(self.controls)} controls came out as they must."

    def _events(self) -> list[Event]:
        return sorted(self.timeline, key=lambda event: event.date)

    def _attacks(self) -> list[AttackOutcome]:
        """Those that removed the mark first."""
        return sorted(self.attacks, key=lambda each: each.survived != "removed")

    def _circumstances(self) -> list[tuple[str, str]]:
        versions = {
            "deepsigns_tf": deepsigns_tf.__version__,
            "Keras": keras.__version__,
            "backend": keras.backend.backend(),
            "NumPy": np.__version__,
        }
        return [*versions.items(), *self.circumstances.items()]


def statement_events(evidence: Evidence, owner_key: OwnerKey) -> list[Event]:
    """What an owner's statements add to a timeline: those about one key.

    Args:
        evidence: The checked statements.
        owner_key: The key.

    Returns:
        An event for each statement that names the key's commitment, in their order.

    Example:

    >>> from deepsigns_tf.commitments import Statement
    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
    >>> first = Statement("ACME Vision", 64 * "1", number=1, previous=None, commitment=key.commitment())
    >>> statement_events(Evidence((first,)), key)[0].what
    'Statement 1: the owner committed to the key'
    """
    commitment, events = owner_key.commitment(), []
    for each in evidence.statements:
        if each.commitment != commitment:
            continue
        what = "the owner committed to the key" if each.release is None else f"release {each.release.id!r}"
        stamp = evidence.time_stamps.get(each.number)
        date, basis = "", "no time-stamp was checked"
        if stamp is not None:
            date = f"{stamp.time:%Y-%m-%d %H:%M:%S} UTC"
            basis = f"RFC 3161 time-stamp of {stamp.authority}, serial number {stamp.serial_number}"
        events.append(Event(date, f"Statement {each.number}: {what}", each.digest(), basis))
    return events


def _in_plain_words(verdict: Verdict | TriggerVerdict) -> str:
    """The verdict for somebody who reads nothing else."""
    what = "the model's weights" if isinstance(verdict, Verdict) else "the model's answers to secret questions"
    if isinstance(verdict, TriggerVerdict) and not verdict.decided:
        if verdict.num_asked < verdict.num_triggers:
            return "Not all questions were asked, and those that were prove nothing. Nothing is decided."
        return "So few questions were answered that nothing could have been proved. Nothing is decided."
    if not verdict.marked:
        return f"The owner's mark was not found in {what}. That does not show that the model is of another origin: a mark can be removed."
    return (
        f"The owner's secret mark is in {what}. By chance, a model that has nothing to do with this key would show as much "
        f"{_how_often(verdict.log10_p_value)}. {_condition(verdict)}{_copy(verdict)}"
    )


def _copy(verdict: Verdict | TriggerVerdict) -> str:
    if not isinstance(verdict, Verdict) or not verdict.copy_of:
        return ""
    return f" Its weights are, number for number, those that the owner had stated as release {', '.join(map(repr, verdict.copy_of))}."


def _condition(verdict: Verdict | TriggerVerdict) -> str:
    """What the reader has to judge."""
    if not verdict.committed:
        return "This holds only if the key is older than the model, which was not shown."
    if verdict.opened is not None and verdict.opened.committed:
        stamp = verdict.opened.time_stamp
        assert stamp is not None
        return (
            f"The key was fixed by {stamp.time:%Y-%m-%d %H:%M:%S} UTC, so the time-stamp of {stamp.authority} says, and the model exists "
            f"since {verdict.opened.suspect_since:%Y-%m-%d %H:%M:%S} UTC, so whoever asked for this report says."
        )
    return "This holds if the model is younger than the key's commitment, which was checked; its date is for the reader to judge."


def _chance(verdict: Verdict | TriggerVerdict) -> str:
    found = (
        f"{verdict.num_matches} of {verdict.num_bits} bits match"
        if isinstance(verdict, Verdict)
        else f"{verdict.num_matches} of {verdict.num_asked} answers are the secret ones, by chance {verdict.null}"
    )
    return f"{found}: p = {_probability(verdict.log10_p_value)} after all corrections."


def _rule(verdict: Verdict | TriggerVerdict) -> str:
    """The decision rule, and when it was fixed."""
    what = "all answers count"
    if isinstance(verdict, Verdict):
        counts = {"hard": "matching bits are counted", "soft": "margins of the bits are added up"}
        what = f"{verdict.decision.test} test, in which {counts[verdict.decision.test]}"
    compared = "is at most" if verdict.marked else "is above" if verdict.decided else "is held against"
    if not verdict.committed:
        fixed = "It stands in the key; when it was fixed was not shown."
    elif verdict.opened and verdict.opened.committed and verdict.opened.time_stamp:
        fixed = (
            f"It is part of the commitment, and so was fixed by {verdict.opened.time_stamp.time:%Y-%m-%d %H:%M:%S} UTC."
        )
    else:
        fixed = "It is part of the commitment, and so was fixed with it."
    return f"{what}; p {compared} {_probability(verdict.log10_alpha)}. {fixed}"


def _corrections(verdict: Verdict | TriggerVerdict) -> str:
    factors = []
    if isinstance(verdict, Verdict):
        factors.append(f"by {verdict.num_assignments} for the places in which the mark was looked for")
    if verdict.opened is not None:
        factors.append(f"by {verdict.seed_factor} for the keys that the owner had committed to, this one included")
    if verdict.num_tests == 2:
        factors.append("by 2, for the key can claim by weights and by answers")
    if not factors:
        return "none are needed: the questions were fixed, and all that were asked count"
    return f"p was multiplied {' and '.join(factors)}"


def _found(verdict: Verdict | TriggerVerdict) -> str:
    whole = verdict.num_bits if isinstance(verdict, Verdict) else verdict.num_asked
    return f"{verdict.num_matches} of {whole}"


def _marked_or_not(marked: bool) -> str:
    return "marked" if marked else "not marked"


def _steps(verdict: Verdict | TriggerVerdict) -> list[tuple[str, str]]:
    """How somebody else gets to the same verdict: words, and a command where there is one."""
    by_weights, shown = isinstance(verdict, Verdict), "--commitment=DIGITS"
    steps = [
        (
            "Take what you check against from a source of your own: the published commitment, the owner's public key, an authority's root "
            "certificates. The owner key comes from the claimant, and goes to the judge alone.",
            "",
        )
    ]
    if verdict.opened is not None:
        shown = "--evidence=FOLDER --tsa_roots=ROOTS --suspect_since=DATE"
        steps.append(
            (
                "Check the statements' dates without this software; for their signatures see docs/evidence-format.md, section 3.",
                "openssl ts -verify -data 0001.json -in 0001.tsr -CAfile ROOTS",
            )
        )
    command = f"python -m scripts.verify --model=SUSPECT --owner_key=KEY {shown}"
    if not by_weights:
        return [*steps, ("Ask the suspect again.", f"{command} --by=answers")]
    return [
        *steps,
        ("Read the mark again.", f"{command} --dump=dump.npz"),
        (
            "Judge what was read without this software, with a program that needs NumPy alone, or one of your own: docs/evidence-format.md "
            "says everything that it needs, byte for byte.",
            "python tests/independent_verifier.py KEY dump.npz"
            + (" FOLDER" if verdict.opened is not None else "")
            + (" --dated" if verdict.opened is not None and verdict.opened.committed else ""),
        ),
    ]


def _readings(verdict: Verdict | TriggerVerdict) -> dict[str, Any]:
    if not isinstance(verdict, Verdict):
        return {"readings": [], "picture": None, "picture_in_words": ""}
    margins = np.concatenate([reading.margins.ravel() for reading in verdict.readings])
    words = (
        f"How clearly each bit was read, in units of what a random direction would give: {verdict.num_bits - verdict.num_matches} of "
        f"{verdict.num_bits} are wrong (below 0); the smallest margin is {margins.min():.2f}, the median {np.median(margins):.2f}."
    )
    readings = [
        {
            "title": f"{reading.carrier}, read in layer {reading.layer}: {reading.num_matches} of {reading.num_bits} bits",
            "rates": [
                (label, f"{rate:.4f}")
                for label, rate in zip(reading.classes, reading.bit_error_rate_per_class, strict=True)
            ],
        }
        for reading in verdict.readings
    ]
    return {"readings": readings, "picture": markupsafe.Markup(_histogram(margins, words)), "picture_in_words": words}


def _histogram(margins: np.ndarray, words: str) -> str:
    figure = matplotlib.figure.Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(margins, bins=40, color="#0072b2", edgecolor="black", linewidth=0.4)
    axes.axvline(0.0, color="black", linewidth=1.2, linestyle="--")
    axes.set(xlabel="margin (below 0: wrong)", ylabel="bits")
    content = io.StringIO()
    # Nothing that differs from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "deepsigns_tf"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = content.getvalue()
    start = svg.index("<svg")
    label = markupsafe.escape(words)
    return svg[start:].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _probability(log10: float) -> str:
    return f"{10**log10:.2g}" if log10 > -3.0 else f"10^{log10:.2f}"


def _how_often(log10_p: float) -> str:
    exponent = math.floor(-log10_p)
    if exponent < 6:
        return f"about once in {10**-log10_p:,.0f} cases"
    return f"less than once in 10^{exponent} cases"
