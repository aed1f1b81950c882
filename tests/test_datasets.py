"""The data of the programs: made up, small, or whole; never another's under its name."""

import collections
import functools
import pathlib
import re
import socket

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def datasets():
    """The module `scripts.datasets`, imported here: the environments of the other backends have no data sets."""
    import scripts.datasets

    return scripts.datasets


@pytest.fixture(scope="module")
def digits(datasets):
    """The small data set, parsed once."""
    return datasets.load_mnist("mnist5k")


def make_dataset():
    from scripts.datasets import Dataset

    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    return Dataset("toy", x, y, np.full((3, 2), -1.0), np.full(3, -1))


# Real digits


def test_the_small_data_set_is_real_balanced_and_split(digits):
    assert digits.name == "mnist5k"
    assert (digits.x_train.shape, digits.x_test.shape) == ((4000, 784), (1000, 784))
    assert digits.x_train.dtype == digits.x_test.dtype == np.float32
    assert digits.y_train.dtype == digits.y_test.dtype == np.int64
    assert np.bincount(digits.y_train).tolist() == [400] * 10 and np.bincount(digits.y_test).tolist() == [100] * 10
    assert digits.x_train.min() == 0.0 and digits.x_train.max() == 1.0
    rows = {row.tobytes() for row in digits.x_train}
    assert not any(row.tobytes() in rows for row in digits.x_test)


def test_held_out_digits_leave_every_class_in_both_parts(digits):
    for num_examples in (100, 500, 1000):
        data = digits.hold_out(num_examples)
        assert len(data.x_test) == num_examples and len(data.x_train) == 4000 - num_examples
        assert set(data.y_train.tolist()) == set(data.y_test.tolist()) == set(range(10))


# Made-up data

LOADERS = {
    "load_mnist": ({}, (784,), "float32", (0.0, 1.0), 10),
    "load_cifar10": ({}, (32, 32, 3), "uint8", (0, 255), 10),
    "load_imdb": ({"num_tokens": 300, "sequence_length": 40}, (40,), "int32", (0, 299), 2),
}


@functools.cache
def synthetic(loader):
    import scripts.datasets

    return getattr(scripts.datasets, loader)("synthetic", **LOADERS[loader][0])


@pytest.mark.parametrize("loader", LOADERS)
def test_made_up_data_has_the_form_of_the_real_and_says_that_it_is_made_up(loader):
    _, shape, dtype, (lowest, highest), num_classes = LOADERS[loader]
    data = synthetic(loader)
    assert data.name == "synthetic data (made up)"
    assert data.hold_out(10).name.startswith("synthetic data (made up), ")
    assert (data.x_train.shape, data.x_test.shape) == ((1280, *shape), (320, *shape))
    assert data.x_train.dtype == data.x_test.dtype == dtype
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.x_train.min() >= lowest and data.x_train.max() <= highest
    assert data.num_classes == num_classes
    # Enough of each class for the programs' 64 key inputs.
    assert np.bincount(data.y_train).tolist() == [1280 // num_classes] * num_classes
    assert np.bincount(data.y_test).tolist() == [320 // num_classes] * num_classes
    seen = {row.tobytes() for row in data.x_train}
    assert len(seen) == 1280 and not any(row.tobytes() in seen for row in data.x_test)
    assert (data.tokenizer is not None) == (loader == "load_imdb")


@pytest.mark.parametrize("loader", LOADERS)
def test_made_up_data_is_the_same_in_every_run(loader):
    np.random.seed(1)
    synthetic.cache_clear()
    once = synthetic(loader)
    synthetic.cache_clear()
    again = synthetic(loader)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))


