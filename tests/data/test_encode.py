"""Encoders: what each kind of field becomes, on a frame small enough to write by hand."""

import math
import time

import numpy as np
import polars as pl
import pytest

from loractr.data.encode import Encoders
from loractr.data.fit import Fit
from loractr.data.vocabulary import Vocabulary
from loractr.errors import ConfigError, DataError, MissingColumnError, UnknownDomainError
from loractr.schema import Division, Field, Label, Schema

TRAIN = pl.DataFrame(
    {
        "user": [10, 10, 20, 30, 10, None],
        "city": ["rome", "oslo", "oslo", None, "rome", "oslo"],
        "tags": [["a", "b"], ["b"], [], None, ["b", None], ["c", "b", "a"]],
        "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "age": [17, 18, 64, 65, 18, 30],
        "label": [0, 1, 0, 0, 1, 0],
    }
)


def fitted(frame=TRAIN, train=None, **schema):
    schema = {"fields": (), **schema}
    fit = Fit(Schema(**schema))
    train = np.ones(len(frame), dtype=bool) if train is None else np.array(train)
    rows = np.arange(len(frame))
    for start in range(0, len(frame), 4):  # in two batches
        part = slice(start, start + 4)
        fit.observe(frame[part], train[part], rows[part])
    return fit.encoders()


def ids(encoders, frame):
    return encoders.encode(frame).ids[:, 0].tolist()


def domains(encoders, frame):
    found = encoders.encode(frame).domains[:, 0]
    names = encoders.schema.divisions[0].domains
    return [None if d < 0 else names[d] for d in found]


def test_ids_are_numbered_by_frequency_and_others_are_unknown():
    encoders = fitted(fields=(Field(name="user"),))
    assert ids(encoders, pl.DataFrame({"user": [10, 20, 30, None, 99]})) == [1, 2, 3, 4, 0]
    assert encoders.schema.fields[0].size == 5
    assert encoders.schema.fields[0].unknown_rows == 0


def test_rare_ids_are_unknown_and_counted():
    encoders = fitted(fields=(Field(name="user", min_count=2),))
    assert ids(encoders, TRAIN) == [1, 1, 0, 0, 1, 2]  # missing is exempt
    assert encoders.schema.fields[0].unknown_rows == 2


def test_nothing_is_learnt_from_other_rows():
    train = [True, True, True, False, False, False]
    encoders = fitted(
        train=train,
        fields=(
            Field(name="user"),
            Field(name="tags", kind="sequence"),
            Field(name="price", kind="numerical"),
        ),
        divisions=(
            Division(name="city", column="city"),
            Division(name="active", column="user", activeness=(2,)),
        ),
    )
    schema = encoders.schema
    alone = fitted(TRAIN.head(3), fields=schema.fields, divisions=schema.divisions)
    assert encoders.schema == alone.schema
    assert encoders.schema.divisions[0].domains == ("oslo", "rome")
    assert ids(encoders, TRAIN) == [1, 1, 2, 0, 1, 0]
    assert encoders.schema.fields[2].center == 2.0


def test_a_hashed_field_needs_no_vocabulary_and_no_training_rows():
    encoders = fitted(fields=(Field(name="user", hash_buckets=5),))
    assert encoders.schema.fields[0].size == 7
    assert not encoders.vocabularies
    found = ids(encoders, pl.DataFrame({"user": [10, 99, None]}))
    assert found[2] == 1
    assert all(2 <= index < 7 for index in found[:2])
    assert ids(encoders, pl.DataFrame({"user": ["10", "99"]})) == found[:2]


