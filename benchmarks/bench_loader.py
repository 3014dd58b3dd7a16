"""How many rows a second does the loader make batches of, against a DataLoader of rows?

    python benchmarks/bench_loader.py [--rounds 9] [--rows 2000000]

Rows of 23 ids, shuffled, in batches of 2,048, read in one process. Last, in three rounds, out of a
log in Parquet, where the DataLoader keeps the file's order. One thread; README.md says what each
column means.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import torch
from csv_file import circumstances, quartiles, write
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset

from loractr import prepare
from loractr.batch import Routing
from loractr.config import parse_config
from loractr.data.loader import collate
from loractr.data.order import shuffled
from loractr.data.rows import Rows

RESULTS = Path(__file__).parent / "results" / "loader.csv"
FIELDS, DOMAINS, BATCH = 23, 21, 2048
GROUP, PASSES = 100_000, 10
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


class RowsOfParquet(IterableDataset[NDArray[np.float64]]):
    """A row an item as well, of a Parquet file that is read one row group after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: int = pl.scan_parquet(path).select(pl.len()).collect().item()

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        """Rows, ids and label, in the order of the file."""
        for start in range(0, self.rows, GROUP):
            group = pl.scan_parquet(self.path).slice(start, GROUP).collect()
            yield from group.to_numpy().astype(np.float64)


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


def from_parquet(folder: Path, count: int, rounds: int) -> list[dict[str, object]]:
    """From a log in Parquet: prepared once, then read; against rows streamed out of the file."""
    random, path = np.random.default_rng(0), folder / "log.parquet"
    columns = {f"field_{n}": random.integers(0, 1000, count, np.int32) for n in range(FIELDS)}
    outcome = {"label": random.integers(0, 2, count, np.int8)}
    domain = {"domain": random.integers(0, DOMAINS, count, np.int8)}
    pl.DataFrame(columns | domain | outcome).write_parquet(
        path, compression="lz4", row_group_size=GROUP
    )
    data = {"source": "table", "path": path, "label": {"column": "label"}, "fields": list(columns)}
    split = {"kind": "random", "fractions": [0.98, 0.01, 0.01]}
    data |= {"divisions": {"domain": {"column": "domain"}}, "split": split}
    config = parse_config({"data": data, "method": {"name": "mix"}}).data
    took: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        rows = (len(batch) for batch in DataLoader(RowsOfParquet(path), batch_size=BATCH))
        took.setdefault("DataLoader of rows", []).append(seconds(rows, 2 * GROUP // BATCH))
        started = time.perf_counter()
        train = prepare(config, folder / f"prepared-{number}").train
        before = (time.perf_counter() - started) / len(train)
        for name, passes in (("first pass", 1), ("ten passes", PASSES)):
            source = batches(train, ALONE, on_disk=True)
            reading = seconds(source, passes * len(train) // BATCH)
            took.setdefault(f"loractr, {name}", []).append(before / passes + reading)
    return table_of("parquet", took, rounds)


def table_of(place: str, took: dict[str, list[float]], rounds: int) -> list[dict[str, object]]:
    """Lines of the CSV from the seconds of a row, round by round; the first round warmed up."""
    lines: list[dict[str, object]] = []
    peer = took["DataLoader of rows"][1:]
    for system, found in took.items():
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
    return [
        line
        for where in ("memory", "disk")
        for line in table_of(
            where, {s: t for (place, s), t in took.items() if place == where}, rounds
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), given.rows, given.rounds)
        write(given.out, lines + from_parquet(Path(folder), given.rows, 3))


if __name__ == "__main__":
    main()
