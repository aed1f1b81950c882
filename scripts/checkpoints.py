"""The state of a training after its last whole epoch, in one file."""

import io
import json
import pathlib
import time
import zipfile
from typing import Any

import keras
import numpy as np

from deepsigns_tf.files import write_atomically


class Checkpoint(keras.callbacks.Callback):
    """Keeps everything that the next epoch depends on: weights, random states, optimizer and history.

    The file is replaced as a whole after every epoch, so a run that is killed at any moment goes on from the end of an epoch.
    (Keras' `BackupAndRestore` writes weights and epoch number to two files, in place, and leaves out the states of random
    number generators.) Put it last in the list of callbacks: it keeps what they add to the logs.

    Args:
        path: The file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.path = path
        self.history: dict[str, list[float]] = {}
        self._start = 0.0

    def restore(self, model: keras.Model) -> int:
        """Puts a compiled model into the state that was kept, if there is one.

        Args:
            model: The model, built and compiled as the one that was kept.

        Returns:
            The number of epochs that are done.

        Raises:
            ValueError: If the file is damaged, or belongs to another model.
        """
        if not self.path.exists():
            return 0
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                self.history = json.loads(archive["history"].tobytes())
                arrays = [archive[f"variable_{number}"] for number in range(len(archive.files) - 1)]
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                "This checkpoint is damaged. Expected a file as a training wrote it; without one it begins anew. "
                f"Received: {self.path}, {type(error).__name__}"
            ) from error
        variables = _variables(model)
        shapes = [[tuple(each.shape) for each in both] for both in (variables, arrays)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "This checkpoint belongs to another model. Expected the variables of the model in training. "
                f"Received: {self.path} with {len(shapes[1])} variables, while the model has {len(shapes[0])}"
                + (", of other shapes" if len(shapes[0]) == len(shapes[1]) else "")
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return len(self.history["seconds"])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the state."""
        for name, value in {**(logs or {}), "seconds": time.monotonic() - self._start}.items():
            self.history.setdefault(name, []).append(float(value))
        arrays = {
            f"variable_{number}": keras.ops.convert_to_numpy(variable)
            for number, variable in enumerate(_variables(self.model))
        }
        content = io.BytesIO()
        np.savez(content, history=np.frombuffer(json.dumps(self.history).encode(), np.uint8), **arrays)
        write_atomically(self.path, content.getvalue())


def _variables(model: keras.Model) -> list[Any]:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    # `variables` has the random generators' states, which `weights` has not.
    return [*model.variables, *model.optimizer.variables]
