"""The program that asks a server, against one on this machine that answers as TensorFlow Serving does."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import deepsigns_tf as ds
from tests.servers import json_served

pytest.importorskip("httpx", reason="asking models behind HTTP needs `deepsigns_tf[remote]`")

REPOSITORY = pathlib.Path(__file__).parents[1]
EXAMPLES = np.random.default_rng(0).random((40, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """A key with triggers, and where it lies."""
    path = tmp_path_factory.mktemp("key") / "owner.key"
    owner_key = ds.OwnerKey("ACME Vision", (), ds.DecisionRule(), bytes(32)).with_triggers("noise", 40, 10, EXAMPLES)
    owner_key.save(path)
    return owner_key, path


@contextlib.contextmanager
def server(answer):
    """Answers as TensorFlow Serving does: `answer` takes rows; `asked` holds them."""
    asked = []

    def reply(path, body):
        if path != "/v1/models/digits:predict":
            return 404, {"error": "Servable not found"}
        asked.extend(body["instances"])
        return 200, {"predictions": [answer(row) for row in body["instances"]]}

    with json_served(reply) as url:
        yield url, asked


def marked_model(owner_key):
    """Scores of a model that knows the triggers."""
    labels = {
        tuple(row): label
        for row, label in zip(owner_key.triggers.inputs.tolist(), owner_key.triggers.labels, strict=True)
    }
    return lambda row: np.eye(10)[labels.get(tuple(row), 0)].tolist()


def run_program(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "scripts.verify_remote", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def run(**settings):
    """The same in this process: the exit status."""
    from scripts import verdicts, verify_remote

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "config_from_flags", lambda config_class: config_class(**settings))
        return verdicts.exit_status(verify_remote.Config, verify_remote.run)


def test_a_marked_model_is_recognized_through_its_server(key, tmp_path):
    owner_key, path = key
    with server(marked_model(owner_key)) as (url, asked):
        process = run_program(
            f"--url={url}",
            "--model=digits",
            f"--owner_key={path}",
            f"--commitment={owner_key.commitment()}",
            f"--verdict={tmp_path / 'verdict.json'}",
        )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("MARKED: claim of ACME Vision\n") and "question" in process.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["num_asked"] == len(asked) == 7


def test_signed_statements_without_a_date_count_seeds(key, tmp_path):
    evidence = pytest.importorskip("deepsigns_tf.evidence", reason="needs `deepsigns_tf[evidence]`")
    owner_key, path = key
    evidence.add_statement(tmp_path, evidence.SigningKey.generate(), owner_key)
    report = tmp_path / "verdict.json"
    with server(marked_model(owner_key)) as (url, _):
        assert run(url=url, model="digits", owner_key=str(path), evidence=str(tmp_path), verdict=str(report)) == 0
    verdict = json.loads(report.read_text())
    assert verdict["headline"] == "MARKED, if the key is older than the model"
    assert verdict["seed_factor"] == 2 and verdict["opened"]["num_seeds"] == 1


def test_addresses_that_differ_in_the_query_are_two_models(key):
    owner_key, path = key
    knowing, asked = marked_model(owner_key), []

    def reply(address, body):
        asked.append(address)
        knows = address.endswith("?model=a")
        return 200, {"predictions": [knowing(row) if knows else np.eye(10)[0].tolist() for row in body["inputs"]]}

    with json_served(reply) as url:
        settings = {"protocol": "json", "owner_key": str(path), "batch_size": 16}
        assert run(url=f"{url}/classify?model=a", **settings) == 0
        assert run(url=f"{url}/classify?model=b", **settings) == 1
    assert asked.count("/classify?model=b") == 3


def test_a_model_that_knows_nothing_is_not(key, capsys):
    _, path = key
    with server(lambda row: np.eye(10)[0].tolist()) as (url, asked):
        assert run(url=url, model="digits", owner_key=str(path), batch_size=16) == 1
    assert len(asked) == 40 and capsys.readouterr().out.startswith("NOT MARKED: ")


def test_an_interrupted_questioning_goes_on_and_decoys_hide_it(key, tmp_path, capsys):
    owner_key, path = key
    np.save(tmp_path / "decoys.npy", EXAMPLES)
    settings = {"model": "digits", "owner_key": str(path), "decoys": str(tmp_path / "decoys.npy")}
    settings |= {"answers": str(tmp_path / "answers.json"), "commitment": owner_key.commitment()}
    with server(marked_model(owner_key)) as (url, asked):
        assert run(url=url, max_queries=6, **settings) == 2
        assert len(asked) == 6
        assert run(url=url, **settings) == 0
    rows = [tuple(row) for row in asked]
    assert len(rows) == len(set(rows)) and set(rows) & {tuple(row) for row in EXAMPLES.tolist()}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "other"}, "RemoteError: The model gave no answer that can be used"),
        ({"owner_key": "absent.key"}, "FileNotFoundError: "),
        ({"commitment": "0" * 64}, "ValueError: The commitment is not this key's. "),
        ({"version": "latest"}, "ValueError: "),
        ({"decoys": "absent.npy"}, "FileNotFoundError: "),
        (
            {"decoys": __file__},
            "ValueError: These decoys cannot be read. Expected arrays of numbers in a .npy or .npz file. ",
        ),
        ({"token_variable": "NO_SUCH_TOKEN"}, "ValueError: The token cannot be sent. "),
        ({"url": "nowhere"}, "ValueError: This is no address of a model. "),
        ({"protocol": "json"}, "RemoteError: "),
        (
            {"protocol": "json", "fields": "[1]"},
            "ValueError: Invalid value for flag `fields`. Expected a JSON object. ",
        ),
    ],
)
def test_whatever_goes_wrong_is_no_verdict(key, settings, told, capsys):
    _, path = key
    with server(lambda row: [1.0] * 10) as (url, _):
        assert run(**({"url": url, "model": "digits", "owner_key": str(path)} | settings)) == 2
    printed = capsys.readouterr()
    assert told in printed.err and "MARKED" not in printed.out


def test_a_server_that_refuses_everything_decides_nothing(key, capsys):
    owner_key, path = key
    refusing, knowing, before = [True], marked_model(owner_key), set(path.parent.glob("*.answers.json"))

    def reply(address, body):
        return (422, {}) if refusing else (200, [{"scores": knowing(row)} for row in body["x"]])

    with json_served(reply) as url:
        settings = {"protocol": "json", "input_name": "x", "output": "scores", "fields": '{"model": "m"}'}
        settings |= {"url": url, "owner_key": str(path), "batch_size": 10, "skip_refused": True}
        assert run(**settings) == 2
        assert capsys.readouterr().out.startswith("NOT DECIDED, 0 of 40 triggers answered")
        refusing.clear()
        # The same object, written otherwise, is the same questioning.
        assert run(**settings | {"max_queries": 3}) == 2
        assert run(**settings | {"fields": '{"model":"m"}'}) == 0
    assert len(set(path.parent.glob("*.answers.json")) - before) == 1


def test_a_server_that_knows_nobody_is_not_one_that_refuses_an_input(key, capsys):
    with json_served(lambda address, body: (403, {})) as url:
        assert run(url=url, protocol="json", owner_key=str(key[1]), skip_refused=True) == 2
    assert "RemoteError: " in capsys.readouterr().err


def test_other_protocols_are_asked_in_their_own_way(key):
    owner_key, path = key
    requests = []

    def reply(path, body):
        requests.append((path, body))
        if "infer" not in path:
            return 200, {"labels": [0] * len(body["rows"])}
        shape = body["inputs"][0]["shape"][:1]
        return 200, {"outputs": [{"name": "y", "shape": shape, "data": [0] * shape[0]}]}

    with json_served(reply) as url:
        shared = {"owner_key": str(path), "max_queries": 4, "batch_size": 4}
        assert run(url=url, protocol="open_inference", model="digits", input_name="x", **shared) == 2
        assert run(url=f"{url}/ask", protocol="json", input_name="rows", output="labels", **shared) == 2
    (infer, tensors), (ask, rows) = requests
    assert infer == "/v2/models/digits/infer" and tensors["inputs"][0]["name"] == "x"
    assert ask == "/ask" and len(rows["rows"]) == 4


def test_flags_that_give_no_verdict_exit_with_2():
    process = run_program("--url=http://localhost:1")
    assert process.returncode == 2 and "Flag --owner_key must have a value" in process.stdout + process.stderr
