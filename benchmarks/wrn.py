"""The rows of the README for the wide residual network on CIFAR-10, over seeds fixed beforehand.

python -m benchmarks.wrn --study=default     # results/wrn_default.json
"""

import dataclasses
import functools

from benchmarks.attacks import OF_TRIGGERS, Attacks
from benchmarks.studies import FOR_SUITES, ONE_OF_EACH, Config, Network, Study, run, search, triggers
from scripts.configs import run_program

# Of the training images the last 5,000 judge.
_SEARCH = {"holdout": 5000, "epochs": 4}

NETWORK = Network(
    "wrn",
    "scripts.train_cifar10_wrn",
    {
        "default": Study(range(1), attacks=Attacks()),
        "short": Study(range(3), ({"epochs": 5},)),
        # How strong, and where: after the last block, in a middle one, both at once.
        "search": search(
            _SEARCH,
            {"strength": 0.3},
            {"strength": 0.1},
            {"strength": 1.0},
            {"strength": 0.3, "carriers": "middle:32"},
            {"strength": 0.3, "carriers": "features:64", "pooling": "flatten"},
            {"strength": 0.3, "carriers": "features:64,middle:32"},
        ),
        # A third of the training here too.
        "suite": Study(
            range(1),
            (FOR_SUITES | {"epochs": 10, "unmarked_epochs": 3},),
            suites=(ONE_OF_EACH,),
        ),
        "triggers": triggers(range(1), dataclasses.replace(OF_TRIGGERS, overwrites=True)),
        # A third of the training, and a thief who trains as long: what two hours of a core can say about overwriting.
        "short_triggers": Study(
            range(1),
            ({"num_triggers": 100, "carriers": "", "epochs": 10},),
            Attacks((0.3, 0.4, 0.5), fine_tuning_epochs=0, overwrites=True),
        ),
    },
)

if __name__ == "__main__":
    run_program(Config, functools.partial(run, NETWORK))
