"""The programs: their functions called with a config, and their exit status as a shell sees it."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import subprocess
import sys
import types
import warnings
import zipfile

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.files import write_atomically
from tests.finished_runs import FILES, verified_here

REPOSITORY = pathlib.Path(__file__).parents[1]

# The smallest run of each program that still marks something: its settings, its number of bits, and its title.
PROGRAMS = {
    "train_mnist_mlp": ({"carriers": "hidden:32,features:32", "batch_size": 128}, 2 * 10 * 32, "784-512-512-10"),
    "train_cifar10_cnn": (
        {"carriers": "conv_4:16", "pooling": "flatten", "batch_size": 64},
        10 * 16,
        "32C3-32C3-MP2-64C3-64C3-MP2-512-10",
    ),
    "train_cifar10_wrn": (
        {"depth": 10, "width": 1, "carriers": "features:16", "batch_size": 64},
        10 * 16,
        "WRN-10-1",
    ),
    "train_imdb_lstm": (
        {"sequence_length": 32, "num_tokens": 200, "carriers": "features:128"},
        2 * 128,
        "BiLSTM-512-2",
    ),
}
MADE_UP = "synthetic data (made up)"


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
    monkeypatch.setattr(training, "_verify_in_fresh_process", verified_here)
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


# The wide network takes longest, and has nothing that one of the others has not.
_SAMPLED = [pytest.param(name, marks=pytest.mark.slow) if name == "train_cifar10_wrn" else name for name in PROGRAMS]


@pytest.fixture(scope="module", params=_SAMPLED)
def made_up(request, training, tmp_path_factory):
    """One run of each program on made-up data: its config, folder, result, what it printed, and its picture's title."""
    import importlib

    changes, num_bits, title = PROGRAMS[request.param]
    program = importlib.import_module(f"scripts.{request.param}")
    folder = tmp_path_factory.mktemp("made_up") / request.param
    # Strong enough to show after ten steps.
    config = program.Config(str(folder), dataset="synthetic", epochs=2, strength=10.0, **changes)
    titles, draw = [], training.training_picture

    def picture(histories, carriers, title, path):
        titles.append(title)
        draw(histories, carriers, title, path)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), warnings.catch_warnings():
        # Two epochs may be too few to finish a mark.
        warnings.filterwarnings("ignore", "The released model does not carry the mark at the key's level: ")
        patch.setattr(training, "training_picture", picture)
        # The same keys in every run of the tests.
        patch.setattr("deepsigns_tf.owner_key.secrets.token_bytes", random.Random(0).randbytes)
        if request.param != "train_cifar10_cnn":
            # One fresh process is enough: that of the network in half precision.
            patch.setattr(training, "_verify_in_fresh_process", verified_here)
        result = program.run(config)
    return types.SimpleNamespace(
        program=program,
        config=config,
        folder=folder,
        result=result,
        printed=printed.getvalue(),
        titles=titles,
        num_bits=num_bits,
        title=title,
    )


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def settings_of(config):
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("output_dir", "data_dir", "resume", "unmarked_from")
    }


def contents(folder, *names):
    """Every file, or those that are named, by its path."""
    paths = [folder / name for name in names] or sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# Training, marking, releasing, proving


