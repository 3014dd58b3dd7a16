import io
import json
import logging
import sys

import pytest
from typer.testing import CliRunner

from loractr.cli import app
from loractr.cli.console import show
from loractr.evaluation import Table


@pytest.fixture(autouse=True)
def _quiet_again():
    logger = logging.getLogger("loractr")
    before = (logger.handlers, logger.level)
    yield
    logger.handlers, logger.level = before


@pytest.mark.parametrize(("options", "heard"), [([], ["info"]), (["-v"], ["info", "debug"])])
def test_what_the_library_logs_goes_to_standard_error(options, heard):
    done = CliRunner().invoke(app, [*options, "data", "list", "--json"])
    json.loads(done.stdout)
    logger = logging.getLogger("loractr.anything")
    told = [
        word for word in ("info", "debug") if logger.isEnabledFor(getattr(logging, word.upper()))
    ]
    assert told == heard


def test_log_lines_follow_standard_error_wherever_it_goes(capsys):
    CliRunner().invoke(app, ["data", "list", "--json"])
    logging.getLogger("loractr.anything").info("stage: 0.1 s")
    assert capsys.readouterr().err == "stage: 0.1 s\n"


LONG = "a domain with a name of [some] length " * 3
TABLE = Table(
    "by tab",
    ("domain", "rows", "AUC"),
    ((LONG, "7", "–"), ("東京", "1,000", "0.5000"), ("a\tb\n\x1b[1m", "", "")),
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_at_a_terminal_tables_are_grids_with_numbers_to_the_right(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    show([TABLE])
    printed = sys.stdout.getvalue()
    cells = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    assert " ".join(row[0].strip() for row in cells[:2]) == LONG.strip()
    assert "│ 1,000 │ 0.5000 │" in printed
    assert "│     7 │      – │" in printed
    assert max(len(line) for line in printed.splitlines() if "\x1b" not in line) <= 80
    assert r"a\tb\n\x1b[1m" in printed  # what a name holds is written, not done


def test_elsewhere_tables_are_aligned_columns_without_boxes_or_blanks_at_the_end(capsys):
    show([TABLE, Table("none", ("x",), ())])
    pad = " " * (len(LONG) - 6)
    assert capsys.readouterr().out.splitlines() == [
        "by tab",
        f"domain{pad}   rows     AUC",
        f"{LONG}      7       –",
        f"東京{' ' * (len(LONG) - 4)}  1,000  0.5000",
        r"a\tb\n\x1b[1m",
        "",
        "none",
        "x",
    ]


def test_plain_tables_are_tabs_and_bare_numbers(capsys):
    show([TABLE, Table("none", ("x",), ())], plain=True)
    assert capsys.readouterr().out.split("\n") == [
        "# by tab",
        "domain\trows\tAUC",
        f"{LONG}\t7\t",
        "東京\t1000\t0.5000",
        "a\\tb\\n\\x1b[1m\t\t",
        "# none",
        "x",
        "",
    ]
