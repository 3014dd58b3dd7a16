"""How a command ends: exit status, one clear message, no traceback."""

import errno
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from loractr.cli import Verbs, app
from loractr.errors import ArtifactError, ConfigError, DataError, UsageError


def failing_with(error):
    """A command line whose only verb raises `error`."""
    command = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)

    @command.callback()
    def options():
        pass

    @command.command()
    def work():
        raise error

    return CliRunner().invoke(command, ["work"])


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError(["seed: negative", "data.path: missing"]), 2, "  - data.path: missing\n"),
        (UsageError("RUN exists.", fix="name another."), 2, "RUN exists.\nFix: name another.\n"),
        (DataError("a label is 7."), 1, "DataError: a label is 7.\n"),
        (ArtifactError("a file is damaged."), 1, "ArtifactError: a file is damaged.\n"),
        (KeyboardInterrupt(), 1, "interrupted; nothing half-written stays."),
        (PermissionError(errno.EACCES, "Permission denied", "run"), 1, "Permission denied: 'run'"),
        (OSError(errno.ENOSPC, "No space left on device", "ids.npy"), 1, "full while writing ids"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full; nothing half"),
    ],
)
def test_an_expected_error_is_a_message_and_a_status(error, status, message):
    result = failing_with(error)
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_bug_of_ours_is_not_dressed_up():
    result = failing_with(ZeroDivisionError("ours"))
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "line",
    [
        "nope",
        "train",
        "train --nope",
        "train no-such.yaml --out run",
        "inspect no-such",
        "data nope",
    ],
)
def test_bad_usage_has_status_2_and_says_why(line):
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert result.stdout == ""


def test_help_of_every_verb_is_there():
    for verb in ("demo", "init", "prepare", "train", "evaluate", "predict", "inspect", "data"):
        result = CliRunner().invoke(app, [verb, "--help"])
        assert result.exit_code == 0
        assert "Usage" in result.stdout


def loractr(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "loractr", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_the_module_is_the_command():
    done = loractr("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("loractr ")


def test_the_process_ends_with_the_status_of_the_error(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("data: {source: synthetic}\nmehtod: {name: mix}\n")
    done = loractr("train", str(config), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "did you mean 'method'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_imports_nothing_heavy():
    code = "import sys, loractr.cli; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"torch", "polars", "numpy", "pydantic", "pyarrow"} & set(done.stdout.split())


def test_a_reader_that_goes_away_is_no_news():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "loractr", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
