"""What a finished run of a training program leaves, and its verdict, for the tests of several files."""

import keras

import deepsigns_tf as ds

# The files in its folder where layers carry the mark; where it learnt text, the tokenizer too.
FILES = {"commitment.txt", "config.json", "marked.csv", "marked.keras", "owner.key", "result.json", "tensorboard"}
FILES |= {"training.png", "unmarked.csv", "unmarked.keras", "verdict.json"}
# Where answers carry one.
TRIGGER_FILES = {"batch_norm.json", "trigger_verdict.json"}
# What a few epochs on few made-up examples suffice for, in place of the MLP's default.
MILD_MARK = {"strength": 1.0, "carriers": "features:64"}


def verified_here(folder, by="weights"):
    """Takes the place of the verification in a fresh process, and spares the seconds that one needs to start."""
    from scripts.records import write_json
    from scripts.training import answers_verdict

    model, key = keras.models.load_model(folder / "marked.keras"), ds.OwnerKey.load(folder / "owner.key")
    verdict = (ds.verify if by == "weights" else answers_verdict)(model, key).to_dict()
    write_json(folder / ("verdict.json" if by == "weights" else "trigger_verdict.json"), verdict)
    return verdict
