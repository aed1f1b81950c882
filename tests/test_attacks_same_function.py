"""Networks rebuilt with other units compute the same; graphs that cannot be treated are refused by name."""

import keras
import numpy as np
import pytest

from deepsigns_tf.alignment import decorrelate
from deepsigns_tf.attacks.division import divide_layers
from deepsigns_tf.attacks.graphs import as_functional, in_float32
from deepsigns_tf.attacks.hiding import add_decoy_units, add_lookalike_units
from deepsigns_tf.attacks.new_units import NewUnits, with_units
from deepsigns_tf.attacks.same_function import (
    add_cancelling_units,
    add_idle_units,
    clone_units,
    fold_batch_norm,
    permute_units,
    rename_layers,
    rescale_units,
    split_units,
    turn_units,
)
from deepsigns_tf.attacks.units import unit_groups
from models.cifar10_cnn import cifar10_cnn
from models.imdb_lstm import imdb_lstm
from models.mnist_mlp import mnist_mlp
from models.wide_resnet import wide_resnet

RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
RANDOM = np.random.default_rng(0)


def _branches():
    """Maps added, joined, flattened and pooled; BatchNorm with and without what it can leave out; other activations."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, padding="same", activation="leaky_relu", name="first")(inputs)
    y = keras.layers.Conv2D(6, 3, padding="same", name="second")(x)
    y = keras.layers.BatchNormalization(center=False, name="norm")(y)
    x = keras.layers.Add()([x, keras.layers.ReLU()(y)])
    z = keras.layers.Conv2D(4, 3, padding="same", activation="tanh", name="third")(x)
    z = keras.layers.BatchNormalization(scale=False)(z)
    x = keras.layers.Concatenate()([x, z])
    flat = keras.layers.Flatten()(keras.layers.MaxPooling2D(2)(x))
    flat = keras.layers.Dense(7, "relu", name="hidden")(flat)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {
        "one": keras.layers.Dense(2, "softmax")(keras.layers.Concatenate()([flat, pooled])),
        "two": keras.layers.Dense(1, name="put_out")(flat),
    }
    return keras.Model(inputs, outputs)


def _recurrent():
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 5, mask_zero=True, name="embedding")(inputs)
    x = keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True), merge_mode="sum", name="sum")(x)
    x = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True), name="both")(x)
    x = keras.layers.SimpleRNN(5, return_sequences=True, name="simple")(x)
    x = keras.layers.GRU(4, reset_after=False, name="gru")(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def _joined_twice():
    """One unit that is joined to itself, through two ways of pooling, and raw inputs beside it."""
    inputs, others = keras.Input((8, 8, 3)), keras.Input((4,))
    maps = keras.layers.Conv2D(6, 3, activation="relu", name="maps")(inputs)
    pooled = [keras.layers.GlobalAveragePooling2D()(maps), keras.layers.GlobalMaxPooling2D()(maps)]
    beside = keras.layers.Dense(5, "relu", name="beside")(others)
    x = keras.layers.Concatenate()([*pooled, others, beside, others])
    return keras.Model([inputs, others], keras.layers.Dense(2)(keras.layers.Dense(9, "relu", name="hidden")(x)))


def _nested():
    """A backbone with a model of its own in it, and a sequential head."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, activation="relu", name="maps")(inputs)
    block = keras.Sequential([keras.layers.Conv2D(5, 3, activation="relu", name="maps")], name="block")
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(block(x))
    backbone = keras.Model(inputs, x, name="backbone")
    head = keras.Sequential([keras.layers.Dense(7, "relu", name="hidden"), keras.layers.Dense(2)], name="head")
    outer = keras.Input((8, 8, 3), name="pixels")
    return keras.Model(outer, head(backbone(outer)))


