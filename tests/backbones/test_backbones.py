"""mlp, deepfm and dcn against their formulas in plain loops; what all backbones have in common."""

import math

import pytest
import torch
from torch import Tensor

from loractr.backbones import BACKBONES, Backbone, Hidden, ModelConfig
from loractr.backbones.features import Pairwise
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.linear import Linear

WIDTHS = Widths(size=3, fields=4, others=(2, 5), numbers=2)
FLAT = 4 * 3 + 2 + 5 + 2


def features(rows: int = 6) -> Embedded:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    return Embedded(
        normal(rows, 4, 3), (normal(rows, 2), normal(rows, 5)), normal(rows, 2), normal(rows)
    )


def backbone(name: str, **options: object) -> Backbone:
    config = ModelConfig(backbone=name, hidden_sizes=(7, 4), embedding_std=1.0, **options)
    made = BACKBONES[name](config, WIDTHS, torch.Generator().manual_seed(0)).double()
    for key, parameter in made.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(key)))
    return made


def tower(made: Backbone, flat: Tensor) -> Tensor:
    """The tower on one row, neuron by neuron."""
    h = flat.tolist()
    for layer in ("0", "1"):
        linear = made.get_submodule(f"tower.{layer}.linear")
        h = [
            max(0.0, math.fsum(w * v for w, v in zip(row, h, strict=True)) + b)
            for row, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        ]
    return torch.tensor(h, dtype=torch.float64)


def test_mlp_is_the_tower_on_all_inputs_side_by_side():
    made, x = backbone("mlp"), features()
    out: Hidden = made(x, Route.none())
    for n in range(6):
        torch.testing.assert_close(out.vector[n], tower(made, x.flat()[n]))
    assert out.logit is None
    assert out.vector.shape == (6, made.out_features)


@pytest.mark.parametrize("numbers", [True, False])
def test_deepfm_is_tower_plus_linear_term_plus_all_inner_products(numbers):
    made, x = backbone("deepfm", numbers_in_interactions=numbers), features()
    out: Hidden = made(x, Route.none())
    for n in range(6):
        fields = [x.vectors[n, i] for i in range(4)]
        fields += [made.pairwise.project[i].weight @ x.others[i][n] for i in range(2)]
        if numbers:
            fields += [x.numbers[n, i] * made.pairwise.numbers[i] for i in range(2)]
        pairs = [a @ b for i, a in enumerate(fields) for b in fields[i + 1 :]]
        torch.testing.assert_close(out.logit[n], x.first_order[n] + sum(pairs))
        torch.testing.assert_close(out.vector[n], tower(made, x.flat()[n]))


@pytest.mark.parametrize("kind", ["vector", "matrix"])
def test_dcn_is_crosses_and_tower_side_by_side_plus_the_linear_term(kind):
    made, x = backbone("dcn", cross=kind), features()
    out: Hidden = made(x, Route.none())
    assert made.out_features == FLAT + 4
    for n in range(6):
        x0 = row = x.flat()[n]
        for layer in ("0", "1"):
            cross = made.get_submodule(f"cross.{layer}")
            if kind == "vector":
                row = x0 * (row @ cross.linear.weight[0]) + cross.bias + row
            else:
                row = x0 * (cross.linear.weight @ row + cross.linear.bias) + row
        torch.testing.assert_close(out.vector[n], torch.cat([row, tower(made, x.flat()[n])]))
    assert torch.equal(out.logit, x.first_order)


def test_interactions_without_other_widths_or_numbers_read_the_vectors_as_they_are():
    plain = Pairwise(Widths(size=3, fields=4, others=(), numbers=2), numbers=False, std=1.0)
    x = features()
    same = Embedded(x.vectors, (), x.numbers, x.first_order)
    assert plain(same) is x.vectors
    assert not list(plain.parameters())
    assert plain.fields == 4


def test_interactions_count_their_fields():
    assert Pairwise(WIDTHS, numbers=True, std=1.0).fields == 4 + 2 + 2
    assert Pairwise(WIDTHS, numbers=True, std=1.0)(_single(features())).shape == (6, 8, 3)


def _single(x: Embedded) -> Embedded:
    return Embedded(
        x.vectors.float(),
        tuple(o.float() for o in x.others),
        x.numbers.float(),
        x.first_order.float(),
    )


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mlp", []),
        ("deepfm", ["pairwise.project.0", "pairwise.project.1"]),
        ("dcn", ["cross.0.linear", "cross.1.linear"]),
    ],
)
def test_every_product_is_an_adaptable_linear_layer_with_a_simple_name(name, own):
    made = backbone(name)
    linears = [key for key, module in made.named_modules() if type(module) is Linear]
    assert linears == ["tower.0.linear", "tower.1.linear", *own]
    products = {key.rpartition(".")[0] for key, p in made.named_parameters() if p.dim() == 2}
    assert products - {"pairwise"} == set(linears)  # pairwise.numbers scales, it is no product


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_generator_seed_gives_the_same_weights_whatever_the_global_seed(name):
    first = backbone(name).state_dict()
    torch.manual_seed(99)
    again = backbone(name).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("name", BACKBONES)
def test_only_backbones_with_a_linear_term_ask_for_one(name):
    assert BACKBONES[name].uses_first_order is (name not in ("mlp", "pnn"))
