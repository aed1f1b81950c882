"""The MNIST rows of the README: accuracy, bit errors, pruning and fine-tuning, over seeds fixed beforehand.

    python -m benchmarks.mnist --study=default     # results/mnist_default.json

Every row is one run of `scripts.train_mnist_mlp`. A study that was interrupted goes on where it stopped.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
from typing import Any

from benchmarks.cores import pool_on_cores
from scripts.configs import option, result_settings, run_program


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that are compared with each other.

    Args:
        seeds: Fixed before any of them was run.
        settings: What differs from the program's defaults; a run for each and every seed.
        attacked: Whether the released models are pruned and fine-tuned too.
    """

    seeds: range
    settings: tuple[dict[str, Any], ...] = ({},)
    attacked: bool = True


STUDIES = {
    "default": Study(range(10)),
    "learned": Study(range(2), ({"centres": "learned"},)),
    # lambda_1 = lambda_2 = 0.01; the paper sums the loss over the 16 bits of one class, `strength` weighs their mean.
    "paper": Study(
        range(2),
        (
            {
                "centres": "learned",
                "clustering_strength": 0.01,
                "strength": 0.16,
                "projection": "gaussian",
                "num_classes": 1,
                "bits_per_class": 16,
            },
        ),
    ),
    "fine_tuned": Study(range(2), ({"fine_tune_epochs": 5},)),
    # The search for the default strength, on held-out training images.
    "strength": Study(
        range(100, 102), tuple({"strength": each, "holdout": 5000} for each in (0.3, 1.0, 3.0, 10.0)), attacked=False
    ),
}

PRUNED_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FINE_TUNING_EPOCHS = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Which rows to measure."""

    study: str = option("default", "Which setting.", choices=tuple(STUDIES))
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    runs_dir: str = option("runs/mnist", "Folder for the runs.", shapes_result=False)
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    num_workers: int = option(2, "Runs at a time, each on a core of its own.", minimum=1, shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Makes all runs of a study."""
    from scripts.configs import command_line
    from scripts.records import circumstances, write_json

    study = STUDIES[config.study]
    rows = []
    with pool_on_cores(config.num_workers) as pool:
        jobs = [
            pool.submit(_run, config, number, seed) for seed in study.seeds for number in range(len(study.settings))
        ]
        for job in concurrent.futures.as_completed(jobs):
            rows.append(job.result())
            print(f"{len(rows)} of {len(jobs)} done: seed {rows[-1]['settings']['seed']}", flush=True)
    rows.sort(key=lambda row: (row["settings"]["seed"], row["settings"]["strength"]))
    result = {**circumstances(command_line("benchmarks.mnist", config)), "data": rows[0]["data"], "rows": rows}
    # The days on which the runs were made, not that on which they were put together.
    result["date"] = " to ".join(sorted({min(row["date"] for row in rows), max(row["date"] for row in rows)}))
    write_json(pathlib.Path(config.results_dir) / f"mnist_{config.study}.json", result)
    return result


def _run(config: Config, number: int, seed: int) -> dict[str, Any]:
    from scripts import train_mnist_mlp
    from scripts.records import write_json

    study = STUDIES[config.study]
    folder = pathlib.Path(config.runs_dir) / config.study / f"{seed}_{number}"
    settings = train_mnist_mlp.Config(
        output_dir=str(folder),
        data_dir=config.data_dir,
        seed=seed,
        resume=folder.exists(),
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
        return row
    row = _row(train_mnist_mlp.run(settings))
    if study.attacked:
        row |= _attacked(settings, folder)
    write_json(path, row)
    return row


def _row(result: dict[str, Any]) -> dict[str, Any]:
    (reading,) = result["verdict"]["readings"]
    return {
        "date": result["date"],
        "data": result["data"],
        "settings": result["settings"],
        "accuracy": result["accuracy"],
        "num_bits": result["verdict"]["num_bits"],
        "bit_error_rate": result["bit_error_rate"],
        "log10_p_value": {"marked": result["verdict"]["log10_p_value"]}
        | {name: control["log10_p_value"] for name, control in result["controls"].items()},
        "margin": {"smallest": reading["smallest_margin"], "median": reading["median_margin"]},
        "training_seconds": result["training_seconds"],
    }


def _attacked(settings: Any, folder: pathlib.Path) -> dict[str, Any]:
    import keras

    import deepsigns_tf as ds
    from scripts.datasets import load_mnist
    from scripts.training import compile_classifier

    data = load_mnist("mnist", settings.data_dir)
    owner_key = ds.OwnerKey.load(folder / "owner.key")
    marked = keras.models.load_model(folder / "marked.keras")

    def outcome(model: keras.Model) -> dict[str, float]:
        verdict = ds.verify(model, owner_key)
        answers = model.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1)
        return {
            "accuracy": float((answers == data.y_test).mean()),
            "bit_error_rate": verdict.bit_error_rate,
            "log10_p_value": verdict.log10_p_value,
        }

    pruned = {str(fraction): outcome(ds.prune_weights(marked, fraction)) for fraction in PRUNED_FRACTIONS}
    # Fine-tuning: the task's loss alone, all training data, a fresh optimizer, a tenth of the learning rate, constant.
    keras.utils.set_random_seed(settings.seed)
    compile_classifier(marked, 0.1 * settings.learning_rate, settings.jit_compile)
    marked.fit(data.x_train, data.y_train, batch_size=settings.batch_size, epochs=FINE_TUNING_EPOCHS, verbose=2)
    return {"pruned": pruned, "fine_tuned": {"epochs": FINE_TUNING_EPOCHS} | outcome(marked)}


if __name__ == "__main__":
    run_program(Config, run)
