"""Ali-CCP in the raw \\x01 \\x02 \\x03 format: both tables, fields of several ids kept whole."""

from pathlib import Path

import polars as pl
import pytest

from loractr.data.config import DataConfig
from loractr.data.prepare import prepare
from loractr.data.resolve import resolve
from loractr.data.sources import open_source
from loractr.errors import ConfigError, DataError, MalformedLineError


def features(*triples: tuple[str, int, float]) -> str:
    return "\x01".join(f"{field}\x02{feature}\x03{value}" for field, feature, value in triples)


def sample(number: int, click: int, purchase: int, index: str, *triples) -> str:
    return f"{number},{click},{purchase},{index},{len(triples)},{features(*triples)}\n"


def common(index: str, *triples) -> str:
    return f"{index},{len(triples)},{features(*triples)}\n"


ITEM = (("205", 4_117_901, 1.0), ("206", 8_317_829, 1.0), ("301", 9_351_665, 1.0))
MANY = (
    ("216", 9_053_513, 1.0),
    ("210", 9_059_239, 1.0),
    ("210", 9_042_796, 1.0),
    ("508", 9_355_080, 2.70805),
    ("205", 4_117_902, 1.0),
    ("301", 9_351_666, 1.0),
)
USER = (
    ("101", 31_319, 1.0),
    ("121", 3_438_658, 1.0),
    ("109_14", 4_450_318, 2.3979),
    ("109_14", 4_451_000, 0.69315),
    ("150_14", 4_900_000, 1.0),
)

FILES = {
    "sample_skeleton_train.csv": sample(1, 0, 0, "bacff91692951881", *ITEM)
    + sample(2, 1, 0, "0123456789abcdef", *MANY)
    + sample(3, 0, 1, "bacff91692951881", *ITEM)
    + sample(4, 1, 1, "nothing", *ITEM),
    "common_features_train.csv": common("bacff91692951881", *USER)
    + common("0123456789abcdef", ("101", 7, 1.0)),
    "sample_skeleton_test.csv": "".join(sample(n, n % 2, 0, "feed", *ITEM) for n in range(4)),
    "common_features_test.csv": common("feed", ("101", 8, 1.0)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, newline="")
    return tmp_path


def config(path: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate({"source": "ali-ccp", "path": path, **options})


def rows(folder: Path) -> pl.DataFrame:
    return open_source(config(folder)).frame.collect()


def test_rows_keep_their_order_and_a_purchase_without_a_click_is_dropped(folder):
    frame = rows(folder)
    assert frame.select("sample_id", "click", "purchase", "file").rows() == [
        ("1", 0, 0, "train"),
        ("2", 1, 0, "train"),
        ("4", 1, 1, "train"),
        ("0", 0, 0, "test"),
        ("1", 1, 0, "test"),
        ("2", 0, 0, "test"),
        ("3", 1, 0, "test"),
    ]


def test_each_row_has_its_own_features_and_those_of_its_index(folder):
    first, second, third, *_ = rows(folder).iter_rows(named=True)
    assert (first["item_205"], first["context_301"], first["user_101"]) == (
        "4117901",
        "9351665",
        "31319",
    )
    assert (second["item_205"], second["item_206"], second["user_101"]) == ("4117902", None, "7")
    assert (third["item_205"], third["user_101"]) == ("4117901", None)


def test_fields_of_several_ids_are_kept_whole(folder):
    first, second, *_ = rows(folder).iter_rows(named=True)
    assert first["behaviour_109_14"] == ["4450318", "4451000"]
    assert first["behaviour_150_14"] == ["4900000"]
    assert first["behaviour_110_14"] == []
    assert second["item_210"] == ["9059239", "9042796"]
    assert second["combined_508"] == ["9355080"]


def test_a_field_is_not_found_inside_another(folder):
    """Field 1 would be a part of 101, and the id 205 must not be taken for the field 205."""
    content = sample(1, 0, 0, "i", ("206", 205, 1.0), ("207", 301, 1.0), ("301", 1, 1.0))
    (folder / "sample_skeleton_train.csv").write_text(content)
    row = rows(folder).row(0, named=True)
    assert (row["item_205"], row["item_206"], row["context_301"]) == (None, "205", "1")


def test_the_test_file_is_dealt_to_validation_and_test_in_turn(folder):
    split = rows(folder)["split"].to_list()
    assert split == ["train"] * 3 + ["validation", "test"] * 2


def test_all_twenty_three_fields_are_offered_and_the_domain_is_the_context(folder):
    table = open_source(config(folder))
    codes = {name.partition("_")[2] for name in table.fields}
    user, item = (
        {"101", "121", "122", *map(str, range(124, 130))},
        {"205", "206", "207", "210", "216"},
    )
    behaviour, combined = {"109_14", "110_14", "127_14", "150_14"}, {"508", "509", "702", "853"}
    assert codes == user | item | behaviour | combined | {"301"}
    assert len(codes) == 23
    assert table.divisions[0].column == "context_301"
    assert all(field.min_count == 10 for field in table.fields.values())
    with pytest.raises(ConfigError, match="'purchase' is no input: a purchase follows a click"):
        resolve(config(folder, fields=[{"name": "purchase"}]), table)


def test_it_prepares_with_the_split_of_its_files(folder, tmp_path):
    chosen = config(folder, split={"kind": "column", "column": "split"})
    prepared = prepare(chosen, tmp_path / "prepared")
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (3, 2, 2)
    assert prepared.schema.divisions[0].domains == ("9351665", "9351666")


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        ("sample_skeleton_train.csv", "5,0,0,x\n", "found 4 values"),
        ("sample_skeleton_train.csv", "5,0,0,x,1,a,b\n", "found 7 values"),
        ("sample_skeleton_train.csv", "5,yes,0,x,0,\n", "click must be a whole number, not 'yes'"),
        ("sample_skeleton_train.csv", "5,0,0,,0,\n", "common is empty"),
        (
            "sample_skeleton_test.csv",
            "5,0,0,x,2,205\x0212\x031.0\n",
            "expected 2 features, found 1",
        ),
        ("common_features_train.csv", "x,1,\n", "expected 1 features, found 0"),
        ("common_features_test.csv", "x,1\n", "found 2 values"),
    ],
)
def test_a_malformed_line_is_named(folder, name, line, problem):
    whole = FILES[name].splitlines(keepends=True)
    (folder / name).write_text("".join([whole[0], line, *whole[1:]]))
    with pytest.raises(MalformedLineError) as error:
        open_source(config(folder))
    assert (error.value.path, error.value.line) == (folder / name, 2)
    assert problem in str(error.value)


def test_a_row_without_features_is_allowed(folder):
    path = folder / "common_features_train.csv"
    path.write_text(FILES[path.name] + "lonely,0,\n")
    assert len(rows(folder)) == 7


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"lacks '{name}'"):
        open_source(config(folder))
