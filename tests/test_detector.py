"""Networks of several kinds, and what can be seen of their marks without a key."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from benchmarks import detector, populations
from models.mnist_mlp import mnist_mlp


@pytest.fixture
def small_task(monkeypatch):
    """Made-up digits, and in this process."""
    import concurrent.futures

    from scripts import train_mnist_mlp as program

    task = program.task(program.Config("", dataset="synthetic"))
    monkeypatch.setattr(populations, "_task", lambda data_dir: task)
    monkeypatch.setattr(populations, "pool_on_cores", lambda num_workers: concurrent.futures.ThreadPoolExecutor(1))


def test_networks_of_a_kind_are_trained_once_each_with_a_seed_of_its_own(small_task, tmp_path):
    config = populations.Config(kind="default", num_models=2, epochs=1, runs_dir=str(tmp_path))
    paths = populations.run(config)
    assert paths == [populations.folder_of(str(tmp_path), "default") / f"00{number}.keras" for number in (0, 1)]
    kernels = [keras.models.load_model(path).get_layer("features").get_weights()[0] for path in paths]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.1
    written = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    assert populations.run(config) == paths and paths[0].stat().st_mtime_ns == written[0]
    with pytest.raises(ValueError, match=r"^This folder holds networks of other settings\. Expected "):
        populations.run(populations.Config(kind="default", num_models=2, epochs=2, runs_dir=str(tmp_path)))
    # The same one again.
    np.testing.assert_allclose(
        keras.models.load_model(paths[1]).get_layer("features").get_weights()[0], kernels[1], atol=1e-5
    )


def test_every_kind_of_mark_meets_unmarked_networks_that_were_trained_as_long():
    from scripts import train_mnist_mlp as program

    epochs = {kind: population.epochs for kind, population in populations.KINDS.items()}
    marked = [kind for kind, population in populations.KINDS.items() if population.mark is not None]
    assert {kind: detector._unmarked(epochs, kind) for kind in marked} == {
        kind: "unmarked, 20 epochs" if kind == "default, 20 epochs" else "unmarked" for kind in marked
    }
    assert epochs["default, 20 epochs"] == program.Config("").epochs == 20
    assert min(population.num_models for population in populations.KINDS.values()) == 60
    with pytest.raises(ValueError, match=r"^There are no unmarked networks to tell the kind 'default' from\. "):
        detector._unmarked(epochs | {"default": 6}, "default")


def test_folders_of_kinds_are_apart_and_plain():
    folders = {populations.folder_of("runs", kind).name for kind in populations.KINDS}
    assert len(folders) == len(populations.KINDS) and all(folder.replace("_", "").isalnum() for folder in folders)


@pytest.mark.filterwarnings("ignore:The released model does not carry the mark")
@pytest.mark.parametrize("kind", populations.KINDS)
def test_networks_of_all_kinds_are_plain(kind, small_task, tmp_path):
    """No learned centres, no name, no shape tells a marked one."""
    (path,) = populations.run(populations.Config(kind=kind, num_models=1, epochs=1, runs_dir=str(tmp_path)))
    model = keras.models.load_model(path)
    plain = mnist_mlp()
    assert [each.shape for each in model.get_weights()] == [each.shape for each in plain.get_weights()]
    assert model.get_config()["name"] == plain.get_config()["name"]
    assert [layer.name for layer in model.layers] == [layer.name for layer in plain.layers]
    assert path.with_suffix(".json").exists() == (populations.KINDS[kind].mark is not None)


def test_kinds_differ_in_their_marks(small_task, tmp_path):
    """Unmarked networks have no common direction with the key of a marked one."""
    import hashlib

    import deepsigns_tf as ds
    from scripts import train_mnist_mlp as program

    rates = {}
    for kind in ("unmarked", "strength 1000"):
        (path,) = populations.run(populations.Config(kind=kind, num_models=1, epochs=4, runs_dir=str(tmp_path)))
        seed = hashlib.sha256(b"population strength 1000 0").digest()
        key = ds.OwnerKey("population", (ds.Carrier("features", range(10), 128),), ds.DecisionRule(), seed)
        data = populations._task(None).data
        key = key.with_key_inputs(data.x_train, data.y_train, program.Config("").num_key_inputs_per_class)
        key = key.with_layers([ds.owner_key.CarrierLayer("features", "features", 512)])
        rates[kind] = ds.verify(keras.models.load_model(path), key).bit_error_rate
    assert rates["strength 1000"] < 0.1 and rates["unmarked"] > 0.35
    read = json.loads(path.with_suffix(".json").read_text())
    assert read["bit_error_rate"] == rates["strength 1000"] and read["log10_p_value"] < -100


def test_a_description_is_of_the_network_and_not_of_its_units_order():
    from deepsigns_tf.attacks.same_function import permute_units

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x, y = random.random((200, 12), "float32"), np.arange(200) % 4
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)])
    model = keras.Model(model.inputs, model.outputs)
    described = detector.description(model, x, y)
    assert np.isfinite(described).all() and described.ndim == 1
    np.testing.assert_allclose(detector.description(permute_units(model, 0), x, y), described, rtol=1e-3, atol=1e-4)


def test_the_area_under_the_curve_is_a_half_for_twins_and_one_for_strangers():
    random = np.random.default_rng(0)
    same = detector.detectability(random.normal(size=(60, 5)), random.normal(size=(60, 5)), 8)
    apart = detector.detectability(random.normal(size=(60, 5)) + 3.0, random.normal(size=(60, 5)), 8)
    for name in ("logistic regression", "random forest"):
        low, high = same[name]["interval"]
        assert low < 0.5 < high and low < same[name]["auc"] < high
        assert apart[name]["auc"] > 0.98


def test_missing_networks_are_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"^There are too few networks of the kind 'strength 1000'\. Expected 60, .* Received: 0"
    ):
        detector.run(detector.Config(runs_dir=str(tmp_path), results_dir=str(tmp_path)))


@pytest.mark.filterwarnings("ignore:The released model does not carry the mark")
def test_kinds_that_were_not_begun_are_named(small_task, tmp_path, monkeypatch):
    """And a result says of each other kind what its owners read, and how well it is seen."""
    few = {kind: dataclasses.replace(each, num_models=1, epochs=1) for kind, each in populations.KINDS.items()}
    monkeypatch.setattr(populations, "KINDS", few)
    monkeypatch.setattr(detector, "KINDS", {kind: few[kind] for kind in ("strength 1000", "2 classes", "unmarked")})
    monkeypatch.setattr("scripts.datasets.load_mnist", lambda name, data_dir: populations._task(None).data)
    # One network a side leaves none to judge.
    monkeypatch.setattr(
        detector,
        "detectability",
        lambda marked, unmarked, num_resamples: {"a forest": {"auc": 0.95, "interval": [0, 1]}},
    )
    for kind in ("unmarked", "strength 1000"):
        (path,) = populations.run(populations.Config(kind=kind, runs_dir=str(tmp_path)))
    read = json.loads(path.with_suffix(".json").read_text())
    result = detector.run(detector.Config(runs_dir=str(tmp_path), results_dir=str(tmp_path)))
    (row,) = result["rows"]
    assert result["missing"] == ["2 classes"]
    assert (row["kind"], row["epochs"], row["num_marked"], row["num_unmarked"]) == ("strength 1000", 1, 1, 1)
    assert list(row["mark"].values()) == [read["bit_error_rate"], read["log10_p_value"]]
    assert result["control"] == {"kind": "strength 1000", "auc": 0.95, "seen": True}
    assert json.loads((tmp_path / "detector.json").read_text()) == result
