"""A stand-in for `tensorflow_model_server`, which no package index has: its REST predict interface over SavedModels.

It knows what https://www.tensorflow.org/tfx/serving/api_rest says of the row format: `instances` of one input or of named
ones, `predictions` of one output or of named ones, versions, and errors as `{"error": ...}`.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tests.servers import json_served

_PATH = re.compile(r"/v1/models/(?P<model>[^/:]+)(/versions/(?P<version>\d+))?:predict")


@contextlib.contextmanager
def saved_models_served(folder: pathlib.Path) -> Iterator[str]:
    """The address of a server of the models in `folder/NAME/VERSION`, laid out as `tensorflow_model_server` wants them."""
    models = {
        name.name: {int(version.name): tf.saved_model.load(str(version)) for version in name.iterdir()}
        for name in folder.iterdir()
    }

    def answer(path: str, body: Any) -> tuple[int, Any]:
        match = _PATH.fullmatch(path)
        versions = models.get(match["model"], {}) if match else {}
        version = int(match["version"]) if match and match["version"] else max(versions, default=0)
        if version not in versions:
            return 404, {"error": f"Servable not found for request: {path}"}
        try:
            return 200, {"predictions": _predictions(versions[version], body["instances"])}
        except (ValueError, KeyError, TypeError, tf.errors.OpError) as error:
            return 400, {"error": f"{type(error).__name__}: {error}"}

    with json_served(answer) as url:
        yield url


def _predictions(model: Any, instances: list[Any]) -> list[Any]:
    signature = model.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    rows = instances if isinstance(instances[0], dict) else [{next(iter(specs)): each} for each in instances]
    inputs = {name: tf.constant([row[name] for row in rows], spec.dtype) for name, spec in specs.items()}
    columns = {name: tensor.numpy().tolist() for name, tensor in signature(**inputs).items()}
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
