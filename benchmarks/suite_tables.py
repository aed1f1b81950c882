"""Tables about what a thief can do."""

from typing import Any

import numpy as np

from benchmarks.cells import Result, circumstances
from deepsigns_tf.attacks.outcomes import survived
from scripts.markdown import markdown_table


def suite_table(results: dict[str, Result], study: str) -> str:
    """One row an attack, means over the seeds and the worst seed's p; the best adaptive attack stands on top.

    The best is the one that removes the mark for the least accuracy, or else leaves the largest p.
    """
    result = results[study]
    attacks = attacks_of(result)
    adaptive = {name: rows for name, rows in attacks.items() if rows[0]["family"] == "adaptive"}
    best = min(adaptive, key=lambda name: _lightness(adaptive[name]), default=None)
    names = [*([best] if best else []), *(name for name in attacks if name != best)]
    rows = [[name, attacks[name][0]["family"], *_cells(attacks[name])] for name in names]
    before = [
        row["suite"]["marked"] | {"accuracy_before": row["suite"]["marked"]["accuracy"]} for row in result["rows"]
    ]
    refused = {
        outcome["attack"]: [
            outcome["attack"],
            outcome["family"],
            *[""] * 5,
            f"{outcome['survived']}: {outcome['refused']}",
        ]
        for row in result["rows"]
        for outcome in row["suite"]["rows"]
        if "refused" in outcome
    }
    seeds = ", ".join(str(row["settings"]["seed"]) for row in result["rows"])
    header = [
        f"attack, seeds {seeds}",
        "family",
        "accuracy, %",
        "BER",
        "log10 p, worst seed",
        "after matching with the reference: BER, log10 p",
        "after matching with the marked model: BER",
        "survived",
    ]
    shown = [["none", "", *_cells(before)], *rows, *refused.values()]
    return markdown_table(header, shown) + "\n\n" + circumstances(result)


def attacks_of(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Attack -> one outcome a seed, each with the accuracy that the marked model had before, of attacks that all seeds' models took."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        for outcome in row["suite"]["rows"]:
            if "refused" not in outcome:
                before = {"accuracy_before": row["suite"]["marked"]["accuracy"]}
                found.setdefault(outcome["attack"], []).append(outcome | before)
    return {name: outcomes for name, outcomes in found.items() if len(outcomes) == len(result["rows"])}


def defences_table(results: dict[str, Result], study: str) -> str:
    """One row a way to mark, against the same overwriting thief."""
    result = results[study]
    names = [outcome["attack"] for outcome in result["rows"][0]["suite"]["rows"]]
    rows = []
    for row in result["rows"]:
        outcomes = {outcome["attack"]: outcome for outcome in row["suite"]["rows"]}
        rows.append(
            [
                way_to_mark(row["settings"]),
                row["num_bits"],
                f"{100 * row['accuracy']['marked']:.2f}",
                f"{row['margin']['median']:.2f}",
                *(
                    f"{outcomes[name]['weights']['bit_error_rate']:.3f} ({outcomes[name]['weights']['log10_p_value']:.0f})"
                    for name in names
                ),
                *(
                    "{0[num_matches]} of {0[num_bits]}, x {0[num_copies]} ({0[log10_p_value]:.0f})".format(
                        outcomes[name]["payload"]
                    )
                    for name in names
                ),
            ]
        )
    header = ["way to mark", "bits", "accuracy, %", "median margin", *(f"{name}: BER (log10 p)" for name in names)]
    header += [f"{name}: payload, x copies (log10 p)" for name in names]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def way_to_mark(settings: dict[str, Any]) -> str:
    """What a run's mark is, in a few words."""
    words = [settings["carriers"].replace(":", " x ").replace(",", ", "), f"strength {settings['strength']:g}"]
    words += [f"{settings['num_classes']} classes"] if settings["num_classes"] != 10 else []
    words += ["learned centres"] if settings["centres"] == "learned" else []
    words += ["Gaussian projection"] if settings["projection"] == "gaussian" else []
    words += [f"from epoch {settings['unmarked_epochs']}"] if settings["unmarked_epochs"] else []
    words += ["normalised loss"] if settings.get("normalized") else []
    return ", ".join(words)


def detector_table(results: dict[str, Result]) -> str:
    """One row a kind of mark, against unmarked networks."""
    result = results["detector"]
    classifiers = [name for name, value in result["rows"][0].items() if isinstance(value, dict)]
    rows = [
        [
            row["kind"],
            row["num_models"],
            *("{auc:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]".format(**row[name]) for name in classifiers),
        ]
        for row in result["rows"]
    ]
    header = ["mark", "networks of each kind", *(f"AUC, {name}" for name in classifiers)]
    control = result["control"]
    sentence = (
        f"The positive control, {control['kind']}, is {'seen' if control['seen'] else '**not** seen: nothing follows'} "
        f"(AUC {control['auc']:.2f}).\n"
    )
    return markdown_table(header, rows) + f"\n\n{sentence}{circumstances(result)}"


def _cells(outcomes: list[dict[str, Any]]) -> list[str]:
    words = [survived(outcome, outcome["accuracy_before"]) for outcome in outcomes]
    return [
        f"{100 * np.mean([outcome['accuracy'] for outcome in outcomes]):.2f}",
        _mean_rate(outcomes, "weights"),
        f"{max(outcome['weights']['log10_p_value'] for outcome in outcomes):.1f}",
        f"{_mean_rate(outcomes, 'referred')}, {max(each['referred']['log10_p_value'] for each in outcomes):.1f}"
        if all("referred" in outcome for outcome in outcomes)
        else "",
        _mean_rate(outcomes, "aligned") if all("aligned" in outcome for outcome in outcomes) else "",
        " / ".join(dict.fromkeys(words)),
    ]


def _mean_rate(outcomes: list[dict[str, Any]], part: str) -> str:
    rates = [outcome[part].get("bit_error_rate") for outcome in outcomes]
    return "no reading" if None in rates else f"{np.mean(rates):.4f}"


def _lightness(outcomes: list[dict[str, Any]]) -> tuple[bool, float]:
    """Smallest for the attack that removes the mark everywhere at the least cost."""
    worst = max(outcome["weights"]["log10_p_value"] for outcome in outcomes)
    removed = not any(outcome["weights"]["marked"] for outcome in outcomes)
    lost = float(np.mean([outcome["accuracy_before"] - outcome["accuracy"] for outcome in outcomes]))
    return not removed, lost if removed else -worst
