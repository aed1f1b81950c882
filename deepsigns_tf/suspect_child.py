"""The process in which a suspect's file is opened: weights looked at, framework started, memory limited, model loaded, questions answered.

It knows classes, labels and widths, never a key. Whatever it says is looked at by the parent as the file was.
"""

import importlib
import io
import json
import math
import os
import resource
import sys
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from deepsigns_tf.suspect_files import WEIGHTS, refuse
from deepsigns_tf.suspect_pipe import MAX_TEXT, Pipe, TalkError
from deepsigns_tf.suspect_weights import look_at_weights

# What a model allocates beside what its file holds: states of random numbers, tables, layers that are built twice.
_FREE_NUMBERS = 1 << 20
_NUMBERS_PER_NUMBER = 2
# All layers' outputs for so many inputs must fit: of WRN-28-10 they take 0.9 GiB. Of smaller networks more are taken.
_BATCH_SIZE = 32
_UNLIMITED = 1 << 62


def main(plan: str, refusals: str) -> None:
    """Opens a file and answers until nobody asks any more.

    Args:
        plan: JSON of what `suspects.Suspect` planned.
        refusals: JSON of what the kernel refused, by what it was, and why.
    """
    planned = json.loads(plan)
    pipe = _own_pipe()
    # Python would look for a folder by writing into it, and no file may grow here.
    tempfile.tempdir = os.environ["TMPDIR"]
    # Before anything of the file is touched: afterwards nothing that this process says is sure.
    pipe.send({"refusals": json.loads(refusals)})
    try:
        _limit_memory(planned["memory_bytes"], for_good=False)
        with zipfile.ZipFile(planned["archive"]) as archive:
            num_numbers = look_at_weights(io.BytesIO(archive.read(WEIGHTS)))
        _limit_memory(None, for_good=False)
    except Exception as error:  # Refusals, and whatever a broken file provokes.
        pipe.send({"refused": str(error)[:MAX_TEXT] if isinstance(error, ValueError) else _in_words(error)})
        return
    try:
        model = _loaded(planned, num_numbers)
        answers = _answers(model)
        pipe.send({"inputs": answers["inputs"]({}, [])[0], "layers": answers["layers"]({}, [])[0]})
    except Exception as error:
        pipe.send({"failed": _in_words(error)})
        return
    while True:
        try:
            asked, arrays = pipe.receive(_UNLIMITED)
        except TalkError:
            return
        try:
            content, found = answers[asked["ask"]](asked, arrays)
        except Exception as error:
            content, found = {"failed": _in_words(error)}, []
        pipe.send(content, found)


def _own_pipe() -> Pipe:
    """Standard input and output as they are now; nothing else may read or write there."""
    pipe = Pipe(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    return pipe


def _limit_memory(more_bytes: int | None, for_good: bool) -> None:
    """Lets this process grow by so much from now on; None lets it grow at will."""
    for limit, used in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        hard = resource.getrlimit(limit)[1]
        soft = hard if more_bytes is None else _used_bytes(used) + more_bytes
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(limit, (soft, soft if for_good else hard))


def _used_bytes(field: int) -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[field]) * resource.getpagesize()


def _loaded(planned: dict[str, Any], num_numbers: int) -> Any:
    # Keras takes it where it is installed, and it wants to write.
    sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]
    custom_objects = {}
    if planned["custom_objects"]:
        # These come with all that they import, from wherever the parent has it.
        sys.path += planned["path"]
        del sys.modules["deepsigns_tf"]
        custom_objects = {name: _imported(*each) for name, each in planned["custom_objects"].items()}
    import keras

    # What the framework sets up when it first runs is not the suspect's to pay for.
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).predict(np.ones((1, 1), "float32"), verbose=0)
    keras.utils.clear_session()
    _limit_memory(planned["memory_bytes"], for_good=True)
    _limit_variables(keras.Variable, _NUMBERS_PER_NUMBER * num_numbers + _FREE_NUMBERS)
    model = keras.saving.load_model(planned["archive"], custom_objects, compile=False, safe_mode=True)
    if not isinstance(model, keras.Model):
        refuse("This file holds no model", "a Keras model", type(model).__name__)
    return model


def _imported(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _limit_variables(variable_class: Any, num_numbers: int) -> None:
    """Counts what variables are made for, before they are: shapes are cheap to write into a configuration."""
    initialize: Callable[..., None] = variable_class.__init__
    left = num_numbers

    def counted(self: Any, initializer: Any, shape: Any = None, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= math.prod(shape) if isinstance(shape, (tuple, list)) and None not in shape else 0
        if left < 0:
            refuse("This model asks for more weights than its file holds", f"at most {num_numbers}", "more")
        initialize(self, initializer, shape, *args, **kwargs)

    variable_class.__init__ = counted


def _answers(model: Any) -> dict[str, Callable[[dict[str, Any], list[np.ndarray]], tuple[Any, list[np.ndarray]]]]:
    """What may be asked -> how it is answered."""
    from deepsigns_tf.responses import LocalModel, Responses, Role

    local = LocalModel(model, _BATCH_SIZE)

    def inputs_of(asked: dict[str, Any], arrays: list[np.ndarray]) -> Any:
        named = dict(zip(asked["names"], arrays, strict=False))
        return named.get("", named)

    def told(found: list[Responses]) -> tuple[Any, list[np.ndarray]]:
        places = [(number, *place) for number, each in enumerate(found) for place in each.arrays]
        content = {"places": places, "admissible": [each.num_admissible for each in found]}
        return content, [array for each in found for array in each.arrays.values()]

    def roles_of(asked: dict[str, Any]) -> list[Role]:
        return [Role(tuple(classes), *rest) for classes, *rest in asked["roles"]]

    def predicted(asked: dict[str, Any], arrays: list[np.ndarray]) -> tuple[Any, list[np.ndarray]]:
        answer = model.predict(inputs_of(asked, arrays), batch_size=asked["batch_size"], verbose=0)
        if not hasattr(answer, "dtype"):
            refuse("This model cannot be asked", "one output", f"a {type(answer).__name__} of outputs")
        # Half of bfloat16 is unknown to NumPy.
        return None, [answer.astype(np.float32) if answer.dtype.name == "bfloat16" else answer]

    return {
        "inputs": lambda asked, arrays: (local.input_shapes(), []),
        "layers": lambda asked, arrays: (local.layer_paths(), []),
        "weights": lambda asked, arrays: (local.digest_of_weights(), []),
        "predict": predicted,
        "features": lambda asked, arrays: told(local.features(inputs_of(asked, arrays), roles_of(asked))),
        "class_means": lambda asked, arrays: told(
            local.class_means(inputs_of(asked, arrays[:-1]), arrays[-1], roles_of(asked))
        ),
    }


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_TEXT]
