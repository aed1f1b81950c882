"""Files of somebody else's: hostile ones are refused before they act, honest ones read as in this process."""

import contextlib
import importlib
import inspect
import io
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import zipfile

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf import suspect_builtins, suspect_jail, suspects
from deepsigns_tf.carriers import CarrierLayer
from deepsigns_tf.files import file_digest
from deepsigns_tf.recovery import read_aligned
from deepsigns_tf.responses import LocalModel, Place, Role
from deepsigns_tf.suspect_files import WEIGHTS, LookedAt, SuspectLimits, look_at_file, parse_json
from deepsigns_tf.suspect_pipe import Pipe, TalkError
from deepsigns_tf.suspect_weights import look_at_weights
from deepsigns_tf.suspects import Suspect, load_suspect
from deepsigns_tf.weights_digest import weights_digest
from tests.honest_models import HONEST, NUM_EXAMPLES, inputs_for
from tests.malicious_files import (
    MALICIOUS,
    Canary,
    Escaping,
    lambda_layer,
    members,
    model,
    pack,
    with_layer,
    with_setting,
)

GIB = 1 << 30
ISOLATED = "in a network of its own, unable to change files"
EVERYTHING = Role((0, 1, 2), "mean", bits_per_class=1, least_units=1, most_units=1 << 20)
LABELS = np.arange(NUM_EXAMPLES) % 3
# Children that start TensorFlow take seconds each: the default suite has a few, `make test-slow` all.
SAMPLE = {"residual", "silent shape bomb"}


def sampled(names):
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def listener():
    """Somebody who listens to a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server


@pytest.fixture
def canary(tmp_path, listener):
    (tmp_path / "outside").mkdir()
    return Canary(tmp_path / "outside" / "canary", listener.getsockname()[1])


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "files"
    path.mkdir()
    return path


def connected(server):
    """Whether anybody connected since the last time."""
    try:
        server.accept()[0].close()
    except TimeoutError:
        return False
    return True


def memory(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)[1])


@contextlib.contextmanager
def memory_watched(most_bytes):
    """Whether this process grows by more than so much for a moment."""
    # Sets the kernel's high-water mark back.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < most_bytes


def save(folder, network):
    path = folder / "model.keras"
    network.save(path)
    return path


# Hostile files


@pytest.mark.parametrize(
    "name",
    [
        name if each.refused_by != "loading" or name in SAMPLE else pytest.param(name, marks=pytest.mark.slow)
        for name, each in MALICIOUS.items()
    ],
)
def test_a_malicious_file_is_refused_before_it_acts(name, folder, canary, listener, monkeypatch):
    attack = MALICIOUS[name]
    path = attack.build(folder, canary)
    started = []
    start = suspects._started
    monkeypatch.setattr(suspects, "_started", lambda *given: started.append(start(*given)) or started[-1])
    # A module that lies where the verifier works could be imported by its name.
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    connected(listener)
    before = sorted(folder.rglob("*"))
    began = time.process_time()
    with memory_watched(64 << 20), pytest.raises(ValueError) as error:
        load_suspect(path)
    took = time.process_time() - began
    assert re.search(attack.told, str(error.value))
    assert re.search(r"^[^.].*\. Expected .*\. Received: ", str(error.value))
    assert not canary.path.exists() and not connected(listener)
    assert sorted(folder.rglob("*")) == before
    assert "evil_module" not in sys.modules
    # What the look at the file sees costs no process, and no time either; no process is left.
    assert bool(started) == (attack.refused_by != "file")
    assert started or took < 1.0
    assert all(process.poll() is not None for process in started)


def test_there_are_enough_of_them():
    assert len(MALICIOUS) >= 18


def test_the_canary_sees_what_acts(folder, canary, listener):
    """The same file as in the corpus, loaded as its makers want."""
    path = lambda_layer(folder, canary)
    connected(listener)
    keras.models.load_model(path, safe_mode=False)(np.ones((1, 4), "float32"))
    assert canary.path.exists() and connected(listener)


def test_what_passed_the_look_would_meet_the_safe_mode(folder, canary, listener):
    """The second line: the look left out."""
    path = lambda_layer(folder, canary)
    connected(listener)
    with zipfile.ZipFile(path) as archive:
        unseen = LookedAt(archive.read("config.json").decode(), archive.read(WEIGHTS), 0, "")
    with pytest.raises(ValueError, match="This suspect cannot be read. .*unsafe deserialization|.*safe_mode=False"):
        Suspect(unseen, SuspectLimits(), {})
    assert not canary.path.exists() and not connected(listener)


def test_what_breaks_out_is_in_a_jail(folder, canary, listener, monkeypatch):
    """The third line: code that runs in the child can write, connect, grow and see nothing."""
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    inputs = keras.Input((4,))
    monkeypatch.setattr(Escaping, "call", lambda self, x: x)
    path = save(folder, keras.Model(inputs, Escaping(str(canary.path.relative_to("/")), canary.port)(inputs)))
    monkeypatch.undo()
    # The address space of a page and a half of what the layer asks for is too little.
    limits = SuspectLimits(memory_bytes=GIB)
    with load_suspect(path, limits=limits, custom_objects={"Escaping": Escaping}) as suspect:
        if suspect.isolation != ISOLATED:
            pytest.skip(suspect.isolation)
        np.testing.assert_array_equal(suspect.predict(np.ones((2, 4), "float32")), np.zeros((2, 4)))
        assert suspect.caveats == ("code that whoever verifies trusted ran as part of the suspect: Escaping",)
    assert not canary.path.exists() and not connected(listener)


class SaysXlaFlags(keras.layers.Layer):
    """Answers with how many characters its process's flags for XLA have."""

    def call(self, inputs):
        return keras.ops.zeros_like(inputs) + len(os.environ.get("XLA_FLAGS", ""))


