"""What marking costs in time: marked against plain training, in alternating pairs within one process.

    python -m benchmarks.overhead                  # the networks, into results/overhead_networks.json
    python -m benchmarks.overhead --study=costs    # bits, classes and width, into results/overhead_costs.json

Machines are noisy, so only ratios of neighbours are compared: A B B A, A B B A, ... Pairs are added until the 95 % interval of
the median wall ratio is narrow enough. Run it on an otherwise idle machine.

One row compares whole epochs of `fit`, the others single train steps, which follow each other within milliseconds and so
reach the same precision in a fraction of the time. Each process has a core of its own, where no part of the mark's cost can
hide on an idle one; the rows "all cores" use the whole machine, as a training does that has it for itself.
"""

import concurrent.futures
import dataclasses
import importlib
import multiprocessing
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from scripts.configs import command_line, option, run_program
from scripts.cores import pool_on_cores

_PAIRS_BETWEEN_LOOKS = 20
_BATCH_SIZE = 128
# An epoch of MNIST in whole batches.
_STEPS_OF_FIT = 468


@dataclasses.dataclass(frozen=True)
class Setting:
    """One marked model to compare with the plain one.

    Args:
        name: What the table calls it.
        network: "mlp", "cnn", "lstm", "wrn", or "hidden layer", a network with one of any width.
        carriers: Layers and bits per class, as the programs' flag.
        num_classes: Carrier classes.
        width: Units of the hidden layer, for the network "hidden layer".
        options: Of the program that differ from its defaults.
        by_step: Whether single steps are timed, or whole epochs of `fit`.
        all_cores: Whether the process has all cores, or one.
    """

    name: str
    network: str = "mlp"
    carriers: str = "features:64"
    num_classes: int = 10
    width: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    by_step: bool = True
    all_cores: bool = False


_XLA = (("jit_compile", "on"),)
_TWO_LAYERS = "features:205,hidden:205"
_LSTM = {"network": "lstm", "carriers": "features:128,pooled:64", "num_classes": 2}
_TRIGGERS = (("num_triggers", 100),)

