"""From ids to vectors: the tables of all categorical and sequence fields, and the linear term."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loractr.batch import Batch
from loractr.errors import ConfigError, UsageError
from loractr.layers.dropout import Dropout
from loractr.layers.lookup import (
    Bags,
    ByRows,
    Touched,
    all_ids,
    look_up,
    look_up_both,
    look_up_by_rows,
)
from loractr.schema import Field, Schema


@dataclass(frozen=True)
class Widths:
    """What an embedded row holds: enough to size a backbone."""

    size: int
    """K, the common width."""
    fields: int
    """P, number of fields that have it."""
    others: tuple[int, ...]
    """Widths of the other fields, one by one."""
    numbers: int
    """M, number of numerical fields."""

    @property
    def flat(self) -> int:
        """Width of `Embedded.flat()`."""
        return self.fields * self.size + sum(self.others) + self.numbers


@dataclass(frozen=True)
class Embedded:
    """The embedded rows of a batch."""

    vectors: Tensor  # (N, P, K), the fields of the common width
    others: tuple[Tensor, ...]  # (N, w) each, the fields of another width
    numbers: Tensor  # (N, M)
    first_order: Tensor  # (N,), the linear term; 0 where the model has none

    def flat(self) -> Tensor:
        """Everything side by side: the input of a tower. (N, P · K + Σ w + M)."""
        rows, fields, size = self.vectors.shape
        vectors = self.vectors.reshape(rows, fields * size)
        if not self.others and not self.numbers.shape[1]:
            return vectors
        return torch.cat([vectors, *self.others, self.numbers], 1)


class Table(ByRows):
    """One table for all fields of one width: each field has its block of rows, one after the other.

    A categorical field looks up its row; a sequence field takes the mean of its rows, 0 when it has
    none. With `first_order` every id also has one weight of the linear term, 0 at first.

    Args:
        fields: Fitted categorical and sequence fields of one width.
        columns: For each categorical field among them, its column of `Batch.ids`.
        size: Width of the vectors.
        trainable: A frozen table is a buffer, out of every optimiser's sight.
        first_order: Whether ids have a weight in the linear term.
        std: Standard deviation of the initial normal vectors, mean 0.
        pretrained: Field name → ready vectors (field.size, size).
        generator: Source of the initial vectors.

    Shapes: (N, F) ids and bags of L ids → vectors (N, fields, size), linear terms (N,).
    Cost: one lookup for all categorical fields, one pooled lookup for all sequences.
    """

    weight: Tensor
    starts: Tensor
    columns: Tensor | None

    def __init__(
        self,
        fields: Sequence[Field],
        columns: Sequence[int],
        *,
        size: int,
        trainable: bool = True,
        first_order: bool = False,
        std: float = 0.01,
        pretrained: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.fields = tuple(sorted(fields, key=lambda field: field.kind == "sequence"))
        self.size = size
        self.trainable = trainable
        sizes = [field.size for field in self.fields]
        self.first_rows = [sum(sizes[:i]) for i in range(len(sizes))]
        weight = torch.empty(sum(sizes), size).normal_(std=std, generator=generator)
        for field, first in zip(self.fields, self.first_rows, strict=True):
            if pretrained and field.name in pretrained:
                weight[first : first + field.size] = pretrained[field.name]
        if trainable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.first_order = nn.Parameter(torch.zeros(sum(sizes), 1)) if first_order else None
        self._categorical = len(columns)
        self._sequences = [field.name for field in self.fields[len(columns) :]]
        starts = torch.tensor(self.first_rows[: len(columns)], dtype=torch.int64)
        self.register_buffer("starts", starts, persistent=False)
        every = list(columns) == list(range(len(columns)))
        chosen = None if every else torch.tensor(columns, dtype=torch.int64)
        self.register_buffer("columns", chosen, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Vectors of this table's fields, and their share of the linear term."""
        rows, bags = self._rows(batch.ids), self._bags(batch)
        touched = None
        if self.row_gradients and torch.is_grad_enabled():
            touched = Touched.of(all_ids(rows, bags), self.weight)

        def found(name: str, weight: Tensor) -> Tensor:
            gradient = self.row_gradients.get(name)
            if gradient is None or touched is None:
                return look_up(weight, rows, bags)
            return look_up_by_rows(weight, rows, bags, touched, gradient)

        if self.first_order is None:
            return found("weight", self.weight), None
        if touched is None:
            return look_up_both(self.weight, self.first_order, rows, bags)
        linear = found("first_order", self.first_order)
        return found("weight", self.weight), linear.sum((1, 2))

    def _rows(self, ids: Tensor) -> Tensor:
        """(N, F) int32 ids → (N, fields) int64 rows of the table."""
        if self.columns is not None:
            ids = ids.index_select(1, self.columns)
        return ids[:, : self._categorical] + self.starts

    def _bags(self, batch: Batch) -> Bags | None:
        """All sequence fields as one run of bags, one field after the other."""
        if not self._sequences:
            return None
        values, offsets, end = [], [], None
        firsts = self.first_rows[self._categorical :]
        for name, first in zip(self._sequences, firsts, strict=True):
            bag = batch.sequences[name]
            shifted = bag.offsets if end is None else bag.offsets + end
            values.append(bag.values.long() + first)
            offsets.append(shifted[:-1])
            end = shifted[-1:]
        assert end is not None
        return Bags(torch.cat(values), torch.cat([*offsets, end]), len(self._sequences))

    @torch.no_grad()
    def fill_unknown(self) -> None:
        """Set row 0 of every field that no training row had as unknown to the mean of its others.

        Such a row was never trained, yet new ids will read it. What does not train stays as it is.
        """
        weights = [w for w in (self.weight, self.first_order) if w is not None and w.requires_grad]
        for field, first in zip(self.fields, self.first_rows, strict=True):
            if field.unknown_rows == 0 and field.size > 1:
                for weight in weights:
                    weight[first] = weight[first + 1 : first + field.size].mean(0)


