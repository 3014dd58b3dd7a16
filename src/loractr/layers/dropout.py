"""Dropout whose rate the training loop sets stage by stage, with masks that cost little."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loractr.layers.custom import custom

LEVELS = 1 << 16
"""A mask is drawn in steps of 1 / 65,536."""


class Dropout(nn.Module):
    """Zeroes each element with probability `p` and divides the others by 1 - p, in training only.

    In evaluation, or with p = 0, the input itself is returned, at no cost. On the CPU the mask is
    made of 16 random bits per element, which takes less than half of the time of torch's own
    (benchmarks/bench_dropout.py): p is taken to the nearest 1 / 65,536, for the mask and for the
    scale alike, so that the expected value is kept exactly. Every mask
    is drawn from one number of torch's default generator, whose state the training loop owns and
    checkpoints. Elsewhere, and in compiled graphs, it is torch's dropout.

    Args:
        p: Probability in [0, 1); may be set anew at any time.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, unchanged."""
        if not self.training or self.p == 0.0:
            return x
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return F.dropout(x, self.p)
        return custom(_Masked, x, self.p)

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"p={self.p}"


def draw_mask(shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
    """0 with probability p, else 1 / (1 - p); p to the nearest 1 / 65,536, but below 1."""
    lost = min(round(p * LEVELS), LEVELS - 1)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    count = shape.numel()
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    kept = words.view(np.uint16)[:count] >= lost
    return torch.from_numpy(kept).view(shape).to(dtype).mul_(LEVELS / (LEVELS - lost))


class _Masked(torch.autograd.Function):
    """x times a fresh mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = draw_mask(x.shape, p, x.dtype)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None
