"""A model's tensors under the names that they have in an artifact.

All functions return the model's own memory: `save` writes what they return, `load` copies into it.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loractr.adapters.attach import adapted
from loractr.adapters.low_rank import EXPERT_PARAMETERS
from loractr.errors import ArtifactError, some
from loractr.model import CTRModel

PEFT_NAMES = {
    "down": "lora_A.weight",
    "up": "lora_B.weight",
    "row_scale": "row_scale",
    "offset": "offset",
}
"""A bank's parameter → its name in an adapter file. The last two are ours, not PEFT's."""


def base_tensors(model: CTRModel) -> dict[str, Tensor]:
    """Embedding, backbone and head, named as in the model without adapters."""
    tensors: dict[str, Tensor] = dict(model.state_dict())
    for name, bank in adapted(model):
        for parameter in EXPERT_PARAMETERS:
            tensors.pop(f"{name}.{parameter}", None)
        for leaf in bank.base.state_dict():
            tensors[f"{name}.{leaf}"] = tensors.pop(f"{name}.base.{leaf}")
    return tensors


def expert_tensors(model: CTRModel, expert: int) -> dict[str, Tensor]:
    """One expert of every bank, named as PEFT names them: lora_A (r, in), lora_B (out, r), and,
    where the bank has them, row_scale (out,) and offset (out,)."""
    return {
        f"base_model.model.{name}.{PEFT_NAMES[parameter]}": tensor.detach()[expert]
        for name, bank in adapted(model)
        for parameter in EXPERT_PARAMETERS
        if (tensor := getattr(bank, parameter)) is not None
    }


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
