"""What the programs share that judge a claim: who claims which model and on what grounds, and the reading of a suspect."""

import dataclasses
import datetime
import pathlib
from typing import TYPE_CHECKING, Any

from scripts.configs import option

if TYPE_CHECKING:
    import deepsigns_tf as ds
    from deepsigns_tf.commitments import Evidence

EVIDENCE_HELP = (
    "The folder of signed statements that the claimant hands out. With --tsa_roots and --suspect_since it does what a commitment does, "
    "else it counts seeds."
)
TSA_ROOTS_HELP = "Root certificates of the time-stamping authorities that you trust, in PEM, from a source of your own."
SUSPECT_SINCE_HELP = (
    "Since when the suspect is known to exist, from a source of your own: 2026-11-26, or with a time, UTC where it names no zone. Without "
    "it, or without an older time-stamp, evidence only counts seeds."
)
COMMITMENT_HELP = "The commitment that the claimant published before training, from a dated source of your own."


@dataclasses.dataclass(frozen=True)
class Claim:
    """Whose mark is said to be in which file, and what is known of the key."""

    model: str = option(
        dataclasses.MISSING, "The suspect, a `.keras` file; it is looked at, and loaded in a process of its own."
    )
    owner_key: str = option(dataclasses.MISSING, "The claimant's key, as written after the release.")
    by: str | None = option(
        None,
        "By what: the model's weights, or its answers to the key's triggers; the weights if the key can read them.",
        choices=("weights", "answers"),
    )
    kind: str | None = option(
        None,
        "What its answers are, where one number stands for two classes.",
        choices=("labels", "probabilities", "logits"),
    )
    commitment: str | None = option(None, COMMITMENT_HELP)
    evidence: str | None = option(None, EVIDENCE_HELP)
    tsa_roots: str | None = option(None, TSA_ROOTS_HELP)
    suspect_since: str | None = option(None, SUSPECT_SINCE_HELP)
    search: bool = option(
        False, "Try every layer, though the evidence says where the mark was put: a thief may have swapped names."
    )
    reference: str | None = option(
        None,
        "The model from before the mark that the key refers to: units are matched with its, whatever their order and size.",
    )


def evidence_of(config: Any) -> "Evidence | None":
    """The checked statements of the claimant; None where none are given.

    Args:
        config: Has `evidence`, `tsa_roots` and `suspect_since`.

    Raises:
        ValueError: If something in the folder does not hold, or the date is none.
        OSError: If it cannot be read.
    """
    if not config.evidence:
        return None
    # Only here: it needs what an installation without the extra does not have.
    from deepsigns_tf.evidence import load_evidence

    since = None if config.suspect_since is None else moment_in(config.suspect_since)
    return load_evidence(config.evidence, roots_in(config.tsa_roots), since)


def moment_in(text: str) -> datetime.datetime:
    """What the flag `suspect_since` says, in UTC.

    Raises:
        ValueError: If it is no date, or one to come: the suspect is here.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"Invalid value for flag `suspect_since`. Expected a date, as in 2026-11-26. Received: suspect_since={text!r}"
        ) from error
    moment = moment.replace(tzinfo=datetime.UTC) if moment.tzinfo is None else moment.astimezone(datetime.UTC)
    if moment > datetime.datetime.now(datetime.UTC):
        raise ValueError(
            "Invalid value for flag `suspect_since`. Expected a date that has come, since the suspect is here. "
            f"Received: suspect_since={text!r}"
        )
    return moment


def roots_in(path: str | None) -> bytes | None:
    """Root certificates in PEM; None where no file is named: time-stamps are not looked at then."""
    return pathlib.Path(path).read_bytes() if path else None


def way_of(claim: Claim, owner_key: "ds.OwnerKey") -> str:
    """By what the claim is judged, `"weights"` or `"answers"`."""
    return claim.by or ("weights" if owner_key.carriers or owner_key.triggers is None else "answers")


def verdict_of(
    suspect: "ds.Suspect",
    owner_key: "ds.OwnerKey",
    claim: Claim,
    evidence: "Evidence | None" = None,
    reference: "ds.Suspect | None" = None,
) -> "ds.Verdict | ds.TriggerVerdict":
    """Reads a suspect by its weights or by its answers, as the claim says.

    Args:
        suspect: What `load_suspect` opened.
        owner_key: The key to read it with.
        claim: By what it is read, and the commitment.
        evidence: From `evidence_of`.
        reference: What `load_suspect` made of the model that the key refers to.

    Raises:
        ValueError: If there is nothing to read, or commitment, evidence or reference are not this key's.
    """
    import deepsigns_tf as ds

    if way_of(claim, owner_key) == "weights":
        return ds.verify(
            suspect,
            owner_key,
            commitment=claim.commitment,
            evidence=evidence,
            search=claim.search,
            reference=reference,
        )
    return ds.verify_predict_fn(
        suspect.predict,
        owner_key,
        kind=claim.kind,  # type: ignore[arg-type]
        commitment=claim.commitment,
        evidence=evidence,
        batch_size=1000,
    ).assuming(*suspect.caveats)
