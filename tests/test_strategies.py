"""Trainings spread over devices and processes end with the weights of one device, and what a TPU cannot do is not asked of it.

TensorFlow fixes its devices and fellow workers when it starts, so this file runs itself in processes of their own.
"""

import functools
import importlib.util
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from tests.finished_runs import FILES, MILD_MARK, verified_here

REPOSITORY = pathlib.Path(__file__).parents[1]
NUM_CLASSES, NUM_FEATURES, NUM_EXAMPLES = 4, 16, 256
BATCH_SIZE, EPOCHS = 32, 4

# What another worker than the first may read of them.
READ = ("config.json", "marked.checkpoint", "marked.keras", "owner.key", "unmarked.checkpoint", "unmarked.keras")

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="`tf.distribute` needs TensorFlow"
)


# What the processes do


def _key():
    """128 bits in 4 classes, the same in every process."""
    carriers = [ds.Carrier("features", range(NUM_CLASSES), 32)]
    return ds.OwnerKey("ACME Vision", carriers, ds.DecisionRule(), bytes(range(32)))


def _blobs():
    """Rows of features in well separated classes, and their labels; the last 64 are for tests."""
    random = np.random.default_rng(0)
    labels = np.arange(NUM_EXAMPLES + 64) % NUM_CLASSES
    centres = random.normal(size=(NUM_CLASSES, NUM_FEATURES))
    return (centres[labels] + 0.3 * random.normal(size=(len(labels), NUM_FEATURES))).astype("float32"), labels


def _network(kind, regularizers=None, model_class=keras.Model):
    """16-128-128-4; "batch_norm" and "dropout" have such a layer between the hidden ones, which are convolutions in "maps"."""
    x = inputs = keras.Input((NUM_FEATURES,), name="inputs")
    regularizer = (regularizers or {}).get("features")
    if kind == "maps":
        x = keras.layers.Reshape((4, 4, 1), name="maps")(x)
        x = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="hidden")(x)
        x = keras.layers.Conv2D(128, 3, activation="relu", activity_regularizer=regularizer, name="features")(x)
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
        return model_class(inputs, keras.layers.Dense(NUM_CLASSES, name="logits")(x), name="network")
    x = keras.layers.Dense(128, "relu", name="hidden")(x)
    if kind == "batch_norm":
        x = keras.layers.BatchNormalization(name="norm")(x)
    if kind == "dropout":
        x = keras.layers.Dropout(0.2, name="dropout")(x)
    x = keras.layers.Dense(128, "relu", activity_regularizer=regularizer, name="features")(x)
    return model_class(inputs, keras.layers.Dense(NUM_CLASSES, name="logits")(x), name="network")


