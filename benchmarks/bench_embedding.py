"""What do backward pass and optimiser of an embedding table cost, as the table grows?

    python benchmarks/bench_embedding.py            # all sizes; or name some: 10000 1000000

Every optimiser of ours against torch's, in turn within one process, one thread; needs compiled
kernels (`loractr kernels build`). README.md says what each column of results/embedding.csv means.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from csv_file import circumstances, quartiles, write
from torch import Tensor, nn

from loractr import native
from loractr.layers.lookup import Touched, look_up_by_rows
from loractr.stage import EmbeddingOptimizer, Stage
from loractr.training.optimizer import WholeAdam

RESULTS = Path(__file__).parent / "results" / "embedding.csv"
SIZES = (10_000, 50_000, 100_000, 1_000_000, 10_000_000)
ROWS, FIELDS, WIDTH, RATE = 2048, 23, 16, 1e-3
WARM = 1500
"""Steps before the first round: so that the rows a batch reads have stood still for long."""
OURS: tuple[EmbeddingOptimizer, ...] = ("adam", "lazy_adam", "rowwise_adagrad")
NAME = "embedding.tables.size_16.weight"


class System(Protocol):
    """A table with its optimiser."""

    def step(self, ids: Tensor, gradient: Tensor) -> float:
        """One step; seconds of all but reading the vectors."""
        ...


class Torchs:
    """A table as torch's users train it: SparseAdam, or dense gradients and fused Adam."""

    def __init__(self, size: int, *, sparse: bool) -> None:
        self.weight, self.sparse = nn.Parameter(torch.randn(size, WIDTH) * 0.01), sparse
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SparseAdam([self.weight], lr=RATE)
            if sparse
            else torch.optim.Adam([self.weight], lr=RATE, fused=True)
        )

    def step(self, ids: Tensor, gradient: Tensor) -> float:
        """One step; seconds of all but reading the vectors."""
        if self.sparse:
            vectors = F.embedding(ids, self.weight, sparse=True)
        else:
            vectors = self.weight.index_select(0, ids.flatten()).view_as(gradient)
        started = time.perf_counter()
        self.optimizer.zero_grad()
        torch.autograd.backward([vectors], [gradient])
        self.optimizer.step()
        return time.perf_counter() - started


class Ours:
    """A table as `fit` trains it."""

    def __init__(self, size: int, optimizer: EmbeddingOptimizer) -> None:
        self.weight = nn.Parameter(torch.randn(size, WIDTH) * 0.01)
        stage = Stage(name="table", learning_rate=RATE, embedding_optimizer=optimizer)
        self.adam = WholeAdam(stage, {NAME: self.weight}, [NAME])
        for tensor in self.adam.state().values():
            tensor.add_(0)  # the system hands out memory at the first touch: not our question

    def step(self, ids: Tensor, gradient: Tensor) -> float:
        """One step; seconds of all but reading the vectors."""
        held = self.adam.row_gradients[NAME]
        started = time.perf_counter()
        touched = Touched.of(ids.flatten(), self.weight)
        if held.before is not None:
            held.before(touched)
        before = time.perf_counter() - started
        vectors = look_up_by_rows(self.weight, ids, None, touched, held)
        started = time.perf_counter()
        torch.autograd.backward([vectors], [gradient])
        self.adam.step(0.0)
        self.adam.zero_grad()
        return before + time.perf_counter() - started


def systems(size: int) -> dict[str, Callable[[], System]]:
    """What is compared at this size; the first is what `ratio` compares with."""
    found: dict[str, Callable[[], System]] = {
        "torch SparseAdam": lambda: Torchs(size, sparse=True),
        "torch dense, fused Adam": lambda: Torchs(size, sparse=False),
    }
    return found | {f"loractr {name}": lambda name=name: Ours(size, name) for name in OURS}


def batches(size: int, seed: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Ids of frequency 1 / rank, spread over the table at random, and gradients of vectors."""
    source = torch.Generator().manual_seed(seed)
    places = torch.randperm(size, generator=source)

    def draw() -> tuple[Tensor, Tensor]:
        rank = size ** torch.rand(ROWS, FIELDS, dtype=torch.float64, generator=source)
        gradient = torch.randn(ROWS, FIELDS, WIDTH, generator=source) * 1e-4
        return places[rank.long() - 1], gradient

    return draw


def measure(size: int, rounds: int) -> list[dict[str, object]]:
    """A line per system."""
    running = {name: make() for name, make in systems(size).items()}
    draw = batches(size, seed=0)
    for step in range(WARM):
        ids, gradient = draw()
        for name, system in running.items():
            if name.startswith("loractr") or step < 2:
                system.step(ids, gradient)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        ids, gradient = draw()
        for name, system in running.items():
            seconds[name].append(system.step(ids, gradient))
    theirs = seconds["torch SparseAdam"]
    return [
        line(size, name, own, [t / o for t, o in zip(theirs, own, strict=True)])
        for name, own in seconds.items()
    ]


def line(size: int, name: str, own: list[float], ratios: list[float]) -> dict[str, object]:
    return {
        "table_rows": size,
        "system": name,
        "ms": round(1e3 * statistics.median(own), 3),
        **quartiles("ratio", ratios, 2),
        **circumstances(len(own)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with native.use("native"):
        for size in given.sizes:
            for one in measure(size, given.rounds):
                lines.append(one)
                print(*list(one.values())[:6], flush=True)
    write(given.out, lines)


if __name__ == "__main__":
    main()
