"""No file, mutated or made up, gets more out of a parser than a refusal: a sample here, 100,000 for each parser with atheris."""

import importlib.util
import json
import pathlib
import random
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fuzzing
from tests.fuzzing import NEED_OPENSSL, PARSERS, Parser, Spot, mutated

pytest.importorskip("deepsigns_tf.evidence", reason="evidence needs `deepsigns_tf[evidence]`")

REPOSITORY = pathlib.Path(__file__).parents[1]
NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in NEED_OPENSSL and shutil.which("openssl") is None,
            reason="the authority is `openssl ts`, which is not here",
        ),
    )
    for name in PARSERS
]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_read_or_refused(name, tmp_path):
    parser = PARSERS[name](tmp_path)
    assert [parser.try_out(seed) for seed in parser.seeds] == [True] * len(parser.spots)
    changed = st.builds(
        lambda seed, number: mutated(seed, random.Random(number)), st.sampled_from(parser.seeds), st.integers(0, 2**64)
    )

    @settings(deadline=None, max_examples=100)
    @given(changed | st.binary(max_size=300))
    def try_out(data):
        parser.try_out(data)

    try_out()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_thousand_are_read_or_refused(name):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has no wheel for this platform, see requirements.txt")
    command = [sys.executable, "-m", "tests.fuzzing", name, "100000"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-10_000:]
    figures = json.loads(ended.stdout.splitlines()[-1])
    print(figures)
    # Most are refused, and not all: what is read gets further.
    assert figures["inputs"] == 100_000 and 0 < figures["read"] < 50_000


# The fuzzer itself: one that cannot fail proves nothing.


def raising(error):
    def read(data):
        raise error

    return read


@pytest.mark.parametrize(
    "error", [KeyError("header"), RecursionError(), ValueError("bad"), OSError("disk"), SystemExit()]
)
def test_anything_but_a_refusal_is_a_crash(error):
    with pytest.raises(type(error)):
        Parser(raising(error), [Spot(b"")]).try_out(b"\0")


def test_a_refusal_is_none():
    assert not Parser(raising(ValueError("This is wrong. Expected more. Received: less")), [Spot(b"")]).try_out(b"")
    assert Parser(lambda data: data, [Spot(b"")]).try_out(b"")


@pytest.mark.parametrize(
    ("greedy", "limits"),
    [
        (lambda data: b"x" * 2**26, {"MAX_BYTES": 2**24}),
        (lambda data: sum(range(10**6)), {"MAX_SECONDS": 1e-3}),
    ],
    ids=["memory", "time"],
)
def test_a_greedy_parser_is_a_crash(greedy, limits, monkeypatch):
    assert Parser(greedy, [Spot(b"")]).try_out(b"")
    for name, limit in limits.items():
        monkeypatch.setattr(fuzzing, name, limit)
    with pytest.raises(AssertionError, match="a greedy parser"):
        Parser(greedy, [Spot(b"")]).try_out(b"")
