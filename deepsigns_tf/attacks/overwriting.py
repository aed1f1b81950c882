"""The thief marks the stolen model too, by the same method."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from deepsigns_tf.attacks.graphs import as_functional, rebuilt
from deepsigns_tf.attacks.recipes import Recipe, fit
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.regularizers import SignatureRegularizer
from deepsigns_tf.watermarked_model import WatermarkedModel


def overwrite(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    thiefs_key: OwnerKey,
    layers: Mapping[str, str],
    strength: float = 1.0,
    recipe: Recipe = Recipe(learning_rate=1e-3),
) -> keras.Model:
    """Embeds a second mark, with a key of the thief's own.

    Args:
        model: The model; it is left as it is.
        x: `(n, ...)` training inputs.
        y: `(n,)` integer labels, the carriers' classes.
        seed: Of order and dropout.
        thiefs_key: With carriers.
        layers: For each of its carriers the name of a layer that takes `activity_regularizer`.
        strength: Weight of the thief's signature loss.
        recipe: 10 and 100 epochs on record, at the task's first learning rate.

    Returns:
        A plain functional model, as a thief would release it.

    Raises:
        ValueError: If a carrier has no layer, or a layer takes no `activity_regularizer`.

    Source: DeepSigns, section 5.4.
    """
    regularizers = {
        layers[carrier.name]: SignatureRegularizer(thiefs_key, carrier.name, strength=strength)
        for carrier in thiefs_key.carriers
        if carrier.name in layers
    }
    functional = as_functional(model)
    names = [each.name for each in functional.layers]
    if len(regularizers) != len(thiefs_key.carriers) or not set(regularizers) <= set(names):
        raise ValueError(
            f"The thief's carriers have no layers of their own. Expected one from {names} for each of "
            f"{[carrier.name for carrier in thiefs_key.carriers]}. Received: layers={dict(layers)}"
        )

    def marked(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in regularizers:
            config["activity_regularizer"] = regularizers[layer.name]
        return type(layer).from_config(config)

    keras.utils.set_random_seed(seed)
    copy = rebuilt(functional, marked)
    copy = WatermarkedModel(copy.inputs[0] if len(copy.inputs) == 1 else copy.inputs, copy.outputs[0])
    copy.set_weights(functional.get_weights())
    fit(copy, x, y, seed, recipe)
    plain = rebuilt(functional)
    plain.set_weights(copy.get_weights())
    return plain
