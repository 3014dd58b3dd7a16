import numpy as np
import pytest
import torch

from loractr.layers.linear import Linear
from loractr.layers.senet import SENET


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()


def senet(fields: int = 7, reduction: int = 3) -> SENET:
    generator = torch.Generator().manual_seed(2)
    return SENET(fields, reduction=reduction, generator=generator).double()


def loop(e: np.ndarray, squeeze: np.ndarray, excite: np.ndarray) -> np.ndarray:
    """v_i = ReLU(W_2 ReLU(W_1 z))_i e_i with z the fields' means, element by element."""
    rows, fields, size = e.shape
    out = np.zeros_like(e)
    for n in range(rows):
        z = [sum(e[n, i, k] for k in range(size)) / size for i in range(fields)]
        hidden = [max(0.0, sum(w[i] * z[i] for i in range(fields))) for w in squeeze]
        for i in range(fields):
            a = max(0.0, sum(excite[i, h] * hidden[h] for h in range(len(hidden))))
            for k in range(size):
                out[n, i, k] = a * e[n, i, k]
    return out


def test_it_works_out_by_hand():
    layer = SENET(2, reduction=1)
    layer.squeeze.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    layer.excite.weight.data = torch.tensor([[0.5, 7.0], [-1.0, 7.0]])
    # z = (1, 3), hidden = ReLU(4, -2) = (4, 0), weights = ReLU(2, -4) = (2, 0)
    e = torch.tensor([[[0.0, 2.0], [4.0, 2.0]]])
    assert layer(e).tolist() == [[[0.0, 4.0], [0.0, 0.0]]]


def test_it_equals_a_loop_over_rows_fields_and_elements():
    layer, e = senet(), normal(40, 7, 3)
    expected = loop(
        e.numpy(), layer.squeeze.weight.detach().numpy(), layer.excite.weight.detach().numpy()
    )
    assert (expected == 0).any()
    assert (expected != 0).any()
    np.testing.assert_allclose(layer(e).detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("fields", "reduction", "hidden"), [(7, 3, 2), (6, 3, 2), (2, 3, 1), (1, 3, 1), (5, 1, 5)]
)
def test_the_hidden_layer_has_one_unit_per_so_many_fields_and_at_least_one(
    fields, reduction, hidden
):
    layer = SENET(fields, reduction=reduction)
    assert (layer.squeeze.in_features, layer.squeeze.out_features) == (fields, hidden)
    assert sum(p.numel() for p in layer.parameters()) == 2 * fields * hidden
    assert layer(torch.ones(4, fields, 3)).shape == (4, fields, 3)


def test_every_product_is_an_adaptable_linear_layer_and_gets_the_route():
    seen = []

    class Spy(Linear):
        def forward(self, x, route=None):
            seen.append(route)
            return super().forward(x, route)

    layer, route = SENET(6), object()
    assert [name for name, m in layer.named_modules() if type(m) is Linear] == ["squeeze", "excite"]
    layer.squeeze, layer.excite = Spy(6, 2), Spy(2, 6)
    layer(torch.ones(2, 6, 3), route)
    assert seen == [route, route]


def test_the_generator_alone_decides_the_fresh_weights():
    first = senet().state_dict()
    torch.manual_seed(99)
    again = senet().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_reduction_below_one_is_refused():
    with pytest.raises(ValueError, match="reduction must be at least 1, not 0"):
        SENET(4, reduction=0)


def test_a_network_without_fields_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SENET(0)


def test_no_rows_give_no_results():
    assert senet()(normal(0, 7, 3)).shape == (0, 7, 3)


def test_a_row_does_not_depend_on_the_others():
    layer, e = senet(), normal(6, 7, 3)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    torch.testing.assert_close(layer(e[order]), layer(e)[order])
    torch.testing.assert_close(layer(e[2:3]), layer(e)[2:3])


def test_it_compiles_to_one_graph_with_the_same_values():
    torch.compiler.reset()
    layer, compiled = senet(), torch.compile(senet(), fullgraph=True, backend="eager", dynamic=True)
    for rows in (6, 4):
        e = normal(rows, 7, 3)
        torch.testing.assert_close(compiled(e), layer(e))
