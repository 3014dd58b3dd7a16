"""MLoRA: one low-rank expert per domain in the deep tower, trained jointly or after the backbone.

Source: Yang et al., MLoRA, RecSys 2024, doi:10.1145/3640457.3688134.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field as Bound
from pydantic import PositiveInt, model_validator

from loractr.adapters.attach import attach
from loractr.adapters.low_rank import EXPERT_PARAMETERS, LowRankLinear
from loractr.errors import AdapterError, some
from loractr.layers.linear import Linear
from loractr.method import Attached, Network, OneDivision
from loractr.schema import Record, Schema
from loractr.stage import Stage

EXPERTS = tuple(f"*.{name}" for name in EXPERT_PARAMETERS)
BACKBONE = ("*", *(f"!{glob}" for glob in EXPERTS))


class Rank(Record):
    """Rank of the experts: fixed, or following each layer's width."""

    fixed: PositiveInt | tuple[PositiveInt, ...] | None = None
    """One rank for all adapted layers, or one for each in the backbone's order."""
    divisor: Annotated[float, Bound(ge=1.0)] | None = None
    """max(int(out / divisor), 1) for a layer with `out` outputs (the authors' lora_reduce)."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.fixed is None) == (self.divisor is None):
            raise ValueError("give either fixed or divisor, e.g. {divisor: 32}")
        return self

    def of(self, name: str, layer: Linear, place: int) -> int:
        """Rank for `layer`, the `place`-th adapted one.

        Raises:
            AdapterError: a fixed rank larger than the layer, or too few ranks listed.
        """
        wide, tall = layer.in_features, layer.out_features
        if self.divisor is not None:
            return max(int(tall / self.divisor), 1)
        ranks = self.fixed if isinstance(self.fixed, tuple) else (self.fixed,) * (place + 1)
        if place >= len(ranks):
            raise AdapterError(
                f"rank.fixed lists {len(ranks)} ranks, but {name!r} is adapted layer {place + 1}.",
                fix="list one rank for each adapted layer, or give a single number.",
            )
        rank = ranks[place]
        assert rank is not None
        if rank > min(wide, tall):
            raise AdapterError(
                f"rank {rank} is larger than layer {name!r} ({wide} -> {tall}).",
                fix=f"use a rank of at most {min(wide, tall)}, or rank: {{divisor: …}}.",
            )
        return rank

    def check(self, layers: Sequence[str]) -> None:
        """Check that each of several fixed ranks has found its layer.

        Raises:
            AdapterError: more ranks listed than layers adapted.
        """
        if isinstance(self.fixed, tuple) and len(self.fixed) != len(layers):
            raise AdapterError(
                f"rank.fixed lists {len(self.fixed)} ranks, but {len(layers)} layers are adapted:"
                f" {some(layers)}.",
                fix="list one rank for each adapted layer, or give a single number.",
            )


class MLoRA(OneDivision):
    """One expert per domain beside each target layer: y = W x + b + up_d down_d x + offset_d."""

    name: Literal["mlora"]
    rank: Rank = Rank(divisor=16)
    """Rank of each expert; divisor 16 is the authors' most common setting."""
    targets: tuple[str, ...] = ("tower.*",)
    """Globs over the backbone's layers; the authors adapt the deep tower only."""
    row_scale: bool = False
    """A trained factor per output (MultiLoRA's s); MLoRA has none."""
    offset: bool = True
    """A trained bias per domain; MLoRA has it."""
    recipe: Literal["joint", "two_stage"] = "joint"
    """joint: all from scratch. two_stage: the backbone first, then experts on a frozen backbone."""

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """One bank of experts, an expert per domain, beside every target layer."""
        division = self.natural(schema)
        places: list[str] = []

        def wrap(name: str, layer: Linear) -> LowRankLinear:
            rank = self.rank.of(name, layer, len(places))
            places.append(name)
            return LowRankLinear(
                layer,
                experts=len(schema.division(division).domains),
                rank=rank,
                row_scale=self.row_scale,
                offset=self.offset,
                generator=generator,
            )

        attach(network.backbone, self.targets, wrap)
        self.rank.check(places)
        return Attached((division,))

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """joint: one stage that trains all. two_stage: pretrain, then every expert by itself."""
        if self.recipe == "joint":
            return (base.model_copy(update={"name": "joint", "trains": ("*",)}),)
        return (
            base.model_copy(update={"name": "pretrain", "trains": BACKBONE, "route": "none"}),
            base.model_copy(update={"name": "adapt", "trains": EXPERTS, "independent": True}),
        )
