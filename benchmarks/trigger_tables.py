"""Tables about models that can only be asked."""

from typing import Any

import numpy as np

from benchmarks.cells import Result, accuracies, calibration_cells, circumstances, interval
from scripts.markdown import markdown_table


def accuracy_table(results: dict[str, Result], study: str) -> str:
    """One row a seed, of triggers alone and beside the mark in the layers; what the mean differences are stands below."""
    result = results[study]
    rows, sentences = [], []
    for title, runs in _ways(result).items():
        rows += [
            [
                title,
                row["settings"]["seed"],
                f"{100 * row['accuracy']['unmarked']:.2f}",
                f"{100 * row['accuracy']['marked']:.2f}",
                *(_matches(row["triggers"], which) for which in ("marked", "unmarked twin", "wrong key")),
                f"{row['triggers']['smallest_margin']:.2f}",
                f"{row['triggers']['log10_p_value']['marked']:.1f}",
                f"{row['bit_error_rate']['key inputs']:.4f}" if "bit_error_rate" in row else "",
            ]
            for row in runs
        ]
        marked, unmarked = (accuracies({"rows": runs}, name) for name in ("marked", "unmarked"))
        sentence = f"{title}: paired difference {(marked - unmarked).mean():+.3f} points"
        if len(runs) > 1:
            sentence += ", 95 % interval [{:+.3f}, {:+.3f}]".format(*interval(marked - unmarked))
        sentences.append(f"{sentence}.")
    sentences += [
        f"{title}, seed {row['settings']['seed']}: with BatchNorm statistics of task data in place of those with triggers among it "
        "{:.2f} % in place of {:.2f} %, {} triggers in place of {}; released: those {}.".format(
            *(100 * each["accuracy"] for each in both),
            *(each["num_matches"] for each in both),
            row["triggers"]["batch_norm"]["released"],
        )
        for title, runs in _ways(result).items()
        for row in runs
        if (both := [row["triggers"]["batch_norm"].get(name) for name in ("of task data", "with triggers")])[0]
    ]
    header = [
        "mark",
        "seed",
        "unmarked, %",
        "marked, %",
        "triggers answered",
        "unmarked twin",
        "wrong key",
        "smallest margin, also pruned and shaken",
        "log10 p",
        "BER of the layers",
    ]
    return f"{markdown_table(header, rows)}\n\n{' '.join(sentences)}\n\n{circumstances(result)}"


def robustness_table(results: dict[str, Result], study: str) -> str:
    """One row an attack; means over the seeds, and the worst seed's p-value, of the models that were attacked."""
    result = results[study]
    ways = {title: runs for title, runs in _ways(result).items() if "pruned" in runs[0]}
    first = result["rows"][0]
    attacks = {f"{100 * float(fraction):g} % pruned": ("pruned", fraction) for fraction in first["pruned"]}
    if "fine_tuned" in first:
        attacks[f"{first['fine_tuned']['epochs']} epochs of fine-tuning"] = ("fine_tuned", None)
    if "overwritten" in first:
        attacks[f"overwritten by other triggers, {first['overwritten']['epochs']} epochs"] = ("overwritten", None)
    attacks |= {name: ("changed_inputs", name) for name in first.get("changed_inputs", ())}
    rows = []
    for name, (kind, which) in attacks.items():
        row: list[Any] = [name]
        for runs in ways.values():
            outcomes = [each[kind] if which is None else each[kind][which] for each in runs]
            triggers = [outcome["triggers"] for outcome in outcomes]
            row += [
                f"{100 * np.mean([outcome['accuracy'] for outcome in outcomes]):.2f}",
                f"{np.mean([each['num_matches'] for each in triggers]):.1f}",
                f"{max(each['log10_p_value'] for each in triggers):.1f}",
            ]
        rows.append(row)
    header = ["attack"]
    for title in ways:
        header += [f"{title}: accuracy, %", "triggers answered, mean", "log10 p, worst seed"]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def families_table(results: dict[str, Result], study: str) -> str:
    """One row an attack, one column a family: triggers answered, on held-out training examples."""
    result = results[study]
    sentence = ""
    if "changed_inputs" in result["rows"][0] and not result.get("num_missing"):
        better = ", ".join(better_than_noise(result)) or "none"
        sentence = f"Answered better than noise in more than half of the rows of changed inputs: {better}."
    return _side_by_side({row["settings"]["trigger_family"]: row for row in result["rows"]}, result, sentence)