def test_the_verifiers_flags_for_xla_hold_for_suspects(folder, monkeypatch):
    """Where XLA compiles a network wrongly, flags are what helps, and the verdict is the child's."""
    inputs = keras.Input((4,))
    path = save(folder, keras.Model(inputs, SaysXlaFlags()(inputs)))
    flags = "--xla_cpu_enable_fast_math=false"
    monkeypatch.setenv("XLA_FLAGS", flags)
    with load_suspect(path, custom_objects={"SaysXlaFlags": SaysXlaFlags}) as suspect:
        np.testing.assert_array_equal(suspect.predict(np.ones((2, 4), "float32")), np.full((2, 4), len(flags)))


def test_a_model_that_grows_when_it_runs_stays_in_its_limits(folder):
    """Nothing in the file is large; the output of the second layer would be 32 GB."""
    network = keras.Sequential([keras.Input((8,)), keras.layers.RepeatVector(10**9)])
    with load_suspect(save(folder, network)) as suspect:
        with pytest.raises(ValueError, match="This suspect('s process gave no answer| cannot be read)"):
            suspect.predict(np.ones((1, 8), "float32"))
        assert suspect.peak_memory_bytes < 4 * GIB


def test_a_slow_model_is_ended(folder, monkeypatch):
    path = save(folder, model())
    monkeypatch.setattr(suspects, "_START", "import time; time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(ValueError, match="gave no answer. Expected one within .*load_s=0.5.*nothing in time"):
        load_suspect(path, limits=SuspectLimits(load_s=0.5))
    assert time.monotonic() - began < 10


# What a process says is hostile too

_TALK = """
import os, sys, types
package = types.ModuleType("deepsigns_tf"); package.__path__ = [sys.argv[1]]; sys.modules["deepsigns_tf"] = package
from deepsigns_tf.suspect_pipe import Pipe
import numpy as np
pipe = Pipe(0, 1)
"""
_NOT_REFUSED = dict.fromkeys(("user", "network", "files", "rights"), "")
_HELLO = (
    f'pipe.send({{"refusals": {_NOT_REFUSED}}}); pipe.send({{"inputs": {{}}, "layers": []}}); pipe.receive(1 << 40)\n'
)
_ROLE = Role((0, 1), "mean", 4, 8, 8)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("sys.exit(3)", "it ended with status 3"),
        ("os.kill(os.getpid(), 9)", "it ended by SIGKILL"),
        ("os.write(1, b'garbage, garbage, garbage')", "a header of"),
        ("os.write(1, (5).to_bytes(8, 'big') + b'[[[[[')", "JSON in UTF-8"),
        ("pipe.send({'places': [], 'admissible': [0]}, [np.zeros((2, 8))])", "does not say what it was asked"),
        ("pipe.send([1])", "does not say what it was asked"),
        ("pipe.send({'places': [[0, 'a', 0]], 'admissible': [0]}, [np.zeros((2, 8))])", "more places than layers"),
        ("pipe.send({'places': [[0, 'a', 0]] * 2, 'admissible': [5]}, [np.zeros((2, 8))] * 2)", "a place twice"),
        ("pipe.send({'places': [[0, 'a', 0]], 'admissible': [5]}, [np.zeros((3, 8))])", "float64 (3, 8)"),
        ("pipe.send({'places': [[0, 'a', 0]], 'admissible': [5]}, [np.zeros((2, 9))])", "float64 (2, 9)"),
        ("pipe.send({'places': [[0, 'a', 0]], 'admissible': [5]}, [np.zeros((2, 8), 'float32')])", "float32 (2, 8)"),
        ("pipe.send({'places': [[1, 'a', 0]], 'admissible': [5]}, [np.zeros((2, 8))])", "[1, 'a', 0]"),
        ("pipe.send({'places': [[0, '\\x1b', 0]], 'admissible': [5]}, [np.zeros((2, 8))])", "'\\x1b'"),
        ("pipe.send({'places': [], 'admissible': [-5]})", "does not say what it was asked"),
        ("pipe.send({}, [np.zeros(10**6)])", "arrays of 8000000 bytes, of which at most 1000000 are taken"),
        ("pipe.send({'failed': '\\x1b[31m' + 'x' * 10000})", "Received:  [31mxxx"),
    ],
)  # fmt: skip
def test_answers_are_looked_at(says, told, folder, monkeypatch):
    monkeypatch.setattr(suspects, "_START", _TALK + _HELLO + says)
    with load_suspect(save(folder, model()), limits=SuspectLimits(answer_bytes=10**6)) as suspect:
        with pytest.raises(ValueError) as error:
            suspect.class_means(np.ones((2, 4), "float32"), np.array([0, 1]), [_ROLE])
        assert told in str(error.value) and len(str(error.value)) < 3000


