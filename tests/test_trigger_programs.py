"""The training programs with triggers: alone and beside a mark in the layers, on made-up data."""

import contextlib
import importlib
import json
import types

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from tests.finished_runs import FILES, MILD_MARK, TRIGGER_FILES, verified_here

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the programs need TensorFlow")


def run(name, folder, **settings):
    """A run on made-up data that verifies in this process; its config and result."""
    from scripts import training

    program = importlib.import_module(f"scripts.{name}")
    config = program.Config(str(folder), dataset="synthetic", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_verify_in_fresh_process", verified_here)
        return config, program.run(config)


SETTINGS = {"epochs": 4, "num_triggers": 20, "batch_size": 64, "num_triggers_per_batch": 16, **MILD_MARK}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The MLP with both marks."""
    folder = tmp_path_factory.mktemp("both") / "run"
    config, result = run("train_mnist_mlp", folder, **SETTINGS)
    return folder, config, result


def test_both_marks_are_proved_and_their_controls_are_not(both):
    folder, _, result = both
    for marks in (result, result["triggers"]):
        assert marks["verdict"]["marked"] and not any(control["marked"] for control in marks["controls"].values())
    assert result["triggers"]["verdict"]["num_matches"] == 20 and result["bit_error_rate"]["key inputs"] < 0.05
    assert result["accuracy"]["marked"] > 0.95
    assert {path.name for path in folder.iterdir()} == FILES | TRIGGER_FILES


def test_the_key_was_committed_to_with_its_triggers_before_training(both):
    folder, _, result = both
    key = ds.OwnerKey.load(folder / "owner.key")
    assert key.triggers.num_examples == 20 and key.triggers.num_classes == 10 and key.triggers.family == "noise"
    assert key.commitment() == result["commitment"] == (folder / "commitment.txt").read_text().strip()


def test_the_history_shows_how_the_triggers_are_learnt(both):
    from scripts.folders import read_history

    history = read_history(both[0] / "marked.csv")
    assert history["trigger_accuracy"][-1] == 1.0 and len(history["trigger_margin"]) == 4
    assert "trigger_accuracy" not in read_history(both[0] / "unmarked.csv")


def test_the_statistics_of_a_network_without_batch_norm_stay(both):
    assert both[2]["triggers"]["batch_norm"] == {"num_layers": 0}


@pytest.fixture(scope="module")
def suspects(both):
    """The run's models by their files' names, as suspects that were opened once."""
    paths = [str(both[0] / f"{name}.keras") for name in ("marked", "unmarked")]
    with contextlib.ExitStack() as processes:
        yield {path: processes.enter_context(ds.load_suspect(path)) for path in paths}


@pytest.mark.parametrize("by", ["weights", "answers"])
def test_either_mark_can_be_verified(both, suspects, by, monkeypatch, capsys):
    from scripts import verdicts, verify

    monkeypatch.setattr(ds, "load_suspect", lambda path: contextlib.nullcontext(suspects[path]))
    folder, _, _ = both
    commitment = (folder / "commitment.txt").read_text()
    config = verify.Config(str(folder / "marked.keras"), str(folder / "owner.key"), by=by, commitment=commitment)
    assert verify.run(config) == verdicts.MARKED
    assert {"weights": "bits matched", "answers": "labels matched  20 of 20"}[by] in capsys.readouterr().out
    unmarked = verify.Config(str(folder / "unmarked.keras"), str(folder / "owner.key"), by=by, commitment=commitment)
    assert verify.run(unmarked) == verdicts.NOT_MARKED


def test_triggers_alone_need_no_layer(both, tmp_path, capsys):
    from scripts import verdicts, verify

    settings = SETTINGS | {"carriers": "", "unmarked_from": str(both[0])}
    _, result = run("train_mnist_mlp", tmp_path / "run", **settings)
    assert "verdict" not in result and "bit_error_rate" not in result
    assert result["triggers"]["verdict"]["marked"] and not result["triggers"]["controls"]["unmarked twin"]["marked"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == (FILES | TRIGGER_FILES) - {"verdict.json"}
    # A key that cannot read weights is asked by its triggers.
    assert (
        verify.run(verify.Config(str(tmp_path / "run/marked.keras"), str(tmp_path / "run/owner.key")))
        == verdicts.MARKED
    )
    assert "labels matched  20 of 20" in capsys.readouterr().out


def test_triggers_of_low_density_are_committed_to_when_the_twin_is_there(both, tmp_path, capsys):
    settings = SETTINGS | {"trigger_family": "low_density", "unmarked_from": str(both[0])}
    _, result = run("train_mnist_mlp", tmp_path / "run", **settings)
    printed = capsys.readouterr().out
    first = printed.index("Commitment, to publish")
    second = printed.index(f"Commitment with triggers, to publish before marking: {result['commitment']}")
    assert first < second < printed.index("Training the marked")
    assert result["triggers"]["verdict"]["num_matches"] >= 8
    key = ds.OwnerKey.load(tmp_path / "run" / "owner.key")
    assert key.triggers.family == "low_density" and key.commitment() == result["commitment"]


@pytest.mark.parametrize("unmarked_epochs", [0, 1])
def test_triggers_of_low_density_may_be_the_only_mark(both, tmp_path, capsys, unmarked_epochs):
    settings = SETTINGS | {"carriers": "", "trigger_family": "low_density", "unmarked_from": str(both[0])}
    _, result = run("train_mnist_mlp", tmp_path / "run", unmarked_epochs=unmarked_epochs, **settings)
    printed, added = capsys.readouterr().out, "the reference and triggers" if unmarked_epochs else "triggers"
    first = printed.index("The commitment follows before marking")
    second = printed.index(f"Commitment with {added}, to publish before marking: {result['commitment']}")
    assert first < second < printed.index("Training the marked") and "Commitment, to publish" not in printed
    assert (tmp_path / "run" / "commitment.txt").read_text() == f"{result['commitment']}\n"


@pytest.mark.slow
def test_text_is_marked_with_token_strings(tmp_path):
    settings = {"sequence_length": 32, "num_tokens": 200, "carriers": "features:64", "strength": 10.0}
    _, result = run("train_imdb_lstm", tmp_path / "run", **(SETTINGS | settings | {"num_triggers": 32}))
    key = ds.OwnerKey.load(tmp_path / "run" / "owner.key")
    assert key.triggers.family == "tokens" and (key.triggers.inputs > 0).all()
    assert result["triggers"]["verdict"]["num_triggers"] == 32 and result["triggers"]["verdict"]["num_classes"] == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The released model does not carry the mark")
def test_the_statistics_of_batch_norm_are_taken_anew(tmp_path):
    settings = {"depth": 10, "width": 1, "carriers": "features:16", "strength": 10.0, "epochs": 2}
    _, result = run("train_cifar10_wrn", tmp_path / "run", **(SETTINGS | settings))
    record = result["triggers"]["batch_norm"]
    assert record["num_layers"] == 7 and set(record) == {"num_layers", "with triggers", "of task data", "released"}
    released = record[record["released"]]
    assert released["accuracy"] == result["accuracy"]["marked"]
    assert released["num_matches"] == result["triggers"]["verdict"]["num_matches"]


@pytest.mark.parametrize(
    ("before", "after", "released"), [(20, 19, "with triggers"), (20, 20, "of task data"), (19, 20, "of task data")]
)
def test_statistics_with_which_triggers_are_lost_are_not_released(before, after, released, tmp_path, monkeypatch):
    import tensorflow as tf

    from scripts import training

    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="norm")])
    found = iter([before, after])
    monkeypatch.setattr(training, "answers_verdict", lambda *args: types.SimpleNamespace(num_matches=next(found)))
    monkeypatch.setattr(training, "accuracy", lambda *args: 0.5)
    dataset = tf.data.Dataset.from_tensors((np.full((8, 2), 3.0, np.float32), np.zeros(8)))
    monkeypatch.setattr(training, "batches_of", lambda *args: lambda: (dataset, 1))
    training._take_statistics_anew(model, tmp_path, None, types.SimpleNamespace(data=None), None)
    record = json.loads((tmp_path / "batch_norm.json").read_text())
    assert record == {
        "num_layers": 1,
        "with triggers": {"accuracy": 0.5, "num_matches": before},
        "of task data": {"accuracy": 0.5, "num_matches": after},
        "released": released,
    }
    mean = 0.0 if released == "with triggers" else 3.0
    np.testing.assert_allclose(model.get_layer("norm").moving_mean, mean)


def test_a_run_that_goes_on_ends_with_the_same_model(both, tmp_path, monkeypatch):
    from scripts import checkpoints

    folder, _, _ = both
    settings = SETTINGS | {"resume": True, "unmarked_from": str(folder)}
    write, written = checkpoints.write_atomically, []

    def write_twice(path, data):
        write(path, data)
        written.append(path.name)
        if written.count("marked.checkpoint") == 2:
            raise KeyboardInterrupt

    (tmp_path / "run").mkdir()
    for name in ("config.json", "owner.key"):
        (tmp_path / "run" / name).write_bytes((folder / name).read_bytes())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write_atomically", write_twice)
        run("train_mnist_mlp", tmp_path / "run", **settings)
    run("train_mnist_mlp", tmp_path / "run", **settings)
    for one, other in zip(
        keras.models.load_model(folder / "marked.keras").get_weights(),
        keras.models.load_model(tmp_path / "run" / "marked.keras").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("augmented", [True, False])
def test_the_pipeline_augments_triggers_if_asked_to(augmented):
    """They are moved as examples are, or stay as they are; every worker gets its share of them."""
    from deepsigns_tf.triggers import TriggerSet
    from scripts.pipelines import training_batches

    x, y = np.full((12, 4, 4, 1), 3, np.float32), np.zeros(12, int)
    triggers = TriggerSet(np.ones((3, 4, 4, 1), np.float32), [1, 2, 3], num_classes=4, family="noise")

    def batches(share=(0, 1), epochs=range(2)):
        mixed, steps = training_batches(
            x,
            y,
            6,
            0,
            epochs,
            lambda images, seed: 2 * images,
            share=share,
            triggers=triggers,
            num_triggers_per_batch=2,
            augment_triggers=augmented,
        )
        return steps, list(mixed.as_numpy_iterator())

    steps, whole = batches()
    assert steps == 2 and [labels.tolist() for _, labels in whole[:2]] == [
        [0, 0, 0, 1, 0, 0, 0, 2],
        [0, 0, 0, 3, 0, 0, 0, 1],
    ]
    for images, labels in whole:
        np.testing.assert_array_equal(images.max(axis=(1, 2, 3)), np.where(labels > 0, 1 + augmented, 6))
    halves = [batches((part, 2))[1] for part in (0, 1)]
    for (images, labels), (first, second) in zip(whole, zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), images)
        np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), labels)
        assert (first[1] > 0).sum() == (second[1] > 0).sum() == 1
    # A training that goes on has the triggers that an uninterrupted one has.
    assert [labels.tolist() for _, labels in batches(epochs=range(1, 2))[1]] == [
        labels.tolist() for _, labels in whole[2:]
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_triggers_per_batch": 7}, "Triggers cannot be spaced evenly"),
        ({"num_triggers_per_batch": 32}, "Triggers cannot be spaced evenly"),
        (
            {"num_triggers_per_batch": 32, "trigger_family": "low_density"},
            "Received: num_triggers_per_batch=32",
        ),
        (
            {"carriers": "", "num_triggers": 0},
            "There is nothing to mark. Expected layers in the flag",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run("train_mnist_mlp", tmp_path / "run", **(SETTINGS | settings))
    assert not (tmp_path / "run").exists()


def test_the_result_is_written_with_both_verdicts(both):
    folder, _, result = both
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
