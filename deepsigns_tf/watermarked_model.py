"""The one base class that an engineer changes: a `keras.Model` whose train step also embeds the mark."""

import functools
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from deepsigns_tf.activations import class_means, named_layers, num_replicas
from deepsigns_tf.carriers import Carrier, CarrierLayer
from deepsigns_tf.keras_internals import Functional, functional_init_arguments, get_keras_mask, in_symbolic_scope
from deepsigns_tf.label_scope import BatchReading, LabelScope, current_label_scope, label_scope
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.regularizers import SignatureRegularizer, bit_error_rate

Tensor = Any


def attached_regularizers(model: keras.Model) -> dict[str, SignatureRegularizer]:
    """The signature regularizers inside a model by the path of their layer.

    Args:
        model: Any Keras model.

    Returns:
        Path, as `named_layers` gives it -> regularizer.
    """
    return {
        path: layer.activity_regularizer
        for path, layer in named_layers(model).items()
        if isinstance(layer.activity_regularizer, SignatureRegularizer)
    }


def marked_layers(model: keras.Model, owner_key: OwnerKey) -> tuple[CarrierLayer, ...]:
    """The layers of a model in training that a key marks.

    Args:
        model: The model that is being marked.
        owner_key: The key.

    Returns:
        One layer for each of the key's carriers.

    Raises:
        ValueError: If the model's carriers are others, or another key marks them.

    Example:

    >>> from deepsigns_tf.carriers import Carrier
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> hidden = keras.layers.Dense(128, activity_regularizer=SignatureRegularizer(key, "features"), name="hidden")
    >>> marked_layers(WatermarkedSequential([keras.Input((8,)), hidden]), key)
    (CarrierLayer(carrier='features', path='hidden', num_units=128),)
    """
    layers = attached_regularizers(model)
    foreign = {regularizer.key_fingerprint for regularizer in layers.values()} - {owner_key.fingerprint}
    carried = sorted(regularizer.carrier.name for regularizer in layers.values())
    wanted = sorted(carrier.name for carrier in owner_key.carriers)
    if foreign or carried != wanted:
        raise ValueError(
            f"This model was not marked with this key. Expected one layer for each of the carriers {wanted}, marked by the key "
            f"with fingerprint {owner_key.fingerprint}. Received: carriers {carried}"
            + (f", keys with fingerprints {sorted(foreign)}" if foreign else "")
        )
    return tuple(
        CarrierLayer(regularizer.carrier.name, path, int(regularizer.num_units or 0))
        for path, regularizer in layers.items()
    )


def trigger_rows(num_rows: int | None, num_triggers_per_batch: int) -> np.ndarray:
    """Which rows of a batch are triggers, where `mix_triggers` has put them.

    Args:
        num_rows: Rows that this replica sees of the batch.
        num_triggers_per_batch: Triggers in the whole batch.

    Returns:
        `(num_rows,)` booleans.

    Raises:
        ValueError: If the size of the batch is not fixed, or the replicas do not have equal shares of its triggers.

    Example:

    >>> trigger_rows(6, 2).tolist()
    [False, False, True, False, False, True]
    """
    num_triggers, remainder = divmod(num_triggers_per_batch, num_replicas())
    if not num_rows or remainder or not num_triggers or num_rows % num_triggers:
        raise ValueError(
            "The rows of the triggers cannot be told. Expected batches of fixed size as `mix_triggers` makes them, and as many triggers "
            f"for every replica. Received: {num_rows} rows, num_triggers_per_batch={num_triggers_per_batch} on {num_replicas()} replicas"
        )
    spacing = num_rows // num_triggers
    return np.asarray(np.arange(num_rows) % spacing == spacing - 1)


