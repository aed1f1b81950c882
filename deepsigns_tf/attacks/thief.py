"""A thief, and what an attack is."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np

from deepsigns_tf.attacks.recipes import Recipe
from deepsigns_tf.carriers import Carrier
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.statistics import DecisionRule

Family = Literal["paper", "modification", "same function", "input", "extraction", "adaptive"]


@dataclasses.dataclass(frozen=True, eq=False)
class Thief:
    """What a thief has beside the stolen model. No part of the owner's key is in it.

    Args:
        x: `(n, ...)` training inputs of the task.
        y: `(n,)` integer labels.
        recipe: The task's own training: its epochs, and its first learning rate.
        strength: The weight that the thief's own mark has in the loss where it is "1 x": the owner's, by default of the program.
        carriers: Names of the marked layers (`graphs.flat_name`), with what the owner published about the mark: classes, bits and pooling.
        marks: Names of the layers that a thief marks who overwrites, with what they carry: the owner's carriers, by default of the
            program.
        seed: Of all that the thief draws. Keras draws the same weights from the same seed: take one that is nobody else's
            (`thiefs_seed`), and the same for models that are compared.
    """

    x: np.ndarray = dataclasses.field(repr=False)
    y: np.ndarray = dataclasses.field(repr=False)
    recipe: Recipe
    strength: float
    carriers: Mapping[str, Carrier]
    marks: Mapping[str, Carrier]
    seed: int

    def tuning(self, epochs: int) -> Recipe:
        """The recipe "fine-tuning" of the literature: a tenth of the first learning rate.

        Args:
            epochs: Passes over the data.
        """
        return dataclasses.replace(self.recipe, epochs=epochs, learning_rate=0.1 * self.recipe.learning_rate)

    @property
    def tenth(self) -> Recipe:
        """A tenth of the task's own training, at its first learning rate; so short that it keeps no backups.

        It is an epoch at least: of a training of three epochs a third.
        """
        return dataclasses.replace(self.recipe, epochs=max(1, round(0.1 * self.recipe.epochs)), backup_dir=None)


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack with its settings.

    Args:
        name: What reports call it; no two of a suite have the same.
        family: What kind it is of.
        run: `(model, thief) -> model`. It leaves the model as it is. A `ValueError` says that the model cannot be attacked in this way.
        trains: Whether it trains, or what it starts from does, and takes time.
        after: Name of another attack, from whose result it starts.
        change: `thief -> change` of inputs on their way to the model, for a thief who answers questions; none by default. A `ValueError` as
            for `run`.

    Example:

    >>> from deepsigns_tf.perturbations import shake_weights
    >>> attack = Attack("weights shaken by 0.1", "modification", lambda model, thief: shake_weights(model, 0.1, thief.seed))
    >>> attack.trains
    False
    """

    name: str
    family: Family
    run: Callable[[keras.Model, Thief], keras.Model]
    trains: bool = False
    after: str | None = None
    change: Callable[[Thief], Callable[[np.ndarray], np.ndarray]] | None = None

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(
                f"Invalid value for argument `family`. Expected one of {get_args(Family)}. Received: family={self.family!r}"
            )


def thiefs_seed(name: str) -> int:
    """A seed in [0, 2^31) that follows from a name, and is not likely to be an owner's.

    Args:
        name: Of the thief.

    Example:

    >>> thiefs_seed("0") == thiefs_seed("1")
    False
    """
    return int.from_bytes(hashlib.sha256(f"thief {name}".encode()).digest()[:4], "big") >> 1


def thiefs_key(thief: Thief, carriers: Sequence[Carrier]) -> OwnerKey:
    """The key of a thief who marks the stolen model too, derived from the thief's seed.

    Args:
        thief: Who.
        carriers: What the key marks.

    Example:

    >>> thief = Thief(np.zeros((2, 4)), np.arange(2), Recipe(), 1.0, {}, {}, seed=0)
    >>> thiefs_key(thief, [Carrier("features", [0, 1], 32)]).signature("features").shape
    (2, 32)
    """
    seed = hashlib.sha256(f"thief {thief.seed}".encode()).digest()
    return OwnerKey("thief", tuple(carriers), DecisionRule(), seed)


def changed_by(function: Callable[..., keras.Model], **settings: Any) -> Callable[[keras.Model, Thief], keras.Model]:
    """What `Attack.run` is, of a function that draws nothing.

    Args:
        function: `(model, ...) -> model`.
        settings: What else it is given.
    """
    return lambda model, thief: function(model, **settings)


def drawn_by(function: Callable[..., keras.Model], **settings: Any) -> Callable[[keras.Model, Thief], keras.Model]:
    """What `Attack.run` is, of a function that takes the thief's seed.

    Args:
        function: `(model, ..., seed) -> model`.
        settings: What else it is given.
    """
    return lambda model, thief: function(model, seed=thief.seed, **settings)


def trained_by(
    function: Callable[..., keras.Model], epochs: int, **settings: Any
) -> Callable[[keras.Model, Thief], keras.Model]:
    """What `Attack.run` is, of a function that trains as long as the literature does, at a tenth of the first learning rate.

    Args:
        function: `(model, x, y, seed, recipe, ...) -> model`.
        epochs: Passes over the data.
        settings: What else it is given.
    """
    return lambda model, thief: function(model, thief.x, thief.y, thief.seed, recipe=thief.tuning(epochs), **settings)
