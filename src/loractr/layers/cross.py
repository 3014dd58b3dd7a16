"""The cross network of DCN and DCN-V2."""

from typing import Literal

import torch
from torch import Tensor, nn

from loractr.batch import Route
from loractr.layers.linear import Linear

CrossKind = Literal["vector", "matrix"]


class CrossLayer(nn.Module):
    """One cross: the input once more times the first one, with a residual.

        vector:  x' = x0 (xᵀ w) + b + x       (DCN)
        matrix:  x' = x0 ⊙ (W x + b) + x      (DCN-V2)

    A fresh one has Glorot normal w or W and b = 0.
    Shapes: x0, x (N, n) → (N, n).
    """

    def __init__(
        self, features: int, *, kind: CrossKind = "vector", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if kind == "matrix":
            self.linear = Linear(features, features, generator=generator)
            self.bias = None
        else:
            self.linear = Linear(features, 1, bias=False, generator=generator)
            self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x0: Tensor, x: Tensor, route: Route | None = None) -> Tensor:
        """One step; `x0` is the network's input, `x` the layer's."""
        residual = x if self.bias is None else x + self.bias
        return torch.addcmul(residual, x0, self.linear(x, route))


class Cross(nn.Module):
    """Cross layers one after the other, named `0`, `1`, …: `cross.0.linear`.

    Args:
        features: Width n of the input, and of the output.
        layers: Number of crosses, at least one.
        kind: vector (DCN) or matrix (DCN-V2); see `CrossLayer`.
        generator: Source of the initial weights.

    Shapes: x (N, n) → (N, n).
    Source: Wang et al., Deep & Cross Network, ADKDD 2017; DCN V2, WWW 2021.
    """

    def __init__(
        self,
        features: int,
        layers: int = 2,
        *,
        kind: CrossKind = "vector",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a cross network needs at least one layer, not {layers}")
        for index in range(layers):
            self.add_module(str(index), CrossLayer(features, kind=kind, generator=generator))

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """All crosses."""
        x0 = x
        for layer in self.children():
            x = layer(x0, x, route)
        return x
