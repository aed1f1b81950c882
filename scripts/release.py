"""States, before a marked model leaves the house, which weights are released and, hidden in a hash, where the mark is.

    python -m scripts.release --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key --release_id=1.0 \
        --signing_key=signing.pem --evidence=evidence

The key must have been committed to in the same folder (`scripts.commit`). Its commitment and the hash of the weights stand in the
statement for all to read: whoever has the model can tell that it is yours, so hand the folder out when that may be known. Time-stamps as
with `scripts.commit`.
"""

import dataclasses
import pathlib

from scripts import commit
from scripts.configs import option, run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(commit.Config):
    """What is released."""

    model: str = option(dataclasses.MISSING, "The released model, a `.keras` file of your own.")
    release_id: str = option(dataclasses.MISSING, "What you call this release.")


def run(config: Config) -> str:
    """Writes the statement and prints its hash.

    Args:
        config: What is released.

    Returns:
        The statement's hash.

    Raises:
        ValueError: If a file is unreadable, the key was not committed to in this folder, the model lacks a layer that the key names, or a
            time-stamp is refused. A statement that was written before stays.
        OSError: If a file cannot be read or written.
    """
    # Here rather than above: bad flags are told at once, not after the seconds that TensorFlow needs to start.
    import keras

    import deepsigns_tf as ds
    from deepsigns_tf.activations import named_layers
    from deepsigns_tf.evidence import add_statement
    from deepsigns_tf.signatures import SigningKey
    from deepsigns_tf.weights_digest import weights_digest
    from scripts.statements import stamp

    owner_key, signing_key = ds.OwnerKey.load(config.owner_key), SigningKey.load(config.signing_key)
    model = keras.models.load_model(config.model, compile=False, safe_mode=True)
    missing = {layer.path for layer in owner_key.layers} - set(named_layers(model))
    if missing:
        raise ValueError(
            "This model is not the one that the key was released with. Expected the layers that the key names. "
            f"Received: model={config.model}, without {sorted(missing)}"
        )
    weights = weights_digest(model)
    statement = add_statement(pathlib.Path(config.evidence), signing_key, owner_key, config.release_id, weights)
    print(f"Weights {weights} are release {config.release_id!r} of commitment {statement.commitment}")
    stamp(config, statement)
    return statement.digest()


if __name__ == "__main__":
    run_program(Config, run)
