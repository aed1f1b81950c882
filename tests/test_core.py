"""The whole road on a tiny network, on every backend: commit, mark, release, prove, refuse the controls."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.carriers import CarrierLayer

pytestmark = pytest.mark.any_backend

# Learned centres start at 0 and drag the activations after them: they need more steps and more strength.
HOW_TO_MARK = {
    "batch": ({"centres": "batch"}, 1e-2, {"batch_size": 64, "epochs": 10}),
    "learned": (
        {"centres": "learned", "strength": 10.0, "clustering_strength": 0.3},
        3e-2,
        {"batch_size": 16, "epochs": 20},
    ),
}


@pytest.fixture
def owner_key(blobs):
    """96 bits from a fixed seed: how fast a tiny network takes its bits depends on which they are."""
    carriers = (ds.Carrier("features", range(4), 24),)
    return ds.OwnerKey("ACME Vision", carriers, ds.DecisionRule(), bytes(32)).with_key_inputs(*blobs, num_per_class=16)


@pytest.mark.parametrize("centres", HOW_TO_MARK)
def test_a_released_mark_is_proved_and_its_controls_are_not(
    blobs, owner_key, build_mlp, compile_model, tmp_path, centres
):
    commitment = owner_key.commitment()
    settings, learning_rate, fit_settings = HOW_TO_MARK[centres]
    regularizer = ds.SignatureRegularizer(owner_key, "features", **settings)
    model = compile_model(build_mlp(regularizer, ds.WatermarkedModel), keras.optimizers.Adam(learning_rate))
    model.fit(*blobs, **fit_settings, verbose=0)
    evaluated = model.evaluate(*blobs, verbose=0, return_dict=True)
    assert set(evaluated) == {"loss", "accuracy", "features_signature_loss", "features_bit_error_rate"}
    assert evaluated["features_bit_error_rate"] == 0.0

    plain, released_key = ds.release(model, owner_key)
    plain.save(tmp_path / "model.keras")
    released_key.save(tmp_path / "owner.key")
    suspect = keras.models.load_model(tmp_path / "model.keras", compile=False)
    key = ds.OwnerKey.load(tmp_path / "owner.key")
    assert key.commitment() == commitment
    np.testing.assert_allclose(
        suspect.predict(blobs[0], verbose=0), model.predict(blobs[0], verbose=0), rtol=1e-6, atol=1e-6
    )
    # In evaluation the loss is the task's alone: the plain model has the same.
    plain_evaluated = compile_model(suspect).evaluate(*blobs, verbose=0, return_dict=True)
    assert plain_evaluated == {name: pytest.approx(evaluated[name], rel=1e-4) for name in ("loss", "accuracy")}

    verdict = ds.verify(suspect, key)
    assert verdict.marked and verdict.num_matches == verdict.num_bits == 96
    assert ds.verify(suspect, key, commitment=commitment).marked

    twin = compile_model(build_mlp())
    twin.fit(*blobs, batch_size=64, epochs=5, verbose=0)
    wrong_key = ds.OwnerKey.generate("ACME Vision", owner_key.carriers).with_key_inputs(*blobs, num_per_class=16)
    wrong_key = wrong_key.with_layers(key.layers)
    for model, claim in ((twin, key), (suspect, wrong_key)):
        # The looser level of a checked commitment is no gift either.
        assert not ds.verify(model, claim).marked
        assert not ds.verify(model, claim, commitment=claim.commitment()).marked


def test_a_model_that_never_trained_is_not_marked(owner_key, build_mlp):
    key = owner_key.with_layers([CarrierLayer("features", "hidden", 128)])
    verdict = ds.verify(build_mlp(), key, commitment=key.commitment())
    assert verdict.committed and not verdict.marked


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed here")
def test_importing_the_package_does_not_import_tensorflow_on_another_backend():
    program = "import sys, deepsigns_tf; sys.exit('tensorflow' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"KERAS_BACKEND": "jax"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
