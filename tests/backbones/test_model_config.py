from typing import get_args

import pytest
from pydantic import ValidationError

from loractr.backbones import BACKBONES, ModelConfig
from loractr.backbones.config import READ_BY, BackboneName
from loractr.layers.embedding import Widths

CHANGED = {
    "numbers_in_interactions": False,
    "attention_layers": 1,
    "attention_size": 3,
    "attention_heads": 1,
    "products": "both",
    "cross_layers": 5,
    "cross": "matrix",
    "bilinear": "all",
    "senet_reduction": 2,
    "cin_sizes": (6, 5),
    "cin_split_half": False,
}
"""Another value than the default of every setting that not all backbones read."""


WIDTHS = Widths(size=4, fields=3, others=(2,), numbers=2)


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
        ("attention_layers", 0),
        ("attention_size", 0),
        ("attention_heads", 0),
        ("products", "cross"),
        ("bilinear", "field"),
        ("senet_reduction", 0),
        ("cin_sizes", ()),
        ("cin_sizes", (4, 0)),
    ],
)
def test_a_wrong_value_is_refused_and_named(key, value):
    with pytest.raises(ValidationError) as error:
        ModelConfig.model_validate({key: value})
    assert error.value.errors()[0]["loc"][0] == key


def test_the_table_of_options_names_every_one_once():
    assert sorted(READ_BY) == sorted(CHANGED)
    assert all(set(backbones) <= set(BACKBONES) for backbones in READ_BY.values())
    defaults = ModelConfig().model_dump()
    assert all(defaults[name] != value for name, value in CHANGED.items())


@pytest.mark.parametrize("option", CHANGED)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_option_is_accepted_where_it_is_read_and_refused_where_nothing_would_read_it(
    backbone, option
):
    values = {"backbone": backbone, option: CHANGED[option]}
    if backbone in READ_BY[option]:
        sizes = [
            {
                name: tensor.shape
                for name, tensor in BACKBONES[backbone](one, WIDTHS).state_dict().items()
            }
            for one in (ModelConfig(backbone=backbone), ModelConfig.model_validate(values))
        ]
        assert sizes[0] != sizes[1]  # it is read indeed
        return
    with pytest.raises(ValidationError, match=rf"{option} .*nothing for backbone '{backbone}'"):
        ModelConfig.model_validate(values)


def test_several_options_that_nothing_would_read_are_named_together():
    with pytest.raises(ValidationError, match=r"cross_layers and cross mean nothing for .*'pnn'"):
        ModelConfig(backbone="pnn", cross="matrix", cross_layers=3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_options_at_their_defaults_may_be_written_out_for_any_backbone(backbone):
    written = ModelConfig(backbone=backbone).model_dump(mode="json")
    assert ModelConfig.model_validate(written) == ModelConfig(backbone=backbone)


def test_maps_that_are_split_in_halves_are_even_but_for_the_last_layer():
    with pytest.raises(ValidationError, match="even cin_sizes but for the last, not 7"):
        ModelConfig(backbone="xdeepfm", cin_sizes=(8, 7, 4))
    assert ModelConfig(backbone="xdeepfm", cin_sizes=(8, 6, 5)).cin_sizes == (8, 6, 5)
    assert ModelConfig(backbone="xdeepfm", cin_sizes=(7, 5), cin_split_half=False).cin_sizes
