"""Whatever is written out with every option spelt out can be read back."""

import pytest
from pydantic import ValidationError

from loractr.schema import Division, Field, Schema

FIELDS = [
    Field(name="user", min_count=3),
    Field(name="user", hash_buckets=100),
    Field(name="item", pretrained="vectors.parquet", trainable=False, size=4),
    Field(name="age", kind="numerical", scaling="log1p", missing="mean"),
    Field(name="age", kind="numerical", center=1.5, scale=0.1, fill=-3.25),
    Field(name="tags", kind="sequence", separator="|", max_length=5, size=9),
]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_with_every_option_spelt_out_reads_back(field):
    schema = Schema(fields=(field,), divisions=(Division(name="d", column="c", domains=("a",)),))
    assert Schema.model_validate_json(schema.model_dump_json()) == schema


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"kind": "numerical", "min_count": 2, "separator": "|"}, "min_count, separator"),
        ({"kind": "numerical", "embedding_size": 4, "center": 1.0}, "embedding_size"),
        ({"kind": "categorical", "scaling": "log1p", "size": 3}, "scaling"),
        ({"kind": "sequence", "missing": "mean"}, "missing"),
    ],
)
def test_an_option_of_another_kind_is_refused_fitted_or_not(options, wrong):
    with pytest.raises(ValidationError, match=f"{wrong} means nothing"):
        Field(name="x", **options)
