"""The MNIST rows of the README: accuracy, bit errors, pruning and fine-tuning, over seeds fixed beforehand.

python -m benchmarks.mnist --study=default     # results/mnist_default.json
"""

import dataclasses
import functools

from benchmarks.attacks import OF_TRIGGERS, Attacks
from benchmarks.studies import Config, Network, Study, run
from scripts.configs import run_program

NETWORK = Network(
    "mnist",
    "scripts.train_mnist_mlp",
    {
        "default": Study(range(10), attacks=Attacks()),
        "learned": Study(range(2), ({"centres": "learned"},), attacks=Attacks()),
        # lambda_1 = lambda_2 = 0.01; the paper sums the loss over the 16 bits of one class, `strength` weighs their mean.
        "paper": Study(
            range(2),
            (
                {
                    "centres": "learned",
                    "clustering_strength": 0.01,
                    "strength": 0.16,
                    "projection": "gaussian",
                    "num_classes": 1,
                    "carriers": "features:16",
                },
            ),
            attacks=Attacks(),
        ),
        "fine_tuned": Study(range(2), ({"fine_tune_epochs": 5},), attacks=Attacks()),
        # The search for the default strength, on held-out training images.
        "strength": Study(
            range(100, 102), tuple({"strength": each, "holdout": 5000} for each in (0.3, 1.0, 3.0, 10.0))
        ),
        # What keeps a mark readable that is overwritten by the same method, on held-out training examples.
        "defences": Study(
            range(100, 101),
            tuple(
                each | {"holdout": 5000}
                for each in (
                    {},
                    {"strength": 3.0},
                    {"strength": 10.0},
                    {"carriers": "features:32"},
                    {"carriers": "features:128"},
                    {"carriers": "hidden:64"},
                    {"carriers": "features:32,hidden:32"},
                    {"carriers": "features:64", "num_classes": 5},
                    {"centres": "learned"},
                    {"projection": "gaussian"},
                    {"unmarked_epochs": 5},
                )
            ),
            suite={"suite": "paper", "only": "^overwritten, [13] x"},
            twins_of="defences",
        ),
        # Triggers alone, and beside the mark in the layers; overwritten with the owner's own effort.
        "triggers": Study(
            range(5),
            ({"num_triggers": 100, "carriers": ""}, {"num_triggers": 100}),
            dataclasses.replace(OF_TRIGGERS, fine_tuning_epochs=50, overwriting_epochs=20),
            twins_of="default",
        ),
        # Which kind of trigger is held best, on held-out training examples.
        "families": Study(
            range(100, 101),
            tuple(
                {"num_triggers": 100, "carriers": "", "trigger_family": family, "holdout": 5000}
                for family in ("noise", "blends", "low_density")
            ),
            OF_TRIGGERS,
            twins_of="families",
        ),
    },
)

if __name__ == "__main__":
    run_program(Config, functools.partial(run, NETWORK))
