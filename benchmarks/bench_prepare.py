"""How many rows a second does `prepare` take in, and how much memory, as the rows grow?

    python benchmarks/bench_prepare.py --rows 1_000_000 10_000_000 100_000_000

A synthetic log (user, item, category, tags, price, time, domain, label; Zipf-like ids) is written
as Parquet parts, which is not timed, and prepared with source `table`, each time in a process of
its own with one thread of Polars. A random and a temporal split should stay under 2 GiB whatever
the rows. README.md says what each column of results/prepare.csv means.
"""

import argparse
import csv
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import polars as pl

RESULTS = Path(__file__).parent / "results" / "prepare.csv"
MEMORY = ("peak_rss_mib", "peak_anonymous_mib", "prepared_mib")
VERSIONS = ("loractr", "polars", "numpy", "python")
COLUMNS = ("rows", "split", "deduplicate", "step", "seconds", "rows_per_second", *MEMORY)
COLUMNS += (*VERSIONS, "threads", "load", "processor", "date")
PART_ROWS = 1_000_000
FIELDS = [
    {"name": "user"},
    {"name": "item", "min_count": 2},
    {"name": "category"},
    {"name": "tags", "kind": "sequence"},
    {"name": "price", "kind": "numerical", "scaling": "log1p"},
]
SPLITS = {
    "random": {"kind": "random"},
    "temporal": {"kind": "temporal", "column": "ts", "fractions": [0.8, 0.1, 0.1]},
    "stratified": {"kind": "stratified"},
}
TASKS = (
    ("random", False),
    ("temporal", False),
    ("stratified", False),
    ("random", ["user", "item"]),
)


def write_log(folder: Path, rows: int) -> None:
    """Parts of a log of `rows` rows: about 100 rows a user, half a million items."""
    users, items = max(rows // 100, 1000), min(max(rows // 50, 1000), 500_000)
    for part, start in enumerate(range(0, rows, PART_ROWS)):
        rng = np.random.default_rng([7, part])
        n = min(PART_ROWS, rows - start)
        lengths = rng.integers(1, 4, n)
        tags = pl.Series(rng.integers(0, 1000, lengths.sum()).astype(np.int32))
        row = pl.Series(np.repeat(np.arange(n), lengths))
        bags = pl.DataFrame({"row": row, "tags": tags}).group_by("row", maintain_order=True).all()
        item = (items * rng.random(n) ** 3).astype(np.int64)
        frame = pl.DataFrame(
            {
                "user": (users * rng.random(n) ** 2).astype(np.int64) + 10_000_000_000,
                "item": item * 7919,  # wide apart, as real ids are
                "category": pl.Series(item % 300).cast(pl.String),
                "tags": bags["tags"],
                "price": rng.lognormal(3, 1, n),
                "ts": 1_700_000_000 + (start + np.arange(n)) // 40 + rng.integers(0, 3600, n),
                "domain": rng.choice(12, n, p=np.arange(12, 0, -1) / 78).astype(np.int8),
                "label": (rng.random(n) < 0.1).astype(np.int8),
            }
        )
        frame.write_parquet(folder / f"part-{part:04d}.parquet", compression="lz4")


class Memory:
    """Largest resident memory of this process, and how much of it was no file's."""

    def __init__(self) -> None:
        self.anonymous_kib = 0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def peak_mib(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            kib = int(status.partition("RssAnon:")[2].split()[0])
            self.anonymous_kib = max(self.anonymous_kib, kib)
            time.sleep(0.05)


def measure(log: Path, out: Path, split: str, deduplicate: list[str] | bool) -> dict[str, float]:
    """Prepare the log in this process: seconds of each step, and memory."""
    from loractr.data.config import DataConfig
    from loractr.data.prepare import prepare

    config = DataConfig.model_validate(
        {
            "source": "table",
            "path": log,
            "fields": FIELDS,
            "divisions": {"domain": {"column": "domain"}},
            "split": SPLITS[split],
            "deduplicate": deduplicate,
        }
    )
    memory = Memory()
    start, worked = time.perf_counter(), time.process_time()
    prepared = prepare(config, out)
    total, worked = time.perf_counter() - start, time.process_time() - worked
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        **prepared.manifest["seconds"],
        "total": total,
        "processor time": worked,  # `total` without waiting: for disks, for other processes
        "peak_rss_mib": memory.peak_mib,
        "peak_anonymous_mib": memory.anonymous_kib / 1024,
        "prepared_mib": size / 2**20,
    }


def measure_apart(
    log: Path, out: Path, split: str, deduplicate: list[str] | bool
) -> dict[str, float]:
    """`measure` in a process of its own; what it wrote is removed."""
    task = json.dumps([str(log), str(out), split, deduplicate])
    environment = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", task]
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def lines(rows: int, split: str, deduplicate: object, found: dict[str, float]) -> list[dict]:
    """One line of the results for each step, and one for the whole."""
    shared = {
        "rows": rows,
        "split": split,
        "deduplicate": "+".join(deduplicate) if isinstance(deduplicate, list) else "",
        **{name: round(found[name]) for name in MEMORY},
        **{name: version(name) for name in VERSIONS[:3]},
        "python": platform.python_version(),
        "threads": 1,
        "load": round(os.getloadavg()[0], 1),
        "processor": processor(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    steps = {name: seconds for name, seconds in found.items() if name not in MEMORY}
    return [
        shared | {"step": step, "seconds": round(s, 2), "rows_per_second": round(rows / s, -3)}
        for step, s in steps.items()
        if s > 0.005
    ]


def processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--tasks", type=int, nargs="+", default=range(len(TASKS)), help="which")
    parser.add_argument("--workdir", type=Path, help="where the log is written; 6 GB for 10⁸ rows")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to append to")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        log, out, split, deduplicate = json.loads(arguments.measure)
        print(json.dumps(measure(Path(log), Path(out), split, deduplicate)))
        return
    folder = Path(mkdtemp(prefix="bench-prepare-", dir=arguments.workdir))
    try:
        for rows in arguments.rows:
            log = folder / f"log-{rows}"
            log.mkdir()
            write_log(log, rows)
            for split, deduplicate in (TASKS[index] for index in arguments.tasks):
                found = measure_apart(log, folder / "prepared", split, deduplicate)
                record(arguments.out, lines(rows, split, deduplicate, found))
            shutil.rmtree(log)
    finally:
        shutil.rmtree(folder)


def record(path: Path, found: list[dict]) -> None:
    """Append to the results, and show them."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(found)
    for line in found:
        print(*(line[name] for name in COLUMNS[:9]), sep="\t", flush=True)


if __name__ == "__main__":
    main()