NETWORKS = {
    "mlp": (mnist_mlp, RANDOM.random((20, 784))),
    "cnn": (cifar10_cnn, RANDOM.integers(0, 256, (20, 32, 32, 3))),
    "wrn": (lambda: wide_resnet(16, 1), RANDOM.integers(0, 256, (20, 32, 32, 3))),
    "lstm": (lambda: imdb_lstm(num_tokens=50, sequence_length=12), RANDOM.integers(0, 50, (20, 12))),
    "branches": (_branches, RANDOM.normal(size=(20, 8, 8, 3))),
    "recurrent": (_recurrent, RANDOM.integers(0, 20, (20, 6))),
    "nested": (_nested, RANDOM.normal(size=(20, 8, 8, 3))),
    "joined twice": (_joined_twice, [RANDOM.normal(size=(20, 8, 8, 3)), RANDOM.normal(size=(20, 4))]),
}


@pytest.fixture(scope="module", params=NETWORKS, ids=NETWORKS)
def network(request):
    """A network with weights that nothing is symmetric in, inputs, and what it answers."""
    build, inputs = NETWORKS[request.param]
    keras.utils.set_random_seed(1)
    model = build()
    random = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([value * random.uniform(0.5, 2, value.shape) + 0.1 for value in layer.get_weights()])
        else:
            layer.set_weights(
                [v + random.normal(scale=0.05, size=v.shape) if v.ndim == 1 else v for v in layer.get_weights()]
            )
    kinds = [keras.backend.standardize_dtype(each.dtype) for each in model.inputs]
    arrays = inputs if isinstance(inputs, list) else [inputs]
    inputs = [each.astype(kind) for each, kind in zip(arrays, kinds, strict=True)]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    return model, inputs, _answers(model, inputs)


def _answers(model, inputs):
    return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(model(inputs, training=False))]