@pytest.mark.parametrize("as_text", [False, True])
def test_sequences_keep_their_order_and_an_empty_one_holds_one_missing_id(as_text):
    frame = TRAIN.with_columns(
        tags=pl.Series([["a", "b"], ["b"], [], None, ["b", "b"], ["c", "b", "a"]])
    )
    field = Field(name="tags", kind="sequence")
    if as_text:
        frame = frame.with_columns(pl.col("tags").list.join("|"))
        field = Field(name="tags", kind="sequence", separator="|")
    encoders = fitted(frame, fields=(field,))
    # b five times, a twice, missing twice (after a), c once
    values, offsets = encoders.encode(frame).sequences["tags"]
    assert offsets.tolist() == [0, 2, 3, 4, 5, 7, 10]
    assert values.tolist() == [2, 1, 1, 3, 3, 1, 1, 4, 1, 2]
    assert encoders.schema.fields[0].size == 5


def test_a_missing_id_inside_a_sequence_is_the_missing_id():
    encoders = fitted(fields=(Field(name="tags", kind="sequence"),))
    values, offsets = encoders.encode(TRAIN[4:5]).sequences["tags"]
    assert values.tolist() == [1, encoders.encode(TRAIN[2:3]).sequences["tags"][0][0]]
    assert offsets.tolist() == [0, 2]


def test_a_sequence_is_cut_before_its_ids_are_counted():
    encoders = fitted(fields=(Field(name="tags", kind="sequence", max_length=1),))
    assert encoders.encode(TRAIN).sequences["tags"][1].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert set(encoders.vocabularies["tags"].values) == {"a", "b", "c", None}
    assert encoders.vocabularies["tags"].counts.sum() == 6


def test_arrays_of_fixed_length_are_sequences():
    frame = pl.DataFrame({"tags": pl.Series([[1, 2], [2, 3]], dtype=pl.Array(pl.Int64, 2))})
    encoders = fitted(frame, fields=(Field(name="tags", kind="sequence"),))
    assert encoders.encode(frame).sequences["tags"][0].tolist() == [2, 1, 1, 3]


@pytest.mark.parametrize("column", [pl.Series([1, 2]), pl.Series(["a|b", "c"])])
def test_a_sequence_needs_lists_or_a_separator(column):
    frame = pl.DataFrame({"tags": column})
    with pytest.raises(DataError, match=r"field 'tags' reads sequences(.|\n)*separator"):
        fitted(frame, fields=(Field(name="tags", kind="sequence"),))


