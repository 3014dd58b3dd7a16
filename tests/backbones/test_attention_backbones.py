"""AutoInt, xDeepFM and DCN: their whole logits against numpy loops, for all kinds of inputs."""

import copy
import itertools

import numpy as np
import pytest
import torch

from loractr.adapters import LowRankLinear, attach, merge
from loractr.backbones import BACKBONES, ModelConfig
from loractr.batch import Route
from loractr.errors import ConfigError
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.fm import fm
from loractr.layers.linear import Linear

NAMES = ("autoint", "xdeepfm", "dcn")
MIXED = Widths(size=3, fields=4, others=(2, 5), numbers=2)
INPUTS = {
    "all kinds": MIXED,
    "one field": Widths(size=3, fields=1, others=(), numbers=0),
    "one field of another width": Widths(size=3, fields=0, others=(4,), numbers=0),
    "one number": Widths(size=3, fields=0, others=(), numbers=1),
}
SMALL = {
    "autoint": {"attention_layers": 2, "attention_size": 3, "attention_heads": 2},
    "xdeepfm": {"cin_sizes": (4, 3)},
    "dcn": {"cross_layers": 3},
}


def features(widths=MIXED, rows=6):
    random = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.double)

    return Embedded(
        vectors=normal(rows, widths.fields, widths.size),
        others=tuple(normal(rows, width) for width in widths.others),
        numbers=normal(rows, widths.numbers),
        first_order=normal(rows),
    )


def made(name, widths=MIXED, **options):
    """A backbone and a head, away from their start."""
    options = {**SMALL.get(name, {}), **options}
    config = ModelConfig(backbone=name, hidden_sizes=(7, 4), embedding_std=1.0, **options)
    random = torch.Generator().manual_seed(0)
    backbone = BACKBONES[name](config, widths, random)
    head = Linear(backbone.out_features, 1, generator=random)
    for parameter in (*backbone.parameters(), *head.parameters()):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    return backbone.double(), head.double()


def logits(backbone, head, x, route=None):
    hidden = backbone(x, route or Route.none())
    return head(hidden.vector).squeeze(1) + hidden.logit


def weights(module):
    """The module's parameters as numpy arrays, by name."""
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def row_of(x, n):
    """Row n as numpy: field vectors, other widths, numbers."""
    return x.vectors[n].numpy(), [other[n].numpy() for other in x.others], x.numbers[n].numpy()


def flat(vectors, others, numbers):
    return np.concatenate([vectors.ravel(), *others, numbers])


def tower(p, h):
    for layer in ("0", "1"):
        h = np.maximum(0, p[f"tower.{layer}.linear.weight"] @ h + p[f"tower.{layer}.linear.bias"])
    return h


def fields_of(p, vectors, others, numbers, numbers_in=True):
    """All field vectors in the common width."""
    fields = list(vectors)
    fields += [p[f"pairwise.project.{i}.weight"] @ other for i, other in enumerate(others)]
    if numbers_in:
        fields += [value * p["pairwise.numbers"][i] for i, value in enumerate(numbers)]
    return fields


def attended(p, fields, layers=2, size=3, heads=2):
    """Every field's mix of all fields, one head after the other, plus its own product."""
    for layer in range(layers):
        w = {part: p[f"attention.{layer}.{part}.weight"] for part in ("query", "key", "value")}
        after = []
        for e in fields:
            mixed = []
            for head in range(heads):
                at = slice(head * size, (head + 1) * size)
                query = w["query"][at] @ e
                odds = [np.exp(query @ (w["key"][at] @ other)) for other in fields]
                mixed.append(
                    sum(a * (w["value"][at] @ o) for a, o in zip(odds, fields, strict=True))
                    / sum(odds)
                )
            residual = p[f"attention.{layer}.residual.weight"] @ e
            after.append(np.maximum(0, np.concatenate(mixed) + residual))
        fields = after
    return np.concatenate(fields)


def compressed(p, fields, sizes=(4, 3), split_half=True):
    """Sums of the feature maps, map by map, over all pairs of a map and a field."""
    maps, out = fields, []
    for layer, size in enumerate(sizes):
        weight, bias = p[f"cin.{layer}.weight"], p[f"cin.{layer}.bias"]
        pairs = [field * before for field, before in itertools.product(fields, maps)]
        made = [
            np.maximum(0, sum(w * pair for w, pair in zip(weight[h], pairs, strict=True)) + bias[h])
            for h in range(size)
        ]
        half = size // 2 if split_half and layer < len(sizes) - 1 else 0
        out += [m.sum() for m in made[half:]]
        maps = made[:half] if half else made
    return np.array(out)


