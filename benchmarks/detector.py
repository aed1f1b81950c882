"""Can it be seen without the key whether a network is marked? A classifier of networks, trained on many of both kinds.

    python -m benchmarks.populations --kind=unmarked
    python -m benchmarks.populations --kind=default         # and the other kinds
    python -m benchmarks.detector                           # results/detector.json

A network is described by what anybody can compute who has it and some inputs of the task. Networks are split, never inputs: each is
judged by classifiers that were trained on others, and told from unmarked networks that were trained as long. A mark of a hundred times
the strength is the positive control.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from benchmarks.populations import KINDS, UNMARKED, files_of, folder_of, marks_of, settings_of
from scripts.configs import command_line, option, run_program

_NUM_INPUTS = 2_000
_NUM_SINGULAR_VALUES = 12
_NUM_FOLDS = 5
_SEED = 20261126
# A detector that does not see this mark, by this area under the curve, says nothing of others.
_CONTROL, _SEEN = "strength 1000", 0.95


@dataclasses.dataclass(frozen=True)
class Config:
    """Which networks to tell apart."""

    num_resamples: int = option(300, "For the intervals.", minimum=100)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    runs_dir: str = option("runs", "Folder of the populations.", shapes_result=False)
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Trains detectors of every kind of mark against unmarked networks.

    Args:
        config: Which networks.

    Returns:
        What `results/detector.json` holds.

    Raises:
        ValueError: If networks are missing of a kind that was begun, of the control or of those that it is told from. Kinds that were not
            begun are left out, and named.
    """
    from tqdm import tqdm

    from scripts.datasets import load_mnist
    from scripts.records import circumstances, result_file, write_json

    path = result_file(config.results_dir, "detector")
    begun = [kind for kind in KINDS if kind in (UNMARKED, _CONTROL) or folder_of(config.runs_dir, kind).exists()]
    files = {kind: files_of(config.runs_dir, kind) for kind in begun}
    epochs = {kind: int(settings_of(config.runs_dir, kind)["epochs"]) for kind in begun}
    # Those that were trained for different times could be told by that.
    twins = {kind: _unmarked(epochs, kind) for kind in begun if KINDS[kind].mark is not None}
    data = load_mnist("mnist", config.data_dir)
    inputs, labels = data.x_test[:_NUM_INPUTS], data.y_test[:_NUM_INPUTS]
    described = {
        kind: np.array([description(_loaded(each), inputs, labels) for each in tqdm(of_kind, desc=kind)])
        for kind, of_kind in files.items()
    }
    rows = []
    for kind, twin in twins.items():
        marked, unmarked, read = described[kind], described[twin], marks_of(config.runs_dir, kind)
        numbers = {"num_marked": len(marked), "num_unmarked": len(unmarked), "num_features": unmarked.shape[1]}
        mark = {
            "bit_error_rate": float(np.mean([each["bit_error_rate"] for each in read])),
            "largest_log10_p_value": max(each["log10_p_value"] for each in read),
        }
        seen = detectability(marked, unmarked, config.num_resamples)
        rows.append({"kind": kind, "epochs": epochs[kind], **numbers, "mark": mark, "classifiers": seen})
    control = next(row for row in rows if row["kind"] == _CONTROL)
    largest = max(each["auc"] for each in control["classifiers"].values())
    result = {
        **circumstances(command_line("benchmarks.detector", config)),
        "data": data.name,
        "control": {"kind": _CONTROL, "auc": largest, "seen": largest >= _SEEN},
        "missing": [kind for kind in KINDS if KINDS[kind].mark is not None and kind not in twins],
        "rows": rows,
    }
    write_json(path, result)
    for row in rows:
        print(row)
    return result


