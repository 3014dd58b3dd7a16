"""The one product that backbones are made of, and that adapters replace."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractr.batch import Route
from loractr.layers.dropout import Dropout, Rectifier
from loractr.layers.one_pass import in_one_pass, pays
from loractr.layers.rounded import rounded_linear


class Linear(nn.Module):
    """An affine map that takes the batch's route and ignores it: the layer that adapters replace.

        y = x Wᵀ + b        with `dropout` set: y = Dropout(x Wᵀ + b)

    Called with an `ending`, it returns ending(y), in one compiled pass where there is one. What
    stands in its place takes the same (x, route, ending).

    A fresh one has Glorot normal weights, variance 2 / (in + out), and zero bias.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether to add b.
        generator: Source of the initial weights; torch's default one when absent.

    Attributes:
        dropout: Dropout of this layer's own output. An adapter adds its update *after* it, so
            that only the shared path is dropped. None almost always: it serves the one option
            that reproduces the MLoRA authors' code (`dropout_position: shared_path`).
        rounds: In training, multiply in bfloat16 (`rounded_linear`).

    Shapes: x (..., in) → (..., out).
    Raises: ValueError: a width below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"widths must be at least 1, not {in_features} → {out_features}")
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.dropout: Dropout | None = None
        self.rounds = False
        nn.init.xavier_normal_(self.weight, generator=generator)

    @property
    def plain(self) -> bool:
        """Whether it computes x Wᵀ + b and nothing else."""
        return self.dropout is None and not (self.rounds and self.training)

    def forward(
        self, x: Tensor, route: Route | None = None, ending: Rectifier | None = None
    ) -> Tensor:
        """The affine map, and its ending if it has one; `route` is for the adapter that may stand
        in this layer's place."""
        if ending is not None and self.plain and pays(x, self.out_features, ending):
            whole = in_one_pass(x, self.weight, self.bias, None, ending)
            if whole is not None:
                return whole
        product = rounded_linear if self.rounds and self.training else F.linear
        y = product(x, self.weight, self.bias)
        y = y if self.dropout is None else self.dropout(y)
        return y if ending is None else ending(y)

    def extra_repr(self) -> str:
        """The widths, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
