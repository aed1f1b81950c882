"""The rows of the README for the recurrent network on IMDB reviews, over seeds fixed beforehand.

python -m benchmarks.lstm --study=default     # results/lstm_default.json
"""

import dataclasses
import functools

from benchmarks.attacks import OF_TRIGGERS, Attacks
from benchmarks.studies import Config, Network, Study, run, search
from scripts.configs import run_program

# Of the training reviews the last 2,500 judge.
_SEARCH = {"holdout": 2500}

NETWORK = Network(
    "lstm",
    "scripts.train_imdb_lstm",
    {
        "default": Study(range(5), attacks=Attacks(fine_tuning_epochs=4)),
        # How strong, and how 256 bits and more fit into two classes: one wide layer, two layers, more classes made from the inputs.
        "search": search(
            _SEARCH,
            {"strength": 0.3},
            {"strength": 0.1},
            {"strength": 1.0},
            {"strength": 0.3, "carriers": "pooled:64"},
            {"strength": 0.3, "carriers": "features:128"},
            {"strength": 0.3, "carriers": "features:200"},
            {"strength": 0.3, "carriers": "features:32", "subclasses": 4, "num_classes": 8},
        ),
        # Triggers alone, and beside the mark in the layers; overwritten with the owner's own effort.
        "triggers": Study(
            range(3),
            ({"num_triggers": 100, "carriers": ""}, {"num_triggers": 100}),
            dataclasses.replace(OF_TRIGGERS, fine_tuning_epochs=10, overwriting_epochs=2, changes_inputs=False),
            twins_of="default",
        ),
        # Which kind of trigger is held best, on held-out training examples.
        "families": Study(
            range(100, 101),
            tuple(
                {"num_triggers": 100, "carriers": "", "trigger_family": family, "holdout": 2500}
                for family in ("tokens", "noise")
            ),
            dataclasses.replace(OF_TRIGGERS, changes_inputs=False),
            twins_of="families",
        ),
    },
)

if __name__ == "__main__":
    run_program(Config, functools.partial(run, NETWORK))
