"""What the tests share: small keys, data and models, and one seed for all of them."""

import gc
import os

# Before TensorFlow starts: its start-up messages would bury a failure.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Each of several processes of tests has a core; threads that wait for one take a tenth more time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import keras
import numpy as np
import pytest

import deepsigns_tf as ds

# A traced step is a hundred thousand objects, most of them there to stay: looking through them for garbage took a tenth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(200_000, 50, 1000)

# They hold no tests, and need what not every environment has: one runs inside MLServer, the others in processes of their own.
collect_ignore = ["servers/linear_runtime.py", "servers/saved_models.py", "writers.py"]

# What these files and tests run of the package others run too. Counting lines takes half as long again, so it is left out there.
_UNCOUNTED = {
    "test_attack_suite",
    "test_benchmarks",
    "test_core",
    "test_datasets",
    "test_detector",
    "test_distribution",
    "test_evidence_tables",
    "test_false_claims",
    "test_kill",
    "test_models",
    "test_pipelines",
    "test_readme",
    "test_regularizers",
    "test_scripts",
    "test_secrecy",
    "test_strategies",
    "test_suite_tables",
    "test_training_modes",
    "test_trigger_programs",
    "test_verify_remote",
    "test_all_attacks_can_train_as_a_task_with_smoothed_labels_does",
    "test_archive_in_the_keys_scope_goes_on_training",
    "test_archive_without_key_answers_and_evaluates_as_before",
    "test_backup_resumes_a_training_of_every_kind_of_model",
    "test_class_means_are_moved_as_far_as_asked",
    "test_class_of_a_functional_model_stays_a_base_for_others_and_saves",
    "test_every_kind_of_model_carries_the_mark",
    "test_hardened_training_withstands_more",
    "test_innocent_answers_are_accepted_as_often_as_the_level_says",
    "test_labels_are_smoothed_and_corrupted_as_asked",
}

NUM_CLASSES = 4
NUM_FEATURES = 16
NUM_UNITS = 128


# Files that take a minute or more, begun first: else one process of tests waits for another at the end.
_LONGEST = (
    *("test_scripts", "test_attacks_training", "test_watermarked_model", "test_strategies", "test_kill"),
    *("test_training_modes", "test_attack_suite", "test_suspects", "test_false_claims"),
)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))
    for item in items:
        names = {item.path.stem, getattr(item, "originalname", None)}
        if config.pluginmanager.hasplugin("_cov") and names & _UNCOUNTED:
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def blobs():
    """256 rows of 16 features in 4 well separated classes."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(NUM_CLASSES, NUM_FEATURES))
    labels = np.arange(256) % NUM_CLASSES
    return (centres[labels] + 0.3 * random.normal(size=(256, NUM_FEATURES))).astype("float32"), labels


@pytest.fixture
def owner_key(blobs):
    """128 bits in 4 classes of one carrier, with key inputs."""
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", range(NUM_CLASSES), 32)])
    return key.with_key_inputs(*blobs, num_per_class=16)


@pytest.fixture
def build_mlp():
    """A function that builds 16-128-4, functional, with any regularizer on the hidden layer and any model class."""

    def build(activity_regularizer=None, model_class=keras.Model):
        inputs = keras.Input((NUM_FEATURES,))
        x = keras.layers.Dense(NUM_UNITS, activation="relu", activity_regularizer=activity_regularizer, name="hidden")(
            inputs
        )
        return model_class(inputs, keras.layers.Dense(NUM_CLASSES, name="logits")(x))

    return build


@pytest.fixture
def compile_model():
    """A function that compiles a classifier over logits, Adam at 1e-2 by default."""

    def compile_(model, optimizer=None, **kwargs):
        kwargs = {
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": ["accuracy"],
        } | kwargs
        model.compile(optimizer or keras.optimizers.Adam(1e-2), **kwargs)
        return model

    return compile_


@pytest.fixture
def marked_model(blobs, owner_key, build_mlp, compile_model):
    """A functional model that carries the mark of `owner_key`, trained to bit error rate 0."""
    regularizer = ds.SignatureRegularizer(owner_key, "features")
    model = compile_model(build_mlp(regularizer, ds.WatermarkedModel))
    model.fit(*blobs, batch_size=64, epochs=10, verbose=0)
    return model
