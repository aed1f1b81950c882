"""The mark as training goes on, read from the key inputs and from the answers to the triggers."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

from deepsigns_tf.candidates import candidate_means
from deepsigns_tf.losses import signature_loss
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.perturbations import pruned, shaken
from deepsigns_tf.readings import SignatureReader
from deepsigns_tf.responses import Place
from deepsigns_tf.watermarked_model import marked_layers


class SignatureLogger(keras.callbacks.Callback):
    """Reads the mark with the key inputs after every epoch, in inference mode, as verification will.

    It adds `{carrier}_key_bit_error_rate`, `{carrier}_key_margin` (the median, in units of a random direction) and
    `{carrier}_key_signature_loss` to the epoch's logs. `History` shows them, and so does every callback that stands after
    it in the list: put it before `TensorBoard`, `CSVLogger` or `EarlyStopping`.

    Args:
        owner_key: The key of the model in training, with key inputs.

    Raises:
        ValueError: If the key has no key inputs; when training begins, if the model is not being marked with this key.

    Example:

    >>> from deepsigns_tf.carriers import Carrier
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> key = key.with_key_inputs(np.random.rand(64, 8), np.arange(64) % 2, num_per_class=8)
    >>> callbacks = [SignatureLogger(key), keras.callbacks.CSVLogger("log.csv")]
    """

    def __init__(self, owner_key: OwnerKey) -> None:
        super().__init__()
        if owner_key.key_inputs is None:
            raise ValueError(
                "This key cannot read a mark yet. Expected a key with key inputs, set by `with_key_inputs` before training. "
                "Received: a key without key inputs"
            )
        self._owner_key = owner_key
        self._readers: dict[str, SignatureReader] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses a model that another key marks, before an epoch is lost."""
        marked_layers(self.model, self._owner_key)
        # The model of an earlier training may have had other widths.
        self._readers.clear()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the reading to the epoch's logs."""
        if logs is None:
            return
        key = self._owner_key.with_layers(marked_layers(self.model, self._owner_key))
        candidates = candidate_means(self.model, key)
        for layer in key.layers:
            name = layer.carrier
            if name not in self._readers:
                self._readers[name] = SignatureReader(key, name, layer.num_units)
            means = candidates[name].means[Place(layer.path, 0)]
            values = [float("nan")] * 3
            if np.isfinite(means).all():
                reading = self._readers[name].read(means)
                # The projections are signed already: a matching bit is positive.
                signs, present = np.ones_like(reading.projected), np.ones(len(reading.projected))
                loss = signature_loss(reading.projected, signs, present)
                values = [reading.bit_error_rate, float(np.median(reading.margins)), float(loss)]
            for entry, value in zip(("bit_error_rate", "margin", "signature_loss"), values, strict=True):
                logs[f"{name}_key_{entry}"] = value


