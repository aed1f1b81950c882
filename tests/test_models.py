"""The example networks are the literature's."""

import functools
import json
import math
import re

import keras
import numpy as np
import pytest

from models.cifar10_cnn import cifar10_cnn
from models.imdb_lstm import imdb_lstm
from models.mnist_mlp import mnist_mlp
from models.wide_resnet import wide_resnet

pytestmark = pytest.mark.any_backend


def images(random):
    return random.integers(0, 256, (3, 32, 32, 3)).astype("uint8")


def texts(random, lengths=(12, 5, 1), longest=12):
    tokens = random.integers(1, 50, (len(lengths), longest))
    return np.where(np.arange(longest) < np.array(lengths)[:, None], tokens, 0).astype("int32")


small_lstm = functools.partial(imdb_lstm, num_tokens=50, sequence_length=12)

# How to build it, its name, the layers that carry a mark, three examples, number of logits.
NETWORKS = {
    "mlp": (mnist_mlp, "mnist_mlp", ("hidden", "features"), lambda random: random.uniform(size=(3, 784)), 10),
    "cnn": (
        cifar10_cnn,
        "cifar10_cnn",
        ("conv_1", "conv_2", "conv_3", "conv_4", "conv_2_pooled", "conv_4_pooled", "features"),
        images,
        10,
    ),
    "wrn": (functools.partial(wide_resnet, 10, 1), "wide_resnet_10_1", ("middle", "features"), images, 10),
    "wrn of 7 classes": (
        functools.partial(wide_resnet, 16, 2, num_classes=7),
        "wide_resnet_16_2",
        ("middle", "features"),
        images,
        7,
    ),
    "lstm": (small_lstm, "imdb_lstm", ("pooled", "features"), texts, 2),
    "lstm in one direction": (
        functools.partial(small_lstm, bidirectional=False),
        "imdb_lstm",
        ("pooled", "features"),
        texts,
        2,
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


def regularized(model):
    return {layer.name: layer.activity_regularizer for layer in model.layers if layer.activity_regularizer is not None}


def trainable(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


# What all networks have in common


def test_a_network_has_a_name_and_fits_its_examples(network):
    build, name, _, examples, num_logits = network
    model = build()
    assert type(model) is type(keras.Model(model.inputs, model.outputs)) and model.name == name
    assert model.input_shape == (None, *examples(np.random.default_rng(0)).shape[1:])
    assert model.output_shape == (None, num_logits)
    # The programs copy weights from layer to layer by their names.
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names) and names[-1] == "logits"


def test_a_network_puts_out_finite_logits(network):
    build, _, _, examples, num_logits = network
    logits = keras.ops.convert_to_numpy(build()(examples(np.random.default_rng(0)), training=False))
    assert logits.shape == (3, num_logits) and np.isfinite(logits).all()
    # Neither all alike nor probabilities.
    assert np.ptp(logits[0]) > 0.0 and not np.allclose(logits.sum(axis=1), 1.0)


def test_a_networks_regularizers_go_on_the_layers_of_their_names_and_unknown_ones_nowhere(network):
    build, _, carriers, _, _ = network
    assert regularized(build()) == {}
    for names in [(name,) for name in carriers] + [carriers, ("no such layer", carriers[0])]:
        regularizers = {name: keras.regularizers.L2(0.1) for name in names}
        # L2 objects are equal only to themselves: no two carriers share or swap theirs.
        assert regularized(build(regularizers)) == {name: regularizers[name] for name in names if name in carriers}


def test_a_regularizer_changes_nothing_else_about_a_network(network):
    build, _, carriers, _, _ = network

    def config(model):
        layers = {layer.name: layer.get_config() for layer in model.layers}
        return {name: {**config, "activity_regularizer": None} for name, config in layers.items()}

    assert config(build({name: keras.regularizers.L2(0.1) for name in carriers})) == config(build())


def test_a_network_is_built_with_the_given_class(network):
    build, name, _, _, _ = network
    calls = []

    def model_class(inputs, outputs, **kwargs):
        calls.append(kwargs)
        return keras.Model(inputs, outputs, **kwargs)

    model = build(model_class=model_class)
    assert calls == [{"name": name}] and model.name == name


# The paper's networks


def test_the_mnist_network_is_the_papers():
    model = mnist_mlp()
    assert model.count_params() == 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10 == 669_706
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


def test_the_cifar_network_is_the_papers():
    """32C3-32C3-MP2-64C3-64C3-MP2-512-10; the second of two convolutions has no padding: 32, 30, 15, 15, 13, 6 pixels."""
    model = cifar10_cnn()
    convolutions = [(3, 32), (32, 32), (32, 64), (64, 64)]
    assert (
        model.count_params()
        == sum(9 * before * after + after for before, after in convolutions)
        + (6 * 6 * 64 * 512 + 512)
        + (512 * 10 + 10)
        == 1_250_858
    )
    kinds = [(type(layer).__name__, layer.output.shape[1:]) for layer in model.layers[2:]]
    assert kinds == [
        ("Conv2D", (32, 32, 32)),
        ("Conv2D", (30, 30, 32)),
        ("MaxPooling2D", (15, 15, 32)),
        ("Dropout", (15, 15, 32)),
        ("Conv2D", (15, 15, 64)),
        ("Conv2D", (13, 13, 64)),
        ("MaxPooling2D", (6, 6, 64)),
        ("Dropout", (6, 6, 64)),
        ("Flatten", (2304,)),
        ("Dense", (512,)),
        ("Dropout", (512,)),
        ("Dense", (10,)),
    ]
    for network, rates in ((model, [0.25, 0.25, 0.5]), (cifar10_cnn(dropout=0.1), [0.1, 0.1, 0.2])):
        assert [layer.rate for layer in network.layers if isinstance(layer, keras.layers.Dropout)] == rates
    activations = [layer.activation.__name__ for layer in model.layers if hasattr(layer, "activation")]
    assert activations == ["relu"] * 5 + ["linear"]


@pytest.mark.parametrize("build", [cifar10_cnn, functools.partial(wide_resnet, 10, 1)])
def test_pixels_are_brought_to_plus_and_minus_two(build):
    rescaling = build().get_layer("rescaled")
    scaled = keras.ops.convert_to_numpy(rescaling(np.array([0, 128, 255], "uint8")))
    np.testing.assert_allclose(scaled, [-2.0, 0.0, 127 / 64])


# Wide residual networks


def wide_resnet_size(depth, width):
    """Trainable parameters for 10 classes, from the architecture.

    With n blocks in each of the groups of 16 k, 32 k and 64 k channels, c of them in a group and b in the one before:
    3 x 3 x 3 x 16 in the first convolution; 9 b c + (2 n - 1) 9 c c in a group's convolutions; b c in its shortcut, unless b = c
    in the first; two numbers for each channel that a BatchNorm sees: b once and c (2 n - 1) times, and 64 k at the end.
    """
    n, k = (depth - 4) // 6, width
    size = 3 * 3 * 3 * 16 + 2 * 64 * k + (64 * k * 10 + 10)
    for before, channels in [(16, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k)]:
        size += 9 * before * channels + (2 * n - 1) * 9 * channels**2
        size += before * channels * (before != channels)
        size += 2 * before + 2 * channels * (2 * n - 1)
    return size


@pytest.mark.parametrize(
    ("depth", "width", "counted"),
    [
        (10, 1, 77_850),
        (16, 1, 175_066),
        (16, 2, 691_674),
        (16, 4, 2_748_890),
        # As other implementations count them.
        (22, 8, 17_158_106),
        (28, 10, 36_479_194),
        (40, 2, 2_243_546),
    ],
)
def test_a_wide_residual_network_has_the_literatures_size(depth, width, counted):
    model = wide_resnet(depth, width)
    assert trainable(model) == wide_resnet_size(depth, width) == counted
    # BatchNorm keeps as many running means and variances as it trains scales and offsets.
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert model.count_params() - trainable(model) == sum(2 * norm.input.shape[-1] for norm in norms)


@pytest.mark.parametrize("depth", [-2, 0, 4, 9, 11, 12, 15, 17, 20, 27])
def test_a_depth_that_is_not_6_n_plus_4_is_refused(depth):
    with pytest.raises(ValueError) as error:
        wide_resnet(depth, 1)
    assert str(error.value) == (f"Invalid value for argument `depth`. Expected 10, 16, 22, ... Received: depth={depth}")


@pytest.mark.parametrize("width", [0, -1])
def test_a_width_without_channels_is_refused(width):
    with pytest.raises(ValueError) as error:
        wide_resnet(10, width)
    assert str(error.value) == (
        f"Invalid value for argument `width`. Expected an integer >= 1. Received: width={width}"
    )


def sources(model):
    """Layer -> the layers whose outputs it takes, in their order."""
    return {
        layer["name"]: re.findall(r'"keras_history": \["(\w+)"', json.dumps(layer["inbound_nodes"]))
        for layer in json.loads(model.to_json())["config"]["layers"]
    }


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_a_blocks_convolutions_follow_their_activations_and_its_sum_nothing_follows(depth, width):
    """Pre-activation: BatchNorm, ReLU, convolution, twice; then the sum with the input, or with its 1 x 1 convolution."""
    found = sources(wide_resnet(depth, width))
    expected = {"pixels": [], "rescaled": ["pixels"], "first": ["rescaled"]}
    last = "first"
    for group in (1, 2, 3):
        for block in range(1, (depth - 4) // 6 + 1):
            name = f"block_{group}_{block}"
            entered = "middle" if (group, block) == (3, 1) else f"{name}_entered"
            # The paper's first group widens only if there is more than one of its 16 channels.
            widens = block == 1 and (group > 1 or width > 1)
            expected |= {
                f"{entered}_norm": [last],
                entered: [f"{entered}_norm"],
                f"{name}_conv_1": [entered],
                f"{name}_between_norm": [f"{name}_conv_1"],
                f"{name}_between": [f"{name}_between_norm"],
                f"{name}_conv_2": [f"{name}_between"],
                f"{name}_sum": [f"{name}_conv_2", f"{name}_shortcut" if widens else last],
            }
            if widens:
                expected[f"{name}_shortcut"] = [entered]
            last = f"{name}_sum"
    expected |= {
        "features_norm": [last],
        "features": ["features_norm"],
        "pooled": ["features"],
        "logits": ["pooled"],
    }
    assert found == expected


def test_a_wide_residual_networks_layers_are_the_literatures():
    model = wide_resnet(16, 2, l2=3e-4)
    found = sources(model)
    kinds = {layer.name: type(layer).__name__ for layer in model.layers}
    activations = [layer for layer in model.layers if isinstance(layer, keras.layers.Activation)]
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert (len(activations), len(convolutions), len(norms)) == (13, 16, 13)
    for layer in activations:
        assert layer.activation.__name__ == "relu"
        assert [kinds[source] for source in found[layer.name]] == ["BatchNormalization"]
    for layer in convolutions:
        assert not layer.use_bias and layer.activation.__name__ == "linear" and layer.padding == "same"
        assert type(layer.kernel_initializer).__name__ == "HeNormal"
        assert layer.kernel_size == ((1, 1) if layer.name.endswith("_shortcut") else (3, 3))
        first_of_group = layer.name in {
            f"block_{group}_1_{kind}" for group in (2, 3) for kind in ("conv_1", "shortcut")
        }
        assert layer.strides == ((2, 2) if first_of_group else (1, 1))
    # L2 on all kernels, that of the classifier included, and on nothing else.
    decayed = [layer for layer in model.layers if getattr(layer, "kernel_regularizer", None) is not None]
    assert decayed == [*convolutions, model.get_layer("logits")]
    assert {round(float(keras.ops.convert_to_numpy(layer.kernel_regularizer.l2)), 9) for layer in decayed} == {3e-4}
    assert model.get_layer("logits").bias_regularizer is None
    assert all(norm.gamma_regularizer is None and norm.beta_regularizer is None for norm in norms)
    assert model.get_layer("middle").output.shape == (None, 16, 16, 64)
    assert model.get_layer("features").output.shape == (None, 8, 8, 128)


def test_he_initialization_keeps_the_scale_of_the_kernels():
    """Standard deviation sqrt(2 / fan-in)."""
    kernel = keras.ops.convert_to_numpy(wide_resnet(10, 4).get_layer("block_3_1_conv_2").kernel)
    assert kernel.shape == (3, 3, 256, 256)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)


def test_weight_decay_adds_the_squared_kernels_to_the_loss():
    model = wide_resnet(10, 1, l2=1e-3)
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]
    model(images(np.random.default_rng(0)))
    added = sum(float(keras.ops.convert_to_numpy(loss)) for loss in model.losses)
    assert added == pytest.approx(1e-3 * sum(np.sum(kernel.astype("float64") ** 2) for kernel in kernels), rel=1e-5)
    assert wide_resnet(10, 1, l2=0.0).losses == []


def test_logits_stay_in_single_precision_under_a_half_precision_policy(network):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network[0]()
        assert model.get_layer("features").compute_dtype == "bfloat16"
        assert model.get_layer("logits").compute_dtype == "float32"
    finally:
        keras.config.set_dtype_policy(policy)


# The recurrent network


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_review_network_has_the_size_that_its_layers_give(bidirectional):
    model = imdb_lstm(num_tokens=300, sequence_length=7, bidirectional=bidirectional)
    directions = 1 + bidirectional
    # Four gates, each with a weight for 128 inputs, for 64 states, and a bias, for each of 64 units.
    lstm = directions * 4 * 64 * (128 + 64 + 1)
    pooled = 64 * directions
    assert model.count_params() == 300 * 128 + lstm + (pooled * 512 + 512) + (512 * 2 + 2)
    assert model.get_layer("pooled").output.shape == (None, pooled)
    assert model.get_layer("features").activation.__name__ == "relu"
    # The shown defaults.
    assert imdb_lstm().count_params() == 2_725_890
    assert imdb_lstm().input_shape == (None, 400) and imdb_lstm().get_layer("embedded").input_dim == 20_000


def outputs(model, tokens):
    """`{"pooled": ..., "logits": ..., "sequence": ...}` in inference mode."""
    (sequence,) = [layer.output for layer in model.layers if layer.name in ("lstm", "bilstm")]
    inner = keras.Model(model.input, {"sequence": sequence, "pooled": model.get_layer("pooled").output})
    answers = {**inner(tokens, training=False), "logits": model(tokens, training=False)}
    return {name: keras.ops.convert_to_numpy(answer) for name, answer in answers.items()}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_that_is_appended_changes_no_answer(bidirectional):
    short = imdb_lstm(num_tokens=50, sequence_length=9, bidirectional=bidirectional)
    long = imdb_lstm(num_tokens=50, sequence_length=21, bidirectional=bidirectional)
    long.set_weights(short.get_weights())
    tokens = texts(np.random.default_rng(1), (9, 4, 1), 9)
    padded = np.pad(tokens, ((0, 0), (0, 12)))
    one, other = outputs(short, tokens), outputs(long, padded)
    np.testing.assert_allclose(one["pooled"], other["pooled"], atol=1e-6)
    np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-6)
    # The control: a token in place of the padding does change it.
    padded[:, -1] = 7
    assert np.abs(outputs(long, padded)["logits"] - one["logits"]).max() > 1e-4


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_pooling_is_the_mean_over_the_steps_that_are_no_padding(bidirectional):
    model = small_lstm(bidirectional=bidirectional)
    found = outputs(model, texts(np.random.default_rng(2)))
    for row, length in enumerate((12, 5, 1)):
        mean = found["sequence"][row, :length].astype("float64").mean(axis=0)
        np.testing.assert_allclose(found["pooled"][row], mean, atol=1e-6)
    # The control: a mean over all steps would be another.
    assert np.abs(found["sequence"][1].mean(axis=0) - found["pooled"][1]).max() > 1e-3
