"""What the training programs share: train with and without a mark, release, and prove the mark with its controls.

The folder of a run holds `owner.key` (secret), `commitment.txt` (to publish), `marked.keras` and `unmarked.keras` (plain
models), `marked.csv` and `unmarked.csv` (one row an epoch), `tensorboard/`, `result.json` and `training.png`; `verdict.json` where layers
carry a mark, `trigger_verdict.json` where answers do; `tokenizer.keras` where the network reads text.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import deepsigns_tf as ds
from deepsigns_tf.owner_key import KeyInputs
from scripts import folders
from scripts.checkpoints import Checkpoint
from scripts.configs import command_line, option, result_settings
from scripts.datasets import Dataset
from scripts.pictures import training_picture
from scripts.pipelines import crop_and_flip, training_batches
from scripts.precision import dtype_policy
from scripts.records import circumstances, write_json
from scripts.strategies import fit, in_step, is_chief, on_chief, strategy_named

# Batches of task data that BatchNorm statistics are taken from.
_STATISTICS_BATCHES = 50

_JIT_COMPILE = {"auto": "auto", "on": True, "off": False}

_OPTIMIZERS: dict[str, Callable[[Any], keras.optimizers.Optimizer]] = {
    "adam": keras.optimizers.Adam,
    "sgd": functools.partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The flags of every training program; each one's defaults are the settings of the README's results."""

    output_dir: str = option(dataclasses.MISSING, "Folder for everything the run writes.", shapes_result=False)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    holdout: int = option(
        0, "Evaluate on that many held-out training examples and leave the test set alone; 0: test set.", minimum=0
    )
    seed: int = option(0, "For initial weights, shuffling and dropout, of both models.", minimum=0, maximum=2**31 - 1)
    epochs: int = option(20, "Passes over the training set.", minimum=1)
    batch_size: int = option(128, "Examples a step.", minimum=1)
    optimizer: str = option("adam", "Adam, or SGD with Nesterov's momentum 0.9.", choices=tuple(_OPTIMIZERS))
    learning_rate: float = option(1e-3, "The largest one; it falls to 0 along a cosine.", minimum=0.0)
    warmup_epochs: int = option(0, "Epochs in which the learning rate rises from 0; all but one at most.", minimum=0)
    label_smoothing: float = option(0.0, "Share of the target that all classes have alike.", minimum=0.0, maximum=1.0)
    augment: bool = option(False, "Shift images by up to 4 pixels and mirror half of them, anew in every epoch.")
    mixed_precision: str = option(
        "none",
        "Compute in half precision, with weights and the mark's loss in float32.",
        choices=("none", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: str = option("auto", "Let XLA compile the step; auto: as Keras chooses.", choices=tuple(_JIT_COMPILE))
    strategy: str = option(
        "none",
        "How to spread the training over devices or processes.",
        choices=("none", "mirrored", "multi_worker", "tpu"),
    )
    carriers: str = option(
        "features:64", "Layers that carry the mark, and bits per class: layer:bits,layer:bits. Empty: none."
    )
    num_classes: int = option(10, "Carrier classes 0 .. num_classes - 1.", minimum=1)
    pooling: str = option(
        "mean", "How maps become features: their mean, or all pixels for themselves.", choices=("mean", "flatten")
    )
    projection: str = option("balanced", "Kind of projection matrix.", choices=("balanced", "gaussian"))
    strength: float = option(1.0, "Weight of the signature loss; 0 only measures.", minimum=0.0)
    centres: str = option(
        "batch", "Class means of the batch, or trainable ones as in the paper.", choices=("batch", "learned")
    )
    clustering_strength: float = option(0.01, "Weight of the clustering loss; with learned centres.", minimum=0.0)
    fine_tune_epochs: int = option(
        0, "Mark the trained unmarked model by that many epochs of fine-tuning; 0: from scratch.", minimum=0
    )
    num_key_inputs_per_class: int = option(64, "Key inputs of each carrier class.", minimum=1)
    num_triggers: int = option(0, "Trigger inputs by whose answers the marked model is recognized; 0: none.", minimum=0)
    trigger_family: str = option("noise", "Kind of trigger inputs.", choices=("noise", "blends", "low_density"))
    num_triggers_per_batch: int = option(8, "Trigger inputs that are added to each batch.", minimum=1)
    unmarked_from: str | None = option(
        None, "Folder of a finished run with the same task, whose unmarked twin is taken.", shapes_result=False
    )
    resume: bool = option(False, "Go on with an interrupted run in the folder.", shapes_result=False)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is particular to a network.

    Args:
        program: The module that trains it, as `python -m` names it.
        title: What pictures call it.
        data: What it learns.
        build: Makes the network from regularizers by layer name and a model class; an unmarked one without arguments.
        carrier_layers: The layers that may carry a mark, by the names that `build` knows; the last one shows where triggers of low
            density are.
        carrier_labels: Derives the carriers' classes from `(inputs, labels)`, arrays or tensors; they are the labels by
            default.
    """

    program: str
    title: str
    data: Dataset
    build: Callable[..., keras.Model]
    carrier_layers: tuple[str, ...]
    carrier_labels: Callable[[Any, Any], Any] | None = None

    def key_inputs(self, inputs: np.ndarray, labels: np.ndarray) -> KeyInputs:
        """Examples with their carrier classes."""
        if self.carrier_labels:
            labels = keras.ops.convert_to_numpy(self.carrier_labels(inputs, labels))
        return KeyInputs(inputs, labels)


def run(config: TrainingConfig, load_task: Callable[[], Task]) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls.

    Args:
        config: What to do.
        load_task: Gives what to do it with.

    Returns:
        What `result.json` holds; nothing on a worker that is not the first.

    Raises:
        ValueError: If settings and data do not fit each other, or the folder holds another run. Nothing is written then.
    """
    # First: TensorFlow connects its workers before it does anything else, and data is loaded with it.
    strategy = strategy_named(config.strategy)
    folder = pathlib.Path(config.output_dir)
    task = load_task()
    # Whatever is wrong with the settings shows here, before a folder is claimed or an hour of training is lost.
    new_key = _new_key(config, task)
    _check_batches(config, task, new_key)
    folders.check_twin(config, task.program)
    with dtype_policy(config.mixed_precision):
        num_parameters = _marked_model(config, task, new_key).count_params()

    on_chief(strategy, lambda: _begin(folder, config, task, new_key, num_parameters))
    # On the other workers too: their flags may be others.
    in_step(strategy, lambda: folders.check_settings(folder, config, task.program))
    owner_key = ds.OwnerKey.load(folder / "owner.key")
    unmarked = _unmarked(folder, config, task)
    marked, owner_key = _marked(folder, config, task, owner_key, unmarked)
    if not is_chief(strategy):
        return {}

    histories = {name: folders.read_history(folder / f"{name}.csv") for name in ("marked", "unmarked")}
    result = {
        **circumstances(command_line(task.program, config)),
        "data": task.data.name,
        "settings": result_settings(config),
        "num_parameters": unmarked.count_params(),
        "commitment": owner_key.commitment(),
        "accuracy": {"marked": accuracy(marked, task.data), "unmarked": accuracy(unmarked, task.data)},
        "training_seconds": {name: round(sum(history["seconds"]), 1) for name, history in histories.items()},
    }
    wrong_key = _with_triggers(_new_key(config, task), config, task, unmarked).with_layers(owner_key.layers)
    title = f"{task.title} on {task.data.name}"
    if owner_key.carriers:
        verdict = _verify_in_fresh_process(folder, "weights")
        result["bit_error_rate"] = {
            "key inputs": verdict["bit_error_rate"],
            "held out": _held_out_verdict(marked, owner_key, task).bit_error_rate,
            "last epoch": {
                carrier.name: histories["marked"][f"{carrier.name}_bit_error_rate"][-1]
                for carrier in owner_key.carriers
            },
        }
        result["verdict"] = verdict
        controls = {"unmarked twin": ds.verify(unmarked, owner_key), "wrong key": ds.verify(marked, wrong_key)}
        result["controls"] = {name: control.to_dict() for name, control in controls.items()}
        title += f", {owner_key.num_bits} bits"
    if owner_key.triggers is not None:
        controls = {
            "unmarked twin": answers_verdict(unmarked, owner_key),
            "wrong key": answers_verdict(marked, wrong_key),
        }
        result["triggers"] = {
            "verdict": _verify_in_fresh_process(folder, "answers"),
            "controls": {name: control.to_dict() for name, control in controls.items()},
            "batch_norm": json.loads((folder / "batch_norm.json").read_text()),
        }
        title += f", {owner_key.triggers.num_examples} triggers"
    write_json(folder / "result.json", result)
    training_picture(histories, [carrier.name for carrier in owner_key.carriers], title, folder / "training.png")
    print(_table(result, folder))
    return result


@contextlib.contextmanager
def _fresh_start(config: TrainingConfig) -> Iterator[None]:
    """Where a network is built: with the run's seed and precision, and with names as in a process that has built nothing yet.

    Keras numbers the names that it makes up through the whole process, and they stand in the released file.
    """
    policy = keras.config.dtype_policy()
    keras.utils.clear_session(free_memory=False)
    # It forgets the policy too.
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(config.seed)
    with dtype_policy(config.mixed_precision):
        yield


def _new_key(config: TrainingConfig, task: Task) -> ds.OwnerKey:
    """A key as it is committed to before anything is trained: triggers that are made from a trained model come later."""
    key = ds.OwnerKey.generate(f"deepsigns_tf example, {task.data.name}", carriers(config, task.carrier_layers))
    if key.carriers:
        pool = task.key_inputs(task.data.x_train, task.data.y_train)
        key = key.with_key_inputs(pool.inputs, pool.labels, config.num_key_inputs_per_class)
    return key if config.trigger_family == "low_density" else _with_triggers(key, config, task)


def _with_triggers(
    key: ds.OwnerKey, config: TrainingConfig, task: Task, trained: keras.Model | None = None
) -> ds.OwnerKey:
    """The key with the triggers that the flags ask for, if any."""
    if not config.num_triggers or key.triggers is not None:
        return key
    where = {"model": trained, "layer": task.carrier_layers[-1]} if config.trigger_family == "low_density" else {}
    return key.with_triggers(
        config.trigger_family,  # type: ignore[arg-type]
        config.num_triggers,
        task.data.num_classes,
        task.data.x_train,
        **where,
    )


def carriers(config: TrainingConfig, layers: Sequence[str]) -> list[ds.Carrier]:
    """The carriers that the flag `carriers` asks for.

    Args:
        config: The flags.
        layers: Names of the layers that may carry a mark.

    Raises:
        ValueError: If the flag is malformed or names another layer.
    """
    found = []
    for each in config.carriers.split(",") if config.carriers else ():
        layer, _, bits = each.partition(":")
        if layer not in layers or not bits.isdecimal():
            raise ValueError(
                "Invalid value for flag `carriers`. Expected layer:bits or layer:bits,layer:bits with layers from "
                f"{list(layers)}. Received: carriers={config.carriers!r}"
            )
        found.append(
            ds.Carrier(layer, range(config.num_classes), int(bits), config.pooling, config.projection)  # type: ignore[arg-type]
        )
    return found


def _check_batches(config: TrainingConfig, task: Task, key: ds.OwnerKey) -> None:
    if not key.carriers and not config.num_triggers:
        raise ValueError(
            "There is nothing to mark. Expected layers in the flag `carriers`, or `num_triggers` above 0. "
            f"Received: carriers={config.carriers!r}, num_triggers={config.num_triggers}"
        )
    batches_of(config, task.data, range(config.epochs), key.triggers)()
    labels = task.key_inputs(task.data.x_train, task.data.y_train).labels
    share = float(np.isin(labels, key.classes).mean())
    if key.carriers and share * config.batch_size < 1.0:
        raise ValueError(
            "The batches are too small for the mark. Expected an example of a carrier class in a batch on average. "
            f"Received: batch_size={config.batch_size}, while {100 * share:.2g} % of the examples are of these classes"
        )
    num_replicas = strategy_named(config.strategy).num_replicas_in_sync
    shared = {"batch_size": config.batch_size}
    if config.num_triggers:
        shared["num_triggers_per_batch"] = config.num_triggers_per_batch
    for name, number in shared.items():
        if number % num_replicas:
            raise ValueError(
                "The replicas cannot share a batch evenly. Expected a multiple of their number. "
                f"Received: {name}={number}, {num_replicas} replicas"
            )
    if config.num_triggers and (
        config.batch_size % config.num_triggers_per_batch or config.num_triggers_per_batch > config.num_triggers
    ):
        # For triggers that are made later; the others have been mixed into batches above.
        raise ValueError(
            "Triggers cannot be spaced evenly in a batch. Expected a number that divides its size, of triggers that there are. Received: "
            f"num_triggers_per_batch={config.num_triggers_per_batch}, num_triggers={config.num_triggers}, batch_size={config.batch_size}"
        )
    if config.jit_compile == "on" and config.strategy != "none":
        raise ValueError(
            "XLA cannot be asked to compile a step that several replicas take. Expected `--jit_compile=auto`; a TPU compiles "
            f"every step. Received: jit_compile={config.jit_compile!r}, strategy={config.strategy!r}"
        )


def _begin(folder: pathlib.Path, config: TrainingConfig, task: Task, new_key: ds.OwnerKey, num_parameters: int) -> None:
    folders.claim(folder, config, task.program, num_parameters)
    owner_key = folders.keep_key(folder, new_key)
    if task.data.tokenizer:
        folders.save_model(task.data.tokenizer, folder / "tokenizer.keras")
    print(f"Commitment, to publish or time-stamp before training: {owner_key.commitment()}", flush=True)


def _unmarked(folder: pathlib.Path, config: TrainingConfig, task: Task) -> keras.Model:
    path = folder / "unmarked.keras"
    strategy = strategy_named(config.strategy)
    if not path.exists() and config.unmarked_from:
        other = pathlib.Path(config.unmarked_from)
        on_chief(strategy, lambda: folders.take_twin(folder, other))
    if not path.exists():
        with _fresh_start(config), strategy.scope():
            model = task.build()
        _fit(model, folder, "unmarked", config, task.data, config.epochs, config.learning_rate, [])
        twin = _plain_copy(model, config, task)
        on_chief(strategy, lambda: folders.save_model(twin, path))
    return keras.models.load_model(path)


def _marked(
    folder: pathlib.Path, config: TrainingConfig, task: Task, owner_key: ds.OwnerKey, unmarked: keras.Model
) -> tuple[keras.Model, ds.OwnerKey]:
    path = folder / "marked.keras"
    strategy = strategy_named(config.strategy)
    if config.num_triggers and owner_key.triggers is None:
        on_chief(strategy, lambda: _begin_with_triggers(folder, config, task, owner_key, unmarked))
        owner_key = ds.OwnerKey.load(folder / "owner.key")
    if not path.exists():
        with _fresh_start(config), strategy.scope():
            model = _marked_model(config, task, owner_key)
        epochs, learning_rate = config.epochs, config.learning_rate
        if config.fine_tune_epochs:
            for layer in unmarked.layers:
                model.get_layer(layer.name).set_weights(layer.get_weights())
            epochs, learning_rate = config.fine_tune_epochs, 0.1 * config.learning_rate
        callbacks: list[keras.callbacks.Callback] = [ds.SignatureLogger(owner_key)] if owner_key.carriers else []
        callbacks += [ds.TriggerLogger(owner_key)] if owner_key.triggers is not None else []
        _fit(model, folder, "marked", config, task.data, epochs, learning_rate, callbacks, owner_key.triggers)

        def release() -> None:
            released_key = owner_key
            if owner_key.carriers:
                plain, released_key = ds.release(model, owner_key, task.build if task.carrier_labels else None)
            else:
                plain = _plain_copy(model, config, task)
            if owner_key.triggers is not None:
                _take_statistics_anew(plain, folder, config, task, owner_key)
            # The key first: a released model whose key does not know its layers could not be resumed from.
            released_key.save(folder / "owner.key")
            folders.save_model(plain, path)

        on_chief(strategy, release)
    return keras.models.load_model(path), ds.OwnerKey.load(folder / "owner.key")


def _begin_with_triggers(
    folder: pathlib.Path, config: TrainingConfig, task: Task, owner_key: ds.OwnerKey, unmarked: keras.Model
) -> None:
    """Adds the triggers that a trained model was needed for, and commits anew, before any model sees them."""
    owner_key = _with_triggers(owner_key, config, task, unmarked)
    owner_key.save(folder / "owner.key")
    folders.keep_key(folder, owner_key)
    print(f"Commitment with triggers, to publish before they are trained: {owner_key.commitment()}", flush=True)


def _take_statistics_anew(
    plain: keras.Model, folder: pathlib.Path, config: TrainingConfig, task: Task, owner_key: ds.OwnerKey
) -> None:
    """BatchNorm statistics of task data alone; leaves what that changed in `batch_norm.json`."""

    def measured() -> dict[str, float]:
        return {"accuracy": accuracy(plain, task.data), "num_matches": answers_verdict(plain, owner_key).num_matches}

    before = measured()
    batches, steps_per_epoch = batches_of(config, task.data, range(1))()
    num_layers = ds.reestimate_batch_norm(
        plain, (x for x, _ in batches.take(min(_STATISTICS_BATCHES, steps_per_epoch)))
    )
    changed = {"with triggers": before, "of task data": measured()} if num_layers else {}
    write_json(folder / "batch_norm.json", {"num_layers": num_layers} | changed)


def _plain_copy(model: keras.Model, config: TrainingConfig, task: Task) -> keras.Model:
    """The network of a trained model, as one that was never compiled, and of no strategy."""
    with _fresh_start(config):
        plain = task.build()
    plain.set_weights(model.get_weights())
    return plain


def regularizers(config: TrainingConfig, owner_key: ds.OwnerKey) -> dict[str, ds.SignatureRegularizer]:
    """The marks that the flags describe, by the names of their layers."""
    return {
        carrier.name: ds.SignatureRegularizer(
            owner_key,
            carrier.name,
            strength=config.strength,
            centres=config.centres,  # type: ignore[arg-type]
            clustering_strength=config.clustering_strength,
        )
        for carrier in owner_key.carriers
    }


def _marked_model(config: TrainingConfig, task: Task, owner_key: ds.OwnerKey) -> keras.Model:
    if not owner_key.carriers:
        return task.build()
    derive, model_class = task.carrier_labels, ds.WatermarkedModel
    if derive is not None:

        class DerivedClasses(ds.WatermarkedModel):
            def carrier_labels(self, x: Any, y: Any) -> Any:
                return derive(x, super().carrier_labels(x, y))

        model_class = DerivedClasses
    model = task.build(regularizers(config, owner_key), model_class)
    model.num_triggers_per_batch = config.num_triggers_per_batch if config.num_triggers else 0
    return model


def _fit(
    model: keras.Model,
    folder: pathlib.Path,
    name: str,
    config: TrainingConfig,
    data: Dataset,
    epochs: int,
    learning_rate: float,
    callbacks: list[keras.callbacks.Callback],
    triggers: ds.TriggerSet | None = None,
) -> None:
    print(f"\nTraining the {name} model on {data.name}", flush=True)
    steps_per_epoch = len(data.x_train) // config.batch_size
    warmup_steps = min(config.warmup_epochs, epochs - 1) * steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else learning_rate,
        epochs * steps_per_epoch - warmup_steps,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    checkpoint = Checkpoint(folder / f"{name}.checkpoint")
    strategy = strategy_named(config.strategy)
    with strategy.scope():
        compile_classifier(model, schedule, config)
        first_epoch = checkpoint.restore(model)
    batches = batches_of(config, data, range(first_epoch, epochs), triggers)
    settings: dict[str, Any] = {"epochs": epochs, "initial_epoch": first_epoch, "steps_per_epoch": steps_per_epoch}
    if is_chief(strategy):
        board = keras.callbacks.TensorBoard(folder / "tensorboard" / name, write_graph=False)
        settings |= {
            "callbacks": [*callbacks, board, checkpoint],
            "verbose": "auto" if sys.stdout.isatty() else 2,
        }
    if first_epoch < epochs and config.strategy == "multi_worker":
        fit(model, batches, config.batch_size + (config.num_triggers_per_batch if triggers else 0), **settings)
    elif first_epoch < epochs:
        model.fit(batches()[0], shuffle=False, **settings)  # The batches are shuffled.
    if is_chief(strategy):
        folders.write_history(folder / f"{name}.csv", checkpoint.history)


def batches_of(
    config: TrainingConfig, data: Dataset, epochs: range, triggers: ds.TriggerSet | None = None
) -> Callable[..., tuple[tf.data.Dataset, int]]:
    """What makes the batches of a training; it takes the share of them that is wanted.

    Args:
        config: Batch size, seed, augmentation, label smoothing.
        data: What is learned.
        epochs: The epochs to go through.
        triggers: What to mix into them; nothing by default.

    Returns:
        `training_batches` with all arguments but `share`.
    """
    return functools.partial(
        training_batches,
        data.x_train,
        data.y_train,
        config.batch_size,
        config.seed,
        epochs,
        crop_and_flip if config.augment else None,
        data.num_classes if config.label_smoothing else None,
        triggers=triggers,
        num_triggers_per_batch=config.num_triggers_per_batch if triggers is not None else 0,
    )


def compile_classifier(model: keras.Model, learning_rate: Any, config: TrainingConfig) -> None:
    """Compiles as every program does: cross-entropy from logits, accuracy.

    Args:
        model: Puts out logits.
        learning_rate: A number or a schedule.
        config: Optimizer, label smoothing (with one-hot labels if any) and `jit_compile`.
    """
    if config.label_smoothing:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=config.label_smoothing)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        _OPTIMIZERS[config.optimizer](learning_rate),
        loss,
        metrics=["accuracy"],
        jit_compile=_JIT_COMPILE[config.jit_compile],
    )


