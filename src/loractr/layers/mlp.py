"""The deep tower."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from loractr.batch import Route
from loractr.layers.dropout import Dropout, Rectifier
from loractr.layers.linear import Linear
from loractr.layers.norm import BatchNorm

DropoutPosition = Literal["after_activation", "shared_path"]


class Block(nn.Module):
    """One hidden layer: y = Dropout(ReLU(Norm(x Wᵀ + b))), the norm only where asked for.

    With `dropout_position="shared_path"` the dropout moves into the linear layer, before the norm,
    the activation and whatever an adapter adds: y = ReLU(Norm(Dropout(x Wᵀ + b) + update)).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dropout: float,
        batch_norm: bool,
        dropout_position: DropoutPosition,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.linear = Linear(in_features, out_features, generator=generator)
        self.norm = BatchNorm(out_features) if batch_norm else None
        self.dropout: Dropout | None = None
        if dropout_position == "shared_path":
            self.linear.dropout = Dropout(dropout)
        else:
            self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """(N, in) → (N, out)."""
        ending = Rectifier(self.dropout)
        if self.norm is None:
            y: Tensor = self.linear(x, route, ending)
            return y
        return ending(self.norm(self.linear(x, route), route))


class MLP(nn.Module):
    """Hidden layers one after the other, named `0`, `1`, …: `tower.0.linear`, `tower.0.norm`.

    Args:
        in_features: Width of the input.
        hidden_sizes: Width of each hidden layer, at least one.
        dropout: Dropout of each hidden layer.
        batch_norm: Whether each hidden layer is normalised before its activation.
        dropout_position: Where the dropout stands; see `Block`.
        generator: Source of the initial weights.

    Shapes: x (N, in) → (N, hidden_sizes[-1]).
    Raises: ValueError: no hidden layer.
    """

    def __init__(
        self,
        in_features: int,
        hidden_sizes: Sequence[int],
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        dropout_position: DropoutPosition = "after_activation",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not hidden_sizes:
            raise ValueError("a tower needs at least one hidden layer")
        widths = [in_features, *hidden_sizes]
        for index, (before, after) in enumerate(pairwise(widths)):
            block = Block(
                before,
                after,
                dropout=dropout,
                batch_norm=batch_norm,
                dropout_position=dropout_position,
                generator=generator,
            )
            self.add_module(str(index), block)
        self.in_features = in_features
        self.hidden_sizes = tuple(hidden_sizes)
        self.out_features = widths[-1]
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.dropout_position = dropout_position

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """The last hidden layer's output."""
        for block in self.children():
            x = block(x, route)
        return x
