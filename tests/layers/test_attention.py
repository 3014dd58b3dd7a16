import math

import numpy as np
import pytest
import torch

from loractr.layers.attention import Attention, AttentionLayer
from loractr.layers.linear import Linear

PRODUCTS = ("query", "key", "value", "residual")


def set_(layer, **weights):
    for name, values in weights.items():
        with torch.no_grad():
            layer.get_submodule(name).weight.copy_(torch.tensor(values))


def loop(layer, fields, heads, size):
    """The layer's docstring on one row, number by number."""
    q, k, v, r = (
        [[math.fsum(w * x for w, x in zip(row, e, strict=True)) for row in weight] for e in fields]
        for weight in (layer.get_submodule(name).weight.tolist() for name in PRODUCTS)
    )
    out = np.zeros((len(fields), heads * size))
    for i in range(len(fields)):
        for h in range(heads):
            mine = range(h * size, (h + 1) * size)
            odds = [math.exp(sum(q[i][c] * k[j][c] for c in mine)) for j in range(len(fields))]
            for c in mine:
                mixed = sum(odds[j] * v[j][c] for j in range(len(fields))) / sum(odds)
                out[i, c] = max(0.0, mixed + r[i][c])
    return out


def test_two_heads_on_two_fields_worked_by_hand():
    layer = AttentionLayer(1, size=1, heads=2)
    set_(
        layer,
        query=[[math.log(3)], [0.0]],
        key=[[1.0], [1.0]],
        value=[[8.0], [2.0]],
        residual=[[-5.0], [-3.0]],
    )
    # e = 0, 1. Head 1: q = 0, log 3, k = 0, 1, so field 1 weighs both alike, field 2 1/4 and 3/4:
    # of v = 0, 8 they get 4 and 6. Head 2 weighs all alike: of v = 0, 2 both get 1.
    # Residuals: 0 for field 1; -5 and -3 for field 2, so (4, 1) and ReLU(6 - 5, 1 - 3) = (1, 0).
    y = layer(torch.tensor([[[0.0], [1.0]]]))
    torch.testing.assert_close(y, torch.tensor([[[4.0, 1.0], [1.0, 0.0]]]))


def test_inner_products_are_not_divided_by_the_root_of_the_width():
    layer = AttentionLayer(1, size=4, heads=1)
    three = [[math.log(3)], [0.0], [0.0], [0.0]]
    set_(layer, query=three, key=[[1.0]] * 4, value=[[8.0]] * 4, residual=[[0.0]] * 4)
    y = layer(torch.tensor([[[0.0], [1.0]]]))
    torch.testing.assert_close(y[0, 1], torch.full((4,), 6.0))  # 3/4 of 8, as in a head of width 1


@pytest.mark.parametrize("fields", [1, 2, 5])
@pytest.mark.parametrize("layers", [1, 3])
def test_all_layers_equal_a_loop_over_rows_heads_and_fields(fields, layers):
    attention = Attention(3, layers, size=4, heads=2).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(6, fields, 3).double()
    y = attention(x)
    assert y.shape == (6, fields, attention.out_features)
    for n in range(6):
        row = x[n].tolist()
        for layer in attention.children():
            row = loop(layer, row, heads=2, size=4)
        np.testing.assert_allclose(y[n].detach().numpy(), row, rtol=1e-10, atol=1e-12)


def test_one_field_attends_to_itself_alone():
    layer = AttentionLayer(3, size=2, heads=2).double()
    x = torch.randn(6, 1, 3).double()
    expected = (x @ (layer.value.weight + layer.residual.weight).T).clamp(min=0)
    torch.testing.assert_close(layer(x), expected)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    attention = Attention(2, 2, size=2, heads=2).double()
    x = torch.randn(2, 3, 2).double().requires_grad_()
    names = [name for name, _ in attention.named_parameters()]

    def of_all(x, *values):
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(of_all, (x, *attention.parameters()))


def test_every_product_is_an_adaptable_linear_layer_without_bias():
    attention = Attention(5, 3, size=2, heads=3)
    assert [name for name, module in attention.named_modules() if type(module) is Linear] == [
        f"{index}.{product}" for index in range(3) for product in PRODUCTS
    ]
    # 4 products 5 → 6, then twice 4 products 6 → 6
    assert sum(p.numel() for p in attention.parameters()) == 4 * 30 + 2 * 4 * 36
    assert {name.rpartition(".")[2] for name, _ in attention.named_parameters()} == {"weight"}


def test_rows_do_not_feel_each_other_and_fields_have_no_order():
    attention = Attention(3, 2, size=4, heads=2).double()
    x = torch.randn(6, 5, 3).double()
    rows, fields = torch.randperm(6), torch.randperm(5)
    torch.testing.assert_close(attention(x[rows][:, fields]), attention(x)[rows][:, fields])
    torch.testing.assert_close(attention(x[2:3]), attention(x)[2:3])


def test_no_rows_give_no_rows_and_no_gradient():
    attention = Attention(3, 2, size=4, heads=2)
    y = attention(torch.empty(0, 5, 3))
    assert y.shape == (0, 5, 8)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in attention.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_compiles_without_a_graph_break_and_keeps_the_precision(dtype):
    torch.compiler.reset()
    attention = Attention(3, 2, size=4, heads=2).to(dtype)
    compiled = torch.compile(attention, fullgraph=True, backend="eager", dynamic=True)
    for rows in (6, 1, 11):
        x = torch.randn(rows, 5, 3, dtype=dtype)
        assert compiled(x).dtype == dtype
        torch.testing.assert_close(compiled(x), attention(x))


@pytest.mark.parametrize(("layers", "size", "heads"), [(0, 8, 4), (1, 0, 4), (1, 8, 0)])
def test_attention_without_layers_heads_or_width_is_refused(layers, size, heads):
    with pytest.raises(ValueError, match=r"at least one layer, not 0|not 4 of 0|not 0 of 8"):
        Attention(3, layers, size=size, heads=heads)
