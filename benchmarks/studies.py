"""Runs of a training program that are compared with each other, over seeds fixed beforehand.

Each network has a module of its own, which says what its studies are (`benchmarks/mnist.py` and so on). Every row of a study
is one run of the network's program; a study that was interrupted goes on where it stopped, run for run. Its result is written after
every run, so that what days of training said outlives the machine: seeds that are finished there are not run again.
"""

import concurrent.futures
import dataclasses
import importlib
import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.attacks import Attacks, attacked
from scripts.configs import command_line, option
from scripts.cores import pool_on_cores


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that are compared with each other.

    Args:
        seeds: Fixed before any of them was run.
        settings: What differs from the program's defaults; a run for each and every seed.
        attacks: What the released models go through; nothing by default.
        num_attacked: How many of the settings, from the first on, have their models go through that; all by default.
        suites: Flags of `scripts.attack`, for the suite that they go through beside that: the same for all seeds, or one for each; none by
            default. A thief has the seed of the run, the same for all settings, so that these can be compared in pairs.
        unrelated: Kind of `benchmarks.populations` that suspects of the suite are compared with, where units are matched with the marked
            model's; none by default.
        num_payload_bits: Payload that is decoded from the bits that the suite leaves (`benchmarks.redundancy`); none by default.
        program: Name of the module that trains these; the network's by default.
        twins_of: Name of the study, this one or another, whose first setting differs from these in the mark alone: its runs have the
            unmarked twins for all of the same seed. Each run has its own by default.
    """

    seeds: range
    settings: tuple[dict[str, Any], ...] = ({},)
    attacks: Attacks | None = None
    num_attacked: int | None = None
    suites: tuple[Mapping[str, Any], ...] = ()
    unrelated: str | None = None
    num_payload_bits: int | None = None
    program: str | None = None
    twins_of: str | None = None


# What models of a suite have beside the mark: triggers, whose answers the same attacks must leave, and key inputs enough to match units by:
# more of them than a layer has units.
FOR_SUITES = {"num_triggers": 100, "num_key_inputs_per_class": 200}

# The kinds of triggers of images, to be compared.
FAMILIES = ({"trigger_family": "noise"}, {"trigger_family": "blends"}, {"trigger_family": "low_density"})

# Rows of a suite that a network of many hours can do without, as patterns of their names. The MLP shows what they add.
_SPARED = (
    r"(50|80|95) % pruned and retrained",
    r"FTLL|RTLL",
    r"overwritten, 0\.1 x",
    r"overwritten in another",
    # All of these, then fine-tuned, stay, and so do each of them, then pruned.
    r"(units cloned|idle units|cancelling units|layers (divided|renamed)).*, then fine-tuned",
)


def without(*patterns: str) -> str:
    """What the flag `only` of `scripts.attack` says to leave out attacks.

    Args:
        patterns: Regular expressions of how their names begin, beside those that all but the MLP do without.

    Example:

    >>> import re
    >>> [bool(re.search(without("RTAL"), name)) for name in ("RTAL, 10 epochs", "RTLL, 10 epochs", "50 % pruned")]
    [False, False, True]
    """
    return f"^(?!{'|'.join([*_SPARED, *patterns])})"


# Further ways to prune, tune and overwrite.
OTHER_WAYS = (".*retrained", "RTAL", "overwritten, 3 x", "overwritten, 1 x at")

# What networks of hours go through: pruned, tuned and overwritten in one way each; changed and disguised without training.
ONE_OF_EACH = {
    "suite": "brief",
    "only": without(*OTHER_WAYS, "all of these, then fine-tuned"),
    "fine_tuning_epochs": "10,20",
    "overwriting_epochs": "10",
}


def search(shared: dict[str, Any], *settings: dict[str, Any], name: str = "search") -> Study:
    """A study that chooses how strong a mark is, or where it sits: one seed, apart from those of the results.

    Args:
        shared: What all runs have in common, held-out training examples among it.
        settings: What they differ in, the mark alone.
        name: Of the study.
    """
    return Study(range(100, 101), tuple(each | shared for each in settings), twins_of=name)


def triggers(seeds: range, attacks: Attacks) -> Study:
    """The study "triggers": alone, where they are attacked, and beside the mark in the layers, where suites attack them.

    Args:
        seeds: As of the study "default", which has the twins.
        attacks: What the released models go through.
    """
    settings = ({"num_triggers": 100, "carriers": ""}, {"num_triggers": 100})
    return Study(seeds, settings, attacks, num_attacked=1, twins_of="default")


def compared_triggers(
    settings: Iterable[dict[str, Any]], holdout: int, attacks: Attacks, twins_of: str = "search"
) -> Study:
    """A study that chooses how triggers are, or how they are learned, on held-out training examples.

    Args:
        settings: What the runs differ in.
        holdout: How many examples judge.
        attacks: What the released models go through.
        twins_of: The study that has the twin; the study's own name where a network has no search.
    """
    shared = {"num_triggers": 100, "carriers": "", "holdout": holdout}
    return Study(range(100, 101), tuple(shared | each for each in settings), attacks, twins_of=twins_of)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network's program and its studies.

    Args:
        name: Folder of its runs, first part of the names of its results.
        program: Name of the module that trains it.
        studies: Name -> study.
    """

    name: str
    program: str
    studies: dict[str, Study]


