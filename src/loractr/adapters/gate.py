"""Gates: how much of every expert a row gets, one gate for all layers or one for each.

A gate may look at the row's domain alone; then a domain has one set of weights, and all experts can
be folded into plain weights for it. Or it looks at more, and every row has weights of its own.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractr.adapters.low_rank import LowRankLinear
from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.dropout import Rectifier
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.grouped import look_up
from loractr.layers.linear import Linear
from loractr.method import Front

GateInput = Literal["domain", "fields", "hidden"]
GateStart = Literal["uniform", "own"]

OWN_SHARE = 0.9
"""What a domain's own experts get together from a gate that starts with them."""


class Gate(nn.Module):
    """Weights of all experts for each row, from its domain and what else the gate is shown.

        logits[n]  = table[d] + out f(context[n])        d: the row's domain
        weights[n] = softmax(logits[n])

    f is the identity, or hidden layers of Glorot normal weights and ReLU. `out` starts at zero, so
    that a fresh gate is its table: equal weights for all (`uniform`), or 0.9 shared by the experts
    of the row's own domain and 0.1 by all others (`own`). Expert e belongs to domain e mod D. Rows
    of no domain (-1) have zero weights: for them the backbone acts alone.

    With `backbone` the softmax has one option more, the first, which is no expert: what it gets is
    taken from the experts, so that their weights sum to less than 1. It starts as the others do.

    Args:
        domains: Number of domains D >= 1.
        experts_per_domain: K >= 1; there are E = K D experts.
        context: Width C of what the gate is shown besides the domain; 0 for nothing.
        sizes: Widths of hidden layers on the context.
        backbone: Whether the backbone alone is an option.
        start: Where the table starts.
        top_k: Keep a row's k largest logits, 2 <= k <= E, the first ones where some are equal; the
            softmax is over those, and all others have weight 0. It is a constraint, not a saving:
            all experts are computed. (One alone would have weight 1 whatever its logit: a gate
            that cannot learn.)
        generator: Source of the hidden layers' initial weights.

    Shapes: groups of N rows, context (N, C) -> (N, E); table (D, O), out (O, C or the last size), O
        options: E, or E + 1 with `backbone`.
    Raises: AdapterError (a ValueError): `top_k` is out of range; at call, a route with more domains
        than the table, or a context of another width.
    """

    def __init__(
        self,
        domains: int,
        experts_per_domain: int = 1,
        *,
        context: int = 0,
        sizes: Sequence[int] = (),
        backbone: bool = False,
        start: GateStart = "uniform",
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        experts = domains * experts_per_domain
        if top_k is not None and not 2 <= top_k <= experts:
            raise AdapterError(
                f"top_k {top_k} does not fit a gate over {experts} experts:"
                f" 2 <= top_k <= {experts}.",
                fix="choose another method.top_k, or leave it out for all experts.",
            )
        self.experts, self.context = experts, context
        self.backbone, self.top_k = backbone, top_k
        options = experts + backbone
        self.table = nn.Parameter(torch.zeros(domains, options))
        widths = (context, *sizes)
        self.hidden = nn.ModuleList(
            Linear(before, after, generator=generator) for before, after in pairwise(widths)
        )
        self.out = nn.Parameter(torch.zeros(options, widths[-1])) if context else None
        if start == "own" and options > experts_per_domain:
            self._prefer_own(experts_per_domain)

    def forward(self, groups: Groups, context: Tensor | None = None) -> Tensor:
        """Weights (N, E) of rows in the groups of their domains."""
        self._check(groups, context)
        if self.out is None or context is None:
            return look_up(self._weights(self.table), groups)
        for layer in self.hidden:
            context = F.relu(layer(context))
        logits = look_up(self.table, groups) + F.linear(context, self.out)
        return self._weights(logits) * (groups.expert >= 0).unsqueeze(1)

    def of_domains(self) -> Tensor:
        """Weights (D, E) of all rows of each domain.

        Raises:
            AdapterError: the gate looks at more than the domain, so that there are no such weights.
        """
        if self.out is not None:
            raise AdapterError(
                f"this gate looks at {self.context} values of a row besides its domain: rows of one"
                " domain have different weights, and no plain layer scores them all.",
                fix="score with the route, or train with method.gate_input: domain.",
            )
        return self._weights(self.table.detach())

    def _weights(self, logits: Tensor) -> Tensor:
        """Softmax over a row's options, of which the backbone's is left out."""
        if self.top_k is not None:
            logits = logits.masked_fill(~_largest(logits, self.top_k), float("-inf"))
        weights = torch.softmax(logits, 1)
        return weights[:, 1:] if self.backbone else weights

    def _prefer_own(self, experts_per_domain: int) -> None:
        """A table whose softmax gives each domain's own experts OWN_SHARE."""
        domains, options = self.table.shape
        rest = (1 - OWN_SHARE) / (options - experts_per_domain)
        shares = self.table.new_full((domains, options), rest)
        experts = shares[:, 1:] if self.backbone else shares
        own = torch.arange(self.experts) % domains == torch.arange(domains)[:, None]
        experts[own] = OWN_SHARE / experts_per_domain
        with torch.no_grad():
            self.table.copy_(shares.log())

    def _check(self, groups: Groups, context: Tensor | None) -> None:
        domains = groups.offsets.shape[0] - 2
        if domains > len(self.table):
            raise AdapterError(
                f"the route has rows of {domains} domains, this gate knows {len(self.table)}."
            )
        given = 0 if context is None else context.shape[1]
        if given != self.context:
            raise AdapterError(
                f"this gate looks at {self.context} values of a row besides its domain, not at"
                f" {given}."
            )

    def extra_repr(self) -> str:
        """What print(model) shows of this gate."""
        domains, _ = self.table.shape
        sizes = f"domains={domains}, experts={self.experts}, context={self.context}"
        return f"{sizes}, backbone={self.backbone}, top_k={self.top_k}"


def _largest(logits: Tensor, k: int) -> Tensor:
    """Whether a value is among its row's k largest, the first of equal ones: a stable sort's
    choice, without one, which ONNX does not have."""
    last = logits.topk(k, dim=1).values[:, -1:]
    above, equal = logits > last, logits == last
    places = k - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= places))


