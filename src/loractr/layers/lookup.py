"""Looking up rows of a table, with a gradient as large as the table or only as the rows read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loractr.layers.custom import custom, custom_all
from loractr.native import Library, library_for

MOST_ROWS = 2**31
"""Compiled kernels sort ids below this."""

WORTH_A_CALL = 2**15
"""Reading so many numbers by a kernel gains more than a call from Python costs."""


@dataclass(frozen=True)
class Bags:
    """The ids of S sequence fields of N rows, one field after the other."""

    values: Tensor  # (L,) int64, rows of the table
    offsets: Tensor  # (S · N + 1,) int64: a bag begins at each but the last
    fields: int  # S


@dataclass(frozen=True)
class Touched:
    """The rows of a table that a batch reads, and where it reads them.

    Row `rows[u]` is read at the places `order[edges[u] : edges[u + 1]]` of the batch's ids.
    """

    rows: Tensor  # (U,) int64, rising
    order: Tensor  # (L,) int64
    edges: Tensor  # (U + 1,) int64

    @staticmethod
    def of(ids: Tensor, table: Tensor) -> "Touched":
        """Group the places of `ids` (L,), rows of `table`."""
        kernels = library_for(table)
        if kernels is None or len(table) >= MOST_ROWS:
            ids, order = torch.sort(ids, stable=True)
            rows, counts = torch.unique_consecutive(ids, return_counts=True)
            return Touched(rows, order, F.pad(counts.cumsum(0), (1, 0)))
        order, rows, edges = (ids.new_empty(len(ids) + n, dtype=torch.int64) for n in (0, 0, 1))
        count = order.new_empty(1)
        kernels.call("group_ids", ids.contiguous(), len(ids), order, edges, rows, count)
        distinct = int(count)
        return Touched(rows[:distinct], order, edges[: distinct + 1])

    @staticmethod
    def once(rows: Tensor) -> "Touched":
        """Distinct rising `rows` (U,), each read in its own place."""
        places = torch.arange(len(rows) + 1, device=rows.device)
        return Touched(rows, places[:-1], places)

    def sums(self, values: Tensor) -> Tensor:
        """Σ values[n] over the places n where each row is read: (L, K) → (U, K)."""
        kernels = library_for(values)
        if kernels is None:
            gathered = values.index_select(0, self.order)
            return torch.segment_reduce(gathered, "sum", offsets=self.edges)
        sums = values.new_empty(len(self.rows), values.shape[1])
        sizes = (len(self.rows), values.shape[1])
        kernels.call("row_sums", values, self.order, self.edges, *sizes, sums)
        return sums


class RowGradient:
    """The gradient of one tensor of a table: what each id of the batch got, and whose row it is.

    It takes the place of `.grad`, which would be as large as the table. Ids that stand in a batch
    more than once are not summed yet: `Touched.sums` does, or the kernel that moves the rows.

    Args:
        before: Called with the rows that are about to be read.
    """

    def __init__(self, before: Callable[[Touched], None] | None = None) -> None:
        self.before = before
        self._parts: list[tuple[Touched, Tensor]] = []

    def clear(self) -> None:
        """Forget the gradient."""
        self._parts = []

    def add(self, touched: Touched, values: Tensor) -> None:
        """One lookup's share: `values` (L, K), a gradient per id."""
        self._parts.append((touched, values.contiguous()))

    def get(self) -> tuple[Touched, Tensor] | None:
        """The rows with a gradient, and a gradient per id; None without any lookup."""
        if not self._parts:
            return None
        if len(self._parts) > 1:
            summed = torch.cat([touched.sums(values) for touched, values in self._parts])
            ids = torch.cat([touched.rows for touched, _ in self._parts])
            self._parts = [(Touched.of(ids, summed), summed)]
        return self._parts[0]

    def sum_up(self) -> Tensor | None:
        """The gradient of each row, summed here and now; None without any lookup."""
        found = self.get()
        if found is None:
            return None
        touched, values = found
        sums = touched.sums(values)
        self._parts = [(Touched.once(touched.rows), sums)]
        return sums