PRICES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def standardised(values):
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / deviation for v in values]


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("none", PRICES),
        ("standard", standardised(PRICES)),
        ("min_max", [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("log1p", standardised([math.log(1 + p) for p in PRICES])),
    ],
)
def test_numbers_are_scaled(scaling, expected):
    encoders = fitted(fields=(Field(name="price", kind="numerical", scaling=scaling),))
    found = encoders.encode(TRAIN).numbers
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_log1p_keeps_the_sign():
    frame = pl.DataFrame({"x": [-3.0, 0.0, 7.0]})
    encoders = fitted(frame, fields=(Field(name="x", kind="numerical", scaling="log1p"),))
    expected = standardised([-math.log(4), 0.0, math.log(8)])
    assert encoders.encode(frame).numbers[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_large_mean_costs_no_digits():
    values = [1e9 + v for v in (1, 2, 3, 4, 5, 6)]
    frame = TRAIN.with_columns(price=pl.Series(values))
    encoders = fitted(frame, fields=(Field(name="price", kind="numerical"),))
    found = encoders.encode(frame).numbers[:, 0].tolist()
    assert found == pytest.approx(standardised([1, 2, 3, 4, 5, 6]), abs=1e-6)


@pytest.mark.parametrize("scaling", ["standard", "min_max", "log1p"])
@pytest.mark.parametrize("value", [0.0, 7.3, 1e12])
def test_a_constant_column_is_zero_and_not_nan(scaling, value):
    frame = TRAIN.with_columns(price=pl.lit(value))
    encoders = fitted(frame, fields=(Field(name="price", kind="numerical", scaling=scaling),))
    assert encoders.encode(frame).numbers.tolist() == [[0.0]] * 6
    assert encoders.schema.fields[0].scale == 1.0


@pytest.mark.parametrize("missing", [None, float("nan")])
@pytest.mark.parametrize("scaling", ["none", "standard", "min_max", "log1p"])
def test_a_missing_number_becomes_the_mean_of_the_training_rows(scaling, missing):
    frame = TRAIN.with_columns(price=pl.Series([1.0, missing, 2.0, 6.0, 11.0, 1000.0]))
    field = Field(name="price", kind="numerical", scaling=scaling, missing="mean")
    encoders = fitted(frame, train=[True] * 5 + [False], fields=(field,))
    mean = pl.DataFrame({"price": [5.0]})  # of 1, 2, 6, 11
    expected = encoders.encode(mean).numbers[0, 0]
    assert encoders.encode(frame).numbers[1, 0] == pytest.approx(expected)
    assert np.isfinite(encoders.encode(frame).numbers).all()


def test_missing_numbers_are_an_error_that_counts_them_and_names_the_rows():
    frame = pl.DataFrame({"x": [None if i % 2 else 1.0 for i in range(40)]})
    with pytest.raises(DataError) as error:
        fitted(frame, fields=(Field(name="x", kind="numerical"),))
    assert "field 'x': 20 of the numbers in column 'x' are missing or NaN" in str(error.value)
    assert "rows 1, 3, 5, 7, 9, …" in str(error.value)
    assert "missing: mean" in str(error.value)


def test_missing_numbers_outside_training_are_an_error_too():
    frame = pl.DataFrame({"x": [1.0, None]})
    with pytest.raises(DataError, match="row 1"):
        fitted(frame, train=[True, False], fields=(Field(name="x", kind="numerical"),))
    encoders = fitted(frame[:1], fields=(Field(name="x", kind="numerical"),))
    with pytest.raises(DataError, match="row 1"):
        encoders.encode(frame)


def test_a_column_without_any_training_number_is_refused():
    frame = pl.DataFrame({"x": [None, 1.0]})
    field = Field(name="x", kind="numerical", missing="mean")
    with pytest.raises(DataError, match="no training row has a number"):
        fitted(frame, train=[True, False], fields=(field,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, float("inf")], r"'inf' \(row 1,"),
        ([float("-inf"), 1.0], r"'-inf' \(row 0,"),
        (["1.5", "cheap"], r"'cheap' \(row 1,"),
        ([[1.0], [2.0]], r"column 'x' of type List\(Float64\)"),
    ],
)
def test_what_is_no_number_is_refused(values, message):
    frame = pl.DataFrame({"x": values})
    field = Field(name="x", kind="numerical", missing="mean")
    with pytest.raises(DataError, match=message):
        fitted(frame, fields=(field,))


def test_numbers_may_stand_as_text():
    frame = pl.DataFrame({"x": ["1", "2.5", "4"]})
    encoders = fitted(frame, fields=(Field(name="x", kind="numerical", scaling="none"),))
    assert encoders.encode(frame).numbers[:, 0].tolist() == [1.0, 2.5, 4.0]


def test_each_value_of_a_plain_division_is_a_domain_numbers_in_numerical_order():
    for values in ([10, 9, None, 10], ["10", "9", None, "10"]):
        frame = pl.DataFrame({"tab": values})
        encoders = fitted(frame, divisions=(Division(name="tab", column="tab"),))
        assert encoders.schema.divisions[0].domains == ("9", "10", "(missing)")
        asked = pl.DataFrame({"tab": [9, 10, None, 11]})
        assert domains(encoders, asked) == ["9", "10", "(missing)", None]
        assert domains(encoders, asked.cast(pl.String)) == ["9", "10", "(missing)", None]