def test_an_answer_for_too_few_inputs_is_none(folder, monkeypatch):
    monkeypatch.setattr(suspects, "_START", _TALK + _HELLO + "pipe.send(None, [np.zeros((1, 2))])")
    with (
        load_suspect(save(folder, model())) as suspect,
        pytest.raises(ValueError, match="Expected one answer to each of 2 inputs"),
    ):
        suspect.predict(np.ones((2, 4), "float32"))


@pytest.mark.parametrize("digest", ["7", "'7'", f"'{64 * 'F'}'"])
def test_a_digest_that_is_none_is_not_compared(digest, folder, monkeypatch):
    monkeypatch.setattr(suspects, "_START", _TALK + _HELLO + f"pipe.send({digest})")
    with (
        load_suspect(save(folder, model())) as suspect,
        pytest.raises(ValueError, match="does not say what it was asked. Expected 64 hexadecimal digits"),
    ):
        suspect.digest_of_weights()


@pytest.mark.parametrize("layers", ["7", "[1]", "['\\n']"])
def test_a_process_that_describes_no_model_is_not_asked(layers, folder, monkeypatch):
    says = (
        f"pipe.send({{'refusals': {_NOT_REFUSED}}}); pipe.send({{'inputs': {{'a': [None, -1]}}, 'layers': {layers}}})"
    )
    monkeypatch.setattr(suspects, "_START", _TALK + says)
    with pytest.raises(ValueError, match="Expected names of inputs and layers"):
        load_suspect(save(folder, model()))


