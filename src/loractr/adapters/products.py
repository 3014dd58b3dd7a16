"""The products of experts beside a shared layer, as functions that know their gradients.

Each takes the shared layer along: what experts add lands in the shared product's own output,
forward and backward, in place of a tensor for every term and its sum. `Routed` and `entered` make
one pair of small products for each expert that has rows: their cost hardly grows with the number of
experts, and a row's result does not depend on which others the bank holds, so that domains live and
die alone. `Weighted` and `stacked` put all experts side by side into two products.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from loractr.batch import Groups
from loractr.layers.custom import custom_all
from loractr.layers.segments import (
    add_products,
    group_sums,
    outer_products,
)


def extended(inner: Tensor, up: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """An update as one product, U z + b = [U b] [z 1]: (N, r + 1) and (E, out, r + 1); without an
    offset as it was."""
    if offset is None:
        return inner, up
    inner = torch.cat([inner, inner.new_ones(inner.shape[0], 1)], 1)
    return inner, torch.cat([up, offset.unsqueeze(2)], 2)


def stacked(x: Tensor, weights: Tensor, down: Tensor, up: Tensor, offset: Tensor | None) -> Tensor:
    """sum_e weights[n, e] (up[e] @ down[e] @ x[n] + offset[e]), two products over all experts."""
    experts, rank, _ = down.shape
    inner = F.linear(x, down.flatten(0, 1)).view(-1, experts, rank)  # (N, E, r)
    inner = (inner * weights.unsqueeze(2)).flatten(1)  # (N, E * r)
    update = inner @ up.transpose(1, 2).flatten(0, 1)
    return update if offset is None else torch.addmm(update, weights, offset)


def entered(
    x: Tensor, weight: Tensor, bias: Tensor | None, banks: Sequence[tuple[Tensor, Groups]]
) -> tuple[Tensor, list[Tensor]]:
    """W x + b, and of every (down, groups) down[e] @ x[n], e = expert of n: (N, out), (N, r)."""
    downs, groups = [down for down, _ in banks], [rows for _, rows in banks]
    shared, *inner = custom_all(_Entered, groups, x, weight, bias, *downs)
    return shared, inner


class Routed(torch.autograd.Function):
    """W x[n] + b + up[e] @ down[e] @ x[n] + offset[e], e = expert of n; (N, out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        offset: Tensor | None,
        groups: Groups,
    ) -> Tensor:
        """The layer's output."""
        x, down, up = x.contiguous(), down.contiguous(), up.contiguous()
        out = F.linear(x, weight, bias)
        inner = x.new_zeros(x.shape[0], down.shape[1])
        add_products(inner, x, down, groups)
        add_products(out, *extended(inner, up, offset), groups)
        ctx.save_for_backward(x, inner, weight, down, up)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """A gradient for each input that wants one."""
        x, inner, weight, down, up = ctx.saved_tensors
        groups, experts, g = ctx.groups, len(up), grad.contiguous()
        wants_x, wants_weight, wants_bias, *wants, _ = ctx.needs_input_grad
        wants_down, wants_up, wants_offset = wants
        dx = ddown = dup = doffset = None
        if wants_x or wants_down:
            dinner = g.new_zeros(g.shape[0], up.shape[2])
            add_products(dinner, g, up, groups, turned=True)
        if wants_x:
            dx = g @ weight
            add_products(dx, dinner, down, groups, turned=True)
        if wants_down:
            ddown = outer_products(dinner, x, groups, experts)
        if wants_up:
            dup = outer_products(g, inner, groups, experts)
        if wants_offset:
            doffset = group_sums(g, groups, experts)
        return dx, *_of_shared(g, x, wants_weight, wants_bias), ddown, dup, doffset, None


class Weighted(torch.autograd.Function):
    """W x + b + `stacked`, (N, out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weights: Tensor,
        down: Tensor,
        up: Tensor,
        offset: Tensor | None,
    ) -> Tensor:
        """The layer's output."""
        experts, rank, _ = down.shape
        out = F.linear(x, weight, bias)
        inner = F.linear(x, down.flatten(0, 1))  # (N, E * r)
        up = up.transpose(1, 2).flatten(0, 1)  # (E * r, out)
        out.addmm_((inner.view(-1, experts, rank) * weights.unsqueeze(2)).flatten(1), up)
        if offset is not None:
            out.addmm_(weights, offset)
        ctx.save_for_backward(x, inner, weight, weights, down, up, offset)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """A gradient for each input that wants one."""
        x, inner, weight, weights, down, up, offset = ctx.saved_tensors
        (experts, rank, wide), g = down.shape, grad
        wants_x, wants_weight, wants_bias, wants_weights, *wants = ctx.needs_input_grad
        wants_down, wants_up, wants_offset = wants
        dx = dweights = ddown = dup = doffset = None
        turned = (g @ up.T).view(-1, experts, rank)
        dinner = (turned * weights.unsqueeze(2)).flatten(1)
        if wants_x:
            dx = (g @ weight).addmm_(dinner, down.flatten(0, 1))
        if wants_weights:
            dweights = (turned * inner.view_as(turned)).sum(2)
            if offset is not None:
                dweights.addmm_(g, offset.T)
        if wants_down:
            ddown = (dinner.T @ x).view(experts, rank, wide)
        if wants_up:
            scaled = (inner.view_as(turned) * weights.unsqueeze(2)).flatten(1)
            dup = (scaled.T @ g).view(experts, rank, -1).transpose(1, 2)
        if wants_offset:
            doffset = weights.T @ g
        return dx, *_of_shared(g, x, wants_weight, wants_bias), dweights, ddown, dup, doffset


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        groups: list[Groups],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *downs: Tensor,
    ) -> tuple[Tensor, ...]:
        x = x.contiguous()
        inner = [x.new_zeros(x.shape[0], down.shape[1]) for down in downs]
        for z, down, rows in zip(inner, downs, groups, strict=True):
            add_products(z, x, down.contiguous(), rows)
        ctx.save_for_backward(x, weight, *downs)
        ctx.groups = groups
        return F.linear(x, weight, bias), *inner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *downs = ctx.saved_tensors
        _, wants_x, wants_weight, wants_bias, *wants = ctx.needs_input_grad
        dx = grad @ weight if wants_x else None
        ddowns: list[Tensor | None] = []
        for g, down, rows, wanted in zip(grads, downs, ctx.groups, wants, strict=True):
            dinner = g.contiguous()
            if dx is not None:
                add_products(dx, dinner, down.contiguous(), rows, turned=True)
            ddowns.append(outer_products(dinner, x, rows, len(down)) if wanted else None)
        return None, dx, *_of_shared(grad, x, wants_weight, wants_bias), *ddowns


def _of_shared(
    g: Tensor, x: Tensor, wants_weight: bool, wants_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of W and b of y = W x + b."""
    return g.T @ x if wants_weight else None, g.sum(0) if wants_bias else None
