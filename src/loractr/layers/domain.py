"""Layers of which every domain has its own: products and towers, stacked in one tensor each."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractr.batch import Groups, Route
from loractr.layers.dropout import Dropout, relu_dropout
from loractr.layers.grouped import grouped_linear
from loractr.layers.mlp import DropoutPosition
from loractr.layers.norm import NormBank


def groups_of(route: Route | None, x: Tensor, domains: int) -> Groups:
    """The groups by which the rows of x (N, …) go to domains; without an acting division all of
    them are of no domain."""
    if route is not None and route.divisions:
        return route.acting()[1]
    rows = x.shape[0]
    none = torch.full((rows,), -1, dtype=torch.int64, device=x.device)
    edges = torch.full((domains + 1,), rows, dtype=torch.int64, device=x.device)
    return Groups(expert=none, offsets=torch.cat([edges.new_zeros(1), edges]))


def with_average(stack: Tensor) -> Tensor:
    """(D, …) → (D + 1, …): the mean of all domains stands first, so that domain d is at d + 1 and
    rows of no domain, -1, find it at 0."""
    return torch.cat([stack.mean(0, keepdim=True), stack])


def own_or_rest(x: Tensor, weight: Tensor, groups: Groups, rest: Callable[[], Tensor]) -> Tensor:
    """`grouped_linear` where rows of no domain have a matrix too: `rest()` (out, in).

    It costs a copy of all weights, so it is asked for only where there are such rows.
    """
    if not torch.compiler.is_compiling() and not groups.offsets[1]:
        return grouped_linear(x, weight, groups)
    offsets = torch.cat([groups.offsets.new_zeros(1), groups.offsets])
    shifted = Groups(expert=groups.expert + 1, offsets=offsets, order=groups.order)
    return grouped_linear(x, torch.cat([rest()[None], weight]), shifted)


class DomainLinear(nn.Module):
    """An affine map per domain.

        y[n] = weight[d] x[n] + bias[d]        d: the row's own domain

    Rows of no domain (unseen, or a route without divisions) are the average domain's: they use the
    mean of the domains' weights and of their biases. A fresh one has Glorot normal weights for each
    domain by itself, variance 2 / (in + out), and zero bias.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        domains: Number of domains D.
        bias: Whether to add bias[d].
        generator: Source of the initial weights; torch's default one when absent.

    Shapes: x (N, in) → (N, out); weight (D, out, in), bias (D, out).
    Raises: ValueError: a width or the number of domains is below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        domains: int,
        bias: bool = True,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"widths must be at least 1, not {in_features} → {out_features}")
        if domains < 1:
            raise ValueError(f"a layer per domain needs at least 1 domain, not {domains}")
        self.in_features = in_features
        self.out_features = out_features
        self.domains = domains
        self.weight = nn.Parameter(torch.empty(domains, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(domains, out_features)) if bias else None
        with torch.no_grad():
            self.weight.normal_(
                std=(2.0 / (in_features + out_features)) ** 0.5, generator=generator
            )

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """Each row by its own domain's map."""
        groups = groups_of(route, x, self.domains)
        y = own_or_rest(x, self.weight, groups, lambda: self.weight.mean(0))
        if self.bias is None:
            return y
        return y + with_average(self.bias).index_select(0, groups.expert + 1)

    def every(self, x: Tensor) -> Tensor:
        """Each row by all maps, the average domain's first: (N, in) → (N, D + 1, out).

        With x (N, D + 1, in) each map has an input of its own.
        """
        weight = with_average(self.weight)
        if x.dim() == 2:
            y = F.linear(x, weight.flatten(0, 1)).view(-1, *weight.shape[:2])
        else:
            y = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
        return y if self.bias is None else y + with_average(self.bias)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        sizes = f"{self.in_features}, {self.out_features}, domains={self.domains}"
        return f"{sizes}, bias={self.bias is not None}"


class DomainBlock(nn.Module):
    """One hidden layer per domain: y = Dropout(ReLU(Norm_d(x W_dᵀ + b_d))), as `mlp.Block`.

    The norm, where asked for, is one per domain; rows of no domain go through the mean of the
    domains' weights and running statistics. With `dropout_position="shared_path"` the dropout
    stands before the norm.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        domains: int,
        *,
        dropout: float,
        batch_norm: bool,
        dropout_position: DropoutPosition,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.linear = DomainLinear(in_features, out_features, domains, generator=generator)
        self.norm = NormBank(out_features, domains) if batch_norm else None
        first = dropout_position == "shared_path"
        self.before: nn.Module = Dropout(dropout) if first else nn.Identity()
        self.after = None if first else Dropout(dropout)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """(N, in) → (N, out)."""
        h = self.before(self.linear(x, route))
        if self.norm is not None:
            h = self.norm(h, groups_of(route, x, self.linear.domains), self.norm.average())
        return relu_dropout(h, self.after)

    def every(self, x: Tensor) -> Tensor:
        """(N, in) or (N, D + 1, in) → (N, D + 1, out); see `DomainLinear.every`."""
        h = self.before(self.linear.every(x))
        if self.norm is not None:
            h = self.norm.every(h)
        return relu_dropout(h, self.after)


class DomainMLP(nn.Module):
    """A tower per domain, all of one shape: hidden layers named `0`, `1`, … as in `MLP`.

    Args:
        in_features: Width of the input.
        hidden_sizes: Width of each hidden layer; with none of them it returns x.
        domains: Number of domains D.
        dropout: Dropout of each hidden layer.
        batch_norm: Whether each hidden layer is normalised before its activation, per domain.
        dropout_position: Where the dropout stands; see `DomainBlock`.
        generator: Source of the initial weights.

    Shapes: x (N, in) → (N, hidden_sizes[-1]), each row through its own domain's tower; rows of no
        domain through the average domain's, see `DomainLinear`.
    Raises: ValueError: a width or the number of domains is below 1.
    """

    def __init__(
        self,
        in_features: int,
        hidden_sizes: Sequence[int],
        domains: int,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        dropout_position: DropoutPosition = "after_activation",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden_sizes]
        for index, (before, after) in enumerate(pairwise(widths)):
            block = DomainBlock(
                before,
                after,
                domains,
                dropout=dropout,
                batch_norm=batch_norm,
                dropout_position=dropout_position,
                generator=generator,
            )
            self.add_module(str(index), block)
        self.in_features = in_features
        self.out_features = widths[-1]

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """The last hidden layer's output."""
        for block in self.children():
            x = block(x, route)
        return x

    def every(self, x: Tensor) -> Tensor:
        """Each row through all towers, the average domain's first: (N, in), or (N, D + 1, in) with
        an input for each tower, → (N, D + 1, out). Here a norm's statistics are of all rows."""
        for block in self.children():
            assert isinstance(block, DomainBlock)
            x = block.every(x)
        return x
