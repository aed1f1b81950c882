"""The rows of the README for the recurrent network on IMDB reviews, over seeds fixed beforehand.

python -m benchmarks.lstm --study=default     # results/lstm_default.json
"""

import dataclasses
import functools

from benchmarks.attacks import OF_TRIGGERS, Attacks
from benchmarks.studies import FOR_SUITES, ONE_OF_EACH, Config, Network, Study, compared_triggers, run, search, triggers
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
        "suite": Study(
            range(1),
            # Two classes, and as many key inputs as the ten of the other networks have and more.
            (FOR_SUITES | {"unmarked_epochs": 1, "num_key_inputs_per_class": 1000},),
            suites=(ONE_OF_EACH,),
        ),
        "triggers": triggers(range(3), dataclasses.replace(OF_TRIGGERS, overwrites=True, changes_inputs=False)),
        "families": compared_triggers(
            ({"trigger_family": "tokens"}, {"trigger_family": "noise"}),
            2500,
            dataclasses.replace(OF_TRIGGERS, changes_inputs=False),
        ),
    },
)

if __name__ == "__main__":
    run_program(Config, functools.partial(run, NETWORK))
