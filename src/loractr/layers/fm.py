"""The factorisation machine's second-order term."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loractr.layers.custom import custom
from loractr.native import Library, library_for


def fm(vectors: Tensor) -> Tensor:
    """Sum of the inner products of all pairs of field vectors.

        fm(e) = Σ_{i<j} ⟨e_i, e_j⟩ = ½ Σ_k ((Σ_i e_ik)² - Σ_i e_ik²)

    Shapes: vectors (N, P, K) → (N,). With fewer than two fields it is 0.
    Source: Rendle, Factorization Machines, ICDM 2010; in DeepFM, Guo et al., IJCAI 2017.
    Cost: O(N · P · K).
    """
    if torch.compiler.is_compiling():
        return _halves(vectors, vectors.sum(1))
    return custom(_PairwiseSum, vectors, library_for(vectors) if vectors.dim() == 3 else None)


def _halves(vectors: Tensor, total: Tensor) -> Tensor:
    return 0.5 * (total.square().sum(1) - vectors.flatten(1).square().sum(1))


class _PairwiseSum(torch.autograd.Function):
    """The same, its gradient Σ_j e_j - e_i written out: autograd's own takes twice as long."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, kernels: Library | None) -> Tensor:
        ctx.kernels = kernels
        if kernels is not None:
            ctx.save_for_backward(vectors)
            result = vectors.new_empty(vectors.shape[0])
            kernels.call("fm", vectors, result, *vectors.shape)
            return result
        total = vectors.sum(1)
        ctx.save_for_backward(vectors, total)
        return _halves(vectors, total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.kernels is not None:
            (vectors,) = ctx.saved_tensors
            found = torch.empty_like(vectors)
            ctx.kernels.call("fm_backward", vectors, grad.contiguous(), found, *vectors.shape)
            return found, None
        vectors, total = ctx.saved_tensors
        result: Tensor = (total[:, None] - vectors).mul_(grad[:, None, None])
        return result, None
