"""A written file is whole or absent, and never open to more readers than asked for."""

import os
import pathlib
import stat

import pytest

from deepsigns_tf.files import write_atomically


@pytest.fixture
def umask():
    """A function that sets the umask for the length of a test."""
    outer = os.umask(0o022)
    yield os.umask
    os.umask(outer)


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("data", [b"", b"whole", bytes(range(256)) * 1000])
def test_content_is_written_as_it_is(tmp_path, data):
    write_atomically(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


def test_strings_and_paths_relative_to_the_current_folder_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_existing_file_is_replaced_with_its_permissions(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a much longer old content")
    path.chmod(0o666)
    write_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert _mode(path) == 0o600


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_permissions_are_those_asked_for_whatever_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    write_atomically(tmp_path / "file", b"whole", mode=mode)
    assert _mode(tmp_path / "file") == mode


def test_anyone_may_read_the_file_by_default(tmp_path):
    write_atomically(tmp_path / "file", b"whole")
    assert _mode(tmp_path / "file") == 0o644


def test_renamed_file_lies_in_the_same_folder_and_is_whole_and_private_before(tmp_path, monkeypatch, umask):
    """Renaming is atomic only within a file system; until then the old content stands."""
    umask(0o000)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen = []
    replace = os.replace

    def look_and_replace(source, target):
        source = pathlib.Path(source)
        seen.append((source.parent, source.read_bytes(), _mode(source), pathlib.Path(target).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_and_replace)
    write_atomically(path, b"new", mode=0o600)
    assert seen == [(tmp_path, b"new", 0o600, b"old")]


@pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, b"old"])
def test_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, step, failure, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def fail(*args):
        raise failure

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(failure)) as error:
        write_atomically(path, b"new")
    assert error.value is failure
    assert {name.name: name.read_bytes() for name in tmp_path.iterdir()} == ({} if old is None else {"file": old})


def test_folder_in_the_place_of_the_file_is_an_error_that_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert os.listdir(tmp_path / "file") == []


def test_missing_folder_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"new")
    assert os.listdir(tmp_path) == []