def nearest_mean(known, labels, asked):
    means = np.stack([known[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    return np.argmin(((asked[:, None] - means) ** 2).sum(axis=2), axis=1)


def naive_bayes(known, labels, asked):
    """From the words' frequencies among a label's reviews, padding left out."""
    counts = np.stack([np.bincount(known[labels == label].ravel(), minlength=300)[1:] for label in (0, 1)]) + 1.0
    log_odds = np.append(0.0, np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum()))
    return (log_odds[asked].sum(axis=1) > 0).astype("int64")


@pytest.mark.parametrize("loader", LOADERS)
def test_made_up_data_can_be_learned(loader):
    """By the simplest classifiers there are, far better than by chance."""
    data = synthetic(loader)
    known, asked = data.x_train.reshape(1280, -1), data.x_test.reshape(320, -1)
    if loader == "load_imdb":
        answers = naive_bayes(known, data.y_train, asked)
    else:
        answers = nearest_mean(known.astype("float64"), data.y_train, asked.astype("float64"))
    assert np.mean(answers == data.y_test) > 0.8
    # The control: labels that have nothing to do with the inputs.
    others = np.random.default_rng(0).permutation(data.y_test)
    assert np.mean(answers == others) < 0.6


# Text into tokens


@pytest.fixture
def load_reviews(datasets, monkeypatch):
    """A function that loads given texts as a data set of reviews would be."""

    def load(train, test, num_tokens, sequence_length):
        def made_up():
            texts = [np.array([text.encode() for text in half], dtype=object) for half in (train, test)]
            return datasets.Dataset("toy", texts[0], np.zeros(len(train)), texts[1], np.zeros(len(test)))

        monkeypatch.setattr(datasets, "_synthetic_reviews", made_up)
        return datasets.load_imdb("synthetic", num_tokens, sequence_length)

    return load


def test_tokens_are_words_by_frequency_padded_with_0_and_cut(load_reviews):
    train = ["a a a a b b b", "A, b c! c", "d"]
    data = load_reviews(train, ["b a z", "", "a b c d a b c d"], num_tokens=6, sequence_length=5)
    # a: 5 times, b: 4, c: 2, d: once.
    assert data.x_train.tolist() == [[2, 2, 2, 2, 3], [2, 3, 4, 4, 0], [5, 0, 0, 0, 0]]
    assert data.x_test.tolist() == [[3, 2, 1, 0, 0], [0, 0, 0, 0, 0], [2, 3, 4, 5, 2]]
    assert data.x_train.dtype == data.x_test.dtype == np.int32


def test_a_vocabulary_is_no_larger_than_asked_for(load_reviews):
    data = load_reviews(["a a a b b c"], ["a b c"], num_tokens=4, sequence_length=3)
    assert data.x_test.tolist() == [[2, 3, 1]]


def test_the_tokenizer_is_fitted_on_the_training_half_only(load_reviews):
    """Words of the test half alone are unknown, however frequent they are."""
    data = load_reviews(["seen"] * 2, ["unseen " * 9 + "seen"] * 2, num_tokens=100, sequence_length=10)
    assert data.x_test.tolist() == [[1] * 9 + [2]] * 2
    assert data.tokenizer.get_layer("tokens").vocabulary_size() == 3


words = st.lists(st.sampled_from(["film", "plot", "bad", "good", "actor"]), max_size=9)


@settings(max_examples=8, deadline=None)
@given(test=st.lists(words, min_size=1, max_size=3), num_tokens=st.integers(3, 9), sequence_length=st.integers(1, 7))
def test_tokens_are_those_of_a_dictionary_written_by_hand(datasets, test, num_tokens, sequence_length):
    train = ["film " * 5 + "plot " * 4 + "bad " * 3 + "good " * 2]
    ranked = [word for word, _ in collections.Counter(train[0].split()).most_common(num_tokens - 2)]
    numbers = {word: 2 + rank for rank, word in enumerate(ranked)}
    with pytest.MonkeyPatch.context() as patch:
        halves = [np.array([text.encode() for text in half], object) for half in (train, map(" ".join, test))]
        patch.setattr(
            datasets, "_synthetic_reviews", lambda: datasets.Dataset("toy", halves[0], [0], halves[1], [0] * len(test))
        )
        data = datasets.load_imdb("synthetic", num_tokens, sequence_length)
    for review, tokens in zip(test, data.x_test.tolist(), strict=True):
        expected = [numbers.get(word, 1) for word in review][:sequence_length]
        assert tokens == expected + [0] * (sequence_length - len(expected))


def test_a_saved_tokenizer_gives_the_same_tokens(datasets, tmp_path):
    data = datasets.load_imdb("synthetic", 300, 40)
    texts = datasets._synthetic_reviews().x_test
    data.tokenizer.save(tmp_path / "tokenizer.keras")
    loaded = keras.models.load_model(tmp_path / "tokenizer.keras")
    for tokenizer in (data.tokenizer, loaded):
        np.testing.assert_array_equal(np.asarray(tokenizer(texts[:, None])), data.x_test)
    # As text, as users have it.
    text = texts[3].decode()
    np.testing.assert_array_equal(np.asarray(loaded(np.array([[text]], object)))[0], data.x_test[3])


def test_held_out_reviews_keep_their_tokenizer():
    data = synthetic("load_imdb")
    assert data.hold_out(5).tokenizer is data.tokenizer is not None


# Held-out examples


@given(num_examples=st.integers(1, 9))
def test_held_out_examples_are_the_last_of_the_training_set(num_examples):
    whole, data = make_dataset(), make_dataset().hold_out(num_examples)
    assert data.name == f"toy, last {num_examples} training examples held out"
    assert len(data.x_train) == len(data.y_train) == 10 - num_examples
    np.testing.assert_array_equal(np.concatenate([data.x_train, data.x_test]), whole.x_train)
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_test]), whole.y_train)


def test_without_held_out_examples_the_test_set_stays():
    data = make_dataset()
    assert data.hold_out(0) is data


@pytest.mark.parametrize("num_examples", [-1, 10, 11])
def test_fewer_than_none_and_all_examples_cannot_be_held_out(num_examples):
    with pytest.raises(ValueError) as error:
        make_dataset().hold_out(num_examples)
    assert str(error.value) == (
        "Invalid number of examples to hold out. Expected less than all of the training set. "
        f"Received: num_examples={num_examples} of 10"
    )


# Data that is not there


