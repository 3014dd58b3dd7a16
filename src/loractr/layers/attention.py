"""The interacting layers of AutoInt: attention of the fields to each other."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loractr.batch import Route
from loractr.layers.custom import custom
from loractr.layers.linear import Linear
from loractr.native import Library, library_for


class AttentionLayer(nn.Module):
    """One interacting layer: every field becomes a mix of all fields, head by head.

        q, k, v = W_q e, W_k e, W_v e                         split into heads of width `size`
        a[i, j] = softmax_j(⟨q_i, k_j⟩)                       in each head, i itself included
        y_i = ReLU([Σ_j a[i, j] v_j in head 1, head 2, …] + W_r e_i)

    The inner products are not divided by √size: the paper's and DeepCTR's form, unlike the
    Transformer's. No product has a bias; all four are Glorot normal at first.

    Args:
        in_features: Width K of the field vectors.
        size: Width of one head.
        heads: Number of heads.
        generator: Source of the initial weights.

    Shapes: e (N, M, K) → (N, M, heads · size).
    Raises: ValueError: a size below 1.
    Source: Song et al., AutoInt, CIKM 2019.
    Cost: O(N · M · heads · size · (K + M)); the weights a take N · heads · M² numbers.
    """

    def __init__(
        self,
        in_features: int,
        *,
        size: int,
        heads: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size < 1 or heads < 1:
            raise ValueError(f"attention needs heads of width 1 or more, not {heads} of {size}")
        self.size = size
        self.heads = heads
        self.out_features = heads * size

        def product() -> Linear:
            return Linear(in_features, self.out_features, bias=False, generator=generator)

        self.query = product()
        self.key = product()
        self.value = product()
        self.residual = product()

    def forward(self, fields: Tensor, route: Route | None = None) -> Tensor:
        """One step of attention."""
        query, key, value = (
            product(fields, route) for product in (self.query, self.key, self.value)
        )
        joined = attend(query, key, value, self.heads)
        return F.relu(joined + self.residual(fields, route))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Σ_j softmax_j(⟨q_i, k_j⟩) v_j in every head; all (N, M, heads · size)."""
    rows, fields, width = query.shape
    kernels = library_for(query, key, value)
    if kernels and query.shape == key.shape == value.shape and width % heads == 0:
        return custom(_Attended, query, key, value, heads, kernels)

    def split(x: Tensor) -> Tensor:
        return x.reshape(rows, fields, heads, width // heads).transpose(1, 2)

    # torch's fused attention takes 1.5 times as long on rows of three fields, on a CPU
    shares = (split(query) @ split(key).transpose(2, 3)).softmax(3)
    return (shares @ split(value)).transpose(1, 2).flatten(2)


class _Attended(torch.autograd.Function):
    """`attend` by compiled kernels: no copy of an input in another order, one pass each way."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, kernels: Library
    ) -> Tensor:
        rows, fields, width = query.shape
        out, shares = torch.empty_like(query), query.new_empty(rows, heads, fields, fields)
        sizes = (rows, fields, heads, width // heads)
        kernels.call("attention", query, key, value, out, shares, *sizes)
        ctx.save_for_backward(query, key, value, shares)
        ctx.kernels, ctx.sizes = kernels, sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        found = [torch.empty_like(x) for x in saved[:3]]
        ctx.kernels.call("attention_backward", grad.contiguous(), *saved, *found, *ctx.sizes)
        return (*found, None, None)


class Attention(nn.Module):
    """Interacting layers one after the other, named `0`, `1`, …: `attention.0.query`.

    Args:
        in_features: Width K of the field vectors.
        layers: Number of interacting layers, at least one.
        size: Width of one head; see `AttentionLayer`.
        heads: Heads of each layer.
        generator: Source of the initial weights.

    Shapes: fields (N, M, K) → (N, M, heads · size).
    Raises: ValueError: no layer, or a size below 1.
    Source: Song et al., AutoInt, CIKM 2019.
    """

    def __init__(
        self,
        in_features: int,
        layers: int = 3,
        *,
        size: int = 8,
        heads: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"attention needs at least one layer, not {layers}")
        self.out_features = heads * size
        for index in range(layers):
            width = self.out_features if index else in_features
            layer = AttentionLayer(width, size=size, heads=heads, generator=generator)
            self.add_module(str(index), layer)

    def forward(self, fields: Tensor, route: Route | None = None) -> Tensor:
        """All interacting layers."""
        for layer in self.children():
            fields = layer(fields, route)
        return fields