STUDIES = {
    "networks": (
        Setting("MLP, epochs of `fit`, all cores", by_step=False, all_cores=True),
        Setting("MLP"),
        Setting("MLP, all cores", all_cores=True),
        Setting("MLP, 64 bits", num_classes=1),
        Setting("MLP, 4,100 bits in two layers", carriers=_TWO_LAYERS),
        Setting("MLP, learned centres", options=(("centres", "learned"),)),
        Setting("MLP, XLA", options=_XLA),
        Setting("MLP, XLA, all cores", options=_XLA, all_cores=True),
        Setting("MLP, 64 bits, XLA", num_classes=1, options=_XLA),
        Setting("MLP, 4,100 bits in two layers, XLA", carriers=_TWO_LAYERS, options=_XLA),
        Setting("CNN", network="cnn"),
        Setting("CNN, all cores", network="cnn", all_cores=True),
        Setting("LSTM", **_LSTM),
        Setting("LSTM, all cores", **_LSTM, all_cores=True),
        Setting("WRN-16-2", network="wrn"),
        Setting("WRN-16-2, all cores", network="wrn", all_cores=True),
    ),
    # One thing varies: bits in 8 classes and 2,048 units; classes that share 2,000 bits there; units for 256 bits in 8 classes.
    "costs": (
        *(
            Setting(f"{8 * bits:,} bits", "hidden layer", f"features:{bits}", 8, 2048)
            for bits in (8, 16, 32, 64, 128, 256, 512)
        ),
        *(
            Setting(f"{classes:,} classes", "hidden layer", f"features:{2000 // classes}", classes, 2048)
            for classes in (2, 10, 100, 1000)
        ),
        *(Setting(f"{width:,} units", "hidden layer", "features:32", 8, width) for width in (128, 512, 2048, 8192)),
    ),
    # Triggers alone, and beside the mark in the layers.
    "triggers": tuple(
        Setting(name, options=_TRIGGERS, **network)
        for title, layers in {
            "MLP": {},
            "CNN": {"network": "cnn"},
            "LSTM": _LSTM,
            "WRN-16-2": {"network": "wrn"},
        }.items()
        for name, network in {
            f"{title}, triggers": layers | {"carriers": ""},
            f"{title}, triggers and bits": layers,
        }.items()
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to measure."""

    study: str = option("networks", "The four networks, what the cost depends on, or triggers.", choices=tuple(STUDIES))
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    min_pairs: int = option(40, "Pairs of plain and marked training, at least.", minimum=20)
    max_pairs: int = option(20_000, "Pairs at most.", minimum=20)
    max_minutes: float = option(60.0, "Time for a setting at most.", minimum=0.0)
    half_width: float = option(0.003, "Half-width of the 95 % interval at which a row is done.", minimum=0.0)


def run(config: Config) -> dict[str, Any]:
    """Measures every setting of a study."""
    from scripts.records import circumstances, result_file, write_json

    settings = STUDIES[config.study]
    path = result_file(config.results_dir, f"overhead_{config.study}")
    rows = {}
    with pool_on_cores(2) as pool:
        jobs = {pool.submit(_measure, setting, config): setting for setting in settings if not setting.all_cores}
        for job in concurrent.futures.as_completed(jobs):
            rows[jobs[job]] = job.result()
            print(rows[jobs[job]], flush=True)
    for setting in settings:
        if setting.all_cores:
            # A fresh process for each: what the others left behind in memory is not part of it.
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows[setting] = pool.submit(_measure, setting, config).result()
            print(rows[setting], flush=True)
    result = {
        **circumstances(command_line("benchmarks.overhead", config)),
        "data": "random inputs of the data sets' shapes, batch size 128; single train steps on one core where it does not say otherwise",
        "rows": [rows[setting] for setting in settings],
    }
    write_json(path, result)
    return result


def _measure(setting: Setting, config: Config) -> dict[str, Any]:
    from scripts.precision import dtype_policy

    settings = _settings(setting)
    with dtype_policy(settings.mixed_precision):
        key, *models = _key_and_models(setting, settings)
        trainers = [
            _trainer(model, settings, setting, triggers)
            for model, triggers in zip(models, (None, key.triggers), strict=True)
        ]
        row = measured_pairs(*trainers, config)
    return {
        "setting": setting.name,
        "num_bits": key.num_bits,
        **row,
        "plain_step_ms": row["plain_ms"] / (1 if setting.by_step else _STEPS_OF_FIT),
    }


def measured_pairs(plain: Callable[[], None], marked: Callable[[], None], config: Any) -> dict[str, Any]:
    """Compares two ways of training.

    Args:
        plain: Trains without a mark, once.
        marked: Trains with it.
        config: How long to measure: `min_pairs`, `max_pairs`, `max_minutes`, `half_width`.

    Returns:
        Medians of the ratios of wall and CPU time with their 95 % intervals, pairs, milliseconds of the plain training.
    """
    wall, cpu, plain_wall = _pairs(plain, marked, config)
    return {
        "num_pairs": len(wall),
        "wall_ratio": float(np.median(wall)),
        "wall_ratio_interval": _interval(wall),
        "cpu_ratio": float(np.median(cpu)),
        "cpu_ratio_interval": _interval(cpu),
        "plain_ms": 1000 * float(np.median(plain_wall)),
    }


def _pairs(
    plain: Callable[[], None], marked: Callable[[], None], config: Any
) -> tuple[list[float], list[float], list[float]]:
    """Wall ratios, CPU ratios and plain wall seconds of pairs, as many as the precision needs."""
    wall: list[float] = []
    cpu: list[float] = []
    plain_wall: list[float] = []
    end = time.monotonic() + 60 * config.max_minutes
    while len(wall) < config.min_pairs or (
        _half_width(wall) > config.half_width and len(wall) < config.max_pairs and time.monotonic() < end
    ):
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


def _trainer(model: Any, settings: Any, setting: Setting, triggers: Any) -> Callable[[], None]:
    """What is timed: an epoch of `fit`, or a step of the function that `fit` calls. It has been traced and compiled."""
    import keras
    import tensorflow as tf

    import deepsigns_tf as ds
    from scripts.fitting import compile_classifier

    num_examples = _BATCH_SIZE * (10 if setting.by_step else _STEPS_OF_FIT)
    x = _inputs(model, setting, num_examples)
    y = np.random.default_rng(1).integers(0, model.output_shape[-1], num_examples)
    if settings.label_smoothing:
        y = keras.utils.to_categorical(y, model.output_shape[-1])
    compile_classifier(model, settings.learning_rate, settings)

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(_BATCH_SIZE, drop_remainder=True).cache().repeat()
    data: dict[str, Any] = {"x": x, "y": y, "batch_size": _BATCH_SIZE}
    if triggers is not None:
        batches = ds.mix_triggers(batches, triggers, settings.num_triggers_per_batch)
        data = {"x": batches, "steps_per_epoch": num_examples // _BATCH_SIZE, "shuffle": False}

    def fit() -> None:
        model.fit(**data, epochs=1, verbose=0)

    fit()
    if not setting.by_step:
        return fit
    endless = iter(batches)

    def step() -> None:
        float(model.train_function(endless)["loss"])

    for _ in range(10):
        step()
    return step


def _inputs(model: Any, setting: Setting, num: int) -> np.ndarray:
    """Whole numbers in [0, 256) are pixels to the networks for photographs, tokens to the one for text; the others want [0, 1]."""
    x = np.random.default_rng(0).integers(0, 256, (num, *model.input_shape[1:])).astype(model.inputs[0].dtype)
    return x / x.dtype.type(255) if setting.network in ("mlp", "hidden layer") else x


def _program(setting: Setting) -> Any:
    module = {"cnn": "cifar10_cnn", "wrn": "cifar10_wrn", "lstm": "imdb_lstm"}.get(setting.network, "mnist_mlp")
    return importlib.import_module(f"scripts.train_{module}")


def _settings(setting: Setting) -> Any:
    """The configuration of the network's program, whose defaults are those of the results."""
    return _program(setting).Config(
        output_dir="", carriers=setting.carriers, num_classes=setting.num_classes, **dict(setting.options)
    )


def _key_and_models(setting: Setting, settings: Any) -> tuple[Any, Any, Any]:
    """A key, a plain network, and one marked with the key."""
    import deepsigns_tf as ds
    from scripts.marking import carriers, regularizers

    program = _program(setting)
    build = _hidden_layer(setting) if setting.width else program.builder(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A mark of 64 bits is warned about.
        key = ds.OwnerKey.generate("benchmark", carriers(settings, program.CARRIER_LAYERS))
    plain = build()
    if settings.num_triggers:
        examples = _inputs(plain, setting, 100)
        key = key.with_triggers(settings.trigger_family, settings.num_triggers, plain.output_shape[-1], examples)
    if not key.carriers:
        return key, plain, build()
    marked = build(regularizers(settings, key), ds.WatermarkedModel)
    marked.num_triggers_per_batch = settings.num_triggers_per_batch if settings.num_triggers else 0
    return key, plain, marked


def _hidden_layer(setting: Setting) -> Callable[..., Any]:
    import keras

    def build(regularizers: Any = None, model_class: Any = keras.Model) -> Any:
        """784-width-classes."""
        inputs = keras.Input((784,))
        regularizer = (regularizers or {}).get("features")
        x = keras.layers.Dense(setting.width, "relu", activity_regularizer=regularizer)(inputs)
        return model_class(inputs, keras.layers.Dense(max(10, setting.num_classes))(x))

    return build


def _interval(ratios: list[float]) -> list[float]:
    """95 % interval of the median, from order statistics; it assumes no shape of the distribution."""
    interval = scipy.stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return [float(interval.low), float(interval.high)]


def _half_width(ratios: list[float]) -> float:
    low, high = _interval(ratios)
    return (high - low) / 2


if __name__ == "__main__":
    run_program(Config, run)