def _assert_same(model, inputs, answers):
    for found, expected in zip(_answers(model, inputs), answers, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


ATTACKS = {
    "permuted": lambda model: permute_units(model, seed=3),
    "rescaled": lambda model: rescale_units(model, seed=3),
    "turned": lambda model: turn_units(model, seed=3),
    "split": lambda model: split_units(model, seed=3, fraction=0.3),
    "cloned": lambda model: clone_units(model, seed=3, fraction=0.3),
    "idle": lambda model: add_idle_units(model, seed=3, fraction=0.3),
    "cancelling": lambda model: add_cancelling_units(model, seed=3, fraction=0.3),
    "renamed": lambda model: rename_layers(model, seed=3),
    "all": lambda model: rename_layers(
        add_cancelling_units(split_units(rescale_units(permute_units(model, 3), 4), 5, 0.2), 6, 0.2), 7
    ),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_function_stays_the_same_and_the_weights_do_not(network, attack):
    model, inputs, answers = network
    if attack is ATTACKS["turned"] and not any(group.odd for group in unit_groups(model)):
        with pytest.raises(
            ValueError, match=r"^This model has no units that can be changed in this way\. Expected .*\. Received: "
        ):
            attack(model)
        return
    before = [value.copy() for value in model.get_weights()]
    attacked = attack(model)
    _assert_same(attacked, inputs, answers)
    for value, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, other)
    model = as_functional(model)
    names, others = ({layer.name for layer in each.layers} for each in (model, attacked))
    if attack in (ATTACKS["renamed"], ATTACKS["all"]):
        assert not names & others
        return
    assert names == others
    changed = {
        layer.name
        for layer in model.layers
        if any(
            a.shape != b.shape or (a != b).any()
            for a, b in zip(layer.get_weights(), attacked.get_layer(layer.name).get_weights(), strict=True)
        )
    }
    # The last layer takes in other units, all others make others; what is not homogeneous cannot be rescaled.
    expected = {layer.name for layer in model.layers if layer.get_weights()}
    if attack is ATTACKS["rescaled"]:
        expected = {name for group in unit_groups(model) if group.scalable for name in group.layers}
    if attack is ATTACKS["turned"]:
        expected = {name.split("/")[0] for group in unit_groups(model) if group.odd for name in group.layers}
    assert expected <= changed


# What makes units and is not divided: those that meet others, go into a recurrent layer, or come from one.
WHOLE = {"lstm": {"embedded", "bilstm/forward", "bilstm/backward"}, "joined twice": {"beside", "maps"}}


def test_divided_layers_compute_the_same_side_by_side(network, request):
    model, inputs, answers = network
    name_of_network = request.node.callspec.params["network"]
    makers = {name: group.size for group in unit_groups(model) for name in group.layers}
    before = [value.copy() for value in model.get_weights()]
    if name_of_network in ("branches", "recurrent"):
        with pytest.raises(
            ValueError, match=r"^This model has no layers that can be divided\. Expected .*\. Received: "
        ):
            divide_layers(model, seed=3, num_parts=3)
        return
    divided = divide_layers(model, seed=3, num_parts=3)
    _assert_same(divided, inputs, answers)
    for value, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, other)
    assert divided.count_params() == model.count_params()
    left, whole = {layer.name for layer in divided.layers}, WHOLE.get(name_of_network, set())
    assert {name for name in makers if name.split("/")[0] in left} == whole
    for name, size in makers.items():
        if name not in whole:
            parts = [layer for layer in divided.layers if layer.name.startswith(f"{name}_part_")]
            widths = [layer.output.shape[-1] for layer in parts if layer.name.endswith("_0")]
            assert sum(widths) == size and max(widths) <= -(-size // 3)


def test_the_layers_to_be_divided_can_be_named():
    model = mnist_mlp()
    names = {layer.name for layer in divide_layers(model, seed=0, num_parts=2, layers=["features"]).layers}
    assert "hidden" in names and "features" not in names and {"features_part_0_0", "features_part_1_0"} <= names
    # Others are dealt out with another seed.
    kernels = [
        divide_layers(model, seed, 2, ["features"]).get_layer("features_part_0_0").get_weights()[0] for seed in range(2)
    ]
    assert not np.array_equal(*kernels)
    with pytest.raises(ValueError, match=r"^This model has no layers that can be divided\. Expected .*\. Received: "):
        divide_layers(model, seed=0, layers=["logits"])
    for num_parts in (1, 513):
        with pytest.raises(ValueError, match=r"^Invalid value for argument `num_parts`\. Expected .*\. Received: "):
            divide_layers(model, seed=0, num_parts=num_parts)


def test_layers_in_another_order_in_the_config_are_no_attack(network):
    """Keras orders them by the graph when it loads them."""
    model, inputs, answers = network
    model = as_functional(model)
    config = model.get_config()
    np.random.default_rng(0).shuffle(config["layers"])
    copy = keras.Model.from_config(config)
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    copy.set_weights(model.get_weights())
    _assert_same(copy, inputs, answers)


def _units(attack, network):
    """Units of each layer that the attack leaves."""
    return {name: group.size for group in unit_groups(attack(network)) for name in group.layers}


def test_as_many_units_are_added_as_was_asked_for():
    keras.utils.set_random_seed(0)
    model = _recurrent()
    plain = _units(lambda model: model, model)
    assert plain == {
        **{"embedding": 5, "sum/forward": 4, "sum/backward": 4, "both/forward": 3, "both/backward": 3},
        **{"simple": 5, "gru": 4},
    }
    for attack, per_unit in ((split_units, 1), (clone_units, 1), (add_idle_units, 1), (add_cancelling_units, 2)):
        widened = _units(lambda model, attack=attack: attack(model, seed=0, fraction=0.5), model)
        assert widened == {name: size + per_unit * round(0.5 * size) for name, size in plain.items()}
        assert _units(lambda model, attack=attack: attack(model, seed=0, fraction=0.01), model)["gru"] == 4 + per_unit


def test_idle_units_are_taken_in_by_nothing_and_split_ones_share_their_weight():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(3)])
    kernel, (_, _, outgoing, _) = model.get_weights()[0], model.get_weights()
    for attack, check in {
        add_idle_units: lambda new: (new[4:] == 0).all() and np.array_equal(new[:4], outgoing),
        add_cancelling_units: lambda new: np.array_equal(new[4::2], -new[5::2]) and (new[4:] != 0).all(),
        split_units: lambda new: np.allclose(new[:4].sum(0) + new[4:].sum(0), outgoing.sum(0)),
        clone_units: lambda new: (
            np.isclose(new[4:], outgoing / 2, atol=1e-7).all(axis=1).sum() <= 4
            and np.allclose(np.sort(new[4:], 0), np.sort(new[:4], 0))
        ),
    }.items():
        attacked = attack(model, seed=1, fraction=1.0).get_weights()
        assert check(attacked[2]), attack.__name__
        np.testing.assert_array_equal(attacked[0][:, :4], kernel)
        assert (attacked[0][:, 4:].std(axis=0) > 0).all()


