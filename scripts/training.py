"""What the training programs share: train with and without a mark, release, and prove the mark with its controls.

The folder of a run holds `owner.key` (secret), `commitment.txt` (to publish), `marked.keras` and `unmarked.keras` (plain
models), `marked.csv` and `unmarked.csv` (one row an epoch), `verdict.json`, `result.json` and `training.png`.
"""

import csv
import dataclasses
import io
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

import deepsigns_tf as ds
from deepsigns_tf.files import write_atomically
from deepsigns_tf.owner_key import KeyInputs
from scripts.checkpoints import Checkpoint
from scripts.configs import command_line, option, result_settings
from scripts.datasets import Dataset
from scripts.pictures import training_picture
from scripts.pipelines import training_batches
from scripts.records import circumstances, write_json

_JIT_COMPILE = {"auto": "auto", "on": True, "off": False}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The flags of every training program; each one's defaults are the settings of the README's results."""

    output_dir: str = option(dataclasses.MISSING, "Folder for everything the run writes.", shapes_result=False)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    holdout: int = option(
        0, "Evaluate on that many held-out training examples and leave the test set alone; 0: test set.", minimum=0
    )
    seed: int = option(0, "For initial weights, shuffling and dropout, of both models.", minimum=0)
    epochs: int = option(20, "Passes over the training set.", minimum=1)
    batch_size: int = option(128, "Examples a step.", minimum=1)
    learning_rate: float = option(1e-3, "Adam's first one, falling to 0 along a cosine.", minimum=0.0)
    jit_compile: str = option("auto", "Let XLA compile the step; auto: as Keras chooses.", choices=tuple(_JIT_COMPILE))
    strength: float = option(1.0, "Weight of the signature loss; 0 only measures.", minimum=0.0)
    centres: str = option(
        "batch", "Class means of the batch, or trainable ones as in the paper.", choices=("batch", "learned")
    )
    clustering_strength: float = option(0.01, "Weight of the clustering loss; with learned centres.", minimum=0.0)
    fine_tune_epochs: int = option(
        0, "Mark the trained unmarked model by that many epochs of fine-tuning; 0: from scratch.", minimum=0
    )
    num_key_inputs_per_class: int = option(64, "Key inputs of each carrier class.", minimum=1)
    resume: bool = option(False, "Go on with an interrupted run in the folder.", shapes_result=False)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is particular to a network.

    Args:
        program: The module that trains it, as `python -m` names it.
        title: What pictures call it.
        data: What it learns.
        carriers: The key's carriers, each named as the layer that plays it.
        build: Makes the network from regularizers by layer name and a model class; an unmarked one without arguments.
    """

    program: str
    title: str
    data: Dataset
    carriers: tuple[ds.Carrier, ...]
    build: Callable[..., keras.Model]


