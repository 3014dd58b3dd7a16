"""What comes back is what was saved, to the last bit."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from loractr import load, prepare
from loractr.artifact import save
from loractr.artifact.layout import Contents
from loractr.artifact.tensors import mixer_tensors
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
    "singlelora": {
        "method": {"name": "singlelora", "rank": {"fixed": 2}},
        "batch_norm": True,
        "backbone": "mlp",
    },
    "singlelora with the shared norm": {
        "method": {"name": "singlelora", "divisions": ["hour"], "norm": "shared"},
        "batch_norm": True,
    },
    "multilora": {
        "method": {"name": "multilora", "divisions": ["tab", "hour"], "rank": {"fixed": [3, 2]}},
        "batch_norm": True,
        "mixed": True,
    },
    "multilora whose mixers do not act": {
        "method": {"name": "multilora", "divisions": ["tab", "hour"], "rank": {"fixed": 2}},
        "batch_norm": True,
        "mixed": False,
    },
    "multilora of three divisions, without norms": {
        "method": {"name": "multilora", "divisions": ["activeness", "tab", "hour"]},
        "mixed": True,
    },
    "multilora_add": {
        "method": {"name": "multilora_add", "divisions": ["tab", "hour"], "rank": {"fixed": 2}},
        "batch_norm": True,
        "mixed": True,
    },
    "multilora_avg without norms of cells": {
        "method": {"name": "multilora_avg", "divisions": ["tab", "hour"], "norm_train": False},
        "batch_norm": True,
        "mixed": True,
    },
    "shared_adapter": {
        "method": {"name": "shared_adapter", "rank": {"fixed": 2}},
        "batch_norm": True,
    },
    "moe_mlora": {
        "method": {"name": "moe_mlora", "rank": {"fixed": 2}, "gate_input": "fields"},
        "mixed": True,
    },
    "moe_mlora whose gate does not act": {
        "method": {"name": "moe_mlora", "rank": {"fixed": 2}},
        "mixed": False,
    },
    "retune": {"method": {"name": "retune"}, "batch_norm": True},
    "single": {"method": {"name": "single"}, "owners": ("feed", "home", "kids")},
    "finetune": {"method": {"name": "finetune"}, "owners": ("kids",), "batch_norm": True},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def saved(request, finished):
    """A finished model; `mixed` says whether its mixers act, where it has some."""
    options = dict(request.param)
    mixed = options.pop("mixed", False)
    made = finished(**options)
    made.model.routing = replace(made.model.routing, mixed=mixed)
    return made


def test_probabilities_are_those_of_the_model_in_memory_bit_by_bit(saved, click_log, tmp_path):
    saved.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    for frame in (saved.frame, click_log(200, ("home", "feed", "unheard of"), seed=5)):
        found, expected = scorer.predict(frame), saved.probabilities(frame)
        assert found.dtype == np.float32
        assert len(set(expected)) > 40
        np.testing.assert_array_equal(found, expected)


def test_every_tensor_comes_back(saved, tmp_path):
    """And which mixers act; those that do not are in the artifact, but are not read."""
    saved.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    assert scorer.model.routing == saved.model.routing
    idle = set() if saved.model.routing.mixed else set(mixer_tensors(saved.model))
    assert scorer.domain_models.keys() == saved.domain_models.keys()
    pairs = [(scorer.model, saved.model)]
    pairs += [(scorer.domain_models[name], model) for name, model in saved.domain_models.items()]
    for found, expected in pairs:
        assert not any(module.training for module in found.modules())
        assert found.state_dict().keys() == expected.state_dict().keys()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor) or name in idle, name


@pytest.mark.parametrize("name", ["multilora", "multilora_add"])
def test_idle_mixers_are_kept_beside_the_active_parts(finished, tmp_path, name):
    """So that they may be made to act one day: nothing that was trained is lost."""
    method = {"name": name, "divisions": ["tab", "hour"]}
    for mixed in (True, False):
        made = finished(method, batch_norm=True)
        made.model.routing = replace(made.model.routing, mixed=mixed)
        made.save(tmp_path / str(mixed))
    acting, idle = (Contents.open(tmp_path / str(mixed)) for mixed in (True, False))
    assert acting.manifest.files.keys() == idle.manifest.files.keys()
    changed = {
        file for file, found in acting.manifest.files.items() if found != idle.manifest.files[file]
    }
    assert not changed
    assert (acting.manifest.active.mixers, idle.manifest.active.mixers) == ({name: "v1"}, {})


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
