"""Are the p-values of whole verdicts true? Layers searched, units matched with a reference, everything paid for, keys committed to.

    python -m benchmarks.verdict_calibration         # results/verdict_calibration.json; goes on where it stopped

`verify` reads 20 unmarked models with 10,000 keys, once, with seeds fixed beforehand; with fewer keys in the ways that take longer: units
are matched with a reference's, the first of the models; and signed statements are shown, by owners who commit to five keys each and show
the luckiest, who state the map when they have seen the suspect, or who claim by weights or answers, whichever suits. The models are run
once and looked up afterwards, the rest is `verify`.
"""

import dataclasses
import datetime
import functools
import hashlib
import io
import os
import pathlib
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.calibration import LEVELS, MODEL_SEEDS, acceptance, unmarked_mlp
from deepsigns_tf.activations import Inputs
from deepsigns_tf.carriers import Carrier, CarrierLayer
from deepsigns_tf.commitments import Evidence, Release, Statement, TimeStamp, release_commitment
from deepsigns_tf.derivation import derive_bytes
from deepsigns_tf.files import write_atomically
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.responses import LocalModel, Place, Responses, Role
from deepsigns_tf.statistics import DecisionRule
from deepsigns_tf.trigger_verification import verify_predictions
from deepsigns_tf.verification import verify
from scripts.configs import command_line, option, run_program
from scripts.cores import pool_on_cores

# Fixed before the first run.
KEY_SEED = b"deepsigns_tf calibration of verdicts of 2026-11-26"

NUM_EXAMPLES = 10_000
_EVERY_OUTPUT = Role(tuple(range(10)), "mean", bits_per_class=64, least_units=1, most_units=1 << 20)
# Of one owner, in statements of one signing key.
NUM_COMMITMENTS = 5
_KEYS_A_PART = 20 * NUM_COMMITMENTS
_SUSPECT_SINCE = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
_BEFORE, _AFTER = (_SUSPECT_SINCE + datetime.timedelta(days=days) for days in (-1, 1))


@dataclasses.dataclass(frozen=True)
class Config:
    """How much to measure."""

    results_dir: str = option("results", "Folder for the result.", shapes_result=False)
    runs_dir: str = option("runs", "Folder for the models and for parts of the result.", shapes_result=False)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    num_keys: int = option(10_000, "Keys without a reference.", minimum=2)
    num_referring_keys: int = option(300, "Keys that refer to the first model.", minimum=2)
    num_stated_keys: int = option(2_000, "Keys in signed statements, five of an owner's.", minimum=2 * NUM_COMMITMENTS)
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
        self.answers = np.load(folder / "answers.npy")
        self._num_outputs = int((folder / "num_outputs").read_text())
        self._outputs = {
            Place(path.stem.replace("|", "/"), 0): np.load(path, mmap_mode="r")
            for path in sorted((folder / "outputs").iterdir())
        }
        self._last: tuple[Any, Any, list[Responses]] = (None, None, [])

    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """None that are declared."""
        return {}

    def layer_paths(self) -> list[str]:
        """Paths of the layers whose outputs are known."""
        return [place.path for place in self._outputs]

    def digest_of_weights(self) -> str:
        """That of no release: weights are not looked up, and no p depends on them."""
        return 64 * "0"

    def class_means(self, inputs: Inputs, labels: np.ndarray, roles: Sequence[Role]) -> list[Responses]:
        """Class means, one entry for each role; those that were asked for last are not computed again."""
        if self._last[0] is not inputs or self._last[1] != roles:
            found = []
            for role, heard in zip(roles, self.features(inputs, roles), strict=True):
                means = {
                    place: np.stack([each[labels == label].mean(axis=0, dtype=np.float64) for label in role.classes])
                    for place, each in heard.arrays.items()
                }
                found.append(Responses(means, heard.num_admissible))
            self._last = (inputs, roles, found)
        return self._last[2]

    def features(self, inputs: Inputs, roles: Sequence[Role]) -> list[Responses]:
        """Features, one entry for each role; of copies of one output, which read the same, one, while all are counted."""
        rows = np.asarray(inputs)[:, 0]
        return [
            Responses(
                {
                    place: np.asarray(each[rows])
                    for place, each in self._outputs.items()
                    if role.least_units <= each.shape[1] <= role.most_units
                },
                self._num_outputs,
            )
            for role in roles
        ]


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
    # A part depends on the models and on the numbers of its keys alone.
    folder = pathlib.Path(config.runs_dir, "verdict_calibration", f"epochs_{config.epochs}")
    folder.mkdir(parents=True, exist_ok=True)
    suspects = [folder / f"model_{seed}" for seed in MODEL_SEEDS]
    for seed, suspect in tqdm(list(zip(MODEL_SEEDS, suspects, strict=True)), desc="models"):
        if not suspect.exists():
            record(unmarked_mlp(seed, data, config.epochs), inputs, suspect, saved=suspect == suspects[0])
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with pool_on_cores(config.num_workers) as pool:
        for judge, num_keys in (
            (_searched, config.num_keys),
            (_matched, config.num_referring_keys),
            (_stated, config.num_stated_keys),
        ):
            parts = [range(start, min(start + _KEYS_A_PART, num_keys)) for start in range(0, num_keys, _KEYS_A_PART)]
            kept = functools.partial(_part, judge, labels=labels, suspects=suspects, folder=folder)
            each = list(tqdm(pool.map(kept, parts), total=len(parts), desc=f"{judge.__name__[1:]}, parts"))
            for ways in each[0]:
                log10_p, factors = (np.concatenate([part[ways][place] for part in each]) for place in range(2))
                found[ways] = log10_p, factors
    rows = [
        {"ways": ways, "num_keys": len(log10_p), "factor": int(factors.max())}
        | acceptance(test, level, log10_p[:, :, number])
        for ways, (log10_p, factors) in found.items()
        for number, test in enumerate(("hard", "soft")[: log10_p.shape[2]])
        for level in LEVELS
    ]
    result = {
        **circumstances(command_line("benchmarks.verdict_calibration", config)),
        "data": f"mnist, {len(MODEL_SEEDS)} unmarked models (seeds {MODEL_SEEDS[0]} to {MODEL_SEEDS[-1]}, the first of them the "
        f"reference), keys of 10 x 64 bits from {NUM_EXAMPLES} images; where claims may rest on answers, 100 triggers among these",
        "rows": rows,
    }
    write_json(path, result)
    for row in rows:
        print(row)
    return result


