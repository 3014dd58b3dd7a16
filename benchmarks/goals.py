"""Where we stand: a few minutes of benchmarks, and beside each figure what we want it to be.

    python benchmarks/goals.py [--data FOLDER/ml-1m]

Runs those that have goals with few rounds, each in a process of its own; fails at nothing. The
committed figures are those of results/, from longer runs.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
QUICK = {
    "adapters": ["--nets", "movielens", "ali-ccp", "--domains", "3", "21", "300", "--rounds", "5"],
    "mixers": ["--nets", "ali-ccp", "--rounds", "3"],
    "peft": ["--nets", "movielens", "--domains", "21", "--rounds", "3"],
    "embedding": ["100000", "10000000", "--rounds", "5"],
    "loader": ["--rows", "500000", "--rounds", "5"],
    "training": ["--tasks", "gender", "--rounds", "10", "--speed-only"],
}
"""Benchmark → options of a short run."""


@dataclass(frozen=True)
class Goal:
    """A figure of one line of a benchmark, and what it ought to be."""

    what: str
    benchmark: str
    line: dict[str, str]
    wanted: float
    at_least: bool = False
    per: dict[str, str] | None = None
    """Another line, whose `column` it is divided by."""
    column: str = "ratio"

    def found(self, lines: list[dict[str, str]]) -> float | None:
        """The figure; None where it was not measured."""
        ours = self._of(lines, self.line)
        if self.per is None or ours is None:
            return ours
        other = self._of(lines, self.per)
        return None if other is None else ours / other

    def _of(self, lines: list[dict[str, str]], wanted: dict[str, str]) -> float | None:
        values = [
            float(line[self.column])
            for line in lines
            if all(line.get(key) == value for key, value in wanted.items())
        ]
        return values[0] if values else None


def step(net: str, domains: int, stage: str, wanted: float, kernels: str = "native") -> Goal:
    """Of an adapter step, in plain steps."""
    line = {"net": net, "domains": str(domains), "stage": stage, "kernels": kernels}
    what = f"{stage} adapter step ÷ plain step, {net}, {domains} domains, {kernels} kernels"
    return Goal(what, "adapters", line, wanted)


FUXICTR = {"task": "gender, 2 domains", "system": "mix"}
GOALS = (
    Goal("training rows/s ÷ FuxiCTR's, MovieLens", "training", FUXICTR, 2.2, at_least=True),
    *(step(net, 3, "joint", 1.15) for net in ("movielens", "ali-ccp")),
    *(step(net, 21, "joint", 1.22) for net in ("movielens", "ali-ccp")),
    *(step(net, 3, "joint", 1.35, "torch") for net in ("movielens", "ali-ccp")),
    *(step(net, 21, "joint", 1.6, "torch") for net in ("movielens", "ali-ccp")),
    *(step(net, 3, "frozen", 0.76) for net in ("movielens", "ali-ccp")),
    *(step(net, 21, "frozen", 0.82) for net in ("movielens", "ali-ccp")),
    *(step(net, 300, "joint", 1.25) for net in ("movielens", "ali-ccp")),
    *(step(net, 300, "frozen", 0.80) for net in ("movielens", "ali-ccp")),
    Goal("PEFT's step ÷ ours, 21 domains", "peft", {"system": "PEFT"}, 5, at_least=True),
    Goal("step with masks ÷ ours, 21 domains", "peft", {"system": "masks"}, 5, at_least=True),
    Goal(
        "fusion step ÷ plain step, ali-ccp",
        "mixers",
        {"mixer": "fusion", "kernels": "native"},
        1.5,
    ),
    Goal("gate step ÷ plain step, ali-ccp", "mixers", {"mixer": "gate", "kernels": "native"}, 1.15),
    *(
        Goal(
            f"SparseAdam's time ÷ {name}'s, {rows:,} rows",
            "embedding",
            {"system": f"loractr {name}", "table_rows": str(rows)},
            6,
            at_least=True,
        )
        for rows in (100_000, 10_000_000)
        for name in ("adam", "lazy_adam")
    ),
    Goal(
        "time at 10 million rows ÷ at 100,000, adam",
        "embedding",
        {"system": "loractr adam", "table_rows": "10000000"},
        2.5,
        per={"system": "loractr adam", "table_rows": "100000"},
        column="ms",
    ),
    *(
        Goal(
            f"loader rows/s ÷ DataLoader's of rows, {place}",
            "loader",
            {"rows_in": place, "system": system},
            wanted,
            at_least=True,
        )
        for place, system, wanted in (
            ("memory", "loractr, by domain", 20),
            ("disk", "loractr", 50),
            ("parquet", "loractr, ten passes", 9),
        )
    ),
)


def measured(name: str, options: list[str], folder: Path) -> list[dict[str, str]]:
    """Lines of a short run; none where it cannot be made."""
    out = folder / f"{name}.csv"
    script = [sys.executable, str(HERE / f"bench_{name}.py"), *options, "--out", str(out)]
    print(f"bench_{name}.py {' '.join(options)}", file=sys.stderr, flush=True)
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        print(f"  not measured: {said[-1]}", file=sys.stderr)
        return []
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        if line.get("system", "").startswith("PEFT"):
            line["system"] = "PEFT"
    return lines


def main() -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    files = Path(os.environ.get("LORACTR_DATA", "../shared/data"), "ml-1m")
    parser.add_argument("--data", type=Path, default=files, help="MovieLens-1M's official files")
    given = parser.parse_args()
    QUICK["training"] += ["--data", str(given.data)]
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measured(name, rest, Path(folder)) for name, rest in QUICK.items()}
    width = max(len(goal.what) for goal in GOALS)
    for goal in GOALS:
        ours = goal.found(found[goal.benchmark])
        told = "not measured" if ours is None else f"{ours:8.2f}"
        print(
            f"{goal.what:{width}} {told:>12}   goal {'≥' if goal.at_least else '≤'} {goal.wanted}"
        )


if __name__ == "__main__":
    main()
