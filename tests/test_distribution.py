"""Two devices train as one: class sums are added over replicas before anything non-linear is done with them.

TensorFlow fixes its devices when it starts, so this file runs itself in a process of its own, on two logical CPUs.
"""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import deepsigns_tf as ds

tf = pytest.importorskip("tensorflow")

UNITS = 64


def _key():
    """64 bits in 4 classes, the same in every run."""
    return ds.OwnerKey("ACME Vision", [ds.Carrier("features", range(4), 16)], ds.DecisionRule(), bytes(range(32)))


def _data():
    """Three batches of 16; each replica gets the first or the last 8 rows of a batch.

    Class 3 is on the first replica alone, then absent altogether, then on both. Label 4 carries no bits; the replicas
    have different numbers of such rows.
    """
    labels = np.concatenate(
        [[0, 1, 2, 3] * 2 + [0, 1, 2, 4] * 2, [0, 1, 2, 4] * 2 + [0, 1, 2, 1] * 2, [0, 1, 2, 3] * 4]
    )
    return np.random.default_rng(0).normal(size=(48, 6)).astype("float32"), labels


class Subclassed(ds.WatermarkedModel):
    def __init__(self, hidden, head):
        super().__init__()
        self.hidden, self.head = hidden, head

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def _nothing(y_true, y_pred):
    """A task without any gradient."""
    return 0.0 * keras.ops.sum(y_pred, axis=-1)


def _train(strategy, rows, kind="functional", centres="batch", marked=True, task=True, evaluate=False):
    """Evaluates if asked to, then trains for one epoch, from the same weights, and shows where that led."""
    with strategy.scope():
        regularizer = ds.SignatureRegularizer(_key(), "features", 1.0, centres, 0.5) if marked else None
        hidden = keras.layers.Dense(UNITS, "relu", activity_regularizer=regularizer)
        head = keras.layers.Dense(5)
        if kind == "subclassed":
            model = Subclassed(hidden, head)
            model(np.zeros((1, 6), "float32"))
        else:
            x = inputs = keras.Input((6,))
            if kind == "beside":
                x = keras.layers.Dense(6, activity_regularizer=keras.regularizers.L2(0.1))(x)
            model = (ds.WatermarkedModel if marked else keras.Model)(inputs, head(hidden(x)))
        random = np.random.default_rng(1)
        model.set_weights([random.normal(scale=0.1, size=weight.shape) for weight in model.weights])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if task else _nothing
        model.compile(keras.optimizers.SGD(0.1), loss)
    x, labels = (array[:rows] for array in _data())
    evaluated = model.evaluate(x, labels, batch_size=16, verbose=0, return_dict=True) if evaluate else {}
    history = model.fit(x, labels, batch_size=16, shuffle=False, verbose=0).history
    return {
        "weights": np.concatenate([np.ravel(weights) for weights in model.get_weights()]).tolist(),
        "history": {name: float(values[0]) for name, values in history.items()},
        "evaluated": {name: float(value) for name, value in evaluated.items()},
    }


def _scenarios():
    """Name -> arguments of `_train`; each runs on one device and on two."""
    even = {
        "batch": {"rows": 48, "evaluate": True},
        "learned": {"rows": 48, "centres": "learned", "evaluate": True},
        "subclassed": {"rows": 48, "kind": "subclassed", "evaluate": True},
        "beside": {"rows": 48, "kind": "beside"},
    }
    uneven = {}
    for last in (13, 1):
        rows = 16 + last
        uneven[f"mark alone, {last}"] = {"rows": rows, "task": False, "evaluate": True}
        uneven[f"learned mark alone, {last}"] = {"rows": rows, "task": False, "centres": "learned"}
        uneven[f"plain, {last}"] = {"rows": rows, "marked": False}
        uneven[f"marked, {last}"] = {"rows": rows}
    return even | uneven


def _main(path):
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategies = {"one": tf.distribute.get_strategy(), "two": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
    assert strategies["two"].num_replicas_in_sync == 2
    results = {
        name: {devices: _train(strategy, **arguments) for devices, strategy in strategies.items()}
        for name, arguments in _scenarios().items()
    }
    ds.activations.all_reduce_sum = ds.regularizers.all_reduce_sum = lambda tensor: tensor
    for name in ("batch", "learned"):
        results[name]["two, each for itself"] = _train(strategies["two"], **_scenarios()[name])
    pathlib.Path(path).write_text(json.dumps(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("distribution") / "results.json"
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(ds.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run([sys.executable, __file__, str(path)], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(path.read_text())


def _weights(results, scenario, devices):
    return np.array(results[scenario][devices]["weights"])


def _difference(results, scenario, devices="two"):
    """The largest difference of a weight from one device's."""
    return np.abs(_weights(results, scenario, devices) - _weights(results, scenario, "one")).max()


@pytest.mark.parametrize("scenario", ["batch", "learned", "subclassed"])
def test_two_devices_reach_the_weights_of_one(scenario, results):
    """Three steps, one with a class that only one replica sees and one with a class that none does."""
    assert _difference(results, scenario) < 1e-5


def test_regularizers_of_keras_keep_their_gradient_beside_the_mark(results):
    """An L2 on the activations of the layer below the carrier, on every replica."""
    assert _difference(results, "beside") < 1e-5


@pytest.mark.parametrize("scenario", ["batch", "learned"])
def test_without_the_all_reduce_they_do_not(scenario, results):
    """What the test above compares does differ where each replica takes its own means."""
    assert _difference(results, scenario, "two, each for itself") > 1e-4


@pytest.mark.parametrize("stage", ["history", "evaluated"])
@pytest.mark.parametrize("scenario", ["batch", "learned", "subclassed"])
def test_two_devices_show_the_metrics_of_one(scenario, stage, results):
    one, two = (results[scenario][devices][stage] for devices in ("one", "two"))
    assert set(one) == {"loss", "features_signature_loss", "features_bit_error_rate"}
    assert two == pytest.approx(one, rel=1e-4)
    # The comparison is not between zeros.
    assert one["features_bit_error_rate"] > 0.05


@pytest.mark.parametrize("last", [13, 1])
def test_metrics_do_not_depend_on_how_the_last_batch_is_split(last, results):
    """Its class sums are added up whatever the shares, a replica without rows included."""
    one, two = (results[f"mark alone, {last}"][devices]["evaluated"] for devices in ("one", "two"))
    for name in ("features_bit_error_rate", "features_signature_loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


@pytest.mark.parametrize("last", [13, 1])
@pytest.mark.parametrize("mark", ["mark alone", "learned mark alone"])
def test_gradient_of_the_mark_does_not_depend_on_how_the_last_batch_is_split(mark, last, results):
    """13 rows go 7 and 6, one row goes to one replica and leaves the other without any."""
    assert _difference(results, f"{mark}, {last}") < 1e-5


@pytest.mark.parametrize("last", [13, 1])
def test_a_marked_model_drifts_no_further_than_a_plain_one(last, results):
    """Keras itself weighs the rows of an uneven batch unevenly; the mark must not add to that."""
    assert _difference(results, f"marked, {last}") < 1.2 * _difference(results, f"plain, {last}") + 1e-5


if __name__ == "__main__":
    _main(sys.argv[1])
