import pytest
import torch

from loractr.batch import Route
from loractr.layers.dropout import Dropout
from loractr.layers.linear import Linear


def test_the_output_is_the_affine_map_of_each_row():
    layer = Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
    out = layer(torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, -2.0]]).double())
    assert out.tolist() == [[16.0, 19.5], [6.0, 19.0]]


def test_a_route_changes_nothing():
    layer, x = Linear(3, 2), torch.randn(5, 3)
    assert torch.equal(layer(x, Route.hard(torch.tensor([0, 1, -1, 1, 0]))), layer(x))


def test_a_fresh_layer_has_glorot_normal_weights_and_zero_bias():
    layer = Linear(300, 100, generator=torch.Generator().manual_seed(0))
    assert layer.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert layer.weight.abs().max() > 0.2  # normal: a uniform one of this variance ends at .122
    assert not layer.bias.any()


def test_the_same_generator_seed_gives_the_same_weights_whatever_the_global_seed():
    def weights(seed: int) -> torch.Tensor:
        return Linear(4, 3, generator=torch.Generator().manual_seed(seed)).weight

    first = weights(1)
    torch.manual_seed(9)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_without_a_bias_zero_stays_zero():
    layer = Linear(4, 3, bias=False)
    assert layer.bias is None
    assert not layer(torch.zeros(2, 4)).any()


def test_its_own_dropout_zeroes_outputs_in_training_only():
    layer = Linear(4, 1000)
    torch.nn.init.ones_(layer.weight)
    layer.dropout = Dropout(0.5)
    x = torch.ones(1, 4)
    assert set(layer(x).unique().tolist()) == {0.0, 8.0}
    assert layer.eval()(x).unique().tolist() == [4.0]


@pytest.mark.parametrize("widths", [(0, 3), (3, 0), (-1, 3)])
def test_a_width_below_one_is_refused_with_its_value(widths):
    with pytest.raises(ValueError, match=f"not {widths[0]} → {widths[1]}"):
        Linear(*widths)


def test_an_empty_batch_gives_an_empty_result():
    assert Linear(3, 2)(torch.empty(0, 3)).shape == (0, 2)
