"""Pictures of the recorded measurements, for `docs/results.md`."""

import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.suite_tables import LEVEL, attacks_of, curves, outcome_of, ways_of  # noqa: E402
from deepsigns_tf.attacks.outcomes import evidence, points_lost  # noqa: E402
from deepsigns_tf.files import write_atomically  # noqa: E402

_COLOR = "#0072b2"
_SHADES = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00")


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


def defences_picture(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws how many bits are wrong after overwriting, for each way to mark: means, and a dot for each seed.

    Args:
        result: `results/mnist_defences.json`.
        path: Where the PNG goes.
    """
    ways = ways_of(result)
    attacks = [outcome["attack"] for outcome in result["rows"][0]["suite"]["rows"]]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.5 * len(ways)), layout="constrained")
    height = 0.8 / len(attacks)
    for number, attack in enumerate(attacks):
        # A row that failed has no rate and no dot.
        rates = [
            [
                rate
                for row in rows
                if (rate := outcome_of(row, attack).get("weights", {}).get("bit_error_rate")) is not None
            ]
            for rows in ways.values()
        ]
        places = [place + number * height for place in range(len(ways))]
        means = [np.mean(each) if each else 0.0 for each in rates]
        axes.barh(
            places, means, height, label=attack, color=_SHADES[number % len(_SHADES)], edgecolor="black", linewidth=0.4
        )
        for place, each in zip(places, rates, strict=True):
            axes.scatter(each, [place] * len(each), s=8, color="black", zorder=3)
    axes.axvline(0.5, color="grey", linewidth=0.8, label="chance")
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(ways))], list(ways))
    axes.invert_yaxis()
    axes.set_xlabel("bit error rate of the first mark")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def adaptive_picture(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws what a thief who knows the method pays in accuracy, and what is left of the mark, read in the best way that has a p-value.

    One panel for the attacks by themselves, one for all disguises on top; a symbol for each seed and strength. Lines go through what grows
    with the distance that class means are moved by.

    Args:
        result: `results/NETWORK_suite.json`.
        path: Where the PNG goes.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 6), layout="constrained", sharex=True, sharey=True)
    attacks = {name: outcomes for name, outcomes in attacks_of(result).items() if outcomes[0]["family"] == "adaptive"}
    ways = {way: number for number, way in enumerate(dict.fromkeys(map(_way_of_attack, attacks)))}
    for name, outcomes in attacks.items():
        number = ways[_way_of_attack(name)]
        color = f"C{number}"
        lost, left = [points_lost([each]) for each in outcomes], [evidence(each) for each in outcomes]
        faces = "none" if _FALLING in name else color
        panels[int(_DISGUISED in name)].scatter(
            lost, left, s=36, marker="osD^v"[number % 5], edgecolors=color, facecolors=faces
        )
    for name, points in curves(result).items():
        lost, left = [lost for _, lost, _ in points], [left for _, _, left in points]
        panels[int(_DISGUISED in name)].plot(lost, left, color="grey", linewidth=0.8)
    for axes, title in zip(panels, ("by themselves", "then disguised"), strict=True):
        axes.axhline(LEVEL, color="black", linewidth=0.8, linestyle=":", label="1e-6, a committed claim's level")
        axes.set(title=title, xlabel="accuracy that the thief loses, points", yscale="symlog", ylim=(-0.15, 1000))
    for way, number in ways.items():
        axes.scatter([], [], s=36, color=f"C{number}", marker="osD^v"[number % 5], label=way)
    axes.scatter([], [], s=36, edgecolors="black", facecolors="none", label="hollow: at a falling rate")
    panels[0].set_ylabel("-log10 p")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)
    _save(figure, path)


_FALLING, _DISGUISED = " at a falling rate", ", then disguised"


def _way_of_attack(name: str) -> str:
    """What an adaptive attack does, whatever its strength."""
    return re.sub(rf"{_DISGUISED}|{_FALLING}| by [\d.]+|, \d+ x|, \d+ of each", "", name)


class Picture(NamedTuple):
    """What a picture shows, in words, and the function that draws it from a result into a file."""

    title: str
    draw: Callable[[dict[str, Any], pathlib.Path], None]


_ADAPTIVE = Picture(
    "What a thief who knows the method pays in accuracy, and what is left of the mark", adaptive_picture
)

# By the name of the result that they show.
PICTURES = {
    "overhead_costs": Picture("Time of a step, marked against plain, over bits, classes and units", costs_picture),
    "cnn_capacity": Picture("Bit error rate, accuracy and margin over the number of bits", capacity_picture),
    "mnist_defences": Picture("Wrong bits after overwriting, for each way to mark", defences_picture),
    "mnist_suite": _ADAPTIVE,
    "cnn_suite": _ADAPTIVE,
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
