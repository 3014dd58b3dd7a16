"""prepare, inspect of prepared data, data list, data get."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

from loractr.cli import app


def loractr(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path):
    """Forty rows of two domains, twelve of them clicks, dealt by a column."""
    tab = ["home"] * 30 + ["feed"] * 10
    table = pl.DataFrame(
        {
            "user": [n % 7 for n in range(40)],
            "tab": tab,
            "label": [int(n % 10 < 3) for n in range(40)],
            "part": [
                "train" if n % 4 < 2 else "validation" if n % 4 == 2 else "test" for n in range(40)
            ],
        }
    )
    table.write_parquet(tmp_path / "log.parquet")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
        data:
          source: table
          path: {tmp_path / "log.parquet"}
          fields: [user]
          divisions: {{tab: {{column: tab}}}}
          split: {{kind: column, column: part}}
        method: {{name: mix}}
        """
    )
    return path


def test_prepare_counts_rows_per_split_and_domain(config, tmp_path):
    done = loractr("prepare", config, "--out", tmp_path / "prepared", "--plain")
    assert done.exit_code == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    cells = {name: others for name, *others in lines}
    assert cells["feed"][:3] == ["4", "3", "3"]
    assert cells["home"][:3] == ["16", "7", "7"]
    assert cells["all rows"][:3] == ["20", "10", "10"]
    assert "(unseen)" not in cells
    assert cells["user"] == ["categorical", "8"]  # seven users and the unknown
    assert str(tmp_path / "prepared") in done.stderr


def test_prepare_and_inspect_print_the_same_json_object(config, tmp_path):
    made = loractr("prepare", config, "--out", tmp_path / "prepared", "--json")
    seen = loractr("inspect", tmp_path / "prepared", "--json")
    assert made.exit_code == seen.exit_code == 0
    value = json.loads(made.stdout)
    assert json.loads(seen.stdout) == value
    assert value["kind"] == "prepared"
    assert value["splits"]["test"]["divisions"]["tab"]["domains"]["feed"]["rows"] == 3


def test_inspect_shows_prepared_data_as_prepare_did(config, tmp_path):
    made = loractr("prepare", config, "--out", tmp_path / "prepared")
    assert loractr("inspect", tmp_path / "prepared").stdout == made.stdout


def test_without_a_folder_the_data_set_goes_to_the_cache(config, tmp_path, monkeypatch):
    monkeypatch.setenv("LORACTR_CACHE", str(tmp_path / "cache"))
    done = loractr("prepare", config, "--json")
    assert json.loads(done.stdout)["path"].startswith(str(tmp_path / "cache" / "prepared"))


def test_settings_can_be_changed_on_the_command_line(config, tmp_path):
    done = loractr(
        "prepare", config, "--out", tmp_path / "p", "--json", "--set", "data.domain_as_field=false"
    )
    fields = json.loads(done.stdout)["schema"]["fields"]
    assert [field["name"] for field in fields] == ["user"]


def test_prepare_does_not_overwrite_something_else(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = loractr("prepare", config, "--out", tmp_path / "mine")
    assert done.exit_code == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_wrong_row_is_a_failure_and_leaves_nothing(config, tmp_path):
    table = pl.read_parquet(tmp_path / "log.parquet")
    table.with_columns(label=pl.lit(7)).write_parquet(tmp_path / "log.parquet")
    done = loractr("prepare", config, "--out", tmp_path / "prepared")
    assert done.exit_code == 1
    assert "a label is 0 or 1" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "log.parquet"]


def test_what_init_proposes_trains_as_it_is(config, tmp_path):
    proposed = loractr("init", tmp_path / "log.parquet")
    assert proposed.exit_code == 0, proposed.stderr
    config.write_text(proposed.stdout)
    done = loractr("train", config, "--out", tmp_path / "run", "--set", "training.epochs=1")
    assert done.exit_code == 0, done.stderr


def test_init_of_nothing_is_a_failure(tmp_path):
    done = loractr("init", tmp_path / "nothing.parquet")
    assert done.exit_code == 1
    assert "does not exist" in done.stderr
    assert done.stdout == ""


def test_inspect_of_something_else_says_what_it_wants(tmp_path):
    done = loractr("inspect", tmp_path)
    assert done.exit_code == 1
    assert "is not an artifact" in done.stderr


def test_the_data_sets_are_listed():
    shown = loractr("data", "list").stdout
    listed = json.loads(loractr("data", "list", "--json").stdout)
    assert {"movielens-1m", "kuairand-pure", "ali-ccp"} <= listed.keys()
    assert all(name in shown for name in listed)
    assert listed["movielens-1m"]["terms"]


def test_a_local_copy_is_taken_and_the_terms_are_shown(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("ratings.dat", "users.dat", "movies.dat", "unrelated.txt"):
        (tmp_path / "mine" / name).write_text("1::2::3\n")
    done = loractr(
        "data", "get", "movielens-1m", "--from", tmp_path / "mine", "--out", tmp_path / "copy"
    )
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "movies.dat",
        "ratings.dat",
        "users.dat",
    ]
    assert "Terms of use: For research" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["movielens-2m"], "did you mean 'movielens-1m'?"),
        (["ali-ccp"], "no direct download"),
        (["movielens-1m", "--from", "{tmp_path}"], "lacks 'ratings.dat'"),
        (["movielens-1m", "--from", "{tmp_path}/nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_got_is_bad_usage(tmp_path, arguments, message):
    arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
    done = loractr("data", "get", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
