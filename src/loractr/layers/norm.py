"""Batch normalisation that knows when it is frozen and when a batch is too small."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractr.batch import Route


class BatchNorm(nn.Module):
    """Normalises each feature over the rows of the batch.

        y = weight ⊙ (x - mean) / √(var + eps) + bias

    In training, mean and (biased) variance are the batch's, and the running ones move towards
    them: running += momentum · (batch - running), with the unbiased variance. In evaluation they
    are the running ones. Two more cases use the running ones and leave them alone: a batch of
    fewer than two rows, which has no variance, and a norm none of whose parameters train, so that
    a frozen layer's buffers stay bit-identical. A fresh one has weight 1, bias 0, running mean 0
    and running variance 1.

    Args:
        features: Number of features H.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.

    Shapes: x (N, H) → (N, H), N ≥ 0.
    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.features = features
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """Normalised x; `route` is for the norm per domain that may stand in this layer's place."""
        trains = self.training and (self.weight.requires_grad or self.bias.requires_grad)
        if x.shape[0] < 2:  # a branch, not a value: in a compiled graph the size is symbolic
            trains = False
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=trains,
            momentum=self.momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """The width, for `print(model)`."""
        return f"{self.features}, momentum={self.momentum}, eps={self.eps}"
