"""The attacks of the literature with the strengths on record, under the names that reports call them by."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np

from deepsigns_tf.activations import num_features
from deepsigns_tf.attacks.adaptive import add_lookalike_units, move_class_means
from deepsigns_tf.attacks.adversarial import neural_cleanse, train_adversarially
from deepsigns_tf.attacks.extraction import distill
from deepsigns_tf.attacks.fine_tuning import (
    corrupt_labels,
    fine_prune,
    fine_tune,
    prune_and_retrain,
    shrink_and_tune,
    smooth_labels,
)
from deepsigns_tf.attacks.graphs import Graph, as_functional
from deepsigns_tf.attacks.inputs import (
    ImageChange,
    add_noise,
    blur,
    compress_jpeg,
    crop_randomly,
    mirror,
    of_model,
    reduce_bit_depth,
)
from deepsigns_tf.attacks.overwriting import overwrite
from deepsigns_tf.attacks.recipes import Recipe, head
from deepsigns_tf.attacks.same_function import (
    add_cancelling_units,
    add_idle_units,
    clone_units,
    fold_batch_norm,
    permute_units,
    rename_layers,
    rescale_units,
    split_units,
)
from deepsigns_tf.attacks.units import WITH_KERNEL
from deepsigns_tf.attacks.weights import prune_globally, quantize_weights, round_to_float16, shift_weights
from deepsigns_tf.carriers import Carrier
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.perturbations import prune_weights, shake_weights
from deepsigns_tf.statistics import DecisionRule

# Layers without a kernel of their own, or with several, that can be marked.
_WITH_UNITS = (
    keras.layers.BatchNormalization,
    keras.layers.Bidirectional,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GRU,
    keras.layers.LSTM,
)

Family = Literal["paper", "modification", "same function", "input", "extraction", "adaptive"]


def _image_change(function: Callable[..., np.ndarray], strength: Any, **settings: Any) -> ImageChange:
    return lambda images, value_range: function(images, strength, value_range, **settings)


# Changes of images on their way to a model.
INPUT_CHANGES: dict[str, ImageChange] = {
    **{f"noise, {100 * std:g} % of the range": _image_change(add_noise, std, seed=0) for std in (0.01, 0.05, 0.1)},
    **{f"JPEG, quality {quality}": _image_change(compress_jpeg, quality) for quality in (95, 70, 45)},
    **{f"blur, {std:g} pixels": _image_change(blur, std) for std in (0.5, 1.0)},
    **{f"{bits} bits a number": _image_change(reduce_bit_depth, bits) for bits in (7, 5, 4)},
    "mirrored": lambda images, value_range: mirror(images),
    **{f"random crop to {100 * share:g} %": _image_change(crop_randomly, share, seed=0) for share in (0.9, 0.8)},
}


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

    >>> attack = Attack("all weights halved", "modification", lambda model, thief: shake_weights(model, 0.0, thief.seed))
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


# Everything that leaves the function as it is, at once.
_ALL_DISGUISES = "all of these"

# What belongs to each.
SUITES: dict[str, Callable[[Attack], bool]] = {
    "quick": lambda attack: not attack.trains,
    "paper": lambda attack: attack.family == "paper",
    "brief": lambda attack: attack.family == "paper" or not attack.trains or attack.after == _ALL_DISGUISES,
    "full": lambda attack: True,
}


def suite(
    name: str, fine_tuning_epochs: Sequence[int] = (10, 50, 100, 200), overwriting_epochs: Sequence[int] = (10, 100)
) -> tuple[Attack, ...]:
    """The attacks of a suite.

    Args:
        name: `"quick"`, all that need no training; `"paper"`, pruning, fine-tuning and overwriting; `"brief"`, both, and the
            network of all disguises fine-tuned; `"full"`, everything.
        fine_tuning_epochs: After how many epochs to look, rising; each stretch starts with a fresh optimizer.
        overwriting_epochs: After how many epochs of the thief's own marking to look, rising, as for fine-tuning: at three strengths, at a
            falling rate and in another layer for the first, at one and three times the strength for the others. Each is looked at once
            more under all disguises.

    Returns:
        The attacks; each stands after the one that it starts from.

    Raises:
        ValueError: If there is no such suite.

    Example:

    >>> [attack.name for attack in suite("paper", (50,), (10,)) if attack.trains][:2]
    ['50 % pruned and retrained, 10 epochs', '80 % pruned and retrained, 10 epochs']
    """
    if name not in SUITES:
        raise ValueError(f"Invalid value for argument `name`. Expected one of {tuple(SUITES)}. Received: name={name!r}")
    attacks = [*_pruning(), *_fine_tuning(fine_tuning_epochs), *_also_disguised(_overwriting(overwriting_epochs))]
    attacks += [*_modifications(), *_same_function(), *_inputs(), *_extraction(), *_also_disguised(_adaptive())]
    return tuple(filter(SUITES[name], attacks))


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


def _pruning() -> list[Attack]:
    attacks = []
    for fraction in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999):
        attacks.append(Attack(f"{100 * fraction:g} % pruned", "paper", _changed_by(prune_weights, fraction=fraction)))
    for fraction in (0.5, 0.8, 0.9, 0.95):
        name, whole = f"{100 * fraction:g} % pruned", _changed_by(prune_globally, fraction=fraction)
        retrained = _trained_by(prune_and_retrain, 10, fraction=fraction)
        attacks.append(Attack(f"{name} over all layers", "paper", whole))
        attacks.append(Attack(f"{name} and retrained, 10 epochs", "paper", retrained, trains=True))
    retrained = _trained_by(prune_and_retrain, 10, fraction=0.9, over_all_layers=True)
    return [*attacks, Attack("90 % pruned over all layers and retrained, 10 epochs", "paper", retrained, trains=True)]


def _fine_tuning(all_epochs: Sequence[int]) -> list[Attack]:
    attacks = []
    for before, epochs in zip((0, *all_epochs), all_epochs, strict=False):
        more = _trained_by(fine_tune, epochs - before)
        after = f"fine-tuned, {before} epochs" if before else None
        attacks.append(Attack(f"fine-tuned, {epochs} epochs", "paper", more, trains=True, after=after))

    def tuned(model: keras.Model, thief: Thief, layers: Literal["all", "last"], renew: bool) -> keras.Model:
        new_layers = (head(as_functional(model)).name,) if renew else ()
        return fine_tune(model, thief.x, thief.y, thief.seed, thief.tuning(10), layers, new_layers)

    for name, layers, renew in (("FTLL", "last", False), ("RTLL", "last", True), ("RTAL", "all", True)):
        run = functools.partial(tuned, layers=layers, renew=renew)  # type: ignore[arg-type]
        attacks.append(Attack(f"{name}, 10 epochs", "paper", run, trains=True))
    return attacks


def _overwriting(all_epochs: Sequence[int]) -> list[Attack]:
    def elsewhere(model: keras.Model, thief: Thief, epochs: int) -> keras.Model:
        carrier, layer = next(iter(thief.marks.values())), _unmarked_layer(model, thief)
        bits = min(carrier.bits_per_class, _num_units(model, layer, carrier) // 2)
        return _overwritten(model, thief, {layer: dataclasses.replace(carrier, bits_per_class=bits)}, 1.0, epochs)

    attacks = []
    first = all_epochs[0]
    for before, epochs in zip((0, *all_epochs), all_epochs, strict=False):
        # The longer the thief trains, the fewer ways are tried.
        for share in (1.0, 3.0) if before else (0.1, 1.0, 3.0):
            run = functools.partial(_overwritten_in_place, relative_strength=share, epochs=epochs - before)
            after = f"overwritten, {share:g} x, {before} epochs" if before else None
            attacks.append(Attack(f"overwritten, {share:g} x, {epochs} epochs", "paper", run, trains=True, after=after))
    runs = {
        f"overwritten, 1 x at a falling rate, {first} epochs": functools.partial(
            _overwritten_in_place, relative_strength=1.0, epochs=first, falls=True
        ),
        f"overwritten in another layer, {first} epochs": functools.partial(elsewhere, epochs=first),
    }
    return attacks + [Attack(name, "paper", run, trains=True) for name, run in runs.items()]


def _overwritten_in_place(
    model: keras.Model,
    thief: Thief,
    relative_strength: float,
    epochs: int,
    times_the_bits: int = 1,
    falls: bool = False,
) -> keras.Model:
    """As many bits as there is room for, if that many are asked for."""
    carriers = {}
    for layer, carrier in thief.marks.items():
        bits = min(times_the_bits * carrier.bits_per_class, _num_units(model, layer, carrier) - 1)
        carriers[layer] = dataclasses.replace(carrier, bits_per_class=bits)
    return _overwritten(model, thief, carriers, relative_strength, epochs, falls)


def _num_units(model: keras.Model, layer: str, carrier: Carrier) -> int:
    return num_features(as_functional(model).get_layer(layer).output.shape, carrier.pooling)


def _overwritten(
    model: keras.Model,
    thief: Thief,
    carriers: Mapping[str, Carrier],
    relative_strength: float,
    epochs: int,
    falls: bool = False,
) -> keras.Model:
    """Marked by the thief in layers of these names."""
    named = [dataclasses.replace(carrier, name=layer) for layer, carrier in carriers.items()]
    return overwrite(
        model,
        thief.x,
        thief.y,
        thief.seed,
        thiefs_key(thief, named),
        {layer: layer for layer in carriers},
        relative_strength * thief.strength,
        dataclasses.replace(thief.recipe, epochs=epochs, falls=falls),
    )


def _unmarked_layer(model: keras.Model, thief: Thief) -> str:
    """The last Dense layer or convolution that is neither marked nor the head, or else the last of other layers with units."""
    functional = as_functional(model)
    others = [
        layer for layer in functional.layers if layer is not head(functional) and layer.name not in thief.carriers
    ]
    with_kernel: list[str] = [layer.name for layer in others if type(layer) in WITH_KERNEL]
    # A sequence has no one feature for each unit where time steps are masked.
    without: list[str] = [layer.name for layer in others if type(layer) in _WITH_UNITS and len(layer.output.shape) == 2]
    if not with_kernel and not without:
        raise ValueError(
            "There is no other layer to mark. Expected a hidden Dense layer, convolution, recurrent, pooling or BatchNorm layer. "
            f"Received: {[layer.name for layer in functional.layers]}"
        )
    return (with_kernel or without)[-1]


def _modifications() -> list[Attack]:
    attacks = [
        Attack(f"quantized to {bits} bits", "modification", _changed_by(quantize_weights, num_bits=bits))
        for bits in (8, 6, 5, 4)
    ]
    attacks.append(Attack("half precision", "modification", _changed_by(round_to_float16)))
    for share in (0.1, 0.3, 0.5):
        run = _drawn_by(shake_weights, relative_std=share)
        attacks.append(Attack(f"weights shaken by {share:g}", "modification", run))
    for share, noise in itertools.product((1.5, 2.5), (0.0, 1.0)):
        name = f"weights shifted by {share:g}" + (f" and shaken by {noise:g}" if noise else "")
        run = _drawn_by(shift_weights, mean_share=share, relative_std=noise)
        attacks += [Attack(name, "modification", run), _then_tuned(name, "modification")]

    def fine_pruned(model: keras.Model, thief: Thief, fraction: float) -> keras.Model:
        layer = _last_kernel(model)
        return fine_prune(model, thief.x, thief.y, thief.seed, layer, fraction, thief.tuning(5))

    for fraction in (0.6, 0.8, 0.96):
        name, run = f"fine-pruned, {100 * fraction:g} %", functools.partial(fine_pruned, fraction=fraction)
        attacks.append(Attack(name, "modification", run, trains=True))

    def shrunk(model: keras.Model, thief: Thief) -> keras.Model:
        recipe = dataclasses.replace(thief.tuning(5), backup_dir=None)
        return shrink_and_tune(model, thief.x, thief.y, thief.seed, shrinking=recipe, tuning=recipe)

    trained = {
        "L2 of 0.1 and fine-tuned, 5 epochs each": shrunk,
        "labels smoothed by 0.3, 10 epochs": _trained_by(smooth_labels, 10, share=0.3),
        **{
            f"{100 * share:g} % of the labels random, 10 epochs": _trained_by(corrupt_labels, 10, share=share)
            for share in (0.3, 0.8)
        },
        **{
            f"adversarial training within {epsilon:g}, 5 epochs": _trained_by(
                train_adversarially, 5, relative_epsilon=epsilon
            )
            for epsilon in (0.01, 0.25)
        },
        "Neural Cleanse, 5 epochs": _trained_by(neural_cleanse, 5),
    }
    return attacks + [Attack(name, "modification", run, trains=True) for name, run in trained.items()]


def _last_kernel(model: keras.Model) -> str:
    """The last convolution, or the last Dense layer but the head."""
    functional = as_functional(model)
    layers = [layer for layer in functional.layers if type(layer) in WITH_KERNEL and layer is not head(functional)]
    convolutions = [layer for layer in layers if type(layer) is not keras.layers.Dense]
    found: list[str] = [layer.name for layer in convolutions or layers]
    if not found:
        raise ValueError(
            "There are no units to silence. Expected a convolution or a hidden Dense layer. "
            f"Received: {[layer.name for layer in functional.layers]}"
        )
    return found[-1]


def _same_function() -> list[Attack]:
    widened = {f"idle units, {times} x as wide": functools.partial(_widened, times=times) for times in (2, 8)}
    functions: dict[str, Callable[[keras.Model, Thief], keras.Model]] = {
        "units permuted": _drawn_by(permute_units),
        "units rescaled": _drawn_by(rescale_units),
        "units split": _drawn_by(split_units, fraction=0.2),
        "units cloned": _drawn_by(clone_units, fraction=0.2),
        "idle units added": _drawn_by(add_idle_units, fraction=0.2),
        "cancelling units added": _drawn_by(add_cancelling_units, fraction=0.2),
        "BatchNorm folded": _changed_by(fold_batch_norm),
        "layers renamed": _drawn_by(rename_layers),
        _ALL_DISGUISES: _disguised,
        **widened,
    }
    attacks = []
    for name, run in functions.items():
        pruned = Attack(
            f"{name}, then 50 % pruned", "same function", _changed_by(prune_weights, fraction=0.5), after=name
        )
        attacks += [Attack(name, "same function", run), pruned]
        # What idle units are trained to is no question, and eight times the width takes up to 64 times as long.
        attacks += [] if name in widened else [_then_tuned(name, "same function")]
    return attacks


def _disguised(model: keras.Model, thief: Thief) -> keras.Model:
    with contextlib.suppress(ValueError):  # Most models have no BatchNorm to fold.
        model = fold_batch_norm(model)
    steps = (
        permute_units,
        rescale_units,
        split_units,
        clone_units,
        add_idle_units,
        add_cancelling_units,
        rename_layers,
    )
    # Units that two steps add must not be the same ones.
    seeds = np.random.SeedSequence(thief.seed).generate_state(len(steps)).tolist()
    for step, seed in zip(steps, seeds, strict=True):
        model = step(model, seed)
    return model


def _widened(model: keras.Model, thief: Thief, times: int) -> keras.Model:
    """Of the marked layers alone: there it hides the most for what it costs."""
    makers = {name for layer in thief.carriers for name in _kernels_around(model, layer)[0]}
    halves = {f"{maker}/{half}" for maker in makers for half in ("forward", "backward")}
    return add_idle_units(model, thief.seed, times - 1, makers | halves)


def _also_disguised(attacks: Sequence[Attack]) -> list[Attack]:
    """Each, and what it leaves under all disguises, which cost a thief nothing: a damaged mark whose place is lost too."""
    return [
        each
        for attack in attacks
        for each in (
            attack,
            dataclasses.replace(attack, name=f"{attack.name}, then disguised", run=_disguised, after=attack.name),
        )
    ]


def _inputs() -> list[Attack]:
    def changed(thief: Thief, change: ImageChange) -> Callable[[np.ndarray], np.ndarray]:
        return of_model(change, thief.x)

    return [
        Attack(name, "input", lambda model, thief: model, change=functools.partial(changed, change=change))
        for name, change in INPUT_CHANGES.items()
    ]


def _extraction() -> list[Attack]:
    def distilled(model: keras.Model, thief: Thief, **settings: Any) -> keras.Model:
        return distill(model, thief.x, thief.seed, recipe=thief.recipe, **settings)

    def into_another(model: keras.Model, thief: Thief) -> keras.Model:
        return distilled(model, thief, build=functools.partial(_other_network, model))

    runs: dict[str, Callable[[keras.Model, Thief], keras.Model]] = {
        "distilled": distilled,
        "distilled from labels alone": functools.partial(distilled, hard_labels=True),
        "distilled into another architecture": into_another,
    }
    return [Attack(name, "extraction", run, trains=True) for name, run in runs.items()]


def _other_network(model: keras.Model) -> keras.Model:
    """Two hidden layers over the flat inputs."""
    if "float" not in keras.backend.standardize_dtype(model.inputs[0].dtype):
        raise ValueError(
            f"There is no other architecture for these inputs. Expected real numbers. Received: {model.inputs[0].dtype}"
        )
    return keras.Sequential(
        [
            keras.Input(model.inputs[0].shape[1:]),
            keras.layers.Flatten(),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(model.output_shape[-1]),
        ]
    )


def _adaptive() -> list[Attack]:
    """Within a tenth of the task's own training, or without any."""

    def moved(model: keras.Model, thief: Thief, distance: float, falls: bool) -> keras.Model:
        layers = {layer: carrier.pooling for layer, carrier in thief.carriers.items()}
        recipe = dataclasses.replace(thief.tenth, falls=falls)
        return move_class_means(model, thief.x, thief.y, thief.seed, layers, distance, recipe)

    def crowded(model: keras.Model, thief: Thief, relative_strength: float, falls: bool) -> keras.Model:
        epochs = thief.tenth.epochs
        return _overwritten_in_place(model, thief, relative_strength, epochs, times_the_bits=2, falls=falls)

    def renewed(model: keras.Model, thief: Thief, and_next: bool, falls: bool) -> keras.Model:
        layers: list[str] = []
        for layer in thief.carriers:
            makers, takers = _kernels_around(model, layer)
            layers += makers + (takers[:1] if and_next else [])
        recipe, renewed = dataclasses.replace(thief.tenth, falls=falls), tuple(dict.fromkeys(layers))
        return fine_tune(model, thief.x, thief.y, thief.seed, recipe, new_layers=renewed)

    ways: dict[str, Callable[..., keras.Model]] = {
        **{
            f"class means moved by {distance:g}": functools.partial(moved, distance=distance)
            for distance in (0.5, 1.0, 2.0, 4.0, 8.0)
        },
        **{
            f"overwritten with twice the bits, {share:g} x": functools.partial(crowded, relative_strength=share)
            for share in (1.0, 10.0)
        },
        "marked layers drawn anew": functools.partial(renewed, and_next=False),
        "marked layers and the next ones drawn anew": functools.partial(renewed, and_next=True),
    }

    def among_lookalikes(model: keras.Model, thief: Thief, pairs: int) -> keras.Model:
        kinds = {layer.name: type(layer) for layer in as_functional(model).layers}
        makers = {name for layer in thief.carriers for name in _kernels_around(model, layer)[0]}
        with_kernel = [name for name in makers if kinds.get(name) in WITH_KERNEL]
        return add_lookalike_units(model, thief.x, thief.y, thief.seed, with_kernel, pairs)

    # A rate that falls regains accuracy that a constant one leaves behind.
    runs = {
        name + " at a falling rate" * falls: functools.partial(way, falls=falls)
        for falls in (False, True)
        for name, way in ways.items()
    }
    attacks = [Attack(name, "adaptive", run, trains=True) for name, run in runs.items()]
    for pairs in (1, 4):
        run = functools.partial(among_lookalikes, pairs=pairs)
        attacks.append(Attack(f"units among look-alikes, {2 * pairs} of each", "adaptive", run))
    return attacks


