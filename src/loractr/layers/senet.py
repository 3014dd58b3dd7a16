"""The squeeze-and-excitation network: a weight for every field of a row."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractr.batch import Route
from loractr.layers.linear import Linear


class SENET(nn.Module):
    """Each field's vector times a weight that the row's fields decide together.

        z_i = mean_k e_ik,    a = ReLU(W_2 ReLU(W_1 z)),    v_i = a_i e_i

    A fresh one has Glorot normal W_1 and W_2; there are no biases. Its products are `squeeze`
    (W_1, F → max(1, F // reduction)) and `excite` (W_2, back to F). A field whose row of W_2 is
    negative throughout has weight 0 for every input, and no gradient: that is the paper's design.

    Args:
        fields: F, at least one.
        reduction: Fields per unit of the hidden layer, at least one.
        generator: Source of the initial weights.

    Shapes: vectors (N, F, K) → (N, F, K).
    Raises: ValueError: `fields` or `reduction` below 1.
    Source: Huang et al., FiBiNET, RecSys 2019, eq. 4-6.
    """

    def __init__(
        self, fields: int, *, reduction: int = 3, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, not {reduction}")
        hidden = max(1, fields // reduction)
        self.squeeze = Linear(fields, hidden, bias=False, generator=generator)
        self.excite = Linear(hidden, fields, bias=False, generator=generator)

    def forward(self, vectors: Tensor, route: Route | None = None) -> Tensor:
        """The reweighted vectors."""
        hidden = F.relu(self.squeeze(vectors.mean(2), route))
        weights = F.relu(self.excite(hidden, route))
        return vectors * weights.unsqueeze(2)
