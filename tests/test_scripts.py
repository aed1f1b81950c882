"""The programs: their functions called with a config, and their exit status as a shell sees it."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types
import zipfile

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.files import write_atomically

REPOSITORY = pathlib.Path(__file__).parents[1]
PROMISED = {"commitment.txt", "config.json", "marked.csv", "marked.keras", "owner.key", "result.json", "training.png"}
PROMISED |= {"unmarked.csv", "unmarked.keras", "verdict.json"}


@pytest.fixture(scope="module")
def train():
    """The module `scripts.train_mnist_mlp`, imported here: the environments of the other backends draw no pictures."""
    import scripts.train_mnist_mlp

    return scripts.train_mnist_mlp


@pytest.fixture(scope="module")
def training():
    """The module `scripts.training`."""
    import scripts.training

    return scripts.training


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """One run on 4,000 real digits: its config, folder, result and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    config = train.Config("mnist5k", dataset="mnist5k", epochs=2)
    printed = io.StringIO()
    # From another folder than the repository's, with a path that means something only there.
    with contextlib.redirect_stdout(printed), contextlib.chdir(runs):
        result = train.run(config)
    config = dataclasses.replace(config, output_dir=str(runs / "mnist5k"))
    return types.SimpleNamespace(config=config, folder=runs / "mnist5k", result=result, printed=printed.getvalue())


@pytest.fixture(scope="module")
def digits():
    """The small data set, parsed once."""
    from scripts.datasets import load_mnist

    return load_mnist("mnist5k")


@pytest.fixture
def quick(train, training, digits, monkeypatch):
    """Spares a test the seconds that a fresh process needs to start, and those that the data need to be parsed."""

    def verify(folder):
        model, key = keras.models.load_model(folder / "marked.keras"), ds.OwnerKey.load(folder / "owner.key")
        return ds.verify(model, key).to_dict()

    monkeypatch.setattr(training, "_verify_in_fresh_process", verify)
    monkeypatch.setattr(train, "load_mnist", lambda name, data_dir: digits)


@pytest.fixture
def begun(monkeypatch):
    """`[(model, epoch)]` of all epochs that begin; `begun.stop` holds those that are interrupted before they are kept."""
    from scripts import checkpoints

    class Begun(list):
        stop: set

    epochs = Begun()
    epochs.stop = set()
    start_clock = checkpoints.Checkpoint.on_epoch_begin

    def on_epoch_begin(self, epoch, logs=None):
        start_clock(self, epoch, logs)
        epochs.append((self.path.stem, epoch))

    def write(path, data):
        if epochs[-1] in epochs.stop:
            epochs.stop.remove(epochs[-1])
            raise KeyboardInterrupt
        write_atomically(path, data)

    monkeypatch.setattr(checkpoints.Checkpoint, "on_epoch_begin", on_epoch_begin)
    monkeypatch.setattr(checkpoints, "write_atomically", write)
    return epochs


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def settings_of(config):
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("output_dir", "data_dir", "resume")
    }


def contents(folder, *names):
    return [(folder / name).read_bytes() for name in names]


# Training, marking, releasing, proving


