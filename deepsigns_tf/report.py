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
from deepsigns_tf.trigger_verification import TriggerVerdict
from deepsigns_tf.verification import Verdict

_LIMITS = (
    "Who made the key: whoever holds the file can show it. The dates above say since when it exists.",
    "That nobody else has a valid, earlier claim: of two, the earlier commitment counts.",
    "Anything about a network that was trained anew, from other weights, even on this one's answers.",
    "That the mark would have been found whatever was done to the model: see the README's list of what removes it.",
)

_STEPS = (
    "Compute the commitment from the opened key, and compare it with the digits that were published before training.",
    "Check the dates: signatures and time-stamps of the statements, against certificates that you took from elsewhere.",
    "Read the mark again: python -m scripts.verify --model=SUSPECT --owner_key=KEY --commitment=DIGITS.",
    "Or write the reading yourself: docs/evidence-format.md says everything that it needs, byte for byte; it is a page of NumPy.",
)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened on a date.

    Args:
        date: ISO 8601.
        what: In words.
        digits: The hash that fixes it.
        basis: How the date is known.
    """

    date: str
    what: str
    digits: str
    basis: str


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """All that goes into a report.

    Args:
        verdict: By weights or by answers.
        suspect: What the suspect is called: a file with its digest, a server's address.
        controls: Name -> the same reading with a wrong key, of an unmarked model, from other inputs.
        timeline: In any order.
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
    controls: Mapping[str, Verdict | TriggerVerdict] = dataclasses.field(default_factory=dict)
    timeline: Sequence[Event] = ()
    circumstances: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "date": self.date,
            "suspect": self.suspect,
            "verdict": self.verdict.to_dict(),
            "controls": {name: control.to_dict() for name, control in self.controls.items()},
            "timeline": [dataclasses.asdict(event) for event in self._events()],
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
            timeline=self._events(),
            chance=_chance(verdict),
            rule=f"{verdict.decision.test} test at {_power_of_ten(verdict.log10_alpha)}, fixed in the key"
            if isinstance(verdict, Verdict)
            else f"all answers count, at {_power_of_ten(verdict.log10_alpha)}, fixed in the key",
            corrections=_corrections(verdict),
            assumptions=verdict.assumptions,
            controls=[
                {
                    "name": name,
                    "found": _found(control),
                    "log10_p": f"{control.log10_p_value:.1f}",
                    "outcome": "marked" if control.marked else "not marked",
                }
                for name, control in self.controls.items()
            ],
            **_readings(verdict),
            limits=_LIMITS,
            steps=_STEPS,
            circumstances=self._circumstances(),
        )

    def _events(self) -> list[Event]:
        return sorted(self.timeline, key=lambda event: event.date)

    def _circumstances(self) -> list[tuple[str, str]]:
        versions = {
            "deepsigns_tf": deepsigns_tf.__version__,
            "Keras": keras.__version__,
            "backend": keras.backend.backend(),
            "NumPy": np.__version__,
        }
        return [*versions.items(), *self.circumstances.items()]


def _in_plain_words(verdict: Verdict | TriggerVerdict) -> str:
    """The verdict for somebody who reads nothing else."""
    what = "the model's weights" if isinstance(verdict, Verdict) else "the model's answers to secret questions"
    if not verdict.decided:
        return "Not all questions were asked, and those that were prove nothing. Nothing is decided."
    if not verdict.marked:
        return f"The owner's mark was not found in {what}. That does not show that the model is of another origin: a mark can be removed."
    shown = (
        "The key was fixed before the model existed: its commitment was checked; its date is for the reader to judge."
        if verdict.committed
        else "This holds only if the key is older than the model, which was not shown."
    )
    return (
        f"The owner's secret mark is in {what}. By chance, a model that has nothing to do with this key would show as much "
        f"{_how_often(verdict.log10_p_value)}. {shown}"
    )


def _chance(verdict: Verdict | TriggerVerdict) -> str:
    found = (
        f"{verdict.num_matches} of {verdict.num_bits} bits match"
        if isinstance(verdict, Verdict)
        else f"{verdict.num_matches} of {verdict.num_asked} answers are the secret ones, by chance {verdict.null}"
    )
    return f"{found}: p = {_power_of_ten(verdict.log10_p_value)} after all corrections."


def _corrections(verdict: Verdict | TriggerVerdict) -> str:
    if isinstance(verdict, Verdict):
        return f"p was multiplied by {verdict.num_assignments}, the number of places in which the mark was looked for"
    return "none are needed: the questions were fixed, and all that were asked count"


def _found(verdict: Verdict | TriggerVerdict) -> str:
    whole = verdict.num_bits if isinstance(verdict, Verdict) else verdict.num_asked
    return f"{verdict.num_matches} of {whole}"


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


def _power_of_ten(log10: float) -> str:
    return "1" if log10 == 0.0 else f"10^{log10:.2f}"


def _how_often(log10_p: float) -> str:
    exponent = math.floor(-log10_p)
    if exponent < 6:
        return f"about once in {10**-log10_p:,.0f} cases"
    return f"less than once in 10^{exponent} cases"
