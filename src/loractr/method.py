"""What a training method is: where it attaches adapters, and its recipe as a tuple of stages."""

from abc import abstractmethod
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import nn

from loractr.errors import UsageError, some
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
        """The division it works on, where one is enough.

        Raises:
            UsageError: the schema has no division, or none of the name that is asked for.
        """
        known = [division.name for division in schema.divisions]
        wanted = self.divisions[0] if self.divisions else next(iter(known), None)
        if wanted is None:
            raise UsageError(
                f"method {self.name!r} works on the domains of a division; the data has none.",
                fix="set data.divisions, like {site: {column: site}}, or use method mix.",
            )
        if wanted not in known:
            raise UsageError(
                f"method.divisions names {wanted!r}; the data's divisions are {some(known)}."
            )
        return wanted


class OneDivision(Method):
    """Base of the methods that work on one division."""

    @model_validator(mode="after")
    def _one_division(self) -> Self:
        if len(self.divisions) > 1:
            many = ", ".join(self.divisions)
            raise ValueError(f"{self.name} works on one division, not on {many}")
        return self