@pytest.mark.parametrize(
    ("loader", "arguments", "known"),
    [("load_mnist", (), "mnist"), ("load_cifar10", (), "cifar10"), ("load_imdb", (300, 40), "imdb_reviews")],
)
def test_an_unknown_data_set_is_refused(datasets, loader, arguments, known):
    for name in ("fashion_mnist", "synthetic ", ""):
        with pytest.raises(ValueError) as error:
            getattr(datasets, loader)(name, *arguments)
        assert str(error.value) == (
            f'Unknown data set. Expected "{known}" or another that `--help` lists. Received: {name!r}'
        )


@pytest.mark.parametrize(
    ("loader", "arguments", "name"),
    [("load_mnist", (), "mnist"), ("load_cifar10", (), "cifar10"), ("load_imdb", (300, 40), "imdb_reviews")],
)
def test_absent_data_is_told_with_a_way_out(datasets, monkeypatch, loader, arguments, name):
    import tensorflow_datasets as tfds

    def offline(*args, **kwargs):
        raise ConnectionError("no network")  # An OSError; TFDS has an exception of its own for a refusal.

    monkeypatch.setattr(tfds, "builder", offline)
    with pytest.raises(ValueError) as error:
        getattr(datasets, loader)(name, *arguments, "/some/folder")
    assert str(error.value) == (
        f"The data set {name} cannot be loaded. Expected it, undamaged, in the TFDS folder or a network to download it; "
        "`--dataset=synthetic` needs neither. Received: data_dir='/some/folder', ConnectionError: no network"
    )


def test_tfds_itself_tells_that_there_is_neither_data_nor_network(datasets, monkeypatch, tmp_path):
    """Nothing of TFDS is replaced but its patience: it asks ten times, which takes minutes."""
    from tensorflow_datasets.core.download import downloader

    asked = []

    def unknown_host(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    with pytest.raises(ValueError) as error:
        datasets.load_cifar10("cifar10", str(tmp_path))
    assert str(error.value).startswith(
        "The data set cifar10 cannot be loaded. Expected it, undamaged, in the TFDS folder or a network to download it; "
        f"`--dataset=synthetic` needs neither. Received: data_dir={str(tmp_path)!r}, ConnectionError: "
    )
    assert asked


@pytest.mark.parametrize("kind", ["DataLossError", "NotFoundError"])
def test_a_damaged_data_set_is_told_with_a_way_out(datasets, monkeypatch, kind):
    """What TensorFlow says of a file that was cut off, and of one that is gone."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    class Damaged:
        data_dir = "damaged"

        def is_prepared(self):
            return True

        def as_dataset(self, *args, **kwargs):
            raise getattr(tf.errors, kind)(None, None, "truncated record at 1024")

    monkeypatch.setattr(tfds, "builder", lambda name, data_dir=None: Damaged())
    with pytest.raises(
        ValueError, match=rf"^The data set cifar10 cannot be loaded\. Expected it, undamaged, .* {kind}: "
    ):
        datasets.load_cifar10("cifar10")


# Real data by TFDS


def skip_unless_installed(name):
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)
    if not pathlib.Path(builder.data_dir).exists():
        pytest.skip(f"{name} is not in the TFDS folder {builder.data_dir}; `tfds.load({name!r})` downloads it")


@pytest.mark.slow
def test_cifar10_is_whole(datasets):
    skip_unless_installed("cifar10")
    data = datasets.load_cifar10("cifar10")
    assert data.name == "cifar10"
    assert (data.x_train.shape, data.x_test.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert data.x_train.dtype == np.uint8 and data.y_train.dtype == np.int64
    assert np.bincount(data.y_train).tolist() == [5000] * 10 and np.bincount(data.y_test).tolist() == [1000] * 10
    # The means of the channels that the literature subtracts.
    np.testing.assert_allclose(data.x_train.mean(axis=(0, 1, 2)), [125.3, 123.0, 113.9], atol=0.1)
    assert set(data.hold_out(2500).y_test.tolist()) == set(range(10))


@pytest.mark.slow
def test_imdb_is_whole_and_its_tokens_are_words_by_frequency(datasets):
    skip_unless_installed("imdb_reviews")
    data = datasets.load_imdb("imdb_reviews", 1000, 50)
    assert data.name == "imdb_reviews"
    assert data.x_train.shape == data.x_test.shape == (25_000, 50)
    assert data.x_train.dtype == np.int32 and data.y_train.dtype == np.int64
    assert np.bincount(data.y_train).tolist() == np.bincount(data.y_test).tolist() == [12_500] * 2
    vocabulary = data.tokenizer.get_layer("tokens").get_vocabulary()
    assert len(vocabulary) == 1000 and vocabulary[:6] == ["", "[UNK]", "the", "and", "a", "of"]
    assert 0.4 < data.hold_out(2500).y_test.mean() < 0.6
    assert (data.x_train > 0).any(axis=1).all() and (data.x_test > 0).any(axis=1).all()
    assert all(re.fullmatch(r"\S+", word) for word in vocabulary[1:])