def _run(strategy, kind, folder, weights, **changes):
    """Trains as the programs do and leaves the weights of both models in `{weights}_{unmarked or marked}.npz`."""
    from scripts import training
    from scripts.datasets import Dataset
    from scripts.tasks import Task, TrainingConfig

    settings = {
        "batch_size": BATCH_SIZE,
        "carriers": "features:32",
        "epochs": EPOCHS,
        "learning_rate": 0.1,
        "num_classes": NUM_CLASSES,
        "num_key_inputs_per_class": 16,
        "optimizer": "sgd",
    }
    config = TrainingConfig(str(folder), strategy=strategy, **(settings | changes))
    x, y = _blobs()
    data = Dataset("blobs", x[:NUM_EXAMPLES], y[:NUM_EXAMPLES], x[NUM_EXAMPLES:], y[NUM_EXAMPLES:])
    task = Task("tests", "network", data, functools.partial(_network, kind), ("features",))
    fit = training.fit_classifier

    def fit_and_keep_weights(model, folder, name, *args):
        fit(model, folder, name, *args)
        _save_weights(f"{weights}_{name}.npz", model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit_classifier", fit_and_keep_weights)
        # The same bits in all runs, and no more processes than needed.
        patch.setattr(training, "generate_key", lambda config, task: _key_of_run(config, x, y))
        patch.setattr(training, "_verify_in_fresh_process", verified_here)
        return training.run(config, lambda: task)


def _key_of_run(config, x, y):
    key = _key().with_key_inputs(x, y, 16)
    if config.num_triggers:
        key = key.with_triggers("noise", config.num_triggers, NUM_CLASSES, x)
    return key


def _refusal(*args, **changes):
    """What a run says that must not begin."""
    try:
        _run(*args, **changes)
    except ValueError as error:
        return str(error)
    return None


def _save_weights(path, model):
    """Trainable weights in one vector, and the others."""
    trainable, other = (
        np.concatenate([np.zeros(0), *(np.ravel(keras.ops.convert_to_numpy(each)) for each in weights)])
        for weights in (model.trainable_weights, model.non_trainable_weights)
    )
    np.savez(path, trainable=trainable, other=other)


def _devices(folder):
    """One device and two."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for strategy in ("none", "mirrored"):
        for kind in ("plain", "maps", "batch_norm", "dropout"):
            _run(strategy, kind, folder / f"{strategy}_{kind}", folder / f"weights_{strategy}_{kind}")
        # Both marks in one pass.
        triggers = {"num_triggers": 40, "num_triggers_per_batch": 8}
        _run(strategy, "plain", folder / f"{strategy}_triggers", folder / f"weights_{strategy}_triggers", **triggers)
    _fit_step_by_step(folder / "weights_step_by_step_marked.npz")
    refusals = {
        "uneven": _refusal("mirrored", "plain", folder / "refused", folder / "weights", batch_size=33),
        "xla": _refusal("mirrored", "plain", folder / "refused", folder / "weights", jit_compile="on"),
        "tpu": _refusal("tpu", "plain", folder / "refused", folder / "weights"),
    }
    (folder / "refusals.json").write_text(json.dumps(refusals))


def _fit_step_by_step(path):
    """The loop of several workers with two replicas in one process, as on a worker with two GPUs."""
    from scripts.pipelines import training_batches
    from scripts.strategies import fit, strategy_named

    keras.utils.set_random_seed(0)
    steps_per_epoch = NUM_EXAMPLES // BATCH_SIZE
    x, y = (each[:NUM_EXAMPLES] for each in _blobs())
    with strategy_named("mirrored").scope():
        model = _network("plain", {"features": ds.SignatureRegularizer(_key(), "features")}, ds.WatermarkedModel)
        schedule = keras.optimizers.schedules.CosineDecay(0.1, EPOCHS * steps_per_epoch)
        optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    batches = functools.partial(training_batches, x, y, BATCH_SIZE, 0, range(EPOCHS))
    fit(model, batches, BATCH_SIZE, epochs=EPOCHS, initial_epoch=0, steps_per_epoch=steps_per_epoch)
    _save_weights(path, model)


def _worker(folder, number):
    """One of two processes; the second one sees the first one's folders through links. The first one kills itself."""
    runs = folder / str(number)
    results = {
        kind: _run("multi_worker", kind, runs / kind, folder / f"weights_{number}_{kind}")
        for kind in ("plain", "batch_norm")
    }
    refusals = {
        "full": _refusal("multi_worker", "plain", runs / "full", folder / "weights"),
        "flags": _refusal("multi_worker", "plain", runs / "flags", folder / "weights", seed=number),
    }
    (folder / f"results_{number}.json").write_text(json.dumps({"results": results, "refusals": refusals}))
    if number == 0:
        _die_after_an_epoch_of_the_marked_model()
    _run("multi_worker", "plain", runs / "killed", folder / f"weights_{number}_killed")


def _die_after_an_epoch_of_the_marked_model():
    from scripts.checkpoints import Checkpoint

    on_epoch_end = Checkpoint.on_epoch_end

    def on_epoch_end_and_die(self, epoch, logs=None):
        on_epoch_end(self, epoch, logs)
        if (self.path.stem, epoch) == ("marked", 1):
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.on_epoch_end = on_epoch_end_and_die


def _resuming_worker(folder, number):
    """Goes on with the run of the killed processes, then tries Keras' own loop."""
    _run("multi_worker", "plain", folder / str(number) / "killed", folder / f"weights_{number}_resumed", resume=True)
    from scripts.strategies import strategy_named

    with strategy_named("multi_worker").scope():
        model = _network("plain")
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    try:
        model.fit(*_blobs(), batch_size=BATCH_SIZE, verbose=0)
    except Exception as error:  # Which one, the test looks at.
        (folder / f"keras_{number}.txt").write_text(f"{type(error).__name__}: {error}")


def _distributed_by_keras(folder):
    """One device and two on JAX."""
    for num_devices in (1, 2):
        devices = keras.distribution.list_devices()[:num_devices]
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
        for kind in ("plain", "batch_norm", "dropout"):
            for centres in ("batch", "learned"):
                keras.utils.set_random_seed(0)
                regularizer = ds.SignatureRegularizer(_key(), "features", centres=centres)
                model = _network(kind, {"features": regularizer}, ds.WatermarkedModel)
                model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
                model.fit(*_blobs(), batch_size=BATCH_SIZE, epochs=2, shuffle=False, verbose=0)
                assert len(model.get_layer("hidden").kernel.value.sharding.device_set) == num_devices
                _save_weights(folder / f"weights_{num_devices}_{kind}_{centres}.npz", model)


# The processes


def _start(*args, python=sys.executable, **environment):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)} | environment
    command = [str(python), __file__, *map(str, args)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(processes, timeout=900):
    """What each of them printed; none outlives this call."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start_workers(what, folder):
    """Two processes that know each other by `TF_CONFIG`."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("localhost", 0))
        workers = [f"localhost:{each.getsockname()[1]}" for each in (first, second)]
    config = {"cluster": {"worker": workers}}
    tasks = [{"type": "worker", "index": number} for number in range(2)]
    return [
        _start(what, folder, number, TF_CONFIG=json.dumps(config | {"task": task})) for number, task in enumerate(tasks)
    ]


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """The folder where one process trained on one device and on two."""
    folder = tmp_path_factory.mktemp("devices")
    process = _start("devices", folder)
    (printed,) = _finish([process])
    assert process.returncode == 0, printed[-4000:]
    return folder


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two processes that trained together until the first one killed itself: their folder, results and output."""
    folder = tmp_path_factory.mktemp("workers")
    for run in ("plain", "batch_norm", "full", "flags", "killed"):
        (folder / "1" / run).mkdir(parents=True)
        for name in READ:
            # A link to nothing, until the first worker has written the file.
            (folder / "1" / run / name).symlink_to(folder / "0" / run / name)
    (folder / "0" / "full").mkdir(parents=True)
    (folder / "0" / "full" / "notes.txt").touch()
    processes = _start_workers("worker", folder)
    printed = _finish(processes)
    assert processes[0].returncode == -signal.SIGKILL, "\n".join(printed)[-8000:]
    records = [json.loads((folder / f"results_{number}.json").read_text()) for number in range(2)]
    return types.SimpleNamespace(
        folder=folder,
        printed=printed,
        returncodes=[process.returncode for process in processes],
        results=[record["results"] for record in records],
        refusals=[record["refusals"] for record in records],
    )


@pytest.fixture(scope="module")
def resumed(workers):
    """The folder where two processes went on with the run that was killed."""
    processes = _start_workers("resuming_worker", workers.folder)
    printed = _finish(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)[-8000:]
    return workers.folder


def _weights(folder, name):
    with np.load(folder / f"weights_{name}.npz") as arrays:
        return types.SimpleNamespace(trainable=arrays["trainable"], other=arrays["other"])


def _difference(one, other, which="trainable"):
    """The largest difference of a weight."""
    return np.abs(getattr(one, which) - getattr(other, which)).max()


# Two devices, two processes


@needs_tensorflow
@pytest.mark.parametrize("kind", ["plain", "maps"])
@pytest.mark.parametrize("model", ["unmarked", "marked"])
def test_two_devices_end_with_the_weights_of_one(model, kind, devices):
    one, two = (_weights(devices, f"{strategy}_{kind}_{model}") for strategy in ("none", "mirrored"))
    assert _difference(one, two) < 1e-5
    # They went far from where they began.
    keras.utils.set_random_seed(0)
    initial = np.concatenate([np.ravel(each) for each in _network(kind).get_weights()])
    assert np.abs(one.trainable - initial).max() > 0.1


@needs_tensorflow
@pytest.mark.parametrize("name", ["mirrored", "multi_worker", "tpu"])
def test_no_strategy_reaches_another_backend(name, monkeypatch):
    """Its training would be one device's, and the record would say otherwise."""
    from scripts.strategies import strategy_named

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(
        ValueError, match=rf"^This backend's training cannot be spread .* strategy='{name}', backend jax$"
    ):
        strategy_named(name)
    assert strategy_named("none").num_replicas_in_sync == 1


@needs_tensorflow
def test_two_devices_learn_the_triggers_of_one(devices):
    """Each has its share of them in every batch, and leaves them out of its class means."""
    one, two, plain = (
        _weights(devices, f"{run}_marked") for run in ("none_triggers", "mirrored_triggers", "none_plain")
    )
    assert _difference(one, two) < 1e-5 < 1e-2 < _difference(one, plain)
    alone, shared = (
        json.loads((devices / f"{strategy}_triggers" / "result.json").read_text()) for strategy in ("none", "mirrored")
    )
    for result in (alone, shared):
        assert result["verdict"]["marked"] and result["triggers"]["verdict"]["num_matches"] > 20
        assert result["triggers"]["smallest_margin"] == pytest.approx(alone["triggers"]["smallest_margin"], abs=1e-3)


@needs_tensorflow
@pytest.mark.parametrize("model", ["unmarked", "marked"])
@pytest.mark.parametrize("number", [0, 1])
def test_two_processes_end_with_the_weights_of_one(number, model, devices, workers):
    one, two = _weights(devices, f"none_plain_{model}"), _weights(workers.folder, f"{number}_plain_{model}")
    assert _difference(one, two) < 1e-5


@needs_tensorflow
def test_a_worker_with_two_devices_takes_the_same_steps(devices):
    assert _difference(_weights(devices, "none_plain_marked"), _weights(devices, "step_by_step_marked")) < 1e-5


@needs_tensorflow
@pytest.mark.parametrize("model", ["unmarked", "marked"])
def test_with_batch_normalization_two_replicas_differ_from_one_device(model, devices, workers):
    """Each normalizes its own half of the batch; on devices or in processes is the same."""
    one, two = (_weights(devices, f"{strategy}_batch_norm_{model}") for strategy in ("none", "mirrored"))
    first, second = (_weights(workers.folder, f"{number}_batch_norm_{model}") for number in range(2))
    assert 1e-3 < _difference(one, two) < 0.5
    assert _difference(two, first) < 1e-5 and _difference(two, first, "other") < 1e-5
    # Keras keeps moving statistics for each replica. The first one's are saved; training does not read them.
    assert _difference(first, second) < 1e-5 and _difference(first, second, "other") > 1e-3


@needs_tensorflow
def test_with_dropout_two_replicas_differ_from_one_device(devices):
    """Both draw the same numbers for their halves of the batch, where one device draws for all of its rows."""
    one, two = (_weights(devices, f"{strategy}_dropout_marked") for strategy in ("none", "mirrored"))
    assert 1e-3 < _difference(one, two) < 0.5


@needs_tensorflow
@pytest.mark.parametrize("kind", ["plain", "batch_norm", "dropout"])
def test_the_mark_of_two_devices_is_proved(kind, devices):
    result = json.loads((devices / f"mirrored_{kind}" / "result.json").read_text())
    assert result["verdict"]["marked"] and not result["controls"]["unmarked twin"]["marked"]


@needs_tensorflow
@pytest.mark.parametrize("kind", ["plain", "batch_norm"])
def test_the_mark_of_two_processes_is_proved_by_the_first(kind, workers):
    first, second = (results[kind] for results in workers.results)
    assert first["verdict"]["marked"] and not first["controls"]["unmarked twin"]["marked"]
    assert second == {}


@needs_tensorflow
def test_the_first_process_writes_what_a_run_promises_and_the_other_nothing(workers):
    for run in ("plain", "batch_norm"):
        folder = workers.folder / "0" / run
        assert {path.name for path in folder.iterdir()} == FILES
        for model in ("unmarked", "marked"):
            assert len(list(folder.glob(f"tensorboard/{model}/train/events.out.tfevents.*"))) == 1
    for run in ("plain", "batch_norm", "full", "flags", "killed"):
        # Files that the second one had written would stand beside the links, or in their place.
        left = {path.name: path.is_symlink() for path in (workers.folder / "1" / run).iterdir()}
        assert left == dict.fromkeys(READ, True)


@needs_tensorflow
@pytest.mark.parametrize("model", ["unmarked", "marked"])
def test_two_processes_show_the_progress_of_one_device(model, devices, workers):
    from scripts.folders import read_history

    paths = devices / "none_plain" / f"{model}.csv", workers.folder / "0" / "plain" / f"{model}.csv"
    one, two = (read_history(path) for path in paths)
    assert list(one) == list(two) and len(one["loss"]) == len(two["loss"]) == EPOCHS
    for name in one.keys() - {"seconds"}:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5)
    for epoch in range(1, EPOCHS + 1):
        shown = (
            rf"^Training the {model} model on blobs\n(.*\n)*?Epoch {epoch}/{EPOCHS}\n8/8 - .* - accuracy: .* - loss: "
        )
        assert re.search(shown, workers.printed[0], re.MULTILINE)
    assert "Epoch" not in workers.printed[1]


