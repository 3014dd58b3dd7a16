"""Both kinds of kernels on the same inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from loractr import native


def gap(function: Callable[..., Tensor], *inputs: Tensor) -> float:
    """Largest difference between compiled and torch's kernels in the result and in the gradients of
    all inputs, relative to the largest number of each."""
    found = [_results(kind, function, inputs) for kind in ("native", "torch")]
    gaps = [
        (one - other).abs().max() / other.abs().max().clamp(min=1e-30)
        for one, other in zip(*found, strict=True)
        if len(one)
    ]
    return torch.stack(gaps).max().item() if gaps else 0.0  # not a number, if one of them is none


def _results(
    kind: native.Choice, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    with native.use(kind):
        y = function(*leaves)
        grad = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(9))
        y.backward(grad)
    gradients = [x.new_zeros(x.shape) if x.grad is None else x.grad for x in leaves]
    return [tensor.flatten() for tensor in (y.detach(), *gradients)]
