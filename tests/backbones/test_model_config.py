from typing import get_args

import pytest
from pydantic import ValidationError

from loractr.backbones import BACKBONES, ModelConfig
from loractr.backbones.config import BackboneName


def test_every_backbone_can_be_asked_for_and_every_name_exists():
    assert set(get_args(BackboneName)) == set(BACKBONES)


def test_a_dumped_configuration_reads_back_as_the_same():
    config = ModelConfig(backbone="dcn", hidden_sizes=(8, 4), cross="matrix", dropout=0.5)
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "deep_fm"),
        ("embedding_size", 0),
        ("hidden_sizes", ()),
        ("hidden_sizes", (8, 0)),
        ("dropout", 1.0),
        ("embedding_dropout", -0.1),
        ("dropout_position", "before"),
        ("embedding_std", -1.0),
        ("cross_layers", 0),
        ("cross", "tensor"),
        ("hidden_size", (8,)),
    ],
)
def test_a_wrong_value_is_refused_and_named(key, value):
    with pytest.raises(ValidationError) as error:
        ModelConfig.model_validate({key: value})
    assert error.value.errors()[0]["loc"][0] == key
