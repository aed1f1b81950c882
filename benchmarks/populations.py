"""Many small MNIST networks of one kind, marked or not: whom a detector must tell apart, and whom a suspect is compared with.

    python -m benchmarks.populations --kind=unmarked     # runs/populations/unmarked/000.keras ...

Each is the default program's network, trained with a seed and a key of its own, by its recipe in a quarter of the epochs, which spares
hours: after 5 epochs the units of unmarked ones match a marked network's no less than after 20 (BUILD.md), and marks are whole. Two
kinds of 20 epochs say what a detector sees after the whole recipe.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import re
from typing import Any

from scripts.configs import option, run_program
from scripts.cores import pool_on_cores

# What a detector tells all marks from that were trained as long, and whom a suspect is compared with.
UNMARKED = "unmarked"


@dataclasses.dataclass(frozen=True)
class Population:
    """Networks of one kind.

    Args:
        mark: What differs from the program's defaults. None: no mark at all.
        num_models: How many are measured with. Sixty say in which direction a kind of mark changes what is seen of it.
        epochs: Of training.
    """

    mark: dict[str, Any] | None
    num_models: int = 60
    epochs: int = 5


# Their places give them their seeds.
KINDS: dict[str, Population] = {
    "unmarked, 20 epochs": Population(None, epochs=20),
    # The interval of this one must be narrow.
    "default": Population({}, 120),
    "strength 1": Population({"strength": 1.0}),
    "strength 1000": Population({"strength": 1000.0}),
    "64 bits, strength 1": Population({"strength": 1.0, "carriers": "features:64"}),
    "learned centres": Population({"centres": "learned"}),
    "2 classes": Population({"num_classes": 2}),
    # A tenth sets the gate of a recovery, and 201 count.
    UNMARKED: Population(None, 223),
    "default, 20 epochs": Population({}, epochs=20),
    # Added when all marks above, but the one of 20 epochs, were known to be seen: how weak must one be?
    "strength 0.01": Population({"strength": 0.01}),
    "16 bits, strength 0.01": Population({"strength": 0.01, "carriers": "features:16"}),
    # Measures and changes nothing: what is seen of it is not the mark.
    "strength 0": Population({"strength": 0.0}),
}
# Seeds of the kinds are apart, and from those of all results.
_FIRST_SEED, _SEEDS_OF_A_KIND = 100_000, 1_000


@dataclasses.dataclass(frozen=True)
class Config:
    """Which models to train."""

    kind: str = option(UNMARKED, "How they are marked.", choices=tuple(KINDS))
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
    return pathlib.Path(runs_dir) / "populations" / re.sub("[^a-z0-9]+", "_", kind)


def files_of(runs_dir: str, kind: str) -> list[pathlib.Path]:
    """The networks of a kind that are measured with.

    Args:
        runs_dir: Folder of all runs.
        kind: One of `KINDS`.

    Raises:
        ValueError: If there are fewer.
    """
    wanted = KINDS[kind].num_models
    files = sorted(folder_of(runs_dir, kind).glob("[0-9]*.keras"))[:wanted]
    if len(files) < wanted:
        raise ValueError(
            f"There are too few networks of the kind {kind!r}. Expected {wanted}, from "
            f"`python -m benchmarks.populations --kind={kind!r}`. Received: {len(files)} in {folder_of(runs_dir, kind)}"
        )
    return files


def marks_of(runs_dir: str, kind: str) -> list[dict[str, float]]:
    """What their owners read in the networks of a marked kind.

    Args:
        runs_dir: Folder of all runs.
        kind: One of `KINDS`.

    Returns:
        For each network that is measured with `bit_error_rate` and `log10_p_value`.
    """
    return [json.loads(path.with_suffix(".json").read_text()) for path in files_of(runs_dir, kind)]


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
    settings = {
        "kind": config.kind,
        "epochs": _epochs(config),
        "mark": KINDS[config.kind].mark,
    }
    if (folder / "config.json").exists() and settings_of(config.runs_dir, config.kind) != settings:
        raise ValueError(
            f"This folder holds networks of other settings. Expected {settings_of(config.runs_dir, config.kind)}. "
            f"Received: {settings}, for {folder}"
        )
    write_json(folder / "config.json", settings)
    paths = [folder / f"{number:03}.keras" for number in range(config.num_models or KINDS[config.kind].num_models)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with pool_on_cores(config.num_workers) as pool:
        jobs = [pool.submit(_train, config, number) for number in missing]
        for job in tqdm(concurrent.futures.as_completed(jobs), total=len(jobs), desc=config.kind):
            job.result()
    return paths


def _epochs(config: Config) -> int:
    return config.epochs or KINDS[config.kind].epochs


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
    from scripts.records import write_json

    mark = KINDS[config.kind].mark
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
    path = folder_of(config.runs_dir, config.kind) / f"{number:03}.keras"
    if mark is None:
        return save_model(plain_copy(model, settings, task), path)
    # Learned centres are the mark's, and stay behind.
    plain, key = ds.release(model, key)
    verdict = ds.verify(plain, key)
    read = {"bit_error_rate": verdict.bit_error_rate, "log10_p_value": verdict.log10_p_value}
    write_json(path.with_suffix(".json"), read)
    return save_model(plain, path)


if __name__ == "__main__":
    run_program(Config, run)
