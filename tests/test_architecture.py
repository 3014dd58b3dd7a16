"""Imports go down the levels only. The table is the architecture; edit it on purpose."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "loractr"
LEVELS = [
    {"errors"},
    {"schema", "batch", "environment"},
    {"stage", "native"},
    {"data", "layers", "evaluation"},
    {"backbones"},
    {"method"},
    {"adapters", "baselines"},
    {"config"},
    {"model"},
    {"predict", "search"},
    {"artifact", "training"},
    {"run", "lifecycle", "tracking", "serving"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
FORBIDDEN = {"serving": {"training", "lifecycle"}, "adapters": {"backbones"}}
"""Lower levels that a part may not see all the same."""
THIRD_PARTIES = {"evaluation": {"numpy", "polars"}}
"""Parts that stay usable by themselves: all that they may import from elsewhere."""
MOST_LINES = 400


def imports(file: Path) -> set[str]:
    """Dotted names that `file` imports, anywhere in it; a relative one keeps its leading dots."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def violations(package: Path) -> list[str]:
    """Every import in `package` that the rules above do not allow, as 'file imports name'."""
    found = []
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package)
        part = where.parts[0].removesuffix(".py")
        found += [f"{where} imports {name}" for name in sorted(imports(file)) if _wrong(part, name)]
    return found


def _wrong(part: str, name: str) -> bool:
    if name.startswith("."):
        return True
    top, _, rest = name.partition(".")
    if top == "loractr":
        other = rest.split(".")[0]
        if part in {other, "__init__"}:
            return False
        too_high = LEVEL.get(other, len(LEVELS)) >= LEVEL.get(part, -1)
        return too_high or other in FORBIDDEN.get(part, set())
    allowed = THIRD_PARTIES.get(part)
    return allowed is not None and top not in allowed | sys.stdlib_module_names


def test_imports_go_down_the_levels_only() -> None:
    assert violations(PACKAGE) == []


def test_every_part_has_a_level() -> None:
    parts = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if any(p.rglob("*.py"))
    }
    assert parts - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize(
    ("file", "source", "bad"),
    [
        ("backbones/dcn.py", "from loractr.layers.linear import Linear", False),
        ("backbones/dcn.py", "from loractr.backbones.mlp import MLP", False),
        ("backbones/dcn.py", "import torch", False),
        ("backbones/dcn.py", "from loractr.cli import main", True),
        ("backbones/dcn.py", "import loractr.adapters.mlora", True),
        ("backbones/dcn.py", "from loractr import training", True),
        ("backbones/dcn.py", "from loractr import Schema", True),
        ("backbones/dcn.py", "from .mlp import MLP", True),
        ("backbones/dcn.py", "from . import mlp", True),
        ("backbones/dcn.py", "def f():\n    from loractr.model import build", True),
        ("adapters/mlora.py", "from loractr.backbones import BACKBONES", True),
        ("adapters/mlora.py", "from loractr.undrawn import thing", True),
        ("data/prepare.py", "from loractr.layers.linear import Linear", True),
        ("batch.py", "from loractr.schema import Schema", True),
        ("schema.py", "from loractr.stage import Stage", True),
        ("artifact/load.py", "from loractr.predict import predict", False),
        ("artifact/load.py", "from loractr.training import fit", True),
        ("run.py", "from loractr.training import fit", False),
        ("serving/app.py", "from loractr.artifact import load", False),
        ("serving/app.py", "from loractr.training import fit", True),
        ("serving/app.py", "from loractr import lifecycle", True),
        ("evaluation/metrics.py", "import math\nimport numpy as np\nimport polars as pl", False),
        ("evaluation/metrics.py", "import torch", True),
        ("evaluation/metrics.py", "from sklearn.metrics import roc_auc_score", True),
    ],
)
def test_the_rules_catch_what_they_should(
    tmp_path: Path, file: str, source: str, bad: bool
) -> None:
    written = tmp_path / "loractr" / file
    written.parent.mkdir(parents=True)
    written.write_text(source)
    assert bool(violations(tmp_path / "loractr")) is bad


def test_files_fit_a_head() -> None:
    lengths = {
        str(f.relative_to(PACKAGE)): len(f.read_text().splitlines()) for f in PACKAGE.rglob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import loractr, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
