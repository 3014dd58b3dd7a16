"""From a raw log to a trained model: rows a second and memory, at a hundred million rows.

    python benchmarks/bench_end_to_end.py [--rows 100_000_000] [--workdir FOLDER]

The log of bench_prepare.py, written first and not timed; then `prepare`, and one epoch of mlora on
an MLP with its validation, each in a process of its own, on one thread. The promise: 4 GiB at most,
whatever the rows. README.md says what each column of results/end_to_end.csv means.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import torch
from bench_prepare import Memory, measure, write_log
from csv_file import circumstances

from loractr import native
from loractr.config import parse_config
from loractr.data.store import open_prepared
from loractr.model import build
from loractr.training import fit
from loractr.training.fits import Data

RESULTS = Path(__file__).parent / "results" / "end_to_end.csv"
STEPS = ("prepare", "train")


def train(log: Path, prepared: Path) -> dict[str, float]:
    """One epoch in this process: seconds and memory."""
    config = parse_config(
        {
            "data": {"source": "table", "path": str(log)},
            "model": {"embedding_size": 16, "hidden_sizes": [256, 128]},
            "method": {"name": "mlora"},
            "training": {"epochs": 1, "batch_size": 2048},
        }
    )
    memory, started = Memory(), time.perf_counter()
    data = Data.of(open_prepared(prepared))
    with native.use("auto"):
        history = fit(build(config, data.schema), data, config.stages(), seed=0)
    (stage,) = history.stages
    return {
        "seconds": time.perf_counter() - started,
        "training_rows_per_second": stage.rows_per_second,
        "peak_rss_mib": memory.peak_mib,
        "peak_anonymous_mib": memory.anonymous_kib / 1024,
    }


def prepared_by(log: Path, out: Path) -> dict[str, float]:
    """The same of `prepare`."""
    found = measure(log, out, "random", deduplicate=False)
    memory = {name: found[name] for name in ("peak_rss_mib", "peak_anonymous_mib")}
    return {"seconds": found["total"], **memory}


def apart(step: str, log: Path, out: Path) -> dict[str, float]:
    """A step in a process of its own."""
    environment = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--step", json.dumps([step, str(log), str(out)])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--workdir", type=Path, help="for log and arrays; 12 GB for 10⁸ rows")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to append to")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.step:
        step, log, out = json.loads(given.step)
        found = prepared_by(Path(log), Path(out)) if step == "prepare" else train(log, Path(out))
        print(json.dumps(found))
        return
    folder = Path(mkdtemp(prefix="bench-end-to-end-", dir=given.workdir))
    try:
        log, prepared = folder / "log", folder / "prepared"
        log.mkdir()
        write_log(log, given.rows)
        new = not given.out.exists()
        for step in STEPS:
            found = apart(step, log, prepared)
            line = {
                "rows": given.rows,
                "step": step,
                "seconds": round(found["seconds"], 1),
                "rows_per_second": round(given.rows / found["seconds"]),
                "training_rows_per_second": round(found.get("training_rows_per_second", 0)) or "",
                "peak_rss_mib": round(found["peak_rss_mib"]),
                "peak_anonymous_mib": round(found["peak_anonymous_mib"]),
                **circumstances(1),
            }
            print(*(f"{name}={value}" for name, value in line.items()), flush=True)
            with given.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, line)
                if new:
                    writer.writeheader()
                writer.writerow(line)
            new = False
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
