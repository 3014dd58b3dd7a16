"""A model's tensors under the names that they have in an artifact.

All functions return the model's own memory: `save` writes what they return, `load` copies into it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loractr.adapters.fusion import FusedLinear
from loractr.adapters.low_rank import Bank, LowRankLinear
from loractr.errors import ArtifactError, some
from loractr.layers.norm import DomainNorm, NormBank
from loractr.model import CTRModel

PEFT_NAMES = {
    "down": "lora_A.weight",
    "up": "lora_B.weight",
    "row_scale": "row_scale",
    "offset": "offset",
}
"""A bank's parameter → its name in an adapter file. The last two are ours, not PEFT's."""


NORM_NAMES = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a domain's norm; in an adapter file they keep their names."""

_ADAPTERS = (LowRankLinear, FusedLinear, DomainNorm)


def base_tensors(model: CTRModel) -> dict[str, Tensor]:
    """Embedding, front, backbone and head, named as in the model without adapters."""
    return {plain: tensor for _, plain, tensor in _base(model)}


def expert_tensors(model: CTRModel, place: int, domain: int, domains: int) -> dict[str, Tensor]:
    """What one domain owns: its slice of every bank and norm of the division at `place`.

    Named as PEFT names them: lora_A (r, in), lora_B (out, r), and, where there are some, row_scale
    and offset (out,), and the domain's norm. A domain's second expert is prefixed `expert_2.`.

    Args:
        model: The model.
        place: The division's place in `model.routing.divisions`.
        domain: Index of the domain.
        domains: Number of domains of the division.
    """
    found = {}
    for name, bank in banks(model, place):
        for expert in range(domain, bank.experts, domains):
            prefix = "" if expert < domains else f"expert_{expert // domains + 1}."
            for parameter, peft in PEFT_NAMES.items():
                tensor = getattr(bank, parameter)
                if tensor is not None:
                    found[f"{prefix}base_model.model.{name}.{peft}"] = tensor.detach()[expert]
    for name, norm in _norms(model, place):
        for leaf in NORM_NAMES:
            found[f"base_model.model.{name}.{leaf}"] = getattr(norm, leaf).detach()[domain]
    return found


def mixer_tensors(model: CTRModel) -> dict[str, Tensor]:
    """Gates, fusions, norms of cells: all that is neither the base's nor one domain's."""
    owned = {name for name, _, _ in _base(model)}
    for place in range(len(model.routing.divisions)):
        for wrapper, bank in _owners(model, place):
            owned |= {f"{wrapper}.{leaf}" for leaf in (*PEFT_NAMES, *NORM_NAMES) if leaf in bank}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in owned}


def banks(model: CTRModel, place: int) -> Iterator[tuple[str, Bank]]:
    """Adapted layers, and the bank that each has for the division at `place`."""
    for name, layer in model.named_modules():
        if isinstance(layer, FusedLinear):
            yield name, layer.bank(place)
        elif isinstance(layer, LowRankLinear) and place == 0:
            yield name, layer


def _norms(model: CTRModel, place: int) -> Iterator[tuple[str, NormBank]]:
    for name, layer in model.named_modules():
        if isinstance(layer, DomainNorm):
            norm = layer.divisions[place]
            assert isinstance(norm, NormBank)
            yield name, norm


def _owners(model: CTRModel, place: int) -> Iterator[tuple[str, set[str]]]:
    """Modules that hold what single domains own, and the names of their own tensors."""
    for name, layer in model.named_modules():
        if isinstance(layer, Bank | NormBank) and (
            isinstance(layer, LowRankLinear) or name.endswith(f".{place}")
        ):
            own = {*dict(layer.named_parameters(recurse=False))}
            yield name, own | {*dict(layer.named_buffers(recurse=False))}


def _base(model: CTRModel) -> Iterator[tuple[str, str, Tensor]]:
    """(name in the model, name without adapters, tensor) of all that is shared."""
    wrappers = [name for name, module in model.named_modules() if isinstance(module, _ADAPTERS)]
    mixes = model.front is not None and model.front.mixes
    for name, tensor in model.state_dict().items():
        wrapper = next((w for w in wrappers if name.startswith(f"{w}.")), None)
        if wrapper is None:
            if not (mixes and name.startswith("front.")):
                yield name, name, tensor
        elif name.startswith(f"{wrapper}.base."):
            yield name, f"{wrapper}.{name.removeprefix(f'{wrapper}.base.')}", tensor


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, as they lie in it.

    Raises:
        ArtifactError: it is not a safetensors file.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file: {error}.") from error


def fill(tensors: Mapping[str, Tensor], path: Path, stored: Mapping[str, Tensor]) -> None:
    """Copy every tensor that was read from `path` into the model's one of that name, bit by bit.

    The copies lie where torch has put them, not where the file has: a result may depend, in its
    last bit, on how a tensor is aligned in memory.

    Raises:
        ArtifactError: names, shapes or types differ.
    """
    if stored.keys() != tensors.keys():
        odd = sorted(stored.keys() ^ tensors.keys())
        raise _unlike(path, f"one of the two lacks {some(odd)}")
    for name, wanted in tensors.items():
        if _kind(stored[name]) != _kind(wanted):
            raise _unlike(path, f"{name!r} is {_kind(stored[name])}, not {_kind(wanted)}")
        wanted.copy_(stored[name])


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _unlike(path: Path, difference: str) -> ArtifactError:
    return ArtifactError(
        f"{path} does not fit the model that the artifact's config.json describes: {difference}.",
        fix="save the model again, with the configuration and schema that it was built with.",
    )
