"""What a training method is: what it does to a network, and its recipe as a tuple of stages."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

import torch
from pydantic import model_validator
from torch import nn

from loractr.backbones import Backbone
from loractr.batch import Route
from loractr.errors import UsageError, some
from loractr.layers.embedding import Embedded, Widths
from loractr.schema import Record, Schema
from loractr.stage import Stage

ALL_ROWS = "*"
"""In `Attached.divisions`: one domain of all rows, whatever divisions the data has."""


class Network(Protocol):
    """What a method may change: the parts of a model, all of them fresh."""

    front: "Front | None"
    backbone: Backbone
    head: nn.Module


class Front(nn.Module):
    """Stands between embedding and backbone: may change the embedded rows, and the route.

    Attributes:
        widths: What a row holds after it; the backbone is built for that.
    """

    widths: Widths
    mixes: ClassVar[bool] = False
    """Whether it is a mixer: kept apart from the base model, and counted with the adapters."""

    @abstractmethod
    def forward(self, features: Embedded, route: Route) -> tuple[Embedded, Route]:
        """What the backbone gets."""


@dataclass(frozen=True)
class Attached:
    """What a method has put into a network."""

    divisions: tuple[str, ...] = ()
    """Names of the divisions whose domains its layers read; ALL_ROWS for one domain of all."""
    mixed: bool = False
    """Whether mixers act from the start; else a stage that trains them lets them act."""


class Method(Record):
    """Base of every method's configuration. One file per method says all things about it: its
    options (the fields), what it does to the network, and its stages."""

    name: str
    """The method's name; every method narrows it to its own."""
    divisions: tuple[str, ...] = ()
    """Divisions that it works on; the natural one (the schema's first) when empty."""

    def front(self, widths: Widths, schema: Schema, generator: torch.Generator) -> Front | None:
        """What stands between embedding and backbone, where the method has such a thing."""
        return None

    def attach(self, network: Network, schema: Schema, generator: torch.Generator) -> Attached:
        """Change `network` in place: put adapters on, or replace its tower and head.

        Raises:
            AdapterError: a target matches no layer, or a rank does not fit.
        """
        return Attached()

    @abstractmethod
    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """The recipe for the one shared model.

        Args:
            base: Carries the config's training settings.
            norm: Whether the tower has norms, which decides what can train.
        """

    def domain_stages(self, base: Stage, division: str, domain: str) -> tuple[Stage, ...]:
        """The recipe of a whole model of one domain's own, where the method has such models."""
        return ()

    @property
    def domain_models(self) -> Literal["none", "fresh", "from_base"]:
        """Whether each domain gets a whole model, and whether it starts fresh or from the base."""
        return "none"

    def owners(self, schema: Schema) -> tuple[str, ...]:
        """The domains that get a whole model, known to a fitted schema; UsageError as `natural`."""
        if self.domain_models == "none":
            return ()
        return schema.division(self.natural(schema)).domains

    def natural(self, schema: Schema) -> str:
        """The division it works on, where one is enough.

        Raises:
            UsageError: the schema has no division, or none of the name that is asked for.
        """
        return self.chosen(schema)[0]

    def chosen(self, schema: Schema) -> tuple[str, ...]:
        """The divisions it works on: those that it names, else the natural one.

        Raises:
            UsageError: the schema has no division, or none of a name that is asked for.
        """
        known = [division.name for division in schema.divisions]
        wanted = self.divisions or tuple(known[:1])
        if not wanted:
            raise UsageError(
                f"method {self.name!r} works on the domains of a division; the data has none.",
                fix="set data.divisions, like {site: {column: site}}, or use method mix.",
            )
        for name in wanted:
            if name not in known:
                raise UsageError(
                    f"method.divisions names {name!r}; the data's divisions are {some(known)}."
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


class TrainedOnAllRows(OneDivision):
    """Base of the methods that train one model, all of it, on all rows."""

    recipe: Literal["paper", "tuned"] = "paper"
    """paper: one stage. tuned: a second stage with a smaller step, dropout and weight average,
    where `training` says nothing else about them."""

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """train; with `tuned` also retrain, whose settings `training.stages` can change."""
        train, retrain = train_and_retrain(base)
        return (train,) if self.recipe == "paper" else (train, retrain)


def regularised(base: Stage) -> dict[str, float]:
    """Dropout and a moving average for a stage that trains a part of a finished model, where `base`
    says nothing else about them: rows that the model has memorised teach nothing without."""
    return {
        "dropout": 0.2 if base.dropout is None else base.dropout,
        "embedding_dropout": 0.3 if base.embedding_dropout is None else base.embedding_dropout,
        "ema": base.ema or 0.99,
    }


def train_and_retrain(base: Stage) -> tuple[Stage, Stage]:
    """Memorise first, then train all weights again from there with a smaller step, dropout on the
    input and a moving average, where `base` says nothing else about them: the strongest plain
    recipe we know on MovieLens-1M, open to every method that trains one model on all rows."""
    retrain = {
        "name": "retrain",
        "learning_rate": base.learning_rate * 0.3,
        "embedding_learning_rate": base.table_learning_rate * 0.3,
        "dropout": 0.3 if base.dropout is None else base.dropout,
        "embedding_dropout": 0.4 if base.embedding_dropout is None else base.embedding_dropout,
        "ema": base.ema or 0.99,
    }
    train = base.model_copy(update={"name": "train"})
    return train, base.model_copy(update=retrain)
