"""A linear layer, the experts beside it and the ReLU and dropout behind it as one compiled kernel.

In small nets passes over memory cost as much as products: here a block of rows goes through all of
a layer while it lies in the processor's cache, forward and backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loractr.batch import Groups
from loractr.layers.custom import custom
from loractr.layers.dropout import Draw, Rectifier
from loractr.native import Library, library_for


class Experts(NamedTuple):
    """The experts that the rows of a batch go to, and which row goes where."""

    down: Tensor  # (A, r, in)
    up: Tensor  # (A, out, r), the row scale in it
    offset: Tensor | None  # (A, out)
    groups: Groups  # by the A experts


def in_one_pass(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    experts: Experts | None = None,
    ending: Rectifier | None = None,
) -> Tensor | None:
    """ending(W x[n] + b + up[e] down[e] x[n] + offset[e]), e: the row's expert, or without experts
    W x[n] + b. None where no kernel can do it: none is built, a graph is traced, x is no matrix of
    the weights' type, or its rows do not stand in the order of their experts.

    Shapes: x (N, in), weight (out, in), bias (out,) → (N, out).
    """
    kernels = _kernels(x, weight, bias, experts)
    if kernels is None:
        return None
    down, up, offset, groups = experts or (None, None, None, None)
    drawn = None if ending is None else ending.draw()
    end = _End(ending is not None, drawn)
    return custom(_OnePass, x, weight, bias, down, up, offset, groups, end, kernels)


def _kernels(
    x: Tensor, weight: Tensor, bias: Tensor | None, experts: Experts | None
) -> Library | None:
    """The compiled kernels, if they can compute with these: C checks nothing."""
    tall, wide = weight.shape
    expected: list[tuple[Tensor | None, tuple[int, ...]]] = [(x, (len(x), wide)), (bias, (tall,))]
    if experts is not None:
        down, up, offset, groups = experts
        count, rank = down.shape[:2]
        expected += [(down, (count, rank, wide)), (up, (count, tall, rank))]
        expected += [(offset, (count, tall))]
        fits = groups.expert.shape[0] == len(x) and groups.offsets.shape[0] - 2 <= count
        if groups.order is not None or not fits:
            return None
    if any(tensor is not None and tensor.shape != shape for tensor, shape in expected):
        return None
    kernels = library_for(weight, *(tensor for tensor, _ in expected if tensor is not None))
    return kernels if kernels is not None and kernels.multiplies else None


class _End(NamedTuple):
    rectifies: bool
    drawn: Draw | None

    def arguments(self) -> tuple[int, int, int, float]:
        drawn = self.drawn
        if drawn is None:
            return int(self.rectifies), 0, 0, 1.0
        return int(self.rectifies), drawn.seed, drawn.lost, drawn.scale


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        offset: Tensor | None,
        groups: Groups | None,
        end: _End,
        kernels: Library,
    ) -> Tensor:
        rank = 0 if down is None else down.shape[1]
        y, inner = x.new_empty(len(x), len(weight)), x.new_empty(len(x), rank)
        edges, experts = (None, -1) if groups is None else groups.runs()[1:]
        ctx.sizes = (*x.shape, len(weight), rank, experts)
        tensors = (x, weight, bias, down, up, offset, y, inner)
        kernels.call("layer", *tensors, edges, *ctx.sizes, *end.arguments())
        ctx.save_for_backward(*tensors)
        ctx.edges, ctx.end, ctx.kernels = edges, end, kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights, y, inner = ctx.saved_tensors
        weight, _, down, up, _ = weights
        wants_x, *wants = ctx.needs_input_grad[:6]
        dx = torch.empty_like(x) if wants_x else None
        sums = [
            torch.zeros_like(tensor) if wanted else None
            for tensor, wanted in zip(weights, wants, strict=True)
        ]
        rectifies, _, _, scale = ctx.end.arguments()
        inputs = (grad.contiguous(), y, x, inner, weight, down, up)
        ctx.kernels.call(
            "layer_backward", *inputs, dx, *sums, ctx.edges, *ctx.sizes, rectifies, scale
        )
        return dx, *sums, None, None, None