def run(config: TrainingConfig, task: Task) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls.

    Args:
        config: What to do.
        task: With what.

    Returns:
        What `result.json` holds.

    Raises:
        ValueError: If settings and data do not fit each other, or the folder holds another run. Nothing is written then.
    """
    folder = pathlib.Path(config.output_dir)
    if config.holdout:
        task = dataclasses.replace(task, data=task.data.hold_out(config.holdout))
    # Whatever is wrong with the settings shows here, before a folder is claimed or an hour of training is lost.
    new_key = _new_key(config, task)
    _marked_model(config, task, new_key)
    training_batches(task.data.x_train, task.data.y_train, config.batch_size, config.seed, range(config.epochs))

    _claim_folder(folder, config)
    owner_key = _owner_key(folder, new_key)
    print(f"Commitment, to publish or time-stamp before training: {owner_key.commitment()}", flush=True)
    unmarked = _unmarked(folder, config, task)
    marked, owner_key = _marked(folder, config, task, owner_key, unmarked)

    verdict = _verify_in_fresh_process(folder)
    wrong_key = _new_key(config, task).with_layers(owner_key.layers)
    controls = {"unmarked twin": ds.verify(unmarked, owner_key), "wrong key": ds.verify(marked, wrong_key)}
    histories = {name: _read_history(folder / f"{name}.csv") for name in ("marked", "unmarked")}
    result = {
        **circumstances(command_line(task.program, config)),
        "data": task.data.name,
        "settings": result_settings(config),
        "commitment": owner_key.commitment(),
        "accuracy": {"marked": _accuracy(marked, task.data), "unmarked": _accuracy(unmarked, task.data)},
        "bit_error_rate": {
            "key inputs": verdict["bit_error_rate"],
            "held out": _held_out_verdict(marked, owner_key, task.data).bit_error_rate,
        },
        "verdict": verdict,
        "controls": {name: control.to_dict() for name, control in controls.items()},
        "training_seconds": {name: round(sum(history["seconds"]), 1) for name, history in histories.items()},
    }
    write_json(folder / "result.json", result)
    title = f"{task.title} on {task.data.name}, {owner_key.num_bits} bits"
    training_picture(histories, [carrier.name for carrier in task.carriers], title, folder / "training.png")
    print(_table(result, folder))
    return result


def _new_key(config: TrainingConfig, task: Task) -> ds.OwnerKey:
    key = ds.OwnerKey.generate("deepsigns_tf example", task.carriers)
    return key.with_key_inputs(task.data.x_train, task.data.y_train, config.num_key_inputs_per_class)


def _claim_folder(folder: pathlib.Path, config: TrainingConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    settings = result_settings(config)
    held = sorted(each.name for each in folder.iterdir())
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
        recorded = json.loads(path.read_text())
        names = sorted(recorded.keys() | settings.keys())
        other = {name: settings.get(name) for name in names if settings.get(name) != recorded.get(name)}
        if other:
            raise ValueError(
                f"This folder holds a run with other settings. Expected { {name: recorded.get(name) for name in other} }. "
                f"Received: {other}"
            )
    elif held:
        raise ValueError(
            "This folder holds no run to go on with. Expected the config.json of an interrupted run. "
            f"Received: {held[:5]} in output_dir={config.output_dir}"
        )
    write_json(path, settings)


def _owner_key(folder: pathlib.Path, new_key: ds.OwnerKey) -> ds.OwnerKey:
    path = folder / "owner.key"
    if not path.exists():
        new_key.save(path)
    key = ds.OwnerKey.load(path)
    write_atomically(folder / "commitment.txt", f"{key.commitment()}\n".encode())
    return key


def _unmarked(folder: pathlib.Path, config: TrainingConfig, task: Task) -> keras.Model:
    path = folder / "unmarked.keras"
    if not path.exists():
        keras.utils.set_random_seed(config.seed)
        model = task.build()
        _fit(model, folder, "unmarked", config, task.data, config.epochs, config.learning_rate, [])
        twin = task.build()
        twin.set_weights(model.get_weights())
        _save(twin, path)
    return keras.models.load_model(path)


def _marked(
    folder: pathlib.Path, config: TrainingConfig, task: Task, owner_key: ds.OwnerKey, unmarked: keras.Model
) -> tuple[keras.Model, ds.OwnerKey]:
    path = folder / "marked.keras"
    if not path.exists():
        keras.utils.set_random_seed(config.seed)
        model = _marked_model(config, task, owner_key)
        epochs, learning_rate = config.epochs, config.learning_rate
        if config.fine_tune_epochs:
            for layer in unmarked.layers:
                model.get_layer(layer.name).set_weights(layer.get_weights())
            epochs, learning_rate = config.fine_tune_epochs, 0.1 * config.learning_rate
        _fit(model, folder, "marked", config, task.data, epochs, learning_rate, [ds.SignatureLogger(owner_key)])
        plain, released_key = ds.release(model, owner_key)
        # The key first: a released model whose key does not know its layers could not be resumed from.
        released_key.save(folder / "owner.key")
        _save(plain, path)
    return keras.models.load_model(path), ds.OwnerKey.load(folder / "owner.key")


def _marked_model(config: TrainingConfig, task: Task, owner_key: ds.OwnerKey) -> keras.Model:
    regularizers = {
        carrier.name: ds.SignatureRegularizer(
            owner_key,
            carrier.name,
            strength=config.strength,
            centres=config.centres,  # type: ignore[arg-type]
            clustering_strength=config.clustering_strength,
        )
        for carrier in task.carriers
    }
    return task.build(regularizers, ds.WatermarkedModel)


def _fit(
    model: keras.Model,
    folder: pathlib.Path,
    name: str,
    config: TrainingConfig,
    data: Dataset,
    epochs: int,
    learning_rate: float,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    print(f"\nTraining the {name} model on {data.name}", flush=True)
    num_steps = epochs * (len(data.x_train) // config.batch_size)
    compile_classifier(model, keras.optimizers.schedules.CosineDecay(learning_rate, num_steps), config.jit_compile)
    checkpoint = Checkpoint(folder / f"{name}.checkpoint")
    first_epoch = checkpoint.restore(model)
    batches, steps_per_epoch = training_batches(
        data.x_train, data.y_train, config.batch_size, config.seed, range(first_epoch, epochs)
    )
    if first_epoch < epochs:
        model.fit(
            batches,
            epochs=epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,  # The batches are.
            callbacks=[*callbacks, checkpoint],
            verbose="auto" if sys.stdout.isatty() else 2,
        )
    _write_history(folder / f"{name}.csv", checkpoint.history)


def compile_classifier(model: keras.Model, learning_rate: Any, jit_compile: str) -> None:
    """Compiles as every program does: Adam, cross-entropy from logits, accuracy.

    Args:
        model: Puts out logits.
        learning_rate: A number or a schedule.
        jit_compile: `"auto"`, `"on"` or `"off"`.
    """
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=_JIT_COMPILE[jit_compile],
    )


def _save(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a finished model as a whole; only then its checkpoint is no longer needed."""
    unfinished = path.with_name(f"unfinished_{path.name}")
    model.save(unfinished)
    unfinished.rename(path)
    path.with_suffix(".checkpoint").unlink(missing_ok=True)


