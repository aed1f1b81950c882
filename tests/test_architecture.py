"""Which way imports point: a module of the package imports only from rows above its own."""

import ast
import dataclasses
import pathlib
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "deepsigns_tf"

# From the foundation up.
ROWS = [
    {"arguments", "derivation", "statistics", "files", "keras_internals", "canonical_json", "weights_digest"}
    | {"suspect_builtins", "suspect_jail"},
    {"activations", "losses", "label_scope", "perturbations", "alignment", "signatures", "suspect_files"},
    {"examples", "batch_norm", "responses", "suspect_pipe", "suspect_weights"},
    {"triggers", "suspects", "suspect_child", "carriers", "key_files"},
    {"owner_key"},
    {"regularizers", "readings", "commitments"},
    {"watermarked_model", "candidates", "timestamps"},
    {"verification", "recovery", "evidence"},
    {"release", "callbacks", "trigger_verification"},
    {"questioning", "remote"},
    {"__init__"},
    {"report"},
    {"attacks.__init__", "attacks.inputs", "attacks.graphs", "attacks.weights"},
    {"attacks.units", "attacks.recipes"},
    {"attacks.new_units", "attacks.thief"},
    {"attacks.division", "attacks.hiding", "attacks.same_function"},
    {"attacks.adaptive", "attacks.adversarial", "attacks.extraction", "attacks.fine_tuning", "attacks.overwriting"},
    {"attacks.informed", "attacks.outcomes"},
    {"attacks.suite"},
]
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` has the module `a.b` and the name `c`, `import a.b` has no name."""

    line: int
    module: str
    name: str | None
    in_function: bool

    @property
    def top(self):
        return self.module.split(".")[0]

    def is_inside(self, package):
        """Whether a module, or a name in one, lies in a package (`keras.src`, say)."""
        full = self.module if self.name is None else f"{self.module}.{self.name}"
        return full == package or full.startswith(package + ".")

    @property
    def package_module(self):
        """The module of the package that this imports from; `__init__` for a name of the package itself."""
        if self.top != PACKAGE:
            return None
        if self.module != PACKAGE:
            return self.module.removeprefix(PACKAGE + ".")
        return self.name if self.name in ROW_OF else "__init__"


def imports_of(source, package=PACKAGE):
    """Every import in the source of a module that lies directly in `package`, wherever it stands."""
    found = []

    def walk(node, in_function):
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, alias.name, None, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "a module directly in a package has nothing above it"
            parts = [package] if node.level else []
            module = ".".join(parts + ([node.module] if node.module else []))
            found.extend(Import(node.lineno, module, alias.name, in_function) for alias in node.names)
        in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            walk(child, in_function)

    walk(ast.parse(source), False)
    return found


def imports_not_from_above(module, source):
    """The lines of a module that import from its own row or from below, or a module without a row."""
    return [
        (each.line, each.package_module)
        for each in imports_of(source)
        if each.package_module is not None and ROW_OF.get(each.package_module, len(ROWS)) >= ROW_OF[module]
    ]


def sources_in(folder):
    """Name of each module below a folder, dotted -> its source."""
    base = ROOT / folder
    return {
        ".".join(path.relative_to(base).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(base.rglob("*.py"))
    }


SOURCES = sources_in(PACKAGE)


def test_every_module_has_a_row_and_every_row_its_modules():
    assert set(SOURCES) == set(ROW_OF)
    assert len(ROW_OF) == sum(len(modules) for modules in ROWS)


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_only_from_rows_above_its_own(module):
    assert imports_not_from_above(module, SOURCES[module]) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import deepsigns_tf.release", "release"),
        ("import numpy, deepsigns_tf.release as r", "release"),
        ("from deepsigns_tf import release", "release"),
        ("from deepsigns_tf.release import release", "release"),
        ("from . import release", "release"),
        ("from .release import release", "release"),
        ("from deepsigns_tf.watermarked_model import WatermarkedModel", "watermarked_model"),
        ("from deepsigns_tf.verification import verify", "verification"),
        ("from deepsigns_tf import OwnerKey", "__init__"),
        ("import deepsigns_tf as ds", "__init__"),
        ("from deepsigns_tf.unheard_of import thing", "unheard_of"),
        ("from deepsigns_tf.attacks.pruning import prune", "attacks.pruning"),
        ("def f():\n    from deepsigns_tf import release", "release"),
        ("class C:\n    def f(self):\n        import deepsigns_tf.release", "release"),
        ("if TYPE_CHECKING:\n    from deepsigns_tf.release import release", "release"),
        ("try:\n    pass\nexcept E:\n    from deepsigns_tf.release import release", "release"),
    ],
)
def test_the_walker_sees_an_import_that_points_up(source, expected):
    """Seen from the row of `watermarked_model`: its own row, those below, and modules that have none."""
    lines = "import numpy as np\nfrom deepsigns_tf.owner_key import OwnerKey\n" + source
    ((line, module),) = imports_not_from_above("watermarked_model", lines)
    assert (line, module) == (len(lines.splitlines()), expected)


def test_the_walker_lets_imports_from_above_pass():
    source = "import keras\nfrom deepsigns_tf import losses, regularizers\nfrom .owner_key import OwnerKey\n"
    assert imports_not_from_above("watermarked_model", source) == []


def test_the_walker_tells_module_level_from_inside_a_function():
    source = (
        "import a\nif True:\n    import b\nclass C:\n    import c\n    def f(self):\n        import d\n"
        "async def g():\n    import e\n"
    )
    found = {each.module: each.in_function for each in imports_of(source)}
    assert found == {"a": False, "b": False, "c": False, "d": True, "e": True}


def test_the_walker_knows_what_lies_inside_a_package():
    source = "from keras.src.models import model\nfrom keras import src\nimport keras.src\nfrom keras import srcs\n"
    assert [each.is_inside("keras.src") for each in imports_of(source)] == [True, True, True, False]


def test_package_never_imports_the_folders_around_it():
    outside = {"models", "scripts", "benchmarks", "tests"}
    assert {each.top for source in SOURCES.values() for each in imports_of(source)}.isdisjoint(outside)


def top_of(requirement):
    return requirement.split(">")[0].replace("-", "_")


def importers_of(requirements):
    """The modules that import one of these."""
    tops = {top_of(requirement) for requirement in requirements}
    return {module for module, source in SOURCES.items() for each in imports_of(source) if each.top in tops}


def test_package_imports_only_what_it_declares():
    """Dependencies, and extras: TensorFlow, and what few modules alone need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {top_of(requirement) for each in (project["dependencies"], *extras.values()) for requirement in each}
    imported = {each.top for source in SOURCES.values() for each in imports_of(source)}
    # Pillow's module has another name.
    assert imported - sys.stdlib_module_names == declared - {"pillow"} | {"PIL", PACKAGE}
    assert importers_of(extras["remote"]) == {"remote"}
    assert importers_of(extras["evidence"]) == {"signatures", "timestamps"}


def test_what_the_package_declares_stands_in_the_environment_with_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {each for part in (project["dependencies"], *project["optional-dependencies"].values()) for each in part}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert declared <= {line.split()[0] for line in lines} and all(" # " in line for line in lines)
    # The environment without TensorFlow has the same bounds.
    other = {line.split()[0] for line in (ROOT / "requirements-backends.txt").read_text().splitlines() if line}
    assert set(project["dependencies"]) <= other


def test_tensorflow_is_imported_inside_functions_alone_where_only_it_will_do():
    """So that the package can be imported where it is not installed: `tf.distribute` and `tf.data`."""
    found = {
        (module, each.in_function)
        for module, source in SOURCES.items()
        for each in imports_of(source)
        if each.top == "tensorflow"
    }
    assert found == {(module, True) for module in ("activations", "triggers", "attacks.recipes", "attacks.adversarial")}


def test_private_parts_of_keras_are_imported_in_one_place():
    found = {module for module, source in SOURCES.items() for each in imports_of(source) if each.is_inside("keras.src")}
    assert found == {"keras_internals"}


def test_derivation_needs_numpy_and_the_standard_library_only():
    assert {each.top for each in imports_of(SOURCES["derivation"])} - sys.stdlib_module_names == {"numpy"}


@pytest.mark.parametrize(("module", "source"), sources_in("models").items())
def test_models_import_only_keras(module, source):
    assert {each.top for each in imports_of(source, "models")} - sys.stdlib_module_names <= {"keras"}


def test_there_are_models_to_look_at():
    assert len(sources_in("models")) > 1


def test_no_module_is_named_after_nothing():
    names = {part for module in SOURCES for part in module.split(".")}
    assert names.isdisjoint({"utils", "common", "helpers", "models"})
