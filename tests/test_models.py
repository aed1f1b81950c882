"""The example networks are the literature's."""

import keras
import numpy as np
import pytest

from models.mnist_mlp import FEATURES, mnist_mlp

pytestmark = pytest.mark.any_backend


def test_the_mnist_network_is_the_papers():
    model = mnist_mlp()
    assert model.count_params() == 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10 == 669_706
    assert model.input_shape == (None, 784) and model.output_shape == (None, 10)
    assert [layer.name for layer in model.layers] == [
        "pixels",
        "hidden",
        "hidden_dropout",
        "features",
        "features_dropout",
        "logits",
    ]
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.2, 0.2]
    activations = [layer.activation.__name__ for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert activations == ["relu", "relu", "linear"]
    assert model.name == "mnist_mlp"


def test_the_mnist_network_puts_out_finite_logits():
    logits = mnist_mlp().predict(np.random.default_rng(0).uniform(size=(3, 784)).astype("float32"), verbose=0)
    assert logits.shape == (3, 10) and np.isfinite(logits).all()


def test_the_mnist_network_is_built_with_the_given_class():
    calls = []

    def model_class(*args, **kwargs):
        calls.append(kwargs)
        return keras.Model(*args, **kwargs)

    model = mnist_mlp(model_class=model_class)
    assert calls == [{"name": "mnist_mlp"}] and model.name == "mnist_mlp"


@pytest.mark.parametrize("names", [(), (FEATURES,), ("hidden",), ("hidden", FEATURES)])
def test_the_mnist_networks_regularizers_go_on_the_layers_of_their_names(names):
    regularizers = {name: keras.regularizers.L2(0.1) for name in names}
    model = mnist_mlp(regularizers)
    found = {layer.name: layer.activity_regularizer for layer in model.layers if layer.activity_regularizer is not None}
    assert found == regularizers