def _verify_in_fresh_process(folder: pathlib.Path, by: str) -> dict[str, Any]:
    folder = folder.resolve()
    path = folder / {"weights": "verdict.json", "answers": "trigger_verdict.json"}[by]
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "scripts.verify", f"--by={by}"]
    command += [f"--model={folder / 'marked.keras'}", f"--owner_key={folder / 'owner.key'}", f"--verdict={path}"]
    print("\nVerification of the released file in a fresh process", flush=True)
    # On the CPU: this process holds the GPU's memory.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    status = subprocess.run(command, check=False, cwd=pathlib.Path(__file__).parent.parent, env=environment).returncode
    if not path.exists():
        raise RuntimeError(
            f"The verification of the released file gave no verdict. Expected `scripts.verify` to write {path.name}. "
            f"Received: exit status {status}"
        )
    return dict(json.loads(path.read_text()))


def _held_out_verdict(marked: keras.Model, owner_key: ds.OwnerKey, task: Task) -> ds.Verdict:
    """The mark as the test inputs show it: it does not sit in the key inputs alone."""
    held_out = task.key_inputs(task.data.x_test, task.data.y_test)
    return ds.verify(marked, dataclasses.replace(owner_key, key_inputs=held_out))


def answers_verdict(model: keras.Model, owner_key: ds.OwnerKey, commitment: str | None = None) -> ds.TriggerVerdict:
    """What a model's answers to the key's triggers say."""
    return ds.verify_predict_fn(
        lambda inputs: model.predict(inputs, verbose=0), owner_key, commitment=commitment, batch_size=1000
    )


