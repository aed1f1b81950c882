"""What was asked of the mark before anything was measured, and whether the recorded suites hold it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.cells import Result
from benchmarks.suite_tables import attacks_of
from scripts.markdown import markdown_table

_LOG10_2_64 = 64 * 0.30103
_NETWORKS = {"mnist": "MLP", "cnn": "CNN", "wrn": "WRN", "lstm": "LSTM"}


@dataclasses.dataclass(frozen=True)
class Bar:
    """What is asked of some rows of a suite.

    Args:
        words: It, in words.
        rows: Regular expression of the whole names of its attacks.
        networks: Which ones it is asked of.
        part: Which reading: `"weights"`, as the model stands, or `"referred"`, matched with the reference.
        largest_rate: Of wrong bits, in [0, 1]; 1 where nothing is asked of it.
        largest_log10_p: Of the p-value; 0 where nothing is asked of it.
        largest_loss: Of accuracy, in [0, 1]; rows that lose more are not asked.
    """

    words: str
    rows: str
    networks: tuple[str, ...] = tuple(_NETWORKS)
    part: str = "weights"
    largest_rate: float = 1.0
    largest_log10_p: float = 0.0
    largest_loss: float = 1.0


_EQUAL = r"(units|idle|cancelling|BatchNorm|layers|all of these).*"
BARS = (
    Bar("pruned up to 90 %: no wrong bit", r"[5-9]0 % pruned", ("mnist",), largest_rate=0.0),
    Bar(
        "pruned up to 99.9 %, or to a loss of 20 points: no wrong bit",
        r"[\d.]+ % pruned",
        ("cnn",),
        largest_rate=0.0,
        largest_loss=0.2,
    ),
    Bar(
        "fine-tuned: p <= 2^-64, at most 5 % wrong bits",
        r"fine-tuned, \d+ epochs",
        largest_rate=0.05,
        largest_log10_p=-_LOG10_2_64,
    ),
    Bar("overwritten at equal strength: p <= 2^-64", r"overwritten, 1 x, \d+ epochs", largest_log10_p=-_LOG10_2_64),
    Bar(
        "overwritten at equal strength: at most 15 % wrong bits",
        r"overwritten, 1 x, \d+ epochs",
        ("mnist",),
        largest_rate=0.15,
    ),
    Bar("quantized to 8 and 5 bits: no wrong bit", r"quantized to [85] bits", largest_rate=0.0),
    Bar(
        "equal functions, also pruned or fine-tuned: at most 5 % wrong bits after the match",
        _EQUAL,
        part="referred",
        largest_rate=0.05,
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
        [bar.words, _NETWORKS[network], *_judged(bar, results[f"{network}_suite"])]
        for bar in BARS
        for network in bar.networks
        if network in recorded
    ]
    return markdown_table(["asked", "of", "worst row", "wrong bits", "log10 p", "held"], rows)


def _judged(bar: Bar, result: Result) -> list[str]:
    asked = [
        (name, outcome)
        for name, outcomes in attacks_of(result).items()
        for outcome in outcomes
        if re.fullmatch(bar.rows, name) and outcome["accuracy_before"] - outcome["accuracy"] <= bar.largest_loss
    ]
    if not asked:
        return ["none was recorded", "", "", "no"]
    name, worst = max(asked, key=lambda row: _shortfall(bar, row[1]))
    reading = worst.get(bar.part, {})
    rate, log10_p = reading.get("bit_error_rate"), reading.get("log10_p_value", 0.0)
    held = rate is not None and rate <= bar.largest_rate and log10_p <= bar.largest_log10_p
    return [name, "no reading" if rate is None else f"{rate:.4f}", f"{log10_p:.1f}", "yes" if held else "**no**"]


def _shortfall(bar: Bar, outcome: dict[str, Any]) -> tuple[float, float]:
    """Larger for a row that is worse, by what the bar asks of first."""
    reading = outcome.get(bar.part, {})
    rate, log10_p = reading.get("bit_error_rate", 1.0), reading.get("log10_p_value", 0.0)
    return (rate, log10_p) if bar.largest_rate < 1.0 else (log10_p, rate)