class ByRows(nn.Module):
    """A module with tensors of which a batch reads some rows: a table by ids, a bank by experts.

    Attributes:
        row_gradients: By parameter name, where a gradient by rows goes; what is not named has its
            `.grad`. Nothing is left where no gradient is computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.row_gradients: dict[str, RowGradient] = {}


def set_row_gradients(model: nn.Module, gradients: Mapping[str, RowGradient]) -> None:
    """Let the named parameters leave their gradients by rows in what is given for them, and all
    others in their `.grad`."""
    for prefix, module in model.named_modules():
        if isinstance(module, ByRows):
            names = [name for name, _ in module.named_parameters(prefix, recurse=False)]
            module.row_gradients = {
                name.rpartition(".")[2]: gradients[name] for name in names if name in gradients
            }


def look_up(weight: Tensor, rows: Tensor, bags: Bags | None) -> Tensor:
    """Rows of `weight` (V, K), and means of rows.

    Args:
        weight: The table.
        rows: (N, F) rows of the table, one a field.
        bags: Sequence fields, each row the mean of its rows, 0 where it has none.

    Returns: (N, F + S, K).
    """
    count, width = rows.shape[0], weight.shape[1]
    kernels = library_for(weight)  # asked before the sizes: a graph must not depend on those
    if kernels is not None and _fits(rows) and rows.numel() * width >= WORTH_A_CALL:
        vectors = custom(_Read, weight, None, rows, kernels)
    else:  # the backward of index_select takes half the time of F.embedding's
        vectors = weight.index_select(0, rows.flatten()).view(count, rows.shape[1], width)
    if bags is None:
        return vectors
    if torch.compiler.is_exporting():
        pooled = _means(weight, bags.values, bags.offsets, bags.fields * count)
    else:
        pooled = F.embedding_bag(
            bags.values, weight, bags.offsets, mode="mean", include_last_offset=True
        )
    pooled = pooled.view(bags.fields, count, width).transpose(0, 1)
    return torch.cat([vectors, pooled], 1) if rows.shape[1] else pooled


def look_up_both(
    weight: Tensor, linear: Tensor, rows: Tensor, bags: Bags | None
) -> tuple[Tensor, Tensor]:
    """`look_up` in `weight` (V, K), and its sum over the fields in `linear` (V, 1): (N,)."""
    kernels = library_for(weight, linear)
    fits = bags is None and _fits(rows) and linear.shape == (len(weight), 1)
    if kernels is not None and fits:
        vectors, terms = custom_all(_Read, weight, linear, rows, kernels)
        return vectors, terms
    return look_up(weight, rows, bags), look_up(linear, rows, bags).sum((1, 2))


def _fits(rows: Tensor) -> bool:
    """Whether kernels can read these as rows of a table."""
    plain = type(rows) is Tensor and rows.device.type == "cpu" and rows.is_contiguous()
    return plain and rows.dim() == 2 and rows.dtype == torch.int64


def look_up_by_rows(
    weight: Tensor, rows: Tensor, bags: Bags | None, touched: Touched, gradient: RowGradient
) -> Tensor:
    """`look_up`, of which `weight.grad` hears nothing: its gradient goes to `gradient`.

    `touched` groups the ids `all_ids(rows, bags)`.
    """
    if gradient.before is not None:
        gradient.before(touched)
    return custom(_LookUp, weight, rows, bags, touched, gradient)


def look_up_slices(weight: Tensor, touched: Touched, gradient: RowGradient) -> Tensor:
    """Slices `touched.rows` (A,) of a stack (E, …), each once: (A, …); its gradient goes to
    `gradient`, as of a table with a row for each slice."""
    rows = touched.rows.unsqueeze(0)
    found = look_up_by_rows(weight.flatten(1), rows, None, touched, gradient)
    return found.view(-1, *weight.shape[1:])


def all_ids(rows: Tensor, bags: Bags | None) -> Tensor:
    """Every id that a batch reads, (N · F + L,)."""
    return rows.flatten() if bags is None else torch.cat([rows.flatten(), bags.values])


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        rows: Tensor,
        bags: Bags | None,
        touched: Touched,
        gradient: RowGradient,
    ) -> Tensor:
        ctx.fields, ctx.bags, ctx.touched, ctx.gradient = rows.shape[1], bags, touched, gradient
        return look_up(weight, rows, bags)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        width = grad.shape[2]
        values = grad[:, : ctx.fields].reshape(-1, width)
        if ctx.bags is not None:
            bags: Bags = ctx.bags
            sizes = bags.offsets.diff()
            pooled = grad[:, ctx.fields :].transpose(0, 1).reshape(-1, width)
            shares = pooled / sizes.clamp(min=1).unsqueeze(1)
            values = torch.cat([values, shares.repeat_interleave(sizes, 0)])
        ctx.gradient.add(ctx.touched, values)
        return (None,) * 5


class _Read(torch.autograd.Function):
    """Rows of a table (V, K), with the sums of `linear` (V, 1) where that is given, and the
    gradients of the whole tables, by compiled kernels."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, linear: Tensor | None, rows: Tensor, kernels: Library
    ) -> Tensor | tuple[Tensor, Tensor]:
        sizes = (len(weight), *rows.shape, weight.shape[1])
        vectors = weight.new_empty(sizes[1:])
        terms = None if linear is None else weight.new_empty(len(rows))
        missing = rows.new_empty(1)
        kernels.call("look_up", weight, linear, rows, vectors, terms, *sizes, missing)
        if missing:
            weight.index_select(0, rows.flatten())  # raises
        ctx.kernels, ctx.sizes = kernels, sizes
        ctx.save_for_backward(rows)
        ctx.set_materialize_grads(False)
        found = ((vectors, 0),) if terms is None else ((vectors, 0), (terms, 1))
        ctx.mark_non_differentiable(*(y for y, own in found if not ctx.needs_input_grad[own]))
        return vectors if terms is None else (vectors, terms)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, of_terms: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        """None for what nothing was made of: a gradient of zeros would move the table by decay."""
        (rows,) = ctx.saved_tensors
        size, _, _, width = ctx.sizes
        sums = linear = None
        if of_terms is not None:
            of_terms = of_terms.contiguous()
            linear = of_terms.new_empty(size, 1)
        if grad is not None:
            grad = grad.contiguous()
            sums = grad.new_empty(size, width)
        elif of_terms is not None:
            grad = of_terms.new_empty(0)  # is never read, but tells the type
        if grad is not None:
            given = (grad, of_terms, rows, sums, linear)
            ctx.kernels.call("look_up_backward", *given, *ctx.sizes)
        return sums, linear, None, None


def _means(weight: Tensor, values: Tensor, offsets: Tensor, bags: int) -> Tensor:
    """`F.embedding_bag` in mode "mean", for exported graphs: ONNX has no such operator, and the
    loop in its place takes a hundred times as long as all else, and fails when there is no bag.

    Differences of a running sum, in float64 so that a bag does not feel what stands before it. The
    number of bags comes from the rows: taken from `offsets`, it would bind a graph to some sizes.
    """
    running = weight.index_select(0, values).double().cumsum(0)
    running = torch.cat([running.new_zeros(1, weight.shape[1]), running])
    starts, stops = offsets[:bags], offsets[1 : bags + 1]
    sums = running.index_select(0, stops) - running.index_select(0, starts)
    return (sums / (stops - starts).clamp(min=1).unsqueeze(1)).to(weight.dtype)
