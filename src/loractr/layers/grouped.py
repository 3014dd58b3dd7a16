"""A product whose matrix depends on the row's group: what experts and domain towers are made of."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from loractr.batch import Groups


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
        experts, tall, _ = weight.shape
        every = F.linear(x, weight.flatten(0, 1)).view(-1, experts, tall)
        return (every * one_hot(groups, experts, x.dtype).unsqueeze(2)).sum(1)
    product: Tensor = _Grouped.apply(x, weight, groups)  # type: ignore[no-untyped-call]
    return product


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


class _Grouped(torch.autograd.Function):
    """The eager form of `grouped_linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
        rows = in_groups(x, groups)
        out = x.new_zeros(x.shape[0], weight.shape[1])
        places = spans(groups)
        for expert, start, stop in places:
            torch.mm(rows[start:stop], weight[expert].T, out=out[start:stop])
        ctx.save_for_backward(rows, weight)
        ctx.groups, ctx.places = groups, places
        return as_they_came(out, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        g = in_groups(grad, ctx.groups)
        dx = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        dweight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for expert, start, stop in ctx.places:
            if dx is not None:
                torch.mm(g[start:stop], weight[expert], out=dx[start:stop])
            if dweight is not None:
                torch.mm(g[start:stop].T, rows[start:stop], out=dweight[expert])
        return None if dx is None else as_they_came(dx, ctx.groups), dweight, None