def test_texts_are_domains_in_the_order_of_the_alphabet():
    encoders = fitted(divisions=(Division(name="city", column="city"),))
    assert encoders.schema.divisions[0].domains == ("oslo", "rome", "(missing)")
    encoders = fitted(TRAIN.drop_nulls("city"), divisions=(Division(name="c", column="city"),))
    assert domains(encoders, pl.DataFrame({"city": [None, "rome"]})) == [None, "rome"]
    frame = pl.DataFrame({"flag": [True, False]})
    encoders = fitted(frame, divisions=(Division(name="flag", column="flag"),))
    assert domains(encoders, frame) == ["true", "false"]


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String, pl.Float64])
def test_groups_of_values_are_domains_in_the_order_of_the_groups(dtype):
    frame = pl.DataFrame({"age": pl.Series([1, 35, 18, 25, 35]).cast(dtype)})
    groups = {"young": (1, "18"), "old": (35.0, 45), "middle": (25,)}
    encoders = fitted(frame, divisions=(Division(name="a", column="age", groups=groups),))
    assert encoders.schema.divisions[0].domains == ("young", "old", "middle")
    asked = pl.DataFrame({"age": pl.Series([18, 45, 25, 56, None]).cast(dtype)})
    assert domains(encoders, asked) == ["young", "old", "middle", None, None]


def test_the_rest_takes_in_all_other_values_even_missing_ones():
    division = Division(name="c", column="city", groups={"south": ("rome",)}, rest="elsewhere")
    encoders = fitted(divisions=(division,))
    assert encoders.schema.divisions[0].domains == ("south", "elsewhere")
    asked = pl.DataFrame({"city": ["rome", "oslo", "riga", None]})
    assert domains(encoders, asked) == ["south", "elsewhere", "elsewhere", "elsewhere"]


def test_without_a_rest_missing_is_a_domain_where_training_rows_have_it():
    division = Division(name="c", column="city", groups={"south": ("rome",), "north": ("oslo",)})
    encoders = fitted(divisions=(division,))
    assert encoders.schema.divisions[0].domains == ("south", "north", "(missing)")
    asked = pl.DataFrame({"city": ["rome", "riga", None]})
    assert domains(encoders, asked) == ["south", None, "(missing)"]


def test_thresholds_cut_below_themselves():
    division = Division(name="a", column="age", thresholds=(18, 64.5))
    encoders = fitted(divisions=(division,))
    assert encoders.schema.divisions[0].domains == ("<18", "[18,64.5)", ">=64.5")
    asked = pl.DataFrame({"age": [17.9, 18, 64.4, 64.5, None]})
    assert domains(encoders, asked) == ["<18", "[18,64.5)", "[18,64.5)", ">=64.5", None]


def test_activeness_counts_training_rows_of_the_value():
    division = Division(name="a", column="user", activeness=(2, 3))
    frame = pl.DataFrame({"user": [1, 1, 1, 2, 2, 3, None, 3, 4]})
    encoders = fitted(frame, train=[True] * 7 + [False] * 2, divisions=(division,))
    assert encoders.schema.divisions[0].domains == ("<2", "[2,3)", ">=3", "(missing)")
    asked = pl.DataFrame({"user": ["1", "2", "3", "4", None]})
    assert domains(encoders, asked) == [">=3", "[2,3)", "<2", "<2", "(missing)"]


@pytest.mark.parametrize(
    ("division", "name"),
    [
        (Division(name="d", column="age", groups={"a": (17, 18, 30, 64, 65), "z": (99,)}), "'z'"),
        (Division(name="d", column="age", groups={"a": (17, 18, 30, 64, 65)}, rest="r"), "'r'"),
        (Division(name="d", column="age", thresholds=(5, 20)), "'<5'"),
        (Division(name="d", column="user", activeness=(2, 3, 4)), r"'\[2,3\)', '>=4'"),
    ],
)
def test_a_declared_domain_without_training_rows_is_refused_by_name(division, name):
    with pytest.raises(DataError, match=f"an empty domain: no training row is of {name}"):
        fitted(divisions=(division,))