class CarrierMetric(keras.metrics.Metric):
    """Signature loss and bit error rate of one carrier, as `{carrier}_signature_loss` and `{carrier}_bit_error_rate`.

    In training both are means over the batches: the weights change from step to step. In evaluation the bit error rate is
    that of the class means of the whole evaluated set, which a mean over batches would misjudge. Classes not seen are left
    out.

    Args:
        regularizer: The built regularizer of the carrier.
    """

    def __init__(self, regularizer: SignatureRegularizer) -> None:
        super().__init__(name=f"{regularizer.carrier.name}_signature", dtype="float32")
        self.regularizer = regularizer
        num_classes = len(regularizer.carrier.classes)
        # Loss, bit error rate and number of batches in one variable: each variable costs time in every step.
        self._totals = self.add_variable((3,), "zeros", name="totals")
        self._sums = self.add_variable((num_classes, regularizer.num_units), "zeros", name="sums")
        self._counts = self.add_variable((num_classes,), "zeros", name="counts")

    def update_state(self, reading: BatchReading, training: bool) -> None:
        """Adds what one step saw."""
        # A batch without a carrier class says nothing: it must not pass for one without errors.
        seen = ops.minimum(ops.sum(reading.counts), 1.0)
        self._totals.assign_add(
            ops.stop_gradient(ops.stack([reading.loss * seen, reading.bit_error_rate * seen, seen]))
        )
        if not training:
            self._sums.assign_add(ops.stop_gradient(reading.sums))
            self._counts.assign_add(ops.stop_gradient(reading.counts))

    def result(self) -> dict[str, Tensor]:
        """Two scalars by name; NaN where no carrier class was seen."""
        totals, counts = ops.convert_to_tensor(self._totals), ops.convert_to_tensor(self._counts)
        means = totals[:2] / totals[2]
        scope = current_label_scope()
        if scope is not None and scope.training:
            rate = means[1]
        else:
            # Keras asks once more after an epoch's last step, outside of any scope; only an evaluation has class sums.
            rate = ops.where(ops.sum(counts) > 0, self._rate_of_whole_set(counts), means[1])
        carrier = self.regularizer.carrier.name
        return {f"{carrier}_signature_loss": means[0], f"{carrier}_bit_error_rate": rate}

    def _rate_of_whole_set(self, counts: Tensor) -> Tensor:
        logits = self.regularizer.logits(class_means(ops.convert_to_tensor(self._sums), counts))
        return bit_error_rate(logits, ops.convert_to_tensor(self.regularizer.signs), ops.minimum(counts, 1.0))

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(
            "The metric of a carrier belongs to a model in training and cannot be saved by itself."
        )


class _Carriers:
    """What a model keeps for its carriers. Not a Keras object: Keras tracks and saves what it finds in attributes."""

    def __init__(self) -> None:
        self.metrics: list[CarrierMetric] = []
        self.centres: dict[str, Any] = {}
        # Whether a train step was traced, or run, inside the scope.
        self.embedded = False


