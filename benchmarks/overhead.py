"""What marking costs in time: marked against plain training, in alternating pairs.

    python -m benchmarks.overhead                  # the networks, into results/overhead_networks.json
    python -m benchmarks.overhead --study=costs    # bits, classes and width, into results/overhead_costs.json

Machines are noisy, so only ratios of neighbours are compared: A B B A, A B B A, ... Pairs are added until the 95 % interval of
the median wall ratio is narrow enough. A process lays out code and memory in its own way, which moves a ratio by up to a point
whatever is marked, so several of them are measured, and each one's median is kept. Run it on an otherwise idle machine.

One row compares whole epochs of `fit`, the others single train steps, which follow each other within milliseconds and so
reach the same precision in a fraction of the time. Each process has a core of its own, where no part of the mark's cost can
hide on an idle one; the rows "all cores" use the whole machine, as a training does that has it for itself.
"""

import concurrent.futures
import dataclasses
import importlib
import itertools
import json
import math
import multiprocessing
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
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
_MLP = {"carriers": "features:128"}
_TWO_LAYERS = "features:205,hidden:205"
_LSTM = {"network": "lstm", "carriers": "features:128,pooled:64", "num_classes": 2}
_TRIGGERS = (("num_triggers", 100),)

STUDIES = {
    "networks": (
        Setting("MLP", **_MLP),
        Setting("MLP, 640 bits"),
        Setting("MLP, 640 bits, all cores", all_cores=True),
        Setting("MLP, 64 bits", num_classes=1),
        Setting("MLP, 4,100 bits in two layers", carriers=_TWO_LAYERS),
        Setting("MLP, 640 bits, learned centres", options=(("centres", "learned"),)),
        Setting("MLP, 640 bits, XLA", options=_XLA),
        Setting("MLP, 640 bits, XLA, all cores", options=_XLA, all_cores=True),
        Setting("MLP, 64 bits, XLA", num_classes=1, options=_XLA),
        Setting("MLP, 4,100 bits in two layers, XLA", carriers=_TWO_LAYERS, options=_XLA),
        Setting("CNN", network="cnn"),
        Setting("CNN, all cores", network="cnn", all_cores=True),
        Setting("LSTM", **_LSTM),
        Setting("LSTM, all cores", **_LSTM, all_cores=True),
        Setting("WRN-16-2", network="wrn"),
        Setting("WRN-16-2, all cores", network="wrn", all_cores=True),
        # Each pair takes seconds, so that its precision is what five minutes a process give.
        Setting("MLP, 640 bits, epochs of `fit`, all cores", by_step=False, all_cores=True),
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
            "MLP": _MLP,
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
    num_processes: int = option(3, "Fresh processes for a setting, one after the other.", minimum=1)
    min_pairs: int = option(40, "Pairs of plain and marked training in a process, at least.", minimum=20)
    max_pairs: int = option(20_000, "Pairs in a process at most.", minimum=20)
    max_minutes: float = option(5.0, "Time for a process at most, after its start.", minimum=0.0)
    half_width: float = option(
        0.003, "Half-width of the 95 % interval that the pairs of all processes together are to have.", minimum=0.0
    )


def run(config: Config) -> dict[str, Any]:
    """Measures every setting of a study; the result is written after each, and one that was begun on such a machine goes on."""
    from scripts.records import circumstances_of_rows, result_file, write_json

    settings = STUDIES[config.study]
    command = command_line("benchmarks.overhead", config)
    path = result_file(config.results_dir, f"overhead_{config.study}")
    rows = _begun(path, command)
    print(f"{len(rows)} of {len(settings)} stand in {path} already", flush=True)
    result: dict[str, Any] = {}

    def keep(row: dict[str, Any]) -> None:
        nonlocal result
        rows[row["setting"]] = row
        print(row, flush=True)
        done = [rows[setting.name] for setting in settings if setting.name in rows]
        result = {
            **circumstances_of_rows(command, done),
            "data": "random inputs of the data sets' shapes, batch size 128; single train steps on one core unless it says otherwise",
            "num_missing": len(settings) - len(done),
            "rows": done,
        }
        write_json(path, result)

    to_come = [setting for setting in settings if setting.name not in rows]
    with pool_on_cores(2) as pool:
        jobs = [pool.submit(_measure, setting, config) for setting in to_come if not setting.all_cores]
        for job in concurrent.futures.as_completed(jobs):
            keep(job.result())
    for setting in to_come:
        if setting.all_cores:
            keep(_measure(setting, config))
    return result


def _begun(path: pathlib.Path, command: str) -> dict[str, dict[str, Any]]:
    """Rows by setting of a result that the same command began on such a machine; none from one that is complete."""
    from scripts.records import circumstances

    begun = json.loads(path.read_text()) if path.exists() else {}
    here = circumstances(command)
    same = all(begun.get(name) == here[name] for name in ("command", "hardware"))
    return {row["setting"]: row for row in begun["rows"]} if same and begun["num_missing"] else {}


def _measure(setting: Setting, config: Config) -> dict[str, Any]:
    """In fresh processes, which have the cores of this one: what others left behind in memory is not part of it."""
    from scripts.records import circumstances

    found = []
    for _ in range(config.num_processes):
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(_measured_here, setting, config).result())
    row = summary([pairs for _, pairs in found])
    shared = circumstances(command_line("benchmarks.overhead", config))
    return {
        "setting": setting.name,
        **{name: shared[name] for name in ("date", "hardware", "versions")},
        "num_bits": found[0][0],
        **row,
        "plain_step_ms": row["plain_ms"] / (1 if setting.by_step else _STEPS_OF_FIT),
    }


def _measured_here(setting: Setting, config: Config) -> tuple[int, "Pairs"]:
    """How many bits, and the times of this process."""
    from scripts.precision import dtype_policy

    settings = _settings(setting)
    with dtype_policy(settings.mixed_precision):
        key, *models = _key_and_models(setting, settings)
        trainers = [
            _trainer(model, settings, setting, triggers)
            for model, triggers in zip(models, (None, key.triggers), strict=True)
        ]
        # The interval of all processes together is narrower than each one's.
        wanted = dataclasses.replace(config, half_width=config.half_width * math.sqrt(config.num_processes))
        return key.num_bits, measured_pairs(*trainers, wanted)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Times of marked and plain training next to each other, in one process.

    Args:
        wall: Ratios of wall time.
        cpu: Ratios of the process's CPU time.
        plain: Wall seconds of the plain training.
    """

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    plain: list[float] = dataclasses.field(default_factory=list)


def summary(processes: Sequence[Pairs]) -> dict[str, Any]:
    """What a row says of the pairs of one or more processes.

    Args:
        processes: The pairs of each.

    Returns:
        Medians of the ratios of wall and CPU time over all pairs with their 95 % intervals, each process's own medians, pairs,
        milliseconds of the plain training.
    """
    row: dict[str, Any] = {"num_pairs": sum(len(each.wall) for each in processes)}
    for name in ("wall", "cpu"):
        each_ones = [getattr(pairs, name) for pairs in processes]
        ratios = list(itertools.chain(*each_ones))
        row |= {
            f"{name}_ratio": float(np.median(ratios)),
            f"{name}_ratio_interval": _interval(ratios),
            f"{name}_ratio_of_processes": [float(np.median(ratios)) for ratios in each_ones],
        }
    return row | {"plain_ms": 1000 * float(np.median([seconds for each in processes for seconds in each.plain]))}


def measured_pairs(plain: Callable[[], None], marked: Callable[[], None], config: Any) -> Pairs:
    """Compares two ways of training, with as many pairs as the precision needs.

    Args:
        plain: Trains without a mark, once.
        marked: Trains with it.
        config: How long to measure: `min_pairs`, `max_pairs`, `max_minutes`, `half_width`.

    Returns:
        Their times.
    """
    pairs = Pairs()
    end = time.monotonic() + 60 * config.max_minutes
    while len(pairs.wall) < config.min_pairs or (
        _half_width(pairs.wall) > config.half_width and len(pairs.wall) < config.max_pairs and time.monotonic() < end
    ):
        for _ in range(_PAIRS_BETWEEN_LOOKS // 2):
            # A B B A: a drift of the machine's speed cancels within two pairs.
            for order in ((plain, marked), (marked, plain)):
                seconds = {train: _timed(train) for train in order}
                pairs.plain.append(seconds[plain][0])
                pairs.wall.append(seconds[marked][0] / seconds[plain][0])
                pairs.cpu.append(seconds[marked][1] / seconds[plain][1])
    return pairs


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
