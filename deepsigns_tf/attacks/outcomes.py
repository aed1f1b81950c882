"""What is left of a model and of its marks after an attack."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from deepsigns_tf.files import file_digest
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.recovery import AlignedReading, read_aligned, recover
from deepsigns_tf.responses import Remembered
from deepsigns_tf.trigger_verification import verify_predict_fn
from deepsigns_tf.verification import Verdict, each_way, verify

# A thief who loses more than this has no model worth stealing. Source: Lukas et al., S&P 2022.
MAX_ACCURACY_LOSS = 0.05

InputChange = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Examiner:
    """Whoever looks at an attacked model: with the owner's key, the released model, and data that the model was not trained on.

    Args:
        owner_key: The key, after `release`; its commitment counts as published.
        marked: The released model.
        x_test: Inputs by which accuracy is measured.
        y_test: `(n,)` integer labels.
        reference: File of the key's reference (`OwnerKey.with_reference`); without it no reading is tried by it.
        gate: As in `recover`.
        unrelated: Readings of unrelated models, as in `recover`; without them no recovery is tried.
    """

    owner_key: OwnerKey
    marked: keras.Model
    x_test: np.ndarray = dataclasses.field(repr=False)
    y_test: np.ndarray = dataclasses.field(repr=False)
    reference: str | None = None
    gate: float = 0.0
    unrelated: Sequence[AlignedReading] = ()

    def outcome(self, model: keras.Model, change: InputChange = lambda inputs: inputs) -> dict[str, Any]:
        """Looks at a model.

        Args:
            model: The attacked model; scores of the task's classes come out of it.
            change: What happens to inputs on their way to it.

        Returns:
            JSON-ready values: `accuracy`; `changed_answers`, the share of test inputs that are answered otherwise than by the released
            model, and `largest_difference` of an output from its (None where one is not finite); `weights`, `referred` and `aligned`,
            what the key reads as it stands, in units matched with its reference's alone, and in units matched with the marked model's;
            `answers`, what the triggers say. A part that was not tried is missing.
        """
        outputs = _outputs(model, change(self.x_test))
        answers = outputs.argmax(axis=1)
        difference = float(np.abs(outputs - self._released_outputs).max())
        found: dict[str, Any] = {
            "accuracy": float(np.mean(answers == self.y_test)),
            "changed_answers": float(np.mean(answers != self._released_outputs.argmax(axis=1))),
            "largest_difference": difference if np.isfinite(difference) else None,
        }
        commitment = self.owner_key.commitment()
        if self.owner_key.carriers:
            suspect, matched = Remembered(model), {}
            # A match asks for more widths: it comes first, so that the model is run once.
            if (reference := self._known_reference) is not None:
                matched["referred"] = _read(
                    lambda: _best_match(each_way(suspect, self.owner_key, commitment=commitment, reference=reference))
                )
            if self.unrelated:
                matched["aligned"] = self._aligned(suspect)
            found |= {"weights": _read(lambda: verify(suspect, self.owner_key, commitment=commitment)), **matched}
        if self.owner_key.triggers is not None:
            verdict = verify_predict_fn(
                lambda inputs: model.predict(change(inputs), verbose=0),
                self.owner_key,
                commitment=commitment,
                batch_size=1000,
            )
            found["answers"] = {
                "num_matches": verdict.num_matches,
                "num_asked": verdict.num_asked,
                "log10_p_value": verdict.log10_p_value,
                "marked": verdict.marked,
            }
        return found

    @functools.cached_property
    def _released_outputs(self) -> np.ndarray:
        return _outputs(self.marked, self.x_test)

    @functools.cached_property
    def _known_marked(self) -> Remembered:
        return Remembered(self.marked)

    @functools.cached_property
    def _known_reference(self) -> Remembered | None:
        if self.reference is None:
            return None
        return Remembered(
            keras.models.load_model(self.reference, compile=False, safe_mode=True), file_digest(self.reference)
        )

    def _aligned(self, suspect: Remembered) -> dict[str, Any]:
        try:
            reading = read_aligned(suspect, self.owner_key, self._known_marked)
        except ValueError as error:
            return {"recovered": False, "refused": str(error)}
        return recover(reading, self.gate, self.unrelated).to_dict()


def survived(
    outcome: Mapping[str, Any], accuracy_before: float, mark: Literal["weights", "answers"] = "weights"
) -> str:
    """Whether a mark survived, in a word.

    Args:
        outcome: From `Examiner.outcome`.
        accuracy_before: Of the marked model, in [0, 1].
        mark: Which one; where there is none in the weights, the answers'.

    Returns:
        `"yes"`; `"recovered"`, at the level of a committed claim, after units were matched with the key's reference;
        `"recovered by counting"`, where only a comparison with unrelated models says so; `"removed"`; or `"with the model"`,
        where more than five points of accuracy went with the mark.

    Example:

    >>> survived({"accuracy": 0.97, "weights": {"marked": False}, "referred": {"marked": True}}, accuracy_before=0.98)
    'recovered'
    """
    mark = mark if mark in outcome else "answers"
    if outcome[mark]["marked"]:
        return "yes"
    if mark == "weights" and outcome.get("referred", {}).get("marked"):
        return "recovered"
    if mark == "weights" and outcome.get("aligned", {}).get("recovered"):
        return "recovered by counting"
    # Accuracies are shares of a test set: what rounding adds to a difference is less than one example.
    return "removed" if accuracy_before - outcome["accuracy"] <= MAX_ACCURACY_LOSS + 1e-9 else "with the model"


def evidence(outcome: Mapping[str, Any]) -> float:
    """-log10 p of what is read best: as the model stands, or matched with the key's reference; where no layer is marked, of its answers.

    Args:
        outcome: From `Examiner.outcome`.

    Example:

    >>> evidence({"weights": {"log10_p_value": -2.0}, "referred": {"log10_p_value": -30.0}})
    30.0
    """
    parts = [part for part in ("weights", "referred") if part in outcome] or ["answers"]
    return float(-min(outcome[part]["log10_p_value"] for part in parts))


def points_lost(outcomes: Sequence[Mapping[str, Any]]) -> float:
    """What an attack costs, in points of accuracy.

    Args:
        outcomes: Of one attack on several models, each with `accuracy_before`, the marked model's.

    Example:

    >>> points_lost([{"accuracy_before": 0.98, "accuracy": 0.97}])
    1.0
    """
    return round(100 * float(np.mean([outcome["accuracy_before"] - outcome["accuracy"] for outcome in outcomes])), 10)


def order_of_attacks(outcomes: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """By which the best attack comes first: the one that removes the mark from all models at the least cost; else the one that
    leaves the least evidence; last those that take the model with the mark.

    Args:
        outcomes: Of one attack, as in `points_lost`.

    Example:

    >>> removed = {"accuracy_before": 0.98, "accuracy": 0.97, "weights": {"marked": False, "log10_p_value": -1.0}}
    >>> held = {"accuracy_before": 0.98, "accuracy": 0.98, "weights": {"marked": True, "log10_p_value": -50.0}}
    >>> order_of_attacks([removed]) < order_of_attacks([held])
    True
    """
    words = {survived(outcome, outcome["accuracy_before"]) for outcome in outcomes}
    if words == {"removed"}:
        return 0, points_lost(outcomes)
    if "with the model" in words:
        return 2, points_lost(outcomes)
    return 1, min(evidence(outcome) for outcome in outcomes)


def best_adaptive(attacks: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """The attack that stands on top of a table: the best of a thief who knows the method, by `order_of_attacks`.

    Args:
        attacks: Name -> its outcomes, each with its `family`; an attack that was refused has none and is not among them.

    Returns:
        Its name; None where no adaptive attack was tried.

    Example:

    >>> outcome = {"accuracy_before": 0.98, "accuracy": 0.97, "weights": {"marked": False, "log10_p_value": -1.0}}
    >>> best_adaptive({"pruned": [outcome | {"family": "pruning"}], "redrawn": [outcome | {"family": "adaptive"}]})
    'redrawn'
    """
    adaptive = [name for name, outcomes in attacks.items() if outcomes[0]["family"] == "adaptive"]
    return min(adaptive, key=lambda name: order_of_attacks(attacks[name]), default=None)


def _outputs(model: keras.Model, inputs: Any) -> np.ndarray:
    return np.asarray(model.predict(inputs, batch_size=1000, verbose=0), np.float64)


def _best_match(verdicts: Sequence[Verdict]) -> Verdict:
    """Of the readings after units were matched; what is read without stands beside it."""
    matched = [verdict for verdict in verdicts if verdict.matched]
    if not matched:
        raise ValueError(
            "Nothing can be read after a match. Expected a layer near the reference's width. Received: none that is finite"
        )
    return min(matched, key=lambda verdict: verdict.log10_p_value)


def _read(verified: Callable[[], Verdict]) -> dict[str, Any]:
    try:
        verdict = verified()
    except ValueError as error:
        # No layer of the right width, or numbers that are not finite: nothing is read, and nothing proved.
        return {"marked": False, "log10_p_value": 0.0, "refused": str(error)}
    margins = np.concatenate([reading.margins.ravel() for reading in verdict.readings])
    return {
        "num_matches": verdict.num_matches,
        "num_bits": verdict.num_bits,
        "bit_error_rate": verdict.bit_error_rate,
        "median_margin": float(np.median(margins)),
        "log10_p_value": verdict.log10_p_value,
        "marked": verdict.marked,
    }