@keras.saving.register_keras_serializable(package="deepsigns_tf")
class WatermarkedModel(keras.Model):
    """A Keras model that embeds a mark while it trains.

    Use it where `keras.Model` would stand: call it, or a subclass, with inputs and outputs, or give the subclass a `call`.
    Layers that carry bits have a `SignatureRegularizer` as their `activity_regularizer`. `compile`, `fit`, `evaluate`,
    `predict` and callbacks work as ever; the progress bar and `History` also show `{carrier}_signature_loss` and
    `{carrier}_bit_error_rate`. In training `loss` includes the watermark's; in evaluation it is the task's alone, and the
    bit error rate is that of the evaluated set.

    Class means take every labelled row alike: sample and class weights act on the task's loss only.

    Attributes:
        num_triggers_per_batch: Triggers that `mix_triggers` puts into each training batch; set it to the same number before
            training, so that their rows carry no bits. 0 by default.

    Raises:
        ValueError: When it is built and a carrier's layer is too narrow for the bits or puts its channels first. When a
            step is traced and a carrier's regularizer did not fire exactly once, the layer puts out a masked sequence, or
            the labels do not fit. After the first call of an overridden `train_step` that leaves the mark out.

    Example:

    >>> import numpy as np
    >>> from deepsigns_tf.carriers import Carrier
    >>> from deepsigns_tf.owner_key import OwnerKey
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(128, activation="relu", activity_regularizer=SignatureRegularizer(key, "features"))(inputs)
    >>> model = WatermarkedModel(inputs, keras.layers.Dense(2)(x))
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = model.fit(np.random.rand(64, 8), np.arange(64) % 2, verbose=0)
    >>> sorted(history.history)
    ['features_bit_error_rate', 'features_signature_loss', 'loss']

    Source: DeepSigns, section 3.1; the step is Keras' own, with one forward pass.
    """

    train_function: Any  # Keras sets it
    num_triggers_per_batch: int = 0

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is WatermarkedModel and functional_init_arguments(args, kwargs):
            return WatermarkedFunctional.__new__(WatermarkedFunctional, *args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # First: a functional model is built inside its constructor.
        self._carriers = _Carriers()
        # A Sequential's two positional arguments are something else.
        if functional_init_arguments(args, kwargs) and not isinstance(self, (Functional, keras.Sequential)):
            object.__setattr__(self, "__class__", _functional_sibling(type(self)))  # type: ignore[arg-type]
        super().__init__(*args, **kwargs)

    def carrier_labels(self, x: Any, y: Any) -> Tensor:
        """The class of each row, as the carriers' `classes` name it. Override it for anything but plain class labels.

        Args:
            x: Inputs of the batch.
            y: Targets of the batch: integer labels `(batch,)` or `(batch, 1)`, one-hot rows, or a dict or list with one
                entry of these kinds.

        Returns:
            `(batch,)` labels, -1 for rows to ignore.

        Raises:
            ValueError: If the targets are missing, several, or of another shape.
        """
        targets = [target for target in keras.tree.flatten(y) if target is not None]
        shapes = [tuple(target.shape) for target in targets]
        if len(shapes) != 1 or len(shapes[0]) not in (1, 2) or (len(shapes[0]) == 2 and shapes[0][1] is None):
            raise ValueError(
                "The carrier labels cannot be told from these targets. Expected one target with class labels (batch,) or (batch, 1) "
                "or one-hot rows (batch, classes); override `carrier_labels(self, x, y)` for other tasks. "
                f"Received: targets of shapes {shapes}"
            )
        (labels,) = targets
        if len(shapes[0]) == 1:
            return labels
        return labels[:, 0] if shapes[0][1] == 1 else ops.argmax(labels, axis=-1)

    def make_train_function(self, force: bool = False) -> None:
        """Keras' own; the function that it makes stops after its first call if that left the mark out."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        run = self.train_function

        def train_function(*args: Any) -> Any:
            result = run(*args)
            if not self._carriers.embedded:
                raise ValueError(
                    "The train step of this model leaves the mark out. Expected an overridden `train_step` to call "
                    f"`super().train_step(...)`. Received: {type(self).__name__}.train_step, which does not"
                )
            return result

        self.train_function = train_function

    def train_step(self, *args: Any) -> Any:
        """Keras' own train step, inside the scope that shows the regularizers the batch's labels."""
        return self._step_in_scope(super().train_step, args, training=True)

    def test_step(self, *args: Any) -> Any:
        """Keras' own test step; the regularizers only measure."""
        return self._step_in_scope(super().test_step, args, training=False)

    def _step_in_scope(self, step: Any, args: tuple[Any, ...], training: bool) -> Any:
        # On JAX the state comes first; the data is last on every backend.
        x, y, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        labels = self.carrier_labels(x, y)
        if len(labels.shape) != 1:
            raise ValueError(
                "`carrier_labels` returned labels of the wrong shape. Expected one label per row, shape (batch,). "
                f"Received: shape {tuple(labels.shape)}"
            )
        if training and self.num_triggers_per_batch:
            labels = ops.where(trigger_rows(labels.shape[0], self.num_triggers_per_batch), -1, labels)
        with label_scope(
            LabelScope(ops.stop_gradient(ops.convert_to_tensor(labels)), training, self._carriers.centres)
        ) as scope:
            result = step(*args)
        if not scope.collected:
            raise ValueError(
                "The model's losses were computed without the mark's. Expected an overridden `compute_loss` to call "
                f"`super().compute_loss(...)`. Received: {type(self).__name__}.compute_loss, which does not"
            )
        self._carriers.embedded |= training
        return result

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """Keras' own loss and the mark's; on the way it checks that each carrier fired once and updates their metrics.

        Raises:
            ValueError: If a loss for training is asked for outside a train step of this class, or a carrier did not fire
                exactly once or puts out a masked sequence.
        """
        scope = current_label_scope()
        loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if scope is None:
            # To build the loss Keras asks for it on shapes alone, and an override may not hand `training` on.
            if training and self._carriers.metrics and not in_symbolic_scope():
                raise ValueError(
                    "The loss of a training step was asked for outside the scope that embeds the mark. Expected an overridden "
                    "`train_step` to call `super().train_step(...)`. "
                    f"Received: a call of {type(self).__name__}.compute_loss with training=True"
                )
            return loss
        if scope.training:
            self._check_carriers(scope)
        # Not in the regularizers: a sum over replicas lets another replica's thread run, and the layers' lists of losses are
        # shared by all threads. Here each replica has read its own losses already.
        for metric in self._carriers.metrics:
            regularizer = metric.regularizer
            for activations in scope.activations.get(regularizer.carrier.name, []):
                reading, value = regularizer.read(activations, scope)
                metric.update_state(reading, scope.training)
                if scope.training and regularizer.strength > 0.0:
                    loss = loss + self._aggregate_additional_loss(value)
        scope.collected = True
        return loss

    def _check_carriers(self, scope: LabelScope) -> None:
        expected = {
            carrier.name
            for regularizer in attached_regularizers(self).values()
            if regularizer.owner_key is not None
            for carrier in regularizer.owner_key.carriers
        }
        if not expected:
            raise ValueError(
                "No layer of this model carries a mark. Expected a layer with "
                "`activity_regularizer=SignatureRegularizer(owner_key, carrier)`, attached before the model was built; a layer "
                "inside `TimeDistributed` never shows its activations. Received: no regularizer"
            )
        if not self.num_triggers_per_batch and any(
            regularizer.owner_key is not None and regularizer.owner_key.triggers is not None
            for regularizer in attached_regularizers(self).values()
        ):
            warnings.warn(
                "The key of this model has triggers, and no rows of its batches are said to be some: under their random labels they would "
                "enter the class means. Set `model.num_triggers_per_batch` to the number that `mix_triggers` adds to a batch.",
                stacklevel=2,
            )
        for name in sorted(expected | set(scope.activations)):
            readings = scope.activations.get(name, [])
            if len(readings) != 1:
                raise ValueError(
                    f"The regularizer of carrier {name!r} must see its layer's activations once in a step. Expected one layer of the "
                    "model to have it as `activity_regularizer`. "
                    + _FIRED_NEVER_OR_OFTEN[bool(readings)].format(len(readings))
                )
            activations = readings[0]
            if len(activations.shape) > 2 and get_keras_mask(activations) is not None:
                raise ValueError(
                    f"The layer of carrier {name!r} puts out a masked sequence, whose padding would enter the mean. Expected the mark "
                    "on a layer after `GlobalAveragePooling1D`, which honours the mask. "
                    f"Received: a mask on activations of shape {tuple(activations.shape)}"
                )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics, then signature loss and bit error rate of each carrier."""
        return [*super().metrics, *self._carriers.metrics]

    @property
    def learned_centres(self) -> dict[str, Any]:
        """Carrier -> `(s, M)` trainable centres, for the carriers that have any. `release` leaves them behind."""
        return dict(self._carriers.centres)

    def build_from_config(self, config: Any) -> None:
        """Keras' own, and the hook, which it leaves out where it builds a revived model by a call."""
        super().build_from_config(config)
        self._post_build()

    def _post_build(self) -> None:
        # Keras calls this hook when every layer is built and before the model's state is locked.
        super()._post_build()
        for layer in named_layers(self).values():
            regularizer = layer.activity_regularizer
            if not isinstance(regularizer, SignatureRegularizer):
                continue
            shape = _output_shape(layer)
            if shape is not None:
                _refuse_channels_first(layer, shape, regularizer.carrier)
                regularizer.observe(shape)
            if regularizer.num_units is not None:
                self._add_carrier(regularizer)
        scope = current_label_scope()
        if scope is not None:
            # What fired so far did so while Keras ran the model to build it.
            scope.activations.clear()
            scope.centres = self._carriers.centres

    def _add_carrier(self, regularizer: SignatureRegularizer) -> None:
        name = regularizer.carrier.name
        if regularizer.centres == "learned" and name not in self._carriers.centres:
            self._carriers.centres[name] = self.add_weight(
                shape=(len(regularizer.carrier.classes), regularizer.num_units),
                initializer="zeros",
                trainable=regularizer.strength > 0.0,
                dtype="float32",
                autocast=False,  # Under mixed precision the centres would else be read as float16.
                name=f"{name}_centres",
            )
        if regularizer.owner_key is not None and all(m.regularizer is not regularizer for m in self._carriers.metrics):
            regularizer.build()
            self._carriers.metrics.append(CarrierMetric(regularizer))


def _output_shape(layer: keras.Layer) -> tuple[int | None, ...] | None:
    # A layer called on symbolic inputs knows its output; inside a subclassed model it fired while that was built.
    output = getattr(layer, "output", None)
    if output is not None:
        return tuple(keras.tree.flatten(output)[0].shape)
    if layer.built and "input_shape" in (layer.get_build_config() or {}):
        # Built by the model's own `build`, never called yet.
        return tuple(layer.compute_output_shape(layer.get_build_config()["input_shape"]))
    return None


def _refuse_channels_first(layer: keras.Layer, shape: tuple[int | None, ...], carrier: Carrier) -> None:
    # Flattened features have no order that matters, and a pooled output no inner axes.
    if getattr(layer, "data_format", None) == "channels_first" and carrier.pooling == "mean" and len(shape) > 2:
        raise ValueError(
            f"The layer of carrier {carrier.name!r} puts its channels first, where the mean would be taken over the wrong axes. "
            'Expected `data_format="channels_last"`, or a carrier with `pooling="flatten"`. '
            f'Received: data_format="channels_first" in layer {layer.name!r}'
        )


_FIRED_NEVER_OR_OFTEN = {
    False: (
        "Received: no call; it is not attached, was attached after the model was built, or its layer stands inside "
        "`TimeDistributed`, which hides its activations"
    ),
    True: (
        "Received: {} calls; the layer is called more than once, two layers share the carrier, a wrapper fires beside the layer "
        "inside it, or the layer has several outputs (`return_state=True`)"
    ),
}


@keras.saving.register_keras_serializable(package="deepsigns_tf")
class WatermarkedFunctional(WatermarkedModel, Functional):
    """What `WatermarkedModel(inputs, outputs)` returns."""


@keras.saving.register_keras_serializable(package="deepsigns_tf")
class WatermarkedSequential(WatermarkedModel, keras.Sequential):
    """`keras.Sequential` that embeds a mark while it trains.

    Example:

    >>> from deepsigns_tf.carriers import Carrier
    >>> from deepsigns_tf.owner_key import OwnerKey
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> model = WatermarkedSequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(128, activation="relu", activity_regularizer=SignatureRegularizer(key, "features")),
    ...     keras.layers.Dense(2),
    ... ])
    >>> [metric.name for metric in model.metrics]
    ['features_signature']
    """


@functools.cache
def _functional_sibling(cls: type) -> type:
    """The class of those models of `cls` that are built functionally: its name and overrides, with the functional base.

    Keras would give `cls` and all above it that base, for good: a later subclass with a `call` of its own would break.
    """
    sibling = type(
        cls.__name__,
        (cls, WatermarkedFunctional),
        {"__doc__": cls.__doc__, "__module__": cls.__module__, "__qualname__": cls.__qualname__},
    )
    package, registered, name = keras.saving.get_registered_name(cls).partition(">")
    if registered:
        # Archives hold the name of `cls` and revive `cls`, which stands last.
        for each in (sibling, cls):
            keras.saving.register_keras_serializable(package, name)(each)
    return sibling
