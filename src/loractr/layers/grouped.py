"""A product whose matrix depends on the row's group: what experts and domain towers are made of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from loractr.batch import Groups
from loractr.layers.custom import custom
from loractr.native import Library, library_for


def grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """y[n] = weight[e] @ x[n] for the row's own e = groups.expert[n]; 0 where that is -1.

    One small product per group that has rows; its cost hardly grows with the number of groups, and
    a row's result does not depend on the other groups. A compiled or exported graph runs all
    groups' products and masks them.

    Args:
        x: (N, in), rows in any order.
        weight: (E, out, in).
        groups: The rows' groups, of at most E experts.

    Returns: (N, out).
    """
    if torch.compiler.is_compiling():
        return _masked(x, weight, groups)
    return custom(_GroupedSum, [groups], None, x, weight)


def grouped_sum(base: Tensor, terms: Sequence[tuple[Tensor, Tensor, Groups]]) -> Tensor:
    """base + Σ grouped_linear(x, weight, groups) over several (x, weight, groups).

    Each small product is added where it belongs: no term is ever there as a whole. `base` (N, out)
    stays as it is.
    """
    if torch.compiler.is_compiling():
        return sum((_masked(*term) for term in terms), base)
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


def spans(groups: Groups) -> list[tuple[int, int, int]]:
    """(expert, start, stop) of every expert that has rows."""
    edges = groups.offsets.tolist()
    return [
        (segment - 1, edges[segment], edges[segment + 1])
        for segment in range(1, len(edges) - 1)
        if edges[segment] < edges[segment + 1]
    ]


def in_groups(x: Tensor, groups: Groups) -> Tensor:
    """Rows in the order of their groups."""
    return x if groups.order is None else x.index_select(0, groups.order)


def as_they_came(x: Tensor, groups: Groups) -> Tensor:
    """The opposite of `in_groups`."""
    if groups.order is None:
        return x
    return torch.empty_like(x).index_copy_(0, groups.order, x)


def add_products(out: Tensor, x: Tensor, weight: Tensor, groups: Groups) -> None:
    """out[n] += weight[e] @ x[n], in place; weight (E, out, in). Not seen by autograd."""
    kernels = _kernels(groups, out, x, weight)
    tall, wide = weight.shape[1:]
    if kernels and out.shape[1] == tall and x.shape[1] == wide:
        kernels.call("grouped_product", x, weight, out, *groups.runs(), wide, tall, True)
        return
    for expert, start, stop in spans(groups):
        _add(out, groups, start, stop, _rows(x, groups, start, stop), weight[expert].T)


def add_products_turned(out: Tensor, g: Tensor, weight: Tensor, groups: Groups) -> None:
    """out[n] += weight[e]ᵀ @ g[n], in place; weight (E, out, in). Not seen by autograd."""
    kernels = _kernels(groups, out, g, weight)
    tall, wide = weight.shape[1:]
    if kernels and out.shape[1] == wide and g.shape[1] == tall:
        kernels.call("grouped_product", g, weight, out, *groups.runs(), tall, wide, False)
        return
    for expert, start, stop in spans(groups):
        _add(out, groups, start, stop, _rows(g, groups, start, stop), weight[expert])


def outer_products(g: Tensor, x: Tensor, groups: Groups, experts: int) -> Tensor:
    """Σ g[n] x[n]ᵀ over the rows of each group: (N, out), (N, in) → (experts, out, in)."""
    sums = g.new_zeros(experts, g.shape[1], x.shape[1])
    kernels = _kernels(groups, g, x, sums)
    if kernels:
        kernels.call("grouped_outer", g, x, sums, *groups.runs(), g.shape[1], x.shape[1])
        return sums
    for expert, start, stop in spans(groups):
        left, right = (_rows(t, groups, start, stop) for t in (g, x))
        torch.mm(left.T, right, out=sums[expert])
    return sums


def group_sums(g: Tensor, groups: Groups, experts: int) -> Tensor:
    """Σ g[n] over the rows of each group: (N, out) → (experts, out). Not a product with ones, whose
    rounding is larger: before a norm this sum is 0, and Adam makes steps of what is left of it."""
    sums = g.new_zeros(experts, g.shape[1])
    for expert, start, stop in spans(groups):
        torch.sum(_rows(g, groups, start, stop), 0, out=sums[expert])
    return sums


def _kernels(groups: Groups, rows: Tensor, other_rows: Tensor, stack: Tensor) -> Library | None:
    """Compiled kernels, if they can compute with rows (N, …), rows (N, …) and a stack (E, …)."""
    kernels = library_for(rows, other_rows, stack)
    if kernels is None or not kernels.multiplies:
        return None
    fits = rows.shape[0] == other_rows.shape[0] == groups.expert.shape[0]
    return kernels if fits and groups.offsets.shape[0] - 2 <= stack.shape[0] else None


def _rows(x: Tensor, groups: Groups, start: int, stop: int) -> Tensor:
    return x[start:stop] if groups.order is None else x.index_select(0, groups.order[start:stop])


def _add(out: Tensor, groups: Groups, start: int, stop: int, rows: Tensor, matrix: Tensor) -> None:
    if groups.order is None:
        out[start:stop].addmm_(rows, matrix)
    else:
        out.index_add_(0, groups.order[start:stop], rows @ matrix)


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
                add_products_turned(dx, g, weight.contiguous(), own)
            if wanted[2 * place + 1]:
                dweight = outer_products(g, x.contiguous(), own, len(weight))
            gradients += [dx, dweight]
        return None, grad if ctx.needs_input_grad[1] else None, *gradients
