import pytest
import torch

from loractr.layers.dropout import Dropout, draw


def test_in_training_elements_are_zero_or_scaled_so_that_the_mean_stays():
    torch.manual_seed(0)
    out = Dropout(0.2)(torch.ones(200, 500))
    assert out.unique().tolist() == [0.0, pytest.approx(1.25, abs=1e-4)]
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
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


@pytest.mark.parametrize("p", [0.5, 0.2, 0.3, 1 / 65_536, 0.99999])
def test_a_mask_keeps_the_mean_of_what_it_scales(p):
    """The rate is one of 65,536 levels, and the scale fits that level, not the rate asked for."""
    lost = min(round(p * 65_536), 65_535)
    mask = draw(p).mask(torch.empty(100, dtype=torch.float64))
    kept = mask[mask > 0]
    assert (kept * (65_536 - lost) / 65_536).tolist() == pytest.approx([1.0] * len(kept), abs=1e-15)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (3, 5), (2, 3, 7)])
def test_masks_have_any_shape(shape):
    layer = Dropout(0.5)
    assert layer(torch.ones(shape)).shape == shape


def test_elements_rows_and_calls_are_independent():
    """Against the binomial: counts of lost elements by row, by column, by neighbours, by calls."""
    torch.manual_seed(3)
    layer, ones = Dropout(0.3), torch.ones(400, 1000)
    first, second = ((layer(ones) == 0).double() for _ in range(2))
    for lost in (first, second):
        assert (lost.mean(0) - 0.3).abs().max() < 5 * (0.3 * 0.7 / 400) ** 0.5
        assert (lost.mean(1) - 0.3).abs().max() < 5 * (0.3 * 0.7 / 1000) ** 0.5
        neighbours = (lost[:, 1:] * lost[:, :-1]).mean()
        assert neighbours.item() == pytest.approx(0.09, abs=5 * (0.09 * 0.91 / 4e5) ** 0.5 * 1.5)
    assert (first * second).mean().item() == pytest.approx(0.09, abs=0.004)


def test_the_state_of_torchs_generator_decides_the_mask():
    x, layer = torch.ones(30, 30), Dropout(0.5)
    state = torch.get_rng_state()
    one = layer(x)
    other = layer(x)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), one)
    assert not torch.equal(one, other)


def test_the_gradient_is_that_of_finite_differences():
    """With the generator set anew before every call: the same mask each time."""

    def dropped(x):
        torch.manual_seed(5)
        return Dropout(0.4)(x)

    assert torch.autograd.gradcheck(dropped, torch.ones(4, 3, dtype=torch.double).requires_grad_())
