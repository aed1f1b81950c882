"""A suspect's file, looked at before anything is loaded: its archive, and its configuration as data.

Nothing here imports Keras or reads HDF5. What passes is put together anew, so that what was looked at is what is loaded: another parser's
view of the same bytes does not matter.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import stat
import types
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from deepsigns_tf.files import read_regular_file
from deepsigns_tf.suspect_builtins import CLASSES, FUNCTIONS, REFUSED_LAYERS, VALUES, VOCABULARIES

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

_HDF5 = b"\x89HDF\r\n\x1a\n"
_END_OF_ARCHIVE = 22
_MAX_DIRECTORY_BYTES = 4096
_MAX_METADATA_BYTES = 65536
# What is small is no bomb, whatever its ratio.
_FREE_BYTES = 1 << 20
_MAX_RATIO = 100
# The most digits of a number in JSON: more than 64 bits need.
_MAX_DIGITS = 20
# The most sizes of a kernel: those of `Conv3D`.
_MAX_AXES = 3
# The largest number of weights that is told.
_MAX_WEIGHTS = 10**18
_NO_CUSTOM: Mapping[str, tuple[str, str]] = types.MappingProxyType({})
# A weight may take half a byte; the archive holds them all.
_WEIGHTS_PER_BYTE = 2


@dataclasses.dataclass(frozen=True)
class SuspectLimits:
    """How much a suspect may ask for.

    Args:
        file_bytes: Size of the file, and of what it unpacks to.
        config_bytes: Size of its configuration.
        config_depth: How deep lists and objects may nest in there.
        memory_bytes: Address space of the child beyond what the framework has when it has started. With the 0.7 GiB that TensorFlow
            holds then, the default keeps the child's memory below 4 GiB.
        cpu_s: Seconds of processor time, of all cores together, over the child's life.
        load_s: Seconds until the model is loaded, the start of the framework included.
        answer_s: Seconds for each answer.
        answer_bytes: Size of an answer.

    Raises:
        ValueError: If one of them is not positive.

    Example:

    >>> SuspectLimits(load_s=60).memory_bytes / 2**30
    3.0
    """

    file_bytes: int = 1 << 30
    config_bytes: int = 4 << 20
    config_depth: int = 64
    memory_bytes: int = 3 << 30
    cpu_s: int = 7200
    load_s: float = 300.0
    answer_s: float = 3600.0
    answer_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(
                    f"Invalid value for argument `{field.name}`. Expected a positive number. Received: {field.name}={value!r}"
                )


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """What passed.

    Args:
        config: JSON of the configuration, without what the model would be trained with.
        weights: HDF5 that was not looked at yet.
        num_weights: How many weights the configuration asks for, as far as it says so itself.
        file_digest: SHA-256 of the file as it was, in hexadecimal.
    """

    config: str = dataclasses.field(repr=False)
    weights: bytes = dataclasses.field(repr=False)
    num_weights: int
    file_digest: str

    def write(self, path: str | os.PathLike[str]) -> None:
        """Puts a `.keras` file together anew.

        Args:
            path: Where it goes.
        """
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(CONFIG, self.config)
            archive.writestr(METADATA, "{}")
            archive.writestr(WEIGHTS, self.weights)


def refuse(wrong: str, expected: str, received: object) -> NoReturn:
    """Raises the error that says why a file is not loaded; what comes from the file is cut and escaped.

    Example:

    >>> refuse("This is no model", "a `.keras` file", "a pickle")
    Traceback (most recent call last):
    ValueError: This is no model. Expected a `.keras` file. Received: a pickle
    """
    raise ValueError(f"{wrong}. Expected {expected}. Received: {received}")


def shown(value: object) -> str:
    """Something from the file for an error text, in at most 100 characters of ASCII.

    Example:

    >>> shown("a" * 1000)[-6:], shown("\\x1b[31m")
    ('aaa...', "'\\\\x1b[31m'")
    """
    text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


def look_at_file(
    path: str | os.PathLike[str], limits: SuspectLimits, custom: Mapping[str, tuple[str, str]] = _NO_CUSTOM
) -> LookedAt:
    """Looks at a `.keras` file without loading anything.

    Args:
        path: The file.
        limits: What it may ask for.
        custom: Registered name of what the caller allows -> its module and its class name, `"function"` for a function.

    Returns:
        What may be loaded, once its weights were looked at too.

    Raises:
        ValueError: If anything in it is not what Keras writes for a model of its own layers.
        OSError: If it cannot be read.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.keras")
    >>> _ = path.write_bytes(b"\\x80\\x04K\\x01.")
    >>> look_at_file(path, SuspectLimits())
    Traceback (most recent call last):
    ValueError: This file is not loaded. Expected a `.keras` archive. Received: a pickle
    """
    content = _bytes_of(path, limits)
    config, weights = _parts(content, limits)
    parsed = parse_json(config, limits.config_bytes, limits.config_depth)
    if not isinstance(parsed, dict) or "class_name" not in parsed:
        refuse(f"This file's {CONFIG} describes no model", "an object with a class name", shown(parsed))
    # It is not trained here, and what it was trained with may be code of its makers, in all innocence.
    trimmed = _without_training(parsed)
    _check_names(trimmed, custom)
    num_weights = sum(_weights_of(each) for each in _objects(trimmed))
    if num_weights > _WEIGHTS_PER_BYTE * len(weights):
        refuse(
            f"This file's {CONFIG} asks for more weights than there are",
            f"at most {_WEIGHTS_PER_BYTE * len(weights)}, for a {WEIGHTS} of {len(weights)} bytes",
            f"{num_weights} weights" if num_weights <= _MAX_WEIGHTS else f"more than {_MAX_WEIGHTS} weights",
        )
    return LookedAt(json.dumps(trimmed), weights, num_weights, hashlib.sha256(content).hexdigest())


def parse_json(data: bytes, max_bytes: int, max_depth: int) -> Any:
    """JSON from somebody else: no repeated keys, no numbers that are none, nothing deep or large.

    Args:
        data: UTF-8.
        max_bytes: The most of them.
        max_depth: How deep lists and objects may nest.

    Returns:
        The value.

    Raises:
        ValueError: If it is anything else.

    Example:

    >>> parse_json(b'{"units": 3}', 100, 2)
    {'units': 3}
    """
    wrong = "This JSON is not read"
    if len(data) > max_bytes:
        refuse(wrong, f"at most {max_bytes} bytes", f"{len(data)} bytes")
    depth = deepest = 0
    # A string that nobody ends goes to the end: looked for anew from each of its quotes, it would take hours.
    for bracket in re.sub(rb'"(?:[^"\\]|\\.)*+"?|[^"\[{\]}]+', b"", data, flags=re.DOTALL):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > max_depth:
        refuse(wrong, f"at most {max_depth} levels of lists and objects", f"{deepest} levels")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                refuse(wrong, "each key once", f"twice {shown(key)}")
            found[key] = value
        return found

    def integer(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            refuse(wrong, f"integers of at most {_MAX_DIGITS} digits", f"one of {len(digits)} digits")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits)

    def constant(name: str) -> NoReturn:
        refuse(wrong, "finite numbers", shown(name))

    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=number,
            parse_constant=constant,
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        refuse(wrong, "JSON in UTF-8", shown(str(error)))


def _bytes_of(path: str | os.PathLike[str], limits: SuspectLimits) -> bytes:
    data = read_regular_file(path, limits.file_bytes, "This file is not loaded")
    if not data.startswith(b"PK\x03\x04"):
        refuse("This file is not loaded", "a `.keras` archive", _kind(data))
    return data


def _kind(data: bytes) -> str:
    if data.startswith(_HDF5):
        return "an HDF5 file, the format of `.h5` models"
    if re.match(rb"\x80[\x02-\x05]", data):
        return "a pickle"
    return f"a file that begins with {data[:8]!r}" if data else "an empty file"


def _parts(data: bytes, limits: SuspectLimits) -> tuple[bytes, bytes]:
    """Configuration and weights of an archive."""
    wrong = "This archive is not unpacked"
    end = data[-_END_OF_ARCHIVE:]
    if len(end) < _END_OF_ARCHIVE or not end.startswith(b"PK\x05\x06"):
        refuse(wrong, "a whole `.keras` archive without a comment", "one that is truncated, or has something behind it")
    num_members, directory_bytes = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    # Python would read a whole directory of millions of members, or follow a second one of the 64-bit format.
    second = data[-_END_OF_ARCHIVE - 20 : -_END_OF_ARCHIVE].startswith(b"PK\x06\x07")
    if num_members > 16 or directory_bytes > _MAX_DIRECTORY_BYTES or second:
        refuse(
            wrong,
            f"the members {CONFIG}, {METADATA} and {WEIGHTS}",
            f"{num_members} members in a directory of {directory_bytes} bytes{' of the 64-bit format' if second else ''}",
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            for member in members:
                _check_member(member, limits)
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                refuse(wrong, "each member once", f"members {names}")
            missing = {CONFIG, WEIGHTS} - set(names)
            if missing:
                refuse(wrong, f"members {CONFIG} and {WEIGHTS}", f"none called {sorted(missing)}")
            if any(member.header_offset < 0 for member in members):
                refuse(wrong, "members that lie in it", "one that lies before it")
            _check_places(members)
            read = {member.filename: _unpacked(archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, UnicodeDecodeError) as error:
        refuse(wrong, "a whole `.keras` archive", shown(str(error)))
    if not read[WEIGHTS].startswith(_HDF5):
        refuse(wrong, f"HDF5 in {WEIGHTS}", "a zip archive" if read[WEIGHTS][:2] == b"PK" else _kind(read[WEIGHTS]))
    parse_json(read.get(METADATA, b"{}"), _MAX_METADATA_BYTES, 8)
    return read[CONFIG], read[WEIGHTS]


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        # Reading "all" would unpack what is there, not what the directory says.
        data = file.read(member.file_size + 1)
    if len(data) != member.file_size:
        refuse("This archive is not unpacked", f"{member.file_size} bytes in {member.filename}", f"{len(data)} bytes")
    return data


def _check_member(member: zipfile.ZipInfo, limits: SuspectLimits) -> None:
    wrong = "This archive is not unpacked"
    name = member.orig_filename
    most = {CONFIG: limits.config_bytes, METADATA: _MAX_METADATA_BYTES, WEIGHTS: limits.file_bytes}
    if name not in most:
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
            kind = "an absolute path"
        elif ".." in parts:
            kind = "a path that leads outside"
        elif parts[0] == "assets":
            kind = "an asset, which no layer needs that is allowed"
        elif name.lower().endswith((".zip", ".keras", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z")):
            kind = "an archive in the archive"
        else:
            kind = "something else"
        refuse(wrong, f"the members {CONFIG}, {METADATA} and {WEIGHTS}", f"{kind}, {shown(name)}")
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        refuse(wrong, "regular files", f"{'a symlink' if stat.S_ISLNK(mode) else 'something else'}, {name}")
    if member.flag_bits & 0x1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refuse(wrong, "members that are stored or deflated", f"{name}, encrypted or compressed in another way")
    if member.file_size > most[name]:
        refuse(wrong, f"at most {most[name]} bytes in {name}", f"{member.file_size} bytes")
    if member.file_size > max(_FREE_BYTES, _MAX_RATIO * member.compress_size):
        refuse(
            wrong,
            f"members that unpack to at most {_MAX_RATIO} times their size",
            f"{name}, {member.file_size} bytes in {member.compress_size}",
        )


def _check_places(members: list[zipfile.ZipInfo]) -> None:
    """Members that share bytes unpack to more than their sizes tell."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.header_offset + 30 + len(before.filename) + before.compress_size > after.header_offset:
            refuse(
                "This archive is not unpacked",
                "members one after the other",
                f"{before.filename} and {after.filename} in the same place",
            )


