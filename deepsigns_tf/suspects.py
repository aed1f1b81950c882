"""Files of somebody else's: looked at, loaded in a process of their own, and read from there.

A `.keras` file can run code, read files or take all memory when it is loaded. `load_suspect` refuses what Keras would not write for a
model of its own layers, and loads the rest where it can do little: without network, in limited memory and time, unable to write files.
What comes back is numbers, and they are checked too.

What this does not do: the process may still read files that its user may read, and a model that breaks out of Keras in spite of the look
can answer what it likes.
"""

import contextlib
import dataclasses
import importlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

import keras
import numpy as np

from deepsigns_tf.activations import Inputs
from deepsigns_tf.responses import Place, Responses, Role
from deepsigns_tf.suspect_files import LookedAt, SuspectLimits, look_at_file, refuse, shown
from deepsigns_tf.suspect_jail import REFUSALS
from deepsigns_tf.suspect_pipe import MAX_TEXT, Pipe, TalkError

_MIN_KERAS = (3, 15)
_NUM_FILES = 256
_MAX_LAYERS = 100_000
# What a kernel may not give, as `suspect_jail.main` tells.
_REFUSABLE = ("user", "network", "files", "rights")
# The package without what it imports: the child looks at the weights before any framework starts, and imports from nowhere else.
_START = (
    "import sys, types; package = types.ModuleType('deepsigns_tf'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['deepsigns_tf'] = package; from deepsigns_tf import suspect_child; suspect_child.main(*sys.argv[2:])"
)


