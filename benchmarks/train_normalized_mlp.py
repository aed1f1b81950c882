"""The MNIST program, with a mark whose loss is on normalised class means: studied here, and no option of the package.

python -m benchmarks.train_normalized_mlp --normalized --output_dir=runs/normalized
"""

import dataclasses
from typing import Any

import keras

from deepsigns_tf.regularizers import SignatureRegularizer
from scripts import train_mnist_mlp, training
from scripts.configs import option, run_program
from scripts.tasks import Task

_TINY = 1e-6


@keras.saving.register_keras_serializable(package="benchmarks")
class NormalizedSignatureRegularizer(SignatureRegularizer):
    r"""Asks for large margins in place of large projections.

    The loss sees \( \mu_k A / \mathrm{std}(\mu_k) \), with the standard deviation over the units of a class mean: it does not fall when
    the whole layer grows. The signs, and so the bits, are those of \( \mu A \). A release takes off what ends in this name.
    """

    def logits(self, means: Any) -> Any:
        """`(s, M)` class means to `(s, N)` logits."""
        return super().logits(means / (keras.ops.std(means, axis=1, keepdims=True) + _TINY))


@dataclasses.dataclass(frozen=True)
class Config(train_mnist_mlp.Config):
    """What a run depends on."""

    normalized: bool = option(
        False, "Whether the mark's loss is on normalised class means; the package's own otherwise."
    )


def task(config: Config) -> Task:
    """Network and data of a run."""
    task = train_mnist_mlp.task(config)

    def build(regularizers: Any = None, model_class: Any = keras.Model) -> keras.Model:
        found = regularizers or {}
        if config.normalized:
            found = {name: _normalized(each) for name, each in found.items()}
        return task.build(found, model_class)

    return dataclasses.replace(task, program="benchmarks.train_normalized_mlp", build=build)


def _normalized(regularizer: SignatureRegularizer) -> NormalizedSignatureRegularizer:
    settings = regularizer.get_config()
    names = ("strength", "centres", "clustering_strength", "separation")
    return NormalizedSignatureRegularizer(
        regularizer.owner_key, regularizer.carrier.name, **{name: settings[name] for name in names}
    )


def run(config: Config) -> dict[str, Any]:
    """Trains both models, releases the marked one and verifies it with its controls; see `training.run`."""
    return training.run(config, lambda: task(config))


if __name__ == "__main__":
    run_program(Config, run)