class Embedding(nn.Module):
    """Turns the ids and numbers of a batch into vectors: one table per (width, trainable).

    Parameters are named `tables.size_16.weight`, `tables.size_16.first_order`,
    `tables.size_128_frozen.weight` (a buffer) and `numbers_first_order`.

    Args:
        schema: Fitted schema.
        size: K, the width of every field that asks for none of its own.
        std: Standard deviation of the initial vectors.
        dropout: Elementwise dropout of vectors and numbers, not of the linear term.
        first_order: Whether the linear term is computed.
        pretrained: Field name → vectors (field.size, width) for each field that has `pretrained`,
            rows in the order of its vocabulary. Their width is the field's.
        generator: Source of the initial vectors.

    Shapes: a batch of N rows → `Embedded`. Numbers are cast to the tables' type.
    Raises:
        UsageError: the schema is not fitted.
        ConfigError: there are no fields; pretrained vectors are missing or do not fit their field.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        size: int,
        std: float = 0.01,
        dropout: float = 0.0,
        first_order: bool = False,
        pretrained: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not schema.fitted:
            raise UsageError(
                "the schema is not fitted: it does not know the sizes of its vocabularies.",
                fix="prepare the data first, and build the model with the schema that it returns.",
            )
        if not schema.fields:
            raise ConfigError(["the schema has no fields; a model needs at least one input"])
        pretrained = pretrained or {}
        widths = _field_widths(schema, size, pretrained)
        groups: dict[tuple[int, bool], list[Field]] = {}
        for field in (*schema.categorical, *schema.sequences):
            groups.setdefault((widths[field.name], field.trainable), []).append(field)
        column = {field.name: index for index, field in enumerate(schema.categorical)}
        self.tables = nn.ModuleDict()
        for (width, trainable), fields in groups.items():
            self.tables[f"size_{width}" if trainable else f"size_{width}_frozen"] = Table(
                fields,
                [column[field.name] for field in fields if field.name in column],
                size=width,
                trainable=trainable,
                first_order=first_order,
                std=std,
                pretrained=pretrained,
                generator=generator,
            )
        numbers = len(schema.numerical)
        self.numbers_first_order = (
            nn.Parameter(torch.zeros(numbers)) if first_order and numbers else None
        )
        self.dropout = Dropout(dropout)
        others = [w for (w, _), fields in groups.items() if w != size for _ in fields]
        common = sum(len(fields) for (w, _), fields in groups.items() if w == size)
        self.widths = Widths(size=size, fields=common, others=tuple(others), numbers=numbers)

    def forward(self, batch: Batch) -> Embedded:
        """The batch's rows as vectors."""
        common: list[Tensor] = []
        others: list[Tensor] = []
        terms: list[Tensor] = []
        numbers = batch.numbers
        for table in self.tables.values():
            vectors, term = table(batch)
            numbers = numbers.to(vectors.dtype)
            if term is not None:
                terms.append(term)
            vectors = self.dropout(vectors)
            if table.size == self.widths.size:
                common.append(vectors)
            else:
                others.extend(vectors.unbind(1))
        if self.numbers_first_order is not None:
            numbers = numbers.to(self.numbers_first_order.dtype)
            terms.append(numbers @ self.numbers_first_order)
        return Embedded(
            vectors=self._join(common, numbers),
            others=tuple(others),
            numbers=self.dropout(numbers) if self.widths.numbers else numbers,
            first_order=sum(terms[1:], terms[0]) if terms else numbers.new_zeros(len(batch.row)),
        )

    def _join(self, common: list[Tensor], numbers: Tensor) -> Tensor:
        if len(common) == 1:
            return common[0]
        if not common:
            return numbers.new_zeros(numbers.shape[0], 0, self.widths.size)
        return torch.cat(common, 1)

    def frozen(self) -> list[Tensor]:
        """The frozen tables, which are buffers and not parameters."""
        return [table.weight for table in self._tables() if not table.trainable]

    def fill_unknown(self) -> None:
        """Give every untrained unknown row the mean of its field's rows, in place.

        To be called once, at the end of training: a field whose training rows were all known
        (`unknown_rows == 0`) has never trained its row 0. Calling it again changes nothing.
        """
        for table in self._tables():
            table.fill_unknown()

    def _tables(self) -> list[Table]:
        return [table for table in self.tables.values() if isinstance(table, Table)]


def _field_widths(schema: Schema, size: int, pretrained: Mapping[str, Tensor]) -> dict[str, int]:
    """Width of every field's vectors; all problems with pretrained ones at once."""
    widths: dict[str, int] = {}
    known = {field.name: field for field in (*schema.categorical, *schema.sequences)}
    problems = [
        f"pretrained vectors were given for {name!r}, which asks for none"
        for name in pretrained
        if name not in known or known[name].pretrained is None
    ]
    for name, field in known.items():
        widths[name] = field.embedding_size or size
        if field.pretrained is None:
            continue
        if name not in pretrained:
            problems.append(f"field {name!r} needs the vectors of {field.pretrained!r}")
            continue
        shape = tuple(pretrained[name].shape)
        width = field.embedding_size or shape[-1]
        widths[name] = width
        if shape != (field.size, width):
            problems.append(
                f"field {name!r} needs pretrained vectors of shape"
                f" {(field.size, width)}, not {shape}"
            )
    if problems:
        raise ConfigError(problems)
    return widths
