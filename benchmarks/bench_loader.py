"""How many rows a second does the loader make batches of, against a DataLoader of rows?

    python benchmarks/bench_loader.py [--rounds 9] [--rows 2000000]

Rows of 23 ids, shuffled, in batches of 2,048, read in one process. One thread; README.md says what
each column means.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from csv_file import circumstances, quartiles, write
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from loractr.batch import Routing
from loractr.data.loader import collate
from loractr.data.order import shuffled
from loractr.data.rows import Rows

RESULTS = Path(__file__).parent / "results" / "loader.csv"
FIELDS, DOMAINS, BATCH = 23, 21, 2048
ALONE, BY_DOMAIN = Routing(), Routing(divisions=(0,))


class RowByRow(Dataset[NDArray[np.float64]]):
    """One array of float64, a row an item: how FuxiCTR keeps its data."""

    def __init__(self, table: NDArray[np.float64]) -> None:
        self.table = table

    def __getitem__(self, place: int) -> NDArray[np.float64]:
        """A row, ids and label."""
        return self.table[place]

    def __len__(self) -> int:
        return len(self.table)


def encoded(folder: Path, count: int, *, on_disk: bool) -> Rows:
    """Random rows, in memory or memory-mapped as prepared data are."""
    random = np.random.default_rng(0)
    arrays = {
        "ids": random.integers(0, 1000, (count, FIELDS), dtype=np.int32),
        "numbers": np.zeros((count, 0), np.float32),
        "domains": random.integers(0, DOMAINS, (count, 1), dtype=np.int32),
        "row": np.arange(count),
        "label": random.random(count).astype(np.float32),
    }
    if on_disk:
        for name, values in arrays.items():
            if values.size:
                np.save(folder / f"{name}.npy", values)
                arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return Rows(**arrays)


def batches(rows: Rows, routing: Routing, *, on_disk: bool) -> Iterator[int]:
    """Sizes of batches, epoch after epoch, as the training loop makes them."""
    sizes = (DOMAINS,) if routing.divisions else ()
    for number in range(1_000_000):
        epoch = shuffled(len(rows), BATCH, (0, number), on_disk=on_disk)
        for place in range(len(epoch)):
            yield len(collate(rows, epoch[place], routing, sizes))


def row_by_row(table: NDArray[np.float64]) -> Iterator[int]:
    """The same of torch's DataLoader."""
    while True:
        for batch in DataLoader(RowByRow(table), batch_size=BATCH, shuffle=True):
            yield len(batch)


def seconds(source: Iterator[int], times: int) -> float:
    """Of a row, over some batches."""
    started = time.perf_counter()
    read = sum(islice(source, times))
    return (time.perf_counter() - started) / read


def measure(folder: Path, count: int, rounds: int) -> list[dict[str, object]]:
    """All systems in turn."""
    memory, disk = (encoded(folder, count, on_disk=on_disk) for on_disk in (False, True))
    table = np.concatenate([memory.ids, memory.domains], 1).astype(np.float64)
    np.save(folder / "table.npy", table)
    mapped = np.load(folder / "table.npy", mmap_mode="r")
    makers: dict[tuple[str, str], Callable[[], Iterator[int]]] = {
        ("memory", "DataLoader of rows"): lambda: row_by_row(table),
        ("memory", "loractr"): lambda: batches(memory, ALONE, on_disk=False),
        ("memory", "loractr, by domain"): lambda: batches(memory, BY_DOMAIN, on_disk=False),
        ("disk", "DataLoader of rows"): lambda: row_by_row(mapped),
        ("disk", "loractr"): lambda: batches(disk, ALONE, on_disk=True),
        ("disk", "loractr, by domain"): lambda: batches(disk, BY_DOMAIN, on_disk=True),
    }
    sources = {key: make() for key, make in makers.items()}
    took: dict[tuple[str, str], list[float]] = {key: [] for key in sources}
    for _ in range(rounds + 1):
        for (place, system), source in sources.items():
            times = 20 if system == "DataLoader of rows" else 200
            took[place, system].append(seconds(source, times))
    lines: list[dict[str, object]] = []
    for (place, system), found in took.items():
        peer = took[place, "DataLoader of rows"][1:]
        ratios = [theirs / ours for theirs, ours in zip(peer, found[1:], strict=True)]
        line: dict[str, object] = {
            "rows_in": place,
            "system": system,
            "rows_per_second": round(1 / statistics.median(found[1:])),
            **quartiles("ratio", ratios, 1),
        }
        print(*(f"{name}={value}" for name, value in line.items()), flush=True)
        lines.append(line | circumstances(rounds))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write(given.out, measure(Path(folder), given.rows, given.rounds))


if __name__ == "__main__":
    main()
