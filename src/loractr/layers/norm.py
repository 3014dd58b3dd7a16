"""Batch normalisation, shared or per domain: knows when it is frozen or a batch too small."""

import math
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loractr.batch import Groups, Route
from loractr.layers.custom import custom
from loractr.layers.grouped import as_they_came, in_groups, one_hot
from loractr.native import Library, library_for

ROWS_WORTH_A_CALL = 64
"""Groups of this many rows on average are normalised one by one; smaller ones all together."""


class BatchNorm(nn.Module):
    """Normalises each feature over the rows of the batch.

        y = weight ⊙ (x - mean) / √(var + eps) + bias

    In training, mean and (biased) variance are the batch's, and the running ones move towards
    them: running += momentum · (batch - running), with the unbiased variance. In evaluation they
    are the running ones. Two more cases use the running ones and leave them alone: a batch of
    fewer than two rows, which has no variance, and a norm none of whose parameters train, so that
    a frozen layer's buffers stay bit-identical. A fresh one has weight 1, bias 0, running mean 0
    and running variance 1.

    Args:
        features: Number of features H.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.

    Shapes: x (N, H) → (N, H), N ≥ 0.
    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.features = features
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """Normalised x; `route` is for the norm per domain that may stand in this layer's place."""
        trains = self.training and (self.weight.requires_grad or self.bias.requires_grad)
        if x.shape[0] < 2:  # a branch, not a value: in a compiled graph the size is symbolic
            trains = False
        kernels = _kernels(x, self.weight, self.bias, self)
        if kernels is not None:
            runs = (None, torch.tensor([0, x.shape[0]], device=x.device), 1)
            return custom(_Normed, x, self.weight, self.bias, self, runs, trains, kernels)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=trains,
            momentum=self.momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """The width, for `print(model)`."""
        return f"{self.features}, momentum={self.momentum}, eps={self.eps}"


class Running(Protocol):
    """What kernels need of a norm but its weights: (H,), or (E, H) for E groups of rows."""

    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float


class _Normed(torch.autograd.Function):
    """Rows in groups, each by the norm of its own group, by compiled kernels; see `NormBank`.

    weight and bias are (H,) for one group, or (E, H); `norm` has the running statistics; every row
    has a group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: Running,
        runs: tuple[Tensor | None, Tensor, int],
        trains: bool,
        kernels: Library,
    ) -> Tensor:
        y = torch.empty_like(x)
        mean, factor = torch.empty_like(weight), torch.empty_like(weight)
        running = (norm.running_mean, norm.running_var, trains, mean, factor)
        options = (*runs, x.shape[1], norm.momentum, norm.eps)
        kernels.call("norm", x, y, *options, weight, bias, *running)
        ctx.save_for_backward(x, weight, mean, factor)
        ctx.kernels, ctx.runs, ctx.trains = kernels, runs, trains
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, factor = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dweight, dbias = torch.zeros_like(weight), torch.zeros_like(weight)
        saved = (*ctx.runs, x.shape[1], mean, factor, weight, ctx.trains)
        ctx.kernels.call("norm_backward", x, grad.contiguous(), dx, *saved, dweight, dbias)
        return dx, dweight, dbias, None, None, None, None


def _kernels(x: Tensor, weight: Tensor, bias: Tensor, norm: Running) -> Library | None:
    """Compiled kernels, if they can normalise x (N, H) so."""
    kernels = library_for(x, weight, bias, norm.running_mean, norm.running_var)
    return kernels if x.dim() == 2 and x.shape[1] == weight.shape[-1] else None


def normed_by_kernels(
    x: Tensor, groups: Groups, weight: Tensor, bias: Tensor, norm: Running, *, trains: bool
) -> Tensor | None:
    """Each row by its group's norm, see `NormBank`: x (N, H), weight and bias (E, H). None without
    compiled kernels, and where rows have no group."""
    kernels = _kernels(x, weight, bias, norm)
    if kernels is None:
        return None
    runs = groups.runs()
    whole = groups.expert.shape[0] == x.shape[0] and not groups.offsets[1]
    if not whole or runs[2] > len(weight):
        return None
    return custom(_Normed, x, weight, bias, norm, runs, trains, kernels)


class Average(NamedTuple):
    """The mean of a bank's norms: owns nothing, and rows of no group may go through it."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float


