"""Products of rows with their group's matrix, one group after the other: the arithmetic of experts
and domain towers, in place and unseen by autograd. `layers.grouped` gives it gradients.
"""

import torch
from torch import Tensor

from loractr.batch import Groups
from loractr.native import Library, library_for


def spans(groups: Groups) -> list[tuple[int, int, int]]:
    """(expert, start, stop) of every expert that has rows."""
    edges = groups.offsets.tolist()
    return [
        (segment - 1, edges[segment], edges[segment + 1])
        for segment in range(1, len(edges) - 1)
        if edges[segment] < edges[segment + 1]
    ]


def add_products(
    out: Tensor, x: Tensor, weight: Tensor, groups: Groups, *, turned: bool = False
) -> None:
    """out[n] += weight[e] @ x[n], in place; weight (E, out, in). With `turned`, weight[e]ᵀ @ x[n]:
    x is as wide as the outputs, `out` as the inputs. Not seen by autograd."""
    kernels = _kernels(groups, out, x, weight)
    into, of = weight.shape[:0:-1] if turned else weight.shape[1:]
    if kernels and (out.shape[1], x.shape[1]) == (into, of):
        kernels.call("grouped_product", x, weight, out, *groups.runs(), of, into, not turned)
        return
    for expert, start, stop in spans(groups):
        matrix = weight[expert] if turned else weight[expert].T
        _add(out, groups, start, stop, _rows(x, groups, start, stop), matrix)


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
