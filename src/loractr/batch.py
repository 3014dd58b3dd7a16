"""The only tensor containers: `Batch` (rows) and `Route` (which expert each row goes to).

Letters: N rows, F categorical fields, M numerical fields, L ids of all sequences of one field,
E experts. Everything in here is a tensor, never a Python number, so that one exported or compiled
graph serves every batch.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Groups:
    """Rows grouped by expert, for one division (or for the cell).

    Rows `order[offsets[s] : offsets[s + 1]]` belong to expert `s - 1`; group 0 holds the rows that
    have none (`expert == -1`). `order` is None when the rows already stand in that order.
    """

    expert: Tensor  # (N,) int64, -1 = none
    offsets: Tensor  # (E + 2,) int64
    order: Tensor | None = None  # (N,) int64

    @staticmethod
    def of(expert: Tensor, experts: int, *, grouped: bool = False) -> "Groups":
        """Group rows by `expert` (N,) in [-1, experts); `grouped` promises rising ids."""
        order = None if grouped else torch.argsort(expert, stable=True)
        counts = torch.bincount(expert + 1, minlength=experts + 1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Groups(expert=expert, offsets=offsets, order=order)

    def runs(self) -> tuple[Tensor | None, Tensor, int]:
        """Order, edges (E + 1,) and number E of the groups of rows that have an expert."""
        return self.order, self.offsets[1:], self.offsets.shape[0] - 2

    @cached_property
    def present(self) -> tuple[Tensor, "Groups"]:
        """The experts that have rows, (A,), rising; and the same groups, counted among these."""
        has = self.offsets.diff()[1:] > 0
        experts = has.nonzero().squeeze(1)
        place = F.pad(has.cumsum(0) - 1, (1, 0), value=-1)
        edges = self.offsets[1:].index_select(0, F.pad(experts + 1, (1, 0)))
        offsets = torch.cat([self.offsets[:1], edges])
        expert = place.index_select(0, self.expert + 1)
        return experts, Groups(expert=expert, offsets=offsets, order=self.order)

    def repeated(self, times: int) -> "Groups":
        """The groups of N · times rows, each row standing `times` times in succession."""
        order = self.order
        if order is not None:
            order = (order[:, None] * times + torch.arange(times, device=order.device)).flatten()
        expert = self.expert[:, None].expand(-1, times).flatten()
        return Groups(expert=expert, offsets=self.offsets * times, order=order)


@dataclass(frozen=True)
class Route:
    """Where the rows of a batch go, computed once and shared by all layers.

    A hard route sends each row to one expert per division; a soft route mixes all experts of a
    layer by weights. A route with neither is the backbone alone. Mixers act only where `cell` is
    there; without it the experts of one division act by themselves.
    """

    divisions: tuple[Groups | None, ...] = ()  # None: this division's experts do not act
    cell: Groups | None = None  # combination of domains; where it is there, mixers act
    weights: Tensor | None = None  # (N, E) float
    context: Tensor | None = None  # (N, C) float, what gates of layers look at

    def acting(self) -> tuple[int, Groups]:
        """The first division whose experts act: its place, and its groups (ValueError without)."""
        for place, groups in enumerate(self.divisions):
            if groups is not None:
                return place, groups
        raise ValueError("a route without divisions has no acting experts")

    @staticmethod
    def none() -> "Route":
        """The backbone alone."""
        return Route()

    @staticmethod
    def hard(ids: Tensor, experts: int | None = None) -> "Route":
        """Row n goes to expert `ids[n]`; -1 is the backbone alone. Ids need not be sorted.

        Args:
            ids: (N,) integers from -1 on.
            experts: Number of experts; one more than the largest id when absent.
        """
        ids = ids.long()
        if experts is None:
            experts = int(ids.max()) + 1 if ids.numel() else 0
        return Route(divisions=(Groups.of(ids, experts),))

    @staticmethod
    def to(expert: Tensor, experts: int, place: int = 0) -> "Route":
        """Row n goes to expert `expert[n]` (N,), rising, of the division at `place` alone."""
        groups = Groups.of(expert, experts, grouped=True)
        return Route(divisions=(None,) * place + (groups,))

    @staticmethod
    def soft(weights: Tensor) -> "Route":
        """Row n gets the sum of all experts' updates, weighted by `weights[n]` (N, E)."""
        return Route(weights=weights)


EVERY = -1
"""In `Routing.divisions`: not a division of the schema; all rows are one domain."""


@dataclass(frozen=True)
class Routing:
    """Which divisions a model reads, and what acts on its rows: from this, batches get their route.

    Not part of a batch: plain values, one set per model or stage.
    """

    divisions: tuple[int, ...] = ()
    """Places, in the schema, of the divisions that a route has entries for; or EVERY."""
    mixed: bool = False
    """Whether mixers act, on the experts of all divisions."""
    only: int = 0
    """Without mixers: the place, in `divisions`, of the one whose experts act."""


@dataclass(frozen=True)
class Bag:
    """A sequence field: row n has the ids `values[offsets[n] : offsets[n + 1]]`."""

    values: Tensor  # (L,) int32
    offsets: Tensor  # (N + 1,) int64


@dataclass(frozen=True)
class Batch:
    """Encoded rows, ready for the model."""

    ids: Tensor  # (N, F) int32, index into each field's vocabulary; 0 = unknown
    numbers: Tensor  # (N, M) float32, normalised
    row: Tensor  # (N,) int64, the row of the source: `predict` restores its order
    route: Route = field(default_factory=Route)
    sequences: dict[str, Bag] = field(default_factory=dict)
    label: Tensor | None = None  # (N,) float32 of 0 and 1
    weight: Tensor | None = None  # (N,) float32

    def __len__(self) -> int:
        return int(self.row.shape[0])

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on a device; itself when they are there already."""
        if self.row.device == torch.device(device):
            return self
        leaves, structure = tree_flatten(self)
        moved: Batch = tree_unflatten([leaf.to(device) for leaf in leaves], structure)
        return moved


for _container in (Groups, Route, Bag, Batch):
    torch.export.register_dataclass(_container)
