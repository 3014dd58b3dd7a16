import math

import numpy as np
import pytest
import torch

from loractr.errors import ConfigError
from loractr.layers.linear import Linear
from loractr.layers.product import Bilinear, bi_interaction, inner_products, pair_count

KINDS = ["all", "each", "interaction"]
HAND = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def bilinear(kind: str, fields: int = 5, size: int = 3) -> Bilinear:
    return Bilinear(fields, size, kind=kind, generator=torch.Generator().manual_seed(1)).double()


def matrix(weights: list[np.ndarray], kind: str, i: int, j: int, size: int) -> np.ndarray:
    """W of the pair (i, j), cut out of the stacked weights as their documentation says."""
    first = (j - i - 1) * size if kind == "interaction" else 0
    return weights[0 if kind == "all" else i][first : first + size]


def loop(e: np.ndarray, weights: list[np.ndarray], kind: str) -> np.ndarray:
    """p_ij = (W v_i) ⊙ v_j, one element after the other."""
    rows, fields, size = e.shape
    out = np.zeros((rows, fields * (fields - 1) // 2, size))
    for n in range(rows):
        place = 0
        for i in range(fields):
            for j in range(i + 1, fields):
                w = matrix(weights, kind, i, j, size)
                for k in range(size):
                    out[n, place, k] = e[n, j, k] * sum(w[k, m] * e[n, i, m] for m in range(size))
                place += 1
    return out


def weights_of(layer: Bilinear) -> list[np.ndarray]:
    return [linear.weight.detach().numpy() for linear in layer.children()]


def test_bi_interaction_worked_by_hand():
    # a ⊙ b = (3, -2), a ⊙ c = (0.5, 8), b ⊙ c = (1.5, -4)
    assert bi_interaction(HAND).tolist() == [[5.0, 2.0]]


def test_inner_products_worked_by_hand():
    # ⟨a,b⟩ = 1, ⟨a,c⟩ = 8.5, ⟨b,c⟩ = -2.5
    assert inner_products(HAND).tolist() == [[1.0, 8.5, -2.5]]


def test_one_matrix_for_all_pairs_worked_by_hand():
    layer = Bilinear(3, 2, kind="all")
    layer.get_submodule("0").weight.data = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    # W a = (3, 4), W b = (2, -2): (3, 4) ⊙ b, (3, 4) ⊙ c, (2, -2) ⊙ c
    assert layer(HAND).tolist() == [[[9.0, -4.0], [1.5, 16.0], [1.0, -8.0]]]


def test_a_matrix_for_each_pair_worked_by_hand():
    layer = Bilinear(3, 2, kind="interaction")
    # W_01 above W_02, then W_12 by itself
    stacked = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    layer.get_submodule("0").weight.data = torch.tensor(stacked)
    layer.get_submodule("1").weight.data = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    # a ⊙ b, (2, 1) ⊙ c, (6, 2) ⊙ c
    assert layer(HAND).tolist() == [[[3.0, -2.0], [1.0, 4.0], [3.0, 8.0]]]


def test_pooled_and_inner_products_equal_loops_over_rows_pairs_and_elements():
    e = normal(7, 5, 3)
    pooled, inner = np.zeros((7, 3)), np.zeros((7, 10))
    for n in range(7):
        pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
        for place, (i, j) in enumerate(pairs):
            for k in range(3):
                pooled[n, k] += e[n, i, k] * e[n, j, k]
                inner[n, place] += e[n, i, k] * e[n, j, k]
    np.testing.assert_allclose(bi_interaction(e), pooled, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(inner_products(e), inner, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_bilinear_products_equal_a_loop_over_rows_pairs_and_elements(kind):
    layer, e = bilinear(kind), normal(7, 5, 3)
    expected = loop(e.numpy(), weights_of(layer), kind)
    np.testing.assert_allclose(layer(e).detach(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_bilinear_gradients_are_those_of_finite_differences(kind):
    layer, e = bilinear(kind), normal(2, 5, 3).requires_grad_()
    weights = [linear.weight for linear in layer.children()]
    assert torch.autograd.gradcheck(lambda *_: layer(e), (e, *weights))


def test_gradients_of_pooled_and_inner_products_are_those_of_finite_differences():
    e = normal(3, 5, 2).requires_grad_()
    assert torch.autograd.gradcheck(bi_interaction, (e,))
    assert torch.autograd.gradcheck(inner_products, (e,))


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("all", [(3, 3)]),
        ("each", [(3, 3)] * 4),
        ("interaction", [(12, 3), (9, 3), (6, 3), (3, 3)]),
    ],
)
def test_every_product_is_an_adaptable_linear_layer_named_by_its_left_field(kind, shapes):
    layer = Bilinear(5, 3, kind=kind)
    linears = {name: m for name, m in layer.named_modules() if type(m) is Linear}
    assert list(linears) == [str(i) for i in range(len(shapes))]
    assert [tuple(m.weight.shape) for m in linears.values()] == shapes
    assert sum(p.numel() for p in layer.parameters()) == sum(math.prod(s) for s in shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_is_given_the_route(kind):
    seen = []

    class Spy(Linear):
        def forward(self, x, route=None):
            seen.append(route)
            return super().forward(x, route)

    layer, route = Bilinear(4, 3, kind=kind), object()
    for name, _ in list(layer.named_children()):
        spy = Spy(3, layer.get_submodule(name).out_features)
        layer.register_module(name, spy)
    layer(torch.ones(2, 4, 3), route)
    assert seen == [route] * (1 if kind == "all" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_matrices_start_as_glorot_normal_ones_of_their_own_size(kind):
    layer = Bilinear(12, 30, kind=kind, generator=torch.Generator().manual_seed(0))
    for linear in layer.children():
        std = linear.weight.std().item()
        assert std == pytest.approx(math.sqrt(2 / (30 + 30)), rel=0.1)
        assert linear.weight.mean().item() == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_alone_decides_the_fresh_matrices(kind):
    first = weights_of(bilinear(kind))
    torch.manual_seed(99)
    assert all(map(np.array_equal, first, weights_of(bilinear(kind))))


def test_with_fewer_than_two_fields_nothing_is_pooled_and_there_are_no_pairs():
    for fields in (0, 1):
        e = normal(4, fields, 3)
        torch.testing.assert_close(bi_interaction(e), torch.zeros(4, 3).double())
        assert inner_products(e).shape == (4, 0)


@pytest.mark.parametrize("fields", [0, 1])
def test_bilinear_products_of_fewer_than_two_fields_are_refused(fields):
    with pytest.raises(ValueError, match=f"at least two fields, not {fields}"):
        Bilinear(fields, 3)


def test_two_fields_are_one_pair():
    e = normal(4, 2, 3)
    torch.testing.assert_close(bi_interaction(e), e[:, 0] * e[:, 1])
    torch.testing.assert_close(inner_products(e)[:, 0], (e[:, 0] * e[:, 1]).sum(1))
    same = []
    for kind in KINDS:
        layer = bilinear(kind, fields=2)
        assert layer(e).shape == (4, 1, 3)
        same.append(layer(e))
    torch.testing.assert_close(same[0], same[1])
    torch.testing.assert_close(same[0], same[2])


def test_pairs_are_counted():
    assert [pair_count(f, wanted_by="pnn") for f in (2, 3, 7)] == [1, 3, 21]


@pytest.mark.parametrize("fields", [0, 1])
def test_too_few_fields_are_refused_with_a_way_out(fields):
    with pytest.raises(ConfigError, match=rf"'nfm' multiplies pairs .* has {fields} ") as error:
        pair_count(fields, wanted_by="nfm")
    assert "'mlp' or 'wide_deep'" in str(error.value)


FUNCTIONS = [bi_interaction, inner_products, *map(bilinear, KINDS)]
NAMES = ["bi_interaction", "inner_products", *KINDS]


@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMES)
def test_no_rows_give_no_results(function):
    full = function(normal(2, 5, 3))
    assert function(normal(0, 5, 3)).shape == (0, *full.shape[1:])


@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMES)
def test_a_row_does_not_depend_on_the_others(function):
    e, order = normal(7, 5, 3), torch.tensor([3, 1, 0, 6, 5, 4, 2])
    torch.testing.assert_close(function(e[order]), function(e)[order])
    torch.testing.assert_close(function(e[2:3]), function(e)[2:3])


@pytest.mark.parametrize("function", FUNCTIONS, ids=NAMES)
def test_it_compiles_to_one_graph_with_the_same_values(function):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager", dynamic=True)
    for rows in (6, 4):
        e = normal(rows, 5, 3)
        torch.testing.assert_close(compiled(e), function(e))
