"""Put adapters onto a finished backbone, take them off, fold one domain's into plain weights."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from loractr.adapters.fusion import FusedLinear
from loractr.adapters.gate import FieldsInRoute, SharedGate, mixture_of
from loractr.adapters.low_rank import LowRankLinear
from loractr.batch import Routing
from loractr.errors import AdapterError, some
from loractr.layers.linear import Linear
from loractr.layers.norm import BatchNorm, DomainNorm, NormBank


def attach(
    backbone: nn.Module,
    targets: tuple[str, ...],
    wrap: Callable[[str, Linear], nn.Module],
) -> list[str]:
    """Replace, in place, each `Linear` whose name matches one of `targets` by `wrap(name, layer)`.

    Returns the names of the adapted layers, in the backbone's order.

    Raises:
        AdapterError: nothing matches one of the globs, or what it matches is adapted already.
    """
    modules = dict(backbone.named_modules())
    wrapped = tuple(
        f"{name}." for name, m in modules.items() if isinstance(m, LowRankLinear | FusedLinear)
    )
    free = {
        name: module
        for name, module in modules.items()
        if type(module) is Linear and not name.startswith(wrapped)
    }
    idle = [glob for glob in targets if not any(fnmatchcase(name, glob) for name in free)]
    if idle or not targets:
        raise AdapterError(
            f"targets {some(idle)} match no free layer of the backbone; it has {some(free, 30)}.",
            fix="set method.targets to globs over those names, like 'tower.*'.",
        )
    hits = [name for name in free if any(fnmatchcase(name, glob) for glob in targets)]
    for name in hits:
        _replace(backbone, name, wrap(name, free[name]))
    return hits


def adapted(module: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    """Every adapted layer with its name."""
    for name, layer in module.named_modules():
        if isinstance(layer, LowRankLinear):
            yield name, layer


def detach(module: nn.Module) -> None:
    """Take all adapters off, in place: what remains is the shared backbone."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LowRankLinear | FusedLinear | DomainNorm):
            _replace(module, name, layer.base)
    _drop_gates(module)


def merge(module: nn.Module, expert: int | Tensor) -> None:
    """Fold one expert of every adapted layer, or a mixture of all, into plain weights, in place.

        W <- W + row_scale[e] * (up[e] @ down[e]),   b <- b + offset[e]

    With weights (E,) for `expert`, the same sum over all experts, weighted. In a whole model whose
    gate acts (`routing.mixed`), `expert` is a domain, and its weights are the gate's, layer by
    layer; a backbone by itself does not know whether gates act, and they are left aside.

    The merged module scores that expert's rows as the routed one does (to rounding: 1e-5 in
    float32 probabilities, 1e-10 in float64) at the cost of the backbone alone.

    Raises:
        AdapterError: there is no such expert or domain, or a layer mixes experts row by row, which
            no plain weights can do; nothing is changed then.
    """
    for name, fused in module.named_modules():
        if isinstance(fused, FusedLinear):
            raise AdapterError(
                f"{name!r} mixes the experts of several divisions row by row: no plain layer does.",
                fix="score with the routed model; only experts of one division can be merged.",
            )
    layers = list(adapted(module))
    norms = [(name, norm) for name, norm in module.named_modules() if isinstance(norm, DomainNorm)]
    chosen = _chosen(module, expert)
    for name, layer in layers:
        _check(name, layer, chosen.get(name, expert))
    if norms and isinstance(expert, Tensor):
        raise AdapterError(f"{norms[0][0]!r} is a norm per domain: experts may mix, norms do not.")
    for name, layer in layers:
        _replace(module, name, _folded(layer, chosen.get(name, expert)))
    for name, norm in norms:
        assert isinstance(expert, int)
        _replace(module, name, _merged_norm(norm, expert))
    _drop_gates(module)


def _merged_norm(norm: DomainNorm, expert: int) -> BatchNorm:
    """The shared norm with the values of one domain."""
    bank = norm.divisions[0]
    assert isinstance(bank, NormBank)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm.base, name).copy_(getattr(bank, name)[expert])
    return norm.base


def _chosen(module: nn.Module, expert: int | Tensor) -> dict[str, Tensor]:
    """Name of each layer on which a gate acts -> its weights (E,) for the rows of one domain."""
    routing = getattr(module, "routing", None)  # a whole model has one, a backbone has not
    acts = isinstance(routing, Routing) and routing.mixed
    return mixture_of(module, expert) if acts and isinstance(expert, int) else {}


@torch.no_grad()
def _folded(layer: LowRankLinear, expert: int | Tensor) -> Linear:
    """The layer's base, its own weights changed."""
    plain, up = layer.base, layer.scaled_up()
    if isinstance(expert, Tensor):
        update = torch.einsum("e,eor,eri->oi", expert, up, layer.down)
        offset = None if layer.offset is None else expert @ layer.offset
    else:
        update = up[expert] @ layer.down[expert]
        offset = None if layer.offset is None else layer.offset[expert].clone()
    plain.weight.add_(update)
    if offset is not None:
        if plain.bias is None:
            plain.bias = nn.Parameter(offset)
        else:
            plain.bias.add_(offset)
    return plain


def _check(name: str, layer: LowRankLinear, expert: int | Tensor) -> None:
    if isinstance(expert, Tensor):
        if expert.shape != (layer.experts,):
            raise AdapterError(
                f"{name!r} needs weights of its {layer.experts} experts, not of shape"
                f" {tuple(expert.shape)}."
            )
    elif not 0 <= expert < layer.experts:
        raise AdapterError(
            f"{name!r} has no expert {expert}; it has 0 to {layer.experts - 1}.",
            fix="use detach for the backbone alone.",
        )


def _drop_gates(module: nn.Module) -> None:
    """Take what serves gates alone out of a whole model."""
    for name, front in list(module.named_children()):
        if isinstance(front, SharedGate | FieldsInRoute):
            setattr(module, name, None)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