def group_moments(
    x: Tensor, groups: Groups, running_mean: Tensor, running_var: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each group's rows (E, H), all groups at once; those of fewer than
    two rows have their running ones. The others' running ones are moved, in place, as `BatchNorm`
    moves its own."""
    hot = one_hot(groups, running_mean.shape[0], x.dtype)  # (N, E)
    count = hot.sum(0)[:, None]
    mean = hot.T @ x / count.clamp(min=1)
    spread = hot.T @ (x - hot @ mean).square()
    enough = count > 1
    with torch.no_grad():
        share = momentum * enough.to(x.dtype)
        running_mean += share * (mean - running_mean)
        running_var += share * (spread / (count - 1).clamp(min=1) - running_var)
    variance = spread / count.clamp(min=1)
    return torch.where(enough, mean, running_mean), torch.where(enough, variance, running_var)


class NormBank(nn.Module):
    """One batch norm per group of rows, each with its own weight, bias and running statistics.

    Every group is normalised as `BatchNorm` would normalise its rows alone: in training by their
    own mean and variance, in evaluation by the group's running ones. A group of fewer than two
    rows uses its running ones and leaves them alone. Rows of no group go through `base`, as in
    evaluation.

    Args:
        features: Number of features H.
        experts: Number of groups E.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.

    Shapes: x (N, H) → (N, H); weight, bias, running_mean, running_var (E, H).
    Source: Song et al., MultiLoRA, CIKM 2024, eq. 9.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, features: int, experts: int, *, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(experts, features))
        self.bias = nn.Parameter(torch.zeros(experts, features))
        self.register_buffer("running_mean", torch.zeros(experts, features))
        self.register_buffer("running_var", torch.ones(experts, features))

    def forward(self, x: Tensor, groups: Groups, base: BatchNorm | Average) -> Tensor:
        """Each row by its group's norm; rows of no group by `base`."""
        trains = self.training and (self.weight.requires_grad or self.bias.requires_grad)
        if torch.compiler.is_compiling():
            return self._masked(x, groups, base, trains=trains)
        y = normed_by_kernels(x, groups, self.weight, self.bias, self, trains=trains)
        if y is not None:
            return y
        if not trains and len(self.weight) * ROWS_WORTH_A_CALL > x.shape[0]:
            return self._running(x, groups, base)
        return self._segments(x, groups, base, trains=trains)

    def _running(self, x: Tensor, groups: Groups, base: BatchNorm | Average) -> Tensor:
        """y = scale[e] ⊙ x + shift[e], from the running statistics."""
        return self._affine(x, groups, base, self.running_mean, self.running_var)

    def _affine(
        self, x: Tensor, groups: Groups, base: BatchNorm | Average, mean: Tensor, variance: Tensor
    ) -> Tensor:
        own = self.weight * torch.rsqrt(variance + self.eps)
        rest = base.weight * torch.rsqrt(base.running_var + base.eps)
        scale = torch.cat([rest[None], own])
        shift = torch.cat([(base.bias - base.running_mean * rest)[None], self.bias - mean * own])
        place = groups.expert + 1
        return torch.addcmul(shift.index_select(0, place), x, scale.index_select(0, place))

    def _segments(
        self, x: Tensor, groups: Groups, base: BatchNorm | Average, *, trains: bool
    ) -> Tensor:
        edges = groups.offsets.tolist()
        sizes = [stop - start for start, stop in pairwise(edges)]
        parts = torch.split(in_groups(x, groups), sizes)
        first = F.batch_norm(
            parts[0], base.running_mean, base.running_var, base.weight, base.bias, eps=base.eps
        )
        done = [first]
        weights, biases = self.weight.unbind(0), self.bias.unbind(0)
        for expert, part in enumerate(parts[1:]):
            if not part.shape[0]:
                continue
            done.append(
                F.batch_norm(
                    part,
                    self.running_mean[expert],
                    self.running_var[expert],
                    weights[expert],
                    biases[expert],
                    training=trains and part.shape[0] > 1,
                    momentum=self.momentum,
                    eps=self.eps,
                )
            )
        return as_they_came(torch.cat(done), groups)

    def _masked(
        self, x: Tensor, groups: Groups, base: BatchNorm | Average, *, trains: bool
    ) -> Tensor:
        """The same for a compiled graph, all groups at once."""
        if not trains:
            return self._running(x, groups, base)
        moments = group_moments(x, groups, self.running_mean, self.running_var, self.momentum)
        return self._affine(x, groups, base, *moments)

    def every(self, x: Tensor) -> Tensor:
        """Each row through all groups' norms, those of the average first: x (N, E + 1, H) of which
        `x[:, e + 1]` is group e's input for all rows, so that all rows make its statistics."""
        base, rest = self.average(), x[:, 1:].flatten(1)
        trains = self.training and (self.weight.requires_grad or self.bias.requires_grad)
        if x.shape[0] < 2:
            trains = False
        first = F.batch_norm(
            x[:, 0], base.running_mean, base.running_var, base.weight, base.bias, eps=base.eps
        )
        others = F.batch_norm(
            rest,
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.flatten(),
            self.bias.flatten(),
            training=trains,
            momentum=self.momentum,
            eps=self.eps,
        )
        return torch.cat([first, others], 1).view_as(x)

    def average(self) -> Average:
        """The mean of the groups' weights, biases and running statistics."""
        mean, variance = self.running_mean.mean(0), self.running_var.mean(0)
        return Average(self.weight.mean(0), self.bias.mean(0), mean, variance, self.eps)

    @torch.no_grad()
    def copy_from(self, norm: "BatchNorm | NormBank", rows: Tensor | None = None) -> None:
        """Start every group from a norm: the same for all, or row `rows[e]` of another bank."""
        for own, other in (
            (self.weight, norm.weight),
            (self.bias, norm.bias),
            (self.running_mean, norm.running_mean),
            (self.running_var, norm.running_var),
        ):
            own.copy_(other if rows is None else other[rows])

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        experts, features = self.weight.shape
        return f"{features}, experts={experts}"


