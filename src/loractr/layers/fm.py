"""The factorisation machine's second-order term."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _PairwiseSum(torch.autograd.Function):
    """Half of (square of the sum minus sum of squares), with its gradient (sum - e) written out:
    autograd's own takes twice as long, which is a tenth of a whole training step."""

    @staticmethod
    def forward(vectors: Tensor) -> tuple[Tensor, Tensor]:
        total = vectors.sum(1)
        squares = vectors.flatten(1).square().sum(1)
        return (total.square().sum(1) - squares).mul_(0.5), total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        vectors, total = ctx.saved_tensors
        result: Tensor = (total[:, None] - vectors).mul_(grad[:, None, None])
        return result


def fm(vectors: Tensor) -> Tensor:
    """Sum of the inner products of all pairs of field vectors.

        fm(e) = Σ_{i<j} ⟨e_i, e_j⟩ = ½ Σ_k ((Σ_i e_ik)² - Σ_i e_ik²)

    Shapes: vectors (N, P, K) → (N,). With fewer than two fields it is 0.
    Source: Rendle, Factorization Machines, ICDM 2010; in DeepFM, Guo et al., IJCAI 2017.
    Cost: O(N · P · K).
    """
    result: Tensor = _PairwiseSum.apply(vectors)[0]
    return result
