"""A configuration proposed for unknown data is sensible, honest about its guesses, and trains."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from loractr.config import RunConfig, parse_config
from loractr.data.config import SyntheticOptions
from loractr.data.infer import infer, to_yaml
from loractr.data.prepare import prepare
from loractr.data.sources.synthetic import generate
from loractr.errors import DataError

N = 1_000
START = date(2026, 1, 1)
TITLE = "A long and winding name of an item that no other has, number"


def log() -> pl.DataFrame:
    """A table with one column of every sort."""
    rng = np.random.default_rng(0)
    pick = rng.integers
    return pl.DataFrame(
        {
            "row_id": np.arange(N) + 5,
            "user_id": pick(90, size=N) + 2**53,
            "country": pl.Series(["at", "de", "ch"]).gather(pick(3, size=N)),
            "is_click": pick(2, size=N),
            "is_like": pick(2, size=N),
            "playTimeMs": pick(9_999, size=N),
            "purchase_value": rng.random(N),
            "tags": pl.Series(["a|b", "b|c|a", "c", "a|c"]).gather(pick(4, size=N)),
            "words": pl.Series([["x"], ["y", "x"], []]).gather(pick(3, size=N)),
            "price": np.exp(rng.normal(0, 3, N)).round(3),
            "fan_num": pick(500, size=N),
            "temperature": rng.normal(15, 5, N).round(2),
            "brand": pl.Series([1.0, 2.0, None]).gather(pick(3, size=N)),
            "sku": pl.Series(["007", "008", "010"]).gather(pick(3, size=N)),
            "day": [START + timedelta(days=n // 10) for n in range(N)],
            "timestamp": 1_767_225_600 + np.arange(N) * 60,
            "title": [f"{TITLE} {n % 700}" for n in range(N)],
            "version": [3] * N,
        }
    )


@pytest.fixture(params=["parquet", "csv"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found = tmp_path / f"log.{request.param}"
    if request.param == "csv":
        log().drop("words").write_csv(found)
    else:
        log().write_parquet(found)
    return found


def fields(config: dict) -> dict[str, dict]:
    return {field["name"]: field for field in config["data"]["fields"]}


def test_every_column_becomes_what_it_looks_like(path):
    config, _ = infer(path)
    found = fields(config)
    words = {"words": {"name": "words", "kind": "sequence"}} if path.suffix == ".parquet" else {}
    assert found == words | {
        "user_id": {"name": "user_id", "kind": "categorical"},
        "tags": {"name": "tags", "kind": "sequence", "separator": "|"},
        "price": {"name": "price", "kind": "numerical", "scaling": "log1p"},
        "fan_num": {"name": "fan_num", "kind": "numerical", "scaling": "standard"},
        "temperature": {"name": "temperature", "kind": "numerical", "scaling": "standard"},
        "brand": {"name": "brand", "kind": "categorical"},
        "sku": {"name": "sku", "kind": "categorical"},
    }


def test_label_division_and_split_are_found(path):
    data = infer(path)[0]["data"]
    assert data["label"] == {"column": "is_click"}
    assert data["divisions"] == {"country": {"column": "country"}}
    assert data["split"] == {
        "kind": "temporal",
        "column": "timestamp",
        "fractions": [0.8, 0.1, 0.1],
    }


def test_what_is_left_out_is_noted_with_its_reason(path):
    notes = "\n".join(infer(path)[1])
    assert (
        "after the click (put it back if it is not): is_like, playTimeMs, purchase_value" in notes
    )
    assert "different in every row: row_id" in notes
    assert "same in every row: version" in notes
    assert "prose: title" in notes
    assert "it says when, and later rows have times never seen: day, timestamp" in notes


def test_the_proposal_is_a_valid_configuration_and_prepares(path, tmp_path):
    config = parse_config(infer(path)[0])
    prepared = prepare(config.data, tmp_path / "prepared")
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (800, 100, 100)


def test_the_yaml_reads_back_as_the_configuration_under_its_notes(path):
    config, notes = infer(path)
    text = to_yaml(config, notes)
    assert yaml.safe_load(text) == config
    head = text.partition("\ndata:")[0].splitlines()
    assert all(line.startswith("# ") and len(line) <= 100 for line in head)
    joined = " ".join(line.removeprefix("#").strip().removeprefix("- ") for line in head)
    assert all(note in joined for note in notes)


def test_sections_come_in_the_order_of_the_documentation(path):
    config, _ = infer(path)
    assert list(config) == ["data", "model", "method", "training", "seed"]
    order = ["source", "path", "label", "fields", "divisions", "domain_as_field", "split"]
    assert list(config["data"]) == order
    assert config["method"]["rank"] == {"fixed": 8}


def proposed(tmp_path: Path, **columns: object) -> tuple[dict, str]:
    rng = np.random.default_rng(1)
    base = {"user": rng.integers(30, size=200), "label": rng.integers(2, size=200)}
    pl.DataFrame(base | columns).write_parquet(tmp_path / "log.parquet")
    config, notes = infer(tmp_path / "log.parquet")
    parse_config(config)
    return config, "\n".join(notes)


def test_without_a_time_the_split_is_stratified(tmp_path):
    config, _ = proposed(tmp_path, domain=[0, 1] * 100)
    assert config["data"]["split"]["kind"] == "stratified"


def test_a_time_that_is_too_coarse_is_noted_and_not_used(tmp_path):
    config, notes = proposed(tmp_path, domain=[0, 1] * 100, date=[20260101, 20260102] * 100)
    assert config["data"]["split"]["kind"] == "stratified"
    assert "date is too coarse" in notes


def test_without_a_telling_name_the_column_of_fewest_values_divides(tmp_path):
    config, notes = proposed(tmp_path, colour=["red", "blue"] * 100)
    assert list(config["data"]["divisions"]) == ["colour"]
    assert "no column is named like one; colour was taken" in notes


def test_without_any_domain_one_model_serves_all(tmp_path):
    config, notes = proposed(tmp_path, user=np.arange(200) % 77)
    assert config["data"]["divisions"] == {}
    assert config["method"] == {"name": "mix"}
    assert config["data"]["split"]["kind"] == "random"
    assert "one model for all" in notes


def test_a_rating_is_a_label_with_a_rule_and_a_question(tmp_path):
    frame = pl.DataFrame({"user": [1, 2] * 50, "site": [1, 2, 3, 4] * 25, "rating": [1, 5] * 50})
    frame.write_parquet(tmp_path / "log.parquet")
    config, notes = infer(tmp_path / "log.parquet")
    assert config["data"]["label"] == {"column": "rating", "positive": "> 3"}
    assert "above 3 counts as a click; is that right?" in "\n".join(notes)


def test_the_only_column_of_zeros_and_ones_is_the_label_with_a_question(tmp_path):
    frame = pl.DataFrame({"user": range(200), "item": [1, 2, 3, 4, 5] * 40, "hit": [0, 1] * 100})
    frame.with_columns(pl.col("user") // 3).write_parquet(tmp_path / "a.parquet")
    config, notes = infer(tmp_path / "a.parquet")
    assert config["data"]["label"] == {"column": "hit"}
    assert "is the only column of 0 and 1" in "\n".join(notes)


def test_data_without_a_label_is_refused(tmp_path):
    pl.DataFrame({"user": [1, 2, 3], "item": [4, 5, 6]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column that is surely the label.*\nFix: name the"):
        infer(tmp_path / "a.parquet")


def test_data_without_inputs_is_refused(tmp_path):
    pl.DataFrame({"tab": [1, 2] * 20, "label": [0, 1] * 20}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column that could be an input"):
        infer(tmp_path / "a.parquet")


def test_numbers_with_gaps_are_filled_with_the_mean(tmp_path):
    config, _ = proposed(tmp_path, domain=[0, 1] * 100, price=[0.5, None, 1.5, 2.5] * 50)
    assert fields(config)["price"]["missing"] == "mean"


def test_a_folder_of_parts_is_read(tmp_path):
    log().head(500).write_parquet(tmp_path / "a.parquet")
    log().tail(500).write_parquet(tmp_path / "b.parquet")
    assert fields(infer(tmp_path)[0])


def test_a_wide_table_is_looked_at_whole(tmp_path):
    rng = np.random.default_rng(0)
    sorts = [rng.integers(50, size=300), rng.normal(size=300).round(3), ["x", "y|z", "z"] * 100]
    wide = {f"feature_{n}": sorts[n % 3] for n in range(400)}
    pl.DataFrame(wide | {"click": rng.integers(2, size=300)}).write_csv(tmp_path / "log.csv")
    config, _ = infer(tmp_path / "log.csv")
    assert len(config["data"]["fields"]) >= 390


def test_the_synthetic_log_keeps_its_truth_out(tmp_path):
    generate(SyntheticOptions(rows=3_000)).write_parquet(tmp_path / "log.parquet")
    config, notes = infer(tmp_path / "log.parquet")
    assert next(iter(config["data"]["divisions"])) == "domain"
    assert "true_probability" not in fields(config)
    assert "true_probability" in "\n".join(notes)


def test_a_source_of_clicks_only_has_negatives_drawn(tmp_path):
    review = '{"reviewerID": "A%d", "asin": "%d", "overall": 5.0, "unixReviewTime": 1}\n'
    lines = [review % (user, item) for user in range(9) for item in range(9) if user != item]
    (tmp_path / "Prime_Pantry_5.json").write_text("".join(lines))
    config, notes = infer(tmp_path)
    assert parse_config(config).data.negatives is not None
    assert config["data"]["source"] == "amazon-2018"
    assert config["data"]["split"] == {"kind": "column", "column": "split"}
    assert "negatives are drawn" in notes[-1]


@pytest.mark.real_data
def test_official_folders_are_known_by_their_files(movielens, kuairand):
    for folder, source, division, split in (
        (movielens, "movielens-1m", "gender", "stratified"),
        (kuairand, "kuairand-pure", "tab", "temporal"),
    ):
        config, _ = infer(folder)
        assert isinstance(parse_config(config), RunConfig)
        assert config["data"]["source"] == source
        assert list(config["data"]["divisions"]) == [division]
        assert config["data"]["split"]["kind"] == split


@pytest.mark.real_data
def test_the_bare_kuairand_log_hides_nothing_after_the_click(kuairand):
    config, notes = infer(kuairand / "log_standard_4_22_to_5_08_pure.csv")
    assert config["data"]["label"] == {"column": "is_click"}
    assert list(fields(config)) == ["user_id", "video_id", "hourmin", "duration_ms"]
    assert "play_time_ms" in "\n".join(notes)


@pytest.mark.slow
def test_a_proposed_configuration_trains_as_it_is(path, tmp_path):
    from loractr.run import run

    config = infer(path)[0]
    config["training"]["epochs"] = 1
    metrics = run(parse_config(config), tmp_path / "run")
    assert metrics is not None
