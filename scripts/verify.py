"""Says whether a model file carries an owner's mark.

    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key
    python -m scripts.verify --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key --by=answers

Exit status: 0 marked, 1 not marked, 2 everything else (bad flags, unreadable files, no reading, a crash). Python itself ends with
1 where it cannot even start the program: a "not marked" counts with the words NOT MARKED on standard output.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from scripts.configs import config_from_flags, define_flags, option

MARKED, NOT_MARKED, NO_VERDICT = 0, 1, 2


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
    commitment: str | None = option(
        None, "The commitment that the claimant published before training, from a dated source of your own."
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
    from scripts.records import write_json

    owner_key = ds.OwnerKey.load(config.owner_key)
    model = keras.models.load_model(config.model, compile=False, safe_mode=True)
    by = config.by or ("weights" if owner_key.carriers or owner_key.triggers is None else "answers")
    verdict: ds.Verdict | ds.TriggerVerdict
    if by == "weights":
        verdict = ds.verify(model, owner_key, commitment=config.commitment)
    else:
        verdict = ds.verify_predict_fn(
            lambda inputs: model.predict(inputs, verbose=0),
            owner_key,
            kind=config.kind,  # type: ignore[arg-type]
            commitment=config.commitment,
            batch_size=1000,
        )
    if config.verdict:
        # Before it is printed: a verdict that could not be written as asked ends with status 2 and says nothing else.
        write_json(pathlib.Path(config.verdict), verdict.to_dict())
    print(verdict.summary())
    return MARKED if verdict.marked else NOT_MARKED


def main(argv: Sequence[str]) -> int:
    """Runs inside `app.run`, which would end with status 1 on an exception; here 1 means "not marked"."""
    del argv
    try:
        return run(config_from_flags(Config))
    except Exception as error:  # Whatever went wrong, it is not a verdict.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return NO_VERDICT


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        surplus = flags.FLAGS(argv)[1:]
        # absl would end with status 0, "marked", on its own flag that only checks the others.
        if not surplus and not flags.FLAGS.only_check_args:
            return list(argv[:1])
        print(f"Nothing was verified. Received: {surplus or '--only_check_args'}", file=sys.stderr)
    except flags.Error as error:
        app.usage(shorthelp=True, detailed_error=error, exitcode=NO_VERDICT)
    except SystemExit:  # --help
        pass
    sys.exit(NO_VERDICT)


if __name__ == "__main__":
    define_flags(Config)
    app.run(main, flags_parser=_parse_flags)