def test_a_run_writes_what_it_promises_and_keeps_the_key_private(finished):
    assert {path.name for path in finished.folder.iterdir()} == FILES
    modes = {path.name: path.stat().st_mode & 0o777 for path in finished.folder.iterdir() if path.is_file()}
    assert modes["owner.key"] == 0o600
    umask = os.umask(0o077)
    os.umask(umask)
    assert {mode for name, mode in modes.items() if name != "owner.key"} == {0o666 & ~umask}
    assert (finished.folder / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_proves_its_mark_and_refuses_its_controls(finished):
    result = finished.result
    assert result["verdict"]["marked"] and result["verdict"]["num_bits"] == 1280
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
    assert settings.pop("program") == "scripts.train_mnist_mlp"
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


def released_config(path):
    """The configuration in an archive of a plain, uncompiled model."""
    model = keras.models.load_model(path)
    assert type(model).__name__ == "Functional" and not model.compiled
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    assert "deepsigns" not in config
    # Keras numbers an object that layers share by its address in memory.
    return re.sub(r'"shared_object_id": \d+', '"shared_object_id": 0', config)


def test_the_released_files_are_plain_and_differ_in_numbers_only(finished):
    assert released_config(finished.folder / "marked.keras") == released_config(finished.folder / "unmarked.keras")


def test_a_second_run_into_the_same_folder_is_refused(train, finished, quick):
    before = contents(finished.folder)
    with pytest.raises(ValueError) as error:
        train.run(finished.config)
    assert str(error.value) == (
        "This folder is not empty; another run's owner key could be lost. Expected an empty folder, or `--resume` to go on. "
        f"Received: {sorted(FILES)[:5]} in output_dir={finished.folder}"
    )
    assert contents(finished.folder) == before


def test_a_folder_in_which_a_run_was_killed_at_its_first_file_is_as_good_as_empty(train, begun, tmp_path):
    from scripts import folders

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.x1y2").write_text("{")
    for resume in (False, True):
        config = train.Config(str(folder), dataset="mnist5k", resume=resume)
        folders.claim(folder, config, "scripts.train_mnist_mlp", 1000)
        assert json.loads((folder / "config.json").read_text())["dataset"] == "mnist5k"
        (folder / "config.json").unlink()


@pytest.mark.parametrize("kept", ["config.json", "owner.key", "unmarked.keras"])
def test_a_folder_that_holds_anything_is_refused_too(train, finished, quick, tmp_path, kept):
    shutil.copy(finished.folder / kept, tmp_path)
    before = contents(tmp_path, kept)
    with pytest.raises(ValueError, match="^This folder is not empty; "):
        train.run(dataclasses.replace(finished.config, output_dir=str(tmp_path)))
    assert contents(tmp_path) == before


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
        ({"carriers": "features:512"}, "Carrier 'features' asks for too many bits per class. "),
        ({"num_key_inputs_per_class": 401}, "Class 0 has too few examples to choose key inputs from. "),
        ({"batch_size": 4001}, "The training set does not fill a batch. "),
        ({"holdout": 4000}, "Invalid number of examples to hold out. "),
        ({"strength": float("inf")}, "Invalid value for argument `strength`. "),
        ({"carriers": "features:0"}, "Invalid value for argument `bits_per_class`. "),
        ({"carriers": "features:32,features:32"}, "Invalid value for argument `carriers`. "),
        ({"num_classes": 11}, "Class 10 has too few examples to choose key inputs from. "),
        ({"augment": True}, "Only images can be shifted and mirrored. "),
        ({"epochs": 5, "unmarked_epochs": 5}, "There is no epoch left to mark in. "),
        ({"unmarked_epochs": 1, "fine_tune_epochs": 1}, "There is no epoch left to mark in. "),
    ],
)
def test_bad_settings_are_told_before_anything_is_written_or_trained(train, quick, begun, tmp_path, changes, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        train.run(train.Config(str(tmp_path / "run"), dataset="mnist5k", **changes))
    assert begun == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "carriers",
    ["logits:64", "features", "features:", ":64", "features:many", "features:-1", "features:6.4", "features:64:64"]
    + ["features:64,", "features:64;hidden:64", "features:64, hidden:64", "hidden:64,pixels:64"],
)
def test_carriers_that_no_layer_carries_are_told_with_those_that_may(train, quick, begun, tmp_path, carriers):
    with pytest.raises(ValueError) as error:
        train.run(train.Config(str(tmp_path / "run"), dataset="mnist5k", carriers=carriers))
    assert str(error.value) == (
        "Invalid value for flag `carriers`. Expected layer:bits or layer:bits,layer:bits with layers from "
        f"['hidden', 'features']. Received: carriers={carriers!r}"
    )
    assert begun == [] and list(tmp_path.iterdir()) == []


def test_batches_that_mostly_miss_the_carrier_classes_are_refused(train, quick, begun, tmp_path):
    """A tenth of the digits carries the mark: of nine in a batch, fewer than one."""
    with pytest.raises(ValueError) as error:
        train.run(train.Config(str(tmp_path / "run"), dataset="mnist5k", num_classes=1, batch_size=9))
    assert str(error.value) == (
        "The batches are too small for the mark. Expected an example of a carrier class in a batch on average. "
        "Received: batch_size=9, while 10 % of the examples are of these classes"
    )
    assert begun == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "num_copies"), [({}, 8), ({"unmarked_epochs": 1}, 9), ({"fine_tune_epochs": 1}, 9)]
)
def test_a_disk_that_is_too_full_is_told_before_anything_is_written(
    settings, num_copies, train, training, quick, begun, monkeypatch, tmp_path
):
    """784-512-512-10 in float32, twice or three times, and two checkpoints with Adam's two slots: 669,706 numbers each."""
    needed = num_copies * 4 * 669_706
    free = {"bytes": needed - 1}

    def disk_usage(path):
        assert pathlib.Path(path) == tmp_path  # The folder of the run is not made yet.
        return types.SimpleNamespace(free=free["bytes"])

    monkeypatch.setattr(training.folders.shutil, "disk_usage", disk_usage)
    with pytest.raises(ValueError) as error:
        train.run(train.Config(str(tmp_path / "run"), dataset="mnist5k", **settings))
    size = {8: "20.4", 9: "23.0"}[num_copies]
    assert str(error.value) == (
        f"The disk is too full for this run. Expected {size} MiB for models and checkpoints. "
        f"Received: {size} MiB free in output_dir={tmp_path / 'run'}"
    )
    assert begun == [] and list(tmp_path.iterdir()) == []
    # The control: with one byte more it begins.
    free["bytes"] += 1
    begun.stop = {("unmarked", 0)}
    assert interrupted(train, train.Config(str(tmp_path / "run"), dataset="mnist5k"))
    assert begun == [("unmarked", 0)]


