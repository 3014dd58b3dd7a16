"""What a training method is: where it attaches adapters, and its recipe as a tuple of stages."""

from abc import abstractmethod
from typing import Literal

import torch
from torch import nn

from loractr.schema import Record, Schema
from loractr.stage import Stage


class Method(Record):
    """Base of every method's configuration. One file per method says all three things about it:
    its options (the fields), where it attaches, and its stages."""

    name: str
    """The method's name; every method narrows it to its own."""
    divisions: tuple[str, ...] = ()
    """Divisions that it works on; the natural one (the schema's first) when empty."""

    def attach(
        self, backbone: nn.Module, schema: Schema, generator: torch.Generator
    ) -> tuple[str, ...]:
        """Adapt `backbone` in place; returns the divisions whose domains its layers read.

        Raises:
            AdapterError: a target matches no layer, or a rank does not fit.
        """
        return ()

    @abstractmethod
    def stages(self, base: Stage) -> tuple[Stage, ...]:
        """The recipe for the one shared model; `base` carries the config's training settings."""

    def domain_stages(self, base: Stage, division: str, domain: str) -> tuple[Stage, ...]:
        """The recipe of a whole model of one domain's own, where the method has such models."""
        return ()

    @property
    def domain_models(self) -> Literal["none", "fresh", "from_base"]:
        """Whether each domain gets a whole model, and whether it starts fresh or from the base."""
        return "none"

    def natural(self, schema: Schema) -> str:
        """The division it works on, where one is enough."""
        return self.divisions[0] if self.divisions else schema.divisions[0].name
