"""Says whether a model file carries an owner's mark.

    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key
    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key --by=answers

Exit status: 0 marked, 1 not marked, 2 everything else (bad flags, unreadable files, no reading, a crash). Python itself ends with
1 where it cannot even start the program: a "not marked" counts with the words NOT MARKED on standard output.
"""

import contextlib
import dataclasses

from scripts.configs import option
from scripts.verdicts import concluded, run_verification

COMMITMENT_HELP = "The commitment that the claimant published before training, from a dated source of your own."


@dataclasses.dataclass(frozen=True)
class Config:
    """What to verify."""

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
    reference: str | None = option(
        None,
        "The model from before the mark that the key refers to: units are matched with its, whatever their order and size.",
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
    import deepsigns_tf as ds

    owner_key = ds.OwnerKey.load(config.owner_key)
    by = config.by or ("weights" if owner_key.carriers or owner_key.triggers is None else "answers")
    verdict: ds.Verdict | ds.TriggerVerdict
    with contextlib.ExitStack() as processes:
        suspect = processes.enter_context(ds.load_suspect(config.model))
        if by == "weights":
            # The claimant's, and no less somebody else's.
            reference = processes.enter_context(ds.load_suspect(config.reference)) if config.reference else None
            verdict = ds.verify(suspect, owner_key, commitment=config.commitment, reference=reference)
        else:
            verdict = ds.verify_predict_fn(
                suspect.predict,
                owner_key,
                kind=config.kind,  # type: ignore[arg-type]
                commitment=config.commitment,
                batch_size=1000,
            ).assuming(*suspect.caveats)
    return concluded(verdict, config.verdict)


if __name__ == "__main__":
    run_verification(Config, run)
