"""Optimisers of embedding tables that work on the rows of a batch.

`ExactAdam` makes the weights that Adam on the whole table makes: a row that no batch read for a
while is brought up to date before it is read again. `LazyAdam` and `RowwiseAdagrad` are other
optimisers.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from loractr.layers.lookup import RowGradient, Touched
from loractr.native import library_for

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Constants of Adam (Kingma and Ba, ICLR 2015), torch's defaults."""

MEMORY = {torch.float32: 200, torch.float64: 400}
"""Steps after which a first moment is nothing beside rounding: 0.9^200 = 7e-10, 0.9^400 = 5e-19."""

CLOSED_AFTER = 300
"""Rows last moved before this step are replayed step by step: bias corrections change too fast for
the closed form. From it on, that errs by 3e-7 of the motion at most: less than 200 roundings."""


class RowOptimizer(Protocol):
    """What moves the rows of one tensor of a table."""

    gradient: RowGradient

    def step(self, number: int, rate: float, scale: float) -> None:
        """Update `number` of the stage (from 1 on), with `scale` times the gradients at hand."""
        ...

    def catch_up(self) -> None:
        """Bring every row (and its average) to the last update."""
        ...

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a resumed run needs, themselves, by what they are."""
        ...


class RowAverage:
    """Moving average of weights, average += (1 - decay) (weight - average), of rows that stand
    still until they are moved: what a row missed is closed in one go, by the product of the decays.

    Args:
        weight: (V, K), the weights.
        average: (V, K), their average; changes in place.
    """

    def __init__(self, weight: Tensor, average: Tensor) -> None:
        self.weight, self.average = weight, average
        self.now = torch.zeros((), dtype=torch.float64)  # sum of the decays' logarithms so far
        self.settled = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)

    def settle(self, rows: Tensor | None = None) -> None:
        """Bring the average of `rows`, or of all, up to date; their weights have not moved."""
        which = slice(None) if rows is None else rows
        left = torch.exp(self.now.to(self.settled.device) - self.settled[which])
        weight = self.weight.detach()[which]
        share = left.to(weight.dtype).unsqueeze(1)
        # of a row that is up to date, the share is 1 and lerp changes no bit
        self.average[which] = torch.lerp(weight, self.average[which], share)
        self.settled[which] = self.now.to(self.settled.device)

    def add(self, decay: float) -> None:
        """One more update of all averages, with this decay."""
        self.now += math.log(decay)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a resumed run needs, themselves."""
        yield "average_now", self.now
        yield "average_settled", self.settled