def crossed(p, x0, layers=3):
    """x0 once more times the layer's x, projected, or times its matrix; plus x."""
    x = x0
    for layer in range(layers):
        weight = p[f"cross.{layer}.linear.weight"]
        if f"cross.{layer}.bias" in p:
            x = x0 * (weight[0] @ x) + p[f"cross.{layer}.bias"] + x
        else:
            x = x0 * (weight @ x + p[f"cross.{layer}.linear.bias"]) + x
    return x


def assert_logits(backbone, head, x, interactions):
    """Every row's logit is head([interactions, tower]) plus the linear term."""
    p = weights(backbone)
    found = logits(backbone, head, x).detach().numpy()
    for n in range(len(found)):
        row = row_of(x, n)
        vector = np.concatenate([interactions(p, *row), tower(p, flat(*row))])
        head_weight, bias = head.weight.detach().numpy()[0], head.bias.item()
        expected = head_weight @ vector + bias + x.first_order[n].item()
        assert found[n] == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("widths", INPUTS.values(), ids=INPUTS)
def test_autoint_is_attention_and_tower_under_one_head_plus_the_linear_term(widths):
    backbone, head = made("autoint", widths)
    assert_logits(backbone, head, features(widths), lambda p, *row: attended(p, fields_of(p, *row)))


@pytest.mark.parametrize("split_half", [True, False])
@pytest.mark.parametrize("widths", INPUTS.values(), ids=INPUTS)
def test_xdeepfm_is_feature_maps_and_tower_under_one_head_plus_the_linear_term(widths, split_half):
    backbone, head = made("xdeepfm", widths, cin_split_half=split_half)
    assert_logits(
        backbone,
        head,
        features(widths),
        lambda p, *row: compressed(p, fields_of(p, *row), split_half=split_half),
    )


@pytest.mark.parametrize("kind", ["vector", "matrix"])
@pytest.mark.parametrize("widths", INPUTS.values(), ids=INPUTS)
def test_dcn_is_crosses_and_tower_under_one_head_plus_the_linear_term(widths, kind):
    backbone, head = made("dcn", widths, cross=kind)
    assert_logits(backbone, head, features(widths), lambda p, *row: crossed(p, flat(*row)))


@pytest.mark.parametrize(("name", "interactions"), [("autoint", attended), ("xdeepfm", compressed)])
def test_numbers_stay_out_of_the_interactions_where_told(name, interactions):
    backbone, head = made(name, numbers_in_interactions=False)
    assert_logits(
        backbone,
        head,
        features(),
        lambda p, *row: interactions(p, fields_of(p, *row, numbers_in=False)),
    )


@pytest.mark.parametrize("kind", ["vector", "matrix"])
def test_crosses_are_polynomials_one_degree_above_their_number(kind):
    """As Wang et al., 2017, prove: along any line, differences of higher order vanish."""
    backbone, _ = made("dcn", cross=kind)
    start, step = torch.randn(2, 21, generator=torch.Generator().manual_seed(2)).double()
    line = torch.stack([start + t * step / 4 for t in range(6)])
    y = backbone.cross(line, Route.none()).detach().numpy()
    scale = np.abs(y).max()
    assert np.abs(np.diff(y, n=4, axis=0)).max() > 1e-3 * scale  # degree 4 of three crosses
    assert np.abs(np.diff(y, n=5, axis=0)).max() < 1e-10 * scale


def of_three(function, fields):
    """What `function` of three field vectors owes to all three at once: inclusion and exclusion."""
    total = 0.0
    for kept in itertools.product([0.0, 1.0], repeat=3):
        mask = torch.tensor(kept).double()[None, :, None]
        total += (-1) ** (3 - sum(kept)) * function(fields * mask)
    return total.abs().max().item()


def test_xdeepfm_multiplies_three_fields_where_deepfm_multiplies_pairs():
    backbone, _ = made("xdeepfm", Widths(size=3, fields=3, others=(), numbers=0))
    for name, parameter in backbone.cin.named_parameters():  # no ReLU acts: all is positive
        parameter.data.abs_() if name.endswith("weight") else parameter.data.zero_()
    fields = torch.rand(6, 3, 3).double()
    assert of_three(fm, fields) < 1e-12
    assert of_three(lambda x: backbone.cin(x)[:, :2], fields) < 1e-12  # the first layer's maps
    assert of_three(lambda x: backbone.cin(x)[:, 2:], fields) > 1e-3  # the second's


