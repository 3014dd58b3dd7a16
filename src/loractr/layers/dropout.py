"""Dropout whose rate the training loop sets stage by stage."""

import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes each element with probability `p` and divides the others by 1 - p, in training only.

    In evaluation, or with p = 0, the input itself is returned, at no cost. The mask comes from
    torch's default generator: the training loop owns and checkpoints its state.

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
        return F.dropout(x, self.p) if self.training and self.p > 0.0 else x

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"p={self.p}"