def _verify_in_fresh_process(folder: pathlib.Path) -> dict[str, Any]:
    folder = folder.resolve()
    path = folder / "verdict.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "scripts.verify"]
    command += [f"--model={folder / 'marked.keras'}", f"--owner_key={folder / 'owner.key'}", f"--verdict={path}"]
    print("\nVerification of the released file in a fresh process", flush=True)
    status = subprocess.run(command, check=False, cwd=pathlib.Path(__file__).parent.parent).returncode
    if not path.exists():
        raise RuntimeError(
            "The verification of the released file gave no verdict. Expected `scripts.verify` to write verdict.json. "
            f"Received: exit status {status}"
        )
    return dict(json.loads(path.read_text()))


def _held_out_verdict(marked: keras.Model, owner_key: ds.OwnerKey, data: Dataset) -> ds.Verdict:
    """The mark as the test inputs show it: it does not sit in the key inputs alone."""
    return ds.verify(marked, dataclasses.replace(owner_key, key_inputs=KeyInputs(data.x_test, data.y_test)))


def _accuracy(model: keras.Model, data: Dataset) -> float:
    answers = model.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1)
    return float(np.mean(answers == data.y_test))


def _write_history(path: pathlib.Path, history: Mapping[str, list[float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["epoch", *history])
    writer.writerows([epoch, *values] for epoch, values in enumerate(zip(*history.values(), strict=True)))
    write_atomically(path, text.getvalue().encode())


def _read_history(path: pathlib.Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def _table(result: dict[str, Any], folder: pathlib.Path) -> str:
    rows = [
        ("marked model, owner's key", "marked", result["verdict"]),
        ("unmarked twin, owner's key", "unmarked", result["controls"]["unmarked twin"]),
        ("marked model, wrong key", "marked", result["controls"]["wrong key"]),
    ]
    lines = ["", f"{'':28}{'accuracy':>10}{'bit error rate':>16}{'log10 p':>10}{'training':>10}  verdict"]
    for name, model, verdict in rows:
        lines.append(
            f"{name:28}{100 * result['accuracy'][model]:9.2f}%{verdict['bit_error_rate']:16.4f}"
            f"{verdict['log10_p_value']:10.1f}{result['training_seconds'][model]:8.0f} s  "
            f"{'marked' if verdict['marked'] else 'not marked'}"
        )
    python = pathlib.Path(sys.executable)
    shown = python.relative_to(pathlib.Path.cwd()) if python.is_relative_to(pathlib.Path.cwd()) else python
    lines += [
        "",
        f"Bit error rate on held-out inputs {result['bit_error_rate']['held out']:.4f}. Picture: {folder / 'training.png'}",
        "Next: keep owner.key secret, have commitment.txt dated before you train, and check any model with",
        f"  {shown} -m scripts.verify --model={folder / 'marked.keras'} --owner_key={folder / 'owner.key'}",
    ]
    return "\n".join(lines)