class LazyAdam:
    """Adam whose moments of a row move and decay only when a batch reads the row.

        m += (1 - β₁) (g - m);  v += (1 - β₂) (g² - v)
        w -= rate √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps)

    t counts the updates of the stage, not the row's; g is the sum over the row's places in a batch.
    The same as `torch.optim.SparseAdam`.

    Args:
        weight: (V, K), changed in place.
        average: Its moving average, where there is one.
    """

    def __init__(self, weight: Tensor, average: RowAverage | None = None) -> None:
        self.weight, self.average = weight, average
        self.first = torch.zeros_like(weight, requires_grad=False)
        self.second = torch.zeros_like(weight, requires_grad=False)
        self.gradient = RowGradient()

    @torch.no_grad()
    def step(self, number: int, rate: float, scale: float) -> None:
        """Move the rows that have a gradient."""
        found = self.gradient.get()
        if found is None:
            return
        touched, values = found
        if self.average is not None:
            self.average.settle(touched.rows)
        size = rate * math.sqrt(1.0 - BETA2**number) / (1.0 - BETA1**number)
        kernels = library_for(self.weight, values)
        if kernels is None:
            self._move(touched.rows, touched.sums(values) * scale, size)
            return
        sizes = (touched.rows, len(touched.rows), self.weight.shape[1])
        given = (values, touched.order, touched.edges, scale)
        options = (size, BETA1, BETA2, EPS)
        kernels.call("lazy_adam", self.weight, self.first, self.second, *sizes, *given, *options)

    def _move(self, rows: Tensor, g: Tensor, size: float) -> None:
        first = torch.lerp(self.first[rows], g, 1.0 - BETA1)
        second = torch.lerp(self.second[rows], g * g, 1.0 - BETA2)
        self.first[rows], self.second[rows] = first, second
        self.weight[rows] -= size * first / (second.sqrt() + EPS)

    def catch_up(self) -> None:
        """Bring the average to the last update; the weights are there."""
        if self.average is not None:
            self.average.settle()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a resumed run needs, themselves, by what they are."""
        yield "exp_avg", self.first
        yield "exp_avg_sq", self.second
        if self.average is not None:
            yield from self.average.state()


class RowwiseAdagrad:
    """Adagrad with one accumulator a row: a K-th of Adam's memory and less.

        G_r += mean_k g_rk²;  w_r -= rate · g_r / (√G_r + eps)

    Args:
        weight: (V, K), changed in place.
        average: Its moving average, where there is one.

    Source: Duchi et al., JMLR 2011, by rows as in Mudigere et al., ISCA 2022
    (doi:10.1145/3470496.3533727).
    """

    def __init__(self, weight: Tensor, average: RowAverage | None = None) -> None:
        self.weight, self.average = weight, average
        self.total = weight.new_zeros(len(weight), requires_grad=False)
        self.gradient = RowGradient()

    @torch.no_grad()
    def step(self, number: int, rate: float, scale: float) -> None:
        """Move the rows that have a gradient."""
        found = self.gradient.get()
        if found is None:
            return
        touched, values = found
        if self.average is not None:
            self.average.settle(touched.rows)
        kernels = library_for(self.weight, values)
        if kernels is None:
            self._move(touched.rows, touched.sums(values) * scale, rate)
            return
        sizes = (touched.rows, len(touched.rows), self.weight.shape[1])
        given = (values, touched.order, touched.edges, scale)
        kernels.call("rowwise_adagrad", self.weight, self.total, *sizes, *given, rate, EPS)

    def _move(self, rows: Tensor, g: Tensor, rate: float) -> None:
        total = self.total[rows] + g.square().mean(1)
        self.total[rows] = total
        self.weight[rows] -= rate * g / (total.sqrt() + EPS).unsqueeze(1)

    def catch_up(self) -> None:
        """Bring the average to the last update; the weights are there."""
        if self.average is not None:
            self.average.settle()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a resumed run needs, themselves, by what they are."""
        yield "sum", self.total
        if self.average is not None:
            yield from self.average.state()


