"""Which parameters a stage trains: a predicate over names, from outside the model."""

from torch import Tensor, nn

from loractr.errors import TrainingError, some
from loractr.layers.embedding import Table
from loractr.stage import matches


def freeze_all_but(model: nn.Module, globs: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Let only the chosen parameters train, in place; returns them by name.

    Raises:
        TrainingError: nothing is chosen.
    """
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(matches(name, globs))
        if parameter.requires_grad:
            trained[name] = parameter
    if not trained:
        names = [name for name, _ in model.named_parameters()]
        raise TrainingError(
            f"globs {some(globs)} choose no parameter to train; the model has {some(names, 20)}."
        )
    return trained


def moving_tensors(model: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Every tensor that training may change: the trained parameters, and the buffers of modules
    that own a trained parameter (a norm's running statistics move only with its own weights).
    The buffers of a table are constants, and may be gigabytes of ready embeddings."""
    moving: dict[str, Tensor] = {name: parameter.data for name, parameter in trained.items()}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own = [prefix + leaf for leaf, _ in module.named_parameters(recurse=False)]
        if any(leaf in trained for leaf in own) and not isinstance(module, Table):
            for leaf, buffer in module.named_buffers(recurse=False):
                moving[prefix + leaf] = buffer
    return moving
