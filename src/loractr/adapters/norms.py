"""Norms per domain behind adapted layers, where a backbone has norms."""

from collections.abc import Sequence

from torch import nn

from loractr.layers.norm import BatchNorm, DomainNorm


def attach_norms(
    backbone: nn.Module, layers: Sequence[str], sizes: tuple[int, ...], *, cells: bool = False
) -> list[str]:
    """Replace, in place, the norm behind each adapted layer by a `DomainNorm`.

    The norm of layer `tower.0.linear` is `tower.0.norm`; a layer without one keeps none.

    Args:
        backbone: The backbone.
        layers: Names of adapted layers.
        sizes: Number of domains of each division.
        cells: Whether cells get norms too, for mixers.

    Returns: the names of the replaced norms.
    """
    names = []
    for layer in layers:
        parent = backbone.get_submodule(layer.rpartition(".")[0])
        norm = getattr(parent, "norm", None)
        if isinstance(norm, BatchNorm):
            parent.norm = DomainNorm(norm, sizes, cells=cells)
            names.append(f"{layer.rpartition('.')[0]}.norm")
    return names
