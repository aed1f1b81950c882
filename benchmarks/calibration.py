"""Are the p-values true? 10,000 keys are read from 20 unmarked models, once, with seeds fixed beforehand.

    python -m benchmarks.calibration         # results/calibration.json

One key's readings of 20 models depend on each other, so the key is the unit of the interval: the share of models that a
key accepts is averaged over keys, and its spread over keys gives the standard error.
"""

import concurrent.futures
import dataclasses
import math
import multiprocessing
from typing import Any

import numpy as np
import scipy.stats
from tqdm import tqdm

from deepsigns_tf.carriers import Carrier
from deepsigns_tf.derivation import derive_bytes
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.readings import SignatureReader
from deepsigns_tf.statistics import DecisionRule, binomial_log10_tail
from scripts.configs import command_line, option, run_program

# Fixed before the first run.
KEY_SEED = b"deepsigns_tf calibration of 2026-11-24"
MODEL_SEEDS = range(1000, 1020)
LEVELS = (1e-2, 1e-3)

NUM_CLASSES, BITS_PER_CLASS, NUM_UNITS, NUM_PER_CLASS = 10, 64, 512, 64


@dataclasses.dataclass(frozen=True)
class Config:
    """How much to measure."""

    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    num_keys: int = option(10_000, "Keys.", minimum=2)
    epochs: int = option(2, "Passes over the training set for each unmarked model.", minimum=1)
    num_workers: int = option(2, "Processes.", minimum=1, shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Trains the models, reads them with all keys and compares rates of acceptance with what the tests promise."""
    from scripts.datasets import load_mnist
    from scripts.records import circumstances, result_file, write_json

    path = result_file(config.results_dir, "calibration")
    data = load_mnist("mnist", config.data_dir)
    activations = np.stack([_activations(seed, data, config.epochs) for seed in tqdm(MODEL_SEEDS, desc="models")])
    chunks = np.array_split(np.arange(config.num_keys), 20 * config.num_workers)
    # Forked, so that the workers share the activations; they run NumPy and SciPy only.
    global _shared
    _shared = (activations, data.y_train)
    with concurrent.futures.ProcessPoolExecutor(config.num_workers, multiprocessing.get_context("fork")) as pool:
        parts = list(tqdm(pool.map(_log10_p_values, chunks), total=len(chunks), desc="keys"))
    log10_p = np.concatenate(parts)
    num_bits = NUM_CLASSES * BITS_PER_CLASS
    tails = {"hard": [binomial_log10_tail(matches, num_bits) for matches in range(num_bits + 1)], "soft": None}
    rows = [
        acceptance(name, level, log10_p[:, :, test], tails[name]) for test, name in enumerate(tails) for level in LEVELS
    ]
    result = {
        **circumstances(command_line("benchmarks.calibration", config)),
        "data": f"mnist, {len(MODEL_SEEDS)} unmarked models (seeds {MODEL_SEEDS[0]} to {MODEL_SEEDS[-1]}), "
        f"{config.num_keys} keys of {NUM_CLASSES} x {BITS_PER_CLASS} bits",
        "rows": rows,
    }
    write_json(path, result)
    for row in rows:
        print(row)
    return result


def unmarked_mlp(seed: int, data: Any, epochs: int) -> Any:
    """The MNIST network, trained without a mark.

    Args:
        seed: For weights and order.
        data: What it learns.
        epochs: Passes over it.
    """
    import keras

    from models.mnist_mlp import mnist_mlp

    keras.utils.set_random_seed(seed)
    model = mnist_mlp()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=True)
    model.fit(data.x_train, data.y_train, batch_size=128, epochs=epochs, verbose=0)
    return model


def _activations(seed: int, data: Any, epochs: int) -> np.ndarray:
    import keras

    from models.mnist_mlp import FEATURES

    model = unmarked_mlp(seed, data, epochs)
    features = keras.Model(model.input, model.get_layer(FEATURES).output)
    return np.asarray(features.predict(data.x_train, batch_size=1000, verbose=0), np.float32)


_shared: tuple[np.ndarray, np.ndarray]


def _log10_p_values(key_numbers: np.ndarray) -> np.ndarray:
    activations, labels = _shared
    carrier = Carrier("features", range(NUM_CLASSES), BITS_PER_CLASS)
    rows = np.arange(len(labels))[:, None]
    result = np.empty((len(key_numbers), len(activations), 2))
    for position, number in enumerate(key_numbers):
        seed = derive_bytes(KEY_SEED, ("key", int(number)), 32)
        # The row numbers stand for the images: the seed picks the same rows either way.
        key = OwnerKey("calibration", (carrier,), DecisionRule(), seed).with_key_inputs(rows, labels, NUM_PER_CLASS)
        assert key.key_inputs is not None
        chosen = np.asarray(key.key_inputs.inputs)[:, 0].reshape(NUM_CLASSES, NUM_PER_CLASS)
        reader = SignatureReader(key, carrier.name, NUM_UNITS)
        for model, features in enumerate(activations):
            reading = reader.read(features[chosen].mean(axis=1, dtype=np.float64))
            result[position, model] = reading.log10_p("hard"), reading.log10_p("soft")
    return result


def acceptance(test: str, level: float, log10_p: np.ndarray, log10_tails: list[float] | None = None) -> dict[str, Any]:
    """How often suspects that carry no mark are accepted, against what the test promises.

    Args:
        test: Its name.
        level: The p-value at which a claim counts as proved.
        log10_p: `(keys, suspects)` log10 p.
        log10_tails: Of an exact test: log10 of all its p-values. A test without has a bound for its level.

    Returns:
        The rate with its 99.9 % interval, exact for a single suspect and normal over the keys for several, and whether that is as
        promised: an exact test attains the largest of its p-values that is not above the level, which lies within the
        interval; the interval of another reaches down to the level.
    """
    accepted = log10_p <= math.log10(level)
    if accepted.shape[1] == 1:
        exact = scipy.stats.binomtest(int(accepted.sum()), len(accepted)).proportion_ci(0.999)
        interval = [float(exact.low), float(exact.high)]
    else:
        per_key = accepted.mean(axis=1)
        half_width = scipy.stats.norm.ppf(0.9995) * per_key.std(ddof=1) / math.sqrt(len(per_key))
        interval = [float(per_key.mean() - half_width), float(per_key.mean() + half_width)]
    row = {"test": test, "nominal": level, "observed": float(accepted.mean()), "interval": interval}
    if log10_tails is None:
        row["as_promised"] = interval[0] <= level
    else:
        row["attained"] = 10 ** max(tail for tail in log10_tails if tail <= math.log10(level))
        row["as_promised"] = interval[0] <= row["attained"] <= interval[1]
    return row


if __name__ == "__main__":
    run_program(Config, run)