def test_the_seed_decides():
    model = mnist_mlp()
    same, again, other = (permute_units(model, seed).get_weights()[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(same, again)
    assert (same != other).any() and np.array_equal(np.sort(same.ravel()), np.sort(model.get_weights()[0].ravel()))


def test_units_that_are_added_belong_together():
    groups = {group.layers: group for group in unit_groups(wide_resnet(16, 1))}
    stream = ("first", "block_1_1_conv_2", "block_1_2_conv_2")
    assert stream in groups and groups[stream].size == 16 and groups[stream].scalable
    assert ("block_1_1_conv_1",) in groups and not any("logits" in layers for layers in groups)
    assert [group.scalable for group in unit_groups(_branches())] == [True, False, True]
    odd = {name for group in unit_groups(_recurrent()) if group.odd for name in group.layers}
    assert odd == {"embedding", "sum/forward", "sum/backward", "both/forward", "both/backward", "simple", "gru"}
    # A product of two units, the largest of several, and what is cut off at 0 do not change their sign with them.
    inputs = keras.Input((6, 4))
    halves = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True), merge_mode="mul", name="halves")
    x = keras.layers.Dense(5, "tanh", name="odd")(keras.layers.GlobalAveragePooling1D()(halves(inputs)))
    x = keras.layers.Dense(4, "relu", name="cut")(x)
    y = keras.layers.GlobalMaxPooling1D()(keras.layers.Conv1D(3, 2, name="largest")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()([x, y])))
    assert [group.layers for group in unit_groups(model) if group.odd] == [("odd",)]
    assert unit_groups(_branches())[0].layers == ("first", "second")


