"""Trains the paper's CIFAR-10 CNN with and without a mark, releases it, and proves the mark.

    python -m scripts.train_cifar10_cnn --output_dir=runs/cnn
    python -m scripts.train_cifar10_cnn --output_dir=runs/made_up --dataset=synthetic --epochs=2

`scripts/training.py` says what the folder then holds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras

from models.cifar10_cnn import CONVOLUTIONS, FEATURES, POOLINGS, cifar10_cnn
from scripts import training
from scripts.configs import option, redefined, run_program
from scripts.datasets import load_cifar10
from scripts.tasks import Task, TrainingConfig

# The layers that may carry a mark.
CARRIER_LAYERS = (*CONVOLUTIONS, *POOLINGS, FEATURES)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """What a run depends on. The defaults are the settings of the README's results."""

    dropout: float = option(
        0.1, "Rate after each pooling; twice that after the hidden layer.", minimum=0.0, maximum=0.49
    )
    epochs: int = redefined(TrainingConfig, "epochs", 40)
    label_smoothing: float = redefined(TrainingConfig, "label_smoothing", 0.1)
    strength: float = redefined(TrainingConfig, "strength", 0.1)
    augment: bool = redefined(TrainingConfig, "augment", True)
    mixed_precision: str = redefined(TrainingConfig, "mixed_precision", "mixed_bfloat16")
    num_triggers_per_batch: int = redefined(TrainingConfig, "num_triggers_per_batch", 4)
    augment_triggers: bool = redefined(TrainingConfig, "augment_triggers", False)
    dataset: str = option("cifar10", "All of CIFAR-10 by TFDS, or made-up images.", choices=("cifar10", "synthetic"))


def builder(config: Config) -> Callable[..., keras.Model]:
    """What builds the network of a run."""
    return functools.partial(cifar10_cnn, dropout=config.dropout)


def task(config: Config) -> Task:
    """Network and data of a run."""
    return Task(
        program="scripts.train_cifar10_cnn",
        title="32C3-32C3-MP2-64C3-64C3-MP2-512-10",
        data=load_cifar10(config.dataset, config.data_dir).hold_out(config.holdout),
        build=builder(config),
        carrier_layers=CARRIER_LAYERS,
    )


def run(config: Config) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls; see `training.run`."""
    return training.run(config, lambda: task(config))


if __name__ == "__main__":
    run_program(Config, run)
