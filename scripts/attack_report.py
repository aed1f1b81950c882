"""The report of an attack suite: JSON for machines, a table and a picture for people."""

import io
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from deepsigns_tf.attacks.outcomes import best_adaptive, survived  # noqa: E402
from deepsigns_tf.files import write_atomically  # noqa: E402
from scripts.markdown import markdown_table  # noqa: E402
from scripts.records import write_json  # noqa: E402

_COLORS = {
    "yes": "#0072b2",
    "recovered": "#009e73",
    "recovered by counting": "#f0e442",
    "removed": "#d55e00",
    "with the model": "#999999",
    "failed": "#000000",
    "not applicable": "#000000",
}


def write_report(result: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes `attacks.json` and `attacks.md`.

    Args:
        result: What `scripts.attack.run` gives; rows may still be missing.
        folder: Where to.
    """
    write_json(folder / "attacks.json", result)
    heading = f"# Attacks\n\n`{result['command']}`, {result['date']}, {result['hardware']}, {result['data']}.\n"
    words = (
        f"\nA mark is removed if its p is above 10^{result['log10_alpha']:.2f}, the level that the key fixes for committed claims (an "
        "earlier commitment is taken as checked), while the model keeps its accuracy within five points. Recovered: at that level, after "
        "units were matched with those of the model that the key refers to. By counting: after they were matched with the marked "
        "model's, where p is the share of unrelated models that get as far and cannot be less than one in their number.\n\n"
    )
    assumptions = result["marked"].get("aligned", {}).get("assumptions", ())
    if assumptions:
        words += f"Counting assumes: {'; '.join(assumptions)}.\n\n"
    if "unrelated" in result:
        words += f"Of {of_unrelated(result['unrelated'])}\n\n"
    write_atomically(folder / "attacks.md", (heading + words + attacks_table(result) + "\n").encode())


def of_unrelated(found: dict[str, Any]) -> str:
    """What unrelated models say of a recovery, after "of".

    Args:
        found: The result's entry `unrelated`.
    """
    return (
        "{num_models} unrelated models the best match is {largest_quality:.3f}, against a gate of {gate:.3f} that "
        "{num_through_the_gate} pass; the fewest wrong bits are {smallest_bit_error_rate:.4f}."
    ).format(**found)


def attacks_table(result: dict[str, Any]) -> str:
    """One row an attack, the best adaptive one on top; columns that no row has anything for are left out.

    Args:
        result: As in `write_report`.
    """
    before = result["marked"]
    best = best_adaptive({row["attack"]: [row] for row in result["rows"] if "refused" not in row})
    rows = sorted(result["rows"], key=lambda row: row["attack"] != best)
    controls = [{"attack": "none", "family": "", "survived": survived(before, before["accuracy"])} | before]
    if "unmarked_twin" in result:
        controls.append({"attack": "unmarked twin", "family": "control", "survived": ""} | result["unmarked_twin"])
    columns = {
        "attack": lambda row: row["attack"],
        "family": lambda row: row["family"],
        "accuracy before, %": lambda row: f"{100 * row['accuracy_before']:.2f}" if "accuracy_before" in row else "",
        "accuracy, %": lambda row: f"{100 * row['accuracy']:.2f}" if "accuracy" in row else "",
        "answers changed, %": lambda row: f"{100 * row['changed_answers']:.2f}" if "changed_answers" in row else "",
        "largest change of an output": lambda row: (
            f"{row['largest_difference']:.1e}" if row.get("largest_difference") is not None else ""
        ),
        "bits": lambda row: _of(row, "weights", lambda part: f"{part['num_matches']} of {part['num_bits']}"),
        "BER": lambda row: _of(row, "weights", lambda part: f"{part['bit_error_rate']:.4f}"),
        "median margin": lambda row: _of(row, "weights", lambda part: f"{part['median_margin']:.2f}"),
        "log10 p": lambda row: _of(row, "weights", lambda part: f"{part['log10_p_value']:.1f}"),
        "log10 p, matched with the reference": lambda row: _of(
            row, "referred", lambda part: f"{part['log10_p_value']:.1f} (BER {part['bit_error_rate']:.4f})"
        ),
        "matched with the marked model": lambda row: _of(
            row,
            "aligned",
            lambda part: (
                f"BER {part['bit_error_rate']:.4f}, match {part['reading']['quality']:.2f}, p = {part['p_value']:.3f}"
            ),
        ),
        "triggers": lambda row: _of(row, "answers", lambda part: f"{part['num_matches']} of {part['num_asked']}"),
        "log10 p, triggers": lambda row: _of(row, "answers", lambda part: f"{part['log10_p_value']:.1f}"),
        "survived": lambda row: row["survived"] + (f": {row['refused']}" if "refused" in row else ""),
        "recovered": lambda row: {True: "yes", False: "no"}.get(row.get("recovered"), ""),
        "survived, triggers": lambda row: row.get("answers_survived", ""),
        "seconds": lambda row: f"{row['seconds']:.0f}" if "seconds" in row else "",
    }
    cells = {name: [cell(row) for row in (*controls, *rows)] for name, cell in columns.items()}
    shown = [name for name, column in cells.items() if any(column)]
    return markdown_table(shown, list(zip(*(cells[name] for name in shown), strict=True)))


def _of(row: dict[str, Any], name: str, shown: Any) -> str:
    part = row.get(name)
    if part is None:
        return ""
    return "no reading" if "refused" in part else str(shown(part))


def attacks_picture(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws what is left of the mark, in the weights or else in answers, and of the accuracy; nothing where no row has a reading.

    Args:
        result: As in `write_report`.
        path: Where the PNG goes.
    """
    # Where no layer is marked, what the triggers say.
    mark = "weights" if "weights" in result["marked"] else "answers"
    rows = [row for row in result["rows"] if mark in row]
    if not rows:
        return
    figure, (evidence, accuracy) = plt.subplots(
        1, 2, figsize=(12, 1.2 + 0.22 * len(rows)), layout="constrained", sharey=True, width_ratios=(3, 1)
    )
    places = range(len(rows))
    colors = [_COLORS[row["survived"]] for row in rows]
    evidence.barh(places, [-row[mark]["log10_p_value"] for row in rows], color=colors)
    referred = [(place, row["referred"]) for place, row in zip(places, rows, strict=True) if "referred" in row]
    if referred:
        evidence.scatter(
            [-part["log10_p_value"] for _, part in referred],
            [place for place, _ in referred],
            marker="|",
            color="black",
            label="matched with the reference",
        )
    level = {"color": "black", "linewidth": 0.8, "linestyle": ":", "label": "level of committed claims"}
    evidence.axvline(-result["log10_alpha"], **level)
    evidence.set_yticks(places, [row["attack"] for row in rows], fontsize=7)
    evidence.invert_yaxis()
    evidence.set(xlabel="-log10 p", xscale="symlog", xlim=(0, None))
    for name, color in _COLORS.items():
        evidence.barh([0], [0], color=color, label={"yes": "survived"}.get(name, name))
    evidence.legend(fontsize=7, loc="lower right")
    accuracy.scatter([100 * row["accuracy"] for row in rows], places, color=colors, s=12)
    accuracy.axvline(100 * result["marked"]["accuracy"], color="grey", linewidth=0.8)
    accuracy.set(xlabel="accuracy, %")
    accuracy.grid(axis="y", linewidth=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
