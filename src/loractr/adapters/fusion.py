"""A linear layer with a bank of experts per division, and what mixes a row's experts.

Mixers give weights, never outputs: they read each expert's update in its low-rank form, so that no
expert's own output is ever formed.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from loractr.adapters.low_rank import Bank
from loractr.adapters.products import entered, extended
from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.dropout import Rectifier
from loractr.layers.grouped import grouped_linear, grouped_sum
from loractr.layers.linear import Linear
from loractr.layers.one_pass import Experts


class Own(NamedTuple):
    """The rows' own experts of one division, as far as a mixer needs them."""

    inner: Tensor  # (N, r), down[e] @ x
    experts: Experts


class Mixer(nn.Module, ABC):
    """Weights of a row's own experts, one per division; 0 where it has none."""

    @abstractmethod
    def forward(self, shared: Tensor, own: Sequence[Own]) -> Tensor:
        """Weights (N, V) from h0 = `shared` (N, out) and the rows' experts of V divisions."""


class Sum(Mixer):
    """h0 + Σ_v h_v: MultiLoRA-add (Song et al., CIKM 2024, section 4.4)."""

    def forward(self, shared: Tensor, own: Sequence[Own]) -> Tensor:
        """One for each expert that there is."""
        return _present(own).to(shared.dtype)


class Mean(Mixer):
    """h0 + mean_v h_v over the divisions in which the row has a domain: MultiLoRA-avg."""

    def forward(self, shared: Tensor, own: Sequence[Own]) -> Tensor:
        """Equal shares."""
        present = _present(own).to(shared.dtype)
        return present / present.sum(1, keepdim=True).clamp(min=1)


class Fusion(Mixer):
    """Attention of the shared output over the row's experts.

        q = W_Q h0,   k_v = W_K h_v,   w = softmax_v(⟨q, k_v⟩ / √r)

    over the divisions in which the row has a domain. h_v = U_e z_v + b_e enters through products of
    rank size only, k_v = (W_K U_e) z_v + W_K b_e with z_v = D_e x: exact, and h_v is never formed.

    Args:
        features: Width of h0 and of the updates.
        rank: Width r of queries and keys.
        generator: Source of the Glorot normal weights; scores then start near zero, weights near
            equal.

    Source: Song et al., MultiLoRA, CIKM 2024, eq. 10. W_Q and W_K map outputs to rank r, as the
        equation needs; the counts of the paper's Table 7 take the layer's input width instead.
    """

    def __init__(
        self, features: int, rank: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.query = Linear(features, rank, bias=False, generator=generator)
        self.key = Linear(features, rank, bias=False, generator=generator)

    def forward(self, shared: Tensor, own: Sequence[Own]) -> Tensor:
        """Softmax over the experts that there are."""
        query = self.query(shared)
        keys = [self._keys(one) for one in own]
        scores = torch.stack([(query * key).sum(1) for key in keys], 1) / query.shape[1] ** 0.5
        present = _present(own)
        some = present.any(1, keepdim=True)
        scores = scores.masked_fill(some & ~present, float("-inf"))
        return torch.softmax(scores, 1) * some

    def _keys(self, own: Own) -> Tensor:
        """W_K h of each row's own expert, (N, r)."""
        weight = self.key.weight
        return grouped_linear(*_with_offset(own, weight), own.experts.groups)


class FusedLinear(nn.Module):
    """A shared linear layer, a bank of experts per division, and a mixer.

        y[n] = base(x[n]) + Σ_v w[n, v] update_v[n],      update_v: what `Bank` says, division v

    Where mixers act (`route.cell` is there), w is the mixer's. Otherwise the one division acts that
    the route has groups for, with weight 1; without any, the base alone.

    Args:
        base: Layer to adapt. Kept by reference, not copied.
        banks: One bank per division, in the order of the route.
        mixer: Gives the weights.

    Shapes: x (N, in) → (N, out), or (N, M, in) → (N, M, out), rows routed by the first axis.
    Raises: AdapterError: no bank; at call, a route with another number of divisions.
    Source: Song et al., MultiLoRA, CIKM 2024, eq. 7-8 and 10.
    """

    def __init__(self, base: Linear, banks: Sequence[Bank], mixer: Mixer) -> None:
        super().__init__()
        if not banks:
            raise AdapterError("a fused layer needs one bank of experts per division, not none.")
        self.base = base
        self.banks = nn.ModuleList(banks)
        self.mixer = mixer

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base.out_features

    def bank(self, place: int) -> Bank:
        """The bank of one division."""
        bank = self.banks[place]
        assert isinstance(bank, Bank)
        return bank

    def forward(
        self, x: Tensor, route: Route | None = None, ending: Rectifier | None = None
    ) -> Tensor:
        """The shared output and what the route's experts add to it, with its ending if any."""
        if route is not None and route.divisions and route.cell is None:
            place, groups = route.acting()
            return self.bank(place).routed(self.base, x, groups, ending)
        if route is None or not route.divisions:
            shared: Tensor = self.base(x, route, ending)
            return shared
        y = self._all(x, route)
        return y if ending is None else ending(y)

    def _all(self, x: Tensor, route: Route) -> Tensor:
        groups_of = [groups for groups in route.divisions if groups is not None]
        if len(groups_of) != len(self.banks):
            raise AdapterError(
                f"the route has {len(groups_of)} divisions, this layer has {len(self.banks)}."
            )
        if x.dim() == 3:
            groups_of = [groups.repeated(x.shape[1]) for groups in groups_of]
            y = self._mixed(x.flatten(0, 1), groups_of)
            return y.view(*x.shape[:2], self.out_features)
        return self._mixed(x, groups_of)

    def _mixed(self, x: Tensor, groups: Sequence[Groups]) -> Tensor:
        experts = [self.bank(place).acting(rows) for place, rows in enumerate(groups)]
        shared, inner = self._entered(x, experts)
        own = [Own(z, one) for z, one in zip(inner, experts, strict=True)]
        weights = self.mixer(shared, own).unbind(1)
        terms = []
        for one, weight in zip(own, weights, strict=True):
            z, up = _with_offset(one)
            terms.append((weight[:, None] * z, up, one.experts.groups))
        return grouped_sum(shared, terms)

    def _entered(self, x: Tensor, experts: Sequence[Experts]) -> tuple[Tensor, list[Tensor]]:
        """base(x), and x in the low rank of each row's experts."""
        base = self.base
        if base.plain and not torch.compiler.is_compiling():
            return entered(x, base.weight, base.bias, [(one.down, one.groups) for one in experts])
        return base(x), [grouped_linear(x, one.down, one.groups) for one in experts]


def _with_offset(own: Own, map_by: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """An expert's update as one product, see `extended`; or, with `map_by` M (k, out), M times it:
    (E, k, r + 1)."""
    inner, up = extended(own.inner, own.experts.up, own.experts.offset)
    return inner, up if map_by is None else map_by @ up


def _present(own: Sequence[Own]) -> Tensor:
    """Whether a row has an expert of each division, (N, V)."""
    return torch.stack([one.experts.groups.expert >= 0 for one in own], 1)
