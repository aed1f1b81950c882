"""Model files that do harm, or would, built from code: each with what must be told when it is refused.

Those that act leave a file and open a connection when they do. `python -m pytest tests/test_suspects.py` shows that nothing does.
"""

import dataclasses
import io
import json
import os
import pickle
import socket
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


@dataclasses.dataclass(frozen=True)
class Canary:
    """What an attack touches when it acts: a file, and a port of this machine that somebody listens to."""

    path: Path
    port: int

    @property
    def code(self) -> str:
        """Python that touches both."""
        return (
            f"open({str(self.path)!r}, 'a').close(), "
            f"__import__('socket').create_connection(('127.0.0.1', {self.port}), 1).close()"
        )


@dataclasses.dataclass(frozen=True)
class Malicious:
    """An attack.

    Args:
        build: From a folder that is empty and a canary to a file.
        told: What the refusal says.
        refused_by: Who sees it: the look at the file, that at the weights in the child, or the child that loads.
    """

    build: Callable[[Path, Canary], Path]
    told: str
    refused_by: str = "file"


def model() -> keras.Model:
    """A small honest one, to put things into."""
    return keras.Sequential(
        [keras.Input((4,), name="inputs"), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2, name="head")],
        name="honest",
    )


def members(network: keras.Model | None = None) -> dict[str, bytes]:
    """The members of its archive."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        (network or model()).save(path)
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def pack(folder: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def with_config(folder: Path, change: Callable[[dict], None], network: keras.Model | None = None) -> Path:
    parts = members(network)
    config = json.loads(parts[CONFIG])
    change(config)
    return pack(folder, parts | {CONFIG: json.dumps(config).encode()})


def with_layer(folder: Path, layer: dict) -> Path:
    """The hidden layer replaced by another object."""

    def change(config: dict) -> None:
        config["config"]["layers"][1] = layer

    return with_config(folder, change)


def with_setting(folder: Path, name: str, value: object) -> Path:
    def change(config: dict) -> None:
        config["config"]["layers"][1]["config"][name] = value

    return with_config(folder, change)


def with_weights(folder: Path, change: Callable[[h5py.File], None]) -> Path:
    parts = members()
    file = io.BytesIO(parts[WEIGHTS])
    with h5py.File(file, "r+") as weights:
        change(weights)
    return pack(folder, parts | {WEIGHTS: file.getvalue()})


KERNEL = "layers/dense/vars/0"


def replaced(weights: h5py.File) -> h5py.Group:
    """The group of the first kernel, without it."""
    del weights[KERNEL]
    return weights["layers/dense/vars"]


# Code


def lambda_layer(folder: Path, canary: Canary) -> Path:
    layer = keras.layers.Lambda(eval(f"lambda x: ({canary.code}, x)[-1]"), output_shape=(4,))
    path = folder / "model.keras"
    keras.Sequential([keras.Input((4,)), layer]).save(path)
    # Building ran it; here it is the file that counts.
    canary.path.unlink(missing_ok=True)
    return path


def marshalled_activation(folder: Path, canary: Canary) -> Path:
    import base64
    import marshal

    code = eval(f"lambda x: ({canary.code}, x)[-1]").__code__
    value = {"code": base64.b64encode(marshal.dumps(code)).decode(), "defaults": None, "closure": None}
    return with_setting(folder, "activation", {"class_name": "__lambda__", "config": {"value": value}})


def foreign_module(folder: Path, canary: Canary) -> Path:
    (folder / "evil_module.py").write_text(canary.code + "\nclass Layer: pass\n")
    return with_layer(folder, {"module": "evil_module", "class_name": "Layer", "config": {}, "registered_name": None})


def registered_trick(folder: Path, canary: Canary) -> Path:
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": "evil>Layer"}
    return with_layer(folder, layer)


def torch_wrapper(folder: Path, canary: Canary) -> Path:
    config = {"module": {"class_name": "__bytes__", "config": {"value": pickle.dumps(1).hex()}}, "name": "torch"}
    return with_layer(folder, {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": config})


def saved_model_layer(folder: Path, canary: Canary) -> Path:
    return with_layer(
        folder, {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": str(folder)}}
    )


def get_file(folder: Path, canary: Canary) -> Path:
    function = {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"}
    return with_setting(folder, "activation", function)


def builtin_function(folder: Path, canary: Canary) -> Path:
    function = {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"}
    return with_setting(folder, "activation", function)


def type_spec(folder: Path, canary: Canary) -> Path:
    spec = {"class_name": "__typespec__", "spec_name": "TensorSpec", "module": "tensorflow", "config": []}
    return with_setting(folder, "activation", spec | {"registered_name": None})


def object_array(folder: Path, canary: Canary) -> Path:
    return with_setting(folder, "activation", {"class_name": "__numpy__", "config": {"value": [1], "dtype": "object"}})


# Files and addresses


def _lookup(folder: Path, name: str, vocabulary: object) -> Path:
    config = {"name": "lookup", "vocabulary": vocabulary}
    return with_layer(folder, {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None})


def string_vocabulary(folder: Path, canary: Canary) -> Path:
    return _lookup(folder, "StringLookup", "/etc/hostname")


def text_vocabulary(folder: Path, canary: Canary) -> Path:
    return _lookup(folder, "TextVectorization", "vocabulary.txt")


def integer_vocabulary(folder: Path, canary: Canary) -> Path:
    return _lookup(folder, "IntegerLookup", f"http://127.0.0.1:{canary.port}/vocabulary.txt")


def address(folder: Path, canary: Canary) -> Path:
    return with_setting(folder, "kernel_initializer", f"http://127.0.0.1:{canary.port}/")


# Archives


def _with_member(folder: Path, name: str, mode: int = 0) -> Path:
    path = pack(folder, members())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    return path


def parent_member(folder: Path, canary: Canary) -> Path:
    return _with_member(folder, f"assets/../../{canary.path.name}")


def absolute_member(folder: Path, canary: Canary) -> Path:
    return _with_member(folder, str(canary.path))


def asset_member(folder: Path, canary: Canary) -> Path:
    return _with_member(folder, "assets/vocabulary.txt")


def symlink_member(folder: Path, canary: Canary) -> Path:
    parts = members()
    del parts[METADATA]
    path = pack(folder, parts)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(METADATA)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return path


def duplicate_members(folder: Path, canary: Canary) -> Path:
    path = pack(folder, members())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(CONFIG, "{}")
    return path


def zip_bomb(folder: Path, canary: Canary) -> Path:
    return pack(folder, members() | {WEIGHTS: members()[WEIGHTS] + bytes(1 << 27)}, zipfile.ZIP_DEFLATED)


def lying_zip_bomb(folder: Path, canary: Canary) -> Path:
    """The directory says that the configuration is small; 128 MB would come out."""
    path = pack(folder, {METADATA: b"{}", WEIGHTS: members()[WEIGHTS], CONFIG: b"[" * (1 << 27)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    # The size is at 24 of an entry of the directory, at 22 of the member's own header.
    for signature, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.rindex(signature)
        data[at + place : at + place + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    return path


def nested_bomb(folder: Path, canary: Canary) -> Path:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 26))
    return pack(folder, members() | {"inner.zip": bomb.getvalue()})


def nested_weights(folder: Path, canary: Canary) -> Path:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 26))
    return pack(folder, members() | {WEIGHTS: bomb.getvalue()})


def overlapping_members(folder: Path, canary: Canary) -> Path:
    """Two entries of the directory that share one member's bytes."""
    path = pack(folder, members())
    data = bytearray(path.read_bytes())
    last, first = data.rindex(b"PK\x01\x02"), data.index(b"PK\x01\x02")
    data[last + 42 : last + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)
    return path


