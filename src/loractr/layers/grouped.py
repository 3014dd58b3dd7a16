"""A product whose matrix depends on the row's group: what experts and domain towers are made of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from loractr.batch import Groups
from loractr.layers import operators
from loractr.layers.custom import custom
from loractr.layers.segments import add_products, outer_products


def grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """y[n] = weight[e] @ x[n] for the row's own e = groups.expert[n]; 0 where that is -1.

    One small product per group that has rows; its cost hardly grows with the number of groups, and
    a row's result does not depend on the other groups. A compiled graph calls an operator for it;
    an exported one runs all groups' products and masks them.

    Args:
        x: (N, in), rows in any order.
        weight: (E, out, in).
        groups: The rows' groups, of at most E experts.

    Returns: (N, out).
    """
    if torch.compiler.is_exporting():
        return _masked(x, weight, groups)
    if torch.compiler.is_compiling():
        rows = (groups.expert, groups.offsets, groups.order)
        y: Tensor = operators.grouped_linear(x, weight, *rows)
        return y
    return custom(_GroupedSum, [groups], None, x, weight)


def grouped_sum(base: Tensor, terms: Sequence[tuple[Tensor, Tensor, Groups]]) -> Tensor:
    """base + Σ grouped_linear(x, weight, groups) over several (x, weight, groups).

    Each small product is added where it belongs: no term is ever there as a whole. `base` (N, out)
    stays as it is.
    """
    if torch.compiler.is_compiling():
        return sum((grouped_linear(*term) for term in terms), base)
    tensors = [tensor for x, weight, _ in terms for tensor in (x, weight)]
    return custom(_GroupedSum, [groups for _, _, groups in terms], base, *tensors)


def _masked(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    experts, tall, _ = weight.shape
    every = F.linear(x, weight.flatten(0, 1)).view(-1, experts, tall)
    return (every * one_hot(groups, experts, x.dtype).unsqueeze(2)).sum(1)


def one_hot(groups: Groups, experts: int, dtype: torch.dtype) -> Tensor:
    """(N, E) of 0 and 1; a row without an expert has zeros only."""
    return F.one_hot(groups.expert + 1, experts + 1)[:, 1:].to(dtype)


def look_up(table: Tensor, groups: Groups) -> Tensor:
    """table[e] (E, width) of each row's own expert e, (N, width); 0 where it has none."""
    padded = torch.cat([table.new_zeros(1, table.shape[1]), table])
    return padded.index_select(0, groups.expert + 1)


def in_groups(x: Tensor, groups: Groups) -> Tensor:
    """Rows in the order of their groups."""
    return x if groups.order is None else x.index_select(0, groups.order)


def as_they_came(x: Tensor, groups: Groups) -> Tensor:
    """The opposite of `in_groups`."""
    if groups.order is None:
        return x
    return torch.empty_like(x).index_copy_(0, groups.order, x)


class _GroupedSum(torch.autograd.Function):
    """The eager form of `grouped_sum`."""

    @staticmethod
    def forward(ctx: Any, groups: list[Groups], base: Tensor | None, *tensors: Tensor) -> Tensor:
        x, weight = tensors[:2]
        out = x.new_zeros(x.shape[0], weight.shape[1]) if base is None else base.clone()
        for own, x, weight in zip(groups, tensors[::2], tensors[1::2], strict=True):
            add_products(out, x.contiguous(), weight.contiguous(), own)
        ctx.save_for_backward(*tensors)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = []
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        g = grad.contiguous()
        for place, own in enumerate(ctx.groups):
            x, weight = tensors[2 * place : 2 * place + 2]
            dx = dweight = None
            if wanted[2 * place]:
                dx = x.new_zeros(x.shape)
                add_products(dx, g, weight.contiguous(), own, turned=True)
            if wanted[2 * place + 1]:
                dweight = outer_products(g, x.contiguous(), own, len(weight))
            gradients += [dx, dweight]
        return None, grad if ctx.needs_input_grad[1] else None, *gradients
