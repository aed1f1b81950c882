"""All that is written and must last, version after version, by a process that may be killed at any moment; and what is found then."""

import dataclasses
import itertools
import json
import pathlib
import types
from collections.abc import Callable

import numpy as np

import deepsigns_tf as ds
from deepsigns_tf.candidates import Candidates
from deepsigns_tf.evidence import add_statement, load_evidence
from deepsigns_tf.files import write_atomically
from deepsigns_tf.questioning import Questioning
from deepsigns_tf.responses import Place
from deepsigns_tf.signatures import SigningKey
from scripts.checkpoints import Checkpoint
from scripts.dumps import write_dump
from scripts.folders import keep_key, read_history, write_history
from scripts.records import write_json
from tests.independent_verifier import read_dump

SIGNING_KEY = SigningKey(bytes(32))
# Large enough for a write to last.
NOISE = np.random.default_rng(0).random((200, 50))


def key_of(number):
    key = ds.OwnerKey(f"version {number}", [ds.Carrier("features", [0, 1], 32)], ds.DecisionRule(), bytes(range(32)))
    return key.with_key_inputs(NOISE, np.arange(200) % 2, num_per_class=80)


@dataclasses.dataclass(frozen=True)
class Writer:
    """Something that is written.

    Args:
        write: Writes the version of a number, from 1, over or beside the one before.
        read: The number of the version that is there. Raises what the package does if it is no whole one, FileNotFoundError if there is
            none.
    """

    write: Callable[[pathlib.Path, int], object]
    read: Callable[[pathlib.Path], int]


def read_number(text):
    assert text.startswith("version ")
    return int(text.removeprefix("version "))


def read_signing_key(folder):
    found = SigningKey.load(folder / "signing.pem").public_key
    return next(n for n in range(1, 10_000) if SigningKey(n.to_bytes(32, "big")).public_key == found)


def state(folder, number):
    """A commitment to each odd number, and its release under the next."""
    key = key_of(0 if number % 2 else 1)
    key = ds.OwnerKey("ACME", (), key.decision, (number + number % 2).to_bytes(32, "big"), triggers=TRIGGERS)
    add_statement(folder, SIGNING_KEY, key, *(() if number % 2 else (f"release {number}", 64 * "a")))


TRIGGERS = ds.OwnerKey("ACME", (), ds.DecisionRule(), bytes(32)).with_triggers("noise", 1000, 10, NOISE).triggers
ASKED = ds.OwnerKey("ACME", (), ds.DecisionRule(), bytes(32), triggers=TRIGGERS)


def statements_of(folder):
    if not list(folder.glob("*.json")):
        raise FileNotFoundError
    return len(load_evidence(folder).statements)


def keep(folder, number):
    """A run's key and, beside it, its commitment, each run in a folder of its own."""
    (folder / str(number)).mkdir()
    keep_key(folder / str(number), key_of(number))


def runs_of(folder):
    """How many there are; the last one goes on as it began, whatever it lacks."""
    num_runs = len(list(folder.iterdir()))
    if not num_runs:
        raise FileNotFoundError
    for number in range(1, num_runs + 1):
        run = folder / str(number)
        if number < num_runs or (run / "commitment.txt").exists():
            key = ds.OwnerKey.load(run / "owner.key")
            assert (run / "commitment.txt").read_text() == f"{key.commitment()}\n" and read_number(key.owner) == number
    had_key = (run / "owner.key").exists()
    assert read_number(keep_key(run, key_of(num_runs + 1)).owner) == num_runs + (not had_key)
    return num_runs


class Variable(np.ndarray):
    def assign(self, value):
        self[...] = value


def checkpoint_of(folder):
    variables = [NOISE.copy().view(Variable)]
    model = types.SimpleNamespace(variables=variables, optimizer=types.SimpleNamespace(built=True, variables=[]))
    checkpoint = Checkpoint(folder / "marked.checkpoint")
    checkpoint.set_model(model)
    return checkpoint, model, checkpoint.restore(model)


def write_checkpoint(folder, number):
    checkpoint, model, _ = checkpoint_of(folder)
    model.variables[0].assign(NOISE + number)
    checkpoint.on_epoch_begin(number)
    checkpoint.on_epoch_end(number, {"loss": number})


def read_checkpoint(folder):
    checkpoint, model, num_epochs = checkpoint_of(folder)
    if not checkpoint.path.exists():
        raise FileNotFoundError
    np.testing.assert_array_equal(model.variables[0], NOISE + num_epochs)
    return num_epochs


def answer(folder, number):
    Questioning(ASKED, folder / "answers.json", "somebody").run(lambda x: np.zeros(len(x), int), max_queries=number)


def answers_of(folder):
    if not (folder / "answers.json").exists():
        raise FileNotFoundError
    return Questioning(ASKED, folder / "answers.json", "somebody").num_queries


def dump(folder, number):
    write_dump(folder / "dump.npz", {"features": Candidates({Place("hidden", 0): NOISE + number}, number)})


def dump_of(folder):
    admissible, means = read_dump(folder / "dump.npz")
    np.testing.assert_array_equal(means["features"]["hidden", 0], NOISE + admissible["features"])
    return admissible["features"]


def report_of(folder):
    head, *lines = (folder / "report.html").read_text().split("\n")
    assert lines == 50_000 * ["<p>"]
    return read_number(head)


WRITERS = {
    "owner key": Writer(
        lambda folder, number: key_of(number).save(folder / "owner.key"),
        lambda folder: read_number(ds.OwnerKey.load(folder / "owner.key").owner),
    ),
    "signing key": Writer(
        lambda folder, number: SigningKey(number.to_bytes(32, "big")).save(folder / "signing.pem"), read_signing_key
    ),
    "statements and releases": Writer(state, statements_of),
    "keys and commitments of runs": Writer(keep, runs_of),
    "verdict": Writer(
        lambda folder, number: write_json(folder / "verdict.json", {"margins": NOISE[:20].tolist(), "number": number}),
        lambda folder: json.loads((folder / "verdict.json").read_text())["number"],
    ),
    "dump of class means": Writer(dump, dump_of),
    "answers": Writer(answer, answers_of),
    "report": Writer(
        lambda folder, number: write_atomically(
            folder / "report.html", "\n".join([f"version {number}", *50_000 * ["<p>"]]).encode()
        ),
        report_of,
    ),
    "history": Writer(
        lambda folder, number: write_history(folder / "marked.csv", {"loss": list(range(number))}),
        lambda folder: len(read_history(folder / "marked.csv")["loss"]),
    ),
    "checkpoint": Writer(write_checkpoint, read_checkpoint),
}


def write_on(name, folder, told):
    """Writes version after version, and tells when it begins, and of each that it is written."""
    told.send_bytes(b"begun")
    for number in itertools.count(1):
        WRITERS[name].write(folder, number)
        told.send_bytes(b"written")