class DomainNorm(nn.Module):
    """A norm per domain, and one per cell, in the place of a shared norm.

    Without a route: the shared norm. With the experts of one division acting: that division's norm
    per domain. With mixers acting: the norm per cell, where there is one, else that of the first
    division. A bank starts as a copy of the shared norm; `inherit` renews the copy.

    Args:
        base: The shared norm; kept by reference.
        sizes: Number of domains of each division.
        cells: Whether cells have norms: Π(sizes + 1) - 1 of them, see `Route.cell`.

    Shapes: x (N, H) → (N, H).
    Source: Song et al., MultiLoRA, CIKM 2024, eq. 9 and 11.
    """

    def __init__(self, base: BatchNorm, sizes: tuple[int, ...], *, cells: bool = False) -> None:
        super().__init__()
        self.base = base
        options = {"momentum": base.momentum, "eps": base.eps}
        self.divisions = nn.ModuleList(NormBank(base.features, n, **options) for n in sizes)
        self.sizes = sizes
        count = math.prod(n + 1 for n in sizes) - 1
        self.cell = NormBank(base.features, count, **options) if cells else None
        self.to(base.weight)  # type and device
        for place in range(len(sizes)):
            self.inherit(place)
        self.inherit(None)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """Normalised x."""
        if route is None or not route.divisions:
            y: Tensor = self.base(x, route)
            return y
        if route.cell is not None and self.cell is not None:
            z: Tensor = self.cell(x, route.cell, self.base)
            return z
        place, groups = route.acting()
        w: Tensor = self.divisions[place](x, groups, self.base)
        return w

    def inherit(self, place: int | None) -> None:
        """Copy the shared norm into the domains of the division at `place`; with None, the first
        division's norms into the cells (the shared norm where a cell has no domain of it)."""
        if place is not None:
            bank = self.divisions[place]
            assert isinstance(bank, NormBank)
            bank.copy_from(self.base)
            return
        if self.cell is None:
            return
        first = self.divisions[0]
        assert isinstance(first, NormBank)
        domain = torch.arange(1, len(self.cell.weight) + 1)
        domain = domain // math.prod(n + 1 for n in self.sizes[1:]) - 1
        self.cell.copy_from(first, domain.clamp(min=0))
        unseen = domain < 0
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(self.cell, name)[unseen] = getattr(self.base, name)
