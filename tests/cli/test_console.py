import json
import logging

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


def test_a_table_is_printed_whole_with_numbers_to_the_right(capsys):
    long = "a domain with a name of [some] length " * 3
    show([Table("by tab", ("domain", "rows"), ((long, "7"), ("short", "1,000")))])
    printed = capsys.readouterr().out
    assert long.strip() in printed
    assert "│     7 │" in printed
    assert "│ 1,000 │" in printed
