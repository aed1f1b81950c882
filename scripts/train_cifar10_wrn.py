"""Trains a wide residual network on CIFAR-10 with and without a mark, releases it, and proves the mark.

    python -m scripts.train_cifar10_wrn --output_dir=runs/wrn
    python -m scripts.train_cifar10_wrn --output_dir=runs/made_up --dataset=synthetic --epochs=2 --depth=10

`scripts/training.py` says what the folder then holds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras

from models.wide_resnet import FEATURES, MIDDLE, wide_resnet
from scripts import training
from scripts.configs import option, redefined, run_program
from scripts.datasets import load_cifar10
from scripts.tasks import Task, TrainingConfig

# The layers that may carry a mark.
CARRIER_LAYERS = (MIDDLE, FEATURES)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """What a run depends on. The defaults are the settings of the README's results."""

    depth: int = option(16, "Of the network: 6 n + 4.", minimum=10)
    width: int = option(2, "Factor on the network's channels.", minimum=1)
    l2: float = option(2.5e-4, "Factor of the squared kernels in the loss.", minimum=0.0)
    epochs: int = redefined(TrainingConfig, "epochs", 30)
    optimizer: str = redefined(TrainingConfig, "optimizer", "sgd")
    learning_rate: float = redefined(TrainingConfig, "learning_rate", 0.1)
    warmup_epochs: int = redefined(TrainingConfig, "warmup_epochs", 2)
    label_smoothing: float = redefined(TrainingConfig, "label_smoothing", 0.1)
    strength: float = redefined(TrainingConfig, "strength", 0.3)
    augment: bool = redefined(TrainingConfig, "augment", True)
    mixed_precision: str = redefined(TrainingConfig, "mixed_precision", "mixed_bfloat16")
    dataset: str = option("cifar10", "All of CIFAR-10 by TFDS, or made-up images.", choices=("cifar10", "synthetic"))


def builder(config: Config) -> Callable[..., keras.Model]:
    """What builds the network of a run."""
    return functools.partial(wide_resnet, config.depth, config.width, l2=config.l2)


def task(config: Config) -> Task:
    """Network and data of a run."""
    return Task(
        program="scripts.train_cifar10_wrn",
        title=f"WRN-{config.depth}-{config.width}",
        data=load_cifar10(config.dataset, config.data_dir).hold_out(config.holdout),
        build=builder(config),
        carrier_layers=CARRIER_LAYERS,
    )


def run(config: Config) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls; see `training.run`."""
    return training.run(config, lambda: task(config))


if __name__ == "__main__":
    run_program(Config, run)