@dataclasses.dataclass(frozen=True)
class Config:
    """Which rows to measure."""

    study: str = option("default", "Which setting.")
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    runs_dir: str = option("runs", "Folder for the runs.", shapes_result=False)
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    num_workers: int = option(2, "Runs at a time, each on a core of its own.", minimum=1, shapes_result=False)


def run(network: Network, config: Config) -> dict[str, Any]:
    """Makes all runs of a study.

    Args:
        network: Of what.
        config: Which study.

    Returns:
        What `results/NETWORK_STUDY.json` holds.

    Raises:
        ValueError: If there is no such study, or a row was measured with other settings.
    """
    from scripts.records import result_file, write_json

    if config.study not in network.studies:
        raise ValueError(
            f"Invalid value for flag `study`. Expected one of {list(network.studies)}. Received: study={config.study!r}"
        )
    study = network.studies[config.study]
    _check_twins(network, config)
    _check_unrelated(study, config)
    path = result_file(config.results_dir, f"{network.name}_{config.study}")
    runs = [(number, seed) for number in range(len(study.settings)) for seed in study.seeds]
    rows = _begun(path, network, config)
    # Seed for seed, since whole seeds are what a begun result is taken up with.
    to_come = sorted((each for each in runs if each not in rows), key=lambda each: each[1])
    print(f"{len(rows)} of {len(runs)} stand in {path} already", flush=True)
    result = _result(network, config, [rows.get(each) for each in runs]) if rows else {}
    with pool_on_cores(config.num_workers) as pool:
        jobs = {pool.submit(_run, network, config, *each): each for each in to_come}
        for job in concurrent.futures.as_completed(jobs):
            rows[jobs[job]] = row = job.result()
            print(f"{len(rows)} of {len(runs)} done: seed {row['settings']['seed']}", flush=True)
            result = _result(network, config, [rows.get(each) for each in runs])
            write_json(path, result)
    return result


def _result(network: Network, config: Config, runs: list[dict[str, Any] | None]) -> dict[str, Any]:
    """What the result's file holds, with `None` for runs to come."""
    from scripts.records import circumstances_of_rows

    rows = [row for row in runs if row]
    return {
        **circumstances_of_rows(command_line(f"benchmarks.{network.name}", config), rows),
        "data": rows[0]["data"],
        "num_missing": len(runs) - len(rows),
        "rows": rows,
    }


def _begun(path: pathlib.Path, network: Network, config: Config) -> dict[tuple[int, int], dict[str, Any]]:
    """Rows by number of the setting and seed, from a result that others began; none from one that is complete, which is measured anew.

    Taken are seeds with all their runs, whose folders are not here: where they are, they know more, and the twin of one run may be
    another's.
    """
    if not path.exists() or not (result := json.loads(path.read_text())).get("num_missing"):
        return {}
    num_settings = len(network.studies[config.study].settings)
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for seed in network.studies[config.study].seeds:
        settings = [_settings(network, config, number, seed) for number in range(num_settings)]
        of_seed = [row for row in result["rows"] if row["settings"]["seed"] == seed]
        here = any(pathlib.Path(each.output_dir).exists() for each in settings)
        if not here and len(of_seed) == len(settings):
            for number, (row, each) in enumerate(zip(of_seed, settings, strict=True)):
                _check_settings(row, each, _program(network, network.studies[config.study]), path)
                rows[number, seed] = row
    return rows


def _settings(network: Network, config: Config, number: int, seed: int) -> Any:
    """What the program of one run is told."""
    study = network.studies[config.study]
    runs = pathlib.Path(config.runs_dir) / network.name
    folder = runs / config.study / f"{seed}_{number}"
    twin = runs / study.twins_of / f"{seed}_0" if study.twins_of else folder
    return _program(network, study).Config(
        output_dir=str(folder),
        data_dir=config.data_dir,
        seed=seed,
        resume=folder.exists(),
        unmarked_from=str(twin) if twin != folder else None,
        **study.settings[number],
    )


def _program(network: Network, study: Study) -> Any:
    return importlib.import_module(study.program or network.program)


def _check_settings(row: dict[str, Any], settings: Any, program: Any, path: pathlib.Path) -> None:
    from scripts.folders import other_settings

    recorded = {"program": program.__name__, **row["settings"]}
    other = other_settings(settings, program.__name__, recorded)
    if other:
        raise ValueError(
            f"This row was measured with other settings. Expected {other}. "
            f"Received: { {name: recorded.get(name) for name in other} } in {path}; remove it to measure it again"
        )


