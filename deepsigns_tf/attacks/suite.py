"""The attacks of the literature with the strengths on record, under the names that reports call them by."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np

from deepsigns_tf.attacks.adversarial import neural_cleanse, train_adversarially
from deepsigns_tf.attacks.division import divide_layers
from deepsigns_tf.attacks.extraction import distill
from deepsigns_tf.attacks.fine_tuning import (
    corrupt_labels,
    fine_prune,
    fine_tune,
    prune_and_retrain,
    shrink_and_tune,
    smooth_labels,
)
from deepsigns_tf.attacks.graphs import as_functional
from deepsigns_tf.attacks.informed import adaptive_attacks, makers_of_marks, overwriting_attacks
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
from deepsigns_tf.attacks.recipes import head
from deepsigns_tf.attacks.same_function import (
    add_cancelling_units,
    add_idle_units,
    clone_units,
    fold_batch_norm,
    permute_units,
    rename_layers,
    rescale_units,
    split_units,
    turn_units,
)
from deepsigns_tf.attacks.thief import Attack, Family, Thief, changed_by, drawn_by, trained_by
from deepsigns_tf.attacks.units import WITH_KERNEL
from deepsigns_tf.attacks.weights import prune_globally, quantize_weights, round_to_float16, shift_weights
from deepsigns_tf.perturbations import prune_weights, shake_weights


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
    attacks = [
        *_pruning(),
        *_fine_tuning(fine_tuning_epochs),
        *_also_disguised(overwriting_attacks(overwriting_epochs)),
    ]
    attacks += [*_modifications(), *_same_function(), *_inputs(), *_extraction(), *_also_disguised(adaptive_attacks())]
    return tuple(filter(SUITES[name], attacks))


def _pruning() -> list[Attack]:
    attacks = []
    for fraction in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999):
        attacks.append(Attack(f"{100 * fraction:g} % pruned", "paper", changed_by(prune_weights, fraction=fraction)))
    for fraction in (0.5, 0.8, 0.9, 0.95):
        name, whole = f"{100 * fraction:g} % pruned", changed_by(prune_globally, fraction=fraction)
        retrained = trained_by(prune_and_retrain, 10, fraction=fraction)
        attacks.append(Attack(f"{name} over all layers", "paper", whole))
        attacks.append(Attack(f"{name} and retrained, 10 epochs", "paper", retrained, trains=True))
    retrained = trained_by(prune_and_retrain, 10, fraction=0.9, over_all_layers=True)
    return [*attacks, Attack("90 % pruned over all layers and retrained, 10 epochs", "paper", retrained, trains=True)]


def _fine_tuning(all_epochs: Sequence[int]) -> list[Attack]:
    attacks = []
    for before, epochs in itertools.pairwise((0, *all_epochs)):
        more = trained_by(fine_tune, epochs - before)
        after = f"fine-tuned, {before} epochs" if before else None
        attacks.append(Attack(f"fine-tuned, {epochs} epochs", "paper", more, trains=True, after=after))

    def tuned(model: keras.Model, thief: Thief, layers: Literal["all", "last"], renew: bool) -> keras.Model:
        new_layers = (head(as_functional(model)).name,) if renew else ()
        return fine_tune(model, thief.x, thief.y, thief.seed, thief.tuning(10), layers, new_layers)

    for name, layers, renew in (("FTLL", "last", False), ("RTLL", "last", True), ("RTAL", "all", True)):
        run = functools.partial(tuned, layers=layers, renew=renew)  # type: ignore[arg-type]
        attacks.append(Attack(f"{name}, 10 epochs", "paper", run, trains=True))
    return attacks


def _modifications() -> list[Attack]:
    attacks = [
        Attack(f"quantized to {bits} bits", "modification", changed_by(quantize_weights, num_bits=bits))
        for bits in (8, 6, 5, 4)
    ]
    attacks.append(Attack("half precision", "modification", changed_by(round_to_float16)))
    for share in (0.1, 0.3, 0.5):
        run = drawn_by(shake_weights, relative_std=share)
        attacks.append(Attack(f"weights shaken by {share:g}", "modification", run))
    for share, noise in itertools.product((1.5, 2.5), (0.0, 1.0)):
        name = f"weights shifted by {share:g}" + (f" and shaken by {noise:g}" if noise else "")
        run = drawn_by(shift_weights, mean_share=share, relative_std=noise)
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
        "labels smoothed by 0.3, 10 epochs": trained_by(smooth_labels, 10, share=0.3),
        **{
            f"{100 * share:g} % of the labels random, 10 epochs": trained_by(corrupt_labels, 10, share=share)
            for share in (0.3, 0.8)
        },
        **{
            f"adversarial training within {epsilon:g}, 5 epochs": trained_by(
                train_adversarially, 5, relative_epsilon=epsilon
            )
            for epsilon in (0.01, 0.25)
        },
        "Neural Cleanse, 5 epochs": trained_by(neural_cleanse, 5),
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
        "units permuted": drawn_by(permute_units),
        "units rescaled": drawn_by(rescale_units),
        "units turned": drawn_by(turn_units),
        "units split": drawn_by(split_units, fraction=0.2),
        "units cloned": drawn_by(clone_units, fraction=0.2),
        "idle units added": drawn_by(add_idle_units, fraction=0.2),
        "cancelling units added": drawn_by(add_cancelling_units, fraction=0.2),
        "BatchNorm folded": changed_by(fold_batch_norm),
        "layers divided into 4": _divided,
        "layers renamed": drawn_by(rename_layers),
        _ALL_DISGUISES: _disguised,
        **widened,
    }
    attacks = []
    for name, run in functions.items():
        pruned = Attack(
            f"{name}, then 50 % pruned", "same function", changed_by(prune_weights, fraction=0.5), after=name
        )
        attacks += [Attack(name, "same function", run), pruned]
        # What idle units are trained to is no question, and eight times the width takes up to 64 times as long.
        attacks += [] if name in widened else [_then_tuned(name, "same function")]
    return attacks


def _disguised(model: keras.Model, thief: Thief) -> keras.Model:
    # Most models have no BatchNorm to fold, and no units that may change their sign; a recurrent one may have nothing to rescale or divide.
    steps: tuple[tuple[Callable[[keras.Model, Thief], keras.Model], bool], ...] = (
        (changed_by(fold_batch_norm), False),
        (drawn_by(permute_units), True),
        (drawn_by(rescale_units), False),
        (drawn_by(split_units), True),
        (drawn_by(clone_units), True),
        (drawn_by(add_idle_units), True),
        (drawn_by(add_cancelling_units), True),
        (_divided, False),
        (drawn_by(turn_units), False),
        (drawn_by(rename_layers), True),
    )
    # Units that two steps add must not be the same ones.
    seeds = np.random.SeedSequence(thief.seed).generate_state(len(steps)).tolist()
    for (step, always), seed in zip(steps, seeds, strict=True):
        with contextlib.nullcontext() if always else contextlib.suppress(ValueError):
            model = step(model, dataclasses.replace(thief, seed=seed))
    return model


def _divided(model: keras.Model, thief: Thief) -> keras.Model:
    """The marked layers alone: a network of many layers would become one of many times as many."""
    return divide_layers(model, thief.seed, layers=makers_of_marks(model, thief))


def _widened(model: keras.Model, thief: Thief, times: int) -> keras.Model:
    """Of the marked layers alone: there it hides the most for what it costs."""
    makers = makers_of_marks(model, thief)
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


def _then_tuned(name: str, family: Family) -> Attack:
    run = trained_by(fine_tune, 10)
    return Attack(f"{name}, then fine-tuned, 10 epochs", family, run, trains=True, after=name)