@needs_tensorflow
def test_no_process_goes_on_where_the_first_one_refuses_the_folder(workers):
    first, second = (refusals["full"] for refusals in workers.refusals)
    assert first.startswith("This folder is not empty;")
    assert second == (
        "Another worker gave up. Expected all workers to have the same flags, and the first one to find the folder as it must be. "
        "Received: an error, which that worker shows"
    )
    assert [path.name for path in (workers.folder / "0" / "full").iterdir()] == ["notes.txt"]


@needs_tensorflow
def test_no_process_goes_on_where_the_flags_differ(workers):
    first, second = (refusals["flags"] for refusals in workers.refusals)
    assert second == "This folder holds a run with other settings. Expected {'seed': 0}. Received: {'seed': 1}"
    assert first.startswith("Another worker gave up. ")


@needs_tensorflow
def test_a_process_whose_fellow_is_killed_ends_by_itself(workers):
    assert workers.returncodes[0] == -signal.SIGKILL and workers.returncodes[1] not in (0, -signal.SIGKILL)
    assert "UnavailableError" in workers.printed[1]


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_run_of_two_processes_that_was_killed_ends_where_it_would_have(number, workers, resumed):
    """The first one died after two epochs of the marked model."""
    from scripts.folders import read_history

    uninterrupted = _weights(workers.folder, f"{number}_plain_marked")
    assert _difference(uninterrupted, _weights(resumed, f"{number}_resumed_marked")) == 0.0
    folders = [resumed / "0" / run for run in ("plain", "killed")]
    assert {path.name for path in folders[1].iterdir()} == FILES
    losses = [read_history(folder / "marked.csv")["loss"] for folder in folders]
    assert len(losses[0]) == EPOCHS and losses[0] == losses[1]
    assert not (resumed / f"weights_{number}_resumed_unmarked.npz").exists()


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_keras_own_loop_fails_in_two_processes(number, resumed):
    """When it no longer does, `strategies.fit` can go."""
    assert "PerReplica" in (resumed / f"keras_{number}.txt").read_text()


