"""What SingleLoRA, MultiLoRA and the shared adapter have in common: their options, their stages."""

from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import PositiveFloat, model_validator

from loractr.adapters.attach import attach
from loractr.adapters.low_rank import Bank, LowRankLinear
from loractr.adapters.mlora import EXPERTS, Rank
from loractr.adapters.norms import attach_norms
from loractr.layers.linear import Linear
from loractr.method import ALL_ROWS, Attached, Method, Network, regularised
from loractr.schema import Schema
from loractr.stage import Stage

NORMS = "*.norm.divisions.*"
CELLS = "*.norm.cell.*"
MIXERS = "*.mixer.*"
PLAIN = ("*", *(f"!{glob}" for glob in (*EXPERTS, NORMS, CELLS, MIXERS)))


class StagedMethod(Method):
    """Experts on a finished, frozen backbone, each trained on its own domain's rows alone.

        h' = W x + b + row_scale_d ⊙ (up_d down_d x) + offset_d,   then the domain's own norm

    Source: Song et al., MultiLoRA, CIKM 2024, eq. 7-9.
    """

    rank: Rank = Rank(divisor=16)
    """Rank of each expert; the paper lists them layer by layer, like {fixed: [8, 8]}."""
    targets: tuple[str, ...] = ("tower.*",)
    """Globs over the backbone's layers; the paper adapts every dense layer but the output."""
    row_scale: bool = True
    """A trained factor per output, the paper's s."""
    row_scale_std: PositiveFloat = 1.0
    """Standard deviation of the initial row scale; the paper says "Gaussian" only."""
    offset: bool = True
    """A trained bias per domain, the paper's b; the row scale leaves it alone."""
    norm: Literal["domain", "shared"] = "domain"
    """domain: where the tower has norms, every domain gets its own, started as a copy. shared:
    the frozen shared norm serves all."""
    recipe: Literal["paper", "tuned"] = "paper"
    """tuned: dropout on the input and the hidden layers and a moving average of the weights while
    adapters train, where `training` says nothing else about them. Without them adapters have
    nothing to learn from rows that the backbone has memorised."""

    @model_validator(mode="after")
    def _options_act(self) -> Self:
        if self.row_scale_std != 1.0 and not self.row_scale:
            raise ValueError(
                "row_scale_std means nothing without a row scale: drop row_scale: false"
            )
        return self

    def read(self, schema: Schema) -> tuple[str, ...]:
        """The divisions whose domains have experts."""
        return self.chosen(schema)

    def sizes(self, schema: Schema) -> tuple[int, ...]:
        """Number of domains of each."""
        return tuple(
            1 if name == ALL_ROWS else len(schema.division(name).domains)
            for name in self.read(schema)
        )

    def bank(
        self, layer: Linear, experts: int, rank: int, generator: torch.Generator, *, alone: bool
    ) -> Bank:
        """A bank of experts for one layer; `alone`: around the layer itself."""
        made = (LowRankLinear if alone else Bank)(
            layer,
            experts=experts,
            rank=rank,
            row_scale=self.row_scale,
            offset=self.offset,
            generator=generator,
        )
        if made.row_scale is not None:
            with torch.no_grad():
                made.row_scale.mul_(self.row_scale_std)
        return made

    def wrap_targets(
        self,
        network: Network,
        schema: Schema,
        wrap: Callable[[Linear, int], torch.nn.Module],
        *,
        cells: bool = False,
    ) -> Attached:
        """Replace every target layer by `wrap(layer, rank)`, and the norms behind them."""
        places: list[str] = []

        def placed(name: str, layer: Linear) -> torch.nn.Module:
            places.append(name)
            return wrap(layer, self.rank.of(name, layer, len(places) - 1))

        attach(network.backbone, self.targets, placed)
        self.rank.check(places)
        if self.norm == "domain":
            attach_norms(network.backbone, places, self.sizes(schema), cells=cells)
        return Attached(self.read(schema))

    def pretrain(self, base: Stage) -> Stage:
        """The backbone alone, on all rows."""
        return base.model_copy(update={"name": "pretrain", "trains": PLAIN, "route": "none"})

    def adapt(self, base: Stage, trains: tuple[str, ...], division: str | None = None) -> Stage:
        """Every expert of one division by itself, with its norms."""
        role = {
            "name": "adapt" if division is None else f"adapt_{division}",
            "trains": trains,
            "division": division,
            "independent": True,
            "inherits": "domains",
        }
        return base.model_copy(update=role | self.regularised(base))

    def regularised(self, base: Stage) -> dict[str, float]:
        """What the recipe adds to the settings of a stage that trains adapters."""
        return {} if self.recipe == "paper" else regularised(base)


class OneBank(StagedMethod):
    """A `StagedMethod` with the experts of one division."""

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """One bank of experts beside every target layer, one norm per expert behind it."""
        (experts,) = self.sizes(schema)

        def wrap(layer: Linear, rank: int) -> Bank:
            return self.bank(layer, experts, rank, generator, alone=True)

        return self.wrap_targets(network, schema, wrap)

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """pretrain the backbone; adapt: every expert by itself on the frozen backbone."""
        return self.pretrain(base), self.adapt(base, (*EXPERTS, NORMS))