def test_outputs_are_left_alone():
    """Also where a hidden layer's units are put out."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, "relu")(inputs)
    model = keras.Model(inputs, [hidden, keras.layers.Dense(2)(hidden)])
    assert unit_groups(model) == []
    with pytest.raises(
        ValueError, match="This model has no units that can be changed in this way. Expected hidden layers"
    ):
        permute_units(model, seed=0)


# BatchNorm


def test_every_norm_that_follows_a_layer_without_activation_is_folded():
    keras.utils.set_random_seed(0)
    for build in (lambda: wide_resnet(10, 1), _branches):
        model = build()
        random = np.random.default_rng(0)
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        for norm in norms:
            norm.set_weights([random.uniform(0.5, 2, value.shape) for value in norm.get_weights()])
        folded = fold_batch_norm(model)
        gone = {layer.name for layer in model.layers} - {layer.name for layer in folded.layers}
        # Those before a sum or after an activation stay.
        assert gone == (
            {f"block_{number}_1_between_norm" for number in (1, 2, 3)} if build is not _branches else {"norm"}
        )
        inputs = random.uniform(0, 2, (10, *model.input_shape[1:])).astype("float32")
        _assert_same(folded, inputs, _answers(model, inputs))
        with pytest.raises(ValueError, match="No BatchNorm can be folded. Expected "):
            fold_batch_norm(folded)


@pytest.mark.parametrize("odd", ["a maker called twice", "a norm of another axis"])
def test_batch_norms_that_cannot_be_folded_are_left(odd):
    inputs = keras.Input((4, 4))
    shared = keras.layers.Dense(4)
    if odd == "a maker called twice":
        x = keras.layers.Add()([keras.layers.BatchNormalization()(shared(inputs)), shared(inputs)])
    else:
        x = keras.layers.BatchNormalization(axis=1)(shared(inputs))
    with pytest.raises(ValueError, match="No BatchNorm can be folded"):
        fold_batch_norm(keras.Model(inputs, x))


# What cannot be treated


def _with(layer, units=4, shape=(6, 3)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(2)(layer(keras.layers.Dense(units, name="before")(inputs))))


def _first(layer):
    inputs = keras.Input((6, 3))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(5, name="after")(layer(inputs))))


class _OwnDense(keras.layers.Dense):
    def call(self, inputs, training=None):
        return keras.ops.flip(super().call(inputs), axis=-1)


def _given_state():
    inputs = keras.Input((6, 3))
    first = keras.layers.GlobalAveragePooling1D()(inputs)
    x = keras.layers.GRU(4, name="odd")(inputs, initial_state=keras.layers.Dense(4)(first))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


@pytest.mark.parametrize(
    ("build", "name", "why"),
    [
        (lambda: _with(keras.layers.LayerNormalization(name="odd")), "odd, a LayerNormalization", "is not known"),
        (lambda: _with(keras.layers.Dense(4, "softmax", name="odd")), "odd, a Dense", "its activation is softmax"),
        (lambda: _with(keras.layers.Permute((2, 1), name="odd")), "odd, a Permute", "is not known"),
        (
            lambda: _with(keras.layers.BatchNormalization(1, name="odd")),
            "odd, a BatchNormalization",
            "not normalize the last axis",
        ),
        (lambda: _with(keras.layers.Conv1D(4, 2, groups=2, name="odd")), "odd, a Conv1D", "in groups"),
        (lambda: _with(keras.layers.Dense(4, lora_rank=2, name="odd")), "odd, a Dense", "weights of unknown use"),
        (lambda: _with(keras.layers.Dense(4, dtype="int8_from_float32", name="odd")), "odd, a Dense", "unknown use"),
        (lambda: _with(_OwnDense(4, name="odd")), "odd, a _OwnDense", "is not known"),
        (
            lambda: _first(keras.layers.EinsumDense("abc,cd->abd", (6, 4), name="odd")),
            "odd, a EinsumDense",
            "is not known",
        ),
        (_given_state, "odd, a GRU", "takes in 2 tensors"),
        (lambda: _with(keras.layers.LSTM(4, return_state=True, name="odd")), "odd, a LSTM", "3 outputs"),
    ],
)
def test_a_layer_that_cannot_be_treated_is_named(build, name, why):
    if "LSTM" in name:
        inputs = keras.Input((6, 3))
        sequence, *_ = keras.layers.LSTM(4, return_state=True, name="odd")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2)(sequence))
    else:
        model = build()
    with pytest.raises(
        ValueError, match=rf"^The units of this graph cannot be changed. Expected .* Received: {name}; .*{why}"
    ):
        permute_units(model, seed=0)


def test_a_layer_that_is_called_twice_is_named():
    inputs = keras.Input((3,))
    shared = keras.layers.Dense(3, name="shared")
    model = keras.Model(inputs, keras.layers.Dense(2)(shared(shared(inputs))))
    with pytest.raises(ValueError, match="Received: shared, a Dense; it is called more than once"):
        permute_units(model, seed=0)


def test_sums_with_the_inputs_are_refused():
    inputs = keras.Input((3,))
    x = keras.layers.Add(name="sum")([inputs, keras.layers.Dense(3)(inputs)])
    with pytest.raises(ValueError, match="Received: sum, a Add; it adds units to something else"):
        permute_units(keras.Model(inputs, keras.layers.Dense(2)(x)), seed=0)


def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"The graph of this model is not known. Expected .* Received: a Subclassed"):
        rename_layers(Subclassed(), seed=0)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda model: split_units(model, seed=0, fraction=0.0),
        lambda model: split_units(model, seed=0, fraction=1.5),
        lambda model: add_idle_units(model, seed=0, fraction=0.0),
    ],
)
def test_numbers_out_of_range_are_refused(attempt):
    with pytest.raises(ValueError, match=r"^Invalid value for argument `\w+`. Expected "):
        attempt(mnist_mlp())


@pytest.mark.parametrize(
    ("build", "draw"),
    [
        (mnist_mlp, lambda: RANDOM.random((16, 784))),
        (cifar10_cnn, lambda: RANDOM.integers(256, size=(16, 32, 32, 3))),
        (lambda: wide_resnet(10, 1), lambda: RANDOM.integers(256, size=(16, 32, 32, 3))),
        (lambda: imdb_lstm(num_tokens=100, sequence_length=20), lambda: RANDOM.integers(100, size=(16, 20))),
    ],
)
def test_in_single_precision_half_precision_models_compute_the_same(build, draw):
    """What rounding adds is many times what an equal function may."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    x, single = draw().astype("float32"), in_float32(model)
    assert {layer.compute_dtype for layer in single.layers} == {"float32"} and in_float32(single) is single
    for one, other in zip(model.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    attacked = in_float32(permute_units(model, 1)).predict(x, verbose=0)
    outputs = single.predict(x, verbose=0)
    np.testing.assert_allclose(attacked, outputs, atol=1e-4)
    rounded = np.asarray(model.predict(x, verbose=0), np.float32)
    assert np.abs(rounded - outputs).max() > 10 * np.abs(attacked - outputs).max()


def test_units_that_are_not_homogeneous_are_not_scaled():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)])
    (group,) = unit_groups(model)
    with pytest.raises(ValueError, match="These units cannot be rescaled. Expected "):
        with_units(model, {group: NewUnits(np.arange(3), scales=np.full(3, 2.0))})
    with pytest.raises(ValueError, match="for rescaling, with ReLU or no activation"):
        rescale_units(model, seed=0)


