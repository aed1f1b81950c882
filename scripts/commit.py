"""States, before marking, that an owner has a key: signed, in a folder to hand out, with a time-stamp if wanted.

    python -m scripts.commit --owner_key=runs/mnist/owner.key --signing_key=signing.pem --evidence=evidence --tsa_url=https://tsa.example/tsr
    python -m scripts.commit --owner_key=runs/mnist/owner.key --signing_key=signing.pem --evidence=evidence

Without an authority's address, the request for a time-stamp lies beside the statement (`0001.tsq`). Send it from where you like (`curl
--data-binary @0001.tsq -H "Content-Type: application/timestamp-query"`), and give this program the answer with `--reply`. One signing
key and one folder serve all keys of an owner: every commitment is counted.
"""

import dataclasses
import pathlib

from scripts.configs import option, run_program


@dataclasses.dataclass(frozen=True)
class Config:
    """What to commit to."""

    owner_key: str = option(
        dataclasses.MISSING,
        "The key: to commit to it, complete with key inputs, triggers and reference; to release, as written then, with its layers.",
    )
    signing_key: str = option(
        dataclasses.MISSING,
        "Signs the statements, a PEM file with mode 0600. Keep it as secret as the owner key, and apart from it. `scripts.commit` makes it "
        "where there are no statements yet.",
    )
    evidence: str = option(dataclasses.MISSING, "The folder of statements to hand out. Nothing in it is secret.")
    tsa_url: str | None = option(None, "Address of a time-stamping authority (RFC 3161); only a hash is sent there.")
    tsa_roots: str | None = option(
        None,
        "Root certificates of the time-stamping authorities that you trust, in PEM. A time-stamp that they do not lead to is refused.",
    )
    reply: str | None = option(
        None, "An authority's answer to the request that an earlier run left, instead of asking."
    )
    timeout: float = option(30.0, "Seconds that the authority may take.", minimum=0.001)


def run(config: Config) -> str:
    """Writes the statement and prints its hash.

    Args:
        config: What to commit to.

    Returns:
        The statement's hash.

    Raises:
        ValueError: If a file is unreadable, the folder holds somebody else's statements, or a time-stamp is refused. A statement that was
            written before stays.
        OSError: If a file cannot be read or written.
    """
    # Here rather than above: bad flags are told at once, not after the seconds that Keras needs to start.
    import deepsigns_tf as ds
    from deepsigns_tf.evidence import add_statement
    from deepsigns_tf.signatures import SigningKey
    from scripts.statements import stamp

    owner_key, folder, path = ds.OwnerKey.load(config.owner_key), pathlib.Path(config.evidence), config.signing_key
    owner_key.commitment()
    folder.mkdir(parents=True, exist_ok=True)
    if not pathlib.Path(path).exists():
        if any(folder.iterdir()):
            raise ValueError(
                "The signing key of these statements is missing. Expected the file with which they were signed. "
                f"Received: signing_key={path}, which does not exist, while evidence={config.evidence} is not empty"
            )
        SigningKey.generate().save(path)
        print(f"New signing key, to keep secret and to use for all your statements: {path}")
    signing_key = SigningKey.load(path)
    statement = add_statement(folder, signing_key, owner_key)
    print(f"Public key, to make known as yours: {signing_key.public_key}")
    print(f"Commitment {statement.commitment} stands in {folder / f'{statement.number:04d}.json'}")
    stamp(config, statement)
    return statement.digest()


if __name__ == "__main__":
    run_program(Config, run)
