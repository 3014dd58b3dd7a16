"""Which kernels are used: found, chosen by name, missed."""

import logging
import re
import shutil
import threading

import pytest
import torch
from torch._subclasses import FakeTensorMode
from typer.testing import CliRunner

from loractr import native
from loractr.cli import app
from loractr.config import load_config
from loractr.errors import ConfigError, UsageError
from loractr.layers.mlp import MLP
from loractr.layers.norm import BatchNorm
from loractr.native import compiling
from loractr.native.library import SIGNATURES, by_default


@pytest.fixture
def nothing_built(tmp_path, monkeypatch):
    """Empty cache folders, and nothing known of others."""
    monkeypatch.setenv("LORACTR_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LORACTR_KERNELS", raising=False)
    by_default.cache_clear()
    yield tmp_path
    by_default.cache_clear()


@pytest.mark.usefixtures("nothing_built")
def test_without_compiled_kernels_there_is_one_line_in_the_log_and_no_error(caplog):
    with caplog.at_level(logging.INFO, "loractr"):
        assert native.library() is None
        assert native.library_for(torch.ones(2)) is None
    assert [record.getMessage() for record in caplog.records] == [
        "no compiled kernels here (`loractr kernels build` makes them): torch's are used"
    ]


def test_the_line_comes_once_on_a_machine_and_where_no_marker_can_be_left_once_in_a_process(
    nothing_built, caplog, monkeypatch
):
    def heard(level):
        by_default.cache_clear()
        caplog.clear()
        with caplog.at_level(level, "loractr"):
            assert native.library() is None
            assert native.library() is None
        return len(caplog.records)

    levels = (logging.WARNING, logging.INFO, logging.INFO)
    assert [heard(level) for level in levels] == [0, 1, 0]  # what nobody heard was not said
    (nothing_built / "file").touch()
    monkeypatch.setenv("LORACTR_CACHE", str(nothing_built / "file"))
    assert [heard(logging.INFO) for _ in range(2)] == [1, 1]


def test_another_cache_folder_for_data_does_not_hide_the_kernels(
    nothing_built, compiled, monkeypatch
):
    usual = nothing_built / "home" / ".cache" / "loractr" / "native"
    shutil.copytree(compiled / "native", usual)
    assert native.library().path.parent == usual
    assert str(usual) in CliRunner().invoke(app, ["kernels", "status"]).output
    own = nothing_built / "native"
    assert compiling.build_target().parent == own  # which comes first once it is there
    shutil.copytree(compiled / "native", own)
    by_default.cache_clear()
    assert native.library().path.parent == own


@pytest.mark.usefixtures("nothing_built")
def test_insisting_on_what_is_not_built_is_refused_with_what_to_do(monkeypatch):
    with pytest.raises(UsageError, match="loractr kernels build"), native.use("native"):
        pass
    assert native.library() is None  # the choice of before is back
    by_default.cache_clear()
    monkeypatch.setenv("LORACTR_KERNELS", "fast")
    with pytest.raises(UsageError, match="not 'fast'"):
        native.library()
    with pytest.raises(UsageError, match="not 'slow'"), native.use("slow"):
        pass


def test_what_cannot_be_loaded_is_a_warning_and_an_error_only_for_who_insists(
    nothing_built, caplog
):
    path = compiling.place()
    path.parent.mkdir()
    path.write_bytes(b"junk")
    with caplog.at_level(logging.WARNING, "loractr"):
        assert native.library() is None
    assert "do not load" in caplog.text
    with pytest.raises(UsageError, match=r"too short|invalid|not a"), native.use("native"):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_built", "compiled")
def test_what_is_built_is_used_by_the_process_that_had_none():
    assert native.library() is None
    path = native.build()
    assert native.library().path == path