def many_members(folder: Path, canary: Canary) -> Path:
    return pack(folder, members() | {f"{number}": b"" for number in range(10_000)})


def truncated_archive(folder: Path, canary: Canary) -> Path:
    path = pack(folder, members())
    path.write_bytes(path.read_bytes()[:-500])
    return path


def trailing_archive(folder: Path, canary: Canary) -> Path:
    path = pack(folder, members())
    path.write_bytes(path.read_bytes() + b"#!/bin/sh")
    return path


def h5_in_disguise(folder: Path, canary: Canary) -> Path:
    path = folder / "model.keras"
    path.write_bytes(members()[WEIGHTS])
    return path


class _Acting:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


def pickle_in_disguise(folder: Path, canary: Canary) -> Path:
    path = folder / "model.keras"
    path.write_bytes(pickle.dumps(_Acting(canary.code)))
    return path


def saved_model_folder(folder: Path, canary: Canary) -> Path:
    path = folder / "model.keras"
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"")
    return path


def named_pipe(folder: Path, canary: Canary) -> Path:
    path = folder / "model.keras"
    os.mkfifo(path)
    return path


# Configurations


def duplicate_keys(folder: Path, canary: Canary) -> Path:
    parts = members()
    twice = parts[CONFIG].replace(b'"class_name": "Dense"', b'"class_name": "Dense", "class_name": "Lambda"', 1)
    assert twice != parts[CONFIG]
    return pack(folder, parts | {CONFIG: twice})