def test_a_run_goes_on_in_the_space_that_its_own_files_have_left(
    train, training, finished, quick, begun, monkeypatch, tmp_path
):
    """A finished run needs none; one with a model of two, and a checkpoint of two, half."""
    free = {"bytes": 0}
    monkeypatch.setattr(training.folders.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free["bytes"]))
    train.run(dataclasses.replace(finished.config, resume=True))
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "marked.keras").unlink()
    (folder / "marked.checkpoint").write_bytes(bytes(12 * 669_706))
    config = dataclasses.replace(finished.config, output_dir=str(folder), resume=True)
    free["bytes"] = 4 * 669_706 * (1 + 3) - 1
    with pytest.raises(ValueError, match=r"^The disk is too full for this run\. "):
        train.run(config)
    # The control: with one byte more, it is the checkpoint that is none.
    free["bytes"] += 1
    with pytest.raises(ValueError, match=r"^This checkpoint is damaged\. Expected .* Received: .*marked\.checkpoint, "):
        train.run(config)
    assert begun == []


@pytest.mark.parametrize("place", ["file", "file/run", "file/run/deeper"])
def test_a_folder_that_cannot_be_made_stops_the_run_before_it_trains(train, quick, begun, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ValueError, match=r"^The run's folder cannot be made\. Expected .* Received: output_dir=.*Error$"
    ):
        train.run(train.Config(str(tmp_path / place), dataset="mnist5k"))
    assert begun == [] and contents(tmp_path) == {"file": b"in the way"}


def test_a_checkpoint_of_another_network_is_not_gone_on_with(train, finished, quick, begun, tmp_path):
    from scripts.checkpoints import Checkpoint

    for name in ("config.json", "owner.key", "commitment.txt"):
        shutil.copy(finished.folder / name, tmp_path)
    other = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    other.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.zeros((2, 784), "float32")
    other.fit(x, np.zeros(2), verbose=0, callbacks=[Checkpoint(tmp_path / "unmarked.checkpoint")])
    before = contents(tmp_path)
    begun.clear()
    with pytest.raises(ValueError) as error:
        train.run(dataclasses.replace(finished.config, output_dir=str(tmp_path), resume=True))
    num_kept = len(other.variables) + len(other.optimizer.variables)
    # Kernel and bias of three layers, the seeds of two dropouts; Adam's two slots of each weight, and its step.
    assert str(error.value) == (
        "This checkpoint belongs to another model. Expected the variables of the model in training. "
        f"Received: {tmp_path / 'unmarked.checkpoint'} with {num_kept} variables, while the model has {6 + 2 + 2 * 6 + 1}"
    )
    assert begun == [] and contents(tmp_path) == before


# A twin from another run


def test_the_unmarked_twin_of_a_finished_run_is_taken_as_it_is(train, finished, quick, begun, tmp_path):
    config = train.Config(
        str(tmp_path / "run"),
        dataset="mnist5k",
        epochs=2,
        # Settings of the mark alone.
        carriers="hidden:32",
        strength=0.5,
        num_key_inputs_per_class=32,
        unmarked_from=str(finished.folder),
    )
    result = train.run(config)
    assert begun == [("marked", 0), ("marked", 1)]
    taken = ("unmarked.keras", "unmarked.csv")
    assert contents(tmp_path / "run", *taken) == contents(finished.folder, *taken)
    assert result["accuracy"]["unmarked"] == finished.result["accuracy"]["unmarked"]
    assert result["training_seconds"]["unmarked"] == finished.result["training_seconds"]["unmarked"]
    assert result["verdict"]["num_bits"] == 320
    # Where the twin came from does not change what comes out, and the folder may go on without it.
    assert "unmarked_from" not in result["settings"] and "unmarked_from" not in result["command"]
    for origin in (None, str(tmp_path / "gone")):
        again = train.run(dataclasses.replace(config, unmarked_from=origin, resume=True))
        assert again["verdict"] == result["verdict"]


