"""What marking costs in time: marked `fit` against plain `fit`, in alternating pairs within one process.

    python -m benchmarks.overhead            # everything, into results/overhead.json

Machines are noisy, so only ratios of neighbouring runs are compared: A B B A, A B B A, ... Pairs are added until the 95 %
interval of the median wall ratio is narrow enough. Run it on an otherwise idle machine.
"""

import dataclasses
import pathlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.stats
from absl import app
from tqdm import tqdm

import deepsigns_tf as ds
from models.mnist_mlp import FEATURES, mnist_mlp
from scripts.configs import config_from_flags, define_flags, option
from scripts.records import circumstances, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to measure."""

    output: str = option("results/overhead.json", "Where the result goes.")
    num_examples: int = option(12_800, "Examples of one `fit`; 100 steps of 128.", minimum=128)
    min_pairs: int = option(40, "Pairs of plain and marked `fit`, at least.", minimum=2)
    max_pairs: int = option(2_000, "Pairs at most.", minimum=2)
    half_width: float = option(
        0.003, "Half-width of the 95 % interval at which the default setting is done.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """One marked model to compare with the plain one."""

    name: str
    num_classes: int = 10
    bits_per_class: int = 64
    num_layers: int = 1
    centres: str = "batch"
    jit_compile: bool = True

    @property
    def num_bits(self) -> int:
        """Bits of the mark."""
        return self.num_classes * self.bits_per_class * self.num_layers


SETTINGS = (
    Setting("default"),
    Setting("64 bits", num_classes=1),
    Setting("4,100 bits in two layers", bits_per_class=205, num_layers=2),
    Setting("learned centres", centres="learned"),
    Setting("default, no XLA", jit_compile=False),
    Setting("64 bits, no XLA", num_classes=1, jit_compile=False),
    Setting("4,100 bits in two layers, no XLA", bits_per_class=205, num_layers=2, jit_compile=False),
)


def run(config: Config) -> dict[str, Any]:
    """Measures every setting; only the first, the script's default, has to reach the wanted precision."""
    random = np.random.default_rng(0)
    x = random.random((config.num_examples, 784), np.float32)
    y = random.integers(0, 10, config.num_examples)
    rows = []
    for setting in SETTINGS:
        wanted = config.half_width if setting is SETTINGS[0] else np.inf
        rows.append(_measure(setting, x, y, config, wanted))
        print(rows[-1], flush=True)
    result = {
        **circumstances("make bench"),
        "data": f"{config.num_examples} random images a fit, batch size 128, network 784-512-512-10",
        "rows": rows,
    }
    write_json(pathlib.Path(config.output), result)
    return result


def _measure(setting: Setting, x: np.ndarray, y: np.ndarray, config: Config, half_width: float) -> dict[str, Any]:
    plain, marked = _compiled(mnist_mlp(), setting), _compiled(_marked_model(setting), setting)
    for model in (plain, marked):
        _timed_fit(model, x, y)
    wall: list[float] = []
    cpu: list[float] = []
    plain_wall: list[float] = []
    with tqdm(desc=setting.name, total=config.min_pairs, unit="pair") as bar:
        while len(wall) < config.min_pairs or (_half_width(wall) > half_width and len(wall) < config.max_pairs):
            # A B B A: a drift of the machine's speed cancels within two pairs.
            for order in ((plain, marked), (marked, plain)):
                seconds = {id(model): _timed_fit(model, x, y) for model in order}
                plain_wall.append(seconds[id(plain)][0])
                wall.append(seconds[id(marked)][0] / seconds[id(plain)][0])
                cpu.append(seconds[id(marked)][1] / seconds[id(plain)][1])
            bar.update(2)
            bar.set_postfix(ratio=f"{np.median(wall):.4f}", half_width=f"{_half_width(wall):.4f}")
    return {
        "setting": setting.name,
        "num_bits": setting.num_bits,
        "xla": setting.jit_compile,
        "num_pairs": len(wall),
        "wall_ratio": float(np.median(wall)),
        "wall_ratio_interval": _interval(wall),
        "cpu_ratio": float(np.median(cpu)),
        "cpu_ratio_interval": _interval(cpu),
        "plain_step_ms": 1000 * float(np.median(plain_wall)) / -(-len(x) // 128),
    }


def _marked_model(setting: Setting) -> keras.Model:
    names = [FEATURES, "hidden"][: setting.num_layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A mark of 64 bits is warned about.
        key = ds.OwnerKey.generate(
            "benchmark", [ds.Carrier(name, range(setting.num_classes), setting.bits_per_class) for name in names]
        )
    regularizers = {name: ds.SignatureRegularizer(key, name, centres=setting.centres) for name in names}  # type: ignore[arg-type]
    return mnist_mlp(
        regularizers[FEATURES], ds.WatermarkedModel, hidden_activity_regularizer=regularizers.get("hidden")
    )


def _compiled(model: keras.Model, setting: Setting) -> keras.Model:
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=setting.jit_compile,
    )
    return model


def _timed_fit(model: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(x, y, batch_size=128, epochs=1, verbose=0)
    return time.perf_counter() - wall, time.process_time() - cpu


def _interval(ratios: list[float]) -> list[float]:
    """95 % interval of the median, from order statistics; it assumes no shape of the distribution."""
    interval = scipy.stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return [float(interval.low), float(interval.high)]


def _half_width(ratios: list[float]) -> float:
    low, high = _interval(ratios)
    return (high - low) / 2


def main(argv: Sequence[str]) -> None:
    """Entry point of `app.run`."""
    del argv
    run(config_from_flags(Config))


if __name__ == "__main__":
    define_flags(Config)
    app.run(main)