class History:
    """The steps since every row was last up to date: what `ExactAdam` replays.

    Layouts are those of `Step`, `Power` and `Tail` in native/adam.cpp.

    Args:
        memory: Steps that a first moment lives, see `MEMORY`.
        decoupled: Decoupled weight decay of the tables.
    """

    def __init__(self, memory: int, decoupled: float) -> None:
        self.memory, self.decoupled = memory, decoupled
        self.base = self.now = 0
        self.steps, self.tails = (torch.zeros(1024, n, dtype=torch.float64) for n in (6, 8))
        self.powers = _powers(1024)

    def add(self, rate: float, keep: float) -> None:
        """One more step, with this learning rate and decay of the moving average."""
        self.now += 1
        place = self.now - self.base
        if place == len(self.steps):
            self.steps, self.tails = (
                torch.cat([held, torch.zeros_like(held)]) for held in (self.steps, self.tails)
            )
            self.powers = _powers(len(self.steps))
        shrink = 1.0 - rate * self.decoupled
        before = self.steps[place - 1]
        step = (
            rate / (1.0 - BETA1**self.now),
            1.0 / math.sqrt(1.0 - BETA2**self.now),
            shrink,
            keep,
            float(before[4]) + math.log(shrink),
            float(before[5]) + math.log(keep),
        )
        self.steps[place] = torch.tensor(step, dtype=torch.float64)
        kernels = library_for(self.tails)
        assert kernels is not None
        where = (self.base, self.now, self.memory)
        kernels.call("adam_tails", self.tails, self.steps, self.powers, *where)

    def forget(self) -> None:
        """Every row is up to date."""
        self.base = self.now
        self.steps[0] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by name."""
        known = self.now - self.base + 1
        return {
            "history.base": torch.tensor(self.base),
            "history.steps": self.steps[:known],
            "history.tails": self.tails[:known],
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        known = len(tensors["history.steps"])
        room = max(1024, 2 * known)
        self.base = int(tensors["history.base"])
        self.now = self.base + known - 1
        self.steps, self.tails = (torch.zeros(room, n, dtype=torch.float64) for n in (6, 8))
        self.steps[:known] = tensors["history.steps"]
        self.tails[:known] = tensors["history.tails"]
        self.powers = _powers(room)


def _powers(count: int) -> Tensor:
    """β₁ᵏ and √(β₂ᵏ) for k = 0, 1, …; 0 where they are too small to matter and arithmetic slow."""
    k = torch.arange(count, dtype=torch.float64)
    powers = torch.stack([BETA1**k, math.sqrt(BETA2) ** k], 1)
    return powers.where(powers > 1e-30, 0.0)


class ExactAdam:
    """Adam on a whole table at the cost of the rows that a batch reads.

    Without a gradient, a step of Adam still moves a row: by its dying moment, by weight decay; and
    the moving average follows. Such steps are made up for before the row is read again, each with
    its own learning rate and bias corrections: one by one, or, where a closed form is as exact as
    rounding, at once. Agrees with torch.optim.Adam and AdamW up to rounding; needs compiled
    kernels.

    Args:
        weight: (V, K), changed in place.
        average: Its moving average (V, K), where there is one; changes in place.
        history: The steps so far; one for all tables.
        coupled: Weight decay added to the gradient.
    """

    def __init__(
        self, weight: Tensor, average: Tensor | None, history: History, coupled: float
    ) -> None:
        self.weight, self.average = weight, average
        self.history, self.coupled = history, coupled
        self.first = torch.zeros_like(weight, requires_grad=False)
        self.second = torch.zeros_like(weight, requires_grad=False)
        self.last = torch.zeros(len(weight), dtype=torch.int32)
        self.gradient = RowGradient(before=self._replay)

    def step(self, number: int, rate: float, scale: float) -> None:
        """Move the rows that have a gradient; `history` knows the step."""
        found = self.gradient.get()
        if found is None:
            return
        touched, values = found
        given = (values, touched.order, touched.edges, scale)
        self._call("adam_step", None, touched.rows, len(touched.rows), *given)

    def catch_up(self) -> None:
        """Bring every row to the last update."""
        if self.history.now > self.history.base:
            self._call("adam_catch_up", self._tails(), None, len(self.weight))

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a resumed run needs, themselves, by what they are."""
        yield "exp_avg", self.first
        yield "exp_avg_sq", self.second
        yield "last", self.last

    def _replay(self, touched: Touched) -> None:
        self._call("adam_catch_up", self._tails(), touched.rows, len(touched.rows))

    def _tails(self) -> Tensor | None:
        """The closed form of all skipped steps, where it is as exact as rounding: in float32; an
        average and coupled weight decay have none."""
        alone = self.average is None and not self.coupled
        return self.history.tails if alone and self.weight.dtype == torch.float32 else None

    def _call(self, name: str, tails: Tensor | None, *rows: Tensor | float | None) -> None:
        kernels = library_for(self.weight)
        assert kernels is not None
        h = self.history
        table = (self.first, self.second, self.average, self.last, self.weight.shape[1])
        past = (h.steps, h.powers, tails, h.base, h.memory, CLOSED_AFTER)
        options = (BETA1, BETA2, EPS, float(self.coupled))
        kernels.call(name, self.weight, *table, *past, *options, h.now, *rows)