class TriggerLogger(keras.callbacks.Callback):
    r"""Asks for the triggers after every epoch, also with weights pruned and shaken, and ends training when all are held.

    The margin of a trigger is the score of its label less the largest other score; with one score, that of class 1, it is the
    score or its negative. It counts as the smallest of three: with the model's weights as they are, with a share of every kernel's
    smallest entries set to 0, and with noise on every kernel. A mark that is barely memorised holds the first only.

    It adds `trigger_accuracy`, the share of triggers that the model as it is answers with their label, and `trigger_margin`, the smallest
    margin of all, to the epoch's logs. Put it before callbacks that shall show them.

    Args:
        owner_key: The key, with triggers.
        margin: Training ends after the first epoch in which every trigger's margin is at least this, in units of the model's scores:
            logits in general. None: only log. Where training ends without it, a warning names the triggers that fall short.
        pruned_fraction: Share of each kernel's entries that are set to 0, in [0, 1].
        relative_std: Standard deviation of the noise as a share of that of each kernel's entries, >= 0.
        seed: Of the noise, which is the same in every epoch.
        batch_size: Triggers at a time.
        kind: What a single score is, `"logits"` or `"probabilities"` of class 1; needed where the model gives one score alone.

    Attributes:
        weak_triggers: Numbers of the triggers that fell short of `margin` in the last epoch; empty without one.

    Raises:
        ValueError: If the key has no triggers, or a number is out of range.

    Example:

    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
    >>> callbacks = [TriggerLogger(key, margin=5.0), keras.callbacks.CSVLogger("log.csv")]
    """

    def __init__(
        self,
        owner_key: OwnerKey,
        margin: float | None = None,
        pruned_fraction: float = 0.5,
        relative_std: float = 0.1,
        seed: int = 0,
        batch_size: int = 128,
        kind: Literal["logits", "probabilities"] | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("logits", "probabilities", None):
            raise ValueError(
                f'Invalid value for argument `kind`. Expected "logits", "probabilities" or None. Received: kind={kind!r}'
            )
        if owner_key.triggers is None:
            raise ValueError(
                "This key has nothing to ask for. Expected a key with triggers, made by `with_triggers` before training. "
                "Received: a key without triggers"
            )
        if not 0.0 <= pruned_fraction <= 1.0 or not relative_std >= 0.0:
            raise ValueError(
                "The weights cannot be changed in this way. Expected 0 <= pruned_fraction <= 1 and relative_std >= 0. "
                f"Received: pruned_fraction={pruned_fraction!r}, relative_std={relative_std!r}"
            )
        self._triggers = owner_key.triggers
        self._margin = margin
        self._pruned_fraction = pruned_fraction
        self._relative_std = relative_std
        self._seed = seed
        self._batch_size = batch_size
        self._kind = kind
        self.weak_triggers = np.empty(0, np.int64)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets an earlier training; a model whose answers it cannot read is told now, if it is built, not after an epoch."""
        self.weak_triggers = np.empty(0, np.int64)
        shape = getattr(self.model, "output_shape", None)
        if isinstance(shape, tuple):
            self._check_answers(shape)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds accuracy and margin to the epoch's logs; ends training if the margin is reached."""
        random = np.random.default_rng(self._seed)
        # Frozen kernels too: a thief prunes all.
        weights = [
            np.asarray(keras.ops.convert_to_numpy(each))
            for each in (*self.model.trainable_variables, *self.model.non_trainable_variables)
        ]
        as_it_is, *changed = (
            self._margins(values)
            for values in (
                weights,
                [pruned(each, self._pruned_fraction) for each in weights],
                [shaken(each, self._relative_std, random) for each in weights],
            )
        )
        margins = np.min([as_it_is, *changed], axis=0)
        if logs is not None:
            logs["trigger_accuracy"] = float(np.mean(as_it_is > 0))
            logs["trigger_margin"] = float(margins.min())
        if self._margin is not None:
            self.weak_triggers = np.flatnonzero(~(margins >= self._margin))
            self.model.stop_training |= not self.weak_triggers.size

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Warns about triggers that the model does not hold."""
        if self.weak_triggers.size:
            warnings.warn(
                f"{self.weak_triggers.size} of {self._triggers.num_examples} triggers are not held with a margin of {self._margin:g}, "
                f"pruned and shaken: numbers {', '.join(map(str, self.weak_triggers.tolist()))}. Train longer, with more triggers in each "
                "batch, or ask for less.",
                stacklevel=2,
            )

    def _check_answers(self, shape: tuple[int | None, ...]) -> None:
        num_classes = self._triggers.num_classes
        if len(shape) != 2 or shape[1] not in {num_classes, 1 if num_classes == 2 else 0}:
            raise ValueError(
                f"The triggers' labels do not fit the model. Expected answers of shape (batch, {num_classes}). "
                f"Received: shape (batch, {', '.join(map(str, shape[1:]))})"
            )
        if shape[1] == 1 and self._kind is None:
            raise ValueError(
                "It cannot be told what this model's one score is. Expected `kind=`, the logit or the probability of class 1. "
                "Received: answers of shape (batch, 1), kind=None"
            )

    def _margins(self, weights: list[np.ndarray]) -> np.ndarray:
        """Of each trigger, with other values in all variables; the model keeps its own."""
        variables = (*self.model.trainable_variables, *self.model.non_trainable_variables)
        state = [(each, keras.ops.convert_to_tensor(value)) for each, value in zip(variables, weights, strict=True)]
        inputs, labels = self._triggers.inputs, self._triggers.labels
        scores = []
        for start in range(0, len(labels), self._batch_size):
            rows = slice(start, start + self._batch_size)
            batch = {name: x[rows] for name, x in inputs.items()} if isinstance(inputs, Mapping) else inputs[rows]
            # Not `stateless_call`, which hands `training` on to a `call` that may not take it.
            with keras.StatelessScope(state_mapping=state):
                answer = self.model(batch, training=False)
            scores.append(np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(answer, "float32"))))
        found = np.concatenate(scores)
        self._check_answers(found.shape)
        if found.shape[1] == 1:
            threshold = 0.5 if self._kind == "probabilities" else 0.0
            return np.asarray((found[:, 0] - threshold) * (2 * labels - 1))
        own = np.take_along_axis(found, labels[:, None], axis=1)[:, 0]
        np.put_along_axis(found, labels[:, None], -np.inf, axis=1)
        return np.asarray(own - found.max(axis=1))
