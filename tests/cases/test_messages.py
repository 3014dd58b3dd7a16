"""What is said back, and how much of it: one problem for one fault, dates that stay dates, the
nearest name, nothing begun by a misspelt --resume, messages that fit a screen."""

import json
import re
import subprocess
import sys

import polars as pl
import pytest

from cases.shop_log import config, loractr, shop_log, write_config
from loractr.config import load_config
from loractr.data.resolve import resolve
from loractr.data.sources import open_source
from loractr.errors import ConfigError


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORACTR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.parquet"
    shop_log().write_parquet(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run over log.csv, with its configuration."""
    folder = tmp_path_factory.mktemp("messages")
    shop_log().write_csv(folder / "log.csv")
    write_config(config(folder / "log.csv"), folder / "config.yaml")
    done = loractr("train", folder / "config.yaml", "--out", folder / "run", "--threads", 1)
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_one_misspelt_field_is_one_problem(log, tmp_path, command):
    file = write_config(config(log, fields=["user_id", "itemid"]), tmp_path / "config.yaml")
    done = loractr(command, file, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr == (
        "ConfigError: the configuration has a problem:\n"
        "  - data.fields: no field 'itemid'; did you mean 'item_id'?\n"
    )


DATES = """
data:
  source: table
  path: {log}
  label: {{column: click}}
  fields: [user_id, item_id]
  divisions: {{shop: {{column: shop}}}}
  split: {{kind: temporal, column: ts, validation_from: {validation}, test_from: {test}}}
model: {{backbone: mlp, embedding_size: 4, hidden_sizes: [8]}}
method: {{name: mlora, rank: {{fixed: 2}}, recipe: joint}}
"""


def sizes(log, tmp_path, validation, test, *overrides):
    """Rows of train, validation, test."""
    file = tmp_path / "config.yaml"
    file.write_text(DATES.format(log=log, validation=validation, test=test))
    done = loractr("prepare", file, "--json", *overrides)
    assert done.exit_code == 0, done.stderr
    return [split["rows"] for split in json.loads(done.stdout)["splits"].values()]


@pytest.mark.parametrize(
    ("validation", "test"),
    [("2026-03-10", "2026-03-12"), ("2026-03-10 12:30:00", "2026-03-12T00:00:00")],
)
def test_dates_without_quotes_are_dates(log, tmp_path, validation, test):
    days = pl.read_parquet(log)["ts"].dt.strftime("%Y-%m-%d %H:%M:%S")
    first, last = validation, test.replace("T", " ")
    expected = [(days < first).sum(), days.is_between(first, last, "left").sum()]
    expected.append(len(days) - sum(expected))
    assert sizes(log, tmp_path, validation, test) == expected
    assert sizes(log, tmp_path, f"'{validation}'", f"'{test}'") == expected
    overrides = ("--set", f"data.split.validation_from={validation}")
    assert sizes(log, tmp_path, "2026-03-02", test, *overrides) == expected


def test_days_and_countries_without_quotes_are_the_texts_of_the_log(tmp_path):
    """2026-03-12, NO, 007, 10:30 and on are no date, false, octal number, minutes or true."""
    values = ["2026-03-12", "NO", "007", "10:30", "on"]
    frame = shop_log(500).with_columns(key=pl.Series(values * 100), day=pl.col("ts").dt.date())
    frame.write_parquet(tmp_path / "log.parquet")
    file = write_config(config(tmp_path / "log.parquet"), tmp_path / "config.yaml")
    rule = "{column: key, groups: {one: [2026-03-12, NO, 007], two: [10:30, on]}}"
    done = loractr("prepare", file, "--json", "--set", f"data.divisions={{key: {rule}}}")
    assert done.exit_code == 0, done.stderr
    splits = json.loads(done.stdout)["splits"].values()
    rows = {"one": 0, "two": 0}
    for split in splits:
        assert split["divisions"]["key"]["unseen"]["rows"] == 0
        for name, counts in split["divisions"]["key"]["domains"].items():
            rows[name] += counts["rows"]
    assert rows == {"one": 300, "two": 200}


def test_a_name_stands_for_its_section(log, tmp_path):
    values = config(log, split="random", label="click")
    values["method"] = "mlora"
    file = write_config(values, tmp_path / "config.yaml")
    loaded = load_config(file)
    assert (loaded.method.name, loaded.data.split.kind) == ("mlora", "random")
    assert loaded.data.label.column == "click"
    options = ("method=multilora", "method.divisions=[shop]", "data.split=stratified")
    loaded = load_config(file, [*options, "data.split.seed=9"])
    assert (loaded.method.name, loaded.method.divisions) == ("multilora", ("shop",))
    assert (loaded.data.split.kind, loaded.data.split.seed) == ("stratified", 9)
    with pytest.raises(ConfigError, match=r"method.name: unknown 'mlroa'; did you mean 'mlora'"):
        load_config(file, ["method=mlroa"])
    with pytest.raises(ConfigError, match=r"data.split.column: missing"):
        load_config(file, ["data.split=per_user"])


@pytest.mark.parametrize(
    ("column", "near"), [("item_id", "ItemID"), ("shop", "shops"), ("price", "prices")]
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_missing_in_scoring_is_told_with_the_nearest(run, tmp_path, column, near, ending):
    frame = shop_log(20, seed=1).rename({column: near})
    path = tmp_path / f"rows.{ending}"
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    done = loractr("predict", run / "run" / "artifact", path, "--out", tmp_path / "out.csv")
    assert done.exit_code == 1
    assert f"'{column}'" in done.stderr
    assert f"did you mean '{near}'?" in done.stderr
    assert f"Fix: rename the table's column to '{column}', or add such a column" in done.stderr


def test_a_column_with_no_likeness_is_told_with_those_that_are_there(run, tmp_path):
    shop_log(20).drop("price").write_parquet(tmp_path / "rows.parquet")
    done = loractr("evaluate", run / "run" / "artifact", tmp_path / "rows.parquet")
    assert "'price', wanted by field 'price', is not in the table; it has 'user_id'" in done.stderr


@pytest.mark.parametrize("seeds", [(), ("--seeds", 2)])
@pytest.mark.parametrize("there", [False, True])
def test_resuming_where_no_run_is_begins_none(run, tmp_path, seeds, there):
    if there:
        (tmp_path / "rnu").mkdir()
    done = loractr("train", run / "config.yaml", "--out", tmp_path / "rnu", *seeds, "--resume")
    assert done.exit_code == 2
    why = "holds no run" if there else "is not there"
    assert f"rnu {why}: nothing to resume." in done.stderr
    assert list(tmp_path.glob("rnu/*")) == []


def test_seeds_that_were_never_begun_are_begun_by_resume(run, tmp_path):
    train = ("train", run / "config.yaml", "--out", tmp_path / "runs", "--threads", 1)
    assert loractr(*train, "--seeds", 1).exit_code == 0
    done = loractr(*train, "--seeds", 2, "--resume")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "runs" / "seed-1" / "metrics.json").is_file()


BOX = re.compile("[\u2500-\u257f\x1b]")


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "prepare", "dry run", "data list"])
def test_tables_in_a_pipe_are_plain_text(run, verb):
    line = {
        "evaluate": ("evaluate", run / "run" / "artifact", run / "log.csv"),
        "inspect": ("inspect", run / "run" / "artifact"),
        "prepare": ("prepare", run / "config.yaml"),
        "dry run": ("train", run / "config.yaml", "--dry-run"),
        "data list": ("data", "list"),
    }[verb]
    done = loractr(*line)
    assert done.exit_code == 0, done.stderr
    assert not BOX.search(done.stdout)
    assert all(text == text.rstrip() for text in done.stdout.splitlines())
    plain = loractr(*line, "--plain")
    tables = plain.stdout.removeprefix("# ").split("\n# ")
    for table in tables:
        title, *lines = table.splitlines()
        assert title in done.stdout.splitlines()
        assert len({text.count("\t") for text in lines}) == 1
        assert lines[0].count("\t") > 0


def test_a_real_pipe_gets_what_the_tests_see(run):
    line = [sys.executable, "-m", "loractr", "inspect", str(run / "run" / "artifact")]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == loractr(*line[3:]).stdout


def test_ten_thousand_problems_fit_a_screen(log, tmp_path):
    values = config(log, fields=[f"field {n}" for n in range(10_000)])
    file = write_config(values, tmp_path / "config.yaml")
    done = loractr("prepare", file)
    assert done.exit_code == 2
    assert len(done.stderr) < 4_000
    assert "10,000 configuration problems" in done.stderr
    assert "and 9,980 more" in done.stderr


@pytest.mark.parametrize("kind", ["groups", "fields", "bad groups"])
def test_large_configurations_are_read_whole(tmp_path, kind):
    """40,000 values of groups, and 5,000 fields: all are checked, none against each other."""
    if kind == "fields":
        names = [f"c{n}" for n in range(5_000)]
        frame = pl.DataFrame({**{name: [1, 2] for name in names}, "shop": ["a", "b"]})
        frame.with_columns(click=1).write_parquet(tmp_path / "log.parquet")
        values = config(tmp_path / "log.parquet", fields=names)
    else:
        shop_log(10).write_parquet(tmp_path / "log.parquet")
        groups = {f"g{n}": list(range(10 * n, 10 * n + 10)) for n in range(4_000)}
        if kind == "bad groups":
            groups["again"] = list(range(40_000))
        rule = {"column": "shop", "groups": groups}
        values = config(tmp_path / "log.parquet", divisions={"shop": rule})
    file = write_config(values, tmp_path / "config.yaml")
    if kind == "bad groups":
        with pytest.raises(ConfigError, match=r"'0', .* and 39,992 more") as caught:
            load_config(file)
        assert len(str(caught.value)) < 1_000
    else:
        loaded = load_config(file)
        resolve(loaded.data, open_source(loaded.data))
