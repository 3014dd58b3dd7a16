"""How does the cost of training grow with rows, domains, ids and rank?

    pip install -e '.[bench]'; python benchmarks/bench_growth.py [--rounds 9] [--plot-only]

Measures a series of sizes of each, in turn within one process, one thread, and draws them with what
theory says into docs/explanation/growth.svg. README.md says what each column means.
"""

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from bench_adapters import NETS, Joint, Plain, seconds
from bench_embedding import Ours, batches
from csv_file import circumstances, write
from matplotlib import pyplot

from loractr.adapters import LowRankLinear
from loractr.config import parse_config
from loractr.run import run

RESULTS = Path(__file__).parent / "results" / "growth.csv"
PLOT = Path(__file__).parents[1] / "docs" / "explanation" / "growth.svg"
ROWS = (100_000, 300_000, 1_000_000, 3_000_000)
DOMAINS = (3, 10, 30, 100, 300, 1000, 3000, 10_000)
IDS = (10_000, 100_000, 1_000_000, 10_000_000)
RANKS = (1, 2, 4, 8, 16, 32, 64)
NET = "amazon"
WARM = 1000
"""Steps of a table before it is timed, so that most of its rows have stood still for a while."""


class OfRank(Joint):
    """A tower with three experts of one rank beside each layer."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        super().__init__(NET, 3)

    def adapt(self) -> None:
        """Put experts beside the layers."""
        for block in self.model["tower"].children():
            block.linear = LowRankLinear(block.linear, experts=3, rank=self.rank)


def by_rows(folder: Path) -> dict[int, float]:
    """Seconds from a raw log to a trained model, one epoch of mlora."""
    found = {}
    for count in ROWS:
        log = {"source": "synthetic", "path": str(folder / f"{count}.log")}
        config = parse_config(
            {
                "data": log | {"synthetic": {"rows": count, "domains": 15}},
                "method": {"name": "mlora"},
                "training": {"epochs": 1, "batch_size": 2048},
            }
        )
        run(config, folder / str(count), thread_count=1)
        told = json.loads((folder / str(count) / "metrics.json").read_text())["seconds"]
        found[count] = told["prepare"] + told["train"]
    return found


def in_turn(steps: dict[int, Callable[[], float]], rounds: int) -> dict[int, float]:
    """Median seconds of each over the rounds; one more before them warms up."""
    took: dict[int, list[float]] = {size: [] for size in steps}
    for _ in range(rounds + 1):
        for size, step in steps.items():
            took[size].append(step())
    return {size: statistics.median(found[1:]) for size, found in took.items()}


def timed(step: Plain) -> Callable[[], float]:
    return lambda: seconds(step, 5)


def table(size: int) -> Callable[[], float]:
    """Backward pass and Adam of a table, without reading it."""
    ours, draw = Ours(size, "adam"), batches(size, seed=0)
    for _ in range(WARM):
        ours.step(*draw())
    return lambda: statistics.mean(ours.step(*draw()) for _ in range(5))


def expected(rank: int) -> float:
    """Products of the adapted step, of which the plain one's are 1."""
    wide, hidden, _ = NETS[NET]
    pairs = list(zip((wide, *hidden), hidden, strict=False))
    return 1 + rank * sum(a + b for a, b in pairs) / sum(a * b for a, b in pairs)


def measure(folder: Path, rounds: int) -> list[dict[str, object]]:
    """All series; `ratio` is to the first size, of ranks to the plain step."""
    ranks = in_turn({0: timed(Plain(NET))} | {r: timed(OfRank(r)) for r in RANKS}, rounds)
    plain = ranks.pop(0)
    domains = in_turn({d: timed(Joint("movielens", d)) for d in DOMAINS}, rounds)
    ids = in_turn({v: table(v) for v in IDS}, rounds)
    rows = by_rows(folder)
    series = {"rank": ranks, "domains": domains, "ids": ids, "rows": rows}
    base = {"rank": plain} | {
        name: next(iter(found.values())) for name, found in series.items() if name != "rank"
    }
    return [
        {
            "grows": name,
            "size": size,
            "seconds": round(took, 6),
            "ratio": round(took / base[name], 3),
            **circumstances(1 if name == "rows" else rounds),
        }
        for name, found in series.items()
        for size, took in found.items()
    ]


def plot(lines: list[dict[str, str]]) -> None:
    """Four panels: measured, and what theory says."""
    titles = {
        "rows": ("rows", "from raw log to model, seconds"),
        "domains": ("domains", "joint step ÷ that of 3 domains"),
        "ids": ("rows of the table", "backward + Adam ÷ that of 10,000"),
        "rank": ("rank", "joint step ÷ plain step"),
    }
    figure, panels = pyplot.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for panel, (name, (across, up)) in zip(panels, titles.items(), strict=True):
        own = [line for line in lines if line["grows"] == name]
        sizes = [int(line["size"]) for line in own]
        key = "seconds" if name == "rows" else "ratio"
        values = [float(line[key]) for line in own]
        theory = {
            "rows": [values[-1] * size / sizes[-1] for size in sizes],
            "rank": [expected(size) for size in sizes],
        }.get(name, [1.0 for _ in sizes])
        panel.plot(sizes, theory, color="0.6", linestyle="--", label="theory")
        panel.plot(sizes, values, color="tab:blue", marker="o", label="measured")
        panel.set(xscale="log", xlabel=across, ylabel=up)
        if name == "rows":
            panel.set_yscale("log")
        else:
            panel.set_ylim(0, 1.15 * max(*values, *theory))
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot-only", action="store_true", help="draw what is in --out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.plot_only:
        with tempfile.TemporaryDirectory() as folder:
            write(given.out, measure(Path(folder), given.rounds))
    with given.out.open(newline="") as file:
        plot(list(csv.DictReader(file)))


if __name__ == "__main__":
    main()