@pytest.mark.usefixtures("kernels")
def test_a_choice_is_that_of_its_own_thread():
    seen = []
    with native.use("torch"):
        thread = threading.Thread(target=lambda: seen.append(native.chosen()))
        thread.start()
        thread.join()
        assert native.chosen() == "torch"
    assert seen == ["auto"]
    assert native.chosen() == "native"


@pytest.mark.usefixtures("kernels")
def test_compiled_kernels_are_for_contiguous_floats_of_one_type_on_the_processor():
    x = torch.ones(4, 6)
    assert native.library_for(x, x)
    assert native.library_for(x.double())
    assert native.library_for(x, x.double()) is None
    assert native.library_for(x.half()) is None
    assert native.library_for(x.T) is None
    assert native.library_for(x.to("meta")) is None
    with FakeTensorMode():
        assert native.library_for(torch.ones(2)) is None
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
    monkeypatch.setenv("LORACTR_CACHE", "/proc/nowhere")
    with pytest.raises(UsageError, match="cannot be written to /proc/nowhere"):
        native.build()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no C\\+\\+ compiler"):
        native.build()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_built", "compiled")
def test_a_compiler_may_be_named_with_flags_of_its_own(monkeypatch):
    compiler = next(filter(shutil.which, native.COMPILERS))
    monkeypatch.setenv("CXX", f"{compiler} -Wall")
    assert native.build().exists()


def test_another_source_or_processor_has_a_library_of_its_own(monkeypatch):
    before = compiling.place()
    monkeypatch.setattr(compiling, "_instructions", lambda: "flags: one less")
    assert compiling.place() != before


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_built", "compiled")
def test_the_verb_builds_and_says_what_is_used():
    def kernels(verb):
        return CliRunner().invoke(app, ["kernels", verb]).output

    assert "`loractr kernels build` makes faster ones" in kernels("status")
    assert "built" in kernels("build")
    assert kernels("status").startswith("compiled ones")
    with native.use("torch"):
        assert "though there are compiled ones" in kernels("status")


def test_a_configuration_names_its_kernels(tmp_path):
    path = tmp_path / "config.yaml"
    text = "data: {source: movielens-1m, path: ml-1m}\nmethod: {name: mix}\nkernels: "
    path.write_text(text + "torch\n")
    assert load_config(path).kernels == "torch"
    path.write_text(text + "quick\n")
    with pytest.raises(ConfigError, match="kernels"):
        load_config(path)


def test_signatures_are_those_of_the_sources():
    kinds = {"int64_t": "i", "double": "d"}
    found = {}
    for file in compiling.SOURCES:
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, given in re.findall(
            r'extern "C" void (\w+?)_(?:##S|float64)\s*\(([^)]*)\)', text
        ):
            types = ["p" if "*" in one else kinds[one.split()[0]] for one in given.split(",")]
            found[name] = "".join(types)
    assert found == SIGNATURES


@pytest.mark.usefixtures("kernels")
def test_an_integer_where_a_real_number_is_meant_is_one():
    x = torch.randn(8, 4)
    found = [BatchNorm(4, momentum=momentum)(x) for momentum in (1, 1.0)]
    assert torch.equal(*found)


@pytest.mark.usefixtures("kernels")
def test_a_process_has_one_library_whoever_asks_for_it():
    outside = native.library()
    with native.use("native"):
        assert native.library() is outside  # one for the process, which knows the number


@pytest.mark.usefixtures("kernels")
def test_what_looks_into_a_network_finds_torchs_operations():
    tower, x = MLP(5, [8, 4]).eval(), torch.randn(3, 6, 5)
    expected = torch.stack([tower(rows) for rows in x])
    found = torch.func.vmap(tower)(x)
    torch.testing.assert_close(found, expected)
    rows = {"x": {0: torch.export.Dim("rows", min=2)}}
    exported = torch.export.export(tower, (x[0],), dynamic_shapes=rows)
    torch.testing.assert_close(exported.module()(x.flatten(0, 1)), expected.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert tower(x[0]).dtype == torch.bfloat16
