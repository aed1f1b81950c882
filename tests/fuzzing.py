"""Files mutated and made up, for every parser of what somebody else may have written.

    python -m tests.fuzzing "owner key" 100000

A parser may refuse a file with a ValueError in three sentences. Anything else it raises is a crash, and so are more than ten seconds and
more than 256 MiB for one file. The program wants atheris, which watches the branches that the package takes and mutates what led to new
ones; `test_fuzzing.py` draws a sample with hypothesis. Parsers import what they need, so that atheris can be there before.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import re
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

SEED = 20261126
MAX_SECONDS = 10
MAX_BYTES = 2**28
STATEMENT = b'{"what":"was stated"}'
# What JSON may hold where something else is expected.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\w.+-]+|[{}\[\]:,]')
_TOKENS = (
    *(
        b"true",
        b"null",
        b"0",
        b"-1",
        b"1.0",
        b"-0.0",
        b"1e400",
        b"NaN",
        b"9007199254740992",
        b"1000000000000",
        b"9" * 5000,
    ),
    *(b'""', b'"\\ud800"', b'"/"', b'"1"', b'{"a":1}', b"[]", b"{}", b"[" * 2000),
)


@dataclasses.dataclass(frozen=True)
class Spot:
    """A place that somebody may write to, behind whatever is checked before it is read.

    Args:
        content: What stands there by rights.
        packed: From content to what the parser reads: in an archive, say, with the digest that belongs to it.
    """

    content: bytes
    packed: Callable[[bytes], Any] = lambda content: content


@dataclasses.dataclass
class Parser:
    """Something to read with, and where it can be lied to.

    Args:
        read: Reads what a spot packed.
        spots: An input of the fuzzer is the number of one of them, a byte, and what is written there.
        most_bytes: The most memory that a file has taken.
    """

    read: Callable[[Any], object]
    spots: list[Spot]
    most_bytes: int = 0

    @property
    def seeds(self) -> list[bytes]:
        """The inputs that nobody has touched."""
        return [bytes([number]) + spot.content for number, spot in enumerate(self.spots)]

    def try_out(self, data: bytes) -> bool:
        """Whether an input is read; False if it is refused as it should be.

        Raises:
            Exception: Whatever else happens.
        """
        number, content = (data or b"\0")[0], data[1:]
        _forget_peak()
        before, started = _memory("VmRSS"), time.process_time()
        try:
            self.read(self.spots[number % len(self.spots)].packed(content))
            read = True
        except ValueError as error:
            if not re.search(r"\. Expected .*\. Received: ", str(error), re.DOTALL):
                raise
            read = False
        self.most_bytes = max(self.most_bytes, _memory("VmHWM") - before)
        assert self.most_bytes <= MAX_BYTES and time.process_time() - started <= MAX_SECONDS, "a greedy parser"
        return read


def mutated(data: bytes, generator: random.Random) -> bytes:
    """An input with a few changes: bytes altered, cut, repeated, put in; words of JSON exchanged for others."""
    for _ in range(generator.choice((1, 1, 2, 4))):
        start = generator.randrange(len(data) + 1)
        end = min(len(data), start + generator.choice((0, 1, 1, 4, 32, 1024)))
        new = generator.choice(
            (
                b"",
                data[start:end] * 2,
                generator.randbytes(end - start),
                generator.randbytes(4),
                generator.choice(_TOKENS),
            )
        )
        words = [word.span() for word in _TOKEN.finditer(data)] if generator.random() < 0.5 else []
        if words:
            start, end = generator.choice(words)
            new = generator.choice((*_TOKENS, data[slice(*generator.choice(words))]))
        data = data[:start] + new + data[end:]
    return data


def _memory(name: str) -> int:
    """`VmRSS`, what the process has in memory, or `VmHWM`, the most since `_forget_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def _forget_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def canonical_json(folder: pathlib.Path) -> Parser:
    from deepsigns_tf.canonical_json import decode_canonical, encode_canonical

    def read(data: bytes) -> None:
        assert encode_canonical(decode_canonical(data)) == data

    value = {"b": [1, -0.0, 1e-5, None, True], "a": {"é😀": '\n"\\'}}
    return Parser(read, [Spot(encode_canonical(value))])


def statement(folder: pathlib.Path) -> Parser:
    from deepsigns_tf.commitments import Release, Statement

    def read(data: bytes) -> None:
        assert Statement.decode(data).encode() == data

    first = Statement("Öwner", 64 * "1", 1, None, 64 * "a")
    second = dataclasses.replace(first, number=2, previous=first.digest(), release=Release("1.0", 64 * "b", 64 * "c"))
    return Parser(read, [Spot(each.encode()) for each in (first, second)])


def signing_key(folder: pathlib.Path) -> Parser:
    from deepsigns_tf.signatures import SigningKey

    path = folder / "signing.pem"
    SigningKey(bytes(32)).save(path)
    return Parser(_from_files(folder, lambda: SigningKey.load(path)), [_file(path)])


def owner_key(folder: pathlib.Path) -> Parser:
    import deepsigns_tf as ds

    path = folder / "owner.key"
    example_key().save(path)

    def read() -> None:
        key = ds.OwnerKey.load(path)
        assert len(key.fingerprint) == 32 and repr(key)
        if key.triggers is not None:
            _ = key.derived_triggers
        key.commitment()

    return Parser(_from_files(folder, read), [_file(path), *_spots_of_key(path)])


def evidence(folder: pathlib.Path) -> Parser:
    from benchmarks.authorities import TIME_STAMPING, certified, time_stamp
    from deepsigns_tf.evidence import add_statement, load_evidence
    from deepsigns_tf.signatures import SigningKey
    from deepsigns_tf.timestamps import time_stamp_request

    key, signer = example_key(), SigningKey(bytes(range(32)))
    first = add_statement(folder, signer, key)
    add_statement(folder, signer, key, "1.0", 64 * "a")
    root = certified("Root")
    with tempfile.TemporaryDirectory() as place:
        authority = certified("Authority", root, purposes=TIME_STAMPING)
        (folder / "0001.tsr").write_bytes(time_stamp(time_stamp_request(first.encode()), authority, place))

    def read() -> None:
        with contextlib.suppress(FileNotFoundError):  # Documented: a signature that is not there.
            load_evidence(folder, root.pem).opened_by(key)

    def signed(path: pathlib.Path) -> Spot:
        return Spot(path.read_bytes(), lambda data: {path: data, path.with_suffix(".sig"): signer.sign(data)})

    def another(content: bytes) -> dict[pathlib.Path, bytes]:
        name, _, content = content.partition(b"\n")
        return {folder / os.fsdecode(re.sub(rb"[/\0]|^\.*$", b"_", name)[:255]): content}

    spots = [*map(_file, folder.iterdir()), *map(signed, folder.glob("*.json"))]
    return Parser(_from_files(folder, read), [*spots, Spot(b"0003.sig\n" + first.encode(), another)])


def time_stamps(folder: pathlib.Path) -> Parser:
    from benchmarks.authorities import TIME_STAMPING, certified, time_stamp
    from deepsigns_tf.timestamps import check_time_stamp, time_stamp_request

    root = certified("Root")
    reply = time_stamp(time_stamp_request(STATEMENT), certified("Authority", root, purposes=TIME_STAMPING), folder)

    def read(pair: tuple[bytes, bytes]) -> None:
        check_time_stamp(pair[0], STATEMENT, pair[1])

    return Parser(read, [Spot(reply, lambda data: (data, root.pem)), Spot(root.pem, lambda data: (reply, data))])


def answers(folder: pathlib.Path) -> Parser:
    """What the verdict on a model that can only be asked is drawn from."""
    from deepsigns_tf.questioning import Questioning

    path, key = folder / "answers.json", example_key()
    Questioning(key, path, "somebody").run(lambda inputs: np.zeros(len(inputs["a"]), int), max_queries=5)
    return Parser(_from_files(folder, lambda: Questioning(key, path, "somebody").verdict()), [_file(path)])


def second_verifier(folder: pathlib.Path) -> Parser:
    """The judge's: a key, a dump and the evidence, each of the claimant's making."""
    from deepsigns_tf.candidates import Candidates
    from deepsigns_tf.evidence import add_statement
    from deepsigns_tf.responses import Place
    from deepsigns_tf.signatures import SigningKey
    from scripts.dumps import write_dump
    from tests import independent_verifier

    chain = folder / "evidence"
    chain.mkdir()
    key = example_key()
    key.save(folder / "owner.key")
    means = np.random.default_rng(0).normal(size=(2, 20))
    found = {layer.carrier: {Place(layer.path, 0): means, Place("other", 1): -means} for layer in key.layers}
    write_dump(folder / "dump.npz", {name: Candidates(each, num_admissible=3) for name, each in found.items()})
    add_statement(chain, SigningKey(bytes(32)), key)
    key_file, dump_file, statement_file = folder / "owner.key", folder / "dump.npz", chain / "0001.json"

    def read() -> None:
        independent_verifier.verify(key_file, dump_file, chain)

    spots = [*map(_file, (key_file, dump_file, statement_file)), *_spots_of_key(key_file)]
    spots += _spots_of_archive(dump_file.read_bytes(), lambda archive: {dump_file: archive})
    return Parser(_from_files(folder, read), spots)


def suspect(folder: pathlib.Path) -> Parser:
    """A model's file, as a whole and its configuration alone, as far as it is judged before a process is started for it."""
    from deepsigns_tf.suspect_files import SuspectLimits, look_at_file
    from tests.malicious_files import members, pack

    # Weights are looked at in the process; here how they begin and their size.
    parts = members() | {"model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(992)}
    path = pack(folder, parts)

    def with_config(config: bytes) -> dict[pathlib.Path, bytes]:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            for name, data in (parts | {"config.json": config}).items():
                file.writestr(name, data)
        return {path: content.getvalue()}

    spots = [_file(path), Spot(parts["config.json"], with_config)]
    return Parser(_from_files(folder, lambda: look_at_file(path, SuspectLimits())), spots)


def weights(folder: pathlib.Path) -> Parser:
    """A model's weights, as its process looks at them before the framework starts."""
    import h5py

    from deepsigns_tf.suspect_weights import look_at_weights

    spots = []
    # Keras writes the first; HDF5 reads both.
    for version in ("earliest", "latest"):
        content = io.BytesIO()
        with h5py.File(content, "w", libver=version) as file:
            file["dense/vars/0"] = np.ones((4, 2), "float32")
            file["dense/vars/1"] = np.zeros(2, "float16")
            file["step"] = np.int64(3)
        spots.append(Spot(content.getvalue()))
    return Parser(lambda content: look_at_weights(io.BytesIO(content)), spots)


def message(folder: pathlib.Path) -> Parser:
    """What a suspect's process says."""
    from deepsigns_tf.suspect_pipe import Pipe, TalkError

    path = folder / "message"
    with path.open("wb") as file:
        Pipe(-1, file.fileno()).send({"places": [[0, "hidden", 0]]}, [np.ones((2, 3), "float32"), np.arange(4)])

    def read() -> None:
        with path.open("rb") as file:
            try:
                Pipe(file.fileno(), -1).receive(2**20, time.monotonic() + MAX_SECONDS)
            except TalkError as error:
                raise ValueError(f"No message. Expected one. Received: {error}") from None

    def behind_its_length(header: bytes) -> dict[pathlib.Path, bytes]:
        return {path: len(header).to_bytes(8, "big") + header + bytes(56)}

    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "big")]
    return Parser(_from_files(folder, read), [_file(path), Spot(header, behind_its_length)])


def attacks(folder: pathlib.Path) -> Parser:
    """What `scripts.report` takes from `scripts.attack`."""
    # Which it imports when it first reads: no file's fault.
    import deepsigns_tf.report  # noqa: F401
    from scripts.report import _attacks_in

    path = folder / "attacks.json"
    rows = [{"attack": "prune", "survived": "yes", "accuracy": 0.5}, {"attack": "rewind", "survived": "removed"}]
    path.write_text(json.dumps({"command": "c", "date": "d", "hardware": "h", "rows": rows}))
    return Parser(_from_files(folder, lambda: _attacks_in(str(path))), [_file(path)])


PARSERS: dict[str, Callable[[pathlib.Path], Parser]] = {
    "canonical JSON": canonical_json,
    "statement": statement,
    "signing key": signing_key,
    "owner key": owner_key,
    "evidence": evidence,
    "time-stamp": time_stamps,
    "answers": answers,
    "second verifier": second_verifier,
    "suspect": suspect,
    "weights": weights,
    "message": message,
    "attacks": attacks,
}
# Their inputs are made by `openssl ts`.
NEED_OPENSSL = {"evidence", "time-stamp"}


def example_key() -> Any:
    """A key with a bit of everything in it."""
    import deepsigns_tf as ds
    from deepsigns_tf.carriers import CarrierLayer

    carriers = [ds.Carrier("early", [0, 1], 4), ds.Carrier("late é", [1, 3], 3, "flatten", "gaussian")]
    inputs = {"a": np.arange(16.0).reshape(8, 2), "b": np.arange(8, dtype="uint8")}
    key = ds.OwnerKey("Öwner", carriers, ds.DecisionRule(), bytes(range(32)), reference=64 * "a")
    key = key.with_key_inputs(inputs, np.arange(8) % 4, 1)
    key = key.with_triggers("noise", 25, 3, inputs)
    return key.with_layers([CarrierLayer(each.name, f"layer {each.name}", 20) for each in carriers])


def _from_files(folder: pathlib.Path, read: Callable[[], object]) -> Callable[[dict[pathlib.Path, bytes]], None]:
    """Reads a folder in which some files are others for once."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def write_and_read(others: dict[pathlib.Path, bytes]) -> None:
        _replace(others)
        try:
            read()
        finally:
            for path in others.keys() - files.keys():
                path.unlink()
            _replace({path: files[path] for path in others.keys() & files.keys()})

    return write_and_read


def _replace(files: dict[pathlib.Path, bytes]) -> None:
    for path, content in files.items():
        # Anew: ext4 waits for the disk where a file is cut to nothing and written again.
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def _file(path: pathlib.Path) -> Spot:
    return Spot(path.read_bytes(), lambda data: {path: data})


def _spots_of_key(path: pathlib.Path) -> list[Spot]:
    """What the digest of a key file is of, and each member of its archive."""
    from tests.independent_verifier import MAGIC

    data = path.read_bytes()[len(MAGIC) + 32 :]

    def sealed(data: bytes) -> dict[pathlib.Path, bytes]:
        return {path: MAGIC + hashlib.sha256(data).digest() + data}

    return [Spot(data, sealed), *_spots_of_archive(data[4:], lambda archive: sealed(data[:4] + archive))]


def _spots_of_archive(archive: bytes, packed: Callable[[bytes], Any]) -> list[Spot]:
    """Each member; of a header the JSON alone, which a changed array would seldom hold."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        members = {name: file.read(name) for name in file.namelist()}

    def zipped(name: str, member: bytes) -> Any:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            for each, data in (members | {name: member}).items():
                file.writestr(each, data)
        return packed(content.getvalue())

    def with_header(data: bytes) -> Any:
        member = io.BytesIO()
        np.save(member, np.frombuffer(data, np.uint8))
        return zipped("header.npy", member.getvalue())

    header = np.load(io.BytesIO(members["header.npy"])).tobytes()
    spots = [Spot(member, lambda data, name=name: zipped(name, data)) for name, member in members.items()]
    return [Spot(header, with_header), *spots]


def fuzz(name: str, num: int) -> None:
    """Tries out so many files, one in ten of them random, and ends the process; prints what it took."""
    import atheris

    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzzing"))
    (folder / "read").mkdir()
    with atheris.instrument_imports(include=["deepsigns_tf", "tests"]):
        parser = PARSERS[name](folder / "read")
    assert all(map(parser.try_out, parser.seeds)), "what nobody has touched must be read"
    started = time.monotonic()
    counts = {True: 0, False: 0}

    def try_one(data: bytes) -> None:
        try:
            counts[parser.try_out(data)] += 1
        except BaseException:
            traceback.print_exc()
            print(f"by {data!r}", file=sys.stderr, flush=True)
            os._exit(1)
        if sum(counts.values()) == num:
            figures = {
                "parser": name,
                "inputs": num,
                "read": counts[True],
                "seconds": round(time.monotonic() - started, 1),
                "mib": round(parser.most_bytes / 2**20, 1),
            }
            print(json.dumps(figures), flush=True)
            os._exit(0)

    generator = random.Random(SEED)
    for _ in range(num // 10):
        try_one(generator.randbytes(generator.randrange(300)))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(parser.seeds):
        (corpus / str(number)).write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return mutated(data, random.Random(seed))[:max_size] if seed % 2 else atheris.Mutate(data, max_size)

    # It ends by `try_one`.
    options = [
        f"-seed={SEED}",
        f"-timeout={MAX_SECONDS}",
        "-max_len=8192",
        "-len_control=0",
        "-verbosity=0",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]))