@pytest.mark.parametrize(
    ("refused", "isolation"),
    [
        ("network", "NOT in a network of its own (not permitted), unable to change files"),
        ("files", "in a network of its own, able to change files (not permitted)"),
        ("rights", f"{ISOLATED}, WITH RIGHTS of whoever verifies (not permitted)"),
        ("user", f"{ISOLATED}, without a user namespace of its own (not permitted)"),
    ],
)
def test_what_the_kernel_did_not_give_is_named_in_the_verdict(refused, isolation, folder, monkeypatch):
    refusals = _NOT_REFUSED | {refused: "not permitted"}
    says = (
        f"pipe.send({{'refusals': {refusals}}}); pipe.send({{'inputs': {{}}, 'layers': []}}); pipe.receive(1 << 40)\n"
    )
    answer = "pipe.send({'places': [[0, 'hidden', 0]], 'admissible': [1]}, [np.arange(256.0).reshape(2, 128)])"
    monkeypatch.setattr(suspects, "_START", _TALK + says + answer)
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", [0, 1], 32)])
    key = key.with_key_inputs(np.random.default_rng(0).random((64, 8)), np.arange(64) % 2, 32)
    key = key.with_layers([CarrierLayer("features", "hidden", 128)])
    with load_suspect(save(folder, model())) as suspect:
        verdict = ds.verify(suspect, key)
        assert suspect.isolation == isolation
    assert verdict.assumptions[-1] == (
        f"the suspect ran {suspect.isolation}: the kernel refused more; all other limits held"
    )


# Honest files


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_file_passes_the_look(name, folder):
    path = save(folder, HONEST[name]())
    looked_at = look_at_file(path, SuspectLimits())
    network = keras.models.load_model(path, compile=False)
    assert looked_at.num_weights <= network.count_params() <= look_at_weights(io.BytesIO(looked_at.weights))


def test_there_are_honest_files_of_all_families():
    assert len(HONEST) >= 20


@pytest.mark.parametrize("name", sampled(HONEST))
def test_an_honest_file_reads_as_in_this_process(name, folder):
    path = save(folder, HONEST[name]())
    # Layers without a name in the file are numbered from here on, as in a process of their own.
    keras.utils.clear_session()
    network = keras.models.load_model(path, compile=False)
    inputs = inputs_for(network)
    began = time.monotonic()
    with load_suspect(path) as suspect:
        seconds = time.monotonic() - began
        here = LocalModel(network)
        assert suspect.input_shapes() == here.input_shapes() and suspect.layer_paths() == here.layer_paths()
        assert suspect.file_digest == file_digest(path)
        for found, expected in (
            (suspect.class_means(inputs, LABELS, [EVERYTHING]), here.class_means(inputs, LABELS, [EVERYTHING])),
            (suspect.features(inputs, [EVERYTHING]), here.features(inputs, [EVERYTHING])),
        ):
            assert found[0].num_admissible == expected[0].num_admissible == len(found[0].arrays) > 0
            assert found[0].arrays.keys() == expected[0].arrays.keys()
            for place, array in expected[0].arrays.items():
                np.testing.assert_allclose(found[0].arrays[place], array, rtol=1e-5, atol=1e-5, err_msg=str(place))
        answers = network.predict(inputs, verbose=0)
        np.testing.assert_allclose(suspect.predict(inputs), np.asarray(answers, "float32"), rtol=1e-2, atol=1e-2)
        peak = suspect.peak_memory_bytes
        print(f"\nmeasured: {name}: {seconds:.1f} s to load, at most {peak / GIB:.2f} GiB")
        assert 0 < peak < 4 * GIB
    assert suspect.peak_memory_bytes >= peak