def mixing_table(results: dict[str, Result], study: str) -> str:
    """One row an attack, one column a way to mix triggers into batches: triggers answered, on held-out training examples."""
    result = results[study]
    sentence = ""
    if not result.get("num_missing"):
        sentence = f"By the rule: {_mixing_name(chosen_mixing(result))}."
    return _side_by_side({_mixing_name(row["settings"]): row for row in result["rows"]}, result, sentence)


def _mixing_name(settings: dict[str, Any]) -> str:
    how = "augmented" if settings["augment_triggers"] else "as they are"
    return f"{settings['num_triggers_per_batch']} a batch, {how}"


def _side_by_side(runs: dict[str, Result], result: Result, sentence: str) -> str:
    first = result["rows"][0]
    rows = [
        ["accuracy, % (difference)"]
        + [
            f"{100 * row['accuracy']['marked']:.2f} ({100 * (row['accuracy']['marked'] - row['accuracy']['unmarked']):+.2f})"
            for row in runs.values()
        ],
        ["released"] + [_matches(row["triggers"], "marked") for row in runs.values()],
    ]
    for kind, title in (("pruned", "{:g} % pruned"), ("changed_inputs", "{}")):
        for which in first.get(kind, ()):
            shown = 100 * float(which) if kind == "pruned" else which
            rows.append(
                [title.format(shown)] + [str(row[kind][which]["triggers"]["num_matches"]) for row in runs.values()]
            )
    rows.append(
        [f"{first['fine_tuned']['epochs']} epochs of fine-tuning"]
        + [str(row["fine_tuned"]["triggers"]["num_matches"]) for row in runs.values()]
    )
    table = markdown_table(["triggers answered", *runs], rows)
    return "\n\n".join(filter(None, [table, sentence, circumstances(result)]))


def chosen_mixing(result: Result) -> dict[str, Any]:
    """Of the ways with which all triggers are answered, when released and after fine-tuning, that of the highest accuracy.

    If there is none, of all ways that with which most are answered after both.

    Args:
        result: `results/NETWORK_trigger_mixing.json`.

    Returns:
        `num_triggers_per_batch` and `augment_triggers`.
    """

    def rank(row: Result) -> tuple[int, float]:
        answered = (row["triggers"]["num_matches"]["marked"], row["fine_tuned"]["triggers"]["num_matches"])
        return min(answered), row["accuracy"]["marked"]

    settings = max(result["rows"], key=rank)["settings"]
    return {name: settings[name] for name in ("num_triggers_per_batch", "augment_triggers")}


def better_than_noise(result: Result) -> list[str]:
    """The families that may take noise's place as the default, if they may for the MLP and the CNN both.

    Args:
        result: `results/NETWORK_families.json`, of images.
    """

    def answered(row: dict[str, Any]) -> np.ndarray:
        return np.asarray([outcome["triggers"]["num_matches"] for outcome in row["changed_inputs"].values()])

    runs = {row["settings"]["trigger_family"]: answered(row) for row in result["rows"]}
    return [family for family, matches in runs.items() if np.mean(matches > runs["noise"]) > 0.5]


def calibration_table(results: dict[str, Result]) -> str:
    """One row a test, a kind of suspect and a level."""
    result = results["trigger_calibration"]
    rows = [
        [
            row["test"],
            row["suspect"],
            *calibration_cells(row),
        ]
        for row in result["rows"]
    ]
    header = [
        "test",
        "suspect",
        "nominal",
        "attained by the discrete test",
        "observed",
        "99.9 % interval",
        "as promised",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def power_table(results: dict[str, Result]) -> str:
    """One row a way in which answers are degraded."""
    result = results["trigger_power"]
    rows = [
        [
            row["answers"],
            f"{100 * row['rate']:g} %" if row["rate"] else "",
            f"{row['num_matches']:.1f}",
            f"{100 * row['proved']:.1f} %",
            f"{100 * row['proved_early']:.1f} %",
            "" if row["num_asked"] is None else f"{row['num_asked']:.1f}",
        ]
        for row in result["rows"]
    ]
    header = [
        "answers",
        "rate",
        "matches, mean",
        "proved by all",
        "proved by a test that may stop",
        "questions until then, mean",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def _ways(result: Result) -> dict[str, list[Result]]:
    """The rows of triggers alone, and of triggers beside a mark in the layers."""
    ways: dict[str, list[Result]] = {}
    for row in result["rows"]:
        ways.setdefault("triggers and bits" if "num_bits" in row else "triggers", []).append(row)
    return ways


def _matches(triggers: Result, which: str) -> str:
    return f"{triggers['num_matches'][which]} of {triggers['num_triggers']}"
