"""HAMUR: adapters after the last hidden layers, whose core a hyper-network makes for each row.

Source: Li et al., HAMUR: Hyper Adapter for Multi-Domain Recommendation, CIKM 2023,
doi:10.1145/3583780.3615137.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field as Bound
from pydantic import PositiveInt
from torch import Tensor, nn

from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.domain import DomainBlock, DomainLinear, groups_of
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP, Block
from loractr.layers.norm import NormBank
from loractr.method import Attached, Network, TrainedOnAllRows
from loractr.schema import Schema


class HAMUR(TrainedOnAllRows):
    """Adapters in the deep tower: their core I(x), k x k, comes from a network all domains share.

        A(h) = DN(sigmoid(h W_down + b_1) W_up + b_2) + h
        W_down = U_1 I(x) V_1,  W_up = U_2 I(x) V_2,  I(x) = reshape(MLP(x), k x k)

    Here x is the tower's input, and h a hidden layer's output. U, V, b and the norm DN, statistics
    included, are the domain's own; so are the towers and the output layer, with `towers: domain`.
    A row of no domain goes through the mean of the domains' weights and statistics. Norm and
    dropout of the tower's layers are the hyper-network's too.
    """

    name: Literal["hamur"]
    adapters: PositiveInt = 1
    """How many hidden layers, from the last one back, have an adapter after them."""
    k: PositiveInt = 35
    """Side of the core."""
    width: PositiveInt = 32
    """Width of an adapter's inside."""
    hyper_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (64,)
    """Hidden widths of the hyper-network."""
    towers: Literal["domain", "shared"] = "domain"
    """domain: a tower and an output layer for each domain, as in the paper's MLP. shared: one of
    each for all, as beside its wide and cross networks."""

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """Replace the tower; with `towers: domain` the head too.

        Raises:
            AdapterError: there are more adapters than hidden layers.
        """
        division = self.natural(schema)
        domains = len(schema.division(division).domains)
        backbone, tower = network.backbone, network.backbone.tower
        assert isinstance(tower, MLP)
        backbone.tower = HyperTower(
            tower,
            domains,
            adapters=self.adapters,
            core=self.k,
            width=self.width,
            hyper_sizes=self.hyper_sizes,
            per_domain=self.towers == "domain",
            generator=generator,
        )
        if self.towers == "domain":
            network.head = DomainLinear(backbone.out_features, 1, domains, generator=generator)
        return Attached((division,))