def _without_training(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_training(each) for key, each in value.items()}
        if "class_name" in kept:
            kept.pop("compile_config", None)
        return kept
    if isinstance(value, list):
        return [_without_training(each) for each in value]
    return value


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object that Keras would make an instance of."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for each in value.values():
            yield from _objects(each)
    elif isinstance(value, list):
        for each in value:
            yield from _objects(each)


def _check_names(value: Any, custom: Mapping[str, tuple[str, str]], key: str = "") -> None:
    """Holds every name in a configuration against the list."""
    if isinstance(value, dict):
        if not {"class_name", "spec_name"}.isdisjoint(value):
            _check_object(value, custom)
        for name, each in value.items():
            if name in VOCABULARIES:
                _check_vocabulary(name, each)
            else:
                _check_names(each, custom, name)
    elif isinstance(value, list):
        for each in value:
            _check_names(each, custom, key)
    elif isinstance(value, str) and ("://" in value or re.match(r"[/~]|\.\.?[/\\]|\.\.$", value) or "\0" in value):
        refuse(
            f"This file's {CONFIG} names a place outside", "no paths and no addresses", f"{shown(key)}: {shown(value)}"
        )


def _check_vocabulary(name: str, value: Any) -> None:
    flat = value is None or (isinstance(value, list) and all(isinstance(each, (int, float, str)) for each in value))
    if not flat:
        refuse(f"This file's {CONFIG} would read a file", f"{name} as a list", f"{name}: {shown(value)}")