class GatedLinear(LowRankLinear):
    """A `LowRankLinear` with a gate of its own, which acts where the route says that mixers do.

        y[n] = base(x[n]) + sum_e g[n, e] * (up[e] @ down[e] @ x[n] + offset[e])

    with g the gate's weights, from the first division's domains. Elsewhere it is as any other.

    Args:
        base: Layer to adapt. Kept by reference, not copied.
        gate: Gives the weights of as many experts.
        reads: What the gate is shown besides the domain: nothing, the route's context, or x (of
            x (N, M, in) the mean over M).
        experts, rank, generator: As `Bank`.

    Shapes: x (N, in) -> (N, out), or (N, M, in) -> (N, M, out).
    Raises: AdapterError: as `LowRankLinear`; the gate is for another number of experts; at call,
        as `Gate`, or a route without the context that the gate reads.
    """

    def __init__(
        self,
        base: Linear,
        gate: Gate,
        *,
        experts: int,
        rank: int,
        reads: GateInput = "domain",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, experts=experts, rank=rank, generator=generator)
        self.check(gate.experts, "a gate over {} experts", exact=True)
        self.gate = gate.to(base.weight)
        self.reads = reads

    def forward(
        self, x: Tensor, route: Route | None = None, ending: Rectifier | None = None
    ) -> Tensor:
        """Where mixers act, the base and all experts weighted by the gate."""
        if route is None or route.cell is None:
            return super().forward(x, route, ending)
        context: Tensor | None = None
        if self.reads == "hidden":
            context = x.mean(1) if x.dim() == 3 else x
        elif self.reads == "fields":
            context = route.context
        y = self.weighted(self.base, x, self.gate(route.acting()[1], context))
        return y if ending is None else ending(y)


class SharedGate(Front):
    """One gate for all layers: where mixers act, it writes their weights into the route.

    Args:
        widths: What an embedded row holds; it stays as it is.
        gate: Shown the domain, or also all embedded fields side by side (`widths.flat` values).
    """

    mixes = True

    def __init__(self, widths: Widths, gate: Gate) -> None:
        super().__init__()
        self.widths = widths
        self.gate = gate

    def forward(self, features: Embedded, route: Route) -> tuple[Embedded, Route]:
        """The features as they came, the route with soft weights (N, E)."""
        if route.cell is None:
            return features, route
        context = features.flat() if self.gate.context else None
        weights = self.gate(route.acting()[1], context)
        return features, Route(route.divisions, route.cell, weights)


class FieldsInRoute(Front):
    """Shows the embedded fields, side by side, to the gates of all layers, where mixers act.

    Args:
        widths: What an embedded row holds; it stays as it is.
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.widths = widths

    def forward(self, features: Embedded, route: Route) -> tuple[Embedded, Route]:
        """The features as they came, the route with a context (N, `widths.flat`)."""
        if route.cell is None:
            return features, route
        return features, Route(route.divisions, route.cell, context=features.flat())


def domain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name of each gated layer -> (D, E), what all rows of each domain get of every expert; empty
    for a model without a gate.

    Raises:
        AdapterError: a gate looks at more than the domain, so that there are no such weights.
    """
    shared = [module.gate for module in model.modules() if isinstance(module, SharedGate)]
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, GatedLinear):
            found[name] = layer.gate.of_domains()
        elif isinstance(layer, LowRankLinear) and shared:
            found[name] = shared[0].of_domains()
    return found


def mixture_of(model: nn.Module, domain: int) -> dict[str, Tensor]:
    """Name of each gated layer -> (E,), what all rows of one domain get of every expert.

    Raises:
        AdapterError: as `domain_weights`; a gate knows no such domain.
    """
    weights = domain_weights(model)
    for name, rows in weights.items():
        if not 0 <= domain < len(rows):
            raise AdapterError(
                f"the gate of {name!r} knows no domain {domain}; it knows 0 to {len(rows) - 1}.",
                fix="use detach for the backbone alone, which is what rows of no domain get.",
            )
    return {name: rows[domain] for name, rows in weights.items()}
