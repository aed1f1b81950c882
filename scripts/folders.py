"""The folder of a run: whose it is, and what is kept in it."""

import csv
import io
import json
import pathlib
import shutil
from collections.abc import Mapping, Set
from typing import Any

import keras

import deepsigns_tf as ds
from deepsigns_tf.files import write_atomically
from scripts.configs import default_settings, result_settings
from scripts.records import write_json

# What only the marked model depends on: runs that differ in nothing else have the same unmarked twin.
OF_THE_MARK = {
    "augment_triggers",
    "carriers",
    "centres",
    "clustering_strength",
    "fine_tune_epochs",
    "normalized",
    "num_classes",
    "num_key_inputs_per_class",
    "num_triggers",
    "num_triggers_per_batch",
    "pooling",
    "projection",
    "strength",
    "subclasses",
    "trigger_family",
    "unmarked_epochs",
}

# What changes nothing where there are no triggers.
_OF_TRIGGERS = {"augment_triggers", "num_triggers_per_batch", "trigger_family"}


def claim(folder: pathlib.Path, config: Any, program: str, num_parameters: int) -> None:
    """Makes the folder a run's own, or finds it to be so.

    Args:
        folder: The folder.
        config: The run's configuration.
        program: The module that trains.
        num_parameters: Of the model, for the space that it needs.

    Raises:
        ValueError: If it holds something else or cannot be made, or the disk is too full. Nothing is written then.
    """
    # Two models, a third where marking starts from one, and a checkpoint with two slots of an optimizer, written beside the last one;
    # less what a run that goes on has already.
    names = ["unmarked", *(["reference"] if config.unmarked_epochs or config.fine_tune_epochs else []), "marked"]
    num_to_come = sum(not (folder / f"{name}.keras").exists() for name in names)
    needed = 4 * num_parameters * (num_to_come + 2 * 3) if num_to_come else 0
    needed -= sum(path.stat().st_size for path in folder.glob("*.checkpoint"))
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"The disk is too full for this run. Expected {needed / 2**20:.1f} MiB for models and checkpoints. "
            f"Received: {free / 2**20:.1f} MiB free in output_dir={config.output_dir}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            "The run's folder cannot be made. Expected a path at which a folder is or can be. "
            f"Received: output_dir={config.output_dir}, {type(error).__name__}"
        ) from error
    path = folder / "config.json"
    # Not the hidden ones: a killed run may have left half of a file under its temporary name.
    held = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    if held and not config.resume:
        raise ValueError(
            "This folder is not empty; another run's owner key could be lost. Expected an empty folder, or `--resume` to go on. "
            f"Received: {held[:5]} in output_dir={config.output_dir}"
        )
    begun = [name for name in ("marked.checkpoint", "marked.keras") if name in held]
    if begun and "owner.key" not in held:
        raise ValueError(
            "The owner key of this run is gone. Expected owner.key beside the model that was being marked with it. "
            f"Received: {begun} in output_dir={config.output_dir}"
        )
    if path.exists():
        check_settings(folder, config, program)
    elif held:
        raise ValueError(
            "This folder holds no run to go on with. Expected the config.json of an interrupted run. "
            f"Received: {held[:5]} in output_dir={config.output_dir}"
        )
    write_json(path, _identity(config, program))


def _identity(config: Any, program: str) -> dict[str, Any]:
    """What a run is told by: its program and settings."""
    return {"program": program, **result_settings(config)}


def check_settings(folder: pathlib.Path, config: Any, program: str) -> None:
    """Refuses the folder of another run.

    Raises:
        ValueError: If it was claimed by a run with other settings.
    """
    recorded = json.loads((folder / "config.json").read_text())
    other = other_settings(config, program, recorded)
    if other:
        raise ValueError(
            f"This folder holds a run with other settings. Expected { {name: recorded.get(name) for name in other} }. "
            f"Received: {other}"
        )


def other_settings(
    config: Any, program: str, recorded: Mapping[str, Any], ignored: Set[str] = frozenset()
) -> dict[str, Any]:
    """The settings of a run that differ from another's.

    Args:
        config: The run's configuration.
        program: The module that trains.
        recorded: The other's `config.json`.
        ignored: Settings that may differ.
    """
    settings = _identity(config, program)
    # A setting that there was not yet had its default's effect.
    defaults = default_settings(type(config)) if recorded.get("program") == program else {}
    names = sorted((recorded.keys() | settings.keys()) - ignored)
    other = {name: settings.get(name) for name in names if settings.get(name) != recorded.get(name, defaults.get(name))}
    if settings.get("num_triggers") == 0 and "num_triggers" not in other:
        other = {name: value for name, value in other.items() if name not in _OF_TRIGGERS}
    return other


def keep_key(folder: pathlib.Path, new_key: ds.OwnerKey) -> ds.OwnerKey:
    """The run's owner key: the new one, written to the folder, unless it holds one already.

    Its commitment lies beside it, but for a key that waits for its triggers and will have nothing else.
    """
    path = folder / "owner.key"
    if not path.exists():
        new_key.save(path)
    key = ds.OwnerKey.load(path)
    if key.carriers or key.triggers is not None:
        write_atomically(folder / "commitment.txt", f"{key.commitment()}\n".encode())
    return key


def check_twin(config: Any, program: str) -> None:
    """Refuses to take an unmarked model of another task for this one's twin.

    Raises:
        ValueError: If `unmarked_from` is given, was not taken yet, and the run in that folder differs in more than the mark.
    """
    if config.unmarked_from is None or (pathlib.Path(config.output_dir) / "unmarked.keras").exists():
        return
    folder = pathlib.Path(config.unmarked_from)
    received = "without one"
    if all((folder / name).exists() for name in ("config.json", "unmarked.csv", "unmarked.keras")):
        recorded = json.loads((folder / "config.json").read_text())
        other = other_settings(config, program, recorded, OF_THE_MARK)
        received = f"whose run has { {name: recorded.get(name) for name in other} }" if other else ""
    if received:
        raise ValueError(
            "The unmarked twin cannot be taken from that folder. Expected a run with a finished unmarked.keras and the same settings "
            f"but the mark's. Received: unmarked_from={config.unmarked_from}, {received}"
        )


def take_twin(folder: pathlib.Path, other: pathlib.Path) -> None:
    """Copies another run's unmarked model and its history."""
    for name in ("unmarked.csv", "unmarked.keras"):
        write_atomically(folder / name, (other / name).read_bytes())


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a finished model as a whole; only then its checkpoint is no longer needed."""
    unfinished = path.with_name(f"unfinished_{path.name}")
    model.save(unfinished)
    unfinished.rename(path)
    path.with_suffix(".checkpoint").unlink(missing_ok=True)


def write_history(path: pathlib.Path, history: Mapping[str, list[float]], first_epoch: int = 0) -> None:
    """Writes one row an epoch."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["epoch", *history])
    writer.writerows([epoch, *values] for epoch, values in enumerate(zip(*history.values(), strict=True), first_epoch))
    write_atomically(path, text.getvalue().encode())


def read_history(path: pathlib.Path) -> dict[str, list[float]]:
    """Metric -> one value an epoch."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}
