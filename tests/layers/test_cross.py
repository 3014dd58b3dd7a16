import pytest
import torch

from loractr.layers.cross import Cross
from loractr.layers.linear import Linear


def set_(parameter: torch.Tensor, values: object) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values))


def test_the_vector_form_worked_by_hand():
    cross = Cross(2, layers=2)
    first, second = cross.children()
    set_(first.linear.weight, [[1.0, 2.0]])
    set_(first.bias, [0.5, 0.0])
    set_(second.linear.weight, [[-1.0, 1.0]])
    # x0 = (1, 3): x0·w = 7, so x1 = 7 (1, 3) + (0.5, 0) + (1, 3) = (8.5, 24)
    # x1·w = 15.5, so x2 = 15.5 (1, 3) + (8.5, 24) = (24, 70.5)
    assert cross(torch.tensor([[1.0, 3.0]])).tolist() == [[24.0, 70.5]]


def test_the_matrix_form_worked_by_hand():
    cross = Cross(2, layers=2, kind="matrix")
    first, second = cross.children()
    set_(first.linear.weight, [[1.0, 2.0], [0.0, -1.0]])
    set_(first.linear.bias, [0.5, 0.0])
    set_(second.linear.weight, [[1.0, 0.0], [1.0, 1.0]])
    # x0 = (1, 3): W x0 + b = (7.5, -3), so x1 = (7.5, -9) + (1, 3) = (8.5, -6)
    # W x1 = (8.5, 2.5), so x2 = (8.5, 7.5) + (8.5, -6) = (17, 1.5)
    assert cross(torch.tensor([[1.0, 3.0]])).tolist() == [[17.0, 1.5]]


def test_both_forms_equal_a_loop_over_rows_and_elements():
    x0 = torch.randn(6, 5).double()
    vector, matrix = Cross(5, 3).double(), Cross(5, 3, kind="matrix").double()
    for parameter in (*vector.parameters(), *matrix.parameters()):
        torch.nn.init.normal_(parameter)
    for n in range(6):
        v = m = x0[n]
        for layer in vector.children():
            inner = sum(v[i] * layer.linear.weight[0, i] for i in range(5))
            v = torch.stack([x0[n, i] * inner + layer.bias[i] + v[i] for i in range(5)])
        for layer in matrix.children():
            products = [m @ layer.linear.weight[i] + layer.linear.bias[i] for i in range(5)]
            m = torch.stack([x0[n, i] * products[i] + m[i] for i in range(5)])
        torch.testing.assert_close(vector(x0)[n], v)
        torch.testing.assert_close(matrix(x0)[n], m)


@pytest.mark.parametrize(("kind", "size"), [("vector", 2 * (4 + 4)), ("matrix", 2 * (16 + 4))])
def test_every_product_is_an_adaptable_linear_layer(kind, size):
    cross = Cross(4, 2, kind=kind)
    assert sum(p.numel() for p in cross.parameters()) == size
    linears = [name for name, module in cross.named_modules() if type(module) is Linear]
    assert linears == ["0.linear", "1.linear"]


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least one layer, not 0"):
        Cross(4, 0)
