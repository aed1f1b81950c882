"""Writes the tables and pictures of README and `docs/results.md` from the recorded JSON files, so that no number is typed by hand.

python -m benchmarks.tables
"""

import functools
import importlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks import bars, evidence_tables, suite_tables, trigger_tables
from benchmarks.cells import Result, accuracies, accuracy_cell, calibration_cells, circumstances, difference, interval
from benchmarks.pictures import PICTURES
from deepsigns_tf.files import write_atomically
from deepsigns_tf.statistics import allowed_errors
from scripts.markdown import markdown_table

_ROOT = pathlib.Path(__file__).parent.parent
RESULTS = _ROOT / "results"
DOCUMENTS = (_ROOT / "README.md", _ROOT / "docs" / "results.md")


class NotRecordedError(Exception):
    """A table's measurement has no file in `results/`."""


class Recorded(dict[str, Result]):
    """All results, by the names of their files."""

    def __missing__(self, name: str) -> Result:
        """Which file is missing."""
        raise NotRecordedError(f"Not recorded yet: `results/{name}.json`.")


def summary_table(results: dict[str, Result]) -> str:
    """One row a network, over the seeds of its default setting."""
    times = {
        row["setting"]: f"{_ratio(row, 'wall')} of {row['plain_step_ms']:.1f} ms"
        for row in results.get("overhead_networks", {"rows": []})["rows"]
    }
    rows = []
    for name, (title, paper, program) in _NETWORKS.items():
        if f"{name}_default" not in results:
            rows.append([title, _num_parameters(program), "not recorded yet", *[""] * 7, paper])
            continue
        result = results[f"{name}_default"]
        unmarked, marked = (accuracies(result, which) for which in ("unmarked", "marked"))
        shown, missing = f"{(marked - unmarked).mean():+.2f}", result.get("num_missing", 0)
        if len(marked) > 1:
            shown += " [{:+.2f}, {:+.2f}]".format(*interval(marked - unmarked))
        rows.append(
            [
                title,
                _num_parameters(program),
                f"{unmarked.mean():.2f}",
                f"{marked.mean():.2f}",
                shown,
                f"{len(marked)} of {len(marked) + missing}" if missing else len(marked),
                result["rows"][0]["num_bits"],
                max(_num_errors(row, "key inputs") for row in result["rows"]),
                f"{max(row['log10_p_value']['marked'] for row in result['rows']):.1f}",
                times.get(title.partition(",")[0], "not measured yet"),
                paper,
            ]
        )
    header = [
        "network",
        "parameters",
        "unmarked, %",
        "marked, %",
        "difference, 95 % interval",
        "seeds",
        "bits",
        "wrong bits, worst seed",
        "log10 p, worst seed",
        "time of a train step on one core, marked / plain",
        "paper: unmarked / marked, %",
    ]
    return markdown_table(header, rows)


def _num_parameters(program: str) -> str:
    """Of the network that a program trains by default."""
    module = importlib.import_module(program)
    return f"{module.builder(module.Config(output_dir=''))().count_params():,}"


