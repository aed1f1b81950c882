"""Attacks of thieves who know how a model was marked and where, and all but the key."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import keras

from deepsigns_tf.activations import num_features
from deepsigns_tf.attacks.adaptive import move_class_means
from deepsigns_tf.attacks.fine_tuning import fine_tune
from deepsigns_tf.attacks.graphs import Graph, as_functional
from deepsigns_tf.attacks.hiding import add_decoy_units, add_lookalike_units
from deepsigns_tf.attacks.overwriting import overwrite
from deepsigns_tf.attacks.recipes import head
from deepsigns_tf.attacks.thief import Attack, Thief, thiefs_key
from deepsigns_tf.attacks.units import WITH_KERNEL
from deepsigns_tf.carriers import Carrier

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


def overwriting_attacks(all_epochs: Sequence[int]) -> list[Attack]:
    """Another mark over the owner's, by the same method, in the owner's layers and in another one.

    Source: DeepSigns, section 5.4.

    Args:
        all_epochs: After how many epochs to look, rising, as in `suite.suite`.

    Returns:
        One for each strength and number of epochs, one at a falling rate, one in another layer.
    """

    def elsewhere(model: keras.Model, thief: Thief, epochs: int) -> keras.Model:
        carrier, layer = next(iter(thief.marks.values())), _unmarked_layer(model, thief)
        bits = min(carrier.bits_per_class, _num_units(model, layer, carrier) // 2)
        return _overwritten(model, thief, {layer: dataclasses.replace(carrier, bits_per_class=bits)}, 1.0, epochs)

    attacks = []
    first = all_epochs[0]
    for before, epochs in itertools.pairwise((0, *all_epochs)):
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


def adaptive_attacks() -> list[Attack]:
    """The strongest that are known for a thief with a tenth of the task's own training, or with none.

    Returns:
        Those that train, at a constant rate and at a falling one, and those that do not.
    """

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
            makers, takers = kernels_around(model, layer)
            layers += makers + (takers[:1] if and_next else [])
        recipe = dataclasses.replace(thief.tenth, falls=falls)
        return fine_tune(model, thief.x, thief.y, thief.seed, recipe, new_layers=tuple(dict.fromkeys(layers)))

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

    def hidden(model: keras.Model, thief: Thief, pairs: int, hide: Callable[..., keras.Model]) -> keras.Model:
        kinds = {layer.name: type(layer) for layer in as_functional(model).layers}
        with_kernel = [name for name in makers_of_marks(model, thief) if kinds.get(name) in WITH_KERNEL]
        return hide(model, thief.x, thief.y, thief.seed, with_kernel, pairs)

    # A rate that falls regains accuracy that a constant one leaves behind.
    runs = {
        name + " at a falling rate" * falls: functools.partial(way, falls=falls)
        for falls in (False, True)
        for name, way in ways.items()
    }
    attacks = [Attack(name, "adaptive", run, trains=True) for name, run in runs.items()]
    for pairs in (1, 4):
        run = functools.partial(hidden, pairs=pairs, hide=add_lookalike_units)
        attacks.append(Attack(f"units among look-alikes, {2 * pairs} of each", "adaptive", run))
    for pairs in (1, 7):
        run = functools.partial(hidden, pairs=pairs, hide=add_decoy_units)
        attacks.append(Attack(f"units among decoys, {2 * pairs} of each", "adaptive", run))
    return attacks


def makers_of_marks(model: keras.Model, thief: Thief) -> set[str]:
    """Names of the layers that make what any marked layer puts out.

    Args:
        model: The stolen model.
        thief: Who knows which layers are marked.
    """
    return {name for layer in thief.carriers for name in kernels_around(model, layer)[0]}


def kernels_around(model: keras.Model, carrier: str) -> tuple[list[str], list[str]]:
    """Which layers to change for a marked one, by the graph.

    Args:
        model: The stolen model.
        carrier: Name of the marked layer.

    Returns:
        Names of the layers with a kernel that make what the marked one puts out, all whose outputs a residual sum adds; and of those
        after them.
    """
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
