"""Products by groups as operators of torch: what compiled graphs call.

A compiled graph cannot hold a loop whose length is data; it calls these as a whole, with the same
kernels behind them as in eager mode. (Exporters know no such operators, see `layers.grouped`.)
"""

from typing import Any

import torch
from torch import Tensor

from loractr.batch import Groups
from loractr.layers.segments import add_products, outer_products


@torch.library.custom_op("loractr::grouped_linear", mutates_args=())
def grouped_linear(
    x: Tensor, weight: Tensor, expert: Tensor, offsets: Tensor, order: Tensor | None
) -> Tensor:
    """y[n] = weight[e] @ x[n], e = expert[n]; 0 where that is -1. (N, in), (E, out, in) → (N, out);
    the other arguments are those of `Groups`."""
    out = x.new_zeros(x.shape[0], weight.shape[1])
    add_products(out, x.contiguous(), weight.contiguous(), Groups(expert, offsets, order))
    return out


@torch.library.custom_op("loractr::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    expert: Tensor,
    offsets: Tensor,
    order: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    groups, g = Groups(expert, offsets, order), grad.contiguous()
    dx = x.new_zeros(x.shape)
    add_products(dx, g, weight.contiguous(), groups, turned=True)
    return dx, outer_products(g, x.contiguous(), groups, weight.shape[0])


@grouped_linear.register_fake
def _like_output(x: Tensor, weight: Tensor, *rows: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_linear_backward.register_fake
def _like_inputs(
    grad: Tensor, x: Tensor, weight: Tensor, *rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *grouped_linear_backward(grad, *ctx.saved_tensors), None, None, None


grouped_linear.register_autograd(_backward, setup_context=_keep)