def deep_json(folder: Path, canary: Canary) -> Path:
    return pack(folder, members() | {CONFIG: b'{"class_name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"})


def huge_integer(folder: Path, canary: Canary) -> Path:
    parts = members()
    huge = parts[CONFIG].replace(b'"units": 8', b'"units": ' + b"9" * 1_000_000, 1)
    return pack(folder, parts | {CONFIG: huge})


def many_keys(folder: Path, canary: Canary) -> Path:
    """The last of many keys comes twice: a search for it from each of them takes its time."""
    keys = [f'"{number}": 0' for number in range(30_000)]
    return pack(folder, members() | {CONFIG: ("{" + ", ".join([*keys, keys[-1]]) + "}").encode()})


def unended_strings(folder: Path, canary: Canary) -> Path:
    """A string without an end, with many quotes from which another one could begin."""
    return pack(folder, members() | {CONFIG: b'{"class_name": "' + b'\\"' * 20_000})


def huge_kernel(folder: Path, canary: Canary) -> Path:
    """A kernel of so many axes that nobody can multiply, or write, the number of its weights."""
    config = {"filters": 1, "kernel_size": [10**20 - 1] * 30_000}
    layer = {"module": "keras.layers", "class_name": "Conv3D", "config": config, "registered_name": None}
    return with_layer(folder, layer | {"build_config": {"input_shape": [None, 1]}})


def huge_config(folder: Path, canary: Canary) -> Path:
    return pack(folder, members() | {CONFIG: b" " * (8 << 20)})


def shape_bomb(folder: Path, canary: Canary) -> Path:
    """Weights of 3.6 GB, under the 4 GiB that Keras' own guard lets pass."""

    def change(config: dict) -> None:
        for layer, units, shape in zip(config["config"]["layers"][1:], (30_000, 30_000), (4, 30_000), strict=True):
            layer["config"]["units"] = units
            layer["build_config"] = {"input_shape": [None, shape]}

    return with_config(folder, change)


def silent_shape_bomb(folder: Path, canary: Canary) -> Path:
    """The same without a word about the shapes that layers are built for."""

    def change(config: dict) -> None:
        for layer in config["config"]["layers"][1:]:
            layer["config"]["units"] = 30_000
            layer.pop("build_config")

    return with_config(folder, change)


# Weights


def external_link(folder: Path, canary: Canary) -> Path:
    other = folder / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones((4, 8), "float32")

    def change(weights: h5py.File) -> None:
        replaced(weights)["0"] = h5py.ExternalLink(str(other), "/secret")

    return with_weights(folder, change)


def soft_link(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        replaced(weights)["0"] = h5py.SoftLink("/layers/dense/vars/1")

    return with_weights(folder, change)


def virtual_dataset(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        layout = h5py.VirtualLayout((4, 8), "float32")
        layout[:] = h5py.VirtualSource("/etc/secret.h5", "data", (4, 8))
        replaced(weights).create_virtual_dataset("0", layout)

    return with_weights(folder, change)


def external_storage(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        replaced(weights).create_dataset("0", (4, 8), "float32", external=[("/etc/passwd", 0, 128)])

    return with_weights(folder, change)


def circle(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        weights["layers/dense/again"] = weights["layers"]

    return with_weights(folder, change)


def weights_shape_bomb(folder: Path, canary: Canary) -> Path:
    """3.9 GB of zeros that are nowhere."""

    def change(weights: h5py.File) -> None:
        replaced(weights).create_dataset("0", (31_000, 31_000), "float32", chunks=(1000, 1000))

    return with_weights(folder, change)


def compressed_weights(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        replaced(weights).create_dataset("0", data=np.zeros((4000, 4000), "float32"), compression="gzip")

    return with_weights(folder, change)


def nan_weights(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        weights[KERNEL][1, 2] = np.nan

    return with_weights(folder, change)


def infinite_weights(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        weights[KERNEL][1, 2] = -np.inf

    return with_weights(folder, change)


def text_weights(folder: Path, canary: Canary) -> Path:
    def change(weights: h5py.File) -> None:
        replaced(weights)["0"] = ["text"] * 8

    return with_weights(folder, change)


def truncated_weights(folder: Path, canary: Canary) -> Path:
    parts = members()
    return pack(folder, parts | {WEIGHTS: parts[WEIGHTS][:-2000]})


_LIST = "names what is not on the list of Keras' own parts"
MALICIOUS = {
    "Lambda": Malicious(lambda_layer, "class_name 'Lambda' .*runs code that the file brings along"),
    "marshalled code": Malicious(marshalled_activation, _LIST + ".*'__lambda__'"),
    "module import": Malicious(foreign_module, _LIST + ".*'evil_module'"),
    "registered name": Malicious(registered_trick, _LIST + ".*'evil>Layer'"),
    "TorchModuleWrapper": Malicious(torch_wrapper, "'TorchModuleWrapper' .*unpickles what the file brings along"),
    "TFSMLayer": Malicious(saved_model_layer, "'TFSMLayer' .*runs a SavedModel that the file names"),
    "get_file": Malicious(get_file, _LIST + ".*'get_file'"),
    "builtin function": Malicious(builtin_function, _LIST + ".*'exec'"),
    "type spec": Malicious(type_spec, _LIST + ".*'__typespec__'"),
    "array of objects": Malicious(object_array, "Expected values that are numbers. Received: dtype 'object'"),
    "vocabulary file": Malicious(string_vocabulary, "would read a file. Expected vocabulary as a list.*hostname"),
    "text vocabulary file": Malicious(text_vocabulary, "would read a file. Expected vocabulary as a list"),
    "vocabulary from an address": Malicious(integer_vocabulary, "would read a file. Expected vocabulary as a list"),
    "address": Malicious(address, "names a place outside. Expected no paths and no addresses"),
    "parent member": Malicious(parent_member, "a path that leads outside"),
    "absolute member": Malicious(absolute_member, "an absolute path"),
    "asset": Malicious(asset_member, "an asset, which no layer needs that is allowed"),
    "symlink": Malicious(symlink_member, "Expected regular files. Received: a symlink, metadata.json"),
    "duplicate members": Malicious(duplicate_members, "Expected each member once"),
    "zip bomb": Malicious(zip_bomb, "unpack to at most 100 times their size. Received: model.weights.h5"),
    "lying zip bomb": Malicious(lying_zip_bomb, "This archive is not unpacked. .*config.json"),
    "nested bomb": Malicious(nested_bomb, "an archive in the archive, 'inner.zip'"),
    "nested weights": Malicious(nested_weights, "Expected HDF5 in model.weights.h5. Received: a zip archive"),
    "overlapping members": Malicious(overlapping_members, "This archive is not unpacked"),
    "many members": Malicious(many_members, "10003 members"),
    "truncated archive": Malicious(truncated_archive, "Expected a whole `.keras` archive.*truncated"),
    "something behind the archive": Malicious(trailing_archive, "has something behind it"),
    ".h5 in disguise": Malicious(h5_in_disguise, "Received: an HDF5 file, the format of `.h5` models"),
    "pickle in disguise": Malicious(pickle_in_disguise, "Received: a pickle"),
    "SavedModel": Malicious(saved_model_folder, "Received: a folder"),
    "named pipe": Malicious(named_pipe, "Received: a pipe, socket or device"),
    "duplicate keys": Malicious(duplicate_keys, "Expected each key once. Received: twice 'class_name'"),
    "deep JSON": Malicious(deep_json, "Expected at most 64 levels of lists and objects. Received: 100001 levels"),
    "huge JSON integer": Malicious(huge_integer, "Expected integers of at most 20 digits. Received: one of 1000000"),
    "many keys": Malicious(many_keys, "Expected each key once. Received: twice '29999'"),
    "strings without an end": Malicious(unended_strings, "Expected JSON in UTF-8. Received: 'Unterminated string"),
    "huge kernel": Malicious(huge_kernel, "Expected a kernel_size of Conv3D of at most 3 numbers. Received: 30000"),
    "huge configuration": Malicious(huge_config, "Expected at most 4194304 bytes in config.json"),
    "shape bomb": Malicious(shape_bomb, "asks for more weights than there are.*Received: 900120000 weights"),
    "external link": Malicious(external_link, "Received: an ExternalLink at '/layers/dense/vars/0'", "weights"),
    "soft link": Malicious(soft_link, "Received: an SoftLink at '/layers/dense/vars/0'", "weights"),
    "virtual dataset": Malicious(virtual_dataset, "Received: a virtual dataset at", "weights"),
    "external storage": Malicious(external_storage, "Received: data in another file at", "weights"),
    "circle": Malicious(circle, "Expected each object under one name", "weights"),
    "shape bomb in the weights": Malicious(weights_shape_bomb, "Received: 0 bytes in the file", "weights"),
    "compressed weights": Malicious(compressed_weights, "Received: one that is compressed", "weights"),
    "NaN weights": Malicious(nan_weights, "Expected finite numbers. Received: 1 others at", "weights"),
    "infinite weights": Malicious(infinite_weights, "Expected finite numbers. Received: 1 others at", "weights"),
    "text for weights": Malicious(text_weights, "Expected numbers. Received: type", "weights"),
    "truncated weights": Malicious(truncated_weights, "Expected a whole HDF5 file", "weights"),
    "silent shape bomb": Malicious(silent_shape_bomb, "asks for more weights than its file holds", "loading"),
}


# What breaks out in spite of the look would try this.


class Escaping(keras.layers.Layer):
    """Tries what the child must not be able to do, and answers with what it could: 1 for each.

    Args:
        path: A file to write, from the root on; the look refuses absolute paths of custom objects too.
        port: A port of this machine to connect to.
    """

    def __init__(self, path: str, port: int, **kwargs):
        super().__init__(**kwargs)
        self.target, self.port = path, port

    def get_config(self):
        return {**super().get_config(), "path": self.target, "port": self.port}

    def call(self, inputs):
        done = [float(attempt()) for attempt in (self._write, self._connect, self._grow, self._see)]
        return keras.ops.zeros_like(inputs[:, :4]) + keras.ops.convert_to_tensor(done)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 4)

    def _write(self) -> bool:
        try:
            with open(f"/{self.target}", "w") as file:
                file.write("out")
        except OSError:
            return False
        return True

    def _connect(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def _grow(self) -> bool:
        try:
            np.ones(1 << 29).sum()
        except MemoryError:
            return False
        return True

    def _see(self) -> bool:
        return any(name.startswith(("SECRET", "AWS", "PYTEST")) for name in os.environ)
