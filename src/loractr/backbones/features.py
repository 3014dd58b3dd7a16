"""What all backbones share: their protocol, and the field vectors that interactions read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from loractr.backbones.config import ModelConfig
from loractr.batch import Route
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.linear import Linear
from loractr.layers.mlp import MLP


@dataclass(frozen=True)
class Hidden:
    """What a backbone hands to the head: logit = head(vector) + logit."""

    vector: Tensor  # (N, H)
    logit: Tensor | None = None  # (N,), terms that need no head: linear, FM


class Backbone(nn.Module, ABC):
    """From an embedded row to the vector that the head reads.

    A backbone is built as `Backbone(config, widths, generator)`. Every trainable product in it is a
    `Linear` and gets the route, so that each of them can be adapted (the vectors that numbers are
    multiplied with are embeddings, like those of the other fields). Its deep tower is `tower`.
    """

    uses_first_order: ClassVar[bool] = False
    """Whether it reads `Embedded.first_order`, i.e. whether the model has a linear term."""

    out_features: int
    """H, the width of `Hidden.vector`."""

    tower: nn.Module
    """The deep tower: (N, in) and a route → (N, out). Its outputs stand last in `Hidden.vector`."""

    @abstractmethod
    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Embedded, route: Route) -> Hidden:
        """N embedded rows → `Hidden` of N rows."""


class Pairwise(nn.Module):
    """The vectors of all fields in one width, for pairwise interactions.

    Fields of the common width K as they are; each field of another width through a product of its
    own (no bias); each number, where `numbers` says so, as value x a learned vector.

    Args:
        widths: What an embedded row holds.
        numbers: Whether numbers take part.
        std: Standard deviation of the numbers' initial vectors.
        generator: Source of the initial weights.

    Shapes: `Embedded` → (N, `fields`, K), fields = P + other widths + M or 0.
    """

    def __init__(
        self,
        widths: Widths,
        *,
        numbers: bool,
        std: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            Linear(width, widths.size, bias=False, generator=generator) for width in widths.others
        )
        takes_numbers = numbers and widths.numbers > 0
        self.numbers = (
            nn.Parameter(
                torch.empty(widths.numbers, widths.size).normal_(std=std, generator=generator)
            )
            if takes_numbers
            else None
        )
        self.fields = widths.fields + len(widths.others) + takes_numbers * widths.numbers

    def forward(self, features: Embedded, route: Route | None = None) -> Tensor:
        """All vectors, in that order."""
        parts = [features.vectors]
        for project, other in zip(self.project, features.others, strict=True):
            parts.append(project(other, route)[:, None])
        if self.numbers is not None:
            parts.append(features.numbers[:, :, None] * self.numbers)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def deep_tower(config: ModelConfig, in_features: int, generator: torch.Generator | None) -> MLP:
    """The tower that the configuration asks for, on an input of this width."""
    return MLP(
        in_features,
        config.hidden_sizes,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        dropout_position=config.dropout_position,
        generator=generator,
    )


def field_vectors(
    config: ModelConfig, widths: Widths, generator: torch.Generator | None
) -> Pairwise:
    """The field vectors that the configuration lets interact."""
    return Pairwise(
        widths,
        numbers=config.numbers_in_interactions,
        std=config.embedding_std,
        generator=generator,
    )
