"""`kill -9` while something is written: what was written before is not lost, and nothing half written is there."""

import multiprocessing
import pathlib
import random
import signal

import pytest

pytest.importorskip("deepsigns_tf.evidence", reason="evidence needs `deepsigns_tf[evidence]`")

from tests.writers import WRITERS, write_on  # noqa: E402

REPOSITORY = pathlib.Path(__file__).parents[1]
# The longest that a writer is let live, which is time for several versions.
MAX_SECONDS = 0.4


@pytest.fixture(scope="module")
def server():
    """Imports everything once; its forks are what is killed."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.writers"])
    with pytest.MonkeyPatch.context() as patch:
        # Where it finds what it imports.
        patch.chdir(REPOSITORY)
        process = context.Process(target=int)
        process.start()
        process.join()
    return context


def kill_and_look(server, name, folder, delay):
    """How many versions were there to be lost, and whether a file was cut off under its temporary name."""
    listening, telling = server.Pipe(duplex=False)
    process = server.Process(target=write_on, args=(name, folder, telling))
    process.start()
    telling.close()
    assert listening.recv_bytes() == b"begun"
    process.join(delay)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended by itself"
    num_written = 0
    try:
        while True:
            num_written += listening.recv_bytes() == b"written"
    except EOFError:
        pass
    cut_off = any(path.name.startswith(".") for path in folder.rglob("*"))
    try:
        found = WRITERS[name].read(folder)
    except FileNotFoundError:
        found = 0
    # The last one may have been written and not told of.
    assert found in (num_written, num_written + 1), f"{found} is there, {num_written} were written"
    return num_written, cut_off


def kill_many(server, name, folder, num_kills, seed):
    """What `kill_and_look` saw of each."""
    generator = random.Random(seed)
    for number in range(num_kills):
        place = folder / str(number)
        place.mkdir()
        yield kill_and_look(server, name, place, generator.uniform(0, MAX_SECONDS))


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_writer_leaves_whole_files(server, name, tmp_path):
    assert len(list(kill_many(server, name, tmp_path, num_kills=1, seed=0))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_two_hundred_killed_writers_leave_whole_files(server, name, tmp_path):
    """Two hundred of all kinds together and more: of each kind, one at least while it wrote."""
    num_killed = num_written = num_cut_off = 0
    for written, cut_off in kill_many(server, name, tmp_path, num_kills=200, seed=1):
        num_killed, num_written, num_cut_off = num_killed + 1, num_written + written, num_cut_off + cut_off
        if num_killed >= 20 and num_cut_off:
            break
    print(f"{name}: {num_killed} killed, after {num_written} versions in all; {num_cut_off} had a file cut off")
    assert num_written > 0 and num_cut_off > 0
