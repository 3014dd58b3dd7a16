"""The profile against counts in plain Python, the same whatever the batches."""

import subprocess
import sys
from collections import Counter

import numpy as np
import polars as pl
import pytest

from loractr.data import gaps, profile, sketch, staging
from loractr.data.config import DataConfig
from loractr.data.prepare import prepare
from loractr.data.profile import LEVELS, Profile
from loractr.data.rows import Rows
from loractr.schema import Division, Field, Schema

SCHEMA = Schema(
    fields=(
        Field(name="user"),
        Field(name="rare", min_count=4),
        Field(name="hashed", hash_buckets=50),
        Field(name="tags", kind="sequence"),
        Field(name="price", kind="numerical", scaling="log1p", missing="mean"),
        Field(name="flag", kind="numerical", missing="mean"),
        Field(name="domain_shop"),
    ),
    divisions=(
        Division(name="shop", column="shop"),
        Division(name="price", column="price", thresholds=(20,)),
    ),
)


def log(rows=900, seed=0):
    """Train is `part` 0, validation 1; users from 30 on and shop d come in validation only, where
    users are missing too: training has none without."""
    rng = np.random.default_rng(seed)
    part = rng.choice([0, 1, 2], rows, p=[0.6, 0.3, 0.1])
    drawn = zip(rng.integers(0, 30, rows).tolist(), part.tolist(), strict=True)
    user = [None if p and not u else u + 5 * bool(p) for u, p in drawn]
    tags = [rng.integers(0, 9, k).tolist() if k else None for k in rng.integers(0, 4, rows)]
    return pl.DataFrame(
        {
            "user": user,
            "rare": rng.zipf(1.4, rows) % 50,
            "hashed": [None if k == 0 else f"h{k}" for k in rng.integers(0, 9, rows)],
            "tags": pl.Series(tags, dtype=pl.List(pl.Int64)),
            "price": np.where(rng.random(rows) < 0.2, np.nan, rng.lognormal(3, 1, rows)),
            "flag": [None if k == 0 else 1.0 for k in rng.integers(0, 4, rows)],  # its own mean
            "shop": np.where((part == 1) & (rng.random(rows) < 0.3), "d", rng.choice(["a", "b"])),
            "part": part,
            "label": (rng.random(rows) < 0.3).astype(int),
        }
    )


def prepared(frame, path, schema=SCHEMA):
    split = {"kind": "column", "column": "part", "train": [0], "validation": [1], "test": [2]}
    config = DataConfig.model_validate({"source": "synthetic", "split": split})
    return prepare(config, path, frame=frame, schema=schema)


@pytest.fixture(scope="module")
def frame():
    return log()


@pytest.fixture(scope="module")
def made(frame, tmp_path_factory):
    found = profile.read(prepared(frame, tmp_path_factory.mktemp("p") / "out").path)
    assert found is not None
    return found


def test_shares_are_those_counted_row_by_row(frame, made):
    train = frame.filter(part=0)
    rare = Counter(train["rare"])
    known = {
        "user": set(train["user"]),
        "rare": {value for value, count in rare.items() if count >= 4},
        "tags": {tag for tags in train["tags"] if tags is not None for tag in tags},
    }
    for part, split in ((0, made.train), (1, made.validation)):
        rows = frame.filter(part=part).to_dicts()
        missing = Counter(
            name
            for row in rows
            for name in ("user", "hashed", "tags", "price", "flag")
            if row[name] is None or row[name] != row[name]
        )
        assert split.whole.rows == len(rows)
        assert split.whole.click_rate == pytest.approx(np.mean([row["label"] for row in rows]))
        assert split.whole.missing == pytest.approx({n: c / len(rows) for n, c in missing.items()})
        unknown = {}
        for name in ("user", "rare", "tags"):
            lists = [r[name] if isinstance(r[name], list) else [r[name]] for r in rows]
            ids = [one for each in lists for one in each if one is not None]
            strange = sum(one not in known[name] for one in ids)
            unknown |= {name: strange / len(ids)} if strange else {}
        assert split.whole.unknown == pytest.approx(unknown)
    assert made.train.whole.unknown.keys() == {"rare"}
    assert "user" in made.validation.whole.missing


def test_domains_have_their_own_shares(frame, made):
    own = frame.filter(part=1, shop="d")
    assert made.validation.unseen["shop"] == pytest.approx(len(own) / len(frame.filter(part=1)))
    assert made.train.unseen == {"shop": 0.0, "price": 0.0}
    cheap = frame.filter(pl.col("part") == 1, pl.col("price") < 20)
    found = made.validation.domains["price"]["<20"]
    assert found.rows == len(cheap)
    assert found.click_rate == pytest.approx(cheap["label"].mean())
    assert found.missing["flag"] == pytest.approx(cheap["flag"].null_count() / len(cheap))
    assert "price" not in found.missing


def test_quantiles_are_on_the_raw_scale_without_missing_numbers(frame, made):
    prices = frame.filter(pl.col("part") == 0, pl.col("price").is_not_nan())["price"]
    np.testing.assert_allclose(made.quantiles["price"], np.quantile(prices, LEVELS), rtol=1e-5)
    assert made.levels == LEVELS
    assert set(made.quantiles["flag"]) == {1.0}


def test_the_most_frequent_values_are_named_with_their_shares(frame, made):
    train = frame.filter(part=0)
    expected = Counter(str(value) for value in train["rare"])
    value, count = expected.most_common(1)[0]
    assert made.top["rare"][value] == pytest.approx(count / len(train))
    assert len(made.top["user"]) == 20
    assert made.top["tags"].keys() == {*map(str, range(9)), "(missing)"}
    assert "hashed" not in made.top