def test_a_suspect_is_verified_as_a_model_of_this_process_is(folder):
    network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden"), keras.layers.Dense(4)])
    random = np.random.default_rng(0)
    key = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", [0, 1], 32)])
    path = save(folder, network)
    key = key.with_reference(path).with_key_inputs(random.random((64, 8)), np.arange(64) % 2, 32)
    key = key.with_layers([CarrierLayer("features", "hidden", 128)])
    key = key.with_triggers("noise", 50, 4, random.random((50, 8)))
    with load_suspect(path) as suspect:
        assert (suspect.isolation == ISOLATED) == (suspect.caveats == ())
        assert suspect.digest_of_weights() == weights_digest(network)
        limits, status = (
            pathlib.Path(f"/proc/{suspect._process.pid}/{name}").read_text() for name in ("limits", "status")
        )
        assert re.search(r"^Max file size +0 +0 ", limits, re.MULTILINE)
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert re.search(r"^Max cpu time +7200 +7200 ", limits, re.MULTILINE)
        soft, hard = map(int, re.search(r"^Max address space +(\d+) +(\d+) ", limits, re.MULTILINE).groups())
        # What TensorFlow has when it has started, 2 GiB here and more on more cores, and 3 GiB.
        assert 3 * GIB < soft == hard < 8 * GIB
        _has_no_rights(status)
        for settings in ({}, {"reference": suspect}):
            found = ds.verify(suspect, key, **settings).to_dict()
            expected = ds.verify(network, key, **({"reference": path} if settings else {})).to_dict()
            assert found.pop("assumptions")[: len(expected["assumptions"])] == expected.pop("assumptions")
            assert found["num_matches"] == expected["num_matches"]
            assert found["log10_p_value"] == pytest.approx(expected["log10_p_value"])
        assert read_aligned(suspect, key, network).num_matches == read_aligned(network, key, network).num_matches
        asked = ds.verify_predict_fn(suspect.predict, key)
        assert asked.num_matches == ds.verify_predict_fn(lambda x: network.predict(x, verbose=0), key).num_matches
        other = ds.OwnerKey.generate("ACME Vision", [ds.Carrier("features", [0, 1], 32)])
        other = other.with_key_inputs(random.random((64, 9)), np.arange(64) % 2, 32)
        with pytest.raises(ValueError, match="The key inputs do not fit this model"):
            ds.verify(suspect, other.with_layers(key.layers))
        # An error of the model's is no end of it.
        with pytest.raises(ValueError, match="This suspect cannot be read. .* Received: "):
            suspect.predict(np.ones((2, 5), "float32"))
        assert suspect.predict(np.ones((2, 8), "float32")).shape == (2, 4)
    with pytest.raises(ValueError, match="This suspect cannot be asked any more"):
        suspect.predict(np.ones((2, 8), "float32"))


def test_no_secret_reaches_the_process(folder, monkeypatch):
    """All that is sent on the way to a verdict, in bytes, holds no seed, no bits and no row of the projection."""
    sent = []
    says = "pipe.send({'places': [[0, 'hidden', 0]], 'admissible': [1]}, [np.arange(256.0).reshape(2, 128)])"
    monkeypatch.setattr(suspects, "_START", _TALK + _HELLO + says)
    started = []
    start = suspects.subprocess.Popen
    monkeypatch.setattr(
        suspects.subprocess, "Popen", lambda *given, **named: started.append((given, named)) or start(*given, **named)
    )
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: sent.append(bytes(data)) or write(file, data))
    seed = bytes(range(32))
    key = ds.OwnerKey("ACME Vision", (ds.Carrier("features", (0, 1), 32),), ds.DecisionRule(), seed)
    key = key.with_key_inputs(np.random.default_rng(0).random((64, 8)), np.arange(64) % 2, 32)
    key = key.with_layers([CarrierLayer("features", "hidden", 128)])
    with load_suspect(save(folder, model())) as suspect:
        ds.verify(suspect, key)
    told = b"".join(sent) + repr(started).encode()
    assert key.key_inputs.inputs.tobytes() in told
    bits, projection = key.signature("features"), key.projection("features", 128)
    for secret in (seed, seed.hex().encode(), bits.tobytes(), np.packbits(bits).tobytes(), projection[0].tobytes()):
        assert secret not in told
    assert b'"features"' not in told and b"ACME" not in told


# Custom objects


def test_custom_objects_must_be_importable(folder):
    path = save(folder, model())

    class Local(keras.layers.Layer):
        pass

    with pytest.raises(ValueError) as error:
        load_suspect(path, custom_objects={"Local": Local})
    assert str(error.value) == (
        "The custom object 'Local' cannot be imported by another process. Expected a class or function at the top of a module. "
        f"Received: {__name__}.test_custom_objects_must_be_importable.<locals>.Local"
    )


