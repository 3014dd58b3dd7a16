"""Dropout whose rate the training loop sets stage by stage, with masks that cost little."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loractr.layers.custom import custom
from loractr.native import Library, library_for

LEVELS = 1 << 16
"""A mask is drawn in steps of 1 / 65,536."""

WORDS_AT_ONCE = 8192
"""Random words made together: few enough to stay in the processor's cache."""


class Dropout(nn.Module):
    """Zeroes each element with probability `p` and divides the others by 1 - p, in training only.

    In evaluation, or with p = 0, the input itself is returned, at no cost. On the CPU the mask is
    made of 16 random bits per element, at a fraction of the time that torch's own takes
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

    @property
    def acts(self) -> bool:
        """Whether it drops anything now."""
        return self.training and self.p > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, unchanged."""
        if not self.acts:
            return x
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return F.dropout(x, self.p)
        return custom(_Dropped, x, draw(self.p))

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"p={self.p}"


class Draw(NamedTuple):
    """All that a mask is made of: element i is lost where the 16 bits of its own are below `lost`.

    Those are bits 16 (i mod 4) and up of the (i div 4)-th output of SplitMix64 from `seed` (Steele,
    Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014): any part of a mask
    can be made by itself, and made again.
    """

    seed: int
    lost: int

    @property
    def scale(self) -> float:
        """What the others are multiplied by."""
        return LEVELS / (LEVELS - self.lost)

    def mask(self, x: Tensor) -> Tensor:
        """0 or `scale` for every element of x, in its shape and type."""
        count = x.numel()
        kept = _words(self.seed, -(-count // 4)).view("<u2")[:count] >= self.lost
        return torch.from_numpy(kept).view(x.shape).to(x.dtype).mul_(self.scale)


def draw(p: float) -> Draw:
    """A fresh mask of probability p, to the nearest 1 / 65,536, but below 1."""
    lost = min(round(p * LEVELS), LEVELS - 1)
    return Draw(seed=int(torch.empty((), dtype=torch.int64).random_()), lost=lost)


def relu_dropout(x: Tensor, dropout: Dropout | None) -> Tensor:
    """Dropout(ReLU(x)), in place: x is fresh, and what made it does not need it any more.

    Compiled kernels keep no mask: where the result is 0, no gradient passes.
    """
    kernels = library_for(x)
    if dropout is None or not dropout.acts or kernels is None:
        rectified = F.relu(x, inplace=True)
        return rectified if dropout is None else dropout(rectified)
    return custom(_Rectified, x, draw(dropout.p), kernels)


class Rectifier(NamedTuple):
    """How a hidden layer ends: Dropout(ReLU(x)), in place. A linear layer that is told its ending
    may take it into its own pass."""

    dropout: Dropout | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`relu_dropout`."""
        return relu_dropout(x, self.dropout)

    def draw(self) -> Draw | None:
        """A fresh mask; None where nothing is dropped now."""
        return draw(self.dropout.p) if self.dropout is not None and self.drops else None

    @property
    def drops(self) -> bool:
        """Whether anything is dropped now."""
        return self.dropout is not None and self.dropout.acts


class _Dropped(torch.autograd.Function):
    """x times a mask. Compiled kernels make it anew on the way back; otherwise it is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drawn: Draw) -> Tensor:
        x = x.contiguous()
        ctx.drawn, ctx.kernels = drawn, library_for(x)
        if ctx.kernels is not None:
            return _masked(x, drawn, ctx.kernels)
        mask = drawn.mask(x)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.kernels is not None:
            return _masked(grad.contiguous(), ctx.drawn, ctx.kernels), None
        (mask,) = ctx.saved_tensors
        return grad * mask, None


class _Rectified(torch.autograd.Function):
    """max(x, 0) times a mask, in place, by compiled kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drawn: Draw, kernels: Library) -> Tensor:
        kernels.call("relu_dropout", x, x.numel(), drawn.seed, drawn.lost, drawn.scale)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.scale, ctx.kernels = drawn.scale, kernels
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        grad = grad.contiguous()
        dx = torch.empty_like(grad)
        ctx.kernels.call("relu_dropout_backward", y, grad, dx, y.numel(), ctx.scale)
        return dx, None, None


def _masked(x: Tensor, drawn: Draw, kernels: Library) -> Tensor:
    y = torch.empty_like(x)
    kernels.call("dropout", x, y, x.numel(), drawn.seed, drawn.lost, drawn.scale)
    return y


def _words(seed: int, count: int) -> NDArray[np.uint64]:
    """The first outputs of SplitMix64 from `seed`."""
    words = np.empty(count, np.uint64)
    for start in range(0, count, WORDS_AT_ONCE):
        z = words[start : start + WORDS_AT_ONCE]
        z[:] = _STEPS[: len(z)]
        z += np.uint64((seed + start * _GOLDEN) % 2**64)
        _mix(z, 30, 0xBF58476D1CE4E5B9)
        _mix(z, 27, 0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return words


def _mix(z: NDArray[np.uint64], shift: int, factor: int) -> None:
    z ^= z >> np.uint64(shift)
    z *= np.uint64(factor)


_GOLDEN = 0x9E3779B97F4A7C15
_STEPS = np.arange(1, WORDS_AT_ONCE + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
