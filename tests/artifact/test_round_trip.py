"""What comes back is what was saved, to the last bit."""

import numpy as np
import polars as pl
import pytest
import torch

from loractr import load, prepare
from loractr.artifact import save
from loractr.config import parse_config
from loractr.model import build
from loractr.predict import logits, sigmoid
from loractr.schema import Division, Field, Schema

MODELS = {
    "mlora": {"method": {"name": "mlora", "rank": {"divisor": 2}}},
    "mlora, every parameter": {
        "method": {"name": "mlora", "rank": {"fixed": [1, 3]}, "row_scale": True},
        "batch_norm": True,
    },
    "mlora without offset": {"method": {"name": "mlora", "rank": {"fixed": 2}, "offset": False}},
    "mlora of another division": {
        "method": {"name": "mlora", "divisions": ["hour"], "rank": {"fixed": 2}}
    },
    "mlora in two stages": {
        "method": {"name": "mlora", "recipe": "two_stage", "rank": {"fixed": 2}},
        "backbone": "mlp",
    },
    "mlora in the cross network": {
        "method": {"name": "mlora", "rank": {"fixed": 2}, "targets": ["tower.0*", "cross.*"]},
        "backbone": "dcn",
        "cross": "matrix",
    },
    "mlora beside a dropped path": {
        "method": {"name": "mlora", "rank": {"fixed": 2}},
        "dropout_position": "shared_path",
    },
    "mix": {"method": {"name": "mix"}, "backbone": "dcn"},
    "single": {"method": {"name": "single"}, "owners": ("feed", "home", "kids")},
    "finetune": {"method": {"name": "finetune"}, "owners": ("kids",), "batch_norm": True},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_probabilities_are_those_of_the_model_in_memory_bit_by_bit(
    finished, click_log, tmp_path, model
):
    saved = finished(**model)
    saved.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    for frame in (saved.frame, click_log(200, ("home", "feed", "unheard of"), seed=5)):
        found, expected = scorer.predict(frame), saved.probabilities(frame)
        assert found.dtype == np.float32
        assert len(set(expected)) > 40
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_tensor_comes_back(finished, tmp_path, model):
    saved = finished(**model)
    saved.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    assert scorer.domain_models.keys() == saved.domain_models.keys()
    pairs = [(scorer.model, saved.model)]
    pairs += [(scorer.domain_models[name], model) for name, model in saved.domain_models.items()]
    for found, expected in pairs:
        assert not any(module.training for module in found.modules())
        assert found.state_dict().keys() == expected.state_dict().keys()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name


def test_configuration_and_schema_come_back(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    assert scorer.config == mlora.config
    assert scorer.schema == mlora.schema
    assert scorer.config.data.model_fields_set == mlora.config.data.model_fields_set


def test_a_second_round_trip_writes_the_same_bytes(mlora, tmp_path):
    mlora.save(tmp_path / "one")
    scorer = load(tmp_path / "one")
    save(scorer.model, scorer.schema, scorer.encoders, tmp_path / "two", config=scorer.config)
    first, second = (
        {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
        for name in ("one", "two")
    )
    assert first == second


def test_a_model_in_double_precision_stays_one(mlora, tmp_path):
    mlora.model.double()
    mlora.save(tmp_path / "artifact")
    found = load(tmp_path / "artifact").predict(mlora.frame)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, mlora.probabilities())


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("width", [None, 5])
def test_pretrained_vectors_travel_with_the_model(finished, tmp_path, trainable, width):
    vectors = Field(
        name="item", pretrained="gone.parquet", trainable=trainable, embedding_size=width
    )
    schema = Schema(
        fields=(Field(name="user"), vectors), divisions=(Division(name="tab", column="tab"),)
    )
    saved = finished({"name": "mix"}, schema=schema, pretrained={"item": torch.randn(5, 5)})
    saved.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    np.testing.assert_array_equal(scorer.predict(saved.frame), saved.probabilities())
    assert scorer.schema.fields[1].embedding_size == 5


def test_a_model_without_divisions_can_be_saved(finished, tmp_path):
    saved = finished({"name": "mix"}, schema=Schema(fields=(Field(name="user"),)))
    saved.save(tmp_path / "artifact")
    expected = sigmoid(logits(saved.model, saved.encoders.encode(saved.frame), saved.schema))
    np.testing.assert_array_equal(load(tmp_path / "artifact").predict(saved.frame), expected)


def test_the_whole_way_from_prepared_rows(click_log, tmp_path):
    frame = click_log(300).with_columns(label=pl.int_range(300) % 2)
    schema = Schema(
        fields=(Field(name="user"), Field(name="tags", kind="sequence"), Field(name="domain_tab")),
        divisions=(Division(name="tab", column="tab"),),
    )
    config = parse_config({"data": {"source": "table"}, "method": {"name": "mlora"}})
    prepared = prepare(config.data, tmp_path / "prepared", frame=frame, schema=schema)
    model = build(config, prepared.schema)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    expected = sigmoid(logits(model, prepared.test, prepared.schema))
    save(model, prepared.schema, prepared.encoders, tmp_path / "artifact", config=config)
    scorer = load(tmp_path / "artifact")
    np.testing.assert_array_equal(scorer.predict_rows(prepared.test), expected)
    raw = frame[prepared.test.row.tolist()].drop("label")
    np.testing.assert_array_equal(scorer.predict(raw), expected)
