"""`prepare` as a whole: what it promises about rows, order, cache, manifest and failures."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from loractr.data import deduplicate, partition, piles, staging
from loractr.data import split as splits
from loractr.data.config import DataConfig
from loractr.data.prepare import cached, prepare
from loractr.data.store import open_prepared
from loractr.errors import (
    ConfigError,
    DataError,
    MissingColumnError,
    UnknownDomainError,
    UsageError,
)
from loractr.schema import Division, Field, Label, Schema

SCHEMA = Schema(
    fields=(
        Field(name="user", min_count=3),
        Field(name="word"),
        Field(name="tags", kind="sequence", max_length=3),
        Field(name="price", kind="numerical"),
        Field(name="domain_tab"),
    ),
    divisions=(
        Division(name="tab", column="tab"),
        Division(name="active", column="user", activeness=(8,)),
    ),
    label=Label(column="rating", positive="> 3"),
    weight="w",
    group="word",
)
BY_TAB = SCHEMA.model_copy(update={"divisions": SCHEMA.divisions[:1]})


def log(n=700, seed=0):
    rng = np.random.default_rng(seed)
    tags = [rng.integers(0, 30, k).tolist() if k else None for k in rng.integers(0, 6, n)]
    return pl.DataFrame(
        {
            "user": rng.zipf(1.3, n) % 90,
            "word": [None if k == 0 else f"w{k}" for k in rng.integers(0, 25, n)],
            "tags": tags,
            "price": rng.lognormal(size=n),
            "tab": rng.choice([3, 20, 100], n, p=[0.6, 0.3, 0.1]),
            "time": rng.integers(0, 1000, n),
            "rating": rng.integers(1, 6, n),
            "w": rng.random(n),
        }
    )


def config(**changes):
    return DataConfig.model_validate(
        {"source": "synthetic", "split": {"kind": "stratified"}, **changes}
    )


@pytest.fixture
def _small_batches(monkeypatch):
    """Everything that happens between batches, parts and piles happens with a few hundred rows."""
    monkeypatch.setattr(staging, "BATCH_ROWS", 128)
    monkeypatch.setattr(splits, "BATCH_ROWS", 128)
    monkeypatch.setattr(partition, "PART_ROWS", 100)
    monkeypatch.setattr(piles, "PILE_BYTES", 4096)


def decoded(prepared, split):
    """Rows of a split, back in raw values, by position in the source; unknown ids as '?'."""
    rows = getattr(prepared, split)
    schema, vocabularies = prepared.schema, prepared.encoders.vocabularies
    names = {name: ["?", *v.values.to_list()] for name, v in vocabularies.items()}
    price = next(f for f in schema.fields if f.name == "price")
    values, offsets = rows.sequences["tags"]
    found = {}
    for n, row in enumerate(rows.row.tolist()):
        found[row] = {
            "user": names["user"][rows.ids[n, 0]],
            "word": names["word"][rows.ids[n, 1]],
            "tags": [names["tags"][v] for v in values[offsets[n] : offsets[n + 1]]],
            "price": rows.numbers[n, 0] * price.scale + price.center,
            "domain": rows.ids[n, 2] - 1,
            "tab": schema.divisions[0].domains[rows.domains[n, 0]],
            "active": schema.divisions[1].domains[rows.domains[n, 1]],
            "label": rows.label[n],
            "w": rows.weight[n],
            "group": rows.group[n],
        }
    return found


@pytest.mark.usefixtures("_small_batches")
def test_every_row_comes_back_in_one_split_with_its_own_values(tmp_path):
    frame = log()
    prepared = prepare(config(), tmp_path / "out", frame=frame, schema=SCHEMA)
    parts = {split: decoded(prepared, split) for split in ("train", "validation", "test")}
    assert sorted(row for part in parts.values() for row in part) == list(range(len(frame)))
    train = [frame.row(row, named=True) for row in sorted(parts["train"])]
    users = Counter(row["user"] for row in train)
    words = {row["word"] for row in train}
    seen_tags = {tag for row in train for tag in (row["tags"] or [None])[:3]}
    groups = {}
    for part in parts.values():
        for row, found in part.items():
            raw = frame.row(row, named=True)
            assert found["user"] == (raw["user"] if users[raw["user"]] >= 3 else "?")
            assert found["word"] == (raw["word"] if raw["word"] in words else "?")
            tags = (raw["tags"] or [None])[:3]
            assert found["tags"] == [tag if tag in seen_tags else "?" for tag in tags]
            assert found["price"] == pytest.approx(raw["price"], rel=1e-5, abs=1e-6)
            assert found["tab"] == str(raw["tab"])
            assert found["domain"] == [3, 20, 100].index(raw["tab"])
            assert found["active"] == (">=8" if users[raw["user"]] >= 8 else "<8")
            assert found["label"] == (raw["rating"] > 3)
            assert found["w"] == pytest.approx(raw["w"])
            assert groups.setdefault(raw["word"], found["group"]) == found["group"]
    assert sorted(groups.values()) == list(range(len(groups)))  # dense, one for each word


@pytest.mark.usefixtures("_small_batches")
def test_training_rows_are_in_random_order_and_the_others_in_that_of_the_source(tmp_path):
    prepared = prepare(config(), tmp_path / "out", frame=log(), schema=SCHEMA)
    train = prepared.train.row
    n = len(train)
    assert len(list((tmp_path / "out").rglob("pile-*"))) == 0
    rank = np.argsort(np.argsort(train))
    assert abs(np.corrcoef(rank, np.arange(n))[0, 1]) < 4 / np.sqrt(n)
    assert (np.diff(prepared.validation.row) > 0).all()
    assert (np.diff(prepared.test.row) > 0).all()


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize("split", [{"kind": "random"}, {"kind": "per_user", "column": "user"}])
def test_the_same_frame_gives_the_same_files(tmp_path, split):
    files = []
    for name in "ab":
        prepare(config(split=split), tmp_path / name, frame=log(), schema=SCHEMA)
        files.append(json.loads((tmp_path / name / "manifest.json").read_text())["files"])
    assert files[0] == files[1]


def test_the_manifest_counts_rows_and_positives_of_each_domain_and_of_the_unseen(tmp_path):
    frame = log().with_columns(split=pl.Series(["train", "train", "test"] * 233 + ["train"]))
    frame = frame.with_columns(
        tab=pl.when(pl.col("split") == "test").then(pl.col("tab") % 7).otherwise(pl.col("tab"))
    )  # 3, 6, 2: only 3 is known
    cut = {"kind": "column", "column": "split", "validation": []}
    prepared = prepare(config(split=cut), tmp_path / "out", frame=frame, schema=SCHEMA)
    for split in ("train", "test"):
        mine = frame.filter(pl.col("split") == split)
        counts = prepared.manifest["splits"][split]
        assert counts["rows"] == len(mine)
        assert counts["positives"] == (mine["rating"] > 3).sum()
        tab = counts["divisions"]["tab"]
        for name, found in tab["domains"].items():
            rows = mine.filter(pl.col("tab") == int(name))
            positives = (rows["rating"] > 3).sum()
            assert found == {"rows": len(rows), "positives": positives}
        other = mine.filter(~pl.col("tab").is_in([3, 20, 100]))
        assert tab["unseen"]["rows"] == len(other)
    assert prepared.manifest["splits"]["validation"]["rows"] == 0
    assert prepared.manifest["vocabulary"]["domain_tab"] == 4
    assert prepared.manifest["versions"]["polars"] == pl.__version__
    assert set(prepared.manifest["seconds"]) == {"stage", "deduplicate", "split", "fit", "encode"}


def test_what_is_opened_is_what_was_prepared(tmp_path):
    made = prepare(config(), tmp_path / "out", frame=log(), schema=SCHEMA)
    opened = open_prepared(tmp_path / "out")
    assert opened.schema == made.schema
    assert opened.schema.fitted
    assert decoded(opened, "test") == decoded(made, "test")


def test_the_encoders_of_a_prepared_set_encode_its_own_test_rows(tmp_path):
    frame = log()
    prepared = prepare(config(), tmp_path / "out", frame=frame, schema=SCHEMA)
    test = prepared.test
    again = prepared.encoders.encode(frame[test.row.tolist()].drop("rating", "w", "time"))
    assert (again.ids == test.ids).all()
    assert (again.numbers == test.numbers).all()
    assert (again.domains == test.domains).all()
    for before, after in zip(test.sequences["tags"], again.sequences["tags"], strict=True):
        assert (before == after).all()


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize("columns", [("user", "tab"), True])
def test_of_repeated_rows_the_first_stays(tmp_path, columns):
    half = log(300).with_columns(tags=pl.col("tags").list.head(1), w=pl.lit(1.0))
    frame = pl.concat([half, half[::-1], log(60, seed=1).with_columns(w=pl.lit(2.0))])
    key = ["user", "tab"] if columns is not True else frame.columns
    seen, first = set(), []
    for row, values in enumerate(frame.select(key).rows()):
        if (values := repr(values)) not in seen:
            seen.add(values)
            first.append(row)
    prepared = prepare(
        config(deduplicate=columns, split={"kind": "random"}),
        tmp_path / "out",
        frame=frame,
        schema=BY_TAB,
    )
    rows = (prepared.train.row, prepared.validation.row, prepared.test.row)
    assert sorted(np.concatenate(rows).tolist()) == first
    assert prepared.manifest["dropped"] == {"duplicates": len(frame) - len(first)}


def test_missing_values_are_equal_when_repeats_are_dropped(tmp_path):
    staged = staging.stage(
        pl.LazyFrame({"a": [None, 1, None, 1], "b": ["x", None, "x", None]}),
        ["a", "b"],
        tmp_path / "s.parquet",
    )
    kept = deduplicate.first_of_each(staged, ["a", "b"], tmp_path)
    assert kept.tolist() == [True, True, False, False]


def table(folder, frame=None, **changes):
    """Configuration of a `table` source of one Parquet file."""
    folder.mkdir(exist_ok=True)
    (log() if frame is None else frame).drop("tags").write_parquet(folder / "log.parquet")
    return DataConfig.model_validate(
        {
            "source": "table",
            "path": folder,
            "fields": [{"name": "user"}, {"name": "price", "kind": "numerical"}],
            "divisions": {"tab": {"column": "tab"}},
            "label": {"column": "rating", "positive": "> 3"},
            "split": {"kind": "random"},
            **changes,
        }
    )


def test_a_data_set_is_prepared_once_for_the_same_configuration_and_files(tmp_path, caplog):
    data, out = table(tmp_path / "log"), tmp_path / "out"
    prepare(data, out)
    made = (out / "manifest.json").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        prepare(data, out)
    assert "used again" in caplog.text
    assert (out / "manifest.json").stat().st_mtime_ns == made


def test_it_is_prepared_anew_when_configuration_or_file_changed(tmp_path):
    data, out = table(tmp_path / "log"), tmp_path / "out"
    keys = [prepare(data, out).manifest["key"]]
    other = data.model_copy(update={"weight": "w"})
    keys.append(prepare(other, out).manifest["key"])
    table(tmp_path / "log", log(seed=1))
    keys.append(prepare(other, out).manifest["key"])
    assert len(set(keys)) == 3
    assert [p.name for p in tmp_path.iterdir() if p.name != "log"] == ["out"]


def test_a_file_copied_elsewhere_or_touched_is_the_same_file(tmp_path):
    first = prepare(table(tmp_path / "a"), tmp_path / "one")
    second = prepare(table(tmp_path / "b"), tmp_path / "two")
    assert first.manifest["key"] == second.manifest["key"]


def test_the_cache_has_one_directory_for_each_key(tmp_path):
    data = table(tmp_path / "log")
    first = cached(data, tmp_path / "cache")
    assert cached(data, tmp_path / "cache").path == first.path
    other = cached(data.model_copy(update={"weight": "w"}), tmp_path / "cache")
    assert other.path != first.path
    assert first.manifest["key"].startswith(first.path.name)


def test_a_damaged_data_set_is_prepared_anew(tmp_path):
    data = table(tmp_path / "log")
    out = prepare(data, tmp_path / "out").path
    (out / "train" / "ids.npy").unlink()
    assert len(prepare(data, out).train.ids) == 560


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_no_prepared_data_set_is_never_overwritten(tmp_path, is_file):
    out = tmp_path / "thesis"
    if is_file:
        out.write_text("years of work")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is no prepared data set"):
        prepare(config(), out, frame=log(), schema=SCHEMA)
    assert (out if is_file else out / "thesis.tex").read_text() == "years of work"


def test_an_empty_directory_may_be_filled(tmp_path):
    prepare(config(), tmp_path, frame=log(), schema=SCHEMA)
    assert (tmp_path / "manifest.json").exists()


def test_a_frame_needs_a_schema(tmp_path):
    with pytest.raises(UsageError, match="without a schema"):
        prepare(config(), tmp_path / "out", frame=log())


def test_negatives_are_not_drawn_for_a_frame(tmp_path):
    with pytest.raises(UsageError, match="not for a frame"):
        prepare(config(negatives={}), tmp_path / "out", frame=log(), schema=SCHEMA)


def without(column):
    return log().drop(column)


def changed(**columns):
    return log().with_columns(**columns)


@pytest.mark.parametrize(
    ("frame", "changes", "error", "message"),
    [
        (without("user"), {}, MissingColumnError, "'user', wanted by"),
        (without("rating"), {}, MissingColumnError, "'rating', wanted by the label"),
        (without("w"), {}, MissingColumnError, "'w', wanted by `weight`"),
        (log(), {"deduplicate": ("usr",)}, MissingColumnError, "'usr', wanted by `deduplicate`"),
        (log(), {"split": {"kind": "per_user", "column": "id"}}, MissingColumnError, "`split`"),
        (log().clear(), {}, DataError, "the table has no rows"),
        (changed(rating=pl.lit(None)), {}, DataError, "labels are missing"),
        (changed(price=pl.lit(float("nan"))), {}, DataError, "field 'price': 700 of the numbers"),
        (changed(user=pl.lit(2.0**53)), {}, DataError, "field 'user' reads ids"),
        (changed(user=pl.lit(1)), {}, DataError, "no training row is of '<8'"),
        (log(1), {"split": {"kind": "random"}}, DataError, "none of the 1 rows into validation"),
    ],
)
def test_bad_input_is_named_and_nothing_stays(tmp_path, frame, changes, error, message):
    with pytest.raises(error, match=message):
        prepare(config(**changes), tmp_path / "out", frame=frame, schema=SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_validation_rows_of_an_unseen_domain_are_an_error_where_it_says_so(tmp_path):
    frame = pl.DataFrame({"x": [1, 2, 3], "tab": ["a", "a", "b"], "label": [0, 1, 0]})
    schema = Schema(
        fields=(Field(name="x"),), divisions=(Division(name="tab", column="tab", unseen="error"),)
    )
    split = {"kind": "temporal", "column": "x", "validation_from": 2, "test_from": 3}
    with pytest.raises(UnknownDomainError, match="no domain 'b'; it was fitted on 'a'"):
        prepare(config(split=split), tmp_path / "out", frame=frame, schema=schema)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_breaks_while_it_is_read_is_a_data_error(tmp_path):
    broken = log().lazy().with_columns(user=pl.col("word").cast(pl.Int64, strict=True))
    with pytest.raises(DataError, match="the source cannot be read"):
        prepare(config(), tmp_path / "out", frame=broken, schema=SCHEMA)
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys, resource
from pathlib import Path
import polars as pl
sys.path.insert(0, {tests!r})
from test_prepare import BY_TAB, config, log
from loractr.data.prepare import prepare
from loractr.errors import DataError
{before}
frame = log({rows})
print("ready", flush=True)
try:
    prepare(config(), Path({out!r}), frame=frame, schema=BY_TAB)
except DataError as error:
    print(error)
except KeyboardInterrupt:
    print("interrupted")
else:
    print("done")
"""


