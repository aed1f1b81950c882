"""Are the p-values of whole verdicts true? Layers searched, units matched with a reference, everything paid for, keys committed to.

    python -m benchmarks.verdict_calibration         # results/verdict_calibration.json

`verify` reads 20 unmarked models with 10,000 keys, once, with seeds fixed beforehand; with fewer keys, which refer to the first of the
models, it matches units as well, which takes thirty times as long. The models are run once and looked up afterwards, the rest is `verify`.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.calibration import LEVELS, MODEL_SEEDS, acceptance, unmarked_mlp
from deepsigns_tf.activations import Inputs
from deepsigns_tf.carriers import Carrier, CarrierLayer
from deepsigns_tf.derivation import derive_bytes
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.responses import LocalModel, Place, Responses, Role, means_of_classes
from deepsigns_tf.statistics import DecisionRule
from deepsigns_tf.verification import verify
from scripts.configs import command_line, option, run_program
from scripts.cores import pool_on_cores

# Fixed before the first run.
KEY_SEED = b"deepsigns_tf calibration of verdicts of 2026-11-26"

NUM_EXAMPLES = 10_000
_EVERY_OUTPUT = Role(tuple(range(10)), "mean", bits_per_class=64, least_units=1, most_units=1 << 20)


@dataclasses.dataclass(frozen=True)
class Config:
    """How much to measure."""

    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    num_keys: int = option(10_000, "Keys without a reference.", minimum=2)
    num_referring_keys: int = option(300, "Keys that refer to the first model.", minimum=2)
    epochs: int = option(2, "Passes over the training set for each unmarked model.", minimum=1)
    num_workers: int = option(2, "Processes.", minimum=1, shapes_result=False)


class LookedUp:
    """A model whose outputs are known for all examples; inputs are the examples' numbers.

    Args:
        folder: What `record` has written.
    """

    caveats = ()

    def __init__(self, folder: pathlib.Path) -> None:
        self.file_digest = (folder / "digest").read_text() if (folder / "digest").exists() else None
        self._outputs = {
            Place(path.stem.replace("|", "/"), 0): np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))
        }

    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """None that are declared."""
        return {}

    def layer_paths(self) -> list[str]:
        """Paths of the layers whose outputs are known."""
        return [place.path for place in self._outputs]

    def class_means(self, inputs: Inputs, labels: np.ndarray, roles: Sequence[Role]) -> list[Responses]:
        """Class means, one entry for each role."""
        found = []
        for role, heard in zip(roles, self.features(inputs, roles), strict=True):
            means = {place: means_of_classes(each, labels, role.classes) for place, each in heard.arrays.items()}
            found.append(Responses(means, heard.num_admissible))
        return found

    def features(self, inputs: Inputs, roles: Sequence[Role]) -> list[Responses]:
        """Features, one entry for each role."""
        rows = np.asarray(inputs)[:, 0]
        found = []
        for role in roles:
            wide = {place: each for place, each in self._outputs.items() if each.shape[1] > role.bits_per_class}
            told = {
                place: np.asarray(each[rows])
                for place, each in wide.items()
                if role.least_units <= each.shape[1] <= role.most_units
            }
            found.append(Responses(told, len(wide)))
        return found


def run(config: Config) -> dict[str, Any]:
    """Trains the models, judges them with all keys and compares rates of acceptance with the levels.

    Args:
        config: How much.

    Returns:
        What `results/verdict_calibration.json` holds.
    """
    from scripts.datasets import load_mnist
    from scripts.records import circumstances, result_file, write_json

    path = result_file(config.results_dir, "verdict_calibration")
    data = load_mnist("mnist", config.data_dir)
    inputs, labels = data.x_train[:NUM_EXAMPLES], data.y_train[:NUM_EXAMPLES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        suspects = [pathlib.Path(folder, str(seed)) for seed in MODEL_SEEDS]
        for seed, suspect in tqdm(list(zip(MODEL_SEEDS, suspects, strict=True)), desc="models"):
            record(unmarked_mlp(seed, data, config.epochs), inputs, suspect, saved=suspect == suspects[0])
        with pool_on_cores(config.num_workers) as pool:
            for ways, num_keys in (("search", config.num_keys), ("search and match", config.num_referring_keys)):
                reference = suspects[0] if "match" in ways else None
                judge = functools.partial(log10_p_values, labels=labels, suspects=suspects, reference=reference)
                found = list(tqdm(pool.map(judge, range(num_keys), chunksize=8), total=num_keys, desc=ways))
                log10_p, factors = (np.array(each) for each in zip(*found, strict=True))
                rows += [
                    {"ways": ways, "num_keys": num_keys, "factor": int(factors.max())}
                    | acceptance(test, level, log10_p[:, :, number])
                    for number, test in enumerate(("hard", "soft"))
                    for level in LEVELS
                ]
    result = {
        **circumstances(command_line("benchmarks.verdict_calibration", config)),
        "data": f"mnist, {len(MODEL_SEEDS)} unmarked models (seeds {MODEL_SEEDS[0]} to {MODEL_SEEDS[-1]}, the first of them the "
        f"reference), keys of 10 x 64 bits from {NUM_EXAMPLES} images",
        "rows": rows,
    }
    write_json(path, result)
    for row in rows:
        print(row)
    return result


def record(model: Any, inputs: np.ndarray, folder: pathlib.Path, saved: bool) -> None:
    """Writes down what every wide output of a model says.

    Args:
        model: A Keras model.
        inputs: All examples.
        folder: A new one.
        saved: Whether the model may be a key's reference; its file is kept.
    """
    from deepsigns_tf.files import file_digest

    folder.mkdir()
    if saved:
        model.save(folder / "model.keras")
        (folder / "digest").write_text(file_digest(folder / "model.keras"))
    (heard,) = LocalModel(model, 1000).features(inputs, [_EVERY_OUTPUT])
    for place, features in heard.arrays.items():
        np.save(folder / f"{place.path.replace('/', '|')}.npy", features)


def log10_p_values(
    number: int, labels: np.ndarray, suspects: Sequence[pathlib.Path], reference: pathlib.Path | None
) -> tuple[np.ndarray, int]:
    """What verdicts say of all suspects' models with one key.

    Args:
        number: Of the key.
        labels: Of all examples.
        suspects: Folders that `record` has written.
        reference: The one that the key refers to.

    Returns:
        `(suspects, 2)` log10 p of the hard and the soft test after all corrections, and the largest correction.
    """
    from models.mnist_mlp import FEATURES

    seed = derive_bytes(KEY_SEED, ("key", number), 32)
    key = OwnerKey("calibration", (Carrier("features", range(10), 64),), DecisionRule(), seed)
    if reference is not None:
        key = key.with_reference(reference / "model.keras")
    # The numbers stand for the images: the seed picks the same either way.
    key = key.with_key_inputs(np.arange(len(labels))[:, None], labels, 64)
    key = key.with_layers([CarrierLayer("features", FEATURES, 512)])
    known = None if reference is None else _looked_up(reference)
    verdicts = [verify(_looked_up(suspect), key, commitment=key.commitment(), reference=known) for suspect in suspects]
    log10_p = np.array([[verdict.log10_p_hard, verdict.log10_p_soft] for verdict in verdicts])
    return log10_p, max(verdict.num_assignments for verdict in verdicts)


_looked_up = functools.cache(LookedUp)


if __name__ == "__main__":
    run_program(Config, run)