def test_custom_objects_are_refused_where_the_caller_does_not_name_them(folder, monkeypatch):
    monkeypatch.setattr(Escaping, "call", lambda self, x: x)
    inputs = keras.Input((4,))
    path = save(folder, keras.Model(inputs, Escaping("a", 1)(inputs)))
    with pytest.raises(ValueError, match="class_name 'Escaping'"):
        load_suspect(path)
    allowed = {"Escaping": (Escaping.__module__, "Escaping")}
    assert look_at_file(path, SuspectLimits(), allowed).num_weights == 0


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"module": "evil_module"},
        {"module": "keras.layers"},
        {"module": None},
        {"class_name": "Evil"},
        {"class_name": "function", "config": "exec"},
        {"class_name": "function", "config": "Escaping"},
        {"class_name": "__lambda__"},
        {"registered_name": "evil>Escaping"},
        {"spec_name": "Escaping"},
    ],
)
def test_a_custom_objects_name_lets_nothing_else_through(change, folder):
    layer = {"module": Escaping.__module__, "class_name": "Escaping", "config": {}, "registered_name": "Escaping"}
    path = with_layer(folder, layer | change)
    allowed = {"Escaping": (Escaping.__module__, "Escaping")}
    if change:
        with pytest.raises(ValueError, match="names what is not on the list of Keras' own parts"):
            look_at_file(path, SuspectLimits(), allowed)
    else:
        look_at_file(path, SuspectLimits(), allowed)


@pytest.mark.parametrize("module", [__name__, "evil_module", "builtins"])
@pytest.mark.parametrize("registered_name", ["halved", "lab>half"])
def test_a_custom_function_is_that_of_its_module(module, registered_name, folder):
    function = {"class_name": "function", "config": registered_name, "registered_name": registered_name}
    path = with_setting(folder, "activation", function | {"module": module})
    allowed = dict.fromkeys(("halved", "lab>half"), (__name__, "function"))
    if module == __name__:
        look_at_file(path, SuspectLimits(), allowed)
    else:
        with pytest.raises(ValueError, match="names what is not on the list of Keras' own parts"):
            look_at_file(path, SuspectLimits(), allowed)


# The list


def test_everything_on_the_list_is_in_keras():
    for module, names in (suspect_builtins.CLASSES | suspect_builtins.FUNCTIONS).items():
        if module == "builtins":
            continue
        found = importlib.import_module(module)
        assert {name for name in names if not hasattr(found, name)} == set(), module


def test_every_layer_of_keras_is_on_the_list_or_refused_for_a_reason():
    """So that a new version's layers are looked at before they are let in."""
    names = {}
    for name, each in vars(keras.layers).items():
        if inspect.isclass(each) and issubclass(each, keras.layers.Layer):
            # Old names stand beside new ones.
            names.setdefault(each, set()).add(name)
    known = suspect_builtins.LAYERS | set(suspect_builtins.REFUSED_LAYERS)
    assert {each.__name__ for each, called in names.items() if not called & known} == {"Layer", "Wrapper"}
    assert known <= set().union(*names.values())


def test_no_operation_on_the_list_takes_a_function():
    for module, names in suspect_builtins.OPERATIONS.items():
        for name in names:
            parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
            assert not {"function", "f", "cond", "body", "branches", "fn"} & set(parameters), name


def test_an_inline_vocabulary_passes_the_look(folder):
    network = keras.Sequential([keras.Input((3,), dtype="int64"), keras.layers.IntegerLookup(vocabulary=[3, 5, 7])])
    assert look_at_file(save(folder, network), SuspectLimits()).num_weights == 0


def test_what_a_model_was_trained_with_is_cut_out(folder):
    path = save(folder, HONEST["its own loss"]())
    assert b"own_loss" in zipfile.ZipFile(path).read("config.json")
    assert "own_loss" not in look_at_file(path, SuspectLimits()).config


# Limits


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "4", None])
def test_limits_are_positive_numbers(value):
    with pytest.raises(ValueError) as error:
        SuspectLimits(cpu_s=value)
    assert str(error.value) == (
        f"Invalid value for argument `cpu_s`. Expected a positive number. Received: cpu_s={value!r}"
    )


def test_a_file_larger_than_the_limit_is_refused(folder):
    path = save(folder, model())
    with pytest.raises(ValueError, match=r"Expected a regular file of at most 1000 bytes\. Received: \d+ bytes"):
        look_at_file(path, SuspectLimits(file_bytes=1000))


