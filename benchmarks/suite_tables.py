"""Tables about what a thief can do."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import scipy.stats

from benchmarks.cells import Result, circumstances
from deepsigns_tf.attacks.outcomes import best_adaptive, evidence, points_lost, survived
from scripts.attack_report import of_unrelated
from scripts.markdown import markdown_table

# -log10 of the level of committed claims.
LEVEL = 6.0


def suite_table(results: dict[str, Result], study: str) -> str:
    """One row an attack: means over the seeds, and what is worst among them; the best adaptive attack stands on top.

    The best is the one that removes the mark for the least accuracy, or else leaves the largest p to a model worth having.
    """
    result = results[study]
    attacks = attacks_of(result)
    best = best_adaptive(attacks)
    names = sorted(attacks, key=lambda name: name != best)
    suites = [row["suite"] for row in result["rows"]]
    shown = [_of_controls(suites, "marked", "none")]
    if all("unmarked_twin" in suite for suite in suites):
        shown.append(_of_controls(suites, "unmarked_twin", "none, the unmarked twin"))
    shown += [{"attack": name, "family": attacks[name][0]["family"], **_cells(attacks[name])} for name in names]
    refused = {outcome["attack"]: outcome for suite in suites for outcome in suite["rows"] if "refused" in outcome}
    shown += [
        {
            "attack": name,
            "family": outcome["family"],
            "survived": f"{outcome['survived']}: {outcome['refused']}",
        }
        for name, outcome in refused.items()
    ]
    header = [name for name in _COLUMNS if any(row.get(name) for row in shown)]
    table = markdown_table(header, [[row.get(name, "") for name in header] for row in shown])
    return f"{table}\n\n{_sentences(result)}{circumstances(result)}"


def attacks_of(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Attack -> one outcome for each seed whose model took it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        for outcome in row["suite"]["rows"]:
            if "refused" not in outcome:
                found.setdefault(outcome["attack"], []).append(outcome)
    return found


def curves(result: Result) -> dict[str, list[tuple[float, float, float]]]:
    """What moving class means costs and leaves, with all that follows it: for each way of it, by rising distance.

    Args:
        result: Of a suite.

    Returns:
        Way, with {} for the distance -> (distance, points of accuracy lost, -log10 p), means over the seeds.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for name, outcomes in attacks_of(result).items():
        said = re.fullmatch(r"(class means moved by) ([\d.]+)(.*)", name)
        if said:
            points = float(said[2]), points_lost(outcomes), float(np.mean([evidence(each) for each in outcomes]))
            found.setdefault(f"{said[1]} {{}}{said[3]}", []).append(points)
    return {name: sorted(points) for name, points in found.items()}


def price(result: Result) -> tuple[float, str] | None:
    """Points of accuracy that a thief who knows the method pays to bring p above the level of committed claims.

    Args:
        result: Of a suite.

    Returns:
        The least, and the attack that it is paid for; along a curve between the two distances where it crosses the level. None if no
        adaptive attack gets there.
    """
    offers = [
        (points_lost(outcomes), name)
        for name, outcomes in attacks_of(result).items()
        if outcomes[0]["family"] == "adaptive" and all(evidence(each) < LEVEL for each in outcomes)
    ]
    for name, points in curves(result).items():
        for (near, lost, strong), (far, more, weak) in itertools.pairwise(points):
            if weak < LEVEL <= strong:
                way = name.format(f"{near:g} to {far:g}")
                offers.append((lost + (more - lost) * (strong - LEVEL) / (strong - weak), way))
    return min(offers, default=None)


