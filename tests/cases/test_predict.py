"""Scored rows of which the model knows nothing, no rows at all, and rows without a label."""

import json

import polars as pl
import pytest

from cases.shop_log import config, loractr, shop_log, write_config
from loractr.artifact import load


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a log, its configuration and a run."""
    folder = tmp_path_factory.mktemp("trained")
    shop_log(1500).write_parquet(folder / "log.parquet")
    write_config(config(folder / "log.parquet"), folder / "config.yaml")
    done = loractr("train", folder / "config.yaml", "--out", folder / "run")
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def artifact(trained):
    return trained / "run" / "artifact"


def strangers(rows):
    """Rows of users, items and a shop that the log does not have."""
    more = {"user_id": pl.col("user_id") + 10**6, "item_id": pl.col("item_id") + 10**6}
    return shop_log(rows, seed=5).with_columns(**more, shop=pl.lit("zz"))


def write(frame, file):
    frame.write_parquet(file) if file.suffix == ".parquet" else frame.write_csv(file)
    return file


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_predict_all_unknown(artifact, tmp_path, kind):
    data = write(strangers(20), tmp_path / f"new.{kind}")
    done = loractr("predict", artifact, data, "--out", tmp_path / "s.csv")
    assert done.exit_code == 0
    assert "20 of 20 rows are of domains that training never saw: 'zz'" in done.stderr
    assert "user_id unknown in 100 %" in done.stderr
    assert "item_id unknown in 100 %" in done.stderr
    assert "price" not in done.stderr
    assert pl.read_csv(tmp_path / "s.csv").height == 20


def test_evaluate_all_unknown(artifact, tmp_path):
    data = write(strangers(50), tmp_path / "new.csv")
    found = json.loads(loractr("evaluate", artifact, data, "--json").stdout)
    said = " ".join(found["warnings"])
    assert "50 of 50 rows are of domains that training never saw: 'zz'" in said
    assert "user_id unknown in 100 %" in said
    shown = loractr("evaluate", artifact, data)
    assert all(one in shown.stderr for one in found["warnings"])


def test_rows_like_those_of_training_are_not_remarked_on(artifact, tmp_path):
    data = write(shop_log(400, seed=9).drop("click"), tmp_path / "new.parquet")
    done = loractr("predict", artifact, data, "--out", tmp_path / "s.parquet")
    assert done.exit_code == 0
    for word in ("unknown", "missing", "never saw"):
        assert word not in done.stderr
    assert load(artifact).remarks(pl.read_parquet(data)) == []


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_predict_empty(artifact, tmp_path, kind):
    data = write(shop_log(20).clear(), tmp_path / f"new.{kind}")
    out = tmp_path / f"s.{kind}"
    done = loractr("predict", artifact, data, "--out", out)
    assert done.exit_code == 0, done.stderr
    found = pl.read_parquet(out) if kind == "parquet" else pl.read_csv(out)
    assert found.height == 0
    assert found.columns == [*shop_log(1).columns, "probability"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("label", ["NA", "", None, "not yet", 7])
def test_predict_label_NA(artifact, tmp_path, kind, label):
    rows = shop_log(20, seed=4).with_columns(click=pl.lit(label))
    done = loractr(
        "predict", artifact, write(rows, tmp_path / f"new.{kind}"), "--out", tmp_path / "s.parquet"
    )
    assert done.exit_code == 0, done.stderr
    found = pl.read_parquet(tmp_path / "s.parquet")
    expected = load(artifact).predict(rows.drop("click"))
    assert found["probability"].to_list() == expected.tolist()
    assert "click" in found.columns


def test_a_weight_of_text_is_not_read_either(tmp_path):
    shop_log(300).with_columns(w=1.5).write_parquet(tmp_path / "log.parquet")
    file = write_config(config(tmp_path / "log.parquet", weight="w"), tmp_path / "config.yaml")
    assert loractr("train", file, "--out", tmp_path / "run").exit_code == 0
    data = write(shop_log(20).with_columns(w=pl.lit("NA")), tmp_path / "new.csv")
    artifact = tmp_path / "run" / "artifact"
    done = loractr("predict", artifact, data, "--out", tmp_path / "s.csv")
    assert done.exit_code == 0, done.stderr


def test_evaluate_on_the_log_itself_says_so(trained, artifact):
    found = json.loads(loractr("evaluate", artifact, trained / "log.parquet", "--json").stdout)
    said = " ".join(found["warnings"])
    assert "about 80 % of these rows trained the model" in said
    assert "'log.parquet'" in said


def test_evaluate_on_a_copy_of_training_rows_says_so(trained, artifact, tmp_path):
    data = write(pl.read_parquet(trained / "log.parquet").head(300), tmp_path / "copy.csv")
    found = json.loads(loractr("evaluate", artifact, data, "--json").stdout)
    said = " ".join(found["warnings"])
    assert "of these rows trained the model" in said
    assert "this very data" not in said


def test_evaluate_on_other_rows_does_not(artifact, tmp_path):
    data = write(shop_log(300, seed=8), tmp_path / "new.csv")
    found = json.loads(loractr("evaluate", artifact, data, "--json").stdout)
    assert not [one for one in found["warnings"] if "trained" in one]


@pytest.mark.parametrize(
    ("split", "word"), [("train", "trained the model"), ("validation", "best epoch"), ("test", "")]
)
def test_evaluate_on_a_split_says_which_rows_they_are(trained, artifact, tmp_path, split, word):
    loractr("prepare", trained / "config.yaml", "--out", tmp_path / "prepared")
    done = loractr("evaluate", artifact, tmp_path / "prepared", "--split", split, "--json")
    said = [one for one in json.loads(done.stdout)["warnings"] if one.startswith("these rows")]
    seen = [one for one in said if "trained the model" in one or "best epoch" in one]
    assert len(seen) == bool(word)
    assert all(word in one for one in seen)