def test_batches_change_nothing(frame, made, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "BATCH_ROWS", 100)
    assert profile.read(prepared(frame, tmp_path / "out").path) == made


def test_long_names_are_cut_and_the_text_reads_back(tmp_path):
    frame = log(200).with_columns(user=pl.lit("é" * 500))
    found = profile.read(prepared(frame, tmp_path / "out").path)
    assert list(found.top["user"]) == ["é" * 79 + "…"]
    assert Profile.model_validate_json(found.model_dump_json()) == found


def test_a_folder_without_a_profile_has_none(tmp_path):
    assert profile.read(tmp_path) is None


def test_without_raw_values_what_training_never_missed_is_unknown(frame, tmp_path):
    data = prepared(frame, tmp_path / "out")
    rows = data.validation
    raw = frame[rows.row.tolist()]
    blind, seeing = gaps.find(rows, data.encoders), gaps.find(rows, data.encoders, raw)
    assert len(seeing.missing["user"])
    assert not len(blind.missing["user"])
    assert len(blind.unknown["user"]) == len(seeing.unknown["user"]) + len(seeing.missing["user"])
    for name in ("hashed", "tags"):
        np.testing.assert_array_equal(blind.missing[name], seeing.missing[name])
    assert not len(blind.missing["price"])


def test_repeats_of_validation_rows_are_counted(tmp_path):
    frame = log(600).with_columns(user=pl.col("user").fill_null(1), rare=pl.int_range(600))
    train, other = frame.filter(part=0), frame.filter(part=1)
    again = train.head(40).with_columns(part=pl.lit(1, dtype=pl.Int64))
    found = profile.read(prepared(pl.concat([frame, again]), tmp_path / "out").path)
    assert found.repeats == pytest.approx(40 / (len(other) + 40), abs=0.02)


def rows_of(numbers):
    """Rows with one field, `numbers`, and nothing else."""
    n = len(numbers)
    return Rows(
        ids=np.array(numbers, dtype=np.int32)[:, None],
        numbers=np.zeros((n, 0), np.float32),
        domains=np.zeros((n, 0), np.int32),
        row=np.arange(n),
    )


def test_equal_rows_have_equal_marks_wherever_they_stand():
    found = sketch.marks(rows_of([3, 5, 3, 7]))
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3
    assert (found < 2**53).all()
    assert len(np.unique(sketch.marks(rows_of(range(100_000))))) == 100_000


def test_a_mark_is_the_same_in_another_process():
    code = (
        "import numpy as np\n"
        "from loractr.data.rows import Rows\nfrom loractr.data.sketch import marks\n"
        "z = np.zeros\n"
        "r = Rows(ids=np.array([[7, 1]], np.int32), numbers=np.array([[1.5]], np.float32),\n"
        "  domains=np.array([[-1]], np.int32), row=np.array([9]), label=np.ones(1, np.float32),\n"
        "  sequences={'t': (np.array([4, 2], np.int32), np.array([0, 2]))})\n"
        "print(marks(r)[0])"
    )
    run = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert run[0].stdout == run[1].stdout


def test_everything_a_row_says_is_in_its_mark():
    base = {
        "ids": [[7, 1]],
        "numbers": [[1.5]],
        "domains": [[-1]],
        "label": [1.0],
        "tags": [4, 2],
    }
    changes = [
        {"ids": [[1, 7]]},
        {"numbers": [[1.6]]},
        {"domains": [[0]]},
        {"label": [0.0]},
        {"tags": [4, 4]},
        {"tags": [4, 2, 2]},
        {},
    ]

    def mark(values):
        tags = np.array(values["tags"], np.int32)
        return int(
            sketch.marks(
                Rows(
                    ids=np.array(values["ids"], np.int32),
                    numbers=np.array(values["numbers"], np.float32),
                    domains=np.array(values["domains"], np.int32),
                    row=np.zeros(1, np.int64),
                    label=np.array(values["label"], np.float32),
                    sequences={"tags": (tags, np.array([0, len(tags)]))},
                )
            )[0]
        )

    assert len({mark({**base, **change}) for change in changes}) == len(changes)
    assert mark({**base, "tags": [2, 4]}) == mark(base)
    nearly = np.nextafter(np.float32(1.5), np.float32(2))
    assert mark({**base, "numbers": [[nearly]]}) == mark(base)


def test_a_sketch_keeps_the_smallest_marks_and_counts_them():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 500, 4000).astype(np.uint64)
    small = sketch.Sketch(50)
    for part in np.array_split(numbers, 7):
        small.add(part)
    counts = Counter(numbers.tolist())
    expected = sorted(counts)[:50]
    assert small.marks.tolist() == expected
    assert small.counts.tolist() == [counts[value] for value in expected]
    assert small.limit == sorted(counts)[50]


def test_a_sample_is_bounded_and_uniform_over_the_rows():
    sample = sketch.Sample(2000, 1)
    for part in np.array_split(np.arange(50_000), 9):
        sample.add(part, part[:, None].astype(np.float32))
    assert sample.values.shape == (2000, 1)
    assert len(np.unique(sample.values)) == 2000
    # of a uniform sample, the mean has a standard error of 50 000 / √12 / √2000
    assert sample.values.mean() == pytest.approx(25_000, abs=4 * 50_000 / 12**0.5 / 2000**0.5)
