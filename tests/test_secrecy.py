"""No file, print or error shows the seed or what derives from it; only the owner key's own file does."""

import base64
import copy
import gzip
import hashlib
import io
import itertools
import json
import pickle
import traceback
import warnings
import zipfile

import h5py
import keras
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

import deepsigns_tf as ds
from deepsigns_tf.readings import SignatureReader

# Bytes of a float32 array that are enough to know it by.
WINDOW = 64


class Scanner:
    """Looks for one key's secrets in bytes, inside zip archives and HDF5 files too."""

    def __init__(self, key, carrier, num_units):
        bits = key.signature(carrier)
        signs = (2.0 * bits - 1.0).astype("<f4")
        projection = key.projection(carrier, num_units).astype("<f4")
        self.arrays = {"projection": projection, "signs": signs, "bits": bits.astype("<f4")}
        self.words = {**self._words_of_seed(key.seed), **self._words_of_bits(bits)}
        for separator in (",", ", ", " "):
            row = separator.join(map(str, projection.ravel()[:32].tolist()))
            self.words[f"projection, text with {separator!r}"] = row.encode()
        self.windows = {}
        for name, array in self.arrays.items():
            for order, flat in (("row-major", array.ravel()), ("column-major", array.T.ravel())):
                self._add_windows(f"{name}, {order}", flat.tobytes(), 4)
        self._add_windows("projection as bytes", projection.astype(np.int8).tobytes(), 1)
        if key.triggers is not None:
            for name, array in key.triggers.arrays.items():
                self._add_windows(f"triggers {name}", array.tobytes(), array.itemsize)
            for separator in (",", ", ", " ", "\n"):
                text = separator.join(map(str, key.triggers.labels.tolist()))
                self.words[f"labels of triggers, text with {separator!r}"] = text.encode()
            for dtype in ("u1", "<i4", "<i8", "<f4"):
                self.words[f"labels of triggers, {dtype}"] = key.triggers.labels.astype(dtype).tobytes()
        self.heads = np.unique(np.array([int.from_bytes(window[:8], "little") for window in self.windows], np.uint64))

    @staticmethod
    def _words_of_seed(seed):
        words = {}
        for name, part in (("first half of the seed", seed[:16]), ("second half of the seed", seed[16:])):
            words[f"{name}, raw"] = part
            words[f"{name}, as Python prints it"] = repr(part)[2:-1].encode()
            words[f"{name}, hexadecimal"] = part.hex().encode()
            words[f"{name}, large hexadecimal"] = part.hex().upper().encode()
            # Base64 depends on where in a group of three bytes the secret begins; the edges depend on its neighbours.
            for offset in range(3):
                encoded = base64.b64encode(bytes(offset) + part)[4 if offset else 0 : -4]
                words[f"{name}, base64 at {offset}"] = encoded
                words[f"{name}, base64 for addresses at {offset}"] = encoded.translate(bytes.maketrans(b"+/", b"-_"))
        return words

    @staticmethod
    def _words_of_bits(bits):
        # One class of a large mark, all classes of a small one: fewer than 16 bits occur anywhere by chance.
        rows = bits if bits.shape[1] >= 16 else bits.reshape(1, -1)
        words = {}
        for index, row in enumerate(rows):
            words[f"bits {index}, as bytes"] = row.tobytes()
            for separator in ("", " ", ",", ", ", "\n"):
                words[f"bits {index}, text with {separator!r}"] = separator.join(map(str, row.tolist())).encode()
                words[f"signs {index}, text with {separator!r}"] = separator.join(
                    str(2 * bit - 1) for bit in row.tolist()
                ).encode()
            words[f"bits {index}, booleans"] = str(row.astype(bool).tolist()).encode()
        if bits.size >= 64:
            words |= {
                f"bits, packed {order}": np.packbits(bits, bitorder=order).tobytes() for order in ("big", "little")
            }
        return words

    def _add_windows(self, name, data, size):
        for start in range(0, len(data) - WINDOW + 1, size):
            window = data[start : start + WINDOW]
            entries = [window[at : at + size] for at in range(0, WINDOW, size)]
            # Long runs of one number stand in every file.
            if max(map(entries.count, entries)) <= 0.85 * len(entries):
                self.windows[window] = name

    def scan(self, data, place):
        """The secrets found in `data` and in everything packed into it, as "place: secret"."""
        found = [f"{place}: {name}" for name, word in self.words.items() if word in data]
        windows = self.windows
        found += {
            f"{place}: {windows[data[start : start + WINDOW]]}"
            for start in self._starts(data)
            if data[start : start + WINDOW] in windows
        }
        if data.startswith(b"\x1f\x8b"):
            found += self.scan(gzip.decompress(data), f"{place}, unpacked")
        if data.startswith(b"\x89PNG"):
            with PIL.Image.open(io.BytesIO(data)) as image:
                found += self.scan(image.tobytes(), f"{place}, pixels")
                for note in image.info.values():
                    found += self.scan(str(note).encode("latin-1", "replace"), f"{place}, note")
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.infolist():
                    found += self.scan(archive.read(member), f"{place}/{member.filename}")
        if data.startswith(b"\x89HDF"):
            with h5py.File(io.BytesIO(data)) as file:
                found += self._scan_group(file, place)
        return found

    def _starts(self, data):
        """Where eight bytes stand with which a window begins."""
        for offset in range(min(8, len(data))):
            words = np.frombuffer(data, "<u8", (len(data) - offset) // 8, offset)
            yield from (8 * np.flatnonzero(np.isin(words, self.heads)) + offset).tolist()

    def _scan_group(self, group, place):
        found = []
        for name, value in group.attrs.items():
            found += self._scan_value(value, f"{place}/{name} (attribute)")
        for name, item in group.items():
            if isinstance(item, h5py.Group):
                found += self._scan_group(item, f"{place}/{name}")
            else:
                found += self._scan_value(item[()], f"{place}/{name}")
        return found

    def _scan_value(self, value, place):
        array = np.asarray(value)
        data = str(value).encode() if array.dtype.kind in "OSU" else array.tobytes()
        return self.scan(data, place)

    def scan_folder(self, folder, but=()):
        """Scans every file below a folder; event files by their graphs, too."""
        found = []
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in but:
                found += self.scan(path.read_bytes(), path.name)
                if "tfevents" in path.name:
                    for graph in graphs_of(path):
                        found += self.scan_graph(graph, path.name)
        return found

    def scan_graph(self, graph, place):
        """Compares every constant of a graph with the secrets, whatever its shape and encoding."""
        found = []
        for array in constants_of(graph):
            for name, secret in self.arrays.items():
                if array.size == secret.size and array.dtype.kind in "fiub":
                    same = (np.array_equal(array.ravel(), each.ravel()) for each in (secret, secret.T))
                    found += [f"{place}, constant: {name}"] * any(same)
            if array.dtype.kind in "fiub":
                found += self.scan(array.tobytes(), f"{place}, constant")
        return found


def graphs_of(path):
    """Every GraphDef in an event file: plain ones and those that the profiler's trace holds."""
    import tensorflow as tf

    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        if event.graph_def:
            yield tf.compat.v1.GraphDef.FromString(event.graph_def)
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name.startswith("graph_run_metadata"):
                trace = tf.compat.v1.RunMetadata.FromString(value.tensor.string_val[0])
                for traced in trace.function_graphs:
                    yield from (traced.pre_optimization_graph, traced.post_optimization_graph, *traced.partition_graphs)
                yield from trace.partition_graphs


def nodes_of(graph):
    return itertools.chain(graph.node, *(function.node_def for function in graph.library.function))


def constants_of(graph):
    import tensorflow as tf

    for node in nodes_of(graph):
        if node.op == "Const":
            yield np.asarray(tf.make_ndarray(node.attr["value"].tensor))


# A mark of usual size, one with the paper's projection and centres, and one so small (16 bits, 64 entries) that TensorFlow
# would write it into a graph if it were a constant: it does so up to 128 elements.
MARKS = {
    "usual": (ds.Carrier("features", range(4), 32), 128, {}),
    "gaussian": (ds.Carrier("features", range(4), 24, projection="gaussian"), 64, {"centres": "learned"}),
    "small": (ds.Carrier("features", range(4), 4), 16, {}),
}


@pytest.fixture(params=MARKS)
def mark(request, blobs):
    """A key, its scanner, and a function that builds the network that it marks."""
    carrier, num_units, settings = MARKS[request.param]
    # Fixed seeds: about one in 10,000 random ones has 16 bits that stand in some file by chance.
    seed = hashlib.sha256(request.param.encode()).digest()
    key = ds.OwnerKey("ACME Vision", [carrier], ds.DecisionRule(), seed)
    key = key.with_key_inputs(*blobs, num_per_class=8)

    def build():
        inputs = keras.Input((16,))
        regularizer = ds.SignatureRegularizer(key, "features", **settings)
        x = keras.layers.Dense(num_units, activation="relu", activity_regularizer=regularizer, name="hidden")(inputs)
        return ds.WatermarkedModel(inputs, keras.layers.Dense(4, name="logits")(x))

    return key, Scanner(key, "features", num_units), build


def train(model, blobs, folder, key, callbacks=()):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    callbacks = [
        ds.SignatureLogger(key),
        *callbacks,
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.ModelCheckpoint(folder / "checkpoint_{epoch}.keras"),
        keras.callbacks.ModelCheckpoint(folder / "checkpoint_{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
    ]
    model.fit(*blobs, batch_size=64, epochs=2, validation_data=blobs, callbacks=callbacks, verbose=1)


def release_quietly(model, key):
    """Two epochs may be too few for a mark; what the warning says is returned to be scanned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain, key = ds.release(model, key)
    return plain, key, [str(warning.message) for warning in caught]


@pytest.mark.any_backend
def test_no_file_and_no_print_of_training_and_release_holds_a_secret(mark, blobs, tmp_path, capfd):
    key, scanner, build = mark
    model = build()
    print(key, model.get_layer("hidden").activity_regularizer, key.carriers, key.commitment(), key.fingerprint)
    model.summary()
    train(model, blobs, tmp_path, key)
    model.save(tmp_path / "marked.keras")
    plain, key, warned = release_quietly(model, key)
    plain.save(tmp_path / "released.keras")
    key.save(tmp_path / "owner.key")
    verdict = ds.verify(plain, key, commitment=key.commitment())
    (tmp_path / "verdict.json").write_text(json.dumps(verdict.to_dict()))
    (tmp_path / "configs.json").write_text(
        json.dumps([model.get_config(), model.to_json(), plain.to_json(), model.get_compile_config()], default=str)
    )
    print(key, verdict, verdict.summary(), verdict.readings, key.layers, repr(model), *warned)

    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"checkpoint_1.keras", "checkpoint_2.weights.h5", "latest.weights.h5", "log.csv", "owner.key"} <= written
    assert scanner.scan_folder(tmp_path, but=["owner.key"]) == []
    printed = capfd.readouterr()
    assert "features_bit_error_rate" in printed.out and "OwnerKey(" in printed.out
    assert scanner.scan(printed.out.encode(), "stdout") == []
    assert scanner.scan(printed.err.encode(), "stderr") == []
    # The one file that may hold the seed does, and the scanner sees it there: behind a header, in a zip archive.
    content = (tmp_path / "owner.key").read_bytes()
    assert scanner.scan(content[content.index(b"PK") :], "owner.key") != []


def test_no_event_file_and_no_graph_holds_a_secret(mark, blobs, tmp_path, capfd):
    """Keras writes the graph of a profiled step; the whole step is written beside it, as older releases did."""
    import tensorflow as tf

    key, scanner, build = mark
    model = build()
    board = keras.callbacks.TensorBoard(tmp_path / "board", write_graph=True, update_freq=1, profile_batch=(1, 2))
    train(model, blobs, tmp_path, key, [board])
    x, y = (tf.constant(each[:8]) for each in blobs)
    step = tf.function(lambda x, y: model.train_step((x, y))).get_concrete_function(x, y)
    with tf.summary.create_file_writer(str(tmp_path / "graph")).as_default():
        tf.summary.graph(step.graph)
    model.export(tmp_path / "exported", verbose=False)

    for folder in ("board", "graph"):
        graphs = [graph for path in (tmp_path / folder).rglob("*tfevents*") for graph in graphs_of(path)]
        names = [node.name for graph in graphs for node in nodes_of(graph) if node.op == "MatMul"]
        # It is the training step that was written, with the product of class means and projection in it.
        assert any("hidden" in name for name in names) and len(set(names)) > 4
        assert sum(1 for graph in graphs for _ in constants_of(graph)) > 20
    assert (tmp_path / "exported" / "saved_model.pb").exists()
    assert scanner.scan_folder(tmp_path) == []
    capfd.readouterr()


@pytest.mark.any_backend
def test_no_error_text_holds_a_secret(mark, blobs, tmp_path):
    key, scanner, build = mark
    model = build()
    model.save(tmp_path / "marked.keras")
    plain, released, _ = release_quietly(model, key)
    released.save(tmp_path / "owner.key")
    other = ds.OwnerKey("ACME Vision", key.carriers, key.decision, bytes(32)).with_key_inputs(*blobs, num_per_class=8)
    content = (tmp_path / "owner.key").read_bytes()
    (tmp_path / "truncated.key").write_bytes(content[:-1])
    (tmp_path / "foreign.key").write_bytes(content[10:])
    keyless = keras.models.load_model(tmp_path / "marked.keras")
    keyless.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def revive_with_another_key():
        with ds.owner_key_scope(other):
            keras.models.load_model(tmp_path / "marked.keras")

    errors = []
    for provoke in (
        lambda: ds.OwnerKey(key.owner, key.carriers, key.decision, key.seed[:-1]),
        lambda: ds.OwnerKey(key.owner, key.carriers, key.decision, key.seed.hex()),
        lambda: ds.OwnerKey("", key.carriers, key.decision, key.seed),
        lambda: key.carrier("absent"),
        lambda: key.projection("features", 2),
        lambda: key.with_key_inputs(*blobs),
        lambda: released.with_layers(released.layers * 2),
        lambda: pickle.dumps(key),
        lambda: pickle.dumps(SignatureReader(key, "features", scanner.arrays["projection"].shape[0])),
        lambda: ds.OwnerKey(key.owner, key.seed, key.decision, key.carriers),
        lambda: ds.OwnerKey(key.owner, key.carriers, key.seed, key.decision),
        lambda: ds.OwnerKey(key.owner, key.carriers, key.decision, key.seed, key.seed),
        lambda: ds.OwnerKey(key.owner, key.carriers, key.decision, key.seed, layers=key.seed),
        lambda: ds.OwnerKey.load(tmp_path / "truncated.key"),
        lambda: ds.OwnerKey.load(tmp_path / "foreign.key"),
        lambda: ds.verify(plain, released, commitment=other.commitment()),
        lambda: ds.verify(plain, key),
        lambda: ds.verify(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), released),
        lambda: ds.release(model, other),
        lambda: keyless.fit(*blobs, verbose=0),
        revive_with_another_key,
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            provoke()
        errors.append("".join(traceback.format_exception(error.value)))
    assert [scanner.scan(text.encode(), text.splitlines()[-1]) for text in errors] == [[]] * len(errors)


@pytest.mark.slow
def test_no_artefact_of_a_whole_run_holds_a_secret(tmp_path, monkeypatch, capfd):
    """From training with both marks to a report: all that is written and printed, but for the key's own file."""
    pytest.importorskip("deepsigns_tf.evidence", reason="evidence needs `deepsigns_tf[evidence]`")
    from deepsigns_tf.evidence import load_evidence
    from deepsigns_tf.files import write_atomically
    from deepsigns_tf.report import Report
    from scripts import checkpoints, commit, release, train_mnist_mlp, verify

    folder, kept = tmp_path / "run", itertools.count()

    def write_and_keep(path, data):
        write_atomically(path, data)
        write_atomically(tmp_path / f"{next(kept)}.checkpoint", data)

    monkeypatch.setattr(checkpoints, "write_atomically", write_and_keep)
    settings = {"epochs": 4, "num_triggers": 20, "batch_size": 64, "num_triggers_per_batch": 16}
    train_mnist_mlp.run(train_mnist_mlp.Config(str(folder), dataset="synthetic", **settings))
    model, key_file = str(folder / "marked.keras"), str(folder / "owner.key")
    stated = {
        "owner_key": key_file,
        "signing_key": str(tmp_path / "signing.pem"),
        "evidence": str(tmp_path / "evidence"),
    }
    commit.run(commit.Config(**stated))
    release.run(release.Config(model=model, release_id="1.0", **stated))
    for by in ("weights", "answers"):
        files = {"verdict": str(tmp_path / f"{by}.json")} | (
            {"dump": str(tmp_path / "dump.npz")} if by == "weights" else {}
        )
        assert verify.run(verify.Config(model, key_file, by=by, evidence=stated["evidence"], **files)) == 0
    key = ds.OwnerKey.load(key_file)
    report = Report(
        ds.verify(keras.models.load_model(model), key, evidence=load_evidence(stated["evidence"])), "marked.keras"
    )
    (tmp_path / "report.html").write_text(report.to_html())
    (tmp_path / "report.json").write_text(json.dumps(report.to_dict()))
    errors = []
    for provoke in (
        lambda: commit.run(commit.Config(**stated | {"signing_key": key_file})),
        lambda: release.run(
            release.Config(model=model, release_id="2.0", **stated | {"owner_key": stated["signing_key"]})
        ),
        lambda: verify.run(verify.Config(model, key_file, commitment=64 * "a")),
        lambda: verify.run(verify.Config(key_file, key_file)),
        lambda: train_mnist_mlp.run(train_mnist_mlp.Config(str(folder), dataset="synthetic", resume=True)),
    ):
        with pytest.raises(ValueError) as error:
            provoke()
        errors.append("".join(traceback.format_exception(error.value)))

    printed = capfd.readouterr()
    for name, text in {"stdout": printed.out, "stderr": printed.err, "errors": "".join(errors)}.items():
        (tmp_path / name).write_text(text)
    scanner = Scanner(key, "features", key.layers[0].num_units)
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in paths}
    assert kinds >= {".checkpoint", ".csv", ".html", ".json", ".keras", ".npz", ".png", ".sig", ".tsq", ".txt"}
    assert "MARKED" in printed.out and any("tfevents" in path.name for path in paths) and len(errors) == 5
    assert scanner.scan_folder(tmp_path, but=["owner.key"]) == []
    print(
        f"{len(paths)} files of {sum(path.stat().st_size for path in paths)} bytes, "
        f"{len(scanner.words)} words, {len(scanner.windows)} windows"
    )
    # The control: it is found in the key's own file, and planted in any other; large ones would take their time again.
    content = (folder / "owner.key").read_bytes()
    assert scanner.scan(content[content.index(b"PK") :], "owner.key") != []
    for path in paths:
        if path.stat().st_size < 2**20:
            assert scanner.scan(path.read_bytes() + key.seed, path.name) != []


@pytest.mark.any_backend
def test_a_copied_key_shows_no_more_than_the_key(mark):
    key, scanner, _ = mark
    for shown in (repr(copy.copy(key)), repr(copy.deepcopy(key)), str(key), f"{[key]}"):
        assert "ACME Vision" in shown
        assert scanner.scan(shown.encode(), "repr") == []


# The scanner itself: a search that cannot find proves nothing.


def as_file(write):
    def plant(secret, folder):
        write(folder / "planted", secret)

    return plant


def in_zip(path, secret):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner/member", b"before" + secret + b"after" * 100)


def in_nested_zip(path, secret):
    inner = path.with_name("inner.zip")
    in_zip(inner, secret)
    content = inner.read_bytes()
    inner.unlink()
    in_zip_member = io.BytesIO()
    with zipfile.ZipFile(in_zip_member, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", content)
    path.write_bytes(in_zip_member.getvalue())


def in_compressed_hdf5(path, secret):
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "layers/hidden/vars/0", data=np.frombuffer(secret, np.uint8), compression="gzip", chunks=True
        )


def in_hdf5_attribute(path, secret):
    with h5py.File(path, "w") as file:
        file.create_group("layers").attrs["note"] = np.frombuffer(secret, np.uint8)


def in_gzip(path, secret):
    path.write_bytes(gzip.compress(b"before" + secret))


def in_picture(path, secret):
    """Beside the pixels, as whoever draws may note with what settings."""
    notes = PIL.PngImagePlugin.PngInfo()
    notes.add_text("settings", secret.decode("latin-1"), zip=True)
    PIL.Image.new("RGB", (8, 8)).save(path, "PNG", pnginfo=notes)


PLACES = {
    "file": lambda path, secret: path.write_bytes(b"x" * 7 + secret + b"y"),
    "zip": in_zip,
    "zip in zip": in_nested_zip,
    "compressed HDF5": in_compressed_hdf5,
    "HDF5 attribute": in_hdf5_attribute,
    "gzip": in_gzip,
    "picture": in_picture,
}


def forms_of_secrets(key, num_units):
    """Every form in which a secret could leak, with no help from the scanner."""
    seed, bits, projection = key.seed, key.signature("features"), key.projection("features", num_units)
    row = bits[0].tolist() if bits.shape[1] >= 16 else bits.ravel().tolist()
    forms = {
        "seed": seed,
        "printed": repr(seed).encode(),
        "hexadecimal": seed.hex().encode(),
        "base64": base64.b64encode(seed),
        "base64 in the middle": base64.b64encode(b"{" + seed + b"}"),
        "urlsafe or standard base64 after two bytes": base64.b64encode(b"ab" + seed),
        "signs": (2.0 * bits - 1.0).astype("float32").tobytes(),
        "bits as floats": bits.astype("float32").tobytes(),
        "bits as bytes": bits.tobytes(),
        "bits as text": "".join(map(str, row)).encode(),
        "bits as JSON": json.dumps(row).encode(),
        "bits as a printed array": str(np.array(row)).encode(),
        "projection": projection.tobytes(),
        "projection as JSON": json.dumps(projection.ravel().tolist()).encode(),
        "a slice of the projection": projection.tobytes()[36 : 36 + WINDOW],
        "transposed projection": np.ascontiguousarray(projection.T).tobytes(),
    }
    if bits.size >= 64:
        forms["packed bits"] = np.packbits(bits).tobytes()
    return forms


@pytest.mark.any_backend
def test_the_scanner_finds_every_form_of_a_secret_in_every_place(mark, tmp_path):
    key, scanner, _ = mark
    num_units = scanner.arrays["projection"].shape[0]
    for place, plant in PLACES.items():
        folder = tmp_path / place
        folder.mkdir()
        plant(folder / "innocent", bytes(1000) + b"features" + bytes(range(256)))
        assert scanner.scan_folder(folder) == []
        for form, secret in forms_of_secrets(key, num_units).items():
            plant(folder / "planted", secret)
            assert scanner.scan_folder(folder), f"{form} in {place}"
            assert scanner.scan_folder(folder, but=["planted"]) == []


@pytest.mark.any_backend
def test_the_scanner_finds_a_secret_in_a_checkpoint(mark, tmp_path):
    """As a tracked variable, in the optimizer's slots' neighbourhood, and as an entry of a layer's configuration."""
    key, scanner, build = mark
    model = build()
    projection = scanner.arrays["projection"]
    leak = keras.layers.Dense(projection.shape[1], name="leak")
    outputs = leak(keras.layers.Dense(projection.shape[0])(model.inputs[0]))
    leaking = keras.Model(model.inputs[0], outputs)
    leak.set_weights([projection, np.zeros(projection.shape[1])])
    leaking.save(tmp_path / "leaking.keras")
    leaking.save_weights(tmp_path / "leaking.weights.h5")
    found = scanner.scan_folder(tmp_path)
    assert {line.partition("/")[0] for line in found} >= {"leaking.keras", "leaking.weights.h5"}


def test_the_scanner_finds_a_constant_in_a_written_graph(mark, tmp_path):
    """A mark held as an eager constant: TensorFlow writes a small one into the graph."""
    import tensorflow as tf

    def times(constant):
        return tf.function(lambda x: x * constant).get_concrete_function(tf.constant(1.0))

    _, scanner, _ = mark
    for name, secret in scanner.arrays.items():
        if secret.size > 128:
            continue
        folder = tmp_path / name
        step = times(tf.constant(secret))
        with tf.summary.create_file_writer(str(folder)).as_default():
            tf.summary.graph(step.graph)
        (path,) = folder.rglob("*tfevents*")
        (graph,) = graphs_of(path)
        assert scanner.scan_graph(graph, "graph")
        assert scanner.scan_folder(folder)
