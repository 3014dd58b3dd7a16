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
    Without it all maps go both ways. ReLU, bias and halves are DeepCTR's and the authors' code's;
    the paper's equation 6 has the identity, no bias and no halves.

    A layer is one product named `0`, `1`, …: `Linear` of all F · H pairs, i after i, j within i.
    It is Glorot normal at first, with b = 0.

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
                f"needs at least one field and one layer of 1 or more maps,"
                f" not {fields} fields and sizes {tuple(sizes)}"
            )
        odd = [size for size in sizes[:-1] if size % 2]
        if split_half and odd:
            raise ValueError(f"split_half needs even sizes but for the last, not {odd[0]}")
        self._onward = [size // 2 if split_half else size for size in sizes[:-1]] + [0]
        self._kept = [size // 2 if split_half else size for size in sizes[:-1]] + [sizes[-1]]
        self.out_features = sum(self._kept)
        widths = [fields, *self._onward]
        for index, size in enumerate(sizes):
            layer = Linear(widths[index] * fields, size, generator=generator)
            self.add_module(str(index), layer)

    def forward(self, fields: Tensor, route: Route | None = None) -> Tensor:
        """Sum-pooled feature maps of all layers."""
        first = maps = fields.transpose(1, 2)  # (N, K, F): the products stand last
        pooled: list[Tensor] = []
        for layer, onward, kept in zip(self.children(), self._onward, self._kept, strict=True):
            pairs = (maps[..., :, None] * first[..., None, :]).flatten(2)
            made = F.relu(layer(pairs, route), inplace=True)  # fresh, and no backward needs it
            maps = made[..., :onward]
            pooled.append(made[..., made.shape[2] - kept :].sum(1))
        return torch.cat(pooled, 1)
