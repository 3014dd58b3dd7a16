"""MoE-MLoRA: experts trained each on its own domain, then a gate that mixes all of them.

Source: Yaggel, German and Ben Siman Tov, MoE-MLoRA for Multi-Domain CTR Prediction, 2025,
arXiv:2506.07563. Built from the paper's three phases; docs/decisions/0010-gates.md says where it
leaves room, and why the published code was no guide.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field as Bound
from pydantic import PositiveInt, model_validator

from loractr.adapters.attach import attach
from loractr.adapters.gate import (
    FieldsInRoute,
    Gate,
    GatedLinear,
    GateInput,
    GateStart,
    SharedGate,
)
from loractr.adapters.low_rank import LowRankLinear
from loractr.adapters.mlora import EXPERTS, Rank
from loractr.layers.embedding import Widths
from loractr.layers.linear import Linear
from loractr.method import Attached, Front, Network, OneDivision, regularised
from loractr.schema import Schema
from loractr.stage import Stage

GATES = ("*.gate.*",)
BACKBONE = ("*", *(f"!{glob}" for glob in (*EXPERTS, *GATES)))


class MoEMLoRA(OneDivision):
    """K experts per domain beside each target layer; a row gets a mixture of all of them.

        y[n] = W x[n] + b + sum_e g[n, e] * (up_e down_e x[n] + offset_e),   sum_e g[n, e] <= 1

    g is a softmax over the experts; with `gate_backbone` it is less than 1 in sum by what the
    backbone alone gets. An expert's own output is W x + b and its update, so weights that sum to 1
    mix the experts' outputs. Where a stage leaves the gate aside, a domain's first expert acts.
    """

    name: Literal["moe_mlora"]
    rank: Rank = Rank(divisor=16)
    """Rank of each expert, as in MLoRA; the paper says "identical conditions"."""
    targets: tuple[str, ...] = ("tower.*",)
    """Globs over the backbone's layers; the authors adapt the deep tower only."""
    experts_per_domain: PositiveInt = 1
    """K: experts that each domain trains, alike but for initial weights and order of rows. The
    paper's default is 1, its ablation goes to 4."""
    gate_input: GateInput = "domain"
    """What the gate looks at. domain: nothing else, as the published code does. fields: also the
    row's embedded fields. hidden: also the input of the layer."""
    gate_scope: Literal["shared", "layer"] = "shared"
    """shared: one gate for all layers, as the published code has. layer: one for each."""
    gate_sizes: tuple[PositiveInt, ...] = ()
    """Hidden layers of the gate, on what it looks at besides the domain."""
    gate_backbone: bool = False
    """Whether the gate may also choose the backbone alone. The paper speaks of weights of
    "backbone and experts"; its code adds the backbone outside the gate."""
    gate_start: GateStart = "uniform"
    """uniform: equal weights. own: 0.9 for the experts of the row's own domain together."""
    top_k: Annotated[int, Bound(ge=2)] | None = None
    """A row is mixed from the k experts of the largest weights, at least 2: one alone has weight 1
    whatever the gate says. From all when absent, as in the paper. With a uniform start all are
    equal, and the first k begin: start with own."""
    recipe: Literal["paper", "tuned"] = "paper"
    """tuned: dropout on the input and the hidden layers and a moving average of the weights while
    experts and gate train, where `training` says nothing else about them."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.gate_input == "hidden" and self.gate_scope == "shared":
            raise ValueError(
                "gate_input: hidden is the input of a layer, and gate_scope: shared has one gate"
                " for all layers; use gate_scope: layer"
            )
        if self.gate_sizes and self.gate_input == "domain":
            raise ValueError(
                "gate_sizes are hidden layers on what the gate looks at besides the domain, which"
                " is nothing; use gate_input: fields or hidden, or leave gate_sizes out"
            )
        return self

    def front(self, widths: Widths, schema: Schema, generator: torch.Generator) -> Front | None:
        """The shared gate, or what shows the fields to the gates of layers."""
        if self.gate_scope == "shared":
            context = widths.flat if self.gate_input == "fields" else 0
            return SharedGate(widths, self._gate(schema, context, generator))
        return FieldsInRoute(widths) if self.gate_input == "fields" else None

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """One bank of K D experts beside every target layer, with or without a gate of its own."""
        places: list[str] = []
        experts = self._domains(schema) * self.experts_per_domain
        fields = 0 if network.front is None else network.front.widths.flat
        # of a generator of its own, so that the experts begin alike under every gate
        aside = torch.Generator().manual_seed(generator.initial_seed() + 1)

        def wrap(name: str, layer: Linear) -> LowRankLinear:
            rank = self.rank.of(name, layer, len(places))
            places.append(name)
            if self.gate_scope == "shared":
                return LowRankLinear(layer, experts=experts, rank=rank, generator=generator)
            context = {"domain": 0, "fields": fields, "hidden": layer.in_features}[self.gate_input]
            return GatedLinear(
                layer,
                self._gate(schema, context, aside),
                experts=experts,
                rank=rank,
                reads=self.gate_input,
                generator=generator,
            )

        attach(network.backbone, self.targets, wrap)
        self.rank.check(places)
        return Attached((self.natural(schema),))

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """pretrain: the backbone alone. experts: each by itself, all else frozen. gate: the gate
        alone, on all rows."""
        more = {} if self.recipe == "paper" else regularised(base)
        experts = {"independent": True, "experts_per_domain": self.experts_per_domain}
        return (
            base.model_copy(update={"name": "pretrain", "trains": BACKBONE, "route": "none"}),
            base.model_copy(update={"name": "experts", "trains": EXPERTS, **experts, **more}),
            base.model_copy(update={"name": "gate", "trains": GATES, "route": "mixed", **more}),
        )

    def _domains(self, schema: Schema) -> int:
        return len(schema.division(self.natural(schema)).domains)

    def _gate(self, schema: Schema, context: int, generator: torch.Generator) -> Gate:
        return Gate(
            self._domains(schema),
            self.experts_per_domain,
            context=context,
            sizes=self.gate_sizes,
            backbone=self.gate_backbone,
            start=self.gate_start,
            top_k=self.top_k,
            generator=generator,
        )
