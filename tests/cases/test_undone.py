"""What a run's table does not show stands below it: undone adapters, a shared start, few labels."""

import json

import pytest

from cases.shop_log import config, loractr, metrics, shop_log, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A log, a configuration whose adapters end worse than they start, two finished mix runs."""
    path = tmp_path_factory.mktemp("undone")
    shop_log(900).write_parquet(path / "log.parquet")
    values = config(path / "log.parquet")
    values["method"]["recipe"] = "two_stage"
    values["training"]["stages"] = {"adapt": {"learning_rate": 1000.0, "select": "log_loss"}}
    write_config(values, path / "config.yaml")
    write_config({**values, "method": {"name": "mix"}, "training": {}}, path / "mix.yaml")
    done = loractr("train", path / "mix.yaml", "--out", path / "mix", "--seeds", 2)
    assert done.exit_code == 0, done.stderr
    assert "share their start" not in done.stderr
    return path


NOTHING = "stage adapt changed nothing: no validation was better than its start; its adapters have"


def test_undone_adapters_are_said_after_the_table_and_on_resume(folder, tmp_path):
    done = loractr("train", folder / "config.yaml", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert NOTHING in done.stderr
    assert any(one.startswith(NOTHING) for one in metrics(tmp_path / "run")["warnings"])
    again = loractr("train", folder / "config.yaml", "--out", tmp_path / "run", "--resume")
    assert NOTHING in again.stderr


def test_seeds_say_it_once_and_that_they_share_their_start(folder, tmp_path):
    options = ("--seeds", 2, "--set", f"start_from={folder / 'mix' / 'seed-0'}")
    done = loractr("train", folder / "config.yaml", "--out", tmp_path / "runs", *options)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count(NOTHING) == 1
    assert f"the seeds share their start {folder / 'mix' / 'seed-0'}: the standard" in done.stderr


def test_seeds_with_their_own_starts_do_not_share_one(folder, tmp_path):
    options = ("--seeds", 2, "--set", f"start_from={folder / 'mix'}")
    done = loractr("train", folder / "config.yaml", "--out", tmp_path / "runs", *options)
    assert done.exit_code == 0, done.stderr
    assert "share their start" not in done.stderr


def rarely_clicked(path, clicks):
    """A log whose clicks are but the first `clicks` rows of each split."""
    rows = shop_log(900).with_row_index("n")
    split = (rows["n"] % 3).replace_strict({0: "train", 1: "validation", 2: "test"})
    rows = rows.with_columns(split=split, click=(rows["n"] < 3 * clicks).cast(int))
    rows.drop("n").write_parquet(path / "log.parquet")
    values = config(path / "log.parquet", split={"kind": "column", "column": "split"})
    return write_config(values, path / "config.yaml")


@pytest.mark.parametrize("verb", ["prepare", "dry run", "train"])
def test_few_labels_are_said_after_preparing(tmp_path, verb):
    file = rarely_clicked(tmp_path, 12)
    command = {
        "prepare": ("prepare", file, "--out", tmp_path / "out"),
        "dry run": ("train", file, "--dry-run"),
        "train": ("train", file, "--out", tmp_path / "out"),
    }[verb]
    done = loractr(*command)
    assert done.exit_code == 0, done.stderr
    assert "validation: 12 positives in 300 rows: the AUC that chooses the best" in done.stderr
    assert "test: 12 positives in 300 rows: an AUC has" in done.stderr
    if verb == "dry run":
        found = json.loads(loractr(*command, "--json").stdout)
        assert len(found["warnings"]) == 2


def test_one_class_is_said(tmp_path):
    file = rarely_clicked(tmp_path, 0)
    done = loractr("train", file, "--out", tmp_path / "out")
    assert "train: none of 300 rows is positive: there is nothing to learn" in done.stderr
    assert "the best epoch is chosen by log loss instead" in done.stderr
