"""How every training program builds, compiles, trains and evaluates a network."""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import deepsigns_tf as ds
from deepsigns_tf.attacks.recipes import Recipe
from scripts import folders
from scripts.checkpoints import Checkpoint
from scripts.datasets import Dataset
from scripts.pipelines import crop_and_flip, training_batches
from scripts.precision import dtype_policy
from scripts.strategies import fit, is_chief, strategy_named
from scripts.tasks import Task, TrainingConfig

_JIT_COMPILE = {"auto": "auto", "on": True, "off": False}

# By the flag's name.
OPTIMIZERS: dict[str, Callable[[Any], keras.optimizers.Optimizer]] = {
    "adam": keras.optimizers.Adam,
    "sgd": functools.partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
}


@contextlib.contextmanager
def fresh_start(config: TrainingConfig) -> Iterator[None]:
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


def plain_copy(model: keras.Model, config: TrainingConfig, task: Task) -> keras.Model:
    """The network of a trained model, as one that was never compiled, and of no strategy."""
    with fresh_start(config):
        plain = task.build()
    plain.set_weights(model.get_weights())
    return plain


def cosine_schedule(config: TrainingConfig, data: Dataset, epochs: int, largest: float, first_epoch: int = 0) -> Any:
    """The learning rate of a training: it falls to 0 along a cosine, after rising from 0 for `config.warmup_epochs`.

    Args:
        config: Batch size, warm-up.
        data: What is learned.
        epochs: Passes over it.
        largest: The largest learning rate.
        first_epoch: Of an optimizer that takes over from another.
    """
    steps_per_epoch = _steps_per_epoch(config, data)
    warmup_steps = min(config.warmup_epochs, epochs - 1) * steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else largest,
        epochs * steps_per_epoch - warmup_steps,
        warmup_target=largest if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    return _TakenOver(schedule, first_epoch * steps_per_epoch) if first_epoch else schedule


class _TakenOver(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule from a later step on."""

    def __init__(self, schedule: Any, num_steps: int) -> None:
        super().__init__()
        self._schedule, self._num_steps = schedule, num_steps

    def __call__(self, step: Any) -> Any:
        return self._schedule(step + self._num_steps)


def recipe_of(config: Any, epochs: int, learning_rate: float, backup_dir: pathlib.Path) -> Recipe:
    """How a thief trains who goes on with an owner's training.

    Args:
        config: Optimizer, batch size, label smoothing and augmentation of the owner's.
        epochs: Passes over the data.
        learning_rate: Constant.
        backup_dir: From which an interrupted training goes on.
    """
    return Recipe(
        epochs,
        learning_rate,
        optimizer=OPTIMIZERS[config.optimizer],
        batch_size=config.batch_size,
        label_smoothing=config.label_smoothing,
        augmentation=crop_and_flip if config.augment else None,
        backup_dir=str(backup_dir),
    )


def _steps_per_epoch(config: TrainingConfig, data: Dataset) -> int:
    return len(data.x_train) // config.batch_size


def fit_classifier(
    model: keras.Model,
    folder: pathlib.Path,
    name: str,
    config: TrainingConfig,
    data: Dataset,
    epochs: int,
    learning_rate: Any,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    triggers: ds.TriggerSet | None = None,
    first_epoch: int = 0,
) -> None:
    """Trains a network, from its last finished epoch where a training was interrupted.

    Args:
        model: Any network of the task.
        folder: Keeps `NAME.checkpoint`, `NAME.csv` with one row an epoch, and `tensorboard/NAME`.
        name: Of the training.
        config: How to train.
        data: What to learn.
        epochs: Passes over it.
        learning_rate: A number, or a schedule over steps.
        callbacks: What to call on the way, beside TensorBoard and the checkpoint.
        triggers: What to mix into the batches; nothing by default.
        first_epoch: Of a training that takes over from another.
    """
    print(f"\nTraining the {name} model on {data.name}", flush=True)
    steps_per_epoch = _steps_per_epoch(config, data)
    checkpoint = Checkpoint(folder / f"{name}.checkpoint")
    strategy = strategy_named(config.strategy)
    with strategy.scope():
        compile_classifier(model, learning_rate, config)
        next_epoch = first_epoch + checkpoint.restore(model)
    batches = batches_of(config, data, range(next_epoch, epochs), triggers)
    settings: dict[str, Any] = {"epochs": epochs, "initial_epoch": next_epoch, "steps_per_epoch": steps_per_epoch}
    if is_chief(strategy):
        board = keras.callbacks.TensorBoard(folder / "tensorboard" / name, write_graph=False)
        settings |= {
            "callbacks": [*callbacks, board, checkpoint],
            "verbose": "auto" if sys.stdout.isatty() else 2,
        }
    if next_epoch < epochs and config.strategy == "multi_worker":
        fit(model, batches, config.batch_size + (config.num_triggers_per_batch if triggers else 0), **settings)
    elif next_epoch < epochs:
        model.fit(batches()[0], shuffle=False, **settings)  # The batches are shuffled.
    if is_chief(strategy):
        folders.write_history(folder / f"{name}.csv", checkpoint.history, first_epoch)


def batches_of(
    config: TrainingConfig, data: Dataset, epochs: range, triggers: ds.TriggerSet | None = None
) -> Callable[..., tuple[tf.data.Dataset, int]]:
    """What makes the batches of a training; it takes the share of them that is wanted.

    Args:
        config: Batch size, seed, augmentation, label smoothing, triggers a batch.
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
        augment_triggers=config.augment_triggers,
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
        OPTIMIZERS[config.optimizer](learning_rate),
        loss,
        metrics=["accuracy"],
        jit_compile=_JIT_COMPILE[config.jit_compile],
    )


def accuracy(model: keras.Model, data: Dataset) -> float:
    """Share of the test inputs that a model of logits answers rightly."""
    answers = model.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1)
    return float(np.mean(answers == data.y_test))