def defences_table(results: dict[str, Result], study: str) -> str:
    """One row a way to mark, against the same overwriting thieves: means over the seeds, and differences from the first way in pairs."""
    result = results[study]
    ways = ways_of(result)
    first = next(iter(ways.values()))
    names = [outcome["attack"] for outcome in first[0]["suite"]["rows"]]
    rows = []
    for way, found in ways.items():
        cells = [
            way,
            found[0]["num_bits"],
            f"{100 * np.mean([row['accuracy']['marked'] for row in found]):.2f}",
            f"{np.mean([row['margin']['median'] for row in found]):.2f}",
        ]
        for name in names:
            outcomes = [outcome_of(row, name) for row in found]
            refused = [outcome["survived"] for outcome in outcomes if "refused" in outcome]
            if refused:
                cells += [" / ".join(dict.fromkeys(refused)), "", ""]
                continue
            worst = max(outcome["weights"]["log10_p_value"] for outcome in outcomes)
            payloads = [outcome["payload"] for outcome in outcomes]
            cells += [
                f"{np.mean([_rate(outcome) for outcome in outcomes]):.3f} ({worst:.0f})",
                "" if found is first else _difference(found, first, name),
                "{0[num_matches]} of {0[num_bits]}, x {0[num_copies]} ({0[log10_p_value]:.0f})".format(
                    max(payloads, key=lambda payload: payload["log10_p_value"])
                ),
            ]
        rows.append(cells)
    header = ["way to mark", "bits", "accuracy, %", "median margin"]
    for name in names:
        header += [f"{name}: BER (log10 p, worst seed)", "BER less the first way's [95 %]"]
        header += ["payload, x copies (log10 p), worst seed"]
    seeds = ", ".join(str(row["settings"]["seed"]) for row in first)
    sentence = f"Seeds {seeds}, of owner and thief.\n"
    if study == "mnist_defences":
        # The other studies chose nothing, and half of one does not.
        complete = not result.get("num_missing")
        sentence += (
            f"By the rule the best is: {ranked_defences(result)[0] if complete else 'not known before all runs are'}.\n"
        )
    return f"{markdown_table(header, rows)}\n\n{sentence}{circumstances(result)}"


