import numpy as np
import pytest
import torch

from loractr.layers.cin import CIN
from loractr.layers.linear import Linear

FIELDS = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])
"""One row, two fields f and g: f⊙f = (1, 4), f⊙g = g⊙f = (3, -2), g⊙g = (9, 1)."""


def set_(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def loop(cin, fields, split_half):
    """The layer's docstring on one row, number by number: explicit i, j, h and element d."""
    first = maps = np.asarray(fields)
    out = []
    layers = list(cin.children())
    for index, layer in enumerate(layers):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        made = np.zeros((len(weight), first.shape[1]))
        for h in range(len(weight)):
            for d in range(first.shape[1]):
                total = bias[h]
                for i in range(len(maps)):
                    for j in range(len(first)):
                        total += weight[h][j * len(maps) + i] * maps[i, d] * first[j, d]
                made[h, d] = max(0.0, total)
        last = index == len(layers) - 1
        half = len(made) // 2
        out.extend((made[half:] if split_half and not last else made).sum(1))
        maps = made[:half] if split_half else made
    return out


def test_halved_layers_worked_by_hand():
    cin = CIN(2, (2, 1))
    first, second = cin.children()
    # map 1: (1, 4) - 2 = (-1, 2), after ReLU (0, 2), goes on; map 2: (3, -2) + 1, after ReLU (4, 0)
    set_(first, [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], [-2.0, 1.0])
    # (0, 2)⊙f = (0, 4), (0, 2)⊙g = (0, -2): (0, 4) - (0, -2) + 1/2 = (0.5, 6.5)
    set_(second, [[1.0, -1.0]], [0.5])
    assert cin(FIELDS).tolist() == [[4.0, 7.0]]


def test_whole_layers_worked_by_hand():
    cin = CIN(2, (2, 1), split_half=False)
    first, second = cin.children()
    set_(first, [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], [-2.0, 1.0])
    # p = (0, 2), q = (4, 0): f⊙p + f⊙q - g⊙p = (0, 4) + (4, 0) - (0, -2) = (4, 6)
    set_(second, [[1.0, 1.0, -1.0, 0.0]], [0.0])
    assert cin(FIELDS).tolist() == [[2.0, 4.0, 10.0]]


@pytest.mark.parametrize("split_half", [True, False])
@pytest.mark.parametrize("sizes", [(5,), (4, 3), (6, 2, 5)])
@pytest.mark.parametrize("fields", [1, 2, 4])
def test_all_layers_equal_a_loop_over_rows_pairs_maps_and_elements(fields, sizes, split_half):
    cin = CIN(fields, sizes, split_half=split_half).double()
    for parameter in cin.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(6, fields, 3).double()
    y = cin(x)
    assert y.shape == (6, cin.out_features)
    for n in range(6):
        expected = loop(cin, x[n].tolist(), split_half)
        np.testing.assert_allclose(y[n].detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_layer_k_multiplies_k_plus_one_fields():
    """With positive weights and inputs no ReLU acts, and layer k is of degree k + 1."""
    cin = CIN(3, (4, 4, 4), split_half=False).double()
    for parameter in cin.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1.0)
        if parameter.dim() == 1:
            torch.nn.init.zeros_(parameter)
    x = torch.rand(6, 3, 5).double()
    degrees = torch.tensor([2.0] * 4 + [3.0] * 4 + [4.0] * 4).double()
    torch.testing.assert_close(cin(2 * x), 2**degrees * cin(x))


@pytest.mark.parametrize(
    ("split_half", "weights", "out"),
    [(True, 8 * (9 + 1) + 6 * (4 * 3 + 1) + 5 * (3 * 3 + 1), 4 + 3 + 5),
     (False, 8 * (9 + 1) + 6 * (8 * 3 + 1) + 5 * (6 * 3 + 1), 8 + 6 + 5)],
)  # fmt: skip
def test_every_product_is_an_adaptable_linear_layer(split_half, weights, out):
    cin = CIN(3, (8, 6, 5), split_half=split_half)
    linears = [name for name, module in cin.named_modules() if type(module) is Linear]
    assert linears == ["0", "1", "2"]
    assert sum(p.numel() for p in cin.parameters()) == weights
    assert cin.out_features == out


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    cin = CIN(3, (4, 3)).double()
    for parameter in cin.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 2).double().requires_grad_()
    names = [name for name, _ in cin.named_parameters()]

    def of_all(x, *values):
        return torch.func.functional_call(cin, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(of_all, (x, *cin.parameters()))


def test_rows_do_not_feel_each_other():
    cin = CIN(4, (6, 5)).double()
    x, order = torch.randn(6, 4, 3).double(), torch.randperm(6)
    torch.testing.assert_close(cin(x[order]), cin(x)[order])
    torch.testing.assert_close(cin(x[2:3]), cin(x)[2:3])


def test_no_rows_give_no_rows_and_no_gradient():
    cin = CIN(4, (6, 5))
    y = cin(torch.empty(0, 4, 3))
    assert y.shape == (0, 8)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in cin.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_compiles_without_a_graph_break_and_keeps_the_precision(dtype):
    torch.compiler.reset()
    cin = CIN(4, (6, 5)).to(dtype)
    compiled = torch.compile(cin, fullgraph=True, backend="eager", dynamic=True)
    for rows in (6, 1, 11):
        x = torch.randn(rows, 4, 3, dtype=dtype)
        assert compiled(x).dtype == dtype
        torch.testing.assert_close(compiled(x), cin(x))


@pytest.mark.parametrize(
    ("fields", "sizes", "told"),
    [
        (0, (4,), "not 0 fields"),
        (3, (), r"sizes \(\)"),
        (3, (4, 0), r"sizes \(4, 0\)"),
        (3, (4, 3, 5), "split_half needs even sizes but for the last, not 3"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, sizes, told):
    with pytest.raises(ValueError, match=told):
        CIN(fields, sizes)


def test_odd_layers_are_fine_where_nothing_is_halved():
    assert CIN(3, (3, 5), split_half=False).out_features == 8
    assert CIN(3, (4, 5)).out_features == 7
