"""The bank of low-rank experts that stands beside a shared linear layer, and its kernels.

Two kernels with one meaning. *Segments*, for hard routes: rows grouped by expert, one pair of small
products per expert that has rows, written in place. Its cost hardly grows with the number of
experts, and a row's result does not depend on which other experts the bank holds, so domains live
and die alone. *Stacked*, for soft routes and for compiled or exported graphs: all experts' `down`
in one product, weights, all `up` in one product; no loop, but a cost that grows with the experts.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.linear import Linear

EXPERT_PARAMETERS = ("down", "up", "row_scale", "offset")
"""Names of a bank's parameters; their first axis is the expert."""


class LowRankLinear(nn.Module):
    """A shared linear layer plus E low-rank experts, routed or mixed row by row.

        y[n] = base(x[n]) + sum_e w[n, e] * (row_scale[e] * (up[e] @ down[e] @ x[n]) + offset[e])

    A hard route has w[n, e] = 1 for the row's own expert and 0 elsewhere; a row without one
    (-1) gets base(x) alone. A soft route brings w itself. `up` and `offset` start at zero: a new
    layer computes exactly what `base` does.

    Args:
        base: Layer to adapt. Kept by reference, not copied.
        experts: Number of experts, E >= 1.
        rank: Rank of each expert, 1 <= rank <= out. Beyond `in` it adds weights but no function;
            the papers' divisor rule makes such ranks on narrow inputs, so it is allowed.
        row_scale: One more factor per expert and output, drawn from N(0, 1) (MultiLoRA's s).
        offset: One more bias per expert and output, zero at the start (MLoRA's c, MultiLoRA's b).
        generator: Source of the random initial weights.

    Weights:
        down (E, r, in), Glorot normal per expert (fans in and r); up (E, out, r), zero;
        row_scale (E, out); offset (E, out).

    Shapes: x (N, in) -> (N, out).
    Raises: AdapterError (a ValueError): `experts` or `rank` is out of range; at call, a route that
        names an expert that the bank does not have, or soft weights for another number of experts.
    Source: Yang et al., MLoRA, RecSys 2024, doi:10.1145/3640457.3688134 (no row scale);
        Song et al., MultiLoRA, CIKM 2024, eq. 7-8 (row scale and offset).
    """

    row_scale: nn.Parameter | None
    offset: nn.Parameter | None

    def __init__(
        self,
        base: Linear,
        *,
        experts: int,
        rank: int,
        row_scale: bool = False,
        offset: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        wide, tall = base.in_features, base.out_features
        if experts < 1:
            raise AdapterError(f"a bank needs 1 or more experts, not {experts}.")
        if not 1 <= rank <= tall:
            raise AdapterError(
                f"rank {rank} does not fit a layer {wide} -> {tall}: 1 <= rank <= {tall}.",
                fix="choose a smaller rank.",
            )
        self.base = base
        like = base.weight
        self.down = nn.Parameter(like.new_empty(experts, rank, wide))
        self.up = nn.Parameter(like.new_zeros(experts, tall, rank))
        self.row_scale = nn.Parameter(like.new_empty(experts, tall)) if row_scale else None
        self.offset = nn.Parameter(like.new_zeros(experts, tall)) if offset else None
        with torch.no_grad():
            self.down.normal_(std=(2.0 / (wide + rank)) ** 0.5, generator=generator)
            if self.row_scale is not None:
                self.row_scale.normal_(generator=generator)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base.out_features

    @property
    def experts(self) -> int:
        """Number of experts, E."""
        return self.down.shape[0]

    @property
    def rank(self) -> int:
        """Rank of each expert."""
        return self.down.shape[1]

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """x (N, in) and a route with one division (or soft weights) -> (N, out)."""
        shared: Tensor = self.base(x, route)
        if route is None or (route.weights is None and not route.divisions):
            return shared
        up = self.up if self.row_scale is None else self.up * self.row_scale.unsqueeze(-1)
        if route.weights is not None:
            self._check(route.weights.shape[1], "weights for {} experts", exact=True)
            return shared + _stacked(x, route.weights, self.down, up, self.offset)
        groups = route.divisions[0]
        self._check(groups.offsets.shape[0] - 2, "rows of {} experts")
        if torch.compiler.is_compiling():
            hot = F.one_hot(groups.expert + 1, self.experts + 1)[:, 1:].to(x.dtype)
            return shared + _stacked(x, hot, self.down, up, self.offset)
        updated: Tensor = _Segments.apply(  # type: ignore[no-untyped-call]
            shared, x, self.down, up, self.offset, groups
        )
        return updated

    def _check(self, experts: int, what: str, *, exact: bool = False) -> None:
        if experts > self.experts or (exact and experts < self.experts):
            raise AdapterError(
                f"the route has {what.format(experts)}, this bank has {self.experts}."
            )

    def extra_repr(self) -> str:
        """What print(model) shows of this layer."""
        return f"experts={self.experts}, rank={self.rank}"


def _stacked(x: Tensor, weights: Tensor, down: Tensor, up: Tensor, offset: Tensor | None) -> Tensor:
    """sum_e weights[n, e] (up[e] @ down[e] @ x[n] + offset[e]), two products over all experts."""
    experts, rank, _ = down.shape
    inner = F.linear(x, down.flatten(0, 1)).view(-1, experts, rank)  # (N, E, r)
    inner = (inner * weights.unsqueeze(2)).flatten(1)  # (N, E * r)
    update = inner @ up.transpose(1, 2).flatten(0, 1)
    return update if offset is None else torch.addmm(update, weights, offset)


class _Segments(torch.autograd.Function):
    """shared[n] + up[e] @ down[e] @ x[n] + offset[e] for e = expert of n, segment by segment.

    Writes into `shared`: it is a fresh activation whose own backward never needs its value.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shared: Tensor,
        x: Tensor,
        down: Tensor,
        up: Tensor,
        offset: Tensor | None,
        groups: Groups,
    ) -> Tensor:
        sorted_x = x if groups.order is None else x[groups.order]
        out = shared if groups.order is None else shared[groups.order]
        inner = x.new_zeros(x.shape[0], down.shape[1])
        spans = _spans(groups)
        for expert, start, stop in spans:
            rows = inner[start:stop]
            torch.mm(sorted_x[start:stop], down[expert].T, out=rows)
            out[start:stop].addmm_(rows, up[expert].T)
            if offset is not None:
                out[start:stop] += offset[expert]
        if groups.order is None:
            ctx.mark_dirty(shared)
        else:
            out = torch.empty_like(out).index_copy_(0, groups.order, out)
        ctx.save_for_backward(sorted_x, inner, down, up)
        ctx.groups, ctx.spans, ctx.offset = groups, spans, offset is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, down, up = ctx.saved_tensors
        groups, spans = ctx.groups, ctx.spans
        wants_x = ctx.needs_input_grad[1]
        wants_weights = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        g = grad if groups.order is None else grad[groups.order]
        dx = torch.zeros_like(x) if wants_x else None
        ddown, dup = (
            (torch.zeros_like(down), torch.zeros_like(up)) if wants_weights else (None, None)
        )
        doffset = g.new_zeros(up.shape[:2]) if ctx.offset and ctx.needs_input_grad[4] else None
        for expert, start, stop in spans:
            rows = g[start:stop]
            dinner = rows @ up[expert]
            if dx is not None:
                torch.mm(dinner, down[expert], out=dx[start:stop])
            if ddown is not None and dup is not None:
                torch.mm(dinner.T, x[start:stop], out=ddown[expert])
                torch.mm(rows.T, inner[start:stop], out=dup[expert])
            if doffset is not None:
                torch.sum(rows, 0, out=doffset[expert])
        if dx is not None and groups.order is not None:
            dx = torch.empty_like(dx).index_copy_(0, groups.order, dx)
        return grad, dx, ddown, dup, doffset, None


def _spans(groups: Groups) -> list[tuple[int, int, int]]:
    """(expert, start, stop) of every expert that has rows."""
    edges = groups.offsets.tolist()
    return [
        (segment - 1, edges[segment], edges[segment + 1])
        for segment in range(1, len(edges) - 1)
        if edges[segment] < edges[segment + 1]
    ]