# Look-alikes


def _clusters(num_classes=3):
    """Images in as many clusters, and their labels."""
    y = np.arange(240) % num_classes
    return (RANDOM.normal(size=(num_classes, 8, 8, 3))[y] + RANDOM.normal(size=(240, 8, 8, 3))).astype("float32"), y


def _outputs_of(model, layer, x):
    return np.asarray(keras.Model(model.input, model.get_layer(layer).output)(x))


def _means(outputs, y):
    """Of each class."""
    return np.stack([outputs[y == label].mean(axis=0) for label in np.unique(y)])


@pytest.mark.parametrize("layers", [["hidden"], ["first", "second"], ["third"], ["first", "second", "third", "hidden"]])
def test_lookalikes_cancel_each_other(layers):
    keras.utils.set_random_seed(0)
    model, (x, y) = _branches(), _clusters()
    before = [each.copy() for each in model.get_weights()]
    wider = add_lookalike_units(model, x, y, 3, layers, pairs_per_unit=2, distance=2.0)
    expected, found = model.predict(x, verbose=0), wider.predict(x, verbose=0)
    for name, outputs in expected.items():
        np.testing.assert_allclose(found[name], outputs, atol=1e-4)
    for layer in layers:
        assert wider.get_layer(layer).output.shape[-1] == 5 * model.get_layer(layer).output.shape[-1]
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