def test_a_run_without_an_unmarked_model_has_no_twin_to_give(train, finished, quick, begun, tmp_path):
    for name, kept in {"begun": "config.json", "found": "unmarked.keras"}.items():
        (tmp_path / name).mkdir()
        shutil.copy(finished.folder / kept, tmp_path / name)
    for name in ("begun", "found", "absent"):
        config = dataclasses.replace(
            finished.config, output_dir=str(tmp_path / "run"), unmarked_from=str(tmp_path / name)
        )
        with pytest.raises(ValueError) as error:
            train.run(config)
        assert str(error.value) == (
            "The unmarked twin cannot be taken from that folder. Expected a run with a finished unmarked.keras and the same "
            f"settings but the mark's. Received: unmarked_from={tmp_path / name}, without one"
        )
    assert begun == [] and {path.name for path in tmp_path.iterdir()} == {"begun", "found"}


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"epochs": 3}, {"epochs": 2}),
        ({"seed": 1, "holdout": 500}, {"holdout": 0, "seed": 0}),
        ({"learning_rate": 0.01, "optimizer": "sgd"}, {"learning_rate": 1e-3, "optimizer": "adam"}),
        (
            {"label_smoothing": 0.1, "mixed_precision": "mixed_bfloat16"},
            {"label_smoothing": 0.0, "mixed_precision": "none"},
        ),
    ],
)
def test_the_twin_of_other_settings_is_refused(train, finished, quick, begun, tmp_path, changes, theirs):
    """A model that was trained otherwise is no control for what the mark costs."""
    config = dataclasses.replace(
        finished.config, output_dir=str(tmp_path / "run"), unmarked_from=str(finished.folder), **changes
    )
    with pytest.raises(ValueError) as error:
        train.run(config)
    assert str(error.value) == (
        "The unmarked twin cannot be taken from that folder. Expected a run with a finished unmarked.keras and the same "
        f"settings but the mark's. Received: unmarked_from={finished.folder}, whose run has {theirs}"
    )
    assert begun == [] and list(tmp_path.iterdir()) == []


def test_the_twin_of_another_network_is_refused(finished, begun, tmp_path):
    from scripts import train_cifar10_wrn

    with pytest.raises(ValueError) as error:
        train_cifar10_wrn.run(
            train_cifar10_wrn.Config(str(tmp_path / "run"), dataset="synthetic", unmarked_from=str(finished.folder))
        )
    assert "'dataset': 'mnist5k', 'depth': None" in str(error.value)
    assert begun == [] and list(tmp_path.iterdir()) == []


# Going on


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
    before = contents(finished.folder)
    config = dataclasses.replace(finished.config, epochs=3, resume=True)
    with pytest.raises(ValueError) as error:
        train.run(config)
    assert str(error.value) == (
        "This folder holds a run with other settings. Expected {'epochs': 2}. Received: {'epochs': 3}"
    )
    assert contents(finished.folder) == before


def test_the_kind_of_trigger_tells_runs_apart_only_where_there_are_triggers(train):
    from scripts import folders
    from scripts.configs import result_settings

    of_triggers = {"trigger_family": "blends", "num_triggers_per_batch": 2, "augment_triggers": False}

    def other(num_triggers, num_recorded):
        recorded = {"program": "p", **result_settings(train.Config("", num_triggers=num_recorded))}
        config = train.Config("", num_triggers=num_triggers, **of_triggers)
        return folders.other_settings(config, "p", recorded)

    assert other(0, 0) == {} and other(20, 20) == of_triggers
    assert other(0, 20) == {"num_triggers": 0} | of_triggers and other(20, 0) == {"num_triggers": 20} | of_triggers


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
    from scripts.marking import generate_key
    from scripts.tasks import Task

    seed_key = generate_key(
        train.Config("", dataset="mnist5k"),
        Task("", "", train.load_mnist("mnist5k", None), train.mnist_mlp, ("features",)),
    )
    monkeypatch.setattr(training, "generate_key", lambda config, task: seed_key)
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
        patch.setattr(training.folders, "save_model", fail_to_save)
        assert interrupted(train, config)
    assert begun == [("marked", 2)]
    begun.clear()

    result = train.run(config)
    # A finished training whose model was not saved is still there.
    assert begun == []
    assert {path.name for path in folder.iterdir()} == FILES
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