def _run(network: Network, config: Config, number: int, seed: int) -> dict[str, Any]:
    from scripts.records import write_json

    study = network.studies[config.study]
    settings = _settings(network, config, number, seed)
    program, folder = _program(network, study), pathlib.Path(settings.output_dir)
    path = folder / "row.json"
    if path.exists():
        row = dict(json.loads(path.read_text()))
        _check_settings(row, settings, program, path)
    else:
        if settings.unmarked_from:
            _wait_for_twin(settings.unmarked_from)
        row = _row(program.run(settings))
        write_json(path, row)
    if study.attacks and number < (study.num_attacked or len(study.settings)):
        for part in attacked(row, program, settings, study.attacks):
            row |= part
            write_json(path, row)
    if study.suites:
        _go_through_suite(row, folder, config, study, seed)
        write_json(path, row)
    return row


def _go_through_suite(row: dict[str, Any], folder: pathlib.Path, config: Config, study: Study, seed: int) -> None:
    """Adds to a row what a suite of attacks leaves of the marked model, with the suite's own circumstances.

    The suite keeps what it has done; whatever failed is tried again.
    """
    from benchmarks.populations import KINDS, folder_of
    from scripts import attack

    flags = study.suites[study.seeds.index(seed) % len(study.suites)]
    reference = folder / "reference.keras"
    suite = attack.Config(
        model=str(folder / "marked.keras"),
        owner_key=str(folder / "owner.key"),
        output_dir=str(folder / "attacked"),
        data_dir=config.data_dir,
        reference=str(reference) if reference.exists() else None,
        unrelated=str(folder_of(config.runs_dir, study.unrelated)) if study.unrelated else None,
        num_unrelated=KINDS[study.unrelated].num_models if study.unrelated else 0,
        seed=seed,
        num_workers=1,
        resume=True,
        **flags,
    )
    # The study's command makes it again; the suite's own names folders of one machine.
    row["suite"] = {name: value for name, value in attack.run(suite).items() if name != "command"}
    if study.num_payload_bits:
        for outcome in row["suite"]["rows"]:
            if "refused" not in outcome:
                outcome["payload"] = _payload(
                    folder, attack.result_path(suite, outcome["attack"]), study.num_payload_bits
                )


def _payload(folder: pathlib.Path, attacked: pathlib.Path, num_bits: int) -> dict[str, Any]:
    """A payload as an attacked model still says it."""
    import keras

    import deepsigns_tf as ds
    from benchmarks.redundancy import decoded

    verdict = ds.verify(keras.models.load_model(attacked, compile=False), ds.OwnerKey.load(folder / "owner.key"))
    return decoded(verdict.readings, num_bits, verdict.num_assignments)


def _check_twins(network: Network, config: Config) -> None:
    study = network.studies[config.study]
    if study.twins_of in (None, config.study):
        return
    runs = pathlib.Path(config.runs_dir) / network.name / study.twins_of
    missing = [seed for seed in study.seeds if not (runs / f"{seed}_0" / "unmarked.keras").exists()]
    if missing:
        raise ValueError(
            f"The unmarked twins of this study are missing. Expected the runs of --study={study.twins_of} in {runs}. "
            f"Received: none for the seeds {missing}"
        )


def _check_unrelated(study: Study, config: Config) -> None:
    from benchmarks.populations import files_of

    if study.unrelated is not None:
        files_of(config.runs_dir, study.unrelated)


def _wait_for_twin(folder: str) -> None:
    """Another process may be training it."""
    while not (pathlib.Path(folder) / "unmarked.keras").exists():
        time.sleep(5)


def _row(result: dict[str, Any]) -> dict[str, Any]:
    row = {
        "date": result["date"],
        "hardware": result["hardware"],
        "versions": result["versions"],
        "data": result["data"],
        "settings": result["settings"],
        "accuracy": result["accuracy"],
        "training_seconds": result["training_seconds"],
    }
    if "verdict" in result:
        readings = result["verdict"]["readings"]
        row |= {
            "num_bits": result["verdict"]["num_bits"],
            "bit_error_rate": result["bit_error_rate"],
            "log10_p_value": _of_all(result, "log10_p_value"),
            # Over the carriers: the worst of each.
            "margin": {name: min(reading[f"{name}_margin"] for reading in readings) for name in ("smallest", "median")},
            "carriers": {
                reading["carrier"]: {name: reading[name] for name in ("bit_error_rate", "median_margin")}
                for reading in readings
            },
        }
    if "triggers" in result:
        triggers = result["triggers"]
        row["triggers"] = {
            "num_triggers": triggers["verdict"]["num_triggers"],
            "num_matches": _of_all(triggers, "num_matches"),
            "log10_p_value": _of_all(triggers, "log10_p_value"),
            "batch_norm": triggers["batch_norm"],
            "smallest_margin": triggers["smallest_margin"],
        }
    return row


def _of_all(marks: dict[str, Any], name: str) -> dict[str, Any]:
    """Of the marked model and of the controls."""
    return {"marked": marks["verdict"][name]} | {control: each[name] for control, each in marks["controls"].items()}
