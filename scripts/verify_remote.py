"""Says whether a model that can only be asked carries an owner's mark.

    python -m scripts.verify_remote --url=http://localhost:8501 --protocol=tensorflow_serving --model=digits --owner_key=owner.key

It asks until the claim is proved or nothing is left to ask, keeps every answer in a file beside the key, and goes on where it was
interrupted, or begins anew if all was refused so far. Exit status as that of `scripts.verify`: 0 marked, 1 not marked, 2 everything
else, unfinished questions among it.
"""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from typing import Any

from scripts.claims import COMMITMENT_HELP, EVIDENCE_HELP, SUSPECT_SINCE_HELP, TSA_ROOTS_HELP, evidence_of
from scripts.configs import option
from scripts.verdicts import concluded, run_verification

PROTOCOLS = ("tensorflow_serving", "open_inference", "json")


@dataclasses.dataclass(frozen=True)
class Config:
    """Whom to ask, and how."""

    url: str = option(dataclasses.MISSING, "Of the server; with --protocol=json the whole address of the model.")
    owner_key: str = option(dataclasses.MISSING, "The claimant's key, with triggers.")
    protocol: str = option("tensorflow_serving", "How the server is asked.", choices=PROTOCOLS)
    model: str = option("model", "Name of the model on the server.")
    version: str | None = option(None, "Version of the model; the server's choice if not given.")
    input_name: str = option(
        "inputs", "Name of the input tensor (open_inference), or where the inputs stand in a request (json): a.b.c."
    )
    output: str | None = option(
        None,
        "Name of the output, where there are several; with json where the predictions stand: a.0.b, empty for the whole reply.",
    )
    fields: str = option("{}", "With json: what else every request holds, a JSON object.")
    kind: str | None = option(
        None,
        "What the answers are, where one number stands for two classes.",
        choices=("labels", "probabilities", "logits"),
    )
    decoys: str | None = option(
        None, "Inputs to hide the triggers among: a .npy file, or .npz for several names; none if not given."
    )
    answers: str | None = option(
        None, "Where to keep the answers, a secret; a file beside the key, named by whom is asked, if not given."
    )
    max_queries: int = option(
        0,
        "Questions in all, earlier runs' (unless all were refused) and decoys included, an input of a refused batch once; 0: all.",
        minimum=0,
    )
    batch_size: int = option(1, "Questions in a request.", minimum=1)
    timeout: float = option(
        10.0, "Seconds that a part of a reply may take; the whole of it 60, or as many if that is more.", minimum=0.001
    )
    max_attempts: int = option(5, "Requests for one batch.", minimum=1)
    max_requests_per_second: float = option(0.0, "Requests are spaced so; 0: at once.", minimum=0.0)
    skip_refused: bool = option(False, "Count an input that is answered with status 400, 413 or 422 as not answered.")
    token_variable: str | None = option(None, "Environment variable with a token for the server.")
    commitment: str | None = option(None, COMMITMENT_HELP)
    evidence: str | None = option(None, EVIDENCE_HELP)
    tsa_roots: str | None = option(None, TSA_ROOTS_HELP)
    suspect_since: str | None = option(None, SUSPECT_SINCE_HELP)
    verdict: str | None = option(None, "Where to write the verdict as JSON.")


def run(config: Config) -> int:
    """Asks, and prints the verdict.

    Args:
        config: Whom to ask.

    Returns:
        0 if marked, 1 if not, 2 if questions are left that could have decided, or too few were answered.

    Raises:
        ValueError: If a file is unreadable or settings do not fit each other, and nothing was asked then; or if an answer is none that
            the model could give. What it answered before is kept.
        deepsigns_tf.remote.RemoteError: If the server gave no answer that can be used. What it answered before is kept.
    """
    # Here rather than above: bad flags are told at once, not after the seconds that Keras needs to start.
    import tqdm

    import deepsigns_tf as ds
    from deepsigns_tf import remote

    fields = _fields(config.fields)
    if config.protocol == "tensorflow_serving":
        if config.version is not None and not config.version.isdecimal():
            raise ValueError(
                "Invalid value for flag `version`. Expected a number with --protocol=tensorflow_serving. "
                f"Received: version={config.version!r}"
            )
        version = None if config.version is None else int(config.version)
        protocol: remote.ServerProtocol = remote.TensorFlowServing(config.url, config.model, version, config.output)
    elif config.protocol == "open_inference":
        protocol = remote.OpenInference(config.url, config.model, config.version, config.input_name, config.output)
    else:
        output = "predictions" if config.output is None else config.output
        protocol = remote.JsonEndpoint(config.url, config.input_name, output, fields)
    if fields and config.protocol != "json":
        raise ValueError(
            "This protocol has no fields of one's own. Expected --protocol=json with the flag `fields`. "
            f"Received: protocol={config.protocol!r}"
        )
    decoys = _decoys(pathlib.Path(config.decoys)) if config.decoys else None
    model = remote.RemoteModel(
        protocol,
        timeout=config.timeout,
        deadline=max(60.0, config.timeout),
        max_attempts=config.max_attempts,
        max_requests_per_second=config.max_requests_per_second or None,
        token_variable=config.token_variable,
        refused_statuses=(400, 413, 422) if config.skip_refused else (),
    )
    # Another address (its query may be a secret, and names a model at times), another place of inputs or outputs, or another reading of
    # them, is another questioning.
    address = hashlib.sha256(protocol.address.encode()).hexdigest()[:16]
    suspect = f"{model.name} ({address}), input {config.input_name}, output {config.output}, read as {config.kind}"
    if fields:
        # They may name the model, or hold a secret.
        written = json.dumps(fields, sort_keys=True).encode()
        suspect += f", fields {hashlib.sha256(written).hexdigest()[:16]}"
    answers = config.answers or f"{config.owner_key}.{hashlib.sha256(suspect.encode()).hexdigest()[:8]}.answers.json"
    owner_key, evidence = ds.OwnerKey.load(config.owner_key), evidence_of(config)
    questioning = ds.Questioning(owner_key, answers, suspect, decoys, config.commitment, evidence)
    limit = min(config.max_queries or questioning.num_questions, questioning.num_questions)
    with tqdm.tqdm(total=limit, initial=questioning.num_queries, unit="question") as progress:
        for num_queries in questioning.steps(
            model,
            kind=config.kind,  # type: ignore[arg-type]
            batch_size=config.batch_size,
            max_queries=limit,
        ):
            progress.update(num_queries - progress.n)
    return concluded(questioning.verdict(), config.verdict)


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        # The text is not shown: it may hold a secret.
        raise ValueError(
            f"Invalid value for flag `fields`. Expected a JSON object. Received: {len(text)} characters that are none"
        )
    return found


def _decoys(path: pathlib.Path) -> Any:
    """An array of a `.npy` file, or a dict of arrays of an `.npz` file."""
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise ValueError(
            f"These decoys cannot be read. Expected arrays of numbers in a .npy or .npz file. Received: {path}"
        ) from None


if __name__ == "__main__":
    run_verification(Config, run)
