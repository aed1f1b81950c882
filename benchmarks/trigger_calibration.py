"""Are the p-values of answers true? 10,000 keys question 20 unmarked models, a constant and a random answerer, once.

    python -m benchmarks.trigger_calibration         # results/trigger_calibration.json

Seeds were fixed beforehand, the key is the unit of the interval, as in `benchmarks/calibration.py`. Each key has its own noise inputs
and, for them, two sets of labels: uniform ones, whose test is exact, and the same number of each class in shuffled order. For the
selection, an unmarked model of its own says which uniform labels are wrong before training.
"""

import concurrent.futures
import dataclasses
import multiprocessing
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.calibration import LEVELS, MODEL_SEEDS, acceptance, unmarked_mlp
from deepsigns_tf.derivation import derive_bytes
from deepsigns_tf.statistics import binomial_log10_tail, sequential_log10_e_value, shuffle_log10_tail
from deepsigns_tf.triggers import LabelRule, derive_inputs, derive_labels
from scripts.configs import command_line, option, run_program

# Fixed before the first run.
KEY_SEED = b"deepsigns_tf calibration of triggers of 2026-11-26"

NUM_TRIGGERS, NUM_CLASSES = 100, 10
_TESTS = ("uniform labels", "uniform labels, sequential", "shuffled labels", "uniform labels, wrong before")
# Trained as the suspects are.
_SELECTING_SEED = 999
# What noise takes its shape and range from.
_EXTREMES = np.stack([np.zeros(784), np.ones(784)]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Config:
    """How much to measure."""

    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    num_keys: int = option(10_000, "Keys.", minimum=2)
    epochs: int = option(2, "Passes over the training set for each unmarked model.", minimum=1)
    num_workers: int = option(2, "Processes.", minimum=1, shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Trains the models, asks them with all keys and compares rates of acceptance with what the tests promise."""
    from scripts.datasets import load_mnist
    from scripts.records import circumstances, result_file, write_json

    path = result_file(config.results_dir, "trigger_calibration")
    data = load_mnist("mnist", config.data_dir)
    seeds = (*MODEL_SEEDS, _SELECTING_SEED)
    models = [unmarked_mlp(seed, data, config.epochs) for seed in tqdm(seeds, desc="models")]
    # Workers that have no TensorFlow in them; they compute with NumPy and integers only.
    with concurrent.futures.ProcessPoolExecutor(config.num_workers, multiprocessing.get_context("spawn")) as pool:
        inputs = pool.map(_inputs, range(config.num_keys), chunksize=10)
        keys = tqdm(enumerate(inputs), total=config.num_keys, desc="questions")
        answers = np.stack([_answers(number, each, models) for number, each in keys])
        tested = pool.map(_log10_p_values, range(config.num_keys), answers, chunksize=10)
        log10_p = np.stack(list(tqdm(tested, total=config.num_keys, desc="tests")))
    suspects = {
        f"{len(MODEL_SEEDS)} unmarked models": slice(None, len(MODEL_SEEDS)),
        "one class always": [len(MODEL_SEEDS)],
        "random classes": [len(MODEL_SEEDS) + 1],
    }
    result = {
        **circumstances(command_line("benchmarks.trigger_calibration", config)),
        "data": f"mnist, {len(MODEL_SEEDS)} unmarked models (seeds {MODEL_SEEDS[0]} to {MODEL_SEEDS[-1]}), "
        f"{config.num_keys} keys of {NUM_TRIGGERS} noise triggers, {NUM_CLASSES} classes",
        "rows": [
            _row(test, suspect, level, log10_p[:, :, number][:, which])
            for number, test in enumerate(_TESTS)
            for suspect, which in suspects.items()
            for level in LEVELS
        ],
    }
    write_json(path, result)
    for row in result["rows"]:
        print(row)
    return result


def _seed(number: int) -> bytes:
    return derive_bytes(KEY_SEED, ("key", number), 32)


def _inputs(number: int) -> np.ndarray:
    return np.asarray(derive_inputs(_seed(number), ("inputs",), "noise", NUM_TRIGGERS, _EXTREMES))


def _labels(number: int, rule: LabelRule) -> np.ndarray:
    return derive_labels(_seed(number), ("labels", rule), NUM_TRIGGERS, NUM_CLASSES, rule)


def _answers(number: int, inputs: np.ndarray, models: list[Any]) -> np.ndarray:
    """`(suspects + 1, triggers)` class numbers: the models', a constant one's, a random one's, and the last model's, which selects."""
    *answers, selecting = (np.asarray(model.predict_on_batch(inputs)).argmax(axis=1) for model in models)
    answers.append(np.zeros(NUM_TRIGGERS, np.int64))
    answers.append(np.random.default_rng((2026, number)).integers(0, NUM_CLASSES, NUM_TRIGGERS))
    answers.append(selecting)
    return np.stack(answers).astype(np.int8)


def _log10_p_values(number: int, answers: np.ndarray) -> np.ndarray:
    """`(suspects, tests)` of a key."""
    uniform, shuffled = (_labels(number, rule) for rule in ("uniform", "shuffled"))
    *suspects, selecting = answers.astype(np.int64)
    wrong_before = selecting != uniform
    result = np.empty((len(suspects), len(_TESTS)))
    for suspect, given in enumerate(suspects):
        matches = np.cumsum(given == uniform)
        evidence = max(_e_value(int(each), asked) for asked, each in enumerate(matches, 1))
        result[suspect] = (
            binomial_log10_tail(int(matches[-1]), NUM_TRIGGERS, NUM_CLASSES),
            min(0.0, -evidence),
            shuffle_log10_tail(int(np.count_nonzero(given == shuffled)), given, shuffled),
            # As `verify_predictions`: whoever chose them may have known the labels.
            binomial_log10_tail(int(np.count_nonzero((given == uniform)[wrong_before])), NUM_TRIGGERS, NUM_CLASSES),
        )
    return result


_e_values: dict[tuple[int, int], float] = {}


def _e_value(num_matches: int, num_asked: int) -> float:
    counts = (num_matches, num_asked)
    if counts not in _e_values:
        _e_values[counts] = sequential_log10_e_value(*counts, NUM_CLASSES)
    return _e_values[counts]


def _row(test: str, suspect: str, level: float, log10_p: np.ndarray) -> dict[str, Any]:
    tails = None
    if test == "uniform labels":
        tails = [binomial_log10_tail(matches, NUM_TRIGGERS, NUM_CLASSES) for matches in range(NUM_TRIGGERS + 1)]
    return {"suspect": suspect} | acceptance(test, level, log10_p, tails)


if __name__ == "__main__":
    run_program(Config, run)
