"""Trains a recurrent network on IMDB reviews with and without a mark, releases it, and proves the mark.

    python -m scripts.train_imdb_lstm --output_dir=runs/lstm
    python -m scripts.train_imdb_lstm --output_dir=runs/made_up --dataset=synthetic --epochs=2

`scripts/training.py` says what the folder then holds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from models.imdb_lstm import FEATURES, POOLED, imdb_lstm
from scripts import training
from scripts.configs import option, redefined, run_program
from scripts.datasets import load_imdb
from scripts.tasks import Task, TrainingConfig

# The layers that may carry a mark.
CARRIER_LAYERS = (POOLED, FEATURES)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """What a run depends on. The defaults are the settings of the README's results."""

    num_tokens: int = option(20_000, "Size of the vocabulary.", minimum=3)
    sequence_length: int = option(400, "Tokens of a review; longer ones are cut.", minimum=1)
    bidirectional: bool = option(True, "Whether a second LSTM reads backwards.")
    epochs: int = redefined(TrainingConfig, "epochs", 3)
    label_smoothing: float = redefined(TrainingConfig, "label_smoothing", 0.1)
    subclasses: int = option(
        1,
        "Carrier classes of each label: its reviews in that many parts by length. Above 1, num_classes is twice that.",
        minimum=1,
    )
    strength: float = redefined(TrainingConfig, "strength", 0.3)
    num_classes: int = redefined(TrainingConfig, "num_classes", 2)
    carriers: str = redefined(TrainingConfig, "carriers", "features:128,pooled:64")
    trigger_family: str = redefined(TrainingConfig, "trigger_family", "tokens", ("tokens", "noise"))
    dataset: str = option(
        "imdb_reviews", "All labelled reviews by TFDS, or made-up ones.", choices=("imdb_reviews", "synthetic")
    )


def builder(config: Config) -> Callable[..., keras.Model]:
    """What builds the network of a run."""
    return functools.partial(
        imdb_lstm,
        num_tokens=config.num_tokens,
        sequence_length=config.sequence_length,
        bidirectional=config.bidirectional,
    )


def task(config: Config) -> Task:
    """Network and data of a run.

    Args:
        config: The flags.

    Raises:
        ValueError: If the carrier classes are not those that the labels are divided into, or the data is neither there nor to be
            downloaded.
    """
    if config.subclasses > 1 and config.num_classes != 2 * config.subclasses:
        raise ValueError(
            "These are not the classes that two labels are divided into. "
            f"Expected num_classes={2 * config.subclasses}, twice the subclasses. "
            f"Received: num_classes={config.num_classes}, subclasses={config.subclasses}"
        )
    data = load_imdb(config.dataset, config.num_tokens, config.sequence_length, config.data_dir).hold_out(
        config.holdout
    )
    # Lengths that divide the training reviews into parts of the same size.
    lengths = np.count_nonzero(data.x_train, axis=1)
    limits = np.quantile(lengths, np.arange(1, config.subclasses) / config.subclasses).astype(np.int32)

    def by_label_and_length(tokens: Any, labels: Any) -> Any:
        length = keras.ops.count_nonzero(tokens, axis=1)
        part = keras.ops.sum(keras.ops.cast(length[:, None] > limits[None], "int32"), axis=1)
        return config.subclasses * keras.ops.cast(labels, "int32") + part

    return Task(
        program="scripts.train_imdb_lstm",
        title=f"{'BiLSTM' if config.bidirectional else 'LSTM'}-512-2",
        data=data,
        build=builder(config),
        carrier_layers=CARRIER_LAYERS,
        carrier_labels=by_label_and_length if config.subclasses > 1 else None,
    )


def run(config: Config) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls; see `training.run`."""
    return training.run(config, lambda: task(config))


if __name__ == "__main__":
    run_program(Config, run)