def test_a_value_in_two_groups_is_refused_even_when_written_differently():
    division = Division(name="d", column="age", groups={"a": (18.0,), "b": ("18",)})
    with pytest.raises(ConfigError, match="'18'"):
        fitted(divisions=(division,))


def test_an_unseen_domain_is_an_error_where_the_division_says_so():
    division = Division(name="city", column="city", unseen="error")
    encoders = fitted(TRAIN.drop_nulls("city"), divisions=(division,))
    with pytest.raises(UnknownDomainError) as error:
        encoders.encode(pl.DataFrame({"city": ["rome", "riga", None]}))
    assert error.value.unknown == ("riga", "(missing)")
    assert error.value.known == ("oslo", "rome")


def test_the_domain_field_holds_the_domains_name_and_reads_no_column():
    encoders = fitted(
        fields=(Field(name="user"), Field(name="domain_city")),
        divisions=(Division(name="city", column="city"),),
    )
    assert encoders.schema.fields[1].size == 4
    rows = encoders.encode(pl.DataFrame({"user": [10] * 4, "city": ["riga", "oslo", "rome", None]}))
    assert rows.ids[:, 1].tolist() == [0, 1, 2, 3]
    assert rows.domains[:, 0].tolist() == [-1, 0, 1, 2]


def test_training_rows_of_no_domain_are_unknown_in_the_domain_field():
    encoders = fitted(
        fields=(Field(name="domain_city"),),
        divisions=(Division(name="city", column="city", groups={"north": ("oslo",)}),),
    )
    assert encoders.schema.fields[0].unknown_rows == 2  # rome, twice


def test_the_domain_may_be_given_instead_of_read():
    encoders = fitted(
        fields=(Field(name="user"), Field(name="domain_city")),
        divisions=(Division(name="city", column="city"), Division(name="age", column="age")),
    )
    frame = TRAIN.select("user", "age")
    rows = encoders.encode(frame, domains={"city": "rome"})
    assert rows.domains[:, 0].tolist() == [1] * 6
    assert rows.ids[:, 1].tolist() == [2] * 6
    with pytest.raises(UnknownDomainError, match="'riga'"):
        encoders.encode(frame, domains={"city": "riga"})


def test_a_missing_column_is_named_with_the_field_that_wants_it():
    encoders = fitted(
        fields=(Field(name="who", column="user"),),
        divisions=(Division(name="where", column="city"),),
    )
    with pytest.raises(MissingColumnError, match="column 'user', wanted by field 'who'"):
        encoders.encode(TRAIN.drop("user"))
    with pytest.raises(MissingColumnError, match="column 'city', wanted by division 'where'"):
        encoders.encode(TRAIN.drop("city"))


def test_outcomes_are_read_when_asked_for():
    schema = {"label": Label(), "weight": "price", "group": "city", "fields": (Field(name="user"),)}
    encoders = fitted(**schema)
    assert encoders.encode(TRAIN.select("user")).label is None
    rows = encoders.encode(TRAIN, outcomes=True)
    assert rows.label.tolist() == [0, 1, 0, 0, 1, 0]
    assert rows.weight.tolist() == [1, 2, 3, 4, 5, 6]
    same = TRAIN["city"].to_numpy()[:, None] == TRAIN["city"].to_numpy()[None, :]
    assert ((rows.group[:, None] == rows.group[None, :]) == same).all()
    with pytest.raises(MissingColumnError, match="'label'"):
        encoders.encode(TRAIN.drop("label"), outcomes=True)


