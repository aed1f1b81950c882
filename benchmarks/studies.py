"""Runs of a training program that are compared with each other, over seeds fixed beforehand.

Each network has a module of its own, which says what its studies are (`benchmarks/mnist.py` and so on). Every row of a study
is one run of the network's program; a study that was interrupted goes on where it stopped, run for run.
"""

import concurrent.futures
import dataclasses
import importlib
import json
import pathlib
import time
from typing import Any

from benchmarks.cores import pool_on_cores
from scripts.configs import command_line, option, result_settings

PRUNED_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that are compared with each other.

    Args:
        seeds: Fixed before any of them was run.
        settings: What differs from the program's defaults; a run for each and every seed.
        attacked: Whether the released models are pruned and fine-tuned too.
        share_twin: Whether the settings differ in the mark alone, so that the runs of a seed have one unmarked twin.
    """

    seeds: range
    settings: tuple[dict[str, Any], ...] = ({},)
    attacked: bool = False
    share_twin: bool = False


def search(shared: dict[str, Any], *settings: dict[str, Any]) -> Study:
    """A study that chooses how strong a mark is and where it sits: one seed, apart from those of the results.

    Args:
        shared: What all runs have in common, held-out training examples among it.
        settings: What they differ in, the mark alone.
    """
    return Study(range(100, 101), tuple(each | shared for each in settings), share_twin=True)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network's program and its studies.

    Args:
        name: Folder of its runs, first part of the names of its results.
        program: Name of the module that trains it.
        studies: Name -> study.
        fine_tuning_epochs: For the attack.
    """

    name: str
    program: str
    studies: dict[str, Study]
    fine_tuning_epochs: int = 10


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
    from scripts.records import circumstances, result_file, write_json

    if config.study not in network.studies:
        raise ValueError(
            f"Invalid value for flag `study`. Expected one of {list(network.studies)}. Received: study={config.study!r}"
        )
    study = network.studies[config.study]
    path = result_file(config.results_dir, f"{network.name}_{config.study}")
    with pool_on_cores(config.num_workers) as pool:
        jobs = [
            pool.submit(_run, network, config, number, seed)
            for number in range(len(study.settings))
            for seed in study.seeds
        ]
        for number, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            row = job.result()
            print(f"{number} of {len(jobs)} done: seed {row['settings']['seed']}", flush=True)
    rows = [job.result() for job in jobs]
    days = [row["date"] for row in rows]
    result = {
        # Days, machines and versions of the runs, not of the moment in which they are put together.
        **circumstances(command_line(f"benchmarks.{network.name}", config)),
        "date": " to ".join(sorted({min(days), max(days)})),
        "hardware": _all_of([row["hardware"] for row in rows]),
        "versions": {name: _all_of([row["versions"][name] for row in rows]) for name in rows[0]["versions"]},
        "data": rows[0]["data"],
        "rows": rows,
    }
    write_json(path, result)
    return result


def _all_of(values: list[str]) -> str:
    return " and ".join(sorted(set(values)))


def _run(network: Network, config: Config, number: int, seed: int) -> dict[str, Any]:
    from scripts.records import write_json

    program = importlib.import_module(network.program)
    study = network.studies[config.study]
    runs = pathlib.Path(config.runs_dir) / network.name / config.study
    folder = runs / f"{seed}_{number}"
    settings = program.Config(
        output_dir=str(folder),
        data_dir=config.data_dir,
        seed=seed,
        resume=folder.exists(),
        unmarked_from=_twin(runs / f"{seed}_0") if study.share_twin and number > 0 else None,
        **study.settings[number],
    )
    path = folder / "row.json"
    if path.exists():
        row = dict(json.loads(path.read_text()))
        if row["settings"] != result_settings(settings):
            raise ValueError(
                f"This row was measured with other settings. Expected {result_settings(settings)}. "
                f"Received: {row['settings']} in {path}; remove the folder to measure it again"
            )
    else:
        row = _row(program.run(settings))
        write_json(path, row)
    if study.attacked and _attacks_of(row) != (PRUNED_FRACTIONS, network.fine_tuning_epochs):
        row |= _attacked(program, settings, network.fine_tuning_epochs)
        write_json(path, row)
    return row


def _attacks_of(row: dict[str, Any]) -> tuple[tuple[float, ...], int] | None:
    """The attacks that a row was measured under: pruned fractions, epochs of fine-tuning."""
    if "fine_tuned" not in row:
        return None
    return tuple(float(fraction) for fraction in row["pruned"]), row["fine_tuned"]["epochs"]


def _twin(folder: pathlib.Path) -> str:
    """Waits for the unmarked twin that another process is training."""
    while not (folder / "unmarked.keras").exists():
        time.sleep(5)
    return str(folder)


def _row(result: dict[str, Any]) -> dict[str, Any]:
    readings = result["verdict"]["readings"]
    return {
        "date": result["date"],
        "hardware": result["hardware"],
        "versions": result["versions"],
        "data": result["data"],
        "settings": result["settings"],
        "accuracy": result["accuracy"],
        "num_bits": result["verdict"]["num_bits"],
        "bit_error_rate": result["bit_error_rate"],
        "log10_p_value": {"marked": result["verdict"]["log10_p_value"]}
        | {name: control["log10_p_value"] for name, control in result["controls"].items()},
        # Over the carriers: the worst of each.
        "margin": {name: min(reading[f"{name}_margin"] for reading in readings) for name in ("smallest", "median")},
        "carriers": {
            reading["carrier"]: {"bit_error_rate": reading["bit_error_rate"], "median_margin": reading["median_margin"]}
            for reading in readings
        },
        "training_seconds": result["training_seconds"],
    }


def _attacked(program: Any, settings: Any, epochs: int) -> dict[str, Any]:
    import keras

    import deepsigns_tf as ds
    from scripts.fitting import accuracy, batches_of, compile_classifier

    folder = pathlib.Path(settings.output_dir)
    data = program.task(settings).data
    owner_key = ds.OwnerKey.load(folder / "owner.key")
    # Before the model is loaded: dropout layers draw their seeds then.
    keras.utils.set_random_seed(settings.seed)
    marked = keras.models.load_model(folder / "marked.keras")

    def outcome(model: keras.Model) -> dict[str, float]:
        verdict = ds.verify(model, owner_key)
        return {
            "accuracy": accuracy(model, data),
            "bit_error_rate": verdict.bit_error_rate,
            "log10_p_value": verdict.log10_p_value,
        }

    pruned = {str(fraction): outcome(ds.prune_weights(marked, fraction)) for fraction in PRUNED_FRACTIONS}
    # Fine-tuning: the task's loss alone, all training data, a fresh optimizer, a tenth of the learning rate, constant.
    compile_classifier(marked, 0.1 * settings.learning_rate, settings)
    batches, steps_per_epoch = batches_of(settings, data, range(settings.epochs, settings.epochs + epochs))()
    marked.fit(batches, epochs=epochs, steps_per_epoch=steps_per_epoch, shuffle=False, verbose=2)
    return {"pruned": pruned, "fine_tuned": {"epochs": epochs} | outcome(marked)}
