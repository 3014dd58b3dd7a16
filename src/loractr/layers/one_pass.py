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


CACHED = 1 << 18
"""Numbers that stay in a processor's cache between one operation and the next: 1 MiB of them."""


def pays(x: Tensor, width: int, ending: Rectifier) -> bool:
    """Whether one pass is quicker than torch's own operations for a layer without experts, from
    x (N, in) to (N, width). Passes over what is in the cache cost less than a call from Python."""
    if torch.compiler.is_compiling():
        return False
    return ending.drops or x.shape[0] * width > CACHED


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
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    if experts is not None and experts.groups.order is not None:
        return None
    kernels = _kernels(x, weight, bias, experts)
    if kernels is None:
        return None
    down, up, offset, groups = experts or (None, None, None, None)
    drawn = None if ending is None else ending.draw()
    rest = (groups, ending is not None, drawn, kernels)
    return custom(_OnePass, x, weight, bias, down, up, offset, *rest)


def _kernels(
    x: Tensor, weight: Tensor, bias: Tensor | None, experts: Experts | None
) -> Library | None:
    """The compiled kernels, if they can compute with these: C checks nothing."""
    rows, (tall, wide) = x.shape[0], weight.shape
    expected: list[tuple[Tensor | None, tuple[int, ...]]] = [(x, (rows, wide)), (bias, (tall,))]
    if experts is not None:
        down, up, offset, groups = experts
        count, rank = down.shape[:2]
        expected += [(down, (count, rank, wide)), (up, (count, tall, rank))]
        expected += [(offset, (count, tall))]
        if groups.expert.shape[0] != rows or groups.offsets.shape[0] - 2 > count:
            return None
    if any(tensor is not None and tensor.shape != shape for tensor, shape in expected):
        return None
    kernels = library_for(weight, *(tensor for tensor, _ in expected if tensor is not None))
    return kernels if kernels is not None and kernels.multiplies else None


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
        rectifies: bool,
        drawn: Draw | None,
        kernels: Library,
    ) -> Tensor:
        rank = 0 if down is None else down.shape[1]
        y, inner = x.new_empty(len(x), len(weight)), x.new_empty(len(x), rank)
        edges, experts = (None, -1) if groups is None else groups.runs()[1:]
        sizes = (*x.shape, len(weight), rank, experts)
        seed, lost, scale = (0, 0, 1.0) if drawn is None else (*drawn, drawn.scale)
        tensors = (x, weight, bias, down, up, offset, y, inner)
        kernels.call("layer", *tensors, edges, *sizes, rectifies, seed, lost, scale)
        ctx.save_for_backward(y if rectifies else None, x, inner, weight, down, up)
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in tensors[1:6]]
        ctx.rest, ctx.kernels = (edges, *sizes, rectifies, scale), kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        wants_x, *wants = ctx.needs_input_grad[:6]
        dx = torch.empty_like(saved[1]) if wants_x else None
        sums = [
            grad.new_zeros(shape) if wanted else None
            for shape, wanted in zip(ctx.shapes, wants, strict=True)
        ]
        ctx.kernels.call("layer_backward", grad.contiguous(), *saved, dx, *sums, *ctx.rest)
        return dx, *sums, *(None,) * 4
