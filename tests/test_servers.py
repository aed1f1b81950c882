"""Models behind servers on this machine, asked whole: SavedModels as TensorFlow Serving serves them, and MLServer.

MLServer, a real server of the Open Inference Protocol, has an environment of its own (`make test-servers`). For TensorFlow Serving,
which no package index has, stands `tests/servers/saved_models.py`.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.questioning import Questioning

httpx = pytest.importorskip("httpx", reason="asking models behind HTTP needs `deepsigns_tf[remote]`")

REPOSITORY = pathlib.Path(__file__).parents[1]
MLSERVER = REPOSITORY / ".venv-servers" / "bin" / "mlserver"
with_mlserver = pytest.mark.skipif(
    not MLSERVER.exists(), reason="MLServer is not installed here; `make test-servers` brings it"
)

NUM_FEATURES, NUM_CLASSES = 200, 10


@pytest.fixture(scope="module")
def key():
    examples = np.random.default_rng(0).normal(size=(50, NUM_FEATURES)).astype(np.float32)
    owner_key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32))
    return owner_key.with_triggers("noise", 60, NUM_CLASSES, examples)


@pytest.fixture(scope="module")
def weights(key):
    """Of a linear model that has learnt the triggers by least squares, and of one that has not."""
    targets = np.eye(NUM_CLASSES)[key.triggers.labels]
    learnt = np.linalg.lstsq(key.triggers.inputs.astype(np.float64), targets, rcond=None)[0]
    return {"marked": learnt, "unmarked": np.random.default_rng(1).normal(size=learnt.shape)}


@pytest.fixture(scope="module")
def serving(weights, tmp_path_factory):
    """Where the models are served as TensorFlow Serving does: as exported by Keras, logits and labels of a batch."""
    import keras

    from tests.servers.saved_models import saved_models_served

    folder = tmp_path_factory.mktemp("models")
    for name, matrix in weights.items():
        inputs = keras.Input((NUM_FEATURES,), name="x")
        logits = keras.layers.Dense(NUM_CLASSES, use_bias=False, name="logits")(inputs)
        model = keras.Model(inputs, logits)
        model.set_weights([matrix])
        model.export(folder / name / "1", verbose=False)
        model = keras.Model(inputs, {"logits": logits, "labels": keras.ops.argmax(logits, axis=1)})
        model.export(folder / name / "2", verbose=False)
    with saved_models_served(folder) as url:
        yield url


@pytest.mark.parametrize(("version", "output"), [(1, None), (2, "logits"), (None, "labels")])
@pytest.mark.parametrize("name", ["marked", "unmarked"])
def test_an_exported_model_is_judged_by_its_answers(name, output, version, key, serving):
    from deepsigns_tf.remote import RemoteModel, TensorFlowServing

    model = RemoteModel(TensorFlowServing(serving, name, version, output))
    decoys = np.random.default_rng(2).normal(size=(60, NUM_FEATURES)).astype(np.float32)
    verdict = Questioning(key, decoys=decoys, commitment=key.commitment()).run(model, batch_size=8)
    assert verdict.marked == (name == "marked")
    assert verdict.num_matches == verdict.num_asked if verdict.marked else verdict.num_asked == 60


@pytest.mark.parametrize(
    ("name", "version", "status"), [("other", None, 404), ("marked", 3, 404)], ids=["no such model", "no such version"]
)
def test_a_model_that_is_not_served_is_told(name, version, status, key, serving):
    from deepsigns_tf.remote import RemoteError, RemoteModel, TensorFlowServing

    with pytest.raises(RemoteError, match=f"Received: status {status} from "):
        Questioning(key).run(RemoteModel(TensorFlowServing(serving, name, version)))


def test_inputs_that_do_not_fit_the_model_are_told(serving):
    from deepsigns_tf.remote import RemoteError, RemoteModel, TensorFlowServing

    with pytest.raises(RemoteError, match="Received: status 400 from "):
        RemoteModel(TensorFlowServing(serving, "marked"))(np.zeros((1, NUM_FEATURES + 1), np.float32))


@pytest.fixture(scope="module")
def url(weights, tmp_path_factory):
    """Where MLServer serves the models."""
    folder = tmp_path_factory.mktemp("models")
    for name, matrix in weights.items():
        (folder / name).mkdir()
        np.savez(folder / name / "weights.npz", weights=matrix)
        settings = {
            "name": name,
            "implementation": "linear_runtime.LinearModel",
            "parameters": {"uri": "./weights.npz"},
        }
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    shutil.copy(REPOSITORY / "tests" / "servers" / "linear_runtime.py", folder)
    with socket.socket() as http, socket.socket() as grpc, socket.socket() as metrics:
        sockets = (http, grpc, metrics)
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    names = ("http_port", "grpc_port", "metrics_port")
    settings = {"host": "127.0.0.1", "parallel_workers": 0, **dict(zip(names, ports, strict=True))}
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([MLSERVER, "start", folder], stdout=log, stderr=log, cwd=folder, env=environment)
    address = f"http://127.0.0.1:{ports[0]}"
    try:
        deadline = time.monotonic() + 120
        while not _ready(address):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _ready(address):
    try:
        return all(httpx.get(f"{address}/v2/models/{name}/ready").status_code == 200 for name in ("marked", "unmarked"))
    except httpx.TransportError:
        return False


@with_mlserver
@pytest.mark.parametrize("name", ["marked", "unmarked"])
def test_a_model_behind_mlserver_is_judged_by_its_answers(name, key, url):
    from deepsigns_tf.remote import OpenInference, RemoteModel

    model = RemoteModel(OpenInference(url, name, output="scores"))
    decoys = np.random.default_rng(2).normal(size=(60, NUM_FEATURES)).astype(np.float32)
    verdict = Questioning(key, decoys=decoys, commitment=key.commitment()).run(model, batch_size=8)
    assert verdict.marked == (name == "marked")
    assert verdict.num_matches == verdict.num_asked if verdict.marked else verdict.num_asked == 60


@with_mlserver
def test_a_model_that_mlserver_does_not_have_is_told(key, url):
    from deepsigns_tf.remote import OpenInference, RemoteError, RemoteModel

    with pytest.raises(RemoteError, match="Received: status 404 from "):
        Questioning(key).run(RemoteModel(OpenInference(url, "other")))
