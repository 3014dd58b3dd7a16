"""A configuration and a table become a schema, or all that is wrong with it at once."""

import polars as pl
import pytest

from loractr.data.config import MISSING_VALUES, DataConfig
from loractr.data.resolve import resolve
from loractr.data.sources import Table
from loractr.errors import ConfigError
from loractr.schema import Division, Field, Label, Schema

TABLE = Table(
    frame=pl.LazyFrame(
        schema={
            "user": pl.Int64,
            "movie": pl.Int64,
            "age": pl.Int64,
            "tags": pl.String,
            "price": pl.Float64,
            "raw": pl.String,
            "gender": pl.String,
            "rating": pl.Int64,
            "dwell": pl.Int64,
            "at": pl.Int64,
        }
    ),
    fields={
        "user": Field(name="user", min_count=2),
        "movie": Field(name="movie"),
        "age": Field(name="age"),
        "tags": Field(name="tags", kind="sequence", separator=","),
        "cost": Field(name="cost", column="price", kind="numerical", scaling="log1p"),
    },
    default_fields=("user", "movie"),
    divisions=(Division(name="gender", column="gender"),),
    label=Label(column="rating", positive="> 3"),
    post_outcome={"rating": "the label is made of it", "dwell": "it is time after the click"},
)


def resolved(**options: object) -> Schema:
    return resolve(DataConfig.model_validate({"source": "table", **options}), TABLE)


def problems(**options: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        resolved(**options)
    return error.value.problems


def test_a_bare_configuration_takes_everything_from_the_source():
    assert resolved() == Schema(
        fields=(TABLE.fields["user"], TABLE.fields["movie"], Field(name="domain_gender")),
        divisions=TABLE.divisions,
        label=TABLE.label,
        missing_values=MISSING_VALUES,
    )


def test_a_name_is_the_fields_of_the_source_and_the_order_is_the_users():
    schema = resolved(fields=["cost", "user"], domain_as_field=False)
    assert schema.fields == (TABLE.fields["cost"], TABLE.fields["user"])


def test_a_field_spelt_out_is_laid_over_the_sources():
    (field,) = resolved(
        fields=[{"name": "user", "embedding_size": 4}], domain_as_field=False
    ).fields
    assert (field.min_count, field.embedding_size) == (2, 4)


def test_a_field_of_another_kind_drops_the_sources_options_but_its_column():
    fields = [{"name": "cost", "kind": "categorical"}, {"name": "age", "kind": "numerical"}]
    cost, age = resolved(fields=fields, domain_as_field=False).fields
    assert (cost.kind, cost.source_column, cost.scaling) == ("categorical", "price", "standard")
    assert (age.kind, age.source_column) == ("numerical", "age")


def test_a_field_of_another_name_reads_the_sources_column():
    fields = ["age", {"name": "years", "column": "age", "kind": "numerical"}]
    assert [f.source_column for f in resolved(fields=fields).fields[:2]] == ["age", "age"]


def test_a_field_named_like_another_column_is_of_the_kind_of_its_own():
    fields = [{"name": "cost", "column": "tags"}, {"name": "tags", "column": "age"}]
    cost, tags = resolved(fields=fields, domain_as_field=False).fields
    assert (cost.kind, cost.source_column, cost.separator) == ("sequence", "tags", ",")
    assert (tags.kind, tags.source_column, tags.separator) == ("categorical", "age", None)


def test_a_column_that_the_source_does_not_offer_can_be_spelt_out():
    (field,) = resolved(fields=[{"name": "raw", "min_count": 3}], domain_as_field=False).fields
    assert (field.source_column, field.min_count) == ("raw", 3)


def test_divisions_of_the_user_replace_the_sources_and_the_first_is_natural():
    divisions = {"ages": {"column": "age", "thresholds": [18, 35]}, "gender": {"column": "gender"}}
    schema = resolved(divisions=divisions)
    assert [division.name for division in schema.divisions] == ["ages", "gender"]
    assert schema.fields[-1] == Field(name="domain_ages")


def test_the_domain_is_no_field_where_that_is_not_wanted():
    assert [f.name for f in resolved(domain_as_field=False).fields] == ["user", "movie"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"positive": "== 5"}, Label(column="rating", positive="== 5")),
        ({"column": "rating"}, Label(column="rating", positive="> 3")),
        ({"column": "age"}, Label(column="age")),
        ({"column": "age", "positive": ">= 18"}, Label(column="age", positive=">= 18")),
    ],
)
def test_what_a_label_leaves_out_is_the_sources(said, meant):
    assert resolved(label=said).label == meant