def references_table(results: dict[str, Result]) -> str:
    """One row for each length of the training before the mark: means over the seeds, and p of the worst one."""
    result = results["mnist_references"]
    lengths: dict[int, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        lengths.setdefault(row["settings"]["unmarked_epochs"], []).append(row)
    overwritten = "overwritten, 1 x, 10 epochs"
    shown = (
        (overwritten, "weights"),
        *((name, "referred") for name in ("units permuted", "all of these", "all of these, then 50 % pruned")),
        (f"{overwritten}, then disguised", "referred"),
    )
    rows = []
    for length, found in lengths.items():
        cells = [
            f"{length} of {found[0]['settings']['epochs']}",
            f"{100 * np.mean([row['accuracy']['marked'] for row in found]):.2f}",
        ]
        for name, part in shown:
            read = [outcome_of(row, name).get(part) for row in found]
            cells.append(
                "no reference"
                if None in read
                else f"{np.mean([each['bit_error_rate'] for each in read]):.3f} ({max(each['log10_p_value'] for each in read):.0f})"
            )
        rows.append(cells)
    words = {"weights": "", "referred": ", matched"}
    header = [
        "epochs before the mark",
        "accuracy, %",
        *(f"{name}{words[part]}: BER (log10 p, worst seed)" for name, part in shown),
    ]
    return f"{markdown_table(header, rows)}\n\n{circumstances(result)}"


def sok_table(results: Mapping[str, Result]) -> str:
    """The SoK's one published cell for this mark beside the same attack here, for each network whose suite was recorded.

    Source: Lukas et al., S&P 2022; `visualization/barchart_fastest_attack.py` of their Watermark-Robustness-Toolbox, which writes
    "Feature Permutation", 0 hours, over whatever was measured.

    Args:
        results: By their names.
    """
    # As any table without its file, where there is none.
    recorded = [name for name in results if name.endswith("_suite")] or ["mnist_suite"]
    rows = []
    for name in sorted(recorded):
        attacks = attacks_of(results[name])
        for attack in ("units permuted", "units permuted, then 50 % pruned"):
            cells = _cells(attacks[attack]) if attack in attacks else {"survived": "not recorded"}
            rows.append(
                [
                    name.removesuffix("_suite"),
                    attack,
                    "removed, in 0 hours" if attack == "units permuted" else "not tried",
                    *(cells.get(column, "") for column in _OF_THE_SOK),
                ]
            )
    return markdown_table(["network", "attack", "SoK", *_OF_THE_SOK], rows)


def ranked_defences(result: Result) -> list[str]:
    """Ways to mark, the best one first, by a rule that was written down when four runs of the study "defences" were known.

    Of the ways whose mean accuracy lies at most 0.1 point below the first one's, that with the smallest log10 p of the decoded payload,
    averaged over seeds and thieves: the same payload in all ways, which a lower error rate of fewer bits does not flatter.

    Args:
        result: `results/mnist_defences.json` or `results/mnist_defences_again.json`.
    """
    ways = ways_of(result)
    accuracy = {way: np.mean([row["accuracy"]["marked"] for row in rows]) for way, rows in ways.items()}
    least = accuracy[next(iter(ways))] - 0.001 - 1e-9
    strength = {
        way: np.mean(
            [
                outcome["payload"]["log10_p_value"] if "payload" in outcome else 0.0
                for row in rows
                for outcome in row["suite"]["rows"]
            ]
        )
        for way, rows in ways.items()
        if accuracy[way] >= least
    }
    return sorted(strength, key=lambda way: float(strength[way]))


def ways_of(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Way to mark -> its rows, one a seed; of a study that is not complete, the seeds that all ways have."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault(way_to_mark(row["settings"]), {})[row["settings"]["seed"]] = row
    shared = set.intersection(*(set(rows) for rows in found.values()))
    return {way: [row for seed, row in rows.items() if seed in shared] for way, rows in found.items()}


def outcome_of(row: dict[str, Any], attack: str) -> dict[str, Any]:
    """What an attack of a row's suite left."""
    return next(outcome for outcome in row["suite"]["rows"] if outcome["attack"] == attack)


def _difference(found: list[dict[str, Any]], first: list[dict[str, Any]], attack: str) -> str:
    """Mean over the seeds of the difference between two ways, with Student's interval."""
    pairs = [(outcome_of(row, attack), outcome_of(other, attack)) for row, other in zip(found, first, strict=True)]
    if any("refused" in other for _, other in pairs):
        return ""
    differences = np.array([_rate(outcome) - _rate(other) for outcome, other in pairs])
    mean = differences.mean()
    if len(differences) < 2:
        return f"{mean:+.3f}"
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def _rate(outcome: dict[str, Any]) -> float:
    """Of wrong bits; where nothing can be read half of them, as by chance."""
    return float(outcome["weights"].get("bit_error_rate", 0.5))


def way_to_mark(settings: dict[str, Any]) -> str:
    """What a run's mark is, in a few words."""
    words = [settings["carriers"].replace(":", " x ").replace(",", ", "), f"strength {settings['strength']:g}"]
    words += [f"{settings['num_classes']} classes"] if settings["num_classes"] != 10 else []
    words += ["learned centres"] if settings["centres"] == "learned" else []
    words += ["Gaussian projection"] if settings["projection"] == "gaussian" else []
    words += [f"from epoch {settings['unmarked_epochs']}"] if settings["unmarked_epochs"] else []
    words += ["normalised loss"] if settings.get("normalized") else []
    return ", ".join(words)


def invariants_table(results: dict[str, Result]) -> str:
    """One row a way to mark and read, one column an attack."""
    result = results["invariants"]
    words = {"matched": "units matched with the reference", "sorted": "sorted class means, no match"}
    rows = [
        [
            words[row["way"]],
            row["bits_per_class"],
            f"{row['strength']:g}",
            *(
                "{bit_error_rate:.3f} ({0:.2f})".format(100 * each["accuracy"], **each)
                for each in row["attacks"].values()
            ),
        ]
        for row in result["rows"]
    ]
    header = [
        "read by",
        "bits of a class",
        "strength",
        *(f"{name}: BER (accuracy, %)" for name in result["rows"][0]["attacks"]),
    ]
    return f"{markdown_table(header, rows)}\n\n{circumstances(result)}"


def detector_table(results: dict[str, Result]) -> str:
    """One row a kind of mark, against unmarked networks that were trained as long."""
    result = results["detector"]
    rows = [
        [
            row["kind"],
            f"{100 * row['mark']['bit_error_rate']:.2f} ({row['mark']['largest_log10_p_value']:.0f})",
            row["epochs"],
            f"{row['num_marked']}, {row['num_unmarked']}",
            *(
                "{auc:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]".format(**each)
                for each in row["classifiers"].values()
            ),
        ]
        for row in result["rows"]
    ]
    header = ["mark", "wrong bits, % (log10 p, weakest network)", "epochs", "networks, marked and not"]
    header += [f"AUC, {name}: 95 %, out of bag" for name in result["rows"][0]["classifiers"]]
    control = result["control"]
    sentence = (
        f"The positive control, {control['kind']}, is {'seen' if control['seen'] else '**not** seen: nothing follows'} "
        f"(AUC {control['auc']:.2f}).\n"
    )
    if result["missing"]:
        sentence += f"Not recorded yet: {', '.join(result['missing'])}.\n"
    return markdown_table(header, rows) + f"\n\n{sentence}{circumstances(result)}"


def _of_controls(suites: list[dict[str, Any]], which: str, name: str) -> dict[str, str]:
    """The row of models that were not attacked."""
    return {"attack": name} | _cells(
        [suite[which] | {"accuracy_before": suite["marked"]["accuracy"]} for suite in suites], which == "marked"
    )


# Beside the SoK's.
_OF_THE_SOK = (
    *("accuracy, %", "BER", "log10 p, worst seed", "matched with the reference: BER, log10 p of the worst seed"),
    *("survived", "seconds"),
)

# Of the table of a suite; those that no row has anything for are left out.
_COLUMNS = (
    *("attack", "family", "seeds", "accuracy, %", "answers changed, %", "largest change of an output"),
    *("bits, worst seed", "BER", "median margin", "log10 p, worst seed"),
    *("matched with the reference: BER, log10 p of the worst seed", "matched with the marked model: BER"),
    *("triggers, worst seed", "log10 p, triggers", "survived", "survived, triggers", "seconds"),
)


def _cells(outcomes: list[dict[str, Any]], judged: bool = True) -> dict[str, str]:
    worst = max(outcomes, key=lambda outcome: outcome["weights"]["log10_p_value"])
    read = [outcome["weights"].get("median_margin") for outcome in outcomes]
    differences = [outcome.get("largest_difference") for outcome in outcomes]
    cells = {
        "seeds": str(len(outcomes)),
        "accuracy, %": f"{100 * np.mean([outcome['accuracy'] for outcome in outcomes]):.2f}",
        "bits, worst seed": "{num_matches} of {num_bits}".format(**worst["weights"])
        if "num_matches" in worst["weights"]
        else "",
        "BER": _mean_rate(outcomes, "weights"),
        "median margin": "" if None in read else f"{np.mean(read):.2f}",
        "log10 p, worst seed": f"{worst['weights']['log10_p_value']:.1f}",
        "largest change of an output": "" if None in differences else f"{max(differences):.1e}",
    }
    if all("changed_answers" in outcome for outcome in outcomes):
        cells["answers changed, %"] = f"{100 * np.mean([outcome['changed_answers'] for outcome in outcomes]):.2f}"
    if all("referred" in outcome for outcome in outcomes):
        least = max(outcome["referred"]["log10_p_value"] for outcome in outcomes)
        cells["matched with the reference: BER, log10 p of the worst seed"] = (
            f"{_mean_rate(outcomes, 'referred')}, {least:.1f}"
        )
    if all("aligned" in outcome for outcome in outcomes):
        cells["matched with the marked model: BER"] = _mean_rate(outcomes, "aligned")
    if all("answers" in outcome for outcome in outcomes):
        asked = max((outcome["answers"] for outcome in outcomes), key=lambda answers: answers["log10_p_value"])
        cells["triggers, worst seed"] = f"{asked['num_matches']} of {asked['num_asked']}"
        cells["log10 p, triggers"] = f"{asked['log10_p_value']:.1f}"
    if judged:
        cells["survived"] = _in_words(outcomes, "weights")
    if judged and all("answers" in outcome for outcome in outcomes):
        cells["survived, triggers"] = _in_words(outcomes, "answers")
    if all("seconds" in outcome for outcome in outcomes):
        cells["seconds"] = f"{np.mean([outcome['seconds'] for outcome in outcomes]):.0f}"
    return cells


def _in_words(outcomes: list[dict[str, Any]], mark: Literal["weights", "answers"]) -> str:
    return " / ".join(dict.fromkeys(survived(each, each["accuracy_before"], mark) for each in outcomes))


def _sentences(result: Result) -> str:
    """What the rows come to."""
    found = price(result)
    num_adaptive = sum(outcomes[0]["family"] == "adaptive" for outcomes in attacks_of(result).values())
    if not num_adaptive:
        words = "Adaptive attacks were not tried on this network.\n"
    elif found is None:
        words = f"None of the {num_adaptive} adaptive attacks that were tried brings p above 1e-6.\n"
    else:
        words = (
            f"A thief who knows the method brings p above 1e-6 for {found[0]:.1f} points of accuracy ({found[1]}).\n"
        )
    for row in result["rows"]:
        if "unrelated" in row["suite"]:
            words += f"Seed {row['settings']['seed']}: of {of_unrelated(row['suite']['unrelated'])}\n"
    return words


def _mean_rate(outcomes: list[dict[str, Any]], part: str) -> str:
    rates = [outcome[part].get("bit_error_rate") for outcome in outcomes]
    return "no reading" if None in rates else f"{np.mean(rates):.4f}"
