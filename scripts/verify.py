"""Says whether a model file carries an owner's mark.

    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key
    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key --by=answers
    python -m scripts.verify --model=suspect.keras --owner_key=owner.key --evidence=evidence --tsa_roots=authority.pem \
        --suspect_since=2026-11-26

Exit status: 0 marked, 1 not marked, 2 everything else (bad flags, unreadable files, no reading, a crash). Python itself ends with
1 where it cannot even start the program: a "not marked" counts with the words NOT MARKED on standard output.
"""

import contextlib
import dataclasses

from scripts.claims import Claim, evidence_of, verdict_of, way_of
from scripts.configs import option
from scripts.verdicts import concluded, run_verification


@dataclasses.dataclass(frozen=True)
class Config(Claim):
    """What to verify."""

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
    import deepsigns_tf as ds

    owner_key, evidence = ds.OwnerKey.load(config.owner_key), evidence_of(config)
    by = way_of(config, owner_key)
    if config.dump and (by == "answers" or config.reference):
        raise ValueError(
            "There is nothing to dump. Expected --by=weights and no --reference, where class means are read as they are. "
            f"Received: by={by}, reference={config.reference}"
        )
    with contextlib.ExitStack() as processes:
        suspect = processes.enter_context(ds.load_suspect(config.model))
        # The claimant's, and no less somebody else's.
        reference = processes.enter_context(ds.load_suspect(config.reference)) if config.reference else None
        verdict = verdict_of(suspect, owner_key, config, evidence, reference)
        if config.dump:
            from deepsigns_tf.candidates import candidate_means
            from scripts.dumps import write_dump

            write_dump(config.dump, candidate_means(suspect, owner_key))
    return concluded(verdict, config.verdict)


if __name__ == "__main__":
    run_verification(Config, run)
