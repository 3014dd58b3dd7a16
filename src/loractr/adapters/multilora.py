"""MultiLoRA: experts for the domains of several divisions, mixed row by row; -add and -avg too.

Source: Song et al., MultiLoRA, CIKM 2024.
"""

from typing import Literal, Self

import torch
from pydantic import model_validator

from loractr.adapters.fusion import FusedLinear, Fusion, Mean, Mixer, Sum
from loractr.adapters.mlora import EXPERTS
from loractr.adapters.staged import CELLS, MIXERS, StagedMethod
from loractr.layers.linear import Linear
from loractr.method import Attached, Network
from loractr.schema import Schema
from loractr.stage import Stage


class ManyBanks(StagedMethod):
    """A `StagedMethod` with experts for every division that it names, and a mixer per layer.

    Three stages: pretrain the backbone; adapt_<division>, for each division, every expert by
    itself; mix, on all rows, with every expert frozen: the mixer's weights and a norm per cell
    (combination of domains), which starts as the first division's norm. With one division there is
    nothing to mix: the first two stages, as SingleLoRA.
    """

    @model_validator(mode="after")
    def _divisions_named_once(self) -> Self:
        if not self.divisions:
            raise ValueError(
                f"{self.name} mixes experts of the divisions that it is given: name them, the"
                " natural one first, like divisions: [ages, gender]"
            )
        twice = [name for name in self.divisions if self.divisions.count(name) > 1]
        if twice:
            raise ValueError(f"{self.name} works on every division once, not twice on {twice[0]}")
        return self

    def mixer(self, layer: Linear, rank: int, generator: torch.Generator) -> Mixer:
        """A fresh mixer for one layer."""
        raise NotImplementedError

    @property
    def _mixes(self) -> bool:
        """Whether a row can have more experts than one."""
        return len(self.divisions) > 1

    @property
    def _trained_norms(self) -> bool:
        """Whether cells have norms of their own."""
        return self.norm == "domain" and self._mixes

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """A bank per division and a mixer beside every target layer; norms behind it."""

        def wrap(layer: Linear, rank: int) -> FusedLinear:
            banks = [
                self.bank(layer, experts, rank, generator, alone=False)
                for experts in self.sizes(schema)
            ]
            mixer = self.mixer(layer, rank, generator) if self._mixes else Sum()
            return FusedLinear(layer, banks, mixer)

        return self.wrap_targets(network, schema, wrap, cells=self._trained_norms)

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """pretrain, adapt_<division> …, and what the mixer needs."""
        adapting = [
            self.adapt(base, self._own(place), division)
            for place, division in enumerate(self.divisions)
        ]
        return (self.pretrain(base), *adapting, *self._mixing(base, norm=norm))

    def _own(self, place: int) -> tuple[str, ...]:
        experts = tuple(f"*.banks.{place}.{glob.removeprefix('*.')}" for glob in EXPERTS)
        return (*experts, f"*.norm.divisions.{place}.*")

    def _mixing(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        if not self._mixes:
            return ()
        role = {
            "name": "mix",
            "trains": (MIXERS, CELLS),
            "route": "mixed",
            "inherits": "cells" if norm and self._trained_norms else "none",
        }
        return (base.model_copy(update=role | self.regularised(base)),)


class MultiLoRA(ManyBanks):
    """Attention over a row's own experts, one per division: see `fusion.Fusion`."""

    name: Literal["multilora"]

    def mixer(self, layer: Linear, rank: int, generator: torch.Generator) -> Mixer:
        """Queries and keys of the experts' rank."""
        return Fusion(layer.out_features, rank, generator=generator)


class _Plain(ManyBanks):
    """A mixer without weights, as in the paper's ablation."""

    norm_train: bool = True
    """Whether cells have norms of their own, trained last; else the first division's serve. The
    paper says nothing about them; its figures for -add suggest that they did not train."""

    @property
    def _trained_norms(self) -> bool:
        return super()._trained_norms and self.norm_train

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """As MultiLoRA; the mixers act even where no stage trains anything about them."""
        return Attached(super().attach(network, schema, generator).divisions, mixed=True)

    def _mixing(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        return super()._mixing(base, norm=norm) if norm and self._trained_norms else ()


class MultiLoRAAdd(_Plain):
    """The sum of a row's experts' updates: h0 + Σ_v h_v."""

    name: Literal["multilora_add"]

    def mixer(self, layer: Linear, rank: int, generator: torch.Generator) -> Mixer:
        """Nothing to train."""
        return Sum()


class MultiLoRAAvg(_Plain):
    """The mean of a row's experts' updates: h0 + mean_v h_v."""

    name: Literal["multilora_avg"]

    def mixer(self, layer: Linear, rank: int, generator: torch.Generator) -> Mixer:
        """Nothing to train."""
        return Mean()
