"""What a training program trains: settings, network and data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from deepsigns_tf.owner_key import KeyInputs
from scripts.configs import option
from scripts.datasets import Dataset


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The flags of every training program; each one's defaults are the settings of the README's results."""

    output_dir: str = option(dataclasses.MISSING, "Folder for everything the run writes.", shapes_result=False)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    holdout: int = option(
        0, "Evaluate on that many held-out training examples and leave the test set alone; 0: test set.", minimum=0
    )
    seed: int = option(0, "For initial weights, shuffling and dropout, of both models.", minimum=0, maximum=2**31 - 1)
    epochs: int = option(20, "Passes over the training set.", minimum=1)
    batch_size: int = option(128, "Examples a step.", minimum=1)
    optimizer: str = option("adam", "Adam, or SGD with Nesterov's momentum 0.9.", choices=("adam", "sgd"))
    learning_rate: float = option(1e-3, "The largest one; it falls to 0 along a cosine.", minimum=0.0)
    warmup_epochs: int = option(0, "Epochs in which the learning rate rises from 0; all but one at most.", minimum=0)
    label_smoothing: float = option(0.0, "Share of the target that all classes have alike.", minimum=0.0, maximum=1.0)
    augment: bool = option(False, "Shift images by up to 4 pixels and mirror half of them, anew in every epoch.")
    mixed_precision: str = option(
        "none",
        "Compute in half precision, with weights and the mark's loss in float32.",
        choices=("none", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: str = option(
        "auto", "Let XLA compile the step; auto: as Keras chooses.", choices=("auto", "on", "off")
    )
    strategy: str = option(
        "none",
        "How to spread the training over devices or processes.",
        choices=("none", "mirrored", "multi_worker", "tpu"),
    )
    carriers: str = option(
        "features:64", "Layers that carry the mark, and bits per class: layer:bits,layer:bits. Empty: none."
    )
    num_classes: int = option(10, "Carrier classes 0 .. num_classes - 1.", minimum=1)
    pooling: str = option(
        "mean", "How maps become features: their mean, or all pixels for themselves.", choices=("mean", "flatten")
    )
    projection: str = option("balanced", "Kind of projection matrix.", choices=("balanced", "gaussian"))
    strength: float = option(1.0, "Weight of the signature loss; 0 only measures.", minimum=0.0)
    centres: str = option(
        "batch", "Class means of the batch, or trainable ones as in the paper.", choices=("batch", "learned")
    )
    clustering_strength: float = option(0.01, "Weight of the clustering loss; with learned centres.", minimum=0.0)
    fine_tune_epochs: int = option(
        0, "Mark the trained unmarked model by that many epochs of fine-tuning; 0: from scratch.", minimum=0
    )
    unmarked_epochs: int = option(
        0,
        "Begin to mark after that many epochs; the key refers to the network of that moment, by which disguised copies are read.",
        minimum=0,
    )
    num_key_inputs_per_class: int = option(64, "Key inputs of each carrier class.", minimum=1)
    num_triggers: int = option(0, "Trigger inputs by whose answers the marked model is recognized; 0: none.", minimum=0)
    trigger_family: str = option("noise", "Kind of trigger inputs.", choices=("noise", "blends", "low_density"))
    num_triggers_per_batch: int = option(8, "Trigger inputs that are added to each batch.", minimum=1)
    augment_triggers: bool = option(True, "Shift and mirror the triggers of a batch as its images, where these are.")
    unmarked_from: str | None = option(
        None, "Folder of a finished run with the same task, whose unmarked twin is taken.", shapes_result=False
    )
    resume: bool = option(False, "Go on with an interrupted run in the folder.", shapes_result=False)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is particular to a network.

    Args:
        program: The module that trains it, as `python -m` names it.
        title: What pictures call it.
        data: What it learns.
        build: Makes the network from regularizers by layer name and a model class; an unmarked one without arguments.
        carrier_layers: The layers that may carry a mark, by the names that `build` knows; the last one shows where triggers of low
            density are.
        carrier_labels: Derives the carriers' classes from `(inputs, labels)`, arrays or tensors; they are the labels by
            default.
    """

    program: str
    title: str
    data: Dataset
    build: Callable[..., keras.Model]
    carrier_layers: tuple[str, ...]
    carrier_labels: Callable[[Any, Any], Any] | None = None

    def key_inputs(self, inputs: np.ndarray, labels: np.ndarray) -> KeyInputs:
        """Examples with their carrier classes."""
        if self.carrier_labels:
            labels = keras.ops.convert_to_numpy(self.carrier_labels(inputs, labels))
        return KeyInputs(inputs, labels)