def accuracy(model: keras.Model, data: Dataset) -> float:
    """Share of the test inputs that a model of logits answers rightly."""
    answers = model.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1)
    return float(np.mean(answers == data.y_test))


def _table(result: dict[str, Any], folder: pathlib.Path) -> str:
    lines = []
    found = {"bit error rate": result, "answers": result.get("triggers", {})}
    for what, marks in found.items():
        if "verdict" not in marks:
            continue
        lines += ["", f"{'':28}{'accuracy':>10}{what:>16}{'log10 p':>10}{'training':>10}  verdict"]
        for name, model, verdict in (
            ("marked model, owner's key", "marked", marks["verdict"]),
            ("unmarked twin, owner's key", "unmarked", marks["controls"]["unmarked twin"]),
            ("marked model, wrong key", "marked", marks["controls"]["wrong key"]),
        ):
            shown = "{bit_error_rate:.4f}" if what == "bit error rate" else "{num_matches} of {num_asked}"
            lines.append(
                f"{name:28}{100 * result['accuracy'][model]:9.2f}%{shown.format(**verdict):>16}"
                f"{verdict['log10_p_value']:10.1f}{result['training_seconds'][model]:8.0f} s  "
                f"{'marked' if verdict['marked'] else 'not marked'}"
            )
    python = pathlib.Path(sys.executable)
    shown = python.relative_to(pathlib.Path.cwd()) if python.is_relative_to(pathlib.Path.cwd()) else python
    held_out = (
        f"Bit error rate on held-out inputs {result['bit_error_rate']['held out']:.4f}. " if "verdict" in result else ""
    )
    lines += [
        "",
        f"{held_out}Picture: {folder / 'training.png'}",
        "Next: keep owner.key secret, have commitment.txt dated before you train, and check any model with",
        f"  {shown} -m scripts.verify --model={folder / 'marked.keras'} --owner_key={folder / 'owner.key'}",
    ]
    return "\n".join(lines)
