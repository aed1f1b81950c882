"""Many small MNIST networks of one kind, marked or not: whom a detector must tell apart, and whom a suspect is compared with.

    python -m benchmarks.populations --kind=unrelated    # runs/populations/unrelated/000.keras ...

Each is the default program's network, trained by its recipe with a seed and a key of its own. Of 223 unrelated ones a tenth sets the gate
of a recovery, and 201 count; they are trained for a quarter of the epochs, which spares hours: after 5 epochs their units match a
marked network's no less than after 20 (BUILD.md). A detector is asked to tell networks of the whole recipe apart. The interval of
that of the default mark must be narrow, so there are 120 on either side; of the other kinds 60, as many as say in which direction they
change it.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from typing import Any

from scripts.configs import option, run_program
from scripts.cores import pool_on_cores

# Whom a suspect is compared with; no kind for a detector.
UNRELATED = "unrelated"

# What differs from the program's defaults. None: no mark at all.
KINDS: dict[str, dict[str, Any] | None] = {
    "unmarked": None,
    "default": {},
    "strength 1": {"strength": 1.0},
    "strength 1000": {"strength": 1000.0},
    "64 bits, strength 1": {"strength": 1.0, "carriers": "features:64"},
    "learned centres": {"centres": "learned"},
    "2 classes": {"num_classes": 2},
    UNRELATED: None,
}
# Networks of each kind; of the other kinds 60.
NUM_MODELS = {"unmarked": 120, "default": 120, UNRELATED: 223}
# Of training; of the other kinds as many as the program has.
_EPOCHS = {UNRELATED: 5}
# Seeds of the kinds are apart, and from those of all results.
_FIRST_SEED, _SEEDS_OF_A_KIND = 100_000, 1_000


@dataclasses.dataclass(frozen=True)
class Config:
    """Which models to train."""

    kind: str = option("unmarked", "How they are marked, or whom they stand for.", choices=tuple(KINDS))
    num_models: int = option(
        0, "How many; 0: as many as are measured with.", minimum=0, maximum=_SEEDS_OF_A_KIND, shapes_result=False
    )
    epochs: int = option(0, "Passes over the training set for each; 0: as many as are measured with.", minimum=0)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    runs_dir: str = option("runs", "Folder for the models.", shapes_result=False)
    num_workers: int = option(2, "Models at a time, each on a core of its own.", minimum=1, shapes_result=False)


def folder_of(runs_dir: str, kind: str) -> pathlib.Path:
    """Where the models of a kind lie.

    Args:
        runs_dir: Folder of all runs.
        kind: One of `KINDS`.
    """
    return pathlib.Path(runs_dir) / "populations" / kind.replace(" ", "_")


def num_models(kind: str) -> int:
    """How many networks of a kind are measured with.

    Args:
        kind: One of `KINDS`.
    """
    return NUM_MODELS.get(kind, 60)


def files_of(runs_dir: str, kind: str) -> list[pathlib.Path]:
    """The networks of a kind that are measured with.

    Args:
        runs_dir: Folder of all runs.
        kind: One of `KINDS`.

    Raises:
        ValueError: If there are fewer.
    """
    files = sorted(folder_of(runs_dir, kind).glob("[0-9]*.keras"))[: num_models(kind)]
    if len(files) < num_models(kind):
        raise ValueError(
            f"There are too few networks of the kind {kind!r}. Expected {num_models(kind)}, from "
            f"`python -m benchmarks.populations --kind={kind!r}`. Received: {len(files)} in {folder_of(runs_dir, kind)}"
        )
    return files


def settings_of(runs_dir: str, kind: str) -> dict[str, Any]:
    """How the networks of a kind were trained.

    Args:
        runs_dir: Folder of all runs.
        kind: One of `KINDS`.
    """
    return dict(json.loads((folder_of(runs_dir, kind) / "config.json").read_text()))


def run(config: Config) -> list[pathlib.Path]:
    """Trains what is missing.

    Args:
        config: Which models.

    Returns:
        Their files.

    Raises:
        ValueError: If there are some of other settings.
    """
    from tqdm import tqdm

    from scripts.records import write_json

    folder = folder_of(config.runs_dir, config.kind)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"kind": config.kind, "epochs": _epochs(config), "program": KINDS[config.kind]}
    if (folder / "config.json").exists() and settings_of(config.runs_dir, config.kind) != settings:
        raise ValueError(
            f"This folder holds networks of other settings. Expected {settings_of(config.runs_dir, config.kind)}. "
            f"Received: {settings}, for {folder}"
        )
    write_json(folder / "config.json", settings)
    paths = [folder / f"{number:03}.keras" for number in range(config.num_models or num_models(config.kind))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with pool_on_cores(config.num_workers) as pool:
        jobs = [pool.submit(_train, config, number) for number in missing]
        for job in tqdm(concurrent.futures.as_completed(jobs), total=len(jobs), desc=config.kind):
            job.result()
    return paths


def _epochs(config: Config) -> int:
    from scripts import train_mnist_mlp as program

    return config.epochs or _EPOCHS.get(config.kind) or program.Config(output_dir="").epochs


@functools.cache
def _task(data_dir: str | None) -> Any:
    from scripts import train_mnist_mlp as program

    return program.task(program.Config(output_dir="", data_dir=data_dir))


def _train(config: Config, number: int) -> None:
    import deepsigns_tf as ds
    from scripts import train_mnist_mlp as program
    from scripts.fitting import batches_of, compile_classifier, cosine_schedule, fresh_start, plain_copy
    from scripts.folders import save_model
    from scripts.marking import carriers, marked_model

    mark = KINDS[config.kind]
    seed = _FIRST_SEED + _SEEDS_OF_A_KIND * list(KINDS).index(config.kind) + number
    settings = program.Config(output_dir="", epochs=_epochs(config), seed=seed, **(mark or {}))
    task = _task(config.data_dir)
    with fresh_start(settings):
        if mark is None:
            model = task.build()
        else:
            key_seed = hashlib.sha256(f"population {config.kind} {number}".encode()).digest()
            marks = tuple(carriers(settings, task.carrier_layers))
            key = ds.OwnerKey("population", marks, ds.DecisionRule(), key_seed)
            key = key.with_key_inputs(task.data.x_train, task.data.y_train, settings.num_key_inputs_per_class)
            model = marked_model(settings, task, key)
    compile_classifier(model, cosine_schedule(settings, task.data, settings.epochs, settings.learning_rate), settings)
    batches, steps_per_epoch = batches_of(settings, task.data, range(settings.epochs))()
    # Spares what Python does between steps, a seventh of the time.
    model.steps_per_execution = math.gcd(steps_per_epoch, 12)
    model.fit(batches, epochs=settings.epochs, steps_per_epoch=steps_per_epoch, shuffle=False, verbose=0)
    # Learned centres are the mark's, and stay behind.
    plain = plain_copy(model, settings, task) if mark is None else ds.release(model, key)[0]
    save_model(plain, folder_of(config.runs_dir, config.kind) / f"{number:03}.keras")


if __name__ == "__main__":
    run_program(Config, run)