class HyperNetwork(nn.Module):
    """I(x) = reshape(MLP(x), k x k): the core that all adapters of a row share.

    Its last layer has no norm and no activation, unlike the authors': a core may have negative
    entries.

    Args:
        plain: The tower beside it: the width of x, dropout and norms of the hidden layers.
        core: Its side k.
        hidden_sizes: Widths of the hidden layers.
        generator: Source of the initial weights.

    Shapes: x (N, in) → (N, k, k).
    """

    def __init__(
        self,
        plain: MLP,
        core: int,
        *,
        hidden_sizes: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.core = core
        self.hidden = MLP(
            plain.in_features,
            hidden_sizes,
            dropout=plain.dropout,
            batch_norm=plain.batch_norm,
            dropout_position=plain.dropout_position,
            generator=generator,
        )
        self.out = Linear(self.hidden.out_features, core * core, generator=generator)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """One core a row."""
        flat: Tensor = self.out(self.hidden(x, route), route)
        return flat.view(-1, self.core, self.core)


class HyperAdapter(nn.Module):
    """A(h) = DN(sigmoid(h U_1 I V_1 + b_1) U_2 I V_2 + b_2) + h, all but I of the row's own domain.

    A fresh one has Glorot normal U and V and b = 0: all-ones ones, as the authors have them, would
    make every product of rank 1. The domain norm has weights, biases and statistics per domain; in
    evaluation these are the running ones.

    Args:
        features: Width of h.
        width: Width of the inside.
        core: Side k of I.
        domains: Number of domains D.
        generator: Source of the initial weights.

    Shapes: h (N, H), core (N, k, k) → (N, H); U_1 (D, k, H), V_1 (D, width, k), U_2 (D, k, width),
        V_2 (D, H, k), transposed.
    Cost: ((h U) I) V, row by row: no matrix H x width is ever made.
    """

    def __init__(
        self,
        features: int,
        width: int,
        core: int,
        domains: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.domains = domains
        self.down_u = DomainLinear(features, core, domains, bias=False, generator=generator)
        self.down_v = DomainLinear(core, width, domains, generator=generator)
        self.up_u = DomainLinear(width, core, domains, bias=False, generator=generator)
        self.up_v = DomainLinear(core, features, domains, generator=generator)
        self.norm = NormBank(features, domains)

    def forward(self, h: Tensor, core: Tensor, route: Route) -> Tensor:
        """The layer's output with the adapter's added."""
        inside = self.down_v(_through(self.down_u(h, route), core), route).sigmoid()
        update = self.up_v(_through(self.up_u(inside, route), core), route)
        groups: Groups = groups_of(route, h, self.domains)
        normed: Tensor = self.norm(update, groups, self.norm.average())
        return normed + h


class HyperTower(nn.Module):
    """Hidden layers, per domain or shared, with an adapter after each of the last few.

    Args:
        plain: The tower in whose place it stands: its widths, dropout and norms.
        domains: Number of domains D.
        adapters: How many of the last hidden layers have an adapter.
        core: Side k of the hyper-network's core.
        width: Width of the adapters' inside.
        hyper_sizes: Hidden widths of the hyper-network.
        per_domain: Whether each domain has layers of its own.
        generator: Source of the initial weights.

    Shapes: x (N, in) → (N, out), as the plain tower.
    Raises: AdapterError: more adapters than hidden layers.
    """

    def __init__(
        self,
        plain: MLP,
        domains: int,
        *,
        adapters: int,
        core: int,
        width: int,
        hyper_sizes: Sequence[int],
        per_domain: bool,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        blocks = [block for block in plain.children() if isinstance(block, Block)]
        if adapters > len(blocks):
            raise AdapterError(
                f"method.adapters is {adapters}, but the tower has {len(blocks)} hidden layers.",
                fix=f"use at most {len(blocks)}, or more layers in model.hidden_sizes.",
            )
        self.blocks = nn.ModuleList(
            _per_domain(plain, block, domains, generator) if per_domain else block
            for block in blocks
        )
        self.hyper = HyperNetwork(plain, core, hidden_sizes=hyper_sizes, generator=generator)
        self.adapters = nn.ModuleList(
            HyperAdapter(block.linear.out_features, width, core, domains, generator=generator)
            for block in blocks[-adapters:]
        )
        self.in_features = plain.in_features
        self.out_features = plain.out_features

    def forward(self, x: Tensor, route: Route) -> Tensor:
        """The last adapter's output."""
        core = self.hyper(x, route)
        h, plain = x, len(self.blocks) - len(self.adapters)
        for place, block in enumerate(self.blocks):
            h = block(h, route)
            if place >= plain:
                h = self.adapters[place - plain](h, core, route)
        return h


def _through(x: Tensor, core: Tensor) -> Tensor:
    """x[n] I[n]: (N, k) and (N, k, k) → (N, k)."""
    return torch.bmm(x.unsqueeze(1), core).squeeze(1)


def _per_domain(
    plain: MLP, block: Block, domains: int, generator: torch.Generator | None
) -> DomainBlock:
    """A fresh layer like one of the plain tower's, for each domain its own."""
    return DomainBlock(
        block.linear.in_features,
        block.linear.out_features,
        domains,
        dropout=plain.dropout,
        batch_norm=plain.batch_norm,
        dropout_position=plain.dropout_position,
        generator=generator,
    )
