"""Writes a report on a claim: a page for people who are no engineers, and the same as JSON.

    python -m scripts.report --model=runs/mnist5k/marked.keras --owner_key=runs/mnist5k/owner.key \
        --unmarked=runs/mnist5k/unmarked.keras --output_dir=report
    python -m scripts.report --model=suspect.keras --owner_key=owner.key --evidence=evidence --tsa_roots=authority.pem \
        --suspect_since=2026-11-26 --output_dir=report

The suspect is read as `scripts.verify` reads it, and with it what must come out otherwise or the same: the suspect with wrong keys, made
here and thrown away; unmarked models, the same reading; and, with other inputs, the suspect again. The folder then holds `report.html` and
`report.json`, and nothing secret. The exit status says whether they were written, not what they say.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import pathlib
import platform
import secrets
from typing import TYPE_CHECKING, Any

from scripts.claims import Claim, evidence_of, moment_in, roots_in, verdict_of, way_of
from scripts.configs import command_line, option, run_program

if TYPE_CHECKING:
    import deepsigns_tf as ds
    from deepsigns_tf.commitments import Evidence
    from deepsigns_tf.report import AttackOutcome, Event


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Claim):
    """What to report on, and with which controls."""

    output_dir: str = option(dataclasses.MISSING, "Folder for report.html and report.json.", shapes_result=False)
    num_wrong_keys: int = option(3, "New keys that the suspect must not carry.", minimum=0)
    unmarked: str = option(
        "", "Models of the task that the owner never marked, `.keras` files: a.keras,b.keras. Loaded like the suspect."
    )
    held_out: str | None = option(
        None,
        "An .npz file with x_test and y_test, as `scripts.attack` takes it: examples that were not trained on; the mark must show in them.",
    )
    attacks: str | None = option(None, "What `scripts.attack` found for the marked model: its attacks.json.")


def run(config: Config) -> dict[str, Any]:
    """Reads and writes.

    Args:
        config: What to report on.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: If a file is unreadable, there is nothing to read, or settings do not fit each other.
        OSError: If a file cannot be read or written.
    """
    # Here rather than above: bad flags are told at once, not after the seconds that TensorFlow needs to start.
    import deepsigns_tf as ds
    from deepsigns_tf.files import write_atomically
    from deepsigns_tf.report import Control, Report
    from scripts.records import circumstances, write_json

    # All that can be refused is read before the first suspect is, which takes longest.
    owner_key, evidence = ds.OwnerKey.load(config.owner_key), evidence_of(config)
    by = way_of(config, owner_key)
    held_out = None if config.held_out is None else _held_out_key(config.held_out, owner_key, by)
    attacks, tried = _attacks_in(config.attacks) if config.attacks else ([], {})
    since = None if config.suspect_since is None else moment_in(config.suspect_since)
    folder = pathlib.Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as processes:
        reference = processes.enter_context(ds.load_suspect(config.reference)) if config.reference else None
        with ds.load_suspect(config.model) as suspect:
            verdict = verdict_of(suspect, owner_key, config, evidence, reference)
            others = [
                (f"the suspect, wrong key {n}", _wrong_key(owner_key), False)
                for n in range(1, config.num_wrong_keys + 1)
            ]
            if held_out is not None:
                others.append(("the suspect, inputs that were not trained on", held_out, verdict.marked))
            controls = []
            for name, key, expected in others:
                # Nobody committed to these keys; they are held against the level that the owner's is, in the places where it is read, and
                # pay what it pays.
                claim = dataclasses.replace(config, commitment=config.commitment and key.commitment())
                as_owners = evidence and _as_of_another(evidence, owner_key, key)
                controls.append(Control(name, verdict_of(suspect, key, claim, as_owners, reference), expected))
            isolation = suspect.isolation
        for path in config.unmarked.split(",") if config.unmarked else ():
            with ds.load_suspect(path) as unmarked:
                found = verdict_of(unmarked, owner_key, config, evidence, reference)
                controls.append(Control(f"unmarked model {pathlib.Path(path).name}", found))

    recorded = circumstances(command_line("scripts.report", config))
    report = Report(
        verdict,
        pathlib.Path(config.model).name,
        controls,
        _timeline(config, evidence, owner_key, suspect.file_digest, since),
        _hashes(config, evidence, owner_key, suspect.file_digest),
        attacks,
        {
            "Python": f"{platform.python_version()} on {platform.platform()}",
            "hardware": recorded["hardware"],
            "the suspect ran": isolation,
            **tried,
            "command": recorded["command"],
        },
        recorded["date"],
    )
    # The page last: where it is, all is.
    write_json(folder / "report.json", report.to_dict())
    write_atomically(folder / "report.html", report.to_html().encode())
    print(f"{verdict.headline}. Report: {folder / 'report.html'}")
    return report.to_dict()


def _wrong_key(owner_key: "ds.OwnerKey") -> "ds.OwnerKey":
    """A stranger's key: everything like the owner's, but for the secret and what follows from it."""
    stranger = dataclasses.replace(owner_key, seed=secrets.token_bytes(32), triggers=None)
    triggers = owner_key.triggers
    if triggers is None:
        return stranger
    sizes = triggers.num_examples, triggers.num_classes
    if triggers.basis is None:
        # Blends and points of low density cannot be made anew without the examples that the owner had.
        return stranger.with_triggers("noise", *sizes, triggers.inputs)
    return stranger.with_triggers(triggers.family, *sizes, triggers.basis)


def _as_of_another(evidence: "Evidence", owner_key: "ds.OwnerKey", other: "ds.OwnerKey") -> "Evidence":
    """The owner's statements as they would be, had the owner had another key."""
    from deepsigns_tf.commitments import Evidence, Statement, release_commitment

    statements: list[Statement] = []
    for each in evidence.statements:
        if each.commitment == owner_key.commitment():
            release = each.release
            # Those that were stated with another map stay so.
            if release is not None and release.digest == release_commitment(owner_key, release.weights, release.id):
                digest = release_commitment(other, release.weights, release.id)
                release = dataclasses.replace(release, digest=digest)
            each = dataclasses.replace(each, commitment=other.commitment(), release=release)
        statements.append(dataclasses.replace(each, previous=statements[-1].digest() if statements else None))
    return Evidence(tuple(statements), evidence.time_stamps, evidence.suspect_since)


