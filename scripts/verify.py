"""Says whether a model file carries an owner's mark.

    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key
    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key --by=answers
    python -m scripts.verify --model=suspect.keras --owner_key=owner.key --evidence=evidence --tsa_roots=authority.pem

Exit status: 0 marked, 1 not marked, 2 everything else (bad flags, unreadable files, no reading, a crash). Python itself ends with
1 where it cannot even start the program: a "not marked" counts with the words NOT MARKED on standard output.
"""

import dataclasses

from scripts.configs import option
from scripts.verdicts import concluded, run_verification

EVIDENCE_HELP = "The folder of signed statements that the claimant hands out; does what a commitment does, and more."
TSA_ROOTS_HELP = "Root certificates of the time-stamping authorities that you trust, in PEM, from a source of your own."
COMMITMENT_HELP = "The commitment that the claimant published before training, from a dated source of your own."


@dataclasses.dataclass(frozen=True)
class Config:
    """What to verify."""

    model: str = option(dataclasses.MISSING, "The suspect, a `.keras` file that you trust enough to load.")
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
    search: bool = option(
        False, "Try every layer, though the evidence says where the mark was put: a thief may have swapped names."
    )
    reference: str | None = option(
        None,
        "The model from before the mark that the key refers to: units are matched with its, whatever their order and size.",
    )
    dump: str | None = option(
        None, "Where to write the class means of the key inputs, an .npz file with which a second verifier can judge."
    )
    verdict: str | None = option(None, "Where to write the verdict as JSON.")


def run(config: Config) -> int:
    """Prints the verdict.

    Args:
        config: What to verify.

    Returns:
        0 if marked, 1 if not.

    Raises:
        ValueError: If a file is unreadable or there is nothing to read.
    """
    # Here rather than above: bad flags are told at once, not after the seconds that TensorFlow needs to start.
    import keras

    import deepsigns_tf as ds

    owner_key = ds.OwnerKey.load(config.owner_key)
    evidence = None
    if config.evidence:
        # Only here: it needs what an installation without the extra does not have.
        from scripts.statements import evidence_in

        evidence = evidence_in(config.evidence, config.tsa_roots)
    model = keras.models.load_model(config.model, compile=False, safe_mode=True)
    by = config.by or ("weights" if owner_key.carriers or owner_key.triggers is None else "answers")
    if config.dump and (by == "answers" or config.reference):
        raise ValueError(
            "There is nothing to dump. Expected --by=weights and no --reference, where class means are read as they are. "
            f"Received: by={by}, reference={config.reference}"
        )
    verdict: ds.Verdict | ds.TriggerVerdict
    if by == "weights":
        reference = (
            keras.models.load_model(config.reference, compile=False, safe_mode=True) if config.reference else None
        )
        verdict = ds.verify(
            model,
            owner_key,
            commitment=config.commitment,
            evidence=evidence,
            search=config.search,
            reference=reference,
        )
        if config.dump:
            from deepsigns_tf.candidates import candidate_means
            from scripts.dumps import write_dump

            write_dump(config.dump, candidate_means(model, owner_key))
    else:
        verdict = ds.verify_predict_fn(
            lambda inputs: model.predict(inputs, verbose=0),
            owner_key,
            kind=config.kind,  # type: ignore[arg-type]
            commitment=config.commitment,
            evidence=evidence,
            batch_size=1000,
        )
    return concluded(verdict, config.verdict)


if __name__ == "__main__":
    run_verification(Config, run)
