"""Products of all pairs of field vectors: inner, bilinear, and their pooled sum.

Pairs (i, j), i < j, stand in the order (0, 1), (0, 2), …, (1, 2), … everywhere.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from loractr.batch import Route
from loractr.errors import ConfigError
from loractr.layers.linear import Linear

ProductKind = Literal["inner", "outer", "both"]
BilinearKind = Literal["all", "each", "interaction"]


def pair_count(fields: int, *, wanted_by: str) -> int:
    """How many pairs so many fields have, for a backbone that is nothing without them.

    Raises:
        ConfigError: fewer than two fields; `wanted_by` is the backbone's name.
    """
    if fields < 2:
        raise ConfigError(
            [f"backbone {wanted_by!r} multiplies pairs of fields, but has {fields} to multiply"],
            fix="add a field, let numbers take part (model.numbers_in_interactions: true),"
            " or choose backbone 'mlp' or 'wide_deep'.",
        )
    return fields * (fields - 1) // 2


def bi_interaction(vectors: Tensor) -> Tensor:
    """Elementwise products of all pairs of field vectors, summed: NFM's pooling.

        Σ_{i<j} e_i ⊙ e_j = ½ ((Σ_i e_i)² - Σ_i e_i²)

    Shapes: vectors (N, F, K) → (N, K). With fewer than two fields it is 0.
    Source: He and Chua, Neural Factorization Machines, SIGIR 2017, eq. 4.
    Cost: O(N · F · K).
    """
    return 0.5 * (vectors.sum(1).square() - vectors.square().sum(1))


def inner_products(vectors: Tensor) -> Tensor:
    """⟨e_i, e_j⟩ of all pairs of field vectors.

    Shapes: vectors (N, F, K) → (N, F (F - 1) / 2).
    Source: Qu et al., Product-based Neural Networks, ICDM 2016 (IPNN).
    Cost: one batched product of N · F² · K.
    """
    fields = vectors.shape[1]
    left, right = torch.triu_indices(fields, fields, 1, device=vectors.device)
    gram = vectors @ vectors.transpose(1, 2)
    return gram.flatten(1).index_select(1, left * fields + right)


class Bilinear(nn.Module):
    """All pairs of field vectors, the left one through a matrix: p_ij = (W v_i) ⊙ v_j.

        all:          one W                    1 matrix
        each:         one W_i per left field   F - 1 matrices
        interaction:  one W_ij per pair        F (F - 1) / 2 matrices

    Its products are named `0`, `1`, … by left field: `bilinear.0`. Matrices of one left field are
    stacked, W_01 above W_02 …, so no kind takes more than F - 1 products. Summed over K, the kind
    interaction is PNN's outer product with a K x K kernel per pair, p_ij = v_jᵀ W_ij v_i.

    A fresh one has Glorot normal matrices, each by its own widths K and K, and no biases.

    Args:
        fields: F, at least two.
        size: K.
        kind: How many matrices.
        generator: Source of the initial weights.

    Shapes: vectors (N, F, K) → (N, F (F - 1) / 2, K).
    Raises: ValueError: fewer than two fields.
    Source: Huang et al., FiBiNET, RecSys 2019, eq. 8-10; Qu et al., PNN, ICDM 2016 (OPNN).
    Cost: N · K² multiplications per matrix; for `all`, per left field.
    """

    def __init__(
        self,
        fields: int,
        size: int,
        *,
        kind: BilinearKind = "interaction",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if fields < 2:
            raise ValueError(f"pairs need at least two fields, not {fields}")
        self.kind = kind
        for left in range(1 if kind == "all" else fields - 1):
            matrices = self._matrices(fields - 1 - left)
            self.add_module(str(left), _stacked(size, matrices, generator))

    def forward(self, vectors: Tensor, route: Route | None = None) -> Tensor:
        """All pairs, one left field after the other."""
        pairs = [
            left * vectors[:, place + 1 :]  # slices: a fifth faster than all pairs gathered first
            for place, left in enumerate(self._lefts(vectors, route))
        ]
        return torch.cat(pairs, 1)

    def _lefts(self, vectors: Tensor, route: Route | None) -> Sequence[Tensor]:
        """W v_i of every left field i, (N, its matrices, K)."""
        if self.kind == "all":
            mapped: Tensor = self.get_submodule("0")(vectors[:, :-1], route)
            return mapped.unsqueeze(2).unbind(1)
        lefts = zip(self.children(), vectors.unbind(1)[:-1], strict=True)
        fields, size = vectors.shape[1:]
        return [
            linear(left, route).unflatten(1, (self._matrices(fields - 1 - place), size))
            for place, (linear, left) in enumerate(lefts)
        ]

    def _matrices(self, pairs: int) -> int:
        """How many matrices a left field of so many pairs has."""
        return pairs if self.kind == "interaction" else 1


def _stacked(size: int, matrices: int, generator: torch.Generator | None) -> Linear:
    """Several square matrices as one product; each starts as it would alone."""
    linear = Linear(size, matrices * size, bias=False, generator=generator)
    for matrix in linear.weight.detach().view(matrices, size, size):
        nn.init.xavier_normal_(matrix, generator=generator)
    return linear
