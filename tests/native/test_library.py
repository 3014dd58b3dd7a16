"""Which kernels are used: found, chosen by name, missed."""

import logging

import pytest
import torch
from typer.testing import CliRunner

from loractr import native
from loractr.cli import app
from loractr.config import load_config
from loractr.errors import ConfigError, UsageError
from loractr.native import compiling


@pytest.fixture
def nothing_built(tmp_path, monkeypatch):
    monkeypatch.setenv("LORACTR_CACHE", str(tmp_path))
    monkeypatch.delenv("LORACTR_KERNELS", raising=False)
    with native.use("torch"):  # whatever was looked up before is looked up anew after this
        pass


@pytest.mark.usefixtures("nothing_built")
def test_without_compiled_kernels_there_is_one_line_in_the_log_and_no_error(caplog):
    with caplog.at_level(logging.INFO, "loractr"):
        assert native.library() is None
        assert native.library_for(torch.ones(2)) is None
    assert [record.getMessage() for record in caplog.records] == [
        "no compiled kernels here (`loractr kernels build` makes them): torch's are used"
    ]


@pytest.mark.usefixtures("nothing_built")
def test_insisting_on_what_is_not_built_is_refused_with_what_to_do(monkeypatch):
    with pytest.raises(UsageError, match="loractr kernels build"), native.use("native"):
        pass
    assert native.library() is None  # the choice of before is back
    monkeypatch.setenv("LORACTR_KERNELS", "fast")
    with native.use("torch"):
        pass
    with pytest.raises(UsageError, match="not 'fast'"):
        native.library()


@pytest.mark.usefixtures("kernels")
def test_compiled_kernels_are_for_contiguous_floats_of_one_type_on_the_processor():
    x = torch.ones(4, 6)
    assert native.library_for(x, x)
    assert native.library_for(x.double())
    assert native.library_for(x, x.double()) is None
    assert native.library_for(x.half()) is None
    assert native.library_for(x.T) is None
    assert native.library_for(x.to("meta")) is None
    with native.use("torch"):
        assert native.library_for(x) is None
        with native.use("auto"):  # leaves the choice that was made
            assert native.library_for(x) is None
    assert native.library_for(x)


@pytest.mark.usefixtures("nothing_built")
def test_no_compiler_and_a_compiler_that_fails_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="'no-such-compiler', named by CXX, is not there"):
        native.build()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: out of patience' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UsageError, match="out of patience"):
        native.build()
    assert list((tmp_path / "native").iterdir()) == []
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no C\\+\\+ compiler"):
        native.build()


def test_another_source_or_processor_has_a_library_of_its_own(monkeypatch):
    before = compiling.place()
    monkeypatch.setattr(compiling, "_instructions", lambda: "flags: one less")
    assert compiling.place() != before


@pytest.mark.usefixtures("nothing_built")
def test_the_verb_says_what_is_used(compiled, monkeypatch):
    assert "torch's own" in CliRunner().invoke(app, ["kernels", "status"]).output
    monkeypatch.setenv("LORACTR_CACHE", str(compiled))
    with native.use("torch"):
        pass
    assert "compiled ones" in CliRunner().invoke(app, ["kernels", "status"]).output


def test_a_configuration_names_its_kernels(tmp_path):
    path = tmp_path / "config.yaml"
    text = "data: {source: movielens-1m, path: ml-1m}\nmethod: {name: mix}\nkernels: "
    path.write_text(text + "torch\n")
    assert load_config(path).kernels == "torch"
    path.write_text(text + "quick\n")
    with pytest.raises(ConfigError, match="kernels"):
        load_config(path)