def description(model: Any, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What can be said of a network without a key.

    For each hidden layer: how far apart and how uneven the class means of its activations are, how they vary within classes, the spectrum
    of the means, how many units are silent; for each kernel its moments and spectrum; how sure the answers are.

    Args:
        model: A functional network of Dense layers.
        inputs: `(n, ...)` inputs of the task.
        labels: `(n,)` integer labels.

    Returns:
        `(f,)` numbers.
    """
    import keras
    import scipy.stats

    hidden = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    outputs = keras.Model(model.inputs, [layer.output for layer in hidden]).predict(inputs, batch_size=1000, verbose=0)
    found: list[float] = []
    for activations in outputs[:-1]:
        means = np.stack([activations[labels == label].mean(axis=0) for label in np.unique(labels)])
        variances = np.stack([activations[labels == label].var(axis=0) for label in np.unique(labels)])
        centred = means - means.mean(axis=0)
        for values in (means, means.mean(axis=0), variances):
            spread = np.atleast_2d(values).std(axis=1)
            found += [values.mean(), spread.mean(), spread.std(), float(np.mean(scipy.stats.skew(values, axis=-1)))]
            found += [float(np.mean(scipy.stats.kurtosis(values, axis=-1)))]
        found += [(centred**2).mean() / variances.mean(), (activations == 0).mean(), (means.max(axis=0) == 0).mean()]
        found += _spectrum(centred)
    for layer in hidden:
        kernel, bias = layer.get_weights()
        found += [kernel.mean(), kernel.std(), float(scipy.stats.skew(kernel, axis=None)), bias.mean(), bias.std()]
        found += [float(scipy.stats.kurtosis(kernel, axis=None)), *_spectrum(kernel)]
        norms = np.linalg.norm(kernel, axis=0)
        found += [norms.mean(), norms.std() / norms.mean()]
    probabilities = scipy.special.softmax(outputs[-1], axis=1)
    surest = probabilities.max(axis=1)
    found += [surest.mean(), surest.std(), float((probabilities.argmax(axis=1) == labels).mean()), outputs[-1].std()]
    return np.array(found, np.float64)


def detectability(marked: np.ndarray, unmarked: np.ndarray, num_resamples: int) -> dict[str, Any]:
    """How well two kinds of networks can be told apart by their descriptions.

    Args:
        marked: `(n, f)` descriptions.
        unmarked: `(m, f)` descriptions.
        num_resamples: Of the networks, for the 95 % intervals.

    Returns:
        For each kind of classifier the area under the curve, by cross-validation, and an interval, out of bag: percentiles over resamples,
        in each of which a classifier is trained on the networks that were drawn and judged on the others. What the classifier owes to
        its training set is in it too, and fewer networks than in the area itself train and judge: it is wider rather than narrower.
    """
    import sklearn.base
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifiers = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=10_000)),
        "random forest": RandomForestClassifier(200, random_state=_SEED),
    }
    features = np.concatenate([marked, unmarked])
    truth = np.repeat([1, 0], [len(marked), len(unmarked)])
    folds = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=_SEED)
    random = np.random.default_rng(_SEED)
    result = {}
    for name, classifier in classifiers.items():
        scores = cross_val_predict(classifier, features, truth, cv=folds, method="predict_proba")[:, 1]
        resampled = []
        for _ in range(num_resamples):
            drawn = np.concatenate(
                [random.choice(np.flatnonzero(truth == side), (truth == side).sum()) for side in (0, 1)]
            )
            others = np.setdiff1d(np.arange(len(truth)), drawn)
            fitted = sklearn.base.clone(classifier).fit(features[drawn], truth[drawn])
            resampled.append(roc_auc_score(truth[others], fitted.predict_proba(features[others])[:, 1]))
        low, high = np.quantile(resampled, [0.025, 0.975])
        result[name] = {"auc": float(roc_auc_score(truth, scores)), "interval": [float(low), float(high)]}
    return result


def _spectrum(matrix: np.ndarray) -> list[float]:
    """The largest singular values, as shares of their sum, and how even they are."""
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values / values.sum()
    padded = np.zeros(_NUM_SINGULAR_VALUES)
    padded[: len(shares)] = shares[:_NUM_SINGULAR_VALUES]
    entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return [*padded, float(values[0]), entropy]


def _unmarked(epochs: dict[str, int], kind: str) -> str:
    """The unmarked networks that were trained as long as those of a kind."""
    for other, length in epochs.items():
        if KINDS[other].mark is None and length == epochs[kind]:
            return other
    raise ValueError(
        f"There are no unmarked networks to tell the kind {kind!r} from. Expected some of {epochs[kind]} epochs. Received: {epochs}"
    )


def _loaded(path: pathlib.Path) -> Any:
    import keras

    return keras.models.load_model(path, compile=False)


if __name__ == "__main__":
    run_program(Config, run)
