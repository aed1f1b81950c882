"""What the tables of results have in common: cells, and the circumstances below them."""

from typing import Any

import numpy as np
import scipy.stats

Result = dict[str, Any]


def circumstances(*results: Result) -> str:
    """Where the numbers come from, and how many are to come; one sentence for all commands that were run under the same circumstances."""
    commands: dict[str, list[str]] = {}
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        shared = f"{result['date']}, {result['data']}, {result['hardware']}, {versions}."
        missing = result.get("num_missing", 0)
        begun = f" ({missing} of {missing + len(result['rows'])} runs are still to come)" if missing else ""
        commands.setdefault(shared, []).append(f"`{result['command']}`{begun}")
    return "\n\n".join(f"{', '.join(names)}, {shared}\n" for shared, names in commands.items())


def accuracies(result: Result, name: str) -> np.ndarray:
    """Of all rows, in %, `"marked"` or `"unmarked"`."""
    return np.array([100 * row["accuracy"][name] for row in result["rows"]])


def difference(row: Result) -> float:
    """Accuracy, marked - unmarked, in points."""
    return float(100 * (row["accuracy"]["marked"] - row["accuracy"]["unmarked"]))


def accuracy_cell(rows: list[Result]) -> str:
    """Means over the rows: accuracy of the marked model, and what it is more than the unmarked one's."""
    marked = 100 * np.mean([row["accuracy"]["marked"] for row in rows])
    return f"{marked:.2f} ({np.mean([difference(row) for row in rows]):+.2f})"


def calibration_cells(row: Result) -> list[str]:
    """What a calibration promised and what was observed: nominal, attained, observed, interval, verdict."""
    return [
        f"{row['nominal']:g}",
        f"{row['attained']:.5f}" if "attained" in row else "a bound",
        f"{row['observed']:.5f}",
        # A normal interval does not know that a share is never negative.
        "[{:.5f}, {:.5f}]".format(*(max(0.0, end) for end in row["interval"])),
        "yes" if row["as_promised"] else "**no**",
    ]


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean, Student's."""
    found = scipy.stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return float(found.low), float(found.high)