def test_a_lookalike_varies_as_its_unit_does_and_means_something_else():
    """Before the activation, of a layer whose inputs hold clusters."""
    keras.utils.set_random_seed(0)
    x, y = _clusters()
    x = x.reshape(240, -1)
    inputs = keras.Input((192,))
    hidden = keras.layers.Dense(6, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    wider = add_lookalike_units(model, x, y, 1, ["hidden"], distance=1.0)
    outputs = _outputs_of(wider, "hidden", x)
    units, pairs = outputs[:, :6], outputs[:, 6:].reshape(240, 6, 2)
    np.testing.assert_array_equal(pairs[..., 0], pairs[..., 1])
    copies = pairs[..., 0]
    means = np.stack([_means(each, y) for each in (units, copies)])
    moved = (means[1] - means[0]).std(axis=0)
    np.testing.assert_allclose(moved, means[0].std(axis=0), rtol=0.05)
    within = [each - mean[y] for each, mean in zip((units, copies), means, strict=True)]
    for unit in range(6):
        assert np.corrcoef(within[0][:, unit], within[1][:, unit])[0, 1] > 0.9
    # The control: a step of the same size that does not know the clusters changes what varies more than what the classes mean.
    random = np.random.default_rng(0).normal(size=(192, 6))
    asunder = x @ random
    changed = units + asunder * (means[0].std(axis=0) / _means(asunder, y).std(axis=0))
    spread = changed - _means(changed, y)[y]
    blind = [np.corrcoef(within[0][:, unit], spread[:, unit])[0, 1] for unit in range(6)]
    assert np.mean(blind) < np.mean([np.corrcoef(within[0][:, u], within[1][:, u])[0, 1] for u in range(6)])


def test_a_decoy_does_what_a_unit_alone_does_and_means_something_else():
    keras.utils.set_random_seed(0)
    random, y = np.random.default_rng(0), np.arange(240) % 3
    x = (2.0 * random.normal(size=(3, 192))[y] + random.normal(size=(240, 192))).astype("float32")
    inputs = keras.Input((192,))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(6, "relu", name="hidden")(inputs)))
    apart = []
    for distance in (0.01, 3.0):
        wider = add_decoy_units(model, x, y, 1, ["hidden"], pairs_per_unit=2, distance=distance)
        np.testing.assert_allclose(wider(x), model(x), atol=1e-4)
        outputs = np.asarray(_outputs_of(wider, "hidden", x), np.float64)
        units, pairs = outputs[:, :6], outputs[:, 6:].reshape(240, 6, 2, 2)
        np.testing.assert_array_equal(pairs[..., 0], pairs[..., 1])
        assert (pairs > 0).all() and not np.array_equal(pairs[:, :, 0], pairs[:, :, 1])
        within = units - _means(units, y)[y]
        alone = decorrelate(within / np.linalg.norm(within, axis=0))
        decoys = [(unit, decoy) for unit in range(6) for decoy in pairs[:, unit, :, 0].T]
        own = [decoy - _means(decoy, y)[y] for _, decoy in decoys]
        # More like what their unit does alone than like what any other does.
        similar = np.array([[abs(np.corrcoef(each, alone[:, unit])[0, 1]) for unit in range(6)] for each in own])
        assert (similar.argmax(axis=1) == [unit for unit, _ in decoys]).all() and similar.max(axis=1).min() > 0.7
        apart.append(np.array([_means(decoy, y) / each.std() for (_, decoy), each in zip(decoys, own, strict=True)]))
    # The step moves class means by three times as much as a decoy varies within them.
    assert np.median((apart[1] - apart[0]).std(axis=1)) == pytest.approx(3.0, rel=0.2)


def test_decoys_of_layers_without_a_bias_or_with_others_added_are_refused():
    x, y = _clusters()
    for layer in ("first", "third"):
        model = _branches()
        if layer == "third":
            config = model.get_config()
            next(each for each in config["layers"] if each["name"] == layer)["config"]["use_bias"] = False
            model = keras.Model.from_config(config)
        with pytest.raises(ValueError, match=r"^These layers' units cannot get decoys\. Expected .*\. Received: "):
            add_decoy_units(model, x, y, 0, [layer])


def test_of_layers_whose_outputs_are_added_the_last_one_steps_aside_after_those_before_it():
    """Else what it takes in would change after it was measured."""
    keras.utils.set_random_seed(0)
    x, y = _clusters()
    x = x.reshape(240, -1)
    inputs = keras.Input((192,))
    first = keras.layers.Dense(6, name="a")(inputs)
    last = keras.layers.Dense(6, name="c")(keras.layers.Dense(5, "relu", name="b")(first))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Add()([first, last])))
    wider = add_lookalike_units(model, x, y, 1, ["b", "c"], distance=1.0)
    means = _means(_outputs_of(wider, "c", x), y)
    moved = (means[:, 6::2] - means[:, :6]).std(axis=0)
    np.testing.assert_allclose(moved, means[:, :6].std(axis=0), rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": ["norm"]}, "units cannot be hidden. Expected names of Dense layers and convolutions"),
        ({"layers": ["none"]}, r"Received: layers=\['none'\]"),
        ({"layers": []}, r"Received: layers=\[\]"),
        ({"layers": ["hidden", "put_out"]}, r"What a model puts out .* Received: \['put_out'\] among"),
        ({"pairs_per_unit": 0}, "Expected pairs_per_unit >= 1"),
        ({"distance": 0.0}, "Received: pairs_per_unit=1, distance=0.0"),
    ],
)
def test_lookalikes_that_cannot_be_made_are_refused(changes, told):
    x, y = _clusters()
    with pytest.raises(ValueError, match=told):
        add_lookalike_units(_branches(), x, y, 0, **({"layers": ["hidden"]} | changes))