def test_an_old_keras_is_refused(folder, monkeypatch):
    path = save(folder, model())
    monkeypatch.setattr(keras, "__version__", "3.14.9")
    with pytest.raises(ValueError) as error:
        load_suspect(path)
    assert str(error.value) == "This Keras has known holes. Expected version 3.15 or newer. Received: 3.14.9"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"a": NaN}', "Received: 'NaN'"),
        (b'{"a": 1e999}', "Received: '1e999'"),
        (b'{"a": "\xff"}', "Expected JSON in UTF-8"),
        (b'["' + b"[" * 100 + b'"', "Expected JSON in UTF-8"),
        (b'"' + b"x" * 200 + b'"', "Expected at most 100 bytes. Received: 202 bytes"),
    ],
)
def test_json_of_somebody_else_is_plain(data, told):
    with pytest.raises(ValueError) as error:
        parse_json(data, 150 if len(data) < 150 else 100, 4)
    assert told in str(error.value)


def test_brackets_in_strings_are_not_deep():
    assert parse_json(b'{"a": "[[[[[[\\"[[[[["}', 100, 1) == {"a": '[[[[[["[[[[['}


@pytest.mark.parametrize(
    "header",
    [
        {"content": 1},
        {"content": 1, "arrays": 1},
        {"content": 1, "arrays": [1]},
        {"content": 1, "arrays": [["|O8", [1]]]},
        {"content": 1, "arrays": [["<f4", [-1]]]},
        {"content": 1, "arrays": [["<f4", [True]]]},
        {"content": 1, "arrays": [["<f4", [1] * 20]]},
        {"content": 1, "arrays": [["<f8", [0, 1 << 39, 1 << 39]]]},
        [],
    ],
)
def test_a_malformed_message_is_none(header):
    reading, writing = os.pipe()
    data = json.dumps(header).encode()
    os.write(writing, len(data).to_bytes(8, "big") + data)
    with pytest.raises(TalkError):
        Pipe(reading, writing).receive(100)
    os.close(reading)
    os.close(writing)


def test_a_listener_who_does_not_listen_is_given_up():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(TalkError, match="nothing in time"):
        Pipe(reading, writing).send(0, [np.zeros(10**6)], time.monotonic() + 0.1)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_arrays_arrive_as_they_were(dtype, shape):
    reading, writing = os.pipe()
    array = (10 * np.random.default_rng(0).random(shape)).astype(dtype)
    Pipe(reading, writing).send({"a": None}, [array, array])
    content, (first, second) = Pipe(reading, writing).receive(1000)
    assert content == {"a": None} and first.shape == shape and first.dtype == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(second, array)
    os.close(reading)
    os.close(writing)


