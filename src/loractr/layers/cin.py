"""The compressed interaction network of xDeepFM."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loractr.batch import Route
from loractr.layers.custom import custom_all
from loractr.layers.linear import Linear
from loractr.native import Library, library_for


class CIN(nn.Module):
    """Interactions of ever more fields, each kept as a vector: layer k adds one field per product.

        x^0 = the field vectors
        x^k_h = ReLU(Σ_i Σ_j W^k_h[i, j] · (x^{k-1}_i ⊙ x^0_j) + b^k_h)     h = 1 … sizes[k]
        output = sums over the K elements of the maps x^k_h

    With `split_half` the first half of the maps of every layer but the last goes on to the next
    layer and only the second half to the output; the last layer goes to the output entirely.
    Without it all maps go both ways. ReLU, bias and halves are DeepCTR's defaults; the paper's
    equation 6 has the identity, no bias and no halves.

    A layer is one product named `0`, `1`, …: `Linear` of all F · H pairs, field by field, as
    in DeepCTR. It is Glorot normal at first, with b = 0.

    Args:
        fields: Number F of field vectors, at least one.
        sizes: Feature maps of each layer, first to last; even but for the last where halved.
        split_half: Whether a layer's maps are split between next layer and output.
        generator: Source of the initial weights.

    Shapes: fields (N, F, K) → (N, `out_features`), out_features = Σ sizes, hidden layers by half.
    Raises: ValueError: no field, no layer, an empty layer, an odd one to split.
    Source: Lian et al., xDeepFM, KDD 2018, eq. 6-8.
    Cost: O(N · K · F · H_in · H_out) per layer; the pairs take N · K · F · H_in numbers.
    """

    def __init__(
        self,
        fields: int,
        sizes: Sequence[int] = (128, 128),
        *,
        split_half: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if fields < 1 or not sizes or min(sizes) < 1:
            raise ValueError(
                f"a CIN needs at least one field and one layer of 1 or more maps,"
                f" not {fields} fields and sizes {tuple(sizes)}"
            )
        odd = [size for size in sizes[:-1] if size % 2]
        if split_half and odd:
            raise ValueError(f"split_half needs even sizes but for the last, not {odd[0]}")
        onward = [size // 2 if split_half else size for size in sizes[:-1]]
        self.out_features = sum(onward) + sizes[-1]
        self._split_half = split_half
        widths = [fields, *onward]
        for index, size in enumerate(sizes):
            layer = Linear(widths[index] * fields, size, generator=generator)
            self.add_module(str(index), layer)

    def forward(self, fields: Tensor, route: Route | None = None) -> Tensor:
        """Sum-pooled feature maps of all layers."""
        first = fields.transpose(1, 2).contiguous()  # (N, K, F): products read the last axis
        pairs = _pairs(first, first)
        *hidden, last = self.children()
        pooled: list[Tensor] = []
        for layer in hidden:
            h: Tensor = layer(pairs, route)
            width = h.shape[2]
            onward, kept = (width // 2, width // 2) if self._split_half else (width, 0)
            pairs, sums = _between(h, first, onward, kept)
            pooled.append(sums)
        h = last(pairs, route)
        return torch.cat([*pooled, _between(h, first, 0, 0)[1]], 1)


def _pairs(first: Tensor, maps: Tensor) -> Tensor:
    """(N, K, F) and (N, K, H) → (N, K, F · H), H last: it is the longer axis."""
    return (first[..., :, None] * maps[..., None, :]).flatten(2)


def _between(h: Tensor, first: Tensor, onward: int, kept: int) -> tuple[Tensor, Tensor]:
    """The next layer's pairs, of the first `onward` maps of ReLU(h), and the sums over K of the
    maps from number `kept` on. h (N, K, H) may be overwritten."""
    kernels = library_for(h, first)
    if kernels and h.shape[:2] == first.shape[:2]:
        pairs, sums = custom_all(_Between, h, first, onward, kept, kernels)
        return pairs, sums
    maps = F.relu(h, inplace=True)
    return _pairs(first, maps[..., :onward]), maps[..., kept:].sum(1)


class _Between(torch.autograd.Function):
    """`_between` by compiled kernels, one pass each way: ReLU(h) is never there as a whole."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, first: Tensor, onward: int, kept: int, kernels: Library
    ) -> tuple[Tensor, Tensor]:
        rows, elements, width = h.shape
        fields = first.shape[2]
        pairs = h.new_empty(rows, elements, fields * onward)
        sums = h.new_empty(rows, width - kept)
        sizes = (rows, elements, width, onward, kept, fields)
        kernels.call("cin", h, first, pairs, sums, *sizes)
        ctx.save_for_backward(h, first)
        ctx.kernels, ctx.sizes = kernels, sizes
        return pairs, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpairs: Tensor, dsums: Tensor) -> tuple[Tensor | None, ...]:
        h, first = ctx.saved_tensors
        dh = torch.empty_like(h)
        dfirst = torch.zeros_like(first) if ctx.sizes[3] else None  # not without maps that go on
        given = (h, first, dpairs.contiguous(), dsums.contiguous())
        ctx.kernels.call("cin_backward", *given, dh, dfirst, *ctx.sizes)
        return dh, dfirst, None, None, None