def script(out, *, rows, before=""):
    tests = str(Path(__file__).parent)
    code = SCRIPT.format(tests=tests, before=before, rows=rows, out=str(out))
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("limit", [1_000, 100_000])  # while staging; while writing arrays
def test_a_full_disk_is_named_with_the_room_that_is_left_and_nothing_stays(tmp_path, limit):
    before = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    command = script(tmp_path / "out", rows=4000, before=before)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "the disk is full" in done.stdout, done.stderr
    assert "bytes are free" in done.stdout
    assert str(tmp_path / "out") in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_ctrl_c_leaves_nothing_or_everything_behind(tmp_path, wait):
    command = script(tmp_path / "out", rows=60_000)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob("out.partial-*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGINT)
        said = process.stdout.read()
    assert said in ("interrupted\n", "done\n")
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["out"] if said == "done\n" else left in ([], ["out"])
    if left:  # interrupted after the last moment: then all of it is there
        assert len(open_prepared(tmp_path / "out").train)


GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
import polars as pl
from loractr.data.config import DataConfig
from loractr.data.prepare import prepare
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
(folder / "log").mkdir()
for part in range(rows // 500_000):
    rng = np.random.default_rng(part)
    columns = {"user": rng.integers(0, 9999, 500_000), "item": rng.integers(0, 9999, 500_000)}
    columns |= {"time": rng.random(500_000), "label": rng.integers(0, 2, 500_000)}
    pl.DataFrame(columns).write_parquet(folder / "log" / f"{part:02d}.parquet")
config = {"source": "table", "path": folder / "log", "fields": ["user", "item"]}
config["split"] = {"kind": "temporal", "column": "time", "fractions": [0.8, 0.1, 0.1]}
prepare(DataConfig.model_validate(config), folder / "out")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    peak = {}
    for rows in (1_000_000, 8_000_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        command = [sys.executable, "-c", GROWTH, str(folder), str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak[rows] = int(done.stdout)  # MiB
    # two bytes a row, split and keep, are 13 MiB; the rows themselves, as staged, are 220 MiB
    assert peak[8_000_000] - peak[1_000_000] < 100


@pytest.mark.real_data
def test_movielens_has_its_rows_in_each_split_by_domain_and_label(movielens, tmp_path):
    data = DataConfig.model_validate(
        {
            "source": "movielens-1m",
            "path": movielens,
            "label": {"column": "rating", "positive": "== 5"},
            "fields": ["user", "movie"],
            "divisions": {"gender": {"column": "gender"}},
        }
    )
    splits = prepare(data, tmp_path / "out").manifest["splits"]
    counts = {
        name: [
            sum(split["divisions"]["gender"]["domains"][name][key] for split in splits.values())
            for key in ("rows", "positives")
        ]
        for name in "FM"
    }
    users = (line.split("::") for line in _lines(movielens / "users.dat"))
    gender = {user: gender for user, gender, *_ in users}
    expected = {"F": [0, 0], "M": [0, 0]}
    for user, _, rating, _ in (line.split("::") for line in _lines(movielens / "ratings.dat")):
        expected[gender[user]][0] += 1
        expected[gender[user]][1] += rating == "5"
    assert counts == expected
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        for domain, (rows, positives) in expected.items():
            found = splits[name]["divisions"]["gender"]["domains"][domain]
            assert abs(found["positives"] - share * positives) < 1
            assert abs(found["rows"] - share * rows) < 2


def _lines(path):
    return path.read_text(encoding="latin-1").splitlines()


def clicks(folder, **changes):
    """Configuration of a log of clicks only: 30 users, 60 items, two domains."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 30, 400),
            "item": rng.integers(0, 60, 400),
            "theme": rng.choice(["a", "b"], 400).tolist(),
        }
    ).unique(maintain_order=True)
    folder.mkdir()
    frame.write_parquet(folder / "clicks.parquet")
    config = {
        "source": "table",
        "path": folder,
        "fields": ["user", "item"],
        "divisions": {"theme": {"column": "theme"}},
        "negatives": {"user": "user", "item": "item"},
        "split": {"kind": "column", "column": "split"},
        **changes,
    }
    return frame, DataConfig.model_validate(config)


def test_negatives_are_drawn_for_a_log_of_clicks(tmp_path):
    frame, data = clicks(tmp_path / "log")
    prepared = prepare(data, tmp_path / "out")
    assert sum(s["positives"] for s in prepared.manifest["splits"].values()) == len(frame)
    for split in prepared.manifest["splits"].values():
        assert 0 < split["positives"] < split["rows"]
    clicked = set(frame.rows())
    values = {name: ["?", *v.values] for name, v in prepared.encoders.vocabularies.items()}
    for (user, item, _), (domain,), label in zip(
        prepared.train.ids.tolist(),
        prepared.train.domains.tolist(),
        prepared.train.label.tolist(),
        strict=True,
    ):
        theme = prepared.schema.divisions[0].domains[domain]
        assert ((values["user"][user], values["item"][item], theme) in clicked) == bool(label)


def test_negatives_need_user_item_and_division(tmp_path):
    _, data = clicks(tmp_path / "a", negatives={"item": "item"})
    with pytest.raises(ConfigError, match="negatives are drawn for users"):
        prepare(data, tmp_path / "out")
    _, data = clicks(tmp_path / "b", negatives={"user": "user", "item": "movie"})
    with pytest.raises(MissingColumnError, match="'movie', wanted by `negatives`"):
        prepare(data, tmp_path / "out")


def test_negatives_are_split_by_time_and_have_all_inputs(tmp_path):
    """A second division, a weight and a number: nothing but the split is drawn for them."""
    frame, _ = clicks(tmp_path / "log")
    rng = np.random.default_rng(4)
    frame = frame.with_columns(
        at=pl.Series(rng.permutation(len(frame))),
        price=frame["item"].cast(pl.Float64) * 2,
        gender=pl.Series(["f" if user % 2 else "m" for user in frame["user"]]),
        w=pl.Series(rng.random(len(frame)).round(3)),
        unused=pl.Series(range(len(frame))),
    )
    frame.write_parquet(tmp_path / "log" / "clicks.parquet")
    config = {
        "source": "table",
        "path": tmp_path / "log",
        "fields": ["user", "item", {"name": "price", "kind": "numerical"}],
        "divisions": {"theme": {"column": "theme"}, "gender": {"column": "gender"}},
        "weight": "w",
        "negatives": {"user": "user", "item": "item"},
        "split": {
            "kind": "temporal",
            "column": "at",
            "validation_from": len(frame) // 2,
            "test_from": 3 * len(frame) // 4,
        },
    }
    prepared = prepare(DataConfig.model_validate(config), tmp_path / "out")
    splits = prepared.manifest["splits"]
    early = int((frame["at"] < len(frame) // 2).sum())
    assert splits["train"]["positives"] == early
    assert sum(split["positives"] for split in splits.values()) == len(frame)
    assert all(0 < split["positives"] < split["rows"] for split in splits.values())
    rows = prepared.train
    items = np.array(["0", *prepared.encoders.vocabularies["item"].values])
    users = np.array(["0", *prepared.encoders.vocabularies["user"].values])
    field = prepared.schema.numerical[0]
    price = np.asarray(rows.numbers)[:, 0] * field.scale + field.center
    assert np.allclose(price, items[rows.ids[:, 1]].astype(float) * 2, atol=1e-3)
    genders = np.array(prepared.schema.divisions[1].domains)[rows.domains[:, 1]]
    expected = np.where(users[rows.ids[:, 0]].astype(int) % 2, "f", "m")
    assert (genders == expected).all()
    assert set(np.round(rows.weight, 3)) <= set(np.float32(frame["w"]).round(3))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"label": {"column": "user"}}, ConfigError, "the label is the column 'label', not 'user'"),
        (
            {"negatives": {"user": "user", "item": "theme"}},
            ConfigError,
            "are three columns, not 'user', 'theme', 'theme'",
        ),
        (
            {"negatives": {"user": "user", "item": "item", "item_columns": ["prize"]}},
            MissingColumnError,
            "'prize', wanted by `negatives`",
        ),
        ({"fields": ["user", "itm"]}, ConfigError, "no field 'itm'; did you mean 'item'"),
    ],
)
def test_negatives_that_cannot_be_drawn_are_refused(changes, error, message, tmp_path):
    _, data = clicks(tmp_path / "log", **changes)
    with pytest.raises(error, match=message):
        prepare(data, tmp_path / "out")