def _has_no_rights(status):
    for line in (*(rf"Cap{kind}:\t0+" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")), "NoNewPrivs:\t1"):
        assert re.search(f"^{line}$", status, re.MULTILINE), status


def _jailed(*command):
    """The command line of a jail around a program."""
    plan = {"cpu_s": 60, "num_files": 64, "num_processes": 64, "parent": os.getpid(), "command": command}
    return [sys.executable, "-I", suspect_jail.__file__, json.dumps(plan)]


@pytest.mark.parametrize("user_namespaces", [True, False])
def test_a_jail_keeps_no_rights(user_namespaces):
    """Neither where the kernel gives namespaces to all, nor where only to those with rights, who must lose them then."""
    shell = "echo $0; cat /proc/self/status; mount -o remount,bind,rw / && echo mounted"
    command = _jailed("/bin/sh", "-c", shell, suspect_jail.REFUSALS)
    if not user_namespaces:
        # The superuser of a namespace that may have none inside.
        limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
        command = ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    refusals, _, status = done.stdout.partition("\n")
    if not refusals:
        pytest.skip(f"this machine gives no namespace to try it in: {done.stderr}")
    told = json.loads(refusals)
    if told["network"]:
        pytest.skip(f"this machine gives no namespaces: {told}")
    assert told == _NOT_REFUSED | ({} if user_namespaces else {"user": "No space left on device"})
    _has_no_rights(status)
    assert "mounted" not in status


def test_rights_that_are_left_are_told(monkeypatch):
    class Powerless:
        prctl = capset = staticmethod(lambda *_: -1)

    monkeypatch.setattr(suspect_jail.ctypes, "CDLL", lambda *_, **__: Powerless)
    told = suspect_jail.give_up_rights()
    assert told.endswith("NoNewPrivs 0") and ("CapEff" in told) == (os.geteuid() == 0)
    monkeypatch.setattr(suspect_jail.ctypes, "CDLL", lambda *_, **__: object())
    assert suspect_jail.give_up_rights() == "this system cannot"


def _ends(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_a_killed_parent_takes_the_jail_with_it():
    starts = (
        "import json, os, subprocess, sys; command = json.loads(sys.argv[1]); plan = json.loads(command[-1]); "
        "plan['parent'] = os.getpid(); process = subprocess.Popen([*command[:-1], json.dumps(plan)], stdout=subprocess.PIPE); "
        "print(process.pid, process.stdout.readline(), flush=True); process.wait()"
    )
    command = json.dumps(_jailed("/bin/sh", "-c", "echo started; exec sleep 600"))
    with subprocess.Popen([sys.executable, "-c", starts, command], stdout=subprocess.PIPE, text=True) as parent:
        pid, said = parent.stdout.readline().split(maxsplit=1)
        assert "started" in said and pathlib.Path(f"/proc/{pid}").exists()
        parent.kill()
    assert _ends(pid)


def test_a_jail_whose_parent_has_ended_before_does_not_start():
    command = _jailed("/bin/sh", "-c", "echo started")
    plan = json.loads(command[-1]) | {"parent": 1 << 30}
    done = subprocess.run([*command[:-1], json.dumps(plan)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the parent has ended\n")


def test_what_a_suspect_starts_ends_with_it_and_its_file_goes_before(folder, monkeypatch):
    """Once the model is loaded; until then a verifier that is killed leaves the copy of its file."""
    path = save(folder, model())
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    started = "import time; child = os.fork(); child or time.sleep(600)\n"
    hello = f"pipe.send({{'refusals': {_NOT_REFUSED}}}); pipe.send({{'inputs': {{}}, 'layers': [str(child)]}})\n"
    monkeypatch.setattr(suspects, "_START", _TALK + started + hello + "pipe.receive(1 << 40)")
    with load_suspect(path) as suspect:
        (child,) = suspect.layer_paths()
        assert pathlib.Path(f"/proc/{child}").exists() and not list(folder.glob("suspect.*"))
    assert _ends(child)


@pytest.mark.slow
def test_a_killed_verifier_leaves_nothing(folder):
    path = save(folder, model())
    temporary = folder / "temporary"
    temporary.mkdir()
    script = (
        "import sys; from deepsigns_tf import load_suspect; suspect = load_suspect(sys.argv[1]); "
        "print(suspect._process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as verifier:
        child = verifier.stdout.readline().strip()
        assert pathlib.Path(f"/proc/{child}").exists()
        verifier.kill()
    assert _ends(child) and not list(temporary.glob("suspect.*"))


def test_the_jail_tells_why_it_has_no_network_of_its_own(monkeypatch):
    def refused(*_):
        suspect_jail.ctypes.set_errno(1)
        return -1

    class NoLibrary:
        unshare = staticmethod(refused)

    monkeypatch.setattr(suspect_jail.ctypes, "CDLL", lambda *_, **__: NoLibrary)
    assert suspect_jail.take_namespaces() == {"user": "Operation not permitted", "network": "Operation not permitted"}
    assert suspect_jail.freeze_files() == "this system cannot"
    monkeypatch.setattr(suspect_jail.ctypes, "CDLL", lambda *_, **__: object())
    assert set(suspect_jail.take_namespaces().values()) == {"this system has no namespaces"}


def test_another_archiver_may_have_packed_it(folder):
    """Deflated, in another order, without metadata."""
    parts = members()
    path = pack(folder, {name: parts[name] for name in (WEIGHTS, "config.json")}, zipfile.ZIP_DEFLATED)
    assert look_at_file(path, SuspectLimits()).weights == parts[WEIGHTS]


def test_places_print_as_before():
    assert str(Place("hidden", 0)) == "hidden" and str(Place("hidden", 1)) == "hidden@1"
