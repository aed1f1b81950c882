"""The MNIST rows of the README: accuracy, bit errors, pruning and fine-tuning, over seeds fixed beforehand.

    python -m benchmarks.mnist --study=default     # results/mnist_default.json

Every seed is one run of `scripts.train_mnist_mlp`. A study that was interrupted goes on where it stopped.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from absl import app

from scripts.configs import config_from_flags, define_flags, option

# Fixed before any of them was run.
SEEDS = {"default": range(10), "learned": range(2), "paper": range(2), "fine_tuned": range(2)}

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "learned": {"centres": "learned", "clustering_strength": 0.01},
    # lambda_1 = lambda_2 = 0.01; the paper sums the loss over the 16 bits of one class, `strength` weighs their mean.
    "paper": {
        "centres": "learned",
        "clustering_strength": 0.01,
        "strength": 0.16,
        "projection": "gaussian",
        "num_classes": 1,
        "bits_per_class": 16,
    },
    "fine_tuned": {"fine_tune_epochs": 5},
}

PRUNED_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FINE_TUNING_EPOCHS = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Which rows to measure."""

    study: str = option("default", "Which setting.", choices=tuple(SETTINGS))
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.")
    runs_dir: str = option("runs/mnist", "Folder for the runs.")
    results_dir: str = option("results", "Folder for the result.")
    num_workers: int = option(2, "Seeds at a time, each on a core of its own.", minimum=1)


def run(config: Config) -> dict[str, Any]:
    """Runs all seeds of a study."""
    from scripts.records import circumstances, write_json

    rows = []
    with concurrent.futures.ProcessPoolExecutor(
        config.num_workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        jobs = [
            pool.submit(_run_seed, config, seed, number % config.num_workers)
            for number, seed in enumerate(SEEDS[config.study])
        ]
        for job in concurrent.futures.as_completed(jobs):
            rows.append(job.result())
            print(f"seed {rows[-1]['seed']} done, {len(rows)} of {len(jobs)}", flush=True)
    result = {
        **circumstances(f"python -m benchmarks.mnist --study={config.study}"),
        "data": "mnist",
        "settings": SETTINGS[config.study],
        "rows": sorted(rows, key=lambda row: row["seed"]),
    }
    write_json(pathlib.Path(config.results_dir) / f"mnist_{config.study}.json", result)
    return result


def _run_seed(config: Config, seed: int, worker: int) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[worker % len(cores)]})
    from scripts import train_mnist_mlp
    from scripts.records import write_json

    folder = pathlib.Path(config.runs_dir) / config.study / str(seed)
    row_path = folder / "row.json"
    if not row_path.exists():
        _share_unmarked_twin(pathlib.Path(config.runs_dir) / "default" / str(seed), folder)
        settings = train_mnist_mlp.Config(
            output_dir=str(folder), data_dir=config.data_dir, seed=seed, resume=True, **SETTINGS[config.study]
        )
        write_json(row_path, _row(train_mnist_mlp.run(settings), settings, folder))
    return dict(json.loads(row_path.read_text()))


def _share_unmarked_twin(source: pathlib.Path, folder: pathlib.Path) -> None:
    """The same seed trains the same unmarked model in every study: once is enough."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("unmarked.csv", "unmarked.keras"):
        if (source / name).exists() and not (folder / name).exists():
            shutil.copy(source / name, folder / name)


def _row(result: dict[str, Any], settings: Any, folder: pathlib.Path) -> dict[str, Any]:
    import keras

    import deepsigns_tf as ds
    from scripts.datasets import load_mnist

    data = load_mnist("mnist", settings.data_dir)
    owner_key = ds.OwnerKey.load(folder / "owner.key")
    marked = keras.models.load_model(folder / "marked.keras")

    def attacked(model: keras.Model) -> dict[str, float]:
        verdict = ds.verify(model, owner_key)
        answers = model.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1)
        return {
            "accuracy": float((answers == data.y_test).mean()),
            "bit_error_rate": verdict.bit_error_rate,
            "log10_p_value": verdict.log10_p_value,
        }

    pruned = {str(fraction): attacked(ds.prune_weights(marked, fraction)) for fraction in PRUNED_FRACTIONS}
    # Fine-tuning: the task's loss alone, all training data, a fresh optimizer, a tenth of the learning rate, constant.
    keras.utils.set_random_seed(settings.seed)
    marked.compile(
        keras.optimizers.Adam(0.1 * settings.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=settings.jit_compile,
    )
    marked.fit(data.x_train, data.y_train, batch_size=settings.batch_size, epochs=FINE_TUNING_EPOCHS, verbose=2)
    (reading,) = result["verdict"]["readings"]
    return {
        "seed": settings.seed,
        "accuracy": result["accuracy"],
        "num_bits": result["verdict"]["num_bits"],
        "bit_error_rate": result["bit_error_rate"],
        "log10_p_value": {"marked": result["verdict"]["log10_p_value"]}
        | {name: control["log10_p_value"] for name, control in result["controls"].items()},
        "margin": {"smallest": reading["smallest_margin"], "median": reading["median_margin"]},
        "pruned": pruned,
        "fine_tuned": {"epochs": FINE_TUNING_EPOCHS} | attacked(marked),
        "seconds": result["seconds"],
    }


def main(argv: Sequence[str]) -> None:
    """Entry point of `app.run`."""
    del argv
    run(config_from_flags(Config))


if __name__ == "__main__":
    define_flags(Config)
    app.run(main)
