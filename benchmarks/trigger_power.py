"""What is left of the claim when answers are coarse, wrong or refused, and how many questions a test that may stop early needs.

    python -m benchmarks.trigger_power     # after the study "triggers" of benchmarks.mnist; results/trigger_power.json

The answers of a recorded run's marked model are degraded, 1,000 times where chance is in it, and judged as committed claims.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from scripts.configs import command_line, option, run_program

NUM_DRAWS = 1000
RATES = (0.1, 0.25, 0.5, 0.75, 0.9)

Degraded = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config:
    """Whose answers."""

    run_dir: str = option("runs/mnist/triggers/0_0", "Folder of a finished run with triggers.", shapes_result=False)
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Asks the model once, degrades its answers and judges them."""
    import json

    import keras

    import deepsigns_tf as ds
    from scripts.records import circumstances, result_file, write_json

    path = result_file(config.results_dir, "trigger_power")
    folder = pathlib.Path(config.run_dir)
    owner_key = ds.OwnerKey.load(folder / "owner.key")
    assert owner_key.triggers is not None
    logits = keras.models.load_model(folder / "marked.keras").predict(owner_key.triggers.inputs, verbose=0)
    probabilities = np.asarray(keras.ops.softmax(np.asarray(logits, np.float64)))
    result = {
        **circumstances(command_line("benchmarks.trigger_power", config)),
        "data": json.loads((folder / "result.json").read_text())["data"]
        + f", {owner_key.triggers.num_examples} triggers, {owner_key.triggers.family}",
        "rows": [
            {"answers": name, "rate": rate} | power(probabilities, owner_key, degrade, rate > 0)
            for name, rate, degrade in _ways(owner_key.triggers.num_classes)
        ],
    }
    write_json(path, result)
    for row in result["rows"]:
        print(row)
    return result


def _ways(num_classes: int) -> list[tuple[str, float, Degraded]]:
    """Names, rates and functions from probabilities to what the server answers in their place."""

    def labels(probabilities: np.ndarray) -> np.ndarray:
        return np.asarray(probabilities.argmax(axis=1))

    def rounded(digits: int) -> Degraded:
        return lambda probabilities, random: probabilities.round(digits)

    def flipped(rate: float) -> Degraded:
        def answers(probabilities: np.ndarray, random: np.random.Generator) -> np.ndarray:
            given = labels(probabilities)
            others = (given + random.integers(1, num_classes, len(given))) % num_classes
            return np.where(random.random(len(given)) < rate, others, given)

        return answers

    def refused(rate: float) -> Degraded:
        def answers(probabilities: np.ndarray, random: np.random.Generator) -> np.ndarray:
            given = labels(probabilities)
            return np.where(random.random(len(given)) < rate, -1, given)

        return answers

    ways: list[tuple[str, float, Degraded]] = [
        ("probabilities", 0.0, rounded(17)),
        ("labels", 0.0, lambda probabilities, random: labels(probabilities)),
        ("probabilities of two digits", 0.0, rounded(2)),
        ("probabilities of one digit", 0.0, rounded(1)),
    ]
    ways += [("another class at random", rate, flipped(rate)) for rate in RATES]
    return ways + [("refused", rate, refused(rate)) for rate in RATES]


def power(probabilities: np.ndarray, owner_key: Any, degrade: Degraded, random: bool) -> dict[str, Any]:
    """How often degraded answers still prove the claim.

    Args:
        probabilities: `(K, C)` answers of the marked model.
        owner_key: Its key.
        degrade: From probabilities and a random generator to answers, in any form that `verify_predictions` takes.
        random: Whether chance is in it, so that many draws are needed.

    Returns:
        Mean of the matches; shares of the draws in which all K answers, and the first few by a test that may stop early, prove
        the claim at the level for committed ones; questions that the latter asked, where it proved it.
    """
    import deepsigns_tf as ds
    from deepsigns_tf.trigger_verification import class_numbers, sequential_verdict

    commitment, num_triggers = owner_key.commitment(), len(probabilities)
    matches, proved, asked = [], [], []
    for draw in range(NUM_DRAWS if random else 1):
        answers = degrade(probabilities, np.random.default_rng(draw))
        verdict = ds.verify_predictions(answers, owner_key, commitment=commitment)
        matches.append(verdict.num_matches)
        proved.append(verdict.marked)
        numbers = class_numbers(answers, num_triggers, owner_key.triggers.num_classes)
        asked.append(_questions(numbers, owner_key, sequential_verdict))
    enough = [each for each in asked if each is not None]
    return {
        "num_matches": float(np.mean(matches)),
        "proved": float(np.mean(proved)),
        "proved_early": len(enough) / len(asked),
        "num_asked": float(np.mean(enough)) if enough else None,
    }


def _questions(answers: np.ndarray, owner_key: Any, judge: Callable[..., Any]) -> int | None:
    """After how many answers the claim is proved; None if never. Evidence once seen counts, so halving finds the first."""
    low, high = 0, len(answers)
    if not judge(answers, np.arange(high), owner_key, True).marked:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if judge(answers[:middle], np.arange(middle), owner_key, True).marked:
            high = middle
        else:
            low = middle
    return high


if __name__ == "__main__":
    run_program(Config, run)