def _held_out_key(path: str, owner_key: "ds.OwnerKey", by: str) -> "ds.OwnerKey":
    """The owner's key, which reads with other inputs."""
    import numpy as np

    if by == "answers" or owner_key.key_inputs is None:
        raise ValueError(
            "There are no other inputs to read with. Expected a key with key inputs, and --by=weights. "
            f"Received: held_out={path}, by={by}"
        )
    with np.load(path, allow_pickle=False) as archive:
        given = {name: archive[name] for name in ("x_test", "y_test") if name in archive.files}
    inputs = owner_key.key_inputs.inputs
    if len(given) < 2 or not isinstance(inputs, np.ndarray) or given["x_test"].shape[1:] != inputs.shape[1:]:
        raise ValueError(
            "These are no inputs to read with. Expected the arrays x_test and y_test, x_test shaped as the key inputs of the key. "
            f"Received: { {name: array.shape for name, array in given.items()} } in {path}"
        )
    num_per_class = owner_key.key_inputs.num_examples // len(owner_key.classes)
    unread = dataclasses.replace(owner_key, key_inputs=None)
    return unread.with_key_inputs(given["x_test"], given["y_test"], num_per_class)


def _attacks_in(path: str) -> "tuple[list[AttackOutcome], dict[str, str]]":
    """What was tried on the marked model, and when and how."""
    from deepsigns_tf.report import AttackOutcome

    try:
        result = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        outcomes = [AttackOutcome(row["attack"], row["survived"], row.get("accuracy")) for row in result["rows"]]
        tried = {"attacks tried": f"{result['command']}, {result['date']}, {result['hardware']}"}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            "This is no result of attacks. Expected the attacks.json that `scripts.attack` writes. "
            f"Received: {path}, {type(error).__name__}: {error}"
        ) from error
    return outcomes, tried


def _timeline(
    config: Config, evidence: "Evidence | None", owner_key: "ds.OwnerKey", digest: str, since: datetime.datetime | None
) -> "list[Event]":
    from deepsigns_tf.report import Event, statement_events

    events = [] if evidence is None else statement_events(evidence, owner_key)
    if config.commitment:
        source = "no date: the digits came from whoever asked for this report"
        events.append(Event("", "The owner published the commitment to the key", owner_key.commitment(), source))
    if since is not None:
        events.append(
            Event(_in_words(since), "The suspect exists", digest, "the word of whoever asked for this report")
        )
    now = _in_words(datetime.datetime.now(datetime.UTC))
    return [*events, Event(now, "The suspect was read for this report", digest, "this computer's clock")]


def _in_words(moment: datetime.datetime) -> str:
    """A moment in UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _hashes(config: Config, evidence: "Evidence | None", owner_key: "ds.OwnerKey", digest: str) -> dict[str, str]:
    hashes = {"the suspect's file, SHA-256": digest, "the key, commitment C1": owner_key.commitment()}
    if owner_key.reference is not None:
        hashes["the key's reference, SHA-256"] = owner_key.reference
    if evidence is not None:
        hashes["the owner's public key, Ed25519"] = evidence.statements[0].public_key
        for each in evidence.statements:
            if each.release is not None and each.commitment == owner_key.commitment():
                hashes[f"release {each.release.id!r}, weights"] = each.release.weights
                hashes[f"release {each.release.id!r}, commitment C2"] = each.release.digest
    roots = roots_in(config.tsa_roots)
    if roots is not None:
        hashes["trusted root certificates, SHA-256"] = hashlib.sha256(roots).hexdigest()
    return hashes


if __name__ == "__main__":
    run_program(Config, run)
