"""When a saved model says that it does not know much about rows, and when it does not."""

import numpy as np
import polars as pl
import pytest

from loractr import load
from loractr.artifact import remarks
from loractr.data import profile
from loractr.data.config import DataConfig
from loractr.data.prepare import prepare
from loractr.errors import ArtifactError, UsageError
from loractr.schema import Division, Field, Schema

SCHEMA = Schema(
    fields=(
        Field(name="user"),
        Field(name="tags", kind="sequence"),
        Field(name="age", kind="numerical", missing="mean"),
        Field(name="note"),
    ),
    divisions=(Division(name="shop", column="shop"),),
)


def log(rows, *, strange=0.0, ageless=0.0, noteless=0.7, seed=0):
    """`strange`: share of unknown users; `ageless`, `noteless`: shares of missing values."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 20, rows) + np.where(rng.random(rows) < strange, 100, 0)
    age = np.where(rng.random(rows) < ageless, np.nan, rng.normal(30, 9, rows))
    return pl.DataFrame(
        {
            "user": user,
            "tags": [rng.integers(0, 9, 2).tolist() for _ in range(rows)],
            "age": age,
            "note": [None if empty else "n" for empty in rng.random(rows) < noteless],
            "shop": rng.choice(["a", "b"], rows),
            "label": rng.integers(0, 2, rows),
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Validation rows have 10 % unknown users and 5 % missing ages."""
    train, other = log(1200), log(1000, strange=0.1, ageless=0.05, seed=1)
    frame = pl.concat(
        [train.with_columns(part=pl.lit("train")), other.with_columns(part=pl.lit("validation"))]
    )
    split = {"kind": "column", "column": "part", "test": []}
    config = DataConfig.model_validate({"source": "synthetic", "split": split})
    out = tmp_path_factory.mktemp("prepared") / "out"
    return prepare(config, out, frame=frame, schema=SCHEMA)


@pytest.fixture(scope="module")
def told(prepared):
    """The function that remarks on raw rows."""
    known = profile.read(prepared.path)

    def of(frame, with_profile=True):
        rows = prepared.encoders.encode(frame)
        found = known if with_profile else None
        return remarks.about_inputs(rows, prepared.encoders, found, frame)

    return of


def test_three_times_the_usual_share_is_told_with_its_numbers(told):
    frame = log(500, strange=0.4, ageless=0.3, seed=2)
    users = (frame["user"] >= 100).sum()
    ages = frame["age"].is_nan().sum()
    first, second = told(frame)
    share = f"{users / 5:.1f}".removesuffix(".0")
    assert first.startswith(f"user unknown in {share} % ({users} of 500 ids; of the validation")
    assert second.startswith(f"age missing in {ages / 5:.1f}".removesuffix(".0"))
    assert f"({ages} of 500 rows" in second


@pytest.mark.parametrize("strange", [0.0, 0.1, 0.2])
def test_the_usual_share_is_not_told(told, strange):
    assert told(log(500, strange=strange, ageless=0.06, seed=3)) == []


def test_a_column_that_is_empty_by_nature_is_not_told(told):
    """Of notes 70 % are missing in training, too."""
    assert told(log(500, noteless=0.72, seed=4)) == []
    assert [one[:12] for one in told(log(500, noteless=0.9, seed=4))] == ["note missing"]


def test_a_few_rows_prove_nothing(told):
    frame = log(30, seed=5)
    few = frame.with_columns(user=pl.when(pl.int_range(30) < 19).then(999).otherwise("user"))
    assert told(few) == []
    more = frame.with_columns(user=pl.when(pl.int_range(30) < 20).then(999).otherwise("user"))
    assert [one[:12] for one in told(more)] == ["user unknown"]


def test_all_rows_are_enough_where_chance_does_not_explain_it(told):
    two = log(2, seed=6, noteless=0)
    assert told(two.with_columns(user=pl.lit(999)))[0].startswith("user unknown in 100 % (2 of 2")
    assert told(two.with_columns(note=pl.lit(None, pl.String))) == []  # 49 % of pairs are such


def test_without_a_profile_one_half_is_told(told):
    assert told(log(500, strange=0.4, noteless=0.0, seed=2), False) == []
    (only,) = told(log(500, strange=0.6, noteless=0.0, seed=2), False)
    assert "validation" not in only


def test_ids_of_sequences_count_one_by_one(told):
    tags = [[1, 99]] * 60 + [[98, 99, 97]] * 40
    frame = log(100, seed=7).with_columns(tags=pl.Series(tags))
    assert told(frame) == [
        "tags unknown in 75 % (180 of 240 ids; of the validation rows 0 %)",
    ]


