"""Trainings killed with SIGKILL, in processes of their own, and resumed: the same models as if nothing had been."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest

from tests.finished_runs import FILES

REPOSITORY = pathlib.Path(__file__).parents[1]


def told(text):
    """The moment in which the program has told something."""
    return types.SimpleNamespace(name=f"told {text!r}", come=lambda said, names: text in said)


def seen(beginning):
    """The moment in which a file appears whose name begins so; at once, if an earlier process got that far unobserved."""
    return types.SimpleNamespace(
        name=f"seen {beginning!r}", come=lambda said, names: any(name.startswith(beginning) for name in names)
    )


# When all is written that a run is kept for; what follows is verification.
TRAINED = seen("marked.keras")


def train(arguments, folder, moment=None):
    """Runs a program to its end, or kills it with all its children at a moment.

    It may then have gone on for the milliseconds that pass until the next look at its folder, as any killed program may.
    """
    command = [sys.executable, "-u", "-m", *arguments, f"--output_dir={folder}"]
    output = folder.with_name(f"{folder.name}.output")
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    killed, deadline = False, time.monotonic() + 600
    try:
        while process.poll() is None and not killed:
            names = {path.name for path in folder.iterdir()} if folder.exists() else set()
            killed = moment is not None and moment.come(output.read_text(errors="replace"), names)
            assert killed or time.monotonic() < deadline, output.read_text()
            if not killed:
                time.sleep(0.002)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = output.read_text(errors="replace")
    if moment is None:
        assert process.returncode == 0, said
    else:
        assert killed and process.returncode == -signal.SIGKILL, f"{moment.name} never came:\n{said}"
    return said


def weights(path):
    return keras.models.load_model(path).get_weights()


def assert_as_uninterrupted(arguments, moments, tmp_path, num_epochs):
    """Kills and resumes a training until it is done, and compares its models with those that were never interrupted."""
    from scripts.folders import read_history

    folder, whole = tmp_path / "killed", tmp_path / "whole"
    train(arguments, folder, moments[0])
    key = (folder / "owner.key").read_bytes()
    # The same owner key from the beginning: a run that was killed before it trained anything.
    whole.mkdir()
    for name in ("config.json", "owner.key"):
        shutil.copy(folder / name, whole)
    for moment in moments[1:]:
        train([*arguments, "--resume"], folder, moment)
    last = train([*arguments, "--resume"], folder)
    train([*arguments, "--resume"], whole, TRAINED)

    # What was cut off while it was written, or before it was removed, lies there and is not used; nothing else is left over.
    left_over = {path.name for path in folder.iterdir()} - FILES - {"tokenizer.keras"}
    assert all(name.startswith(".") or name.endswith(".checkpoint") for name in left_over)
    assert {path.name for path in folder.iterdir()} >= FILES
    for name in ("unmarked", "marked"):
        for one, other in zip(weights(folder / f"{name}.keras"), weights(whole / f"{name}.keras"), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert read_history(folder / f"{name}.csv")["epoch"] == list(range(num_epochs))
    # Only the layers that carry the mark were added to the key.
    commitment = (folder / "commitment.txt").read_text()
    assert commitment == (whole / "commitment.txt").read_text() and commitment in last + "\n"
    assert (folder / "owner.key").read_bytes() != key
    return json.loads((folder / "result.json").read_text())


def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    """Killed in an epoch of the first training, and while the second model is saved."""
    arguments = ["scripts.train_mnist_mlp", "--dataset=mnist5k", "--epochs=3"]
    moments = [told("Epoch 2/3"), seen("unfinished_marked.keras")]
    result = assert_as_uninterrupted(arguments, moments, tmp_path, 3)
    assert result["verdict"]["marked"] and not result["controls"]["unmarked twin"]["marked"]


# Every kind of moment: before anything is trained, at each epoch of both trainings, while each file is written, and after.
MOMENTS = [
    seen("owner.key"),
    seen("unmarked.checkpoint"),
    told("Epoch 2/3"),
    told("Epoch 3/3"),
    seen("unfinished_unmarked.keras"),
    told("Training the marked model"),
    told("Epoch 1/3"),
    told("Epoch 2/3"),
    seen(".marked.checkpoint."),
    told("Epoch 3/3"),
    seen("unfinished_marked.keras"),
    seen("marked.keras"),
    told("Verification of the released file"),
]

PROGRAMS = {
    "mlp": ["scripts.train_mnist_mlp", "--dataset=mnist5k"],
    # With augmentation, BatchNorm, warm-up, label smoothing and bfloat16.
    "wrn": [
        "scripts.train_cifar10_wrn",
        "--dataset=synthetic",
        "--depth=10",
        "--width=1",
        "--carriers=features:16",
        "--batch_size=256",
    ],
    "lstm": ["scripts.train_imdb_lstm", "--dataset=synthetic", "--num_tokens=200", "--sequence_length=32"],
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_training_may_be_killed_at_any_moment(program, tmp_path):
    assert_as_uninterrupted([*PROGRAMS[program], "--epochs=3"], MOMENTS, tmp_path, 3)