def test_a_run_writes_what_it_promises_and_keeps_the_key_private(finished):
    assert {path.name for path in finished.folder.iterdir()} == PROMISED
    modes = {path.name: path.stat().st_mode & 0o777 for path in finished.folder.iterdir()}
    assert modes["owner.key"] == 0o600
    umask = os.umask(0o077)
    os.umask(umask)
    assert {mode for name, mode in modes.items() if name != "owner.key"} == {0o666 & ~umask}
    assert (finished.folder / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_proves_its_mark_and_refuses_its_controls(finished):
    result = finished.result
    assert result["verdict"]["marked"] and result["verdict"]["num_bits"] == 640
    assert result["bit_error_rate"]["key inputs"] == result["verdict"]["bit_error_rate"] < 0.05
    assert result["bit_error_rate"]["held out"] < 0.05
    assert set(result["controls"]) == {"unmarked twin", "wrong key"}
    for control in result["controls"].values():
        assert not control["marked"] and 0.3 < control["bit_error_rate"] < 0.7
    # One digit in ten by chance.
    assert all(accuracy > 0.7 for accuracy in result["accuracy"].values())


def test_a_result_says_how_to_get_it_again(finished):
    assert finished.result["command"] == (
        "python -m scripts.train_mnist_mlp --dataset=mnist5k --epochs=2 --output_dir=mnist5k"
    )
    assert finished.result["data"] == "mnist5k"
    assert {"date", "hardware", "versions"} <= set(finished.result)
    settings = json.loads((finished.folder / "config.json").read_text())
    assert settings == finished.result["settings"] == settings_of(finished.config)


def test_what_a_run_returns_is_what_it_writes(finished):
    assert json.loads((finished.folder / "result.json").read_text()) == finished.result
    assert json.loads((finished.folder / "verdict.json").read_text()) == finished.result["verdict"]
    for name in ("marked", "unmarked"):
        assert [row["epoch"] for row in read_rows(finished.folder / f"{name}.csv")] == ["0", "1"]
    rows = read_rows(finished.folder / "marked.csv")
    assert "features_key_bit_error_rate" in rows[0]
    assert finished.result["training_seconds"]["marked"] == pytest.approx(
        sum(float(row["seconds"]) for row in rows), abs=0.06
    )


def test_the_commitment_is_kept_where_it_can_be_published_from(finished):
    commitment = ds.OwnerKey.load(finished.folder / "owner.key").commitment()
    assert (finished.folder / "commitment.txt").read_text() == f"{commitment}\n"
    assert finished.result["commitment"] == commitment


def test_a_run_prints_the_commitment_first_and_a_table_last(finished):
    key = ds.OwnerKey.load(finished.folder / "owner.key")
    assert finished.printed.startswith(f"Commitment, to publish or time-stamp before training: {key.commitment()}\n")
    rows = re.findall(r"^(\w.*key) +([\d.]+)% +([\d.]+) +(-?[\d.]+) +\d+ s  (.*)$", finished.printed, re.MULTILINE)
    assert [(name, decision) for name, *_, decision in rows] == [
        ("marked model, owner's key", "marked"),
        ("unmarked twin, owner's key", "not marked"),
        ("marked model, wrong key", "not marked"),
    ]
    assert float(rows[0][1]) == pytest.approx(100 * finished.result["accuracy"]["marked"], abs=0.006)


def test_the_released_files_are_plain_and_differ_in_numbers_only(finished):
    configs = []
    for name in ("marked.keras", "unmarked.keras"):
        model = keras.models.load_model(finished.folder / name)
        assert type(model).__name__ == "Functional" and not model.compiled
        with zipfile.ZipFile(finished.folder / name) as archive:
            config = archive.read("config.json").decode()
        # Keras numbers an object that layers share by its address in memory.
        configs.append(re.sub(r'"shared_object_id": \d+', '"shared_object_id": 0', config))
    assert configs[0] == configs[1]
    assert "deepsigns" not in configs[0]


def test_a_second_run_into_the_same_folder_is_refused(train, finished, quick):
    before = contents(finished.folder, *sorted(PROMISED))
    with pytest.raises(ValueError) as error:
        train.run(finished.config)
    assert str(error.value) == (
        "This folder is not empty; another run's owner key could be lost. Expected an empty folder, or `--resume` to go on. "
        f"Received: {sorted(PROMISED)[:5]} in output_dir={finished.folder}"
    )
    assert contents(finished.folder, *sorted(PROMISED)) == before


@pytest.mark.parametrize("kept", ["config.json", "owner.key", "unmarked.keras"])
def test_a_folder_that_holds_anything_is_refused_too(train, finished, quick, tmp_path, kept):
    shutil.copy(finished.folder / kept, tmp_path)
    before = contents(tmp_path, kept)
    with pytest.raises(ValueError, match="^This folder is not empty; "):
        train.run(dataclasses.replace(finished.config, output_dir=str(tmp_path)))
    assert contents(tmp_path, kept) == before and len(list(tmp_path.iterdir())) == 1


def test_models_of_unknown_origin_are_no_run_to_go_on_with(train, finished, quick, tmp_path):
    """The unmarked model of other settings would pass for the twin."""
    shutil.copy(finished.folder / "unmarked.keras", tmp_path)
    with pytest.raises(ValueError) as error:
        train.run(dataclasses.replace(finished.config, output_dir=str(tmp_path), resume=True))
    assert str(error.value) == (
        "This folder holds no run to go on with. Expected the config.json of an interrupted run. "
        f"Received: ['unmarked.keras'] in output_dir={tmp_path}"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bits_per_class": 512}, "Carrier 'features' asks for too many bits per class. "),
        ({"num_key_inputs_per_class": 401}, "Class 0 has too few examples to choose key inputs from. "),
        ({"batch_size": 4001}, "The training set does not fill a batch. "),
        ({"holdout": 4000}, "Invalid number of examples to hold out. "),
        ({"strength": float("inf")}, "Invalid value for argument `strength`. "),
    ],
)
def test_bad_settings_are_told_before_anything_is_written_or_trained(train, quick, begun, tmp_path, changes, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        train.run(train.Config(str(tmp_path / "run"), dataset="mnist5k", **changes))
    assert begun == [] and list(tmp_path.iterdir()) == []


def test_a_marked_model_whose_key_is_gone_is_not_resumed(train, finished, quick, tmp_path):
    """A new key beside it could never prove it."""
    for name in ("config.json", "marked.keras", "unmarked.keras"):
        shutil.copy(finished.folder / name, tmp_path)
    with pytest.raises(ValueError) as error:
        train.run(dataclasses.replace(finished.config, output_dir=str(tmp_path), resume=True))
    assert str(error.value) == (
        "The owner key of this run is gone. Expected owner.key beside the model that was being marked with it. "
        f"Received: ['marked.keras'] in output_dir={tmp_path}"
    )
    assert not (tmp_path / "owner.key").exists()


def test_a_folder_is_not_claimed_before_the_data_is_there(train, monkeypatch, tmp_path):
    def absent(name, data_dir):
        raise ValueError("no data")

    monkeypatch.setattr(train, "load_mnist", absent)
    with pytest.raises(ValueError, match="^no data$"):
        train.run(train.Config(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_resumed_with_other_settings(train, finished, quick):
    before = contents(finished.folder, *sorted(PROMISED))
    config = dataclasses.replace(finished.config, epochs=3, resume=True)
    with pytest.raises(ValueError) as error:
        train.run(config)
    assert str(error.value) == (
        "This folder holds a run with other settings. Expected {'epochs': 2}. Received: {'epochs': 3}"
    )
    assert contents(finished.folder, *sorted(PROMISED)) == before


def test_resuming_a_finished_run_trains_nothing(train, finished, quick, begun):
    kept = ("owner.key", "marked.keras", "unmarked.keras", "marked.csv", "unmarked.csv", "config.json")
    before = contents(finished.folder, *kept)
    result = train.run(dataclasses.replace(finished.config, resume=True))
    assert begun == []
    assert contents(finished.folder, *kept) == before
    assert result["verdict"] == finished.result["verdict"]
    assert result["accuracy"] == finished.result["accuracy"]


def interrupted(train, config):
    try:
        train.run(config)
    except KeyboardInterrupt:
        return True
    return False


def test_an_interrupted_run_goes_on_where_it_stopped(train, training, quick, begun, tmp_path, monkeypatch):
    """Interruptions while the state is written, in both trainings, and between the key and the released model."""
    seed_key = training._new_key(
        train.Config("", dataset="mnist5k"),
        types.SimpleNamespace(
            carriers=(ds.Carrier("features", range(10), 64),), data=train.load_mnist("mnist5k", None)
        ),
    )
    monkeypatch.setattr(training, "_new_key", lambda config, task: seed_key)
    whole = train.Config(str(tmp_path / "whole"), dataset="mnist5k", epochs=3, batch_size=256)
    train.run(whole)
    begun.clear()

    folder = tmp_path / "run"
    config = dataclasses.replace(whole, output_dir=str(folder))
    begun.stop = {("unmarked", 1), ("marked", 2)}
    assert interrupted(train, config)
    assert begun == [("unmarked", 0), ("unmarked", 1)]
    begun.clear()

    config = dataclasses.replace(config, resume=True)
    assert interrupted(train, config)
    # What was not kept is done again.
    assert begun == [("unmarked", 1), ("unmarked", 2), ("marked", 0), ("marked", 1), ("marked", 2)]
    begun.clear()

    def fail_to_save(model, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", fail_to_save)
        assert interrupted(train, config)
    assert begun == [("marked", 2)]
    begun.clear()

    result = train.run(config)
    # A finished training whose model was not saved is still there.
    assert begun == []
    assert {path.name for path in folder.iterdir()} == PROMISED - {"verdict.json"}
    assert result["verdict"]["marked"]
    assert not result["controls"]["unmarked twin"]["marked"]
    for name in ("marked", "unmarked"):
        # The same models as without any interruption: order, dropout, optimizer and schedule went on as if nothing had been.
        weights = [
            keras.models.load_model(each / f"{name}.keras").get_weights() for each in (tmp_path / "whole", folder)
        ]
        for one, other in zip(*weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        rows = [read_rows(each / f"{name}.csv") for each in (tmp_path / "whole", folder)]
        assert [row["epoch"] for row in rows[1]] == ["0", "1", "2"]
        for one, other in zip(*rows, strict=True):
            assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, build_mlp, compile_model, blobs):
    from scripts.checkpoints import Checkpoint

    path = tmp_path / "model.checkpoint"
    compile_model(build_mlp()).fit(*blobs, verbose=0, callbacks=[Checkpoint(path)])
    other = compile_model(keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)]))
    with pytest.raises(ValueError) as error:
        Checkpoint(path).restore(other)
    assert str(error.value).startswith("This checkpoint belongs to another model. ")


def test_a_checkpoint_holds_nothing_secret(tmp_path, owner_key, build_mlp, compile_model, blobs):
    from scripts.checkpoints import Checkpoint

    path = tmp_path / "model.checkpoint"
    model = compile_model(build_mlp(ds.SignatureRegularizer(owner_key, "features"), ds.WatermarkedModel))
    model.fit(*blobs, verbose=0, callbacks=[Checkpoint(path)])
    with np.load(path) as archive:
        arrays = [archive[name] for name in archive.files]
    secrets = [owner_key.projection("features", 128), owner_key.signature("features")]
    assert not {array.shape for array in arrays} & {secret.shape for secret in secrets}
    assert owner_key.seed not in path.read_bytes()


def test_batches_depend_on_seed_and_epoch_alone():
    from scripts.pipelines import training_batches

    x, y = np.arange(10)[:, None], np.arange(10)

    def order(seed, epochs):
        batches, steps = training_batches(x, y, 3, seed, epochs)
        rows = [labels.tolist() for inputs, labels in batches.as_numpy_iterator() if (inputs[:, 0] == labels).all()]
        assert steps == 3 and len(rows) == 3 * len(epochs)
        return rows

    assert order(0, range(1, 3)) == order(0, range(3))[3:]
    assert order(0, range(1)) != order(1, range(1)) and order(0, range(1)) != order(0, range(1, 2))
    for epoch in range(3):
        seen = sum(order(0, range(epoch, epoch + 1)), [])
        assert len(set(seen)) == 9


def test_a_verification_that_gives_no_verdict_stops_the_run(train, training, finished, digits, monkeypatch, tmp_path):
    """A verdict that lies there from an earlier run is none, either."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    monkeypatch.setattr(train, "load_mnist", lambda name, data_dir: digits)
    monkeypatch.setattr(training.subprocess, "run", lambda *args, **kwargs: types.SimpleNamespace(returncode=2))
    with pytest.raises(RuntimeError) as error:
        train.run(dataclasses.replace(finished.config, output_dir=str(folder), resume=True))
    assert str(error.value) == (
        "The verification of the released file gave no verdict. Expected `scripts.verify` to write verdict.json. "
        "Received: exit status 2"
    )


def test_a_trained_model_is_marked_by_fine_tuning(train, quick, begun, tmp_path):
    config = train.Config(
        str(tmp_path),
        dataset="mnist5k",
        epochs=1,
        fine_tune_epochs=2,
        learning_rate=1e-2,
        projection="gaussian",
    )
    result = train.run(config)
    assert begun == [("unmarked", 0), ("marked", 0), ("marked", 1)]
    assert result["verdict"]["marked"]
    # It starts from the trained weights, not from scratch.
    first = [float(read_rows(tmp_path / f"{name}.csv")[0]["accuracy"]) for name in ("marked", "unmarked")]
    assert first[0] > first[1]
    (carrier,) = ds.OwnerKey.load(tmp_path / "owner.key").carriers
    assert carrier.projection == "gaussian"


@pytest.mark.slow
def test_all_of_mnist_is_marked_at_bit_error_rate_zero(train, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("mnist")
    if not pathlib.Path(builder.data_dir).exists():
        pytest.skip(f"MNIST is not in the TFDS folder {builder.data_dir}; `tfds.load('mnist')` downloads it")
    result = train.run(train.Config(str(tmp_path), epochs=3))
    assert result["data"] == "mnist"
    assert result["verdict"]["marked"]
    assert result["bit_error_rate"]["key inputs"] == 0.0
    assert result["bit_error_rate"]["held out"] < 0.01
    assert all(accuracy > 0.96 for accuracy in result["accuracy"].values())
    assert not any(control["marked"] for control in result["controls"].values())


# Data


def test_the_small_data_set_is_real_balanced_and_split(digits):
    assert (digits.x_train.shape, digits.x_test.shape) == ((4000, 784), (1000, 784))
    assert digits.x_train.dtype == digits.x_test.dtype == np.float32
    assert digits.y_train.dtype == digits.y_test.dtype == np.int64
    assert np.bincount(digits.y_train).tolist() == [400] * 10 and np.bincount(digits.y_test).tolist() == [100] * 10
    assert digits.x_train.min() == 0.0 and digits.x_train.max() == 1.0
    rows = {row.tobytes() for row in digits.x_train}
    assert not any(row.tobytes() in rows for row in digits.x_test)


def test_held_out_digits_leave_every_class_in_both_parts(digits):
    for num_examples in (100, 500, 1000):
        data = digits.hold_out(num_examples)
        assert len(data.x_test) == num_examples and len(data.x_train) == 4000 - num_examples
        assert set(data.y_train.tolist()) == set(data.y_test.tolist()) == set(range(10))


def test_an_unknown_data_set_is_refused():
    from scripts.datasets import load_mnist

    with pytest.raises(ValueError) as error:
        load_mnist("cifar10")
    assert str(error.value) == 'Unknown data set. Expected "mnist" or "mnist5k". Received: \'cifar10\''


def test_absent_data_is_told_with_a_way_out(monkeypatch):
    import tensorflow_datasets as tfds

    from scripts.datasets import load_mnist

    def offline(*args, **kwargs):
        raise ConnectionError("no network")  # An OSError; TFDS has an exception of its own for a refusal.

    monkeypatch.setattr(tfds, "load", offline)
    with pytest.raises(ValueError) as error:
        load_mnist("mnist", "/some/folder")
    assert str(error.value) == (
        "MNIST cannot be loaded. Expected it in the TFDS folder or a network to download it; `--dataset=mnist5k` needs neither. "
        "Received: data_dir='/some/folder', ConnectionError: no network"
    )


def make_dataset():
    from scripts.datasets import Dataset

    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    return Dataset("toy", x, y, np.full((3, 2), -1.0), np.full(3, -1))


def test_held_out_examples_are_the_last_of_the_training_set():
    data = make_dataset().hold_out(3)
    assert data.name == "toy, last 3 training examples held out"
    assert (data.y_train.tolist(), data.y_test.tolist()) == (list(range(7)), [7, 8, 9])
    np.testing.assert_array_equal(np.concatenate([data.x_train, data.x_test]), make_dataset().x_train)


@pytest.mark.parametrize("num_examples", [-1, 0, 10, 11])
def test_none_and_all_examples_cannot_be_held_out(num_examples):
    with pytest.raises(ValueError) as error:
        make_dataset().hold_out(num_examples)
    assert str(error.value) == (
        "Invalid number of examples to hold out. Expected some, but not all of the training set. "
        f"Received: num_examples={num_examples} of 10"
    )


# Verifying


def run_program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model=a.keras", "--owner_key=b.key", "--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
        (["--model=a.keras"], "Flag --owner_key must have a value other than None"),
        (["--owner_key=b.key"], "Flag --model must have a value other than None"),
        (["--help"], "--owner_key: The claimant's key"),
        (["--model=a.keras", "--owner_key=b.key", "surplus"], "Nothing was verified. Received: ['surplus']"),
        (
            ["--model=a.keras", "--owner_key=b.key", "--only_check_args"],
            "Nothing was verified. Received: --only_check_args",
        ),
    ],
)
def test_flags_that_give_no_verdict_exit_with_2(arguments, told):
    """Status 1 means "not marked": none of these may end with it, as absl would. No TensorFlow starts, so it is quick."""
    process = run_program("scripts.verify", *arguments)
    assert process.returncode == 2
    assert told in process.stdout + process.stderr


def test_a_marked_file_exits_with_0_and_writes_its_verdict(finished, tmp_path):
    commitment = ds.OwnerKey.load(finished.folder / "owner.key").commitment()
    process = run_program(
        "scripts.verify",
        f"--model={finished.folder / 'marked.keras'}",
        f"--owner_key={finished.folder / 'owner.key'}",
        f"--commitment={commitment}",
        f"--verdict={tmp_path / 'verdict.json'}",
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("MARKED: claim of deepsigns_tf example\n")
    report = json.loads((tmp_path / "verdict.json").read_text())
    assert report["marked"] and report["committed"] and report["log10_alpha"] == -6.0
    # The same reading as without the commitment, by another process.
    assert report["readings"] == finished.result["verdict"]["readings"]


def test_an_unmarked_file_exits_with_1(finished):
    process = run_program(
        "scripts.verify",
        f"--model={finished.folder / 'unmarked.keras'}",
        f"--owner_key={finished.folder / 'owner.key'}",
    )
    assert process.returncode == 1, process.stderr
    assert process.stdout.startswith("NOT MARKED: claim of deepsigns_tf example\n")


def test_a_file_that_is_no_model_exits_with_2(finished, tmp_path):
    (tmp_path / "garbage.keras").write_bytes(b"no model" * 100)
    process = run_program(
        "scripts.verify", f"--model={tmp_path / 'garbage.keras'}", f"--owner_key={finished.folder / 'owner.key'}"
    )
    assert process.returncode == 2
    assert "Error: " in process.stderr and "Traceback" not in process.stderr
    assert process.stdout == ""


@pytest.fixture
def main(monkeypatch):
    """The entry point of `scripts.verify` with given flags, in this process; it returns the exit status."""
    from scripts import verify

    def call(**settings):
        monkeypatch.setattr(verify, "config_from_flags", lambda config_class: config_class(**settings))
        return verify.main([])

    return call


def test_whatever_goes_wrong_is_no_verdict(finished, main, tmp_path, capsys):
    model, key = str(finished.folder / "marked.keras"), str(finished.folder / "owner.key")
    foreign = tmp_path / "foreign.key"
    foreign.write_bytes(b"PK not a key")
    for settings, told in (
        ({"model": model, "owner_key": str(tmp_path / "absent.key")}, "FileNotFoundError: "),
        ({"model": str(tmp_path / "absent.keras"), "owner_key": key}, "ValueError: File not found"),
        ({"model": model, "owner_key": str(foreign)}, "ValueError: This file is not a readable owner key: "),
        ({"model": model, "owner_key": key, "commitment": "0" * 64}, "ValueError: The commitment is not this key's. "),
        ({"model": model, "owner_key": key, "verdict": str(tmp_path / "absent" / "verdict.json")}, "FileNotFoundError"),
    ):
        assert main(**settings) == 2
        assert capsys.readouterr().err.startswith(told)
    # The control: with nothing wrong the same call gives a verdict.
    assert main(model=model, owner_key=key) == 0


def test_a_crash_is_no_verdict_either(finished, main, monkeypatch, capsys):
    def crash(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ds, "verify", crash)
    assert main(model=str(finished.folder / "marked.keras"), owner_key=str(finished.folder / "owner.key")) == 2
    assert capsys.readouterr().err == "RuntimeError: out of memory\n"


# Flags

CONFIG = """
import dataclasses, json, sys
from absl import flags
from scripts.configs import config_from_flags, define_flags, option

@dataclasses.dataclass(frozen=True)
class Config:
    folder: str = option(dataclasses.MISSING, "Where to.")
    kind: str = option("small", "Which.", choices=("small", "large"))
    note: str | None = option(None, "What for.")
    count: int = option(3, "How many.", minimum=1)
    rate: float = option(0.5, "How fast.", minimum=0.0)
    quick: bool = option(True, "Whether in a hurry.")

define_flags(Config)
answers = []
for line in json.loads(sys.argv[1]):
    flags.FLAGS.unparse_flags()
    for name in ("kind", "note", "count", "rate", "quick"):
        flags.FLAGS[name].value = Config.__dataclass_fields__[name].default
    flags.FLAGS["folder"].value = None
    try:
        flags.FLAGS(["program", *line])
        answers.append(dataclasses.asdict(config_from_flags(Config)))
    except flags.Error as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def test_a_configuration_is_its_flags():
    """In a process of its own: flags are global."""
    lines = [
        ["--folder=here"],
        ["--folder=here", "--kind=large", "--note=a b", "--count=7", "--rate=1", "--noquick"],
        ["--folder=here", "--quick=False", "--rate=0"],
        [],
        ["--folder=here", "--kind=huge"],
        ["--folder=here", "--count=0"],
        ["--folder=here", "--count=1.5"],
        ["--folder=here", "--rate=-0.1"],
        ["--folder=here", "--rate=nan"],
        ["--folder=here", "--rate=inf"],
    ]
    process = subprocess.run(
        [sys.executable, "-c", CONFIG, json.dumps(lines)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    defaults = {"folder": "here", "kind": "small", "note": None, "count": 3, "rate": 0.5, "quick": True}
    *given, missing, choice, below, fraction, negative, not_a_number, infinite = json.loads(process.stdout)
    assert given == [
        defaults,
        {"folder": "here", "kind": "large", "note": "a b", "count": 7, "rate": 1.0, "quick": False},
        defaults | {"quick": False, "rate": 0.0},
    ]
    assert "--folder must have a value other than None" in missing
    assert "--kind=huge: value should be one of <small|large>" in choice
    assert "--count=0: 0 is not" in below
    assert "--count=1.5" in fraction
    assert "--rate=-0.1" in negative
    assert "must be a finite number" in not_a_number and "must be a finite number" in infinite


def test_every_setting_of_the_training_program_has_help_and_survives_its_command_line(train):
    """`result.json` names the command: it must describe the very config that it came from."""
    from scripts.configs import command_line

    changed = {}
    for field in dataclasses.fields(train.Config):
        assert field.metadata["help"].endswith(".")
        if field.metadata["choices"]:
            changed[field.name] = field.metadata["choices"][-1]
        elif isinstance(field.default, bool):
            changed[field.name] = not field.default
        elif isinstance(field.default, (int, float)):
            changed[field.name] = field.default + 1
        else:
            changed[field.name] = "some/folder"
    config = train.Config(**changed)
    flags = shlex.split(command_line("scripts.train_mnist_mlp", config))[3:]
    written = dict(flag.removeprefix("--").split("=") for flag in flags)
    # Where data lie and whether the run was resumed does not change what comes out.
    assert written == {name: str(value) for name, value in changed.items() if name not in ("data_dir", "resume")}


@pytest.mark.parametrize("surplus", [["surplus"], ["--resume", "True"]])
def test_arguments_that_are_no_flags_are_refused(surplus, tmp_path):
    """`--resume False` would mean `--resume`."""
    process = run_program("scripts.train_mnist_mlp", f"--output_dir={tmp_path / 'run'}", *surplus)
    assert process.returncode == 1 and "Unknown arguments: " in process.stdout + process.stderr
    assert not (tmp_path / "run").exists()


def test_a_program_tells_bad_settings_in_one_line(tmp_path):
    process = run_program(
        "scripts.train_mnist_mlp", f"--output_dir={tmp_path}/run", "--dataset=mnist5k", "--batch_size=5000"
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert process.stderr.strip().splitlines()[-1].startswith("ValueError: The training set does not fill a batch. ")