def test_unseen_domains_are_named_and_counted(told):
    shops = ["a"] * 90 + ["new"] * 7 + [None] * 3
    (only,) = told(log(100, seed=8).with_columns(shop=pl.Series(shops)))
    assert only == (
        "10 of 100 rows are of domains that training never saw: 'new', '(missing)'"
        " (division 'shop')"
    )


def test_many_strange_names_are_bounded(told):
    shops = [f"{n}" + "x" * 1000 for n in range(100)]
    (only,) = told(log(100, seed=8).with_columns(shop=pl.Series(shops)))
    assert len(only) < 1000


def test_many_fields_are_bounded(tmp_path):
    schema = Schema(fields=tuple(Field(name=f"f{n}") for n in range(30)))
    frame = pl.DataFrame({f"f{n}": [1, 2] * 20 for n in range(30)} | {"label": [0, 1] * 20})
    config = DataConfig.model_validate({"source": "synthetic", "split": {"kind": "random"}})
    made = prepare(config, tmp_path / "out", frame=frame, schema=schema)
    strange = frame + 10
    found = remarks.about_inputs(
        made.encoders.encode(strange), made.encoders, profile.read(made.path), strange
    )
    assert len(found) == 9
    assert found[-1].endswith("and 14 more")


def test_no_rows_have_no_remarks(told):
    assert told(log(10).clear()) == []


def trained_on(prepared, frame):
    rows = prepared.encoders.encode(frame, outcomes=True)
    return remarks.about_training_rows(rows, profile.read(prepared.path))


def test_training_rows_are_known_again(prepared):
    train = log(1200)
    assert "about 100 % of these rows" in trained_on(prepared, train)[0]
    mixed = pl.concat([train.head(300), log(100, seed=11)])
    assert "about 75 % of these rows" in trained_on(prepared, mixed)[0]
    assert trained_on(prepared, pl.concat([train.head(100), log(300, seed=11)])) == []
    assert trained_on(prepared, log(300, seed=12)) == []
    assert trained_on(prepared, train.with_columns(label=1 - pl.col("label"))) == []


def test_the_share_is_estimated_where_training_rows_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "MARKS", 200)
    frame = log(6000, seed=13)
    config = DataConfig.model_validate({"source": "synthetic", "split": {"kind": "random"}})
    made = prepare(config, tmp_path / "out", frame=frame, schema=SCHEMA)
    known = profile.read(made.path)
    assert len(known.marks) == 200
    rows = made.encoders.encode(frame, outcomes=True)
    (only,) = remarks.about_training_rows(rows, known)  # 80 % of 6 000, by 250 of them
    assert 74 <= float(only.split()[1]) <= 86
    few = made.encoders.encode(frame.head(100), outcomes=True)
    assert remarks.about_training_rows(few, known) == []  # 4 of 100 looked up


def test_rows_that_repeat_by_nature_are_not_taken_for_training_rows(tmp_path):
    frame = pl.DataFrame({"user": [1, 2] * 500, "label": [1, 0] * 500})
    config = DataConfig.model_validate({"source": "synthetic", "split": {"kind": "random"}})
    schema = Schema(fields=(Field(name="user"),))
    made = prepare(config, tmp_path / "out", frame=frame, schema=schema)
    assert profile.read(made.path).repeats == 1
    assert trained_on(made, frame) == []


def test_the_profile_of_an_artifact_reads_back(mlora, prepared, tmp_path):
    known = profile.read(prepared.path)
    mlora.save(tmp_path / "with", profile=known)
    mlora.save(tmp_path / "without")
    assert load(tmp_path / "with").profile == known
    assert load(tmp_path / "without").profile is None
    file = tmp_path / "with" / "profile.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ArtifactError, match=r"profile\.json is damaged"):
        load(tmp_path / "with")


def test_a_scorer_remarks_on_frames_dicts_and_encoded_rows(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    strange = mlora.frame.with_columns(tab=pl.lit("attic"), user=pl.lit(777))
    first, second = scorer.remarks(strange)
    assert first.startswith("60 of 60 rows are of domains that training never saw: 'attic'")
    assert second == "user unknown in 100 % (60 of 60 ids)"
    assert scorer.remarks(strange.to_dicts()) == [first, second]
    rows = scorer.encode(strange)
    assert scorer.remarks(strange, rows) == [first, second]
    assert scorer.remarks(None, rows) == [first.replace(": 'attic'", ""), second]
    assert scorer.remarks([]) == []
    assert scorer.remarks(mlora.frame) == []
    with pytest.raises(UsageError, match="remarks needs rows"):
        scorer.remarks(None)