# What is refused before anything is written


@needs_tensorflow
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            "uneven",
            "The replicas cannot share a batch evenly. Expected a multiple of their number. "
            "Received: batch_size=33, 2 replicas",
        ),
        (
            "xla",
            "XLA cannot be asked to compile a step that several replicas take. Expected `--jit_compile=auto`; a TPU compiles every step. "
            "Received: jit_compile='on', strategy='mirrored'",
        ),
        (
            "tpu",
            "No TPU answers. Expected one in this machine, or its name in the environment variable TPU_NAME. "
            "Received: NotFoundError: ",
        ),
    ],
)
def test_what_the_devices_cannot_do_is_refused(reason, expected, devices):
    refusal = json.loads((devices / "refusals.json").read_text())[reason]
    assert refusal.startswith(expected) and "\n" not in refusal
    assert not (devices / "refused").exists()


CLUSTER = {"worker": ["localhost:1", "localhost:2"]}


@needs_tensorflow
@pytest.mark.parametrize(
    "value",
    [
        None,
        "{",
        "[]",
        json.dumps({"cluster": CLUSTER}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker"}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": -1}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": "0"}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "evaluator", "index": 0}}),
        json.dumps({"cluster": CLUSTER | {"ps": ["localhost:3"]}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": {"worker": "localhost:1"}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": {"worker": [1, 2]}, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_a_process_that_does_not_know_its_fellows_is_refused(value, monkeypatch, tmp_path):
    from scripts import training
    from scripts.tasks import TrainingConfig

    monkeypatch.delenv("TF_CONFIG", raising=False)
    if value is not None:
        monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(ValueError) as error:
        # Before any data is loaded: TensorFlow then no longer connects.
        config = TrainingConfig(str(tmp_path / "run"), strategy="multi_worker")
        training.run(config, lambda: pytest.fail("data was loaded"))
    assert str(error.value) == (
        "This process does not know its fellow workers. Expected the same list of workers in every process's environment variable "
        'TF_CONFIG: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}. '
        f"Received: TF_CONFIG={value or ''!r}"
    )
    assert list(tmp_path.iterdir()) == []


# Shares of batches


@needs_tensorflow
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_the_shares_of_a_batch_make_the_batch_that_one_device_sees(num_parts):
    """With the same shifted and mirrored images: their random numbers are those of the whole batch."""
    from scripts.pipelines import crop_and_flip, training_batches

    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    batches = functools.partial(training_batches, images, np.arange(20) % 4, 8, 3, range(2), crop_and_flip, 4)
    whole, num_batches = batches()
    shares = [batches(share=(part, num_parts))[0] for part in range(num_parts)]
    assert {tuple(share.element_spec[0].shape) for share in shares} == {(8 // num_parts, 12, 12, 3)}
    compared = 0
    for (inputs, targets), *parts in zip(whole, *shares, strict=True):
        np.testing.assert_array_equal(inputs, np.concatenate([part[0] for part in parts]))
        np.testing.assert_array_equal(targets, np.concatenate([part[1] for part in parts]))
        compared += 1
    assert compared == 2 * num_batches == 4


# Half precision


@needs_tensorflow
@pytest.mark.parametrize("mixed_precision", ["none", "mixed_bfloat16", "mixed_float16"])
def test_a_program_proves_the_mark_whatever_the_precision(mixed_precision, tmp_path, monkeypatch):
    from scripts import train_mnist_mlp, training

    # It would start a process that does what is done below, outside of the program and its policy.
    monkeypatch.setattr(training, "_verify_in_fresh_process", verified_here)
    folder = tmp_path / "run"
    config = train_mnist_mlp.Config(
        str(folder), dataset="synthetic", epochs=3, mixed_precision=mixed_precision, **MILD_MARK
    )
    result = train_mnist_mlp.run(config)
    layer = keras.models.load_model(folder / "marked.keras").get_layer("features")
    computed = "float32" if mixed_precision == "none" else mixed_precision.removeprefix("mixed_")
    assert (layer.compute_dtype, layer.variable_dtype) == (computed, "float32")
    verdict = verified_here(folder)
    assert verdict["marked"] and verdict["bit_error_rate"] < 0.05
    assert not result["controls"]["unmarked twin"]["marked"] and not result["controls"]["wrong key"]["marked"]


# What a TPU asks for


def _networks():
    """Module in models/ -> builder, carrier, shape and type of an example, number of classes."""
    from models.cifar10_cnn import cifar10_cnn
    from models.imdb_lstm import imdb_lstm
    from models.mnist_mlp import mnist_mlp
    from models.wide_resnet import wide_resnet

    return {
        "cifar10_cnn": (cifar10_cnn, "features", (32, 32, 3), "float32", 10),
        "imdb_lstm": (functools.partial(imdb_lstm, num_tokens=50, sequence_length=6), "pooled", (6,), "int32", 2),
        "mnist_mlp": (mnist_mlp, "features", (784,), "float32", 10),
        "wide_resnet": (functools.partial(wide_resnet, 10, 1), "features", (32, 32, 3), "float32", 10),
    }


def _what_a_tpu_cannot_do(function, *args):
    """Operations on the host, and shapes that data decide on, in a function that XLA compiles."""
    import tensorflow as tf

    compiled = tf.function(function, jit_compile=True)
    graph = compiled.get_concrete_function(*args).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    on_host = {node.op for node in nodes if re.search("PyFunc|Print|Summary|Host|Infeed|Outfeed", node.op)}
    if on_host:
        return on_host
    # XLA writes the bound of a size that data decide on: f32[<=8,3].
    return set(re.findall(r"\w+\[[^\]]*<=[^\]]*\]", compiled.experimental_get_compiler_ir(*args)(stage="hlo")))


@needs_tensorflow
@pytest.mark.parametrize(
    ("network", "centres", "num_triggers"),
    [(path.stem, "batch", 0) for path in sorted((REPOSITORY / "models").glob("[!_]*.py"))]
    + [("mnist_mlp", "learned", 0), ("mnist_mlp", "batch", 2)],
)
def test_xla_compiles_the_whole_marked_step_with_static_shapes_and_nothing_on_the_host(network, centres, num_triggers):
    import tensorflow as tf

    build, carrier, shape, dtype, num_classes = _networks()[network]
    key = ds.OwnerKey("ACME Vision", [ds.Carrier(carrier, range(num_classes), 8)], ds.DecisionRule(), bytes(32))
    model = build({carrier: ds.SignatureRegularizer(key, carrier, centres=centres)}, ds.WatermarkedModel)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.num_triggers_per_batch = num_triggers
    x = tf.cast(tf.random.uniform((4, *shape), 0, 50, tf.int32, seed=0), dtype)
    y = tf.range(4) % num_classes
    # Makes the variables of optimizer and metrics.
    model.train_on_batch(x, y)
    assert _what_a_tpu_cannot_do(model.train_step, (x, y)) == set()
    logs = tf.function(model.train_step, jit_compile=True)((x, y))
    assert np.isfinite(float(logs["loss"])) and np.isfinite(float(logs[f"{carrier}_signature_loss"]))


@needs_tensorflow
def test_what_a_tpu_cannot_do_would_be_seen():
    import tensorflow as tf

    rows = tf.constant([1.0, -1.0])
    assert "f32[<=2]" in _what_a_tpu_cannot_do(lambda x: 2.0 * x[x > 0], rows)
    assert _what_a_tpu_cannot_do(lambda x: tf.py_function(lambda y: y, [x], tf.float32), rows) == {"EagerPyFunc"}


# The road that Keras itself takes to many hosts


@pytest.fixture(scope="module")
def distributed_by_keras(tmp_path_factory):
    """The folder where JAX trained on one device and on two."""
    python = REPOSITORY / ".venv-backends" / "bin" / "python"
    if importlib.util.find_spec("jax") is not None:
        python = pathlib.Path(sys.executable)
    elif not python.exists():
        pytest.skip("JAX is not installed here; `make test-backends` brings it")
    folder = tmp_path_factory.mktemp("keras")
    environment = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    process = _start("distributed_by_keras", folder, python=python, **environment)
    (printed,) = _finish([process])
    assert process.returncode == 0, printed[-4000:]
    return folder


@pytest.mark.any_backend
@pytest.mark.parametrize("centres", ["batch", "learned"])
@pytest.mark.parametrize("kind", ["plain", "batch_norm", "dropout"])
def test_keras_distribution_on_jax_ends_with_the_weights_of_one_device(kind, centres, distributed_by_keras):
    """A batch is one array there, so with BatchNorm and dropout too."""
    one, two = (_weights(distributed_by_keras, f"{number}_{kind}_{centres}") for number in (1, 2))
    assert _difference(one, two) < 1e-5
    if kind == "batch_norm":
        assert _difference(one, two, "other") < 1e-5


if __name__ == "__main__":
    what, folder, *number = sys.argv[1:]
    globals()[f"_{what}"](pathlib.Path(folder), *map(int, number))