class Suspect:
    """A model of somebody else's in a process of its own; use it as a context manager, or the process ends when nobody holds it.

    It also ends with the thread that opened it, as with a verifier that is killed.

    `verify`, `candidate_means`, `matched_candidates` and `read_aligned` take it in place of a Keras model; `predict` answers for
    `verify_predict_fn`. The process is told inputs, labels, classes and widths, never seed, bits or projection.

    Args:
        looked_at: What passed the look.
        limits: What it may ask for.
        custom_objects: Name -> module and qualified name of what the caller allows beside Keras' own.

    Raises:
        ValueError: If it cannot be loaded within its limits.
    """

    def __init__(
        self, looked_at: LookedAt, limits: SuspectLimits, custom_objects: Mapping[str, tuple[str, str]]
    ) -> None:
        deadline = time.monotonic() + limits.load_s
        self._limits = limits
        self._custom_objects = tuple(custom_objects)
        self._file_digest = looked_at.file_digest
        self._peak_memory_bytes = 0
        folder = tempfile.mkdtemp(prefix="suspect.")
        try:
            # Taken on by the framework, which only opens files by this ending.
            archive = os.path.join(folder, "suspect.keras")
            looked_at.write(archive)
            self._process = _started(folder, archive, limits, custom_objects)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._end = weakref.finalize(self, _ended, self._process, folder)
        assert self._process.stdin is not None and self._process.stdout is not None
        for file in (self._process.stdin, self._process.stdout):
            os.set_blocking(file.fileno(), False)
        self._pipe = Pipe(self._process.stdout.fileno(), self._process.stdin.fileno())
        try:
            started, _ = self._told(deadline)
            self._refusals = _refusals(started)
            loaded, _ = self._told(deadline)
            # A verifier that is killed from here on leaves nothing behind.
            shutil.rmtree(folder, ignore_errors=True)
            self._inputs, self._layers = _inputs_and_layers(loaded)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Suspect":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; what was not asked is not answered any more."""
        self._peak_memory_bytes = self.peak_memory_bytes
        self._end()

    @property
    def isolation(self) -> str:
        """How far the process is from network and files, in words."""
        user, network, files, rights = (self._refusals[name] for name in _REFUSABLE)
        return (
            f"{'NOT ' if network else ''}in a network of its own{f' ({network})' if network else ''}, "
            f"{'able' if files else 'unable'} to change files{f' ({files})' if files else ''}"
            + (f", WITH RIGHTS of whoever verifies ({rights})" if rights else "")
            + (f", without a user namespace of its own ({user})" if user else "")
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a verdict must say about how the model was run; empty where nothing is missing."""
        found = []
        if any(self._refusals.values()):
            found.append(f"the suspect ran {self.isolation}: the kernel refused more; all other limits held")
        if self._custom_objects:
            found.append(
                f"code that whoever verifies trusted ran as part of the suspect: {', '.join(self._custom_objects)}"
            )
        return tuple(found)

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that the process held so far, as the kernel counts it; 0 where the kernel does not tell."""
        try:
            status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        except OSError:
            return self._peak_memory_bytes
        lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(lines[0][1]) if lines else self._peak_memory_bytes

    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Name -> shape of the inputs that the model declares, the batch first."""
        return dict(self._inputs)

    def layer_paths(self) -> list[str]:
        """Paths of all layers."""
        return list(self._layers)

    @property
    def file_digest(self) -> str:
        """SHA-256 of the file that was looked at, in hexadecimal."""
        return self._file_digest

    def predict(self, inputs: Inputs, batch_size: int = 32) -> np.ndarray:
        """The model's answers.

        Args:
            inputs: Array `(n, ...)` or dict of such arrays.
            batch_size: Inputs at a time.

        Returns:
            `(n, ...)` numbers.

        Raises:
            ValueError: If the model has several outputs, the process fails or exceeds its limits, or the answer is none.
        """
        names, arrays = _named(inputs)
        _, answers = self._asked({"ask": "predict", "names": names, "batch_size": batch_size}, arrays)
        if len(answers) != 1 or answers[0].ndim < 1 or len(answers[0]) != len(arrays[0]):
            self._unbelievable(f"one answer to each of {len(arrays[0])} inputs", [each.shape for each in answers])
        return answers[0]

    def digest_of_weights(self) -> str:
        """`weights_digest` of the model, by the word of its process."""
        digest, _ = self._asked({"ask": "weights"}, [])
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            self._unbelievable("64 hexadecimal digits", digest)
        return digest

    def class_means(self, inputs: Inputs, labels: np.ndarray, roles: Sequence[Role]) -> list[Responses]:
        """Class means of inputs, one entry for each role, as `responses.LocalModel.class_means`."""
        rows = [len(role.classes) for role in roles]
        return self._responses("class_means", inputs, [np.asarray(labels)], roles, rows, np.dtype(np.float64))

    def features(self, inputs: Inputs, roles: Sequence[Role]) -> list[Responses]:
        """Features of inputs, one entry for each role, as `responses.LocalModel.features`."""
        rows = [len(_named(inputs)[1][0])] * len(roles)
        return self._responses("features", inputs, [], roles, rows, np.dtype(np.float32))

    def _responses(
        self,
        ask: str,
        inputs: Inputs,
        more: list[np.ndarray],
        roles: Sequence[Role],
        rows: list[int],
        dtype: np.dtype[Any],
    ) -> list[Responses]:
        names, arrays = _named(inputs)
        asked = {"ask": ask, "names": names, "roles": [dataclasses.astuple(role) for role in roles]}
        content, answers = self._asked(asked, [*arrays, *more])
        places, admissible = _lists(content, "places", "admissible")
        expected = "places with arrays of the widths that were asked for"
        if len(places) != len(answers) or not _are_counts(admissible, len(roles)):
            self._unbelievable(expected, content)
        found: list[dict[Place, np.ndarray]] = [{} for _ in roles]
        for place, array in zip(places, answers, strict=True):
            if not _is_place(place, len(roles)):
                self._unbelievable(expected, place)
            number, path, call = place
            role = roles[number]
            fits = array.ndim == 2 and len(array) == rows[number] and array.dtype == dtype
            if not fits or not role.least_units <= array.shape[1] <= role.most_units:
                self._unbelievable(expected, f"{array.dtype} {array.shape}")
            found[number][Place(path, call)] = array
        wide_enough = [
            sum(array.shape[1] > role.bits_per_class for array in each.values())
            for each, role in zip(found, roles, strict=True)
        ]
        if sum(map(len, found)) != len(places) or any(m > n for m, n in zip(wide_enough, admissible, strict=True)):
            self._unbelievable(expected, "a place twice, or more places than layers")
        return [Responses(each, n) for each, n in zip(found, admissible, strict=True)]

    def _asked(self, content: Any, arrays: list[np.ndarray]) -> tuple[Any, list[np.ndarray]]:
        if not self._end.alive:
            refuse("This suspect cannot be asked any more", "one whose process runs", "one that was closed")
        deadline = time.monotonic() + self._limits.answer_s
        try:
            self._pipe.send(content, arrays, deadline)
        except TalkError as error:
            self._failed(error)
        return self._told(deadline)

    def _told(self, deadline: float) -> tuple[Any, list[np.ndarray]]:
        """The next message, unless it says what went wrong."""
        try:
            content, arrays = self._pipe.receive(self._limits.answer_bytes, deadline)
        except TalkError as error:
            self._failed(error)
        if isinstance(content, dict) and "refused" in content:
            self.close()
            raise ValueError(_text(content["refused"]))
        if isinstance(content, dict) and "failed" in content:
            refuse(
                "This suspect cannot be read",
                "a model that Keras can load and run within the limits",
                _text(content["failed"]),
            )
        return content, arrays

    def _failed(self, error: TalkError) -> NoReturn:
        try:
            status = self._process.wait(timeout=1.0)
            ended = f"it ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"
        except (subprocess.TimeoutExpired, ValueError):
            ended = "it was ended"
        self.close()
        refuse("This suspect's process gave no answer", f"one within {self._limits}", f"{error}; {ended}")

    def _unbelievable(self, expected: str, received: object) -> NoReturn:
        self.close()
        refuse("This suspect's process does not say what it was asked", expected, shown(received))


def load_suspect(
    path: str | os.PathLike[str],
    *,
    limits: SuspectLimits = SuspectLimits(),
    custom_objects: Mapping[str, Any] | None = None,
) -> Suspect:
    """Looks at a `.keras` file of somebody else's and loads it in a process of its own.

    The archive may hold configuration, metadata and weights alone; the configuration may name what Keras computes with and nothing that
    runs code of a file's or reads files; the weights must be numbers that lie in the file. What passes is put together anew and loaded in
    Keras' safe mode, uncompiled, where memory, time, files and network are limited. Put what the file was trained with aside: it is
    cut out unread.

    Args:
        path: The file.
        limits: What it may ask for.
        custom_objects: Name -> class or function that the file needs beside Keras' own, as Keras' argument of this name. They are imported
            again in the process by their module's name, with all that their module imports. This gives up the protection for these
            objects: their code runs with whatever configuration the file gives them. Only give what you have read. The file must name
            them by class, registered name and module as they are here.

    Returns:
        The model; close it, or use it as a context manager.

    Raises:
        ValueError: If the file is refused or cannot be loaded within the limits, with the reason; Keras is older than 3.15; or a custom
            object cannot be imported by its name.
        OSError: If the file cannot be read.

    Example:

    >>> path = os.path.join(tempfile.mkdtemp(), "model.keras")
    >>> keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x)]).save(path)
    >>> load_suspect(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: This file's config.json names what is not on the list of Keras' own parts. Expected ...

    Source: the advisories on `keras` that its release 3.15.0 closes; Common Weakness Enumeration 22, 400, 409, 502 and 789.
    """
    _check_keras(keras.__version__)
    modules = {name: _place_of(name, each) for name, each in (custom_objects or {}).items()}
    custom = {
        registered_name: (modules[name][0], each.__name__ if isinstance(each, type) else "function")
        for name, each in (custom_objects or {}).items()
        for registered_name in (name, keras.saving.get_registered_name(each))
    }
    return Suspect(look_at_file(path, limits, custom), limits, modules)


def _check_keras(version: str) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < _MIN_KERAS:
        refuse("This Keras has known holes", f"version {'.'.join(map(str, _MIN_KERAS))} or newer", version)


def _place_of(name: str, custom_object: Any) -> tuple[str, str]:
    module, qualified = getattr(custom_object, "__module__", None), getattr(custom_object, "__qualname__", None)
    found: Any = None
    if module not in (None, "__main__") and qualified is not None:
        found = importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part, None)
    if found is not custom_object or module is None or qualified is None:
        refuse(
            f"The custom object {name!r} cannot be imported by another process",
            "a class or function at the top of a module",
            f"{module}.{qualified}",
        )
    return module, qualified


def _started(
    folder: str, archive: str, limits: SuspectLimits, custom_objects: Mapping[str, tuple[str, str]]
) -> subprocess.Popen[bytes]:
    package = pathlib.Path(__file__).parent
    plan = {
        "archive": archive,
        "memory_bytes": limits.memory_bytes,
        "custom_objects": {name: list(each) for name, each in custom_objects.items()},
        "path": [os.path.abspath(each) for each in sys.path] if custom_objects else [],
    }
    interpreter = [sys.executable, "-I", "-B"]
    jail = {
        "cpu_s": math.ceil(limits.cpu_s),
        "num_files": _NUM_FILES,
        "parent": os.getpid(),
        "num_processes": 64 + 8 * (os.cpu_count() or 1),
        "command": [*interpreter, "-c", _START, str(package), json.dumps(plan), REFUSALS],
    }
    environment = {
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
        "HOME": folder,
        "TMPDIR": folder,
        "KERAS_HOME": folder,
        "KERAS_BACKEND": keras.backend.backend(),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        # Address space of one heap per thread would count as the suspect's.
        "MALLOC_ARENA_MAX": "2",
        # No filters from shared libraries.
        "HDF5_PLUGIN_PRELOAD": "::",
    }
    # The verifier's own: networks that XLA compiles wrongly without them could not be verified.
    if "XLA_FLAGS" in os.environ:
        environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    return subprocess.Popen(
        [*interpreter, str(package / "suspect_jail.py"), json.dumps(jail)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # The folder goes before the process.
        cwd="/",
        env=environment,
        # A group that is ended as a whole.
        process_group=0,
    )


def _ended(process: subprocess.Popen[bytes], folder: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for file in (process.stdin, process.stdout):
        if file is not None:
            file.close()
    shutil.rmtree(folder, ignore_errors=True)


def _named(inputs: Inputs) -> tuple[list[str], list[np.ndarray]]:
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    return list(named), [np.asarray(array) for array in named.values()]


def _text(value: object) -> str:
    """Words of the process, in ASCII that can be shown."""
    return (
        "".join(each if each.isprintable() else " " for each in str(value)[:MAX_TEXT])
        .encode("ascii", "replace")
        .decode()
    )


def _lists(content: Any, *names: str) -> list[list[Any]]:
    """Lists by name; what is none is empty."""
    found = [content.get(name) if isinstance(content, dict) else None for name in names]
    return [each if isinstance(each, list) else [] for each in found]


def _refusals(started: Any) -> dict[str, str]:
    told = started.get("refusals") if isinstance(started, dict) else None
    return {name: _text(told.get(name, "unknown") if isinstance(told, dict) else "unknown") for name in _REFUSABLE}


def _inputs_and_layers(loaded: Any) -> tuple[dict[str, tuple[int | None, ...]], list[str]]:
    inputs = loaded.get("inputs") if isinstance(loaded, dict) else None
    (layers,) = _lists(loaded, "layers")
    if (
        not isinstance(inputs, dict)
        or not all(_is_shape(shape) for shape in inputs.values())
        or not all(_is_path(each) for each in layers)
        or len(layers) > _MAX_LAYERS
    ):
        refuse("This suspect's process does not say what it was asked", "names of inputs and layers", shown(loaded))
    return {name: tuple(shape) for name, shape in inputs.items()}, layers


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= MAX_TEXT


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(each is None or (type(each) is int and each >= 0) for each in value)


def _are_counts(values: list[Any], num_expected: int) -> bool:
    return len(values) == num_expected and all(type(each) is int and 0 <= each <= _MAX_LAYERS for each in values)


def _is_place(value: Any, num_roles: int) -> bool:
    if not (isinstance(value, list) and len(value) == 3):
        return False
    number, path, call = value
    return type(number) is int and 0 <= number < num_roles and _is_path(path) and type(call) is int and call >= 0
