"""Pictures of the recorded measurements, for the README."""

import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from deepsigns_tf.files import write_atomically  # noqa: E402

_COLOR = "#0072b2"


def costs_picture(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws what marking costs against bits, classes and width.

    Args:
        result: `results/overhead_costs.json`.
        path: Where the PNG goes.
    """
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained", sharey=True)
    for axes, unit in zip(panels, ("bits", "classes", "units"), strict=True):
        rows = [row for row in result["rows"] if row["setting"].endswith(unit)]
        values = [int(row["setting"].split()[0].replace(",", "")) for row in rows]
        ratios = [row["wall_ratio"] for row in rows]
        low, high = ([row["wall_ratio_interval"][end] for row in rows] for end in (0, 1))
        errors = [
            [ratio - each for ratio, each in zip(ratios, low, strict=True)],
            [each - ratio for ratio, each in zip(ratios, high, strict=True)],
        ]
        axes.errorbar(values, ratios, errors, color=_COLOR, marker="o", markersize=4, capsize=3)
        axes.axhline(1.0, color="grey", linewidth=0.8)
        _logarithmic(axes, values)
        axes.set_xlabel(unit)
    panels[0].set_ylabel("step, marked / plain")
    _save(figure, path)


def capacity_picture(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws bit errors, accuracy and margins against the number of bits.

    Args:
        result: `results/cnn_capacity.json`.
        path: Where the PNG goes.
    """
    rows = sorted(result["rows"], key=lambda row: int(row["num_bits"]))
    bits = [row["num_bits"] for row in rows]
    figure, (errors, accuracy, margins) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for name, style in {"key inputs": "-", "held out": "--"}.items():
        rates = [row["bit_error_rate"][name] for row in rows]
        errors.plot(bits, rates, style, color=_COLOR, marker="o", markersize=4, label=name)
    errors.set(title="Bit error rate")
    errors.legend()
    marked = [100 * row["accuracy"]["marked"] for row in rows]
    accuracy.plot(bits, marked, color=_COLOR, marker="o", markersize=4, label="marked")
    accuracy.axhline(100 * rows[0]["accuracy"]["unmarked"], color="#d55e00", linestyle="--", label="unmarked")
    accuracy.set(title="Accuracy (%)")
    accuracy.legend()
    for name, style in {"median": "-", "smallest": "--"}.items():
        margins.plot(
            bits, [row["margin"][name] for row in rows], style, color=_COLOR, marker="o", markersize=4, label=name
        )
    margins.axhline(0.0, color="grey", linewidth=0.8)
    margins.set(title="Margin (in standard deviations of chance)")
    margins.legend()
    for axes in (errors, accuracy, margins):
        _logarithmic(axes, bits)
        axes.set_xlabel("bits in 10 classes and 512 features")
    _save(figure, path)


# By the name of the result that they show.
PICTURES: dict[str, Callable[[dict[str, Any], pathlib.Path], None]] = {
    "overhead_costs": costs_picture,
    "cnn_capacity": capacity_picture,
}


def _logarithmic(axes: Any, values: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45, fontsize=8)
    axes.minorticks_off()


def _save(figure: Any, path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