def accuracy_table(results: dict[str, Result], study: str) -> str:
    """One row a seed; paired difference and interval below where there are several."""
    result = results[study]
    rows = [
        [
            row["settings"]["seed"],
            f"{100 * row['accuracy']['unmarked']:.2f}",
            f"{100 * row['accuracy']['marked']:.2f}",
            f"{difference(row):+.2f}",
            " / ".join(f"{rate:.4f}" for rate in row["bit_error_rate"].get("last epoch", {}).values()),
            _errors(row, "key inputs"),
            _errors(row, "held out"),
            f"{row['margin']['smallest']:.2f}" if "smallest" in row["margin"] else "",
            f"{row['log10_p_value']['marked']:.1f}",
            f"{row['log10_p_value']['unmarked twin']:.1f}",
            f"{row['log10_p_value']['wrong key']:.1f}",
        ]
        for row in result["rows"]
    ]
    marked, unmarked = (accuracies(result, name) for name in ("marked", "unmarked"))
    sentence = ""
    if len(rows) > 1:
        low, high = interval(marked - unmarked)
        sentence = (
            f"Paired difference {(marked - unmarked).mean():+.3f} points, 95 % interval [{low:+.3f}, {high:+.3f}].\n"
        )
        means = [unmarked.mean(), marked.mean(), (marked - unmarked).mean()]
        rows.append(
            ["**mean**", *(f"**{mean:{form}}**" for mean, form in zip(means, (".2f", ".2f", "+.2f"), strict=True))]
        )
        rows[-1] += [""] * (len(rows[0]) - len(rows[-1]))
    header = [
        "seed",
        "unmarked, %",
        "marked, %",
        "difference",
        "BER in training, last epoch, batch means",
        "wrong bits, released file",
        "wrong bits, held-out inputs",
        "smallest margin",
        "log10 p, marked",
        "unmarked twin",
        "wrong key",
    ]
    return markdown_table(header, rows) + f"\n\n{sentence}{circumstances(result)}"


