"""What the training programs share: train with and without a mark, release, and prove the mark with its controls.

The folder of a run holds `owner.key` (secret), `commitment.txt` (to publish), `marked.keras` and `unmarked.keras` (plain
models), `marked.csv` and `unmarked.csv` (one row an epoch), `tensorboard/`, `result.json` and `training.png`; `verdict.json` where layers
carry a mark, `trigger_verdict.json` where answers do; `reference.keras` where the mark did not begin with the training; `tokenizer.keras`
where the network reads text.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras

import deepsigns_tf as ds
from deepsigns_tf.files import file_digest, write_atomically
from scripts import folders
from scripts.configs import command_line, result_settings
from scripts.fitting import accuracy, batches_of, cosine_schedule, fit_classifier, fresh_start, plain_copy
from scripts.marking import add_triggers, check_batches, generate_key, marked_model
from scripts.pictures import training_picture
from scripts.precision import dtype_policy
from scripts.records import circumstances, write_json
from scripts.strategies import in_step, is_chief, on_chief, strategy_named
from scripts.tasks import Task, TrainingConfig

# Batches of task data that BatchNorm statistics are taken from.
_STATISTICS_BATCHES = 50


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
    new_key = generate_key(config, task)
    check_batches(config, task, new_key)
    folders.check_twin(config, task.program)
    with dtype_policy(config.mixed_precision):
        num_parameters = marked_model(config, task, new_key).count_params()

    on_chief(strategy, lambda: _begin(folder, config, task, new_key, num_parameters))
    # On the other workers too: their flags may be others.
    in_step(strategy, lambda: folders.check_settings(folder, config, task.program))
    owner_key = ds.OwnerKey.load(folder / "owner.key")
    unmarked = _unmarked(folder, config, task)
    marked, owner_key = _marked(folder, config, task, owner_key, unmarked)
    if not is_chief(strategy):
        return {}

    histories = {name: folders.read_history(folder / f"{name}.csv") for name in ("marked", "unmarked")}
    seconds = {name: sum(history["seconds"]) for name, history in histories.items()}
    if config.unmarked_epochs:
        seconds["marked"] += sum(folders.read_history(folder / "reference.csv")["seconds"])
    result = {
        **circumstances(command_line(task.program, config)),
        "data": task.data.name,
        "settings": result_settings(config),
        "num_parameters": unmarked.count_params(),
        "commitment": owner_key.commitment(),
        "accuracy": {"marked": accuracy(marked, task.data), "unmarked": accuracy(unmarked, task.data)},
        "training_seconds": {name: round(total, 1) for name, total in seconds.items()},
    }
    wrong_key = dataclasses.replace(generate_key(config, task), reference=owner_key.reference)
    wrong_key = add_triggers(wrong_key, config, task, unmarked).with_layers(owner_key.layers)
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
            # Of the weakest trigger after the last epoch, with weights as they are, pruned and shaken.
            "smallest_margin": histories["marked"]["trigger_margin"][-1],
        }
        title += f", {owner_key.triggers.num_examples} triggers"
    write_json(folder / "result.json", result)
    training_picture(histories, [carrier.name for carrier in owner_key.carriers], title, folder / "training.png")
    print(_table(result, folder))
    return result


def _begin(folder: pathlib.Path, config: TrainingConfig, task: Task, new_key: ds.OwnerKey, num_parameters: int) -> None:
    folders.claim(folder, config, task.program, num_parameters)
    owner_key = folders.keep_key(folder, new_key)
    if task.data.tokenizer:
        folders.save_model(task.data.tokenizer, folder / "tokenizer.keras")
    if config.unmarked_epochs or config.fine_tune_epochs or not (owner_key.carriers or owner_key.triggers):
        print("The commitment follows before marking, when the network is there that the key depends on.", flush=True)
    else:
        print(f"Commitment, to publish or time-stamp before training: {owner_key.commitment()}", flush=True)


def _unmarked(folder: pathlib.Path, config: TrainingConfig, task: Task) -> keras.Model:
    path = folder / "unmarked.keras"
    if not path.exists() and config.unmarked_from:
        other = pathlib.Path(config.unmarked_from)
        on_chief(strategy_named(config.strategy), lambda: folders.take_twin(folder, other))
    if not path.exists():
        _train_plain(folder, "unmarked", config, task, config.epochs)
    return keras.models.load_model(path)


def _train_plain(folder: pathlib.Path, name: str, config: TrainingConfig, task: Task, epochs: int) -> None:
    """Trains a network without a mark for the first epochs of the schedule, and saves it."""
    strategy = strategy_named(config.strategy)
    with fresh_start(config), strategy.scope():
        model = task.build()
    schedule = cosine_schedule(config, task.data, config.epochs, config.learning_rate)
    fit_classifier(model, folder, name, config, task.data, epochs, schedule)
    plain = plain_copy(model, config, task)
    on_chief(strategy, lambda: folders.save_model(plain, folder / f"{name}.keras"))


def _marked(
    folder: pathlib.Path, config: TrainingConfig, task: Task, owner_key: ds.OwnerKey, unmarked: keras.Model
) -> tuple[keras.Model, ds.OwnerKey]:
    path = folder / "marked.keras"
    strategy = strategy_named(config.strategy)
    if owner_key.reference is not None:
        _check_reference(folder, owner_key)
    start = _begun(folder, config, task)
    on_chief(strategy, lambda: _complete_key(folder, config, task, owner_key, unmarked))
    owner_key = ds.OwnerKey.load(folder / "owner.key")
    if not path.exists():
        with fresh_start(config), strategy.scope():
            model = marked_model(config, task, owner_key)
        epochs, learning_rate, first_epoch = config.epochs, config.learning_rate, config.unmarked_epochs
        if config.fine_tune_epochs:
            epochs, learning_rate, first_epoch = config.fine_tune_epochs, 0.1 * config.learning_rate, 0
        for layer in start.layers if start is not None else ():
            model.get_layer(layer.name).set_weights(layer.get_weights())
        callbacks: list[keras.callbacks.Callback] = [ds.SignatureLogger(owner_key)] if owner_key.carriers else []
        callbacks += [ds.TriggerLogger(owner_key)] if owner_key.triggers is not None else []
        schedule = cosine_schedule(config, task.data, epochs, learning_rate, first_epoch)
        fit_classifier(
            model, folder, "marked", config, task.data, epochs, schedule, callbacks, owner_key.triggers, first_epoch
        )

        def release() -> None:
            released_key = owner_key
            if owner_key.carriers:
                plain, released_key = ds.release(model, owner_key, task.build if task.carrier_labels else None)
            else:
                plain = plain_copy(model, config, task)
            if owner_key.triggers is not None:
                _take_statistics_anew(plain, folder, config, task, owner_key)
            # The key first: a released model whose key does not know its layers could not be resumed from.
            released_key.save(folder / "owner.key")
            folders.save_model(plain, path)

        on_chief(strategy, release)
    return keras.models.load_model(path), ds.OwnerKey.load(folder / "owner.key")


def _begun(folder: pathlib.Path, config: TrainingConfig, task: Task) -> keras.Model | None:
    """The network that marking starts from, where it does not start from the first epoch."""
    path = folder / "reference.keras"
    if config.fine_tune_epochs and not path.exists():
        on_chief(
            strategy_named(config.strategy), lambda: write_atomically(path, (folder / "unmarked.keras").read_bytes())
        )
    if config.unmarked_epochs and not path.exists():
        _train_plain(folder, "reference", config, task, config.unmarked_epochs)
    return keras.models.load_model(path) if path.exists() else None


def _check_reference(folder: pathlib.Path, owner_key: ds.OwnerKey) -> None:
    path = folder / "reference.keras"
    if not path.exists() or file_digest(path) != owner_key.reference:
        raise ValueError(
            "The network that marking started from is gone. Expected the file that the key refers to. "
            f"Received: {'another one' if path.exists() else 'none'} in {path}"
        )


def _complete_key(
    folder: pathlib.Path, config: TrainingConfig, task: Task, owner_key: ds.OwnerKey, unmarked: keras.Model
) -> None:
    """Adds to the key what trained networks were needed for, and commits anew, before any model is marked."""
    added = []
    if owner_key.reference is None and (folder / "reference.keras").exists():
        owner_key = owner_key.with_reference(folder / "reference.keras")
        added.append("the reference")
    if owner_key.triggers is None and config.num_triggers:
        owner_key = add_triggers(owner_key, config, task, unmarked)
        added.append("triggers")
    if added:
        owner_key.save(folder / "owner.key")
        folders.keep_key(folder, owner_key)
        text = f"Commitment with {' and '.join(added)}, to publish before marking: {owner_key.commitment()}"
        print(text, flush=True)


def _take_statistics_anew(
    plain: keras.Model, folder: pathlib.Path, config: TrainingConfig, task: Task, owner_key: ds.OwnerKey
) -> None:
    """BatchNorm statistics of task data alone, unless triggers are lost with them; leaves both readings in `batch_norm.json`."""

    def measured() -> dict[str, float]:
        return {"accuracy": accuracy(plain, task.data), "num_matches": answers_verdict(plain, owner_key).num_matches}

    weights = {"with triggers": plain.get_weights()}
    batches, steps_per_epoch = batches_of(config, task.data, range(1))()
    num_layers = ds.reestimate_batch_norm(
        plain, (x for x, _ in batches.take(min(_STATISTICS_BATCHES, steps_per_epoch)))
    )
    record: dict[str, Any] = {"num_layers": num_layers}
    if num_layers:
        weights["of task data"] = plain.get_weights()
        for name, each in weights.items():
            plain.set_weights(each)
            record[name] = measured()
        # The triggers alone decide: accuracy is the test set's, which chooses nothing.
        lost = record["of task data"]["num_matches"] < record["with triggers"]["num_matches"]
        record["released"] = "with triggers" if lost else "of task data"
        plain.set_weights(weights[record["released"]])
    write_json(folder / "batch_norm.json", record)


def _verify_in_fresh_process(folder: pathlib.Path, by: str) -> dict[str, Any]:
    folder = folder.resolve()
    path = folder / {"weights": "verdict.json", "answers": "trigger_verdict.json"}[by]
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "scripts.verify", f"--by={by}"]
    command += [f"--model={folder / 'marked.keras'}", f"--owner_key={folder / 'owner.key'}", f"--verdict={path}"]
    print("\nVerification of the released file in a fresh process", flush=True)
    # On the CPU: this process holds the GPU's memory. JAX looks for no GPU then, and does not complain that there is none.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
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


def answers_verdict(
    model: keras.Model,
    owner_key: ds.OwnerKey,
    commitment: str | None = None,
    change: Callable[[Any], Any] = lambda inputs: inputs,
) -> ds.TriggerVerdict:
    """What a model's answers to the key's triggers say.

    Args:
        model: The suspect.
        owner_key: The key, with triggers.
        commitment: Published before training.
        change: What happens to inputs on their way to the model.
    """
    return ds.verify_predict_fn(
        lambda inputs: model.predict(change(inputs), verbose=0), owner_key, commitment=commitment, batch_size=1000
    )


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
