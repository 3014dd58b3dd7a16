"""Write the tree of the package into README.md: a line per file, from its docstring.

python docs/tree.py            # or: make tree
"""

import ast
import re
from pathlib import Path
from textwrap import shorten

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PACKAGE = ROOT / "src" / "loractr"
BEGIN, END = "<!-- tree: written by docs/tree.py -->\n", "<!-- end of tree -->"

AROUND = {
    "tests/": "mirrors src/; contract/ reference/ e2e/ test_architecture.py test_docs.py",
    "benchmarks/": "bench_*.py, results/*.csv, a README that says what each column means",
    "experiments/": "one folder per published table: plan, runner, results, ours beside theirs",
    "examples/": "01_quickstart.py 02_own_data.py; run by a test",
    "docs/": "tutorial, how-to, explanation, reference, decisions",
}


def tree() -> str:
    """The package and what stands around it, as a fenced block."""
    lines = [_line(0, "src/loractr/", _first_sentence(PACKAGE / "__init__.py")), *_folder(PACKAGE)]
    lines += [_line(0, name, what) for name, what in AROUND.items()]
    return "\n".join(["```", *lines, "```", ""])


def with_tree(readme: str) -> str:
    """The README with the tree as it is now."""
    head, rest = readme.split(BEGIN)
    return head + BEGIN + tree() + END + rest.split(END)[1]


def _folder(folder: Path, depth: int = 1) -> list[str]:
    lines = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and (path / "__init__.py").exists():
            lines.append(_line(depth, f"{path.name}/", _first_sentence(path / "__init__.py")))
            lines += _folder(path, depth + 1)
        elif path.suffix == ".py" and path.name != "__init__.py":
            lines.append(_line(depth, path.name, _first_sentence(path)))
    return lines


def _line(depth: int, name: str, what: str) -> str:
    return f"{'  ' * depth + name:24} {what}".rstrip()


def _first_sentence(file: Path) -> str:
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"\.\s|\.$|\n\n", said, maxsplit=1)[0]
    return shorten(sentence, 104, placeholder=" …")


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