def _kernels_around(model: keras.Model, carrier: str) -> tuple[list[str], list[str]]:
    """Names of the layers that make what a marked layer puts out, all whose outputs a residual sum adds, and of those with a kernel after
    them, by the graph."""
    functional = as_functional(model)
    graph = Graph.of(functional)
    with_kernel = [layer.name for layer in functional.layers if any(len(weight.shape) > 1 for weight in layer.weights)]
    makers, to_look_at = set(), [carrier]
    while to_look_at:
        name = to_look_at.pop()
        if name in with_kernel:
            makers.add(name)
        else:
            to_look_at += [before for call in graph.calls.get(name, ()) for before in call]
    after = [name for name in with_kernel if carrier in graph.before(name) and name not in makers]
    return [name for name in with_kernel if name in makers], after


def _then_tuned(name: str, family: Family) -> Attack:
    run = _trained_by(fine_tune, 10)
    return Attack(f"{name}, then fine-tuned, 10 epochs", family, run, trains=True, after=name)


def _changed_by(function: Callable[..., keras.Model], **settings: Any) -> Callable[[keras.Model, Thief], keras.Model]:
    """Of a function that draws nothing."""
    return lambda model, thief: function(model, **settings)


def _drawn_by(function: Callable[..., keras.Model], **settings: Any) -> Callable[[keras.Model, Thief], keras.Model]:
    """Of a function with a seed."""
    return lambda model, thief: function(model, seed=thief.seed, **settings)


def _trained_by(
    function: Callable[..., keras.Model], epochs: int, **settings: Any
) -> Callable[[keras.Model, Thief], keras.Model]:
    """Of a function that trains as long as the literature does, at a tenth of the first learning rate."""
    return lambda model, thief: function(model, thief.x, thief.y, thief.seed, recipe=thief.tuning(epochs), **settings)
