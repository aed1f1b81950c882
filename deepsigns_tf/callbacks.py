"""The mark as training goes on, read from the key inputs."""

from typing import Any

import keras
import numpy as np

from deepsigns_tf.candidates import Place, candidate_means
from deepsigns_tf.losses import signature_loss
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.readings import SignatureReader
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

    >>> from deepsigns_tf.owner_key import Carrier
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
