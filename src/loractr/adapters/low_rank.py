"""The bank of low-rank experts that stands beside a shared linear layer.

For hard routes, rows go to their own experts only. For soft routes, and in exported graphs, all
experts are computed, weighted and summed: no loop, but a cost that grows with them.
"""

import torch
from torch import Tensor, nn

from loractr.adapters.products import Routed, Weighted, extended, stacked
from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.custom import custom
from loractr.layers.dropout import Rectifier
from loractr.layers.grouped import grouped_linear, grouped_sum, one_hot
from loractr.layers.linear import Linear
from loractr.layers.lookup import ByRows, Touched, look_up_slices
from loractr.layers.one_pass import Experts, in_one_pass

EXPERT_PARAMETERS = ("down", "up", "row_scale", "offset")
"""Names of a bank's parameters; their first axis is the expert."""


class Bank(ByRows):
    """E low-rank experts for a linear layer in -> out, without the layer.

        update[n] = row_scale[e] * (up[e] @ down[e] @ x[n]) + offset[e]        e: the row's expert

    `up` and `offset` start at zero: a fresh bank updates nothing.

    Args:
        like: The layer; its widths, type and device are taken.
        experts: Number of experts, E >= 1.
        rank: Rank of each expert, 1 <= rank <= out. Beyond `in` it adds weights but no function;
            the papers' divisor rule makes such ranks on narrow inputs, so it is allowed.
        row_scale: One more factor per expert and output, drawn from N(0, 1) (MultiLoRA's s).
        offset: One more bias per expert and output, zero at the start (MLoRA's c, MultiLoRA's b).
        generator: Source of the random initial weights.

    Weights:
        down (E, r, in), Glorot normal per expert (fans in and r); up (E, out, r), zero;
        row_scale (E, out); offset (E, out).

    Raises: AdapterError (a ValueError): `experts` or `rank` is out of range.
    """

    row_scale: nn.Parameter | None
    offset: nn.Parameter | None

    def __init__(
        self,
        like: Linear,
        *,
        experts: int,
        rank: int,
        row_scale: bool = False,
        offset: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        wide, tall = like.in_features, like.out_features
        if experts < 1:
            raise AdapterError(f"a bank needs 1 or more experts, not {experts}.")
        if not 1 <= rank <= tall:
            raise AdapterError(
                f"rank {rank} does not fit a layer {wide} -> {tall}: 1 <= rank <= {tall}.",
                fix="choose a smaller rank.",
            )
        new = like.weight.detach()
        self.down = nn.Parameter(new.new_empty(experts, rank, wide))
        self.up = nn.Parameter(new.new_zeros(experts, tall, rank))
        self.row_scale = nn.Parameter(new.new_empty(experts, tall)) if row_scale else None
        self.offset = nn.Parameter(new.new_zeros(experts, tall)) if offset else None
        with torch.no_grad():
            self.down.normal_(std=(2.0 / (wide + rank)) ** 0.5, generator=generator)
            if self.row_scale is not None:
                self.row_scale.normal_(generator=generator)

    @property
    def experts(self) -> int:
        """Number of experts, E."""
        return self.down.shape[0]

    @property
    def rank(self) -> int:
        """Rank of each expert."""
        return self.down.shape[1]

    def scaled_up(self) -> Tensor:
        """`up` with the row scale in it, (E, out, r)."""
        return _scaled(self.up, self.row_scale)

    def acting(self, groups: Groups) -> Experts:
        """The experts of some rows: all, or, where gradients go by rows, those that have rows."""
        self.check(groups.offsets.shape[0] - 2, "rows of {} experts")
        if not self._by_rows():
            return Experts(*self._whole(), groups)
        present, groups = groups.present
        return Experts(*self._read_all(present), groups)

    def _by_rows(self) -> bool:
        if not self.row_gradients or torch.compiler.is_compiling():
            return False
        return torch.is_grad_enabled()

    def _whole(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.down, self.scaled_up(), self.offset

    def _read_all(self, experts: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """down, up and offset of `experts` (A,), rising."""
        touched = Touched.once(experts)
        down, up = self._read("down", self.down, touched), self._read("up", self.up, touched)
        scale, offset = (
            None if weight is None else self._read(name, weight, touched)
            for name, weight in (("row_scale", self.row_scale), ("offset", self.offset))
        )
        return down, _scaled(up, scale), offset

    def _read(self, name: str, weight: Tensor, touched: Touched) -> Tensor:
        gradient = self.row_gradients.get(name)
        if gradient is None:
            return weight.index_select(0, touched.rows)
        return look_up_slices(weight, touched, gradient)

    def routed(
        self, base: Linear, x: Tensor, groups: Groups, ending: Rectifier | None = None
    ) -> Tensor:
        """base(x) plus each row's own expert's update, and its ending if it has one.

        Shapes: x (N, in), or (N, M, in), with groups of N rows.
        """
        if x.dim() == 3:
            rows = groups.repeated(x.shape[1])
            y = self.routed(base, x.flatten(0, 1), rows, ending)
            return y.view(*x.shape[:2], base.out_features)
        experts = self.acting(groups)
        if base.plain:
            whole = in_one_pass(x, base.weight, base.bias, experts, ending)
            if whole is not None:
                return whole
        y = self._sum(base, x, experts)
        return y if ending is None else ending(y)

    def _sum(self, base: Linear, x: Tensor, experts: Experts) -> Tensor:
        down, up, offset, groups = experts
        if torch.compiler.is_exporting():
            hot = one_hot(groups, self.experts, x.dtype)
            shared: Tensor = base(x)
            return shared + stacked(x, hot, down, up, offset)
        if base.plain and not torch.compiler.is_compiling():
            return custom(Routed, x, base.weight, base.bias, down, up, offset, groups)
        inner, up = extended(grouped_linear(x, down, groups), up, offset)
        return grouped_sum(base(x), [(inner, up, groups)])

    def weighted(self, base: Linear, x: Tensor, weights: Tensor) -> Tensor:
        """base(x) plus the updates of all experts, weighted by `weights` (N, E).

        Shapes: x (N, in), or (N, M, in).
        """
        self.check(weights.shape[1], "weights for {} experts", exact=True)
        if x.dim() == 3:
            rows = weights.repeat_interleave(x.shape[1], 0)
            y = self.weighted(base, x.flatten(0, 1), rows)
            return y.view(*x.shape[:2], base.out_features)
        if self._by_rows():
            down, up, offset = self._read_all(torch.arange(self.experts, device=x.device))
        else:
            down, up, offset = self._whole()
        if base.plain and not torch.compiler.is_compiling():
            return custom(Weighted, x, base.weight, base.bias, weights, down, up, offset)
        shared: Tensor = base(x)
        return shared + stacked(x, weights, down, up, offset)

    def check(self, experts: int, what: str, *, exact: bool = False) -> None:
        """Raises AdapterError when a route has more experts than the bank, or not its number."""
        if experts > self.experts or (exact and experts < self.experts):
            raise AdapterError(
                f"the route has {what.format(experts)}, this bank has {self.experts}."
            )

    def extra_repr(self) -> str:
        """What print(model) shows of this bank."""
        return f"experts={self.experts}, rank={self.rank}"


class LowRankLinear(Bank):
    """A shared linear layer plus E low-rank experts, routed or mixed row by row.

        y[n] = base(x[n]) + sum_e w[n, e] * (row_scale[e] * (up[e] @ down[e] @ x[n]) + offset[e])

    A hard route has w[n, e] = 1 for the row's own expert and 0 elsewhere; a row without one
    (-1) gets base(x) alone. A soft route brings w itself. A new layer computes what `base` does, to
    rounding: the order of the sums may be another.

    Args:
        base: Layer to adapt. Kept by reference, not copied.
        experts, rank, row_scale, offset, generator: As `Bank`, whose weights it has.

    Shapes: x (N, in) -> (N, out), or (N, M, in) -> (N, M, out), rows routed by the first axis.
    Raises: AdapterError (a ValueError): `experts` or `rank` is out of range; at call, a route that
        names an expert that the bank does not have, or soft weights for another number of experts.
    Source: Yang et al., MLoRA, RecSys 2024, doi:10.1145/3640457.3688134 (no row scale);
        Song et al., MultiLoRA, CIKM 2024, eq. 7-8 (row scale and offset).
    """

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
        super().__init__(
            base,
            experts=experts,
            rank=rank,
            row_scale=row_scale,
            offset=offset,
            generator=generator,
        )
        self.base = base

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base.out_features

    def forward(
        self, x: Tensor, route: Route | None = None, ending: Rectifier | None = None
    ) -> Tensor:
        """x and a route with one acting division, or soft weights -> y, with its ending if any."""
        if route is not None and route.weights is not None:
            y = self.weighted(self.base, x, route.weights)
            return y if ending is None else ending(y)
        if route is not None and route.divisions:
            return self.routed(self.base, x, route.acting()[1], ending)
        shared: Tensor = self.base(x, route, ending)
        return shared


def _scaled(up: Tensor, row_scale: Tensor | None) -> Tensor:
    return up if row_scale is None else up * row_scale.unsqueeze(-1)
