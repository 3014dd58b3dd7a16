"""`--resume` goes on over the rows that the run began with, and over no others."""

import json

import polars as pl
import pytest

from cases.shop_log import config, loractr, shop_log, write_config
from loractr.config import parse_config
from loractr.errors import CheckpointError, ConfigError, UsageError
from loractr.run import run
from loractr.training.events import Validated


class KillError(Exception):
    """Stands for a kill."""


def killed_after(validations):
    seen = []

    def callback(event):
        if isinstance(event, Validated):
            seen.append(event)
            if len(seen) > validations:
                raise KillError

    return callback


@pytest.fixture
def interrupted(tmp_path):
    """A run over two days that was killed after its second validation."""
    (tmp_path / "logs").mkdir()
    shop_log().write_parquet(tmp_path / "logs" / "d1.parquet")
    values = config(tmp_path / "logs")
    values["training"] |= {"epochs": 4, "patience": 4}
    with pytest.raises(KillError):
        run(parse_config(values), tmp_path / "run", callbacks=(killed_after(2),))
    assert (tmp_path / "run" / "checkpoint" / "base" / "state.json").exists()
    return values


def resume(values, tmp_path):
    return run(parse_config(values), tmp_path / "run", resume=True)


def test_the_same_data_go_on(interrupted, tmp_path):
    assert resume(interrupted, tmp_path).pooled.rows > 0


def test_a_new_day_is_refused_and_named(interrupted, tmp_path):
    shop_log(seed=1).write_parquet(tmp_path / "logs" / "d2.parquet")
    before = sorted(file.name for file in (tmp_path / "run").rglob("*"))
    with pytest.raises(CheckpointError, match=r"other data: new: 'd2\.parquet'"):
        resume(interrupted, tmp_path)
    assert sorted(file.name for file in (tmp_path / "run").rglob("*")) == before
    (tmp_path / "logs" / "d2.parquet").unlink()
    assert resume(interrupted, tmp_path).pooled.rows > 0


def test_the_command_says_so_and_ends_with_1(interrupted, tmp_path):
    shop_log(seed=1).write_parquet(tmp_path / "logs" / "d2.parquet")
    file = write_config(interrupted, tmp_path / "config.yaml")
    result = loractr("train", file, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 1
    assert "began with other data: new: 'd2.parquet'" in result.stderr


def test_a_day_that_was_written_anew_is_refused(interrupted, tmp_path):
    changed = shop_log().with_columns(pl.col("click").reverse())
    changed.write_parquet(tmp_path / "logs" / "d1.parquet")
    with pytest.raises(CheckpointError, match=r"other data: changed: 'd1\.parquet'"):
        resume(interrupted, tmp_path)


def test_so_are_other_hashed_fields(interrupted, tmp_path):
    interrupted["data"]["fields"][0] = {"name": "user_id", "hash_buckets": 50}
    with pytest.raises(UsageError, match=r"another configuration: 'data\.fields' differ"):
        resume(interrupted, tmp_path)


def test_a_checkpoint_over_prepared_data_of_an_older_format_is_refused_by_name(
    interrupted, tmp_path
):
    path = tmp_path / "run" / "checkpoint" / "data.json"
    path.unlink()  # as runs were written before
    with pytest.raises(CheckpointError, match="prepared data are of format 1, now 2"):
        resume(interrupted, tmp_path)


def test_a_finished_run_is_left_as_it_is_whatever_the_data_are_now(tmp_path):
    shop_log().write_parquet(tmp_path / "log.parquet")
    values = config(tmp_path / "log.parquet")
    first = run(parse_config(values), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    shop_log(seed=1).write_parquet(tmp_path / "log.parquet")
    assert resume(values, tmp_path) == first
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == written


def test_a_false_start_takes_nothing_of_others_with_it(tmp_path):
    shop_log().write_parquet(tmp_path / "log.parquet")
    values = config(tmp_path / "log.parquet", fields=["nothing_like_it"])
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / "run").symlink_to(target)
    with pytest.raises(ConfigError, match="nothing_like_it"):
        run(parse_config(values), tmp_path / "run")
    assert not any(target.iterdir())
    write_config(values, target / "config.yaml")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing_like_it"):
        run(parse_config(values), target, resume=True)
    assert (target / "notes.txt").read_text() == "mine"