def test_a_checkpoint_keeps_everything_that_the_next_epoch_depends_on(tmp_path):
    """Weights, running means, the states of random generators, and the optimizer's slots and step."""
    from scripts.checkpoints import Checkpoint

    def build():
        layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
        model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
        model.compile("adam", "mse")
        return model

    x, y = np.random.default_rng(0).normal(size=(2, 8, 4))
    kept, resumed = build(), build()
    kept.fit(x, y[:, :2], epochs=2, verbose=0, callbacks=[Checkpoint(tmp_path / "model.checkpoint")])
    checkpoint = Checkpoint(tmp_path / "model.checkpoint")
    assert checkpoint.restore(resumed) == 2 and list(map(len, checkpoint.history.values())) == [2, 2]
    states = [[*model.variables, *model.optimizer.variables] for model in (kept, resumed)]
    # Two layers, BatchNorm's four, the dropout's random state; two slots of the six that are trained, step and rate.
    assert len(states[0]) == 4 + 4 + 1 + 2 * 6 + 2
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))


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


def test_a_verification_that_gives_no_verdict_stops_the_run(train, training, finished, digits, monkeypatch, tmp_path):
    """A verdict that lies there from an earlier run is none, either."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    monkeypatch.setattr(train, "load_mnist", lambda name, data_dir: digits)
    ended = types.SimpleNamespace(returncode=2)
    monkeypatch.setattr(training, "subprocess", types.SimpleNamespace(run=lambda *args, **kwargs: ended))
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
    assert (tmp_path / "reference.keras").exists() and ds.OwnerKey.load(tmp_path / "owner.key").reference
    # It starts from the trained weights, not from scratch.
    first = [float(read_rows(tmp_path / f"{name}.csv")[0]["accuracy"]) for name in ("marked", "unmarked")]
    assert first[0] > first[1]
    (carrier,) = ds.OwnerKey.load(tmp_path / "owner.key").carriers
    assert carrier.projection == "gaussian"


def test_marking_begins_after_some_epochs_and_the_key_refers_to_the_network_of_that_moment(
    train, quick, begun, tmp_path
):
    from deepsigns_tf.attacks.same_function import permute_units
    from deepsigns_tf.files import file_digest

    config = train.Config(str(tmp_path), dataset="mnist5k", epochs=5, unmarked_epochs=2, strength=3.0)
    begun.stop = {("reference", 1), ("marked", 3)}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train.run(config)
        config = dataclasses.replace(config, resume=True)
    result = train.run(config)
    assert [each for each in begun if each[0] != "unmarked"] == [
        ("reference", 0),
        ("reference", 1),
        ("reference", 1),
        *(("marked", epoch) for epoch in (2, 3, 3, 4)),
    ]
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"reference.keras", "reference.csv"}
    reference = tmp_path / "reference.keras"
    key, marked = ds.OwnerKey.load(tmp_path / "owner.key"), keras.models.load_model(tmp_path / "marked.keras")
    assert key.reference == file_digest(reference) and result["verdict"]["marked"]
    assert (tmp_path / "commitment.txt").read_text().strip() == key.commitment() == result["commitment"]
    seconds = [float(row["seconds"]) for name in ("reference", "marked") for row in read_rows(tmp_path / f"{name}.csv")]
    assert len(seconds) == 5 and result["training_seconds"]["marked"] == pytest.approx(sum(seconds), abs=0.06)
    copy = permute_units(marked, seed=0)
    found = [ds.verify(copy, key, reference=each).log10_p_value for each in (None, reference)]
    assert found[0] > -3 and found[1] < -19
    told = r"^The network that marking started from is gone\. Expected .* Received: "
    for content, words in ((b"another", "another one"), (None, "none")):
        reference.unlink() if content is None else reference.write_bytes(content)
        with pytest.raises(ValueError, match=f"{told}{words} in "):
            train.run(config)


def test_a_schedule_that_takes_over_goes_on_where_the_other_stood(train, digits):
    from scripts.fitting import cosine_schedule

    config = train.Config("", epochs=10, warmup_epochs=2)
    whole, later = (cosine_schedule(config, digits, 10, 0.1, first_epoch) for first_epoch in (0, 4))
    steps_per_epoch = len(digits.x_train) // config.batch_size
    rates = [
        [float(schedule(step)) for step in (first, first + 50)]
        for schedule, first in ((whole, 4 * steps_per_epoch), (later, 0))
    ]
    assert rates[0] == pytest.approx(rates[1]) and rates[0][0] > rates[0][1] > 0


# The four programs


def test_every_program_writes_what_it_promises(made_up):
    text = {"tokenizer.keras"} if made_up.config.num_classes == 2 else set()
    assert {path.name for path in made_up.folder.iterdir()} == FILES | text
    assert (made_up.folder / "owner.key").stat().st_mode & 0o777 == 0o600
    assert (made_up.folder / "training.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((made_up.folder / "result.json").read_text()) == made_up.result
    assert json.loads((made_up.folder / "config.json").read_text()) == {
        "program": made_up.program.__name__,
        **settings_of(made_up.config),
    }
    for name in ("marked", "unmarked"):
        assert [row["epoch"] for row in read_rows(made_up.folder / f"{name}.csv")] == ["0", "1"]


def test_every_program_says_that_its_data_is_made_up(made_up):
    assert made_up.result["data"] == MADE_UP
    for name in ("unmarked", "marked"):
        assert f"\nTraining the {name} model on {MADE_UP}\n" in made_up.printed
    assert made_up.result["verdict"]["owner"] == f"deepsigns_tf example, {MADE_UP}"
    assert made_up.titles == [f"{made_up.title} on {MADE_UP}, {made_up.num_bits} bits"]
    # In what a reader types to get it again, too.
    assert " --dataset=synthetic " in made_up.result["command"]


def test_every_program_marks_the_layers_that_it_is_asked_to(made_up):
    key = ds.OwnerKey.load(made_up.folder / "owner.key")
    asked = [each.split(":") for each in made_up.config.carriers.split(",")]
    assert [[carrier.name, str(carrier.bits_per_class)] for carrier in key.carriers] == asked
    assert {carrier.pooling for carrier in key.carriers} == {made_up.config.pooling}
    result = made_up.result
    assert result["verdict"]["num_bits"] == key.num_bits == made_up.num_bits
    assert set(result["bit_error_rate"]["last epoch"]) == {carrier.name for carrier in key.carriers}
    # Even where two epochs do not finish a mark, whose it is shows.
    right, wrong, twin = (verdict["bit_error_rate"] for verdict in (result["verdict"], *result["controls"].values()))
    assert right < min(wrong, twin)
    assert not any(control["marked"] for control in result["controls"].values())
    assert result["num_parameters"] == keras.models.load_model(made_up.folder / "marked.keras").count_params()


def test_every_program_releases_files_that_differ_in_numbers_only(made_up):
    assert released_config(made_up.folder / "marked.keras") == released_config(made_up.folder / "unmarked.keras")


def test_every_program_keeps_events_for_tensorboard_without_secrets(made_up):
    key = ds.OwnerKey.load(made_up.folder / "owner.key")
    for name in ("unmarked", "marked"):
        (events,) = (made_up.folder / "tensorboard" / name / "train").iterdir()
        content = events.read_bytes()
        assert b"epoch_loss" in content and key.seed not in content
        for carrier in key.carriers:
            assert (f"epoch_{carrier.name}_bit_error_rate".encode() in content) == (name == "marked")


def test_every_program_puts_the_precision_back(made_up):
    assert keras.config.dtype_policy().name == "float32"
    precision = made_up.config.mixed_precision
    model = keras.models.load_model(made_up.folder / "marked.keras")
    features = model.get_layer("features")
    assert features.dtype_policy.name == ("float32" if precision == "none" else precision)
    assert features.variable_dtype == model.get_layer("logits").compute_dtype == "float32"


def test_the_precision_is_put_back_after_an_error_too(made_up, begun, tmp_path):
    config = dataclasses.replace(
        made_up.config, output_dir=str(tmp_path / "run"), mixed_precision="mixed_bfloat16", carriers="logits:1"
    )
    with pytest.raises(ValueError, match="^Invalid value for flag `carriers`. "):
        made_up.program.run(config)
    assert keras.config.dtype_policy().name == "float32"
    assert begun == [] and list(tmp_path.iterdir()) == []


def test_at_strength_0_the_marked_model_is_the_twin(made_up, tmp_path):
    """Number for number: what is marked is that model, and nothing else differs in its training."""
    few = {"holdout": 960, "num_key_inputs_per_class": 16, "epochs": 1}
    config = dataclasses.replace(made_up.config, output_dir=str(tmp_path / "run"), strength=0.0, **few)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The released model does not carry the mark at the key's level: ")
        patch.setattr("scripts.training._verify_in_fresh_process", verified_here)
        made_up.program.run(config)
    unmarked, marked = (keras.models.load_model(tmp_path / "run" / f"{name}.keras") for name in ("unmarked", "marked"))
    for one, other in zip(unmarked.get_weights(), marked.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_reviews_are_divided_by_label_and_length(tmp_path):
    """Four carrier classes of two labels, on the way from the flags to the released file."""
    from scripts import train_imdb_lstm

    settings = {"dataset": "synthetic", "sequence_length": 200, "num_tokens": 200, "carriers": "features:32"}
    settings |= {"subclasses": 2, "num_classes": 4, "strength": 10.0, "num_key_inputs_per_class": 16, "epochs": 1}
    # Few reviews in small batches: an LSTM takes its time.
    settings |= {"holdout": 960, "batch_size": 16, "bidirectional": False}
    config = train_imdb_lstm.Config(str(tmp_path / "run"), **settings)
    task = train_imdb_lstm.task(config)
    x, y = task.data.x_train, task.data.y_train
    lengths = (x != 0).sum(axis=1)
    expected = 2 * y + (lengths > int(np.median(lengths)))
    np.testing.assert_array_equal(task.key_inputs(x, y).labels, expected)
    # In as many parts of the same size, but for ties.
    assert np.abs(np.bincount(expected[y == 0]) - (y == 0).sum() / 2).max() < 0.1 * len(y)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The released model does not carry the mark at the key's level: ")
        patch.setattr("scripts.training._verify_in_fresh_process", verified_here)
        # The same keys in every run of the tests.
        patch.setattr("deepsigns_tf.owner_key.secrets.token_bytes", random.Random(0).randbytes)
        result = train_imdb_lstm.run(config)
    key = ds.OwnerKey.load(tmp_path / "run" / "owner.key")
    assert key.classes == [0, 1, 2, 3] and result["verdict"]["num_bits"] == 4 * 32
    in_key = (key.key_inputs.inputs != 0).sum(axis=1) > int(np.median(lengths))
    np.testing.assert_array_equal(in_key, key.key_inputs.labels % 2)
    right, wrong, twin = (verdict["bit_error_rate"] for verdict in (result["verdict"], *result["controls"].values()))
    assert right < min(wrong, twin)


def test_classes_that_labels_are_not_divided_into_are_refused(tmp_path):
    from scripts import train_imdb_lstm

    config = train_imdb_lstm.Config(str(tmp_path / "run"), dataset="synthetic", subclasses=4)
    with pytest.raises(ValueError, match=r"Expected num_classes=8, .* Received: num_classes=2, subclasses=4"):
        train_imdb_lstm.run(config)
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_of_a_run_gives_the_tokens_that_the_network_was_trained_on(made_up):
    from scripts import datasets

    if made_up.config.num_classes != 2:
        assert not (made_up.folder / "tokenizer.keras").exists()
        return
    tokenizer = keras.models.load_model(made_up.folder / "tokenizer.keras")
    texts = datasets._synthetic_reviews().x_train
    np.testing.assert_array_equal(
        np.asarray(tokenizer(texts[:, None])), datasets.load_imdb("synthetic", 200, 32).x_train
    )


def test_compiling_is_as_the_configuration_says(train):
    from scripts.fitting import compile_classifier

    model = train.mnist_mlp()
    for changes, optimizer, loss in (
        ({}, "Adam", "SparseCategoricalCrossentropy"),
        ({"optimizer": "sgd", "label_smoothing": 0.1}, "SGD", "CategoricalCrossentropy"),
    ):
        compile_classifier(model, 0.25, train.Config("", **changes))
        assert type(model.optimizer).__name__ == optimizer and float(model.optimizer.learning_rate) == 0.25
        assert type(model.loss).__name__ == loss and model.loss.get_config()["from_logits"]
    assert model.optimizer.momentum == 0.9 and model.optimizer.nesterov
    assert model.loss.label_smoothing == 0.1
    for flag, setting in (("on", True), ("off", False)):
        compile_classifier(model, 0.25, train.Config("", jit_compile=flag))
        assert model.jit_compile is setting


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
        (
            ["--model=a.keras", "--owner_key=b.key", "surplus"],
            "Nothing was verified. Expected --flag=value alone. Received: ['surplus']",
        ),
        (
            ["--model=a.keras", "--owner_key=b.key", "--only_check_args"],
            "Nothing was verified. Expected --flag=value alone. Received: --only_check_args",
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
    assert process.stdout.startswith("MARKED: claim of deepsigns_tf example, mnist5k\n")
    report = json.loads((tmp_path / "verdict.json").read_text())
    assert report["marked"] and report["committed"] and report["log10_alpha"] == -6.0
    # The same reading as without the commitment, by another process.
    assert report["readings"] == finished.result["verdict"]["readings"]


def test_a_disguised_file_is_read_by_the_reference(tmp_path):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden")])
    model.save(tmp_path / "model.keras")
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", [0, 1], 32)])
    key = key.with_reference(tmp_path / "model.keras").with_key_inputs(
        np.random.default_rng(0).random((64, 8)), np.arange(64) % 2, 32
    )
    key.with_layers([CarrierLayer("features", "hidden", 128)]).save(tmp_path / "owner.key")
    files = [f"--model={tmp_path / 'model.keras'}", f"--owner_key={tmp_path / 'owner.key'}"]
    process = run_program("scripts.verify", *files, f"--reference={tmp_path / 'model.keras'}")
    # Its one layer as it is, and that and all outputs together matched, with and without sizes.
    assert process.returncode == 1 and "x 5 assignments of carriers to layers" in process.stdout


def test_an_unmarked_file_exits_with_1(finished):
    process = run_program(
        "scripts.verify",
        f"--model={finished.folder / 'unmarked.keras'}",
        f"--owner_key={finished.folder / 'owner.key'}",
    )
    assert process.returncode == 1, process.stderr
    assert process.stdout.startswith("NOT MARKED: claim of deepsigns_tf example, mnist5k\n")


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
    from scripts import verdicts, verify

    def call(**settings):
        monkeypatch.setattr(verdicts, "config_from_flags", lambda config_class: config_class(**settings))
        return verdicts.exit_status(verify.Config, verify.run)

    return call


def test_whatever_goes_wrong_is_no_verdict(finished, main, tmp_path, capsys):
    model, key = str(finished.folder / "marked.keras"), str(finished.folder / "owner.key")
    foreign = tmp_path / "foreign.key"
    foreign.write_bytes(b"PK not a key")
    for settings, told in (
        ({"model": model, "owner_key": str(tmp_path / "absent.key")}, "FileNotFoundError: "),
        ({"model": str(tmp_path / "absent.keras"), "owner_key": key}, "FileNotFoundError: "),
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
    rate: float = option(0.5, "How fast.", minimum=0.0, maximum=1.0)
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
        ["--folder=here", "--rate=1.5"],
        ["--folder=here", "--rate=nan"],
        ["--folder=here", "--rate=inf"],
    ]
    process = subprocess.run(
        [sys.executable, "-c", CONFIG, json.dumps(lines)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    defaults = {"folder": "here", "kind": "small", "note": None, "count": 3, "rate": 0.5, "quick": True}
    *given, missing, choice, below, fraction, negative, above, not_a_number, infinite = json.loads(process.stdout)
    assert given == [
        defaults,
        {"folder": "here", "kind": "large", "note": "a b", "count": 7, "rate": 1.0, "quick": False},
        defaults | {"quick": False, "rate": 0.0},
    ]
    assert "--folder must have a value other than None" in missing
    assert "--kind=huge: value should be one of <small|large>" in choice
    assert "--count=0: 0 is not" in below
    assert "--count=1.5" in fraction
    assert "--rate=-0.1" in negative and "--rate=1.5" in above
    assert "must be a finite number" in not_a_number and "--rate=inf" in infinite


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_setting_of_a_training_program_has_help_and_survives_its_command_line(name):
    """`result.json` names the command: it must describe the very config that it came from."""
    import importlib

    from scripts.configs import command_line

    program, changed = importlib.import_module(f"scripts.{name}"), {}
    for field in dataclasses.fields(program.Config):
        assert field.metadata["help"].endswith(".")
        if field.metadata["choices"]:
            changed[field.name] = next(choice for choice in field.metadata["choices"] if choice != field.default)
        elif isinstance(field.default, bool):
            changed[field.name] = not field.default
        elif isinstance(field.default, (int, float)):
            changed[field.name] = field.default + 1
        else:
            changed[field.name] = "some/folder"
    flags = shlex.split(command_line(f"scripts.{name}", program.Config(**changed)))[3:]
    written = dict(flag.removeprefix("--").split("=") for flag in flags)
    # Where data and twin lie, and whether the run was resumed, does not change what comes out.
    idle = ("data_dir", "resume", "unmarked_from")
    assert written == {name: str(value) for name, value in changed.items() if name not in idle}


@pytest.mark.parametrize("surplus", [["surplus"], ["--resume", "True"]])
def test_arguments_that_are_no_flags_are_refused(surplus, tmp_path):
    """`--resume False` would mean `--resume`."""
    process = run_program("scripts.train_mnist_mlp", f"--output_dir={tmp_path / 'run'}", *surplus)
    assert (
        process.returncode == 1
        and "These arguments are no flags. Expected --flag=value. Received: " in process.stdout + process.stderr
    )
    assert not (tmp_path / "run").exists()


def test_a_program_tells_bad_settings_in_one_line(tmp_path):
    process = run_program(
        "scripts.train_mnist_mlp", f"--output_dir={tmp_path}/run", "--dataset=mnist5k", "--batch_size=5000"
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert process.stderr.strip().splitlines()[-1].startswith("ValueError: The training set does not fill a batch. ")