def overhead_table(results: dict[str, Result], study: str) -> str:
    """One row a setting."""
    result = results[study]
    rows = [
        [
            row["setting"],
            row["num_bits"],
            _ratio(row, "wall"),
            _of_processes(row),
            _ratio(row, "cpu"),
            row["num_pairs"],
            f"{row['plain_step_ms']:.1f}",
        ]
        for row in result["rows"]
    ]
    header = [
        "setting",
        "bits",
        "wall time, marked / plain",
        "in each process",
        "CPU time, marked / plain",
        "pairs",
        "plain step, ms",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def settings_table(results: dict[str, Result]) -> str:
    """One row a way of marking, means over the seeds that all of them share."""
    names = {
        "mnist_default": '`centres="batch"`, 128 bits a class, strength 10 (default)',
        "mnist_first": '`centres="batch"`, 64 bits a class, strength 1, as the next two',
        "mnist_learned": '`centres="learned"`, clustering 0.01',
        "mnist_fine_tuned": "trained model marked by 5 epochs of fine-tuning",
        "mnist_paper": "the paper's own: learned, Gaussian, 0.01",
    }
    overhead = {row["setting"]: row for row in results["overhead_networks"]["rows"]}
    settings = {
        "mnist_default": "MLP",
        "mnist_first": "MLP, 640 bits",
        "mnist_learned": "MLP, 640 bits, learned centres",
    }
    times = {study: overhead[setting] for study, setting in settings.items() if setting in overhead}
    shared = set.intersection(*({row["settings"]["seed"] for row in results[study]["rows"]} for study in names))
    rows = []
    for study, name in names.items():
        seeds = [row for row in results[study]["rows"] if row["settings"]["seed"] in shared]
        rows.append(
            [
                name,
                seeds[0]["num_bits"],
                accuracy_cell(seeds),
                " / ".join(_errors(row, "key inputs") for row in seeds),
                f"{np.mean([row['margin']['median'] for row in seeds]):.2f}",
                f"{np.mean([row['pruned']['0.9']['bit_error_rate'] for row in seeds]):.4f}",
                f"{np.mean([row['fine_tuned']['bit_error_rate'] for row in seeds]):.4f}",
                _ratio(times[study], "wall") if study in times else "",
            ]
        )
    header = [
        f"setting, seeds {', '.join(str(seed) for seed in sorted(shared))}",
        "bits",
        "accuracy, % (difference)",
        "wrong bits by seed",
        "median margin",
        "BER, 90 % pruned",
        "BER, fine-tuned",
        "step, marked / plain",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(*(results[study] for study in names))


def strength_table(results: dict[str, Result], study: str) -> str:
    """One row a strength, on held-out training examples."""
    result = results[study]
    strengths = sorted({row["settings"]["strength"] for row in result["rows"]})
    rows = []
    for strength in strengths:
        runs = [row for row in result["rows"] if row["settings"]["strength"] == strength]
        differences = [difference(row) for row in runs]
        rows.append(
            [
                f"{strength:g}",
                " / ".join(f"{difference:+.2f}" for difference in differences),
                f"{np.mean(differences):+.2f}",
                " / ".join(_errors(row, "key inputs") for row in runs),
                f"{np.mean([row['margin']['median'] for row in runs]):.2f}",
            ]
        )
    seeds = sorted({row["settings"]["seed"] for row in result["rows"]})
    header = [
        "strength",
        f"accuracy, marked - unmarked, points (seeds {', '.join(str(seed) for seed in seeds)})",
        "mean",
        "wrong bits",
        "median margin",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def calibration_table(results: dict[str, Result]) -> str:
    """One row a test and level."""
    result = results["calibration"]
    rows = [
        [
            row["test"],
            *calibration_cells(row),
        ]
        for row in result["rows"]
    ]
    header = ["test", "nominal", "attained by the discrete test", "observed", "99.9 % interval", "as promised"]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


# Rouhani et al., first version of the paper: bit error rate of 4 bits, no retraining. No white-box figures for other networks.
_PAPERS_RATES = {
    "mnist_default": {"0.5": "0", "0.6": "0", "0.7": "0", "0.8": "0", "0.9": "0", "0.95": "0.25"},
    "cnn_default": dict.fromkeys(("0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "0.99", "0.999"), "0"),
}


def robustness_table(results: dict[str, Result], study: str) -> str:
    """One row an attack, over the seeds of the default setting."""
    result = results[study]
    attacks = {f"{100 * float(fraction):g} % pruned": fraction for fraction in result["rows"][0]["pruned"]}
    rows = [
        [name, *_attack_cells([row["pruned"][fraction] for row in result["rows"]])]
        for name, fraction in attacks.items()
    ]
    fine_tuned = [row["fine_tuned"] for row in result["rows"]]
    rows.append([f"{fine_tuned[0]['epochs']} epochs of fine-tuning", *_attack_cells(fine_tuned)])
    header = ["attack", "accuracy, %", "BER, mean", "BER, worst seed", "log10 p, worst seed"]
    if study in _PAPERS_RATES:
        header.append("paper's BER (4 bits)")
        paper = [_PAPERS_RATES[study].get(fraction, "") for fraction in attacks.values()]
        for row, rate in zip(rows, [*paper, "0 (50, 100, 200 epochs)"], strict=True):
            row.append(rate)
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def errors_table(results: dict[str, Result]) -> str:
    """How many wrong bits a mark may have; computed, not measured."""
    del results
    levels = {"1e-6": -6.0, "2^-64": -64 * math.log10(2), "2^-128": -128 * math.log10(2)}
    rows = []
    for num_bits in (16, 64, 128, 256, 640):
        allowed = [allowed_errors(num_bits, level) for level in levels.values()]
        rows.append([num_bits, *("no number" if errors is None else errors for errors in allowed)])
    return markdown_table(["bits", *(f"p <= {level}" for level in levels)], rows)


def accelerator_table(results: dict[str, Result]) -> str:
    """One row, which says so where nothing was measured."""
    header = ["setting", "device", "bits", "wall time, marked / plain", "pairs", "plain step, ms"]
    if "accelerator" not in results:
        return markdown_table(header, [["WRN-28-10, JAX, mixed_bfloat16", "GPU", *["not measured"] * 4]])
    result = results["accelerator"]
    rows = [
        [
            row["setting"],
            ", ".join(result["device"]),
            row["num_bits"],
            _ratio(row, "wall"),
            row["num_pairs"],
            f"{row['plain_step_ms']:.1f}",
        ]
        for row in result["rows"]
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def search_table(results: dict[str, Result], study: str) -> str:
    """One row a strength or a place of the mark, on held-out training examples."""
    result = results[study]
    rows = []
    for row in result["rows"]:
        settings = row["settings"]
        ways = [settings["carriers"].replace(":", " x ").replace(",", ", ")]
        ways += ["every pixel a feature"] if settings["pooling"] == "flatten" else []
        ways += [f"labels in {settings['subclasses']} parts by length"] if settings.get("subclasses", 1) > 1 else []
        # In the key's order, which is that of the first column.
        last_epoch = row["bit_error_rate"]["last epoch"]
        carriers = [row["carriers"][name] for name in last_epoch]
        rows.append(
            [
                "; ".join(ways),
                row["num_bits"],
                f"{settings['strength']:g}",
                accuracy_cell([row]),
                " / ".join(f"{rate:.4f}" for rate in last_epoch.values()),
                " / ".join(f"{carrier['bit_error_rate']:.4f}" for carrier in carriers),
                f"{row['bit_error_rate']['held out']:.4f}",
                f"{row['margin']['smallest']:.2f}",
                " / ".join(f"{carrier['median_margin']:.2f}" for carrier in carriers),
            ]
        )
    header = [
        "layer x bits per class",
        "bits",
        "strength",
        "accuracy, % (difference)",
        "BER in training, last epoch, batch means",
        "BER, released file",
        "BER, held-out inputs",
        "smallest margin",
        "median margin",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


def capacity_table(results: dict[str, Result]) -> str:
    """One row a number of bits."""
    result = results["cnn_capacity"]
    rows = [
        [
            row["num_bits"],
            accuracy_cell([row]),
            f"{row['bit_error_rate']['key inputs']:.4f}",
            f"{row['bit_error_rate']['held out']:.4f}",
            f"{row['margin']['smallest']:.2f}",
            f"{row['margin']['median']:.2f}",
            f"{row['log10_p_value']['marked']:.1f}",
        ]
        for row in sorted(result["rows"], key=lambda row: int(row["num_bits"]))
    ]
    header = [
        "bits",
        "accuracy, % (difference)",
        "BER",
        "BER, held-out inputs",
        "smallest margin",
        "median margin",
        "log10 p",
    ]
    return markdown_table(header, rows) + "\n\n" + circumstances(result)


# What the tables call each network, the accuracies that the paper's first version reports, unmarked / marked, and what trains it.
_NETWORKS = {
    "mnist": ("MLP, MNIST", "98.54 / 98.13", "scripts.train_mnist_mlp"),
    "cnn": ("CNN, CIFAR-10", "78.47 / 80.7", "scripts.train_cifar10_cnn"),
    "wrn": ("WRN-16-2, CIFAR-10", "91.42 / not reported", "scripts.train_cifar10_wrn"),
    "lstm": ("LSTM, IMDB", "not reported", "scripts.train_imdb_lstm"),
}

Table = Callable[[dict[str, Result]], str]


def _for_each(
    networks: Iterable[str], name: str, table: Callable[[dict[str, Result], str], str], study: str
) -> dict[str, Table]:
    return {f"{name}_{each}": functools.partial(table, study=f"{each}_{study}") for each in networks}


def _with_picture(table: Table, name: str) -> Table:
    return lambda results: f"{table(results)}\n![{PICTURES[name].title}]({name}.png)\n"


def _picture_alone(name: str) -> Table:
    """For the README, which stands one folder higher than the pictures; the table is in `docs/results.md`."""
    return lambda results: results[name] and f"![{PICTURES[name].title}](docs/{name}.png)"


TABLES: dict[str, Table] = {
    "errors": errors_table,
    "summary": summary_table,
    **_for_each(_NETWORKS, "accuracy", accuracy_table, "default"),
    "accuracy_mnist_first": functools.partial(accuracy_table, study="mnist_first"),
    "accuracy_cnn_first": functools.partial(accuracy_table, study="cnn_first"),
    "accuracy_wrn_short": functools.partial(accuracy_table, study="wrn_short"),
    **_for_each(_NETWORKS, "robustness", robustness_table, "default"),
    "strength_mnist": functools.partial(strength_table, study="mnist_strength"),
    **_for_each(("cnn", "wrn", "lstm"), "search", search_table, "search"),
    "places_cnn": functools.partial(search_table, study="cnn_places"),
    "capacity": _with_picture(capacity_table, "cnn_capacity"),
    "overhead_networks": functools.partial(overhead_table, study="overhead_networks"),
    "overhead_costs": _with_picture(functools.partial(overhead_table, study="overhead_costs"), "overhead_costs"),
    "overhead_triggers": functools.partial(overhead_table, study="overhead_triggers"),
    "accelerator": accelerator_table,
    "settings": settings_table,
    "calibration": calibration_table,
    **_for_each(_NETWORKS, "triggers", trigger_tables.accuracy_table, "triggers"),
    **_for_each(_NETWORKS, "trigger_robustness", trigger_tables.robustness_table, "triggers"),
    **_for_each(("wrn",), "short_triggers", trigger_tables.accuracy_table, "short_triggers"),
    **_for_each(("wrn",), "short_trigger_robustness", trigger_tables.robustness_table, "short_triggers"),
    **_for_each(("mnist", "cnn", "lstm"), "families", trigger_tables.families_table, "families"),
    "trigger_mixing": functools.partial(trigger_tables.mixing_table, study="cnn_trigger_mixing"),
    "trigger_calibration": trigger_tables.calibration_table,
    "trigger_power": trigger_tables.power_table,
    **{
        name: _with_picture(table, study) if (study := name.removeprefix("suite_") + "_suite") in PICTURES else table
        for name, table in _for_each(_NETWORKS, "suite", suite_tables.suite_table, "suite").items()
    },
    "bars": bars.bars_table,
    "sok": suite_tables.sok_table,
    "defences_picture": _picture_alone("mnist_defences"),
    "defences": _with_picture(functools.partial(suite_tables.defences_table, study="mnist_defences"), "mnist_defences"),
    **_for_each(("mnist",), "defences_again", suite_tables.defences_table, "defences_again"),
    "references": suite_tables.references_table,
    "invariants": suite_tables.invariants_table,
    "detector": suite_tables.detector_table,
    "verdicts": evidence_tables.verdicts_table,
    "claims": evidence_tables.claims_table,
    "suspects": evidence_tables.suspects_table,
}


def recorded() -> Recorded:
    """What stands in `results/`."""
    return Recorded({path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")})


def filled(text: str) -> str:
    """The text with the table of the recorded results between each `<!-- table: NAME -->` and `<!-- end of table -->`."""
    results = recorded()

    def table(match: re.Match[str]) -> str:
        try:
            shown = TABLES[match[2]](results)
        except NotRecordedError as missing:
            shown = str(missing)
        return f"{match[1]}\n{shown}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end of table -->)", table, text, flags=re.DOTALL)


def main() -> None:
    """Rewrites the documents and draws their pictures again."""
    for document in DOCUMENTS:
        write_atomically(document, filled(document.read_text()).encode())
    for name, result in recorded().items():
        if name in PICTURES:
            PICTURES[name].draw(result, _ROOT / "docs" / f"{name}.png")


def _num_errors(row: Result, which: str) -> int:
    return round(row["bit_error_rate"][which] * row["num_bits"])


def _errors(row: Result, which: str) -> str:
    return f"{_num_errors(row, which)} of {row['num_bits']}"


def _of_processes(row: Result) -> str:
    """Median of each process, rising."""
    return ", ".join(f"{ratio:.3f}" for ratio in sorted(row["wall_ratio_of_processes"]))


def _ratio(row: Result, which: str) -> str:
    low, high = row[f"{which}_ratio_interval"]
    return f"{row[f'{which}_ratio']:.3f} [{low:.3f}, {high:.3f}]"


def _attack_cells(outcomes: list[Result]) -> list[str]:
    errors = [outcome["bit_error_rate"] for outcome in outcomes]
    return [
        f"{100 * np.mean([outcome['accuracy'] for outcome in outcomes]):.2f}",
        f"{np.mean(errors):.4f}",
        f"{max(errors):.4f}",
        f"{max(outcome['log10_p_value'] for outcome in outcomes):.1f}",
    ]


if __name__ == "__main__":
    main()