@pytest.mark.parametrize(
    ("labels", "positive", "expected"),
    [
        ([True, False, True], None, [1, 0, 1]),
        ([0.0, 1.0, 1.0], None, [0, 1, 1]),
        (["0", "1", "1"], None, [0, 1, 1]),
        ([3, 4, 5], ">= 4", [0, 1, 1]),
        ([3, 4, 5], "== 4", [0, 1, 0]),
        ([3, 4, 5], "!= 4", [1, 0, 1]),
        ([3, 4, 5], "< 3.5", [1, 0, 0]),
    ],
)
def test_labels_by_rule_or_as_they_are(labels, positive, expected):
    schema = {"label": Label(column="y", positive=positive)}
    frame = pl.DataFrame({"y": labels})
    assert fitted(frame, **schema).encode(frame, outcomes=True).label.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "positive", "message"),
    [
        ([0, 1, 2, 2, -1], None, r"'2', '-1' \(rows 2, 3, 4, counted from 0\); a label is 0 or 1"),
        ([0, None, 1], None, r"1 labels are missing \(row 1,"),
        ([0.0, float("nan"), 1.0], "> 0", r"1 labels are missing \(row 1,"),
        (["yes", "0", "1"], None, "'yes'"),
    ],
)
def test_other_labels_are_refused_by_value_and_row(labels, positive, message):
    frame = pl.DataFrame({"y": labels})
    encoders = fitted(frame, label=Label(column="y", positive=positive))
    with pytest.raises(DataError, match=message):
        encoders.encode(frame, outcomes=True)


@pytest.mark.parametrize("weight", [-1.0, None, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight):
    frame = pl.DataFrame({"label": [0, 1], "w": [1.0, weight]})
    with pytest.raises(DataError, match=r"weight.*row 1,"):
        fitted(frame, weight="w").encode(frame, outcomes=True)


def test_encoders_read_back_encode_the_same(tmp_path):
    encoders = fitted(
        fields=(
            Field(name="user", min_count=2),
            Field(name="tags", kind="sequence"),
            Field(name="../odd/name ü", column="city"),
            Field(name="hashed", column="user", hash_buckets=3),
            Field(name="price", kind="numerical", missing="mean"),
            Field(name="domain_city"),
        ),
        divisions=(
            Division(name="city", column="city"),
            Division(name="ages", column="age", groups={"low": (17, 18)}, rest="high"),
            Division(name="cut", column="age", thresholds=(30,)),
            Division(name="a/b", column="user", activeness=(2,)),
        ),
    )
    encoders.save(tmp_path)
    schema = Schema.model_validate(encoders.schema.model_dump(mode="json"))
    loaded = Encoders.load(tmp_path, schema)
    frame = pl.concat([TRAIN, TRAIN.with_columns(user=pl.col("user") + 7, city=pl.lit("riga"))])
    before, after = encoders.encode(frame), loaded.encode(frame)
    for name in ("ids", "numbers", "domains"):
        assert (getattr(before, name) == getattr(after, name)).all()
    for old, new in zip(before.sequences["tags"], after.sequences["tags"], strict=True):
        assert (old == new).all()
    inside = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")}
    assert inside == {"vocabulary", "activeness"}


def test_an_empty_frame_encodes_to_no_rows():
    encoders = fitted(
        fields=(Field(name="user"), Field(name="tags", kind="sequence"), Field(name="domain_city")),
        divisions=(Division(name="city", column="city"),),
    )
    rows = encoders.encode(TRAIN.clear())
    assert len(rows) == 0
    assert rows.ids.shape == (0, 2)
    assert rows.sequences["tags"][1].tolist() == [0]


def test_a_request_of_a_hundred_rows_takes_milliseconds():
    users = pl.DataFrame({"user": np.arange(200_000) * 5000})
    users = users.with_columns(name="n" + pl.col("user").cast(pl.String))
    schema = Schema(fields=(Field(name="user"), Field(name="name")))
    encoders = Encoders(schema, {name: Vocabulary(users[name]) for name in users.columns}, {})
    request = users[:100]
    encoders.encode(request)  # the first one builds the look-up
    times = []
    for _ in range(20):
        start = time.perf_counter()
        encoders.encode(request)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