def test_the_published_xdeepfm_was_deepfm_and_this_one_is_not():
    deepfm, _ = made("deepfm")
    xdeepfm, head = made("xdeepfm")
    assert type(xdeepfm) is not type(deepfm)
    assert not isinstance(xdeepfm, type(deepfm))
    own = {name for name, _ in xdeepfm.named_parameters()} - {
        name for name, _ in deepfm.named_parameters()
    }
    assert own == {"cin.0.weight", "cin.0.bias", "cin.1.weight", "cin.1.bias"}
    logits(xdeepfm, head, features()).sum().backward()
    assert all(xdeepfm.get_parameter(name).grad.any() for name in own)


OWN = {
    "autoint": [
        f"attention.{layer}.{product}"
        for layer in range(2)
        for product in ("query", "key", "value", "residual")
    ],
    "xdeepfm": ["cin.0", "cin.1"],
    "dcn": ["cross.0.linear", "cross.1.linear", "cross.2.linear"],
}
TOWER = 7 * (21 + 1) + 4 * (7 + 1)
PROJECTIONS = 3 * (2 + 5) + 2 * 3  # two other widths and two numbers in the common width 3
SIZES = {
    "autoint": TOWER + PROJECTIONS + 4 * (3 * 6) + 4 * (6 * 6),
    "xdeepfm": TOWER + PROJECTIONS + 4 * (8 * 8 + 1) + 3 * (2 * 8 + 1),
    "dcn": TOWER + 3 * (21 + 21),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_product_is_an_adaptable_linear_layer_with_a_simple_name(name):
    backbone, _ = made(name)
    linears = [key for key, module in backbone.named_modules() if type(module) is Linear]
    projections = ["pairwise.project.0", "pairwise.project.1"] if name != "dcn" else []
    assert linears == ["tower.0.linear", "tower.1.linear", *projections, *OWN[name]]
    matrices = {key.rpartition(".")[0] for key, p in backbone.named_parameters() if p.dim() == 2}
    assert matrices - {"pairwise"} == set(linears)  # pairwise.numbers scales, it is no product
    assert sum(p.numel() for p in backbone.parameters()) == SIZES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_route_reaches_every_product(name):
    backbone, _ = made(name)
    routes = []
    for module in backbone.modules():
        if type(module) is Linear:
            module.register_forward_pre_hook(lambda _, inputs: routes.append(inputs[1]))
    route = Route.soft(torch.ones(6, 2).double())
    backbone(features(), route)
    assert len(routes) == 2 + len(OWN[name]) + (0 if name == "dcn" else 2)
    assert all(given is route for given in routes)


@pytest.mark.parametrize("name", NAMES)
def test_with_every_product_adapted_each_row_has_the_merged_weights_of_its_domain(name):
    backbone, head = made(name)
    backbone.requires_grad_(False)
    adapted = attach(backbone, ("*",), lambda _, layer: LowRankLinear(layer, experts=3, rank=1))
    assert set(OWN[name]) < set(adapted)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    x, domains = features(), [2, -1, 0, 1, 0, -1]
    found = logits(backbone, head, x, Route.hard(torch.tensor(domains)))
    for n, domain in enumerate(domains):
        alone = copy.deepcopy(backbone)
        if domain >= 0:
            merge(alone, domain)
        torch.testing.assert_close(found[n], logits(alone, head, x)[n])
    found.sum().backward()
    missing = [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("widths", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_feel_each_other(name, widths):
    backbone, head = made(name, widths)
    x = features(widths)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    for index in (order, order[:1]):
        part = Embedded(
            x.vectors[index], tuple(o[index] for o in x.others), x.numbers[index],
            x.first_order[index],
        )  # fmt: skip
        torch.testing.assert_close(logits(backbone, head, part), logits(backbone, head, x)[index])


@pytest.mark.parametrize("widths", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_rows_have_no_logits_and_no_gradient(name, widths):
    backbone, head = made(name, widths)
    found = logits(backbone, head, features(widths, rows=0))
    assert found.shape == (0,)
    found.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in backbone.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_without_a_graph_break(name):
    torch.compiler.reset()
    backbone, head = made(name)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager", dynamic=True)
    for rows in (6, 1, 11):
        x = features(rows=rows)
        found = logits(compiled, head, x)
        assert found.dtype == torch.double
        torch.testing.assert_close(found, logits(backbone, head, x))


@pytest.mark.parametrize("name", ["autoint", "xdeepfm"])
def test_without_a_field_vector_there_is_nothing_to_interact(name):
    config = ModelConfig(backbone=name, numbers_in_interactions=False)
    with pytest.raises(ConfigError, match=f"{name}.*has none") as error:
        BACKBONES[name](config, Widths(size=3, fields=0, others=(), numbers=2))
    assert "numbers_in_interactions: true" in str(error.value)