def test_weight_and_group_are_passed_on():
    schema = resolved(weight="price", group="user")
    assert (schema.weight, schema.group) == ("price", "user")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"fields": ["moovie"]}, "data.fields: no field 'moovie'; did you mean 'movie'?"),
        (
            {"fields": ["xyzzy"]},
            "no field 'xyzzy'; there are 'user', 'movie', 'age', 'tags'",
        ),
        ({"fields": [{"name": "x", "column": "gendr"}]}, "did you mean 'gender'?"),
        ({"fields": ["dwell"]}, "column 'dwell' is no input: it is time after the click"),
        ({"fields": [{"name": "x", "column": "dwell"}]}, "is no input: it is time after"),
        ({"fields": ["rating"]}, "column 'rating' is no input: the label is made of it"),
        (
            {"fields": ["age"], "label": {"column": "age"}},
            "'age' is no input: it is the label itself",
        ),
        ({"fields": []}, "data.fields: name at least one input"),
        ({"fields": ["user", "user"]}, "field 'user' is there twice"),
        (
            {"fields": ["user", {"name": "domain_gender", "column": "raw"}]},
            "call yours something else, like {name: own_domain_gender, column: raw}",
        ),
        (
            {"fields": [{"name": "domain_gender", "column": "raw"}], "domain_as_field": False},
            "the name 'domain_gender' belongs to the domain as a field",
        ),
        ({"fields": [{"name": "cost", "min_count": 2}]}, "min_count means nothing for a"),
        ({"divisions": {"d": {"column": "gendr"}}}, "data.divisions.d: no column 'gendr'; did"),
        ({"divisions": {"d": {"column": "dwell"}}}, "'dwell' is no input: it is time after"),
        ({"divisions": {"d": {"column": "rating"}}}, "'rating' is no input: the label is made"),
        (
            {"label": {"column": "ratings"}},
            "data.label: no column 'ratings'; did you mean 'rating'",
        ),
        ({"weight": "prize"}, "data.weight: no column 'prize'; did you mean 'price'?"),
        ({"group": "users"}, "data.group: no column 'users'; did you mean 'user'?"),
        ({"deduplicate": ["user", "movies"]}, "data.deduplicate: no column 'movies'"),
        (
            {"split": {"kind": "temporal", "column": "time", "fractions": [0.8, 0.1, 0.1]}},
            "data.split.column: no column 'time'",
        ),
        (
            {"split": {"kind": "per_user", "column": "user", "order": "att"}},
            "data.split.order: no column 'att'; did you mean 'at'?",
        ),
        ({"split": {"kind": "column", "column": "fold"}}, "data.split.column: no column"),
    ],
)
def test_a_problem_is_named_with_its_place(options, problem):
    (found,) = problems(**options)
    assert problem in found


def test_all_problems_are_told_at_once():
    found = problems(
        fields=["usr", "dwell", "movie"],
        divisions={"d": {"column": "nothing_like_it"}},
        weight="prize",
        label={"column": "clicked"},
    )
    assert len(found) == 5


def test_a_split_by_the_outcome_is_allowed():
    """Only inputs and divisions are known when a row is scored; a split is done long before."""
    assert resolved(split={"kind": "column", "column": "dwell"}).fields


def test_a_wrong_field_has_no_second_problem():
    """Neither stands another field in for it, nor is the problem told again."""
    assert problems(fields=["user", "usr"]) == (
        "data.fields: no field 'usr'; did you mean 'user'?",
    )
    assert len(problems(fields=["usr", "usr"])) == 1
    (problem,) = problems(fields=["cost", {"name": "dear", "column": "cost", "min_count": 2}])
    assert problem.startswith("data.fields: field 'dear': min_count means nothing")


def test_how_often_a_field_is_there_is_counted():
    assert problems(fields=["user", "movie", "user", "user", "movie"]) == (
        "data.fields: field 'user' is there 3 times",
        "data.fields: field 'movie' is there twice",
    )


def test_thousands_of_unknown_names_are_told_and_only_the_first_with_hints():
    found = problems(fields=[f"usr{n}" for n in range(5_000)], weight="prize")
    assert len(found) == 5_001
    assert "; did you mean" in found[0]
    assert found[4_999] == "data.fields: no field 'usr4999'"
