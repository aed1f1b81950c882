"""What marking costs in time: marked against plain training, in alternating pairs within one process.

    python -m benchmarks.overhead            # everything, into results/overhead.json

Machines are noisy, so only ratios of neighbours are compared: A B B A, A B B A, ... Pairs are added until the 95 % interval of
the median wall ratio is narrow enough. Run it on an otherwise idle machine.

The first row compares whole calls of `fit`, the others single train steps, which follow each other within milliseconds and so
reach the same precision in a fraction of the time. Each process has a core of its own, where no part of the mark's cost can
hide on an idle one; the rows "all cores" use the whole machine, as a training does that has it for itself.
"""

import dataclasses
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from benchmarks.cores import pool_on_cores
from scripts.configs import command_line, option, run_program

_PAIRS_BETWEEN_LOOKS = 20


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to measure."""

    output: str = option("results/overhead.json", "Where the result goes.", shapes_result=False)
    num_examples: int = option(3_200, "Examples of one `fit`; 25 steps of 128.", minimum=128)
    min_pairs: int = option(40, "Pairs of plain and marked training, at least.", minimum=20)
    max_pairs: int = option(20_000, "Pairs at most.", minimum=20)
    half_width: float = option(0.003, "Half-width of the 95 % interval at which a row is done.", minimum=0.0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One marked model to compare with the plain one."""

    name: str
    num_classes: int = 10
    bits_per_class: int = 64
    num_layers: int = 1
    centres: str = "batch"
    jit_compile: str = "auto"
    by_step: bool = True
    all_cores: bool = False

    @property
    def num_bits(self) -> int:
        """Bits of the mark."""
        return self.num_classes * self.bits_per_class * self.num_layers


SETTINGS = (
    Setting("default, calls of `fit`", by_step=False),
    Setting("default"),
    Setting("64 bits", num_classes=1),
    Setting("4,100 bits in two layers", bits_per_class=205, num_layers=2),
    Setting("learned centres", centres="learned"),
    Setting("default, XLA", jit_compile="on"),
    Setting("64 bits, XLA", num_classes=1, jit_compile="on"),
    Setting("4,100 bits in two layers, XLA", bits_per_class=205, num_layers=2, jit_compile="on"),
    Setting("default, all cores", all_cores=True),
    Setting("default, XLA, all cores", jit_compile="on", all_cores=True),
)


def run(config: Config) -> dict[str, Any]:
    """Measures every setting."""
    from scripts.records import circumstances, write_json

    rows = []
    with pool_on_cores(2) as pool:
        jobs = [pool.submit(_measure, setting, config) for setting in SETTINGS if not setting.all_cores]
        for job in jobs:
            rows.append(job.result())
            print(rows[-1], flush=True)
    for setting in SETTINGS:
        if setting.all_cores:
            rows.append(_measure(setting, config))
            print(rows[-1], flush=True)
    result = {
        **circumstances(command_line("benchmarks.overhead", config)),
        "data": f"random images, batch size 128, network 784-512-512-10; single train steps, or calls of `fit` on {config.num_examples} "
        "images; each process on a core of its own where it does not say all cores",
        "rows": rows,
    }
    write_json(pathlib.Path(config.output), result)
    return result


def _measure(setting: Setting, config: Config) -> dict[str, Any]:
    random = np.random.default_rng(0)
    x = random.random((config.num_examples, 784), np.float32)
    y = random.integers(0, 10, config.num_examples)
    trainers = [_trainer(model, setting, x, y) for model in (_plain_model(), _marked_model(setting))]
    wall, cpu, plain_wall = _pairs(*trainers, config.half_width, config.min_pairs, config.max_pairs)
    return {
        "setting": setting.name,
        "num_bits": setting.num_bits,
        "num_pairs": len(wall),
        "wall_ratio": float(np.median(wall)),
        "wall_ratio_interval": _interval(wall),
        "cpu_ratio": float(np.median(cpu)),
        "cpu_ratio_interval": _interval(cpu),
        "plain_step_ms": 1000 * float(np.median(plain_wall)) / (1 if setting.by_step else -(-len(x) // 128)),
    }


def _pairs(
    plain: Callable[[], None], marked: Callable[[], None], half_width: float, min_pairs: int, max_pairs: int
) -> tuple[list[float], list[float], list[float]]:
    """Wall ratios, CPU ratios and plain wall seconds of pairs, as many as the precision needs."""
    wall: list[float] = []
    cpu: list[float] = []
    plain_wall: list[float] = []
    while len(wall) < min_pairs or (_half_width(wall) > half_width and len(wall) < max_pairs):
        for _ in range(_PAIRS_BETWEEN_LOOKS // 2):
            # A B B A: a drift of the machine's speed cancels within two pairs.
            for order in ((plain, marked), (marked, plain)):
                seconds = {train: _timed(train) for train in order}
                plain_wall.append(seconds[plain][0])
                wall.append(seconds[marked][0] / seconds[plain][0])
                cpu.append(seconds[marked][1] / seconds[plain][1])
    return wall, cpu, plain_wall


def _timed(train: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    train()
    return time.perf_counter() - wall, time.process_time() - cpu


def _trainer(model: Any, setting: Setting, x: np.ndarray, y: np.ndarray) -> Callable[[], None]:
    """What is timed: a `fit`, or a step of the function that `fit` calls. It has been traced and compiled."""
    import tensorflow as tf

    from scripts.training import compile_classifier

    compile_classifier(model, 1e-3, setting.jit_compile)

    def fit() -> None:
        model.fit(x, y, batch_size=128, epochs=1, verbose=0)

    fit()
    if not setting.by_step:
        return fit
    batches = iter(tf.data.Dataset.from_tensor_slices((x, y)).batch(128, drop_remainder=True).cache().repeat())

    def step() -> None:
        float(model.train_function(batches)["loss"])

    for _ in range(100):
        step()
    return step


def _plain_model() -> Any:
    from models.mnist_mlp import mnist_mlp

    return mnist_mlp()


def _marked_model(setting: Setting) -> Any:
    import deepsigns_tf as ds
    from models.mnist_mlp import FEATURES, mnist_mlp

    names = [FEATURES, "hidden"][: setting.num_layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A mark of 64 bits is warned about.
        key = ds.OwnerKey.generate(
            "benchmark", [ds.Carrier(name, range(setting.num_classes), setting.bits_per_class) for name in names]
        )
    regularizers = {name: ds.SignatureRegularizer(key, name, centres=setting.centres) for name in names}  # type: ignore[arg-type]
    return mnist_mlp(regularizers, ds.WatermarkedModel)


def _interval(ratios: list[float]) -> list[float]:
    """95 % interval of the median, from order statistics; it assumes no shape of the distribution."""
    interval = scipy.stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return [float(interval.low), float(interval.high)]


def _half_width(ratios: list[float]) -> float:
    low, high = _interval(ratios)
    return (high - low) / 2


if __name__ == "__main__":
    run_program(Config, run)
