"""What was asked of the mark before anything was measured, and whether the recorded suites hold it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.cells import Result
from benchmarks.suite_tables import attacks_of
from deepsigns_tf.attacks.thief import Family
from scripts.markdown import markdown_table

_LOG10_2_64 = 64 * 0.30103
_NETWORKS = {"mnist": "MLP", "cnn": "CNN", "wrn": "WRN", "lstm": "LSTM"}


@dataclasses.dataclass(frozen=True)
class Bar:
    """What is asked of some rows of a suite.

    Args:
        words: It, in words.
        family: Of its attacks.
        rows: Regular expression of their whole names.
        needed: Network -> names of attacks that must have been tried for an answer; the networks that it is asked of.
        part: Which reading: `"weights"`, as the model stands, or `"referred"`, matched with the reference.
        largest_rate: Of wrong bits, in [0, 1]; 1 where nothing is asked of it.
        largest_log10_p: Of the p-value; 0 where nothing is asked of it.
        largest_loss: Of accuracy, in [0, 1]; rows that lose more are not asked.
        largest_change: Of an output, by the attack; not asked by default.
    """

    words: str
    family: Family
    rows: str
    needed: Mapping[str, tuple[str, ...]]
    part: str = "weights"
    largest_rate: float = 1.0
    largest_log10_p: float = 0.0
    largest_loss: float = 1.0
    largest_change: float = math.inf


def _of_all(*names: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(_NETWORKS, names)


# WRN and LSTM prune disguised copies and do not fine-tune them.
_DISGUISES = tuple(
    f"{name}{then}"
    for name in ("units permuted", "units rescaled", "units split", "layers divided into 4", "all of these")
    for then in ("", ", then 50 % pruned")
)
_TUNED = "all of these, then fine-tuned, 10 epochs"

BARS = (
    Bar(
        "pruned up to 90 %: no wrong bit",
        "paper",
        r"[5-9]0 % pruned",
        {"mnist": tuple(f"{share} % pruned" for share in (50, 60, 70, 80, 90))},
        largest_rate=0.0,
    ),
    Bar(
        "pruned up to 99.9 %, or to a loss of 20 points: no wrong bit",
        "paper",
        r"[\d.]+ % pruned",
        {"cnn": tuple(f"{share} % pruned" for share in (50, 60, 70, 80, 90, 95, 99, 99.9))},
        largest_rate=0.0,
        largest_loss=0.2,
    ),
    Bar(
        "fine-tuned: p <= 2^-64, at most 5 % wrong bits",
        "paper",
        r"fine-tuned, \d+ epochs",
        {
            **dict.fromkeys(("mnist", "cnn"), ("fine-tuned, 200 epochs",)),
            **dict.fromkeys(("wrn", "lstm"), ("fine-tuned, 20 epochs",)),
        },
        largest_rate=0.05,
        largest_log10_p=-_LOG10_2_64,
    ),
    Bar(
        "overwritten at equal strength: p <= 2^-64",
        "paper",
        r"overwritten, 1 x, \d+ epochs",
        {
            **dict.fromkeys(("mnist", "cnn"), ("overwritten, 1 x, 10 epochs", "overwritten, 1 x, 100 epochs")),
            **dict.fromkeys(("wrn", "lstm"), ("overwritten, 1 x, 10 epochs",)),
        },
        largest_log10_p=-_LOG10_2_64,
    ),
    Bar(
        "overwritten at equal strength: at most 15 % wrong bits",
        "paper",
        r"overwritten, 1 x, \d+ epochs",
        {"mnist": ("overwritten, 1 x, 10 epochs", "overwritten, 1 x, 100 epochs")},
        largest_rate=0.15,
    ),
    Bar(
        "quantized to 8 and 5 bits: no wrong bit",
        "modification",
        r"quantized to [85] bits",
        _of_all("quantized to 8 bits", "quantized to 5 bits"),
        largest_rate=0.0,
    ),
    Bar(
        "equal functions: outputs change by 1e-4 at most",
        "same function",
        r"(?!.*, then ).*",
        _of_all(*(name for name in _DISGUISES if "then" not in name)),
        part="referred",
        largest_change=1e-4,
    ),
    Bar(
        "equal functions, also pruned or fine-tuned: after the match at most 5 % wrong bits and p <= 1e-6",
        "same function",
        r".*",
        {
            **dict.fromkeys(("mnist", "cnn"), (*_DISGUISES, _TUNED)),
            "wrn": _DISGUISES,
            "lstm": (*_DISGUISES, "units turned", "units turned, then 50 % pruned"),
        },
        part="referred",
        largest_rate=0.05,
        largest_log10_p=-6.0,
    ),
)


def bars_table(results: Mapping[str, Result]) -> str:
    """One row for each bar and network: the row of the suite that comes nearest to it, or furthest beyond.

    Args:
        results: By their names; suites that were not recorded are left out.
    """
    # As any table without its file, where there is none; the MLP's bars are of all kinds.
    recorded = [network for network in _NETWORKS if f"{network}_suite" in results] or ["mnist"]
    rows = [
        [bar.words, _NETWORKS[network], *_judged(bar, bar.needed[network], results[f"{network}_suite"])]
        for bar in BARS
        for network in bar.needed
        if network in recorded
    ]
    return markdown_table(["asked", "of", "worst row", "seeds", "wrong bits", "log10 p", "change", "held"], rows)


def _judged(bar: Bar, needed: tuple[str, ...], result: Result) -> list[str]:
    attacks = attacks_of(result)
    missing = [name for name in needed if name not in attacks]
    if missing:
        return [f"not recorded: {missing[0]}", "", "", "", "", "not known"]
    asked = [
        (name, outcome)
        for name, outcomes in attacks.items()
        for outcome in outcomes
        if outcome["family"] == bar.family
        and re.fullmatch(bar.rows, name)
        and outcome["accuracy_before"] - outcome["accuracy"] <= bar.largest_loss
    ]
    if not asked:
        return ["all lose more accuracy", "", "", "", "", "not known"]
    name, worst = max(asked, key=lambda row: _shortfall(bar, row[1]))
    reading = worst.get(bar.part, {})
    rate, log10_p, change = reading.get("bit_error_rate"), reading.get("log10_p_value", 0.0), _change(worst)
    # Where nothing can be read, half of the bits are wrong, as by chance; where nothing is asked of them, that does not matter.
    held = (0.5 if rate is None else rate) <= bar.largest_rate and log10_p <= bar.largest_log10_p
    held = held and change <= bar.largest_change
    # Rows that were tried on fewer of the marked models stand for those alone.
    num_seeds = str(min(len(attacks[each]) for each in needed))
    shown = "no reading" if rate is None else f"{rate:.4f}"
    changed = "" if bar.largest_change == math.inf else f"{change:.1e}"
    return [name, num_seeds, shown, f"{log10_p:.1f}", changed, "yes" if held else "**no**"]


def _change(outcome: dict[str, Any]) -> float:
    """The largest of an output; infinite where one is not finite, or it was not measured."""
    found = outcome.get("largest_difference")
    return math.inf if found is None else float(found)


def _shortfall(bar: Bar, outcome: dict[str, Any]) -> tuple[float, float]:
    """Larger for a row that is worse, by what the bar asks of first."""
    if bar.largest_change < math.inf:
        return _change(outcome), 0.0
    reading = outcome.get(bar.part, {})
    rate, log10_p = reading.get("bit_error_rate", 1.0), reading.get("log10_p_value", 0.0)
    return (rate, log10_p) if bar.largest_rate < 1.0 else (log10_p, rate)
