"""Amazon reviews in the exact raw format: one JSON object a line, plain and gzip."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from loractr.data.config import DataConfig
from loractr.data.negatives import draw_negatives
from loractr.data.prepare import prepare
from loractr.data.resolve import resolve
from loractr.data.sources import open_source
from loractr.errors import ConfigError, DataError, MalformedLineError

CATEGORIES = ("Clothing_Shoes_and_Jewelry", "Beauty", "Health_and_Personal_Care")


def line_2014(user: str, item: str, stars: float, time: int = 1_402_012_800) -> str:
    """A line as the official files have it; names and texts have quotes."""
    return (
        f'{{"reviewerID": "{user}", "asin": "{item}", "reviewerName": "J. \\"Jo\\" O\'Neil", '
        f'"helpful": [0, 1], "reviewText": "Great, it\'s fine \\u00e9\\n", "overall": {stars}, '
        f'"summary": "ok", "unixReviewTime": {time}, "reviewTime": "06 6, 2014"}}\n'
    )


def line_2018(user: str, item: str, stars: float, time: int = 1_402_012_800) -> str:
    return (
        f'{{"overall": {stars}, "verified": true, "reviewTime": "06 6, 2014",'
        f' "reviewerID": "{user}", "asin": "{item}", "style": {{"Format:": " DVD"}},'
        f' "reviewerName": "J", "vote": "3",'
        f' "reviewText": "t", "summary": "s", "unixReviewTime": {time}}}\n'
    )


@pytest.fixture
def reviews_2014(tmp_path: Path) -> Path:
    for place, name in enumerate(CATEGORIES):
        text = line_2014("A1", f"00{place}", 5.0, 10) + line_2014("A2", f"00{place}", 3.0, 20)
        path = tmp_path / f"reviews_{name}_5.json"
        if place:
            path.write_text(text)
        else:
            path.with_suffix(".json.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def config_2014(path: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate({"source": "amazon-2014", "path": path, **options})


def test_2014_reviews_come_category_by_category_in_file_order(reviews_2014):
    frame = open_source(config_2014(reviews_2014)).frame.collect()
    assert frame.rows() == [
        ("A1", "000", 5.0, 10, CATEGORIES[0]),
        ("A2", "000", 3.0, 20, CATEGORIES[0]),
        ("A1", "001", 5.0, 10, CATEGORIES[1]),
        ("A2", "001", 3.0, 20, CATEGORIES[1]),
        ("A1", "002", 5.0, 10, CATEGORIES[2]),
        ("A2", "002", 3.0, 20, CATEGORIES[2]),
    ]


def test_2014_a_click_is_more_than_three_stars_and_stars_are_no_input(reviews_2014):
    config = config_2014(reviews_2014)
    table = open_source(config)
    assert resolve(config, table).label.rule == (">", 3.0)
    with pytest.raises(ConfigError, match="'overall' is no input: a reviewer gives stars after"):
        resolve(config_2014(reviews_2014, fields=["asin", "overall"]), table)


def test_2014_domains_choose_and_order_the_categories(reviews_2014):
    config = config_2014(reviews_2014, domains=["Health_and_Personal_Care", "Beauty"])
    frame = open_source(config).frame.collect()
    assert frame["category"].unique(maintain_order=True).to_list() == list(config.domains)


def test_2014_a_category_that_is_not_there_is_named(reviews_2014):
    (reviews_2014 / "reviews_Beauty_5.json").unlink()
    with pytest.raises(DataError, match=r"lacks reviews_Beauty_5\.json \(or reviews_Beauty_5"):
        open_source(config_2014(reviews_2014))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json\n", r"not JSON"),
        ("{'reviewerID': 'A1'}\n", r"not JSON"),
        ("[1, 2]\n", "expected a JSON object, found list"),
        ('{"reviewerID": "A1", "asin": "1", "overall": 5.0}\n', "'unixReviewTime' is missing"),
        (line_2014("A", "1", 5.0).replace("5.0", '"five"'), "overall must be float, not 'five'"),
        (line_2014("A", "1", 5.0).replace('"A"', "null"), "reviewerID must be str, not None"),
        (line_2014("A", "1", 5.0)[:60] + "\n", "not JSON"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_malformed_line_is_named(reviews_2014, line, problem, packed):
    path = reviews_2014 / "reviews_Beauty_5.json"
    text = line_2014("A1", "1", 4.0) + line + line_2014("A1", "2", 4.0)
    path.write_text(text)
    if packed:
        path.unlink()
        path = path.with_suffix(".json.gz")
        path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(MalformedLineError, match=problem) as error:
        open_source(config_2014(reviews_2014))
    assert (error.value.path, error.value.line) == (path, 2)


def test_an_empty_or_broken_file_is_named(reviews_2014):
    path = reviews_2014 / "reviews_Beauty_5.json"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"Beauty_5\.json is empty"):
        open_source(config_2014(reviews_2014))
    path.unlink()
    whole = gzip.compress(line_2014("A1", "1", 4.0).encode() * 500)
    path.with_suffix(".json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"reviews_Beauty_5.json.gz cannot be read"):
        open_source(config_2014(reviews_2014))


@pytest.fixture
def reviews_2018(tmp_path: Path) -> Path:
    for name, items in (("Musical_Instruments", "abcdefgh"), ("Prime_Pantry", "stuvwxyz")):
        lines = [
            line_2018(f"A{user}", item, 1.0 + user % 5)
            for user in range(12)
            for place, item in enumerate(items)
            if (user + place) % 4 == 0
        ]
        path = tmp_path / f"{name}_5.json.gz"
        path.write_bytes(gzip.compress("".join(lines).encode()))
    return tmp_path


def config_2018(path: Path, **options: object) -> DataConfig:
    base = {
        "source": "amazon-2018",
        "path": path,
        "negatives": {"seed": 1},
        "split": {"kind": "column", "column": "split"},
    }
    return DataConfig.model_validate(base | options)


def test_2018_every_review_is_a_click_whatever_its_stars(reviews_2018):
    frame = open_source(config_2018(reviews_2018)).frame.collect()
    written = [
        (review["reviewerID"], review["asin"], path.name.removesuffix("_5.json.gz"), 1)
        for path in sorted(reviews_2018.iterdir())
        for review in map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    ]
    assert frame.select("reviewerID", "asin", "category", "label").rows() == written


def test_2018_without_negatives_is_refused(reviews_2018):
    with pytest.raises(ConfigError, match=r"data\.negatives is missing: .* clicks only\n"):
        open_source(config_2018(reviews_2018, negatives=None))


def test_2018_a_folder_without_reviews_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no <Category>_5\.json"):
        open_source(config_2018(tmp_path))


def test_2018_prepares_clicks_with_drawn_negatives_and_their_split(reviews_2018, tmp_path):
    config = config_2018(reviews_2018)
    clicks = open_source(config).frame.collect()
    drawn = draw_negatives(
        clicks,
        user="reviewerID",
        item="asin",
        domain="category",
        config=config.negatives,
        fractions=(0.6, 0.2, 0.2),
    )
    prepared = prepare(config, tmp_path / "prepared")
    for name in ("train", "validation", "test"):
        part = drawn.filter(pl.col("split") == name)
        assert len(prepared.rows(name)) == len(part)
        assert prepared.rows(name).label.sum() == part["label"].sum()
    assert prepared.schema.divisions[0].domains == ("Musical_Instruments", "Prime_Pantry")
