"""Custom autograd functions: the one place that calls torch's untyped `apply`."""

from collections.abc import Callable

import torch
from torch import Tensor


def custom(function: type[torch.autograd.Function], *inputs: object) -> Tensor:
    """`function.apply(*inputs)` of a function that returns one tensor."""
    (result,) = custom_all(function, *inputs)
    return result


def custom_all(function: type[torch.autograd.Function], *inputs: object) -> tuple[Tensor, ...]:
    """`function.apply(*inputs)` of a function that returns one tensor or several."""
    apply: Callable[..., Tensor | tuple[Tensor, ...]] = function.apply
    found = apply(*inputs)
    return found if isinstance(found, tuple) else (found,)
