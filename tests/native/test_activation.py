"""Compiled dropout and ReLU against torch's operations and finite differences."""

import pytest
import torch

from loractr import native
from loractr.layers.dropout import Dropout, draw, relu_dropout

SIZES = [(0,), (0, 3), (1,), (3,), (64,), (65, 7), (300, 257)]


def both_ways(function, x):
    """The result and the gradient of x, with the same mask each time, by each kind of kernels."""
    found = []
    for kind in ("native", "torch"):
        torch.manual_seed(7)
        leaf = x.clone().requires_grad_()
        with native.use(kind):
            y = function(leaf * 1)
            y.backward(torch.arange(y.numel(), dtype=y.dtype).view(y.shape) + 1)
        found.append((y.detach(), leaf.grad))
    return found


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.999999])
def test_both_kinds_of_kernels_draw_one_mask_and_agree_to_the_bit(size, dtype, p):
    x = torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    dropout = Dropout(p)
    for function in (dropout, lambda x: relu_dropout(x, dropout)):
        (y, dx), (y_torch, dx_torch) = both_ways(function, x)
        assert torch.equal(y, y_torch)
        assert torch.equal(dx, dx_torch)


def test_the_mask_is_split_mix_64():
    """Its first outputs for seed 1234567, as published with the reference code, 16 bits each."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    bits = [(word >> shift) & 0xFFFF for word in published for shift in (0, 16, 32, 48)]
    lost = 30_000
    mask = draw(0.5)._replace(seed=1234567, lost=lost).mask(torch.empty(20))
    assert (mask > 0).tolist() == [value >= lost for value in bits]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("function", [Dropout(0.4), lambda x: relu_dropout(x * 1, Dropout(0.4))])
def test_gradients_are_those_of_finite_differences(function):
    def same_mask(x):
        torch.manual_seed(5)
        return function(x)

    x = torch.randn(9, 8, dtype=torch.double) + 0.01
    assert torch.autograd.gradcheck(same_mask, x.requires_grad_())


@pytest.mark.usefixtures("kernels")
def test_what_is_not_a_number_stays_so_and_is_never_hidden_by_the_activation():
    x = torch.full((1000,), float("nan"))
    assert relu_dropout(x, Dropout(0.5)).isnan().any()


@pytest.mark.usefixtures("kernels")
def test_a_gradient_that_is_not_contiguous_is_read_as_it_is():
    torch.manual_seed(0)
    x = torch.rand(6, 4, requires_grad=True)
    y = relu_dropout(x * 1, Dropout(0.5))
    y.backward(torch.rand(4, 6).T + 1)
    assert torch.equal(x.grad != 0, y != 0)