def record(model: Any, inputs: np.ndarray, folder: pathlib.Path, saved: bool) -> None:
    """Writes down what every output of a model says, and what it answers.

    Args:
        model: A Keras model.
        inputs: All examples.
        folder: A new one; it is there once all is.
        saved: Whether the model may be a key's reference; its file is kept.
    """
    from deepsigns_tf.files import file_digest

    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "outputs").mkdir(parents=True)
    if saved:
        model.save(unfinished / "model.keras")
        (unfinished / "digest").write_text(file_digest(unfinished / "model.keras"))
    np.save(unfinished / "answers.npy", model.predict(inputs, batch_size=1000, verbose=0).argmax(axis=1))
    (heard,) = LocalModel(model, 1000).features(inputs, [_EVERY_OUTPUT])
    (unfinished / "num_outputs").write_text(str(heard.num_admissible))
    written: list[np.ndarray] = []
    for place, features in heard.arrays.items():
        # A dropout layer's is a copy of the one before.
        if not any(np.array_equal(features, other) for other in written):
            np.save(unfinished / "outputs" / f"{place.path.replace('/', '|')}.npy", features)
            written.append(features)
    os.rename(unfinished, folder)


# Way to read -> `(units, suspects, tests)` log10 p after all corrections, and `(units,)` the largest of these, assignments of carriers.
Judged = dict[str, tuple[np.ndarray, np.ndarray]]


