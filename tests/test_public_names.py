import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import loractr

HEAVY = {"torch", "polars", "numpy", "pydantic", "pyarrow", "rich", "typer", "yaml"}


def python(code):
    """What `code` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_names_are_sorted_and_unique():
    assert loractr.__all__ == sorted(set(loractr.__all__))


@pytest.mark.parametrize("name", loractr.__all__)
def test_every_name_can_be_imported(name):
    value = getattr(loractr, name)
    assert not isinstance(value, ModuleType)
    assert value.__name__ == name
    assert name in dir(loractr)


def test_a_type_checker_sees_the_same_names_in_the_same_homes():
    tree = ast.parse(Path(loractr.__file__).read_text())
    (checking,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for node in checking.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(seen) == loractr.__all__
    for name, home in seen.items():
        assert getattr(import_module(home), name) is getattr(loractr, name)


def test_importing_the_package_imports_nothing_heavy():
    loaded = python("import sys, loractr; print(*{name.split('.')[0] for name in sys.modules})")
    assert not HEAVY & set(loaded.split())


def test_schema_and_evaluation_come_without_torch():
    code = "import sys; from loractr import Field, evaluate; print('torch' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.parametrize("name", ["predict", "run"])
def test_a_function_is_not_hidden_by_its_submodule(name):
    code = f"import loractr.{name}; from loractr import {name}; print(type({name}).__name__)"
    assert python(code) == "function"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'predcit'"):
        loractr.predcit  # noqa: B018


def test_the_version_is_that_of_the_installed_package():
    assert loractr.__version__ == version("loractr")
