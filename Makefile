# The verbs of this repository. A machine needs Python >= 3.11, make and git; nothing else.
#
#   make demo     install into .venv and run the whole way on synthetic data
#   make test     all checks: lint, format, types, tests (without the slow ones)
#   make slow     the slow tests
#   make native   the tests of layers and methods once more, with compiled kernels; needs a C++ compiler
#   make lowest   the tests on the lower end of every version range, in an environment of their own
#   make docs     build the documentation into site/, warnings are errors
#   make tree     write the tree of the package into README.md
#   make bench    a few minutes of benchmarks, our figures beside the goals; reads DATA/ml-1m
#   make clean    remove .venv and everything that was built
#
# torch goes first and is pinned by constraints.txt: asked for as a range, pip could take another
# build. On Linux outside a CPU-only mirror, PyPI's torch brings CUDA along; the smaller CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
DATA ?= $(or $(LORACTR_DATA),../shared/data)
BIN := .venv/bin
# A worker per core, one thread each: many small tests gain nothing from torch's threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SPEC := pyproject.toml constraints.txt

.PHONY: demo test slow native lowest docs tree bench clean

demo: .venv/installed
	rm -rf demo
	$(BIN)/loractr demo --out demo

test: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

slow: .venv/installed-dev
	$(PYTEST) -m slow

native: .venv/installed-dev
	LORACTR_KERNELS=native $(PYTEST) -m "not slow" tests/layers tests/backbones tests/adapters tests/baselines tests/contract
	LORACTR_KERNELS=native $(PYTEST) -m slow -k "test_it_compiles or without_a_ or compiled or nothing_wrong" tests/layers tests/adapters tests/contract/test_graphs.py

lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest -q -m "not slow"

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tree: .venv/bin/python
	$(BIN)/python docs/tree.py

bench: .venv/installed-bench
	$(BIN)/loractr kernels build
	$(BIN)/python benchmarks/goals.py --data $(DATA)/ml-1m

clean:
	rm -rf .venv .venv-lowest build dist site demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt torch
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e '.[dev]'
	@touch $@

# Stamps: an install runs again only when pyproject.toml or constraints.txt changed.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "loractr needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Fix: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: $(SPEC) | .venv/bin/python
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	@touch $@

.venv/installed-bench: .venv/installed
	$(INSTALL) -e '.[bench]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) -e '.[docs]'
	@touch $@
