"""The compressed interaction network of xDeepFM."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractr.batch import Route
from loractr.layers.linear import Linear


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
        first = maps = fields.transpose(1, 2).contiguous()  # (N, K, F): products read the last axis
        *hidden, last = self.children()
        pooled: list[Tensor] = []
        for layer in hidden:
            maps = kept = _layer(layer, first, maps, route)
            if self._split_half:
                maps, kept = maps.chunk(2, 2)
            pooled.append(kept.sum(1))
        pooled.append(_layer(last, first, maps, route).sum(1))
        return torch.cat(pooled, 1)


def _layer(product: nn.Module, first: Tensor, maps: Tensor, route: Route | None) -> Tensor:
    """(N, K, F) and (N, K, H_in) → (N, K, H_out)."""
    pairs = (first[..., :, None] * maps[..., None, :]).flatten(2)  # H_in last: the longer axis
    return F.relu(product(pairs, route), inplace=True)  # fresh, and no backward needs it