def _check_object(described: dict[str, Any], custom: Mapping[str, tuple[str, str]]) -> None:
    module, class_name, registered_name = (described.get(name) for name in ("module", "class_name", "registered_name"))
    wrong, received = (
        f"This file's {CONFIG} names what is not on the list of Keras' own parts",
        f"class_name {shown(class_name)} of module {shown(module)}, registered as {shown(registered_name)}",
    )
    expected = "layers, initializers, regularizers, constraints and activations of Keras that run no code of a file's"
    if custom:
        expected += ", or the custom objects " + ", ".join(
            f"{name} of module {place}" for name, (place, _) in custom.items()
        )
    if not all(each is None or isinstance(each, str) for each in (module, class_name, registered_name)):
        refuse(wrong, expected, received)
    if class_name in REFUSED_LAYERS:
        refuse(wrong, expected, f"{received}, which {REFUSED_LAYERS[class_name]}")
    inner = described.get("config")
    if class_name in VALUES and module is None:
        _check_value(inner)
        return
    named = inner if class_name == "function" else class_name
    allowed = (FUNCTIONS if class_name == "function" else CLASSES).get(module or "", frozenset())
    if "spec_name" in described or not isinstance(named, str):
        refuse(wrong, expected, received)
    # By the name that Keras looks up; alone, it would let any class of any module through.
    looked_up = named if class_name == "function" else registered_name or named
    if custom.get(looked_up) == (module, class_name) and registered_name in (None, looked_up):
        return
    if named not in allowed or registered_name not in (None, named, class_name):
        refuse(wrong, expected, received + (f", function {shown(named)}" if class_name == "function" else ""))
    if class_name != "function" and not isinstance(inner, dict):
        refuse(f"This file's {CONFIG} is malformed", f"the configuration of {class_name} as an object", shown(inner))


