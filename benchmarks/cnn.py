"""The rows of the README for the paper's CIFAR-10 CNN, over seeds fixed beforehand.

python -m benchmarks.cnn --study=default     # results/cnn_default.json
"""

import dataclasses
import functools

from benchmarks.attacks import OF_TRIGGERS, Attacks
from benchmarks.studies import (
    FAMILIES,
    FOR_SUITES,
    ONE_OF_EACH,
    OTHER_WAYS,
    Config,
    Network,
    Study,
    compared_triggers,
    run,
    search,
    triggers,
    without,
)
from scripts.configs import run_program

# Of the training images the last 5,000 judge.
_SEARCH = {"holdout": 5000}

_SHORT = {"suite": "full", "fine_tuning_epochs": "10,50", "overwriting_epochs": "10"}
# Attacks that train, as patterns of their names.
_ADAPTIVE = ("class means", "overwritten with", "marked layers")
_TRAINED_MODIFICATIONS = ("weights.*then fine-tuned", "fine-pruned", "L2", ".*labels", "adversarial", "Neural")

NETWORK = Network(
    "cnn",
    "scripts.train_cifar10_cnn",
    {
        "default": Study(range(5), attacks=Attacks()),
        "search": search(_SEARCH, {"strength": 0.1}, {"strength": 0.05}, {"strength": 0.2}),
        # Where: in the hidden layer, maps flattened and averaged, two layers at once. A short training shows what does not hold.
        "places": search(
            _SEARCH | {"epochs": 10},
            {"strength": 0.2},
            {"strength": 0.2, "carriers": "conv_4:64", "pooling": "flatten"},
            {"strength": 2.0, "carriers": "conv_4:64", "pooling": "flatten"},
            {"strength": 2.0, "carriers": "conv_4:32"},
            {"strength": 0.2, "carriers": "conv_4_pooled:64", "pooling": "flatten"},
            {"strength": 0.2, "carriers": "features:64,conv_4:32"},
            name="places",
        ),
        # How much fits: 70 to 5,000 bits in the 512 features of the last hidden layer.
        "capacity": Study(
            range(1),
            tuple(
                {"carriers": f"features:{bits}", "epochs": 20, "strength": 0.2}
                for bits in (64, 7, 13, 26, 128, 205, 410, 500)
            ),
            twins_of="capacity",
        ),
        # All attacks, on models that disguised copies can be told from. The seeds share out those that train, about five hours of a core
        # each: long fine-tuning and overwriting; modifications and extraction; thieves who know the method, and copies that are fine-tuned.
        "suite": Study(
            range(3),
            (FOR_SUITES | {"unmarked_epochs": 10},),
            suites=(
                ONE_OF_EACH | {"fine_tuning_epochs": "10,50,100,200", "overwriting_epochs": "10,100"},
                _SHORT
                | {"only": without(*OTHER_WAYS, *_ADAPTIVE, "(units|BatchNorm|all of these).*, then fine-tuned")},
                _SHORT | {"only": without(*_TRAINED_MODIFICATIONS, "distilled")},
            ),
        ),
        "triggers": triggers(range(3), dataclasses.replace(OF_TRIGGERS, fine_tuning_epochs=50, overwrites=True)),
        "families": compared_triggers(FAMILIES, 5000, OF_TRIGGERS),
        # How many of them in each batch, and whether they are shifted and mirrored as the images are.
        "trigger_mixing": compared_triggers(
            (
                {"num_triggers_per_batch": number, "augment_triggers": augmented}
                for augmented in (True, False)
                for number in (1, 2, 4, 8)
            ),
            5000,
            OF_TRIGGERS,
        ),
    },
)

if __name__ == "__main__":
    run_program(Config, functools.partial(run, NETWORK))