def _part(
    judge: Any, numbers: range, labels: np.ndarray, suspects: Sequence[pathlib.Path], folder: pathlib.Path
) -> Judged:
    """What came of some keys; it is kept, and not measured again."""
    path = folder / f"{judge.__name__[1:]}_{numbers.start}_{numbers.stop}.npz"
    if not path.exists():
        content = io.BytesIO()
        measured = judge(numbers, labels, suspects)
        np.savez(content, **{f"{ways}|{n}": each for ways, pair in measured.items() for n, each in enumerate(pair)})
        write_atomically(path, content.getvalue())
    with np.load(path, allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    return {name[:-2]: (found[name], found[f"{name[:-1]}1"]) for name in found if name.endswith("|0")}


def _searched(numbers: range, labels: np.ndarray, suspects: Sequence[pathlib.Path], match: bool = False) -> Judged:
    """Every layer, with digits that were published."""
    log10_p, factors = [], []
    known = _looked_up(suspects[0]) if match else None
    for number in numbers:
        key = key_of(number, labels, suspects[0] / "model.keras" if match else None)
        verdicts = [
            verify(_looked_up(suspect), key, commitment=key.commitment(), reference=known) for suspect in suspects
        ]
        log10_p.append([[verdict.log10_p_hard, verdict.log10_p_soft] for verdict in verdicts])
        factors.append(max(verdict.num_assignments for verdict in verdicts))
    return {"search and match" if match else "search": (np.array(log10_p), np.array(factors))}


def _matched(numbers: range, labels: np.ndarray, suspects: Sequence[pathlib.Path]) -> Judged:
    """Every layer, also with units matched."""
    return _searched(numbers, labels, suspects, match=True)


def _stated(numbers: range, labels: np.ndarray, suspects: Sequence[pathlib.Path]) -> Judged:
    """Whatever suits whoever has signed statements."""
    by_map, by_late_map, by_either = [], [], []
    for number in numbers:
        key = key_of(number, labels)
        with warnings.catch_warnings():
            # Inputs are numbers of examples, some of them drawn twice: no model shall learn these.
            warnings.filterwarnings("ignore", "No model can learn all of these triggers")
            both = key.with_triggers("noise", 100, 10, np.arange(len(labels))[:, None])
        before, both_before = stated(key, number, _BEFORE), stated(both, number, _BEFORE)
        asked = both.triggers.inputs[:, 0]  # type: ignore[union-attr]
        for path in suspects:
            suspect = _looked_up(path)
            by_map.append(verify(suspect, key, evidence=before))
            best = verify(suspect, key).readings[0].layer
            late = key.with_layers([CarrierLayer("features", best, 512)])
            by_late_map.append(verify(suspect, late, evidence=stated(late, number, _AFTER)))
            claims = (
                verify(suspect, both, evidence=both_before),
                verify_predictions(suspect.answers[asked], both, evidence=both_before),
            )
            by_either.append(min(claims, key=lambda each: each.log10_p_value))

    def luckiest(verdicts: list[Any]) -> np.ndarray:
        """`(owners, suspects, 1)` of the keys that one owner committed to."""
        log10_p = np.array([verdict.log10_p_value for verdict in verdicts]).reshape(len(numbers), len(suspects), 1)
        owners = [
            log10_p[start : start + NUM_COMMITMENTS].min(axis=0) for start in range(0, len(numbers), NUM_COMMITMENTS)
        ]
        return np.array(owners)

    return {
        f"{ways}, luckiest of {NUM_COMMITMENTS} commitments": (found := luckiest(verdicts), np.full(len(found), factor))
        for ways, verdicts, factor in (
            ("map stated in time", by_map, by_map[0].num_assignments),
            ("map stated to suit the suspect", by_late_map, by_late_map[0].num_assignments),
            ("weights or answers", by_either, 1),
        )
    }


class Key(OwnerKey):
    """A key that derives its matrix once for all suspects and ways."""

    def projection(self, carrier: str, num_units: int) -> np.ndarray:
        """As `OwnerKey.projection`."""
        wanted = (self.seed, self.reference, carrier, num_units)
        if wanted not in _matrix:
            _matrix.clear()
            _matrix[wanted] = super().projection(carrier, num_units)
        return _matrix[wanted]


_matrix: dict[Any, np.ndarray] = {}


def key_of(number: int, labels: np.ndarray, reference: pathlib.Path | None = None) -> Key:
    """The key of a number, for the layer that the MNIST network's mark is in.

    Args:
        number: Which one.
        labels: Of all examples.
        reference: The file that it refers to.
    """
    from models.mnist_mlp import FEATURES

    seed = derive_bytes(KEY_SEED, ("key", number), 32)
    key: Any = Key("calibration", (Carrier("features", range(10), 64),), DecisionRule(), seed)
    if reference is not None:
        key = key.with_reference(reference)
    # The numbers stand for the images: the seed picks the same either way.
    key = key.with_key_inputs(np.arange(len(labels))[:, None], labels, 64)
    return key.with_layers([CarrierLayer("features", FEATURES, 512)])


def stated(key: OwnerKey, number: int, released: datetime.datetime) -> Evidence:
    """Statements, checked and dated, of an owner who commits to five keys and opens this one.

    Args:
        key: The key, whose place among the five follows from its number.
        number: Its number.
        released: By when its map is stated; all else is stated before the suspects exist.
    """
    weights = hashlib.sha256(b"weights").hexdigest()
    others = [hashlib.sha256(b"other %d" % place).hexdigest() for place in range(number % NUM_COMMITMENTS)]
    release = Release("1.0", weights, release_commitment(key, weights, "1.0"))
    links = [*((other, None) for other in others), (key.commitment(), None), (key.commitment(), release)]
    statements: list[Statement] = []
    for place, (commitment, stated_release) in enumerate(links, 1):
        previous = statements[-1].digest() if statements else None
        statements.append(Statement(key.owner, 64 * "1", place, previous, commitment, stated_release))
    stamps = {each.number: TimeStamp(_BEFORE, "CN=Authority", each.number) for each in statements}
    return Evidence(tuple(statements), stamps | {len(links): TimeStamp(released, "CN=Authority", 0)}, _SUSPECT_SINCE)


_looked_up = functools.cache(LookedUp)


if __name__ == "__main__":
    run_program(Config, run)
