"""What the documentation tells a reader to do works, in the order of the page, as written there."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loractr.config import parse_config

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, file name, text) of each fenced block."""
    return [found.groups(default="") for found in FENCE.finditer(page.read_text())]


def run(command: list[str], folder: Path) -> None:
    """Run in `folder`, with this environment's commands first; a failure shows what was printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def settings_shown() -> list[tuple[str, str]]:
    """(place, YAML) of each piece of configuration on any page; lines that repeat a key, which show
    alternatives, one by one."""
    shown = []
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        for number, (language, _, text) in enumerate(blocks(page)):
            keys = re.findall(r"^\w+(?=:)", text, re.MULTILINE)
            pieces = text.splitlines() if len(keys) > len(set(keys)) else [text]
            shown += [(f"{page.name}-{number}", piece) for piece in pieces if language == "yaml"]
    return shown


@pytest.mark.parametrize(("place", "text"), settings_shown())
def test_every_setting_shown_is_one(place: str, text: str) -> None:
    values = yaml.safe_load(text)
    if not values.keys() & {"data", "model", "method", "training"}:
        values = {"data": values}
    values["data"] = {"source": "table", "path": "clicks.parquet"} | values.get("data", {})
    parse_config({"method": {"name": "mix"}, **values})


def test_the_tree_in_the_readme_is_the_package() -> None:
    shown = runpy.run_path(str(ROOT / "docs" / "tree.py"))
    readme = (ROOT / "README.md").read_text()
    assert shown["with_tree"](readme) == readme, "run `make tree`"


@pytest.mark.slow
@pytest.mark.timeout(900)  # a dozen processes, two of which train: minutes on a busy machine
def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    shown = blocks(ROOT / "docs" / "tutorial" / "own-data.md")
    assert {"python", "yaml", "sh"} <= {language for language, _, _ in shown}
    for language, name, text in shown:
        if name:
            (tmp_path / name).write_text(text)
        elif language == "sh":
            run(["bash", "-euc", text], tmp_path)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    sources = [text for language, _, text in blocks(ROOT / "README.md") if language == "python"]
    assert sources
    for source in sources:
        run([sys.executable, "-c", source], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("*.py")))
def test_the_example_runs(example: str, tmp_path: Path) -> None:
    run([sys.executable, str(ROOT / "examples" / example)], tmp_path)