def _check_value(inner: Any) -> None:
    dtype = inner.get("dtype") if isinstance(inner, dict) else None
    if dtype is not None and not (isinstance(dtype, str) and re.fullmatch(r"bool|bfloat16|u?int\d+|float\d+", dtype)):
        refuse(f"This file's {CONFIG} is malformed", "values that are numbers", f"dtype {shown(dtype)}")


def _weights_of(described: dict[str, Any]) -> int:
    """How many weights a layer asks for, as far as it says so: at least so many will be allocated."""
    config, name = described.get("config"), described.get("class_name")
    if not isinstance(config, dict) or not isinstance(name, str):
        return 0
    built = described.get("build_config")
    shape = built.get("input_shape") if isinstance(built, dict) else None
    channels = shape[-1] if isinstance(shape, list) and shape else None

    def product(*factors: Any) -> int:
        whole = all(isinstance(each, int) and each >= 0 for each in factors)
        return math.prod(factors) if whole else 0

    units = config.get("units")
    if name == "Embedding":
        return product(config.get("input_dim"), config.get("output_dim"))
    if name == "Dense":
        return product(channels, units)
    if name in ("LSTM", "GRU", "SimpleRNN"):
        gates = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[name]
        return gates * (product(channels, units) + product(units, units))
    kernel_size = config.get("kernel_size")
    if re.fullmatch(r"Conv[123]D(Transpose)?", name) and isinstance(kernel_size, list):
        if len(kernel_size) > _MAX_AXES:
            # The product of a long list has more digits than can be multiplied, or written, in time.
            refuse(
                f"This file's {CONFIG} is malformed",
                f"a kernel_size of {name} of at most {_MAX_AXES} numbers",
                f"{len(kernel_size)} of them",
            )
        per_group = product(channels, config.get("filters"), *kernel_size)
        groups = config.get("groups")
        return per_group // groups if isinstance(groups, int) and groups > 0 else per_group
    return 0
