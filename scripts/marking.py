"""What a training program marks: its key, the marked network, and whether batches can carry the mark."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import deepsigns_tf as ds
from scripts.fitting import batches_of
from scripts.strategies import strategy_named
from scripts.tasks import Task, TrainingConfig


def generate_key(config: TrainingConfig, task: Task) -> ds.OwnerKey:
    """A key as it is committed to before anything is trained: triggers that are made from a trained model come later."""
    key = ds.OwnerKey.generate(f"deepsigns_tf example, {task.data.name}", carriers(config, task.carrier_layers))
    if key.carriers:
        pool = task.key_inputs(task.data.x_train, task.data.y_train)
        key = key.with_key_inputs(pool.inputs, pool.labels, config.num_key_inputs_per_class)
    return key if config.trigger_family == "low_density" else add_triggers(key, config, task)


def add_triggers(
    key: ds.OwnerKey, config: TrainingConfig, task: Task, trained: keras.Model | None = None
) -> ds.OwnerKey:
    """The key with the triggers that the flags ask for, if any."""
    if not config.num_triggers or key.triggers is not None:
        return key
    where = {"model": trained, "layer": task.carrier_layers[-1]} if config.trigger_family == "low_density" else {}
    return key.with_triggers(
        config.trigger_family,  # type: ignore[arg-type]
        config.num_triggers,
        task.data.num_classes,
        task.data.x_train,
        **where,
    )


def carriers(config: TrainingConfig, layers: Sequence[str]) -> list[ds.Carrier]:
    """The carriers that the flag `carriers` asks for.

    Args:
        config: The flags.
        layers: Names of the layers that may carry a mark.

    Raises:
        ValueError: If the flag is malformed or names another layer.
    """
    found = []
    for each in config.carriers.split(",") if config.carriers else ():
        layer, _, bits = each.partition(":")
        if layer not in layers or not bits.isdecimal():
            raise ValueError(
                "Invalid value for flag `carriers`. Expected layer:bits or layer:bits,layer:bits with layers from "
                f"{list(layers)}. Received: carriers={config.carriers!r}"
            )
        found.append(
            ds.Carrier(layer, range(config.num_classes), int(bits), config.pooling, config.projection)  # type: ignore[arg-type]
        )
    return found


def check_batches(config: TrainingConfig, task: Task, key: ds.OwnerKey) -> None:
    """Refuses a training whose batches could not carry the marks that the flags ask for.

    Args:
        config: The flags.
        task: Network and data.
        key: As it is committed to.

    Raises:
        ValueError: If there is nothing to mark, or no epoch to do it in, a batch rarely has an example of a carrier class, replicas
            cannot share it evenly, its triggers cannot be spaced evenly, or XLA is asked for what it cannot compile.
    """
    if not key.carriers and not config.num_triggers:
        raise ValueError(
            "There is nothing to mark. Expected layers in the flag `carriers`, or `num_triggers` above 0. "
            f"Received: carriers={config.carriers!r}, num_triggers={config.num_triggers}"
        )
    if config.unmarked_epochs >= config.epochs or (config.unmarked_epochs and config.fine_tune_epochs):
        raise ValueError(
            "There is no epoch left to mark in. Expected unmarked_epochs below epochs, and 0 where a trained model is marked. Received: "
            f"unmarked_epochs={config.unmarked_epochs}, epochs={config.epochs}, fine_tune_epochs={config.fine_tune_epochs}"
        )
    batches_of(config, task.data, range(config.epochs), key.triggers)()
    labels = task.key_inputs(task.data.x_train, task.data.y_train).labels
    share = float(np.isin(labels, key.classes).mean())
    if key.carriers and share * config.batch_size < 1.0:
        raise ValueError(
            "The batches are too small for the mark. Expected an example of a carrier class in a batch on average. "
            f"Received: batch_size={config.batch_size}, while {100 * share:.2g} % of the examples are of these classes"
        )
    num_replicas = strategy_named(config.strategy).num_replicas_in_sync
    shared = {"batch_size": config.batch_size}
    if config.num_triggers:
        shared["num_triggers_per_batch"] = config.num_triggers_per_batch
    for name, number in shared.items():
        if number % num_replicas:
            raise ValueError(
                "The replicas cannot share a batch evenly. Expected a multiple of their number. "
                f"Received: {name}={number}, {num_replicas} replicas"
            )
    if config.num_triggers and (
        config.batch_size % config.num_triggers_per_batch or config.num_triggers_per_batch > config.num_triggers
    ):
        # For triggers that are made later; the others have been mixed into batches above.
        raise ValueError(
            "Triggers cannot be spaced evenly in a batch. Expected a number that divides its size, of triggers that there are. Received: "
            f"num_triggers_per_batch={config.num_triggers_per_batch}, num_triggers={config.num_triggers}, batch_size={config.batch_size}"
        )
    if config.jit_compile == "on" and config.strategy != "none":
        raise ValueError(
            "XLA cannot be asked to compile a step that several replicas take. Expected `--jit_compile=auto`; a TPU compiles "
            f"every step. Received: jit_compile={config.jit_compile!r}, strategy={config.strategy!r}"
        )


def regularizers(config: TrainingConfig, owner_key: ds.OwnerKey) -> dict[str, ds.SignatureRegularizer]:
    """The marks that the flags describe, by the names of their layers."""
    return {
        carrier.name: ds.SignatureRegularizer(
            owner_key,
            carrier.name,
            strength=config.strength,
            centres=config.centres,  # type: ignore[arg-type]
            clustering_strength=config.clustering_strength,
        )
        for carrier in owner_key.carriers
    }


def marked_model(config: TrainingConfig, task: Task, owner_key: ds.OwnerKey) -> keras.Model:
    """The network that trains with the marks of a key: a plain one if the key marks answers alone.

    Args:
        config: The flags.
        task: What builds the network, and how its carriers' classes follow from inputs and labels.
        owner_key: The owner's key.
    """
    if not owner_key.carriers:
        return task.build()
    derive, model_class = task.carrier_labels, ds.WatermarkedModel
    if derive is not None:

        class DerivedClasses(ds.WatermarkedModel):
            def carrier_labels(self, x: Any, y: Any) -> Any:
                return derive(x, super().carrier_labels(x, y))

        model_class = DerivedClasses
    model = task.build(regularizers(config, owner_key), model_class)
    model.num_triggers_per_batch = config.num_triggers_per_batch if config.num_triggers else 0
    return model
