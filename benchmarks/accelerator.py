"""What marking costs a wide residual network on an accelerator, on whatever backend Keras has there.

    KERAS_BACKEND=jax python -m benchmarks.accelerator     # results/accelerator.json

It needs Keras and one of its backends, NumPy and SciPy; TensorFlow only where that is the backend.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.overhead import measured_pairs, summary
from scripts.configs import command_line, option, run_program


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and for how long."""

    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    depth: int = option(28, "Of the network: 6 n + 4.", minimum=10)
    width: int = option(10, "Factor on the network's channels.", minimum=1)
    batch_size: int = option(128, "Examples a step.", minimum=1)
    num_steps: int = option(50, "Steps of one `fit`.", minimum=1)
    dtype_policy: str = option("mixed_bfloat16", "Keras' name of it.")
    min_pairs: int = option(40, "Pairs of plain and marked training, at least.", minimum=20)
    max_pairs: int = option(400, "Pairs at most.", minimum=20)
    max_minutes: float = option(4.0, "Time at most, after compilation.", minimum=0.0)
    half_width: float = option(0.003, "Half-width of the 95 % interval at which it is done.", minimum=0.0)


def run(config: Config) -> dict[str, Any]:
    """Compares calls of `fit`, marked and plain, in alternating pairs."""
    import deepsigns_tf as ds
    from models.wide_resnet import FEATURES, wide_resnet
    from scripts.precision import dtype_policy
    from scripts.records import accelerators, circumstances, result_file, write_json

    path = result_file(config.results_dir, "accelerator")
    with dtype_policy(config.dtype_policy):
        key = ds.OwnerKey.generate("benchmark", [ds.Carrier(FEATURES, range(10), 16 * config.width)])
        regularizers = {FEATURES: ds.SignatureRegularizer(key, FEATURES)}
        models = [
            wide_resnet(config.depth, config.width),
            wide_resnet(config.depth, config.width, regularizers, ds.WatermarkedModel),
        ]
        row = summary([measured_pairs(*(_fit(model, config) for model in models), config)])
    result = {
        **circumstances(command_line("benchmarks.accelerator", config)),
        "device": accelerators() or ["CPU"],
        "data": f"random images, batch size {config.batch_size}, WRN-{config.depth}-{config.width}, {config.dtype_policy}",
        "rows": [
            {"setting": f"WRN-{config.depth}-{config.width}", "num_bits": key.num_bits}
            | row
            | {"plain_step_ms": row["plain_ms"] / config.num_steps}
        ],
    }
    write_json(path, result)
    print(result)
    return result


def _fit(model: Any, config: Config) -> Callable[[], None]:
    import keras

    random = np.random.default_rng(0)
    num_examples = config.num_steps * config.batch_size
    x = random.integers(0, 256, (num_examples, 32, 32, 3)).astype(np.float32)
    y = random.integers(0, 10, num_examples)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def fit() -> None:
        model.fit(x, y, batch_size=config.batch_size, epochs=1, shuffle=False, verbose=0)

    fit()
    return fit


if __name__ == "__main__":
    run_program(Config, run)
