import pytest
import torch

from loractr.layers.dropout import Dropout


def test_in_training_elements_are_zero_or_scaled_so_that_the_mean_stays():
    torch.manual_seed(0)
    out = Dropout(0.2)(torch.ones(200, 500))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_the_gradient_goes_through_the_same_mask():
    x = torch.ones(50, 20, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_in_evaluation_or_at_rate_zero_the_input_itself_comes_back(p, training):
    x = torch.randn(4, 3)
    assert Dropout(p).train(training)(x) is x


def test_the_rate_can_be_set_anew():
    layer = Dropout(0.0)
    layer.p = 0.9
    assert (layer(torch.ones(100, 100)) == 0).any()


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0, float("nan")])
def test_a_rate_out_of_range_is_refused_with_its_value(p):
    with pytest.raises(ValueError, match=f"not {p}"):
        Dropout(p)
