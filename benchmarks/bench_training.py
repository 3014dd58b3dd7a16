"""How many rows a second does training take in, against the libraries that people use today?

    pip install -e '.[bench]' && python benchmarks/bench_training.py --data FOLDER/ml-1m

Tasks: MovieLens-1M (label rating == 5, fields user, movie and domain; DeepFM), and the towers of
two papers' data sets on synthetic rows, with as many ids. The same net, ids, rows and batches for
all; Adam 1e-3, no dropout, one thread. Speed: in each of many rounds every system trains from
scratch for a part of an epoch, one after the other, and ratios are taken within a round. Quality:
the same epochs for all. README.md says what results/training.csv holds.
"""

import argparse
import gc
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from csv_file import circumstances, quartiles, write
from numpy.typing import NDArray
from peers import Fuxi, Net, System, Trained, deepctr, plain_loop, rechub

from loractr import Prepared, build, evaluate, fit, predict, prepare
from loractr.config import RunConfig, parse_config
from loractr.environment import threads

RESULTS = Path(__file__).parent / "results" / "training.csv"
MLORA = {"name": "mlora", "rank": {"divisor": 32}}


@dataclass(frozen=True)
class Task:
    """Rows, a net, and how long each system trains in a round and for its AUC."""

    name: str
    net: Net
    data: dict[str, Any]
    chunk: float
    """Epochs of a peer's round: short, so that all in a round meet the same load."""
    ours_chunk: float
    """Epochs of ours: longer where it is faster, so that rows of tables have stood still."""
    epochs: float
    seeds: tuple[int, ...]
    rounds: int
    peers: bool = True


MOVIELENS = Net(fm=True, embedding_size=8, hidden=(256, 128, 64), batch=1024)
AMAZON = Net(fm=False, embedding_size=16, hidden=(1024, 512, 256, 64), batch=2048)
ALI_CCP = Net(fm=False, embedding_size=16, hidden=(1024, 512, 512, 256, 256, 64, 64), batch=2048)


def movielens(path: Path, division: str, rounds: int, *, peers: bool) -> Task:
    data = {
        "source": "movielens-1m",
        "path": path,
        "label": {"column": "rating", "positive": "== 5"},
        "fields": ["user", "movie"],
        "divisions": {division: {"column": division}},
        "split": {"kind": "stratified", "fractions": [0.6, 0.2, 0.2], "seed": 123},
    }
    return Task(division, MOVIELENS, data, 0.1, 0.1, 2, (0, 1, 2), rounds, peers)


@dataclass(frozen=True)
class Large:
    """A tower of one of the papers over tables of many ids: 400,000 rows to train on."""

    net: Net
    ids: int
    fields: int
    chunk: float
    epochs: float

    def task(self, name: str, folder: Path, rounds: int) -> Task:
        """On a log written anew."""
        data = written(folder / "log.parquet", self.fields, self.ids // self.fields)
        return Task(name, self.net, data, self.chunk, 0.5, self.epochs, (0,), rounds)


def written(path: Path, fields: int, each: int) -> dict[str, Any]:
    """A log with columns of ids, hashed into tables of `each` rows, and how to read it."""
    write_log(path, fields, each)
    return {
        "source": "table",
        "path": path,
        "label": {"column": "label"},
        "fields": [{"name": f"field_{n}", "hash_buckets": each} for n in range(fields)],
        "divisions": {"domain": {"column": "domain"}},
        "split": {"kind": "random", "fractions": [0.8, 0.1, 0.1]},
    }


def write_log(path: Path, fields: int, each: int, rows: int = 500_000) -> None:
    """Ids with a frequency of 1 / rank, each with an effect of its own on the label."""
    random = np.random.default_rng(0)
    ranks = (each ** random.random((rows, fields))).astype(np.int64) - 1
    effects = random.normal(0, 1.5 / fields**0.5, (fields, each))
    logit = effects[np.arange(fields), ranks].sum(1) - 1
    columns = {f"field_{n}": ranks[:, n] for n in range(fields)}
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    domain = random.integers(0, 3, rows)
    pl.DataFrame(columns | {"domain": domain, "label": label}).write_parquet(path)


LARGE = {
    "amazon": Large(AMAZON, 114_000, 10, 0.1, 1),
    "ali-ccp": Large(ALI_CCP, 1_500_000, 23, 0.03, 1),
    "ali-ccp, ten million": Large(ALI_CCP, 10_000_000, 23, 0.012, 0.25),
}


# Ours: the public way, from prepared data to predictions.


def configuration(task: Task, method: dict[str, Any]) -> RunConfig:
    return parse_config(
        {
            "data": task.data,
            "model": {
                "backbone": "deepfm" if task.net.fm else "mlp",
                "embedding_size": task.net.embedding_size,
                "embedding_std": task.net.std,
                "hidden_sizes": list(task.net.hidden),
            },
            "method": method,
            "training": {
                "batch_size": task.net.batch,
                "learning_rate": task.net.rate,
                "epochs": task.epochs,
                "validate_every": task.epochs,  # once, at the end: the last weights are kept
                "keep_start": False,
            },
        }
    )


def ours(name: str, reference: str, task: Task, method: dict[str, Any], data: Prepared) -> System:
    """`build` and `fit`; the speed is the one that the training loop itself reports."""
    config = configuration(task, method)

    def train(seed: int, epochs: float) -> Trained:
        model = build(config.model_copy(update={"seed": seed}), data.schema)
        stages = [stage.model_copy(update={"epochs": epochs}) for stage in config.stages()]
        speed = fit(model, data, stages, seed=seed).stages[-1].rows_per_second
        return Trained(speed, lambda: predict(model, data.test, data.schema))

    return System(name, version("loractr"), reference, train)


# Rounds, and what is written about them.


def race(task: Task, systems: list[System]) -> dict[str, NDArray[np.float64]]:
    """Rows per second of each system in each round; one more round before them warms up."""
    speeds = np.zeros((task.rounds + 1, len(systems)))
    for number in range(task.rounds + 1):
        for place, system in enumerate(systems):
            gc.collect()
            epochs = task.ours_chunk if system.name in ("mix", "mlora") else task.chunk
            speeds[number, place] = system.train(number, epochs).rows_per_second
    return dict(zip((system.name for system in systems), speeds[1:].T, strict=True))


def quality(task: Task, system: System) -> dict[str, float]:
    """Medians over the seeds."""
    tables = [system.train(seed, task.epochs).predictions() for seed in task.seeds]
    metrics = [evaluate(table.drop("row", strict=False)) for table in tables]
    wauc = [division.wauc for m in metrics for division in m.divisions.values()]
    return {
        "test_wauc": round(median(wauc), 4),
        "test_auc": round(median(m.pooled.auc for m in metrics), 4),
    }


def lines(task: Task, folder: Path, *, judged: bool) -> Iterator[dict[str, Any]]:
    """One line of the CSV for each system."""
    data = prepare(configuration(task, {"name": "mix"}).data, folder / task.name)
    reference = "fuxictr" if task.peers else "mix"
    systems = [
        ours("mix", reference, task, {"name": "mix"}, data),
        ours("mlora", "mix", task, MLORA, data),
    ]
    if task.peers:
        fuxi = Fuxi(task.net, data, str(folder))
        peers = [
            fuxi.system("fuxictr"),
            fuxi.system("fuxictr, no loader", loader=False),
            deepctr(task.net, data),
            rechub(task.net, data),
            plain_loop(task.net, data),
        ]
        systems = [*peers, *systems]
    speeds = race(task, systems)
    for system in systems:
        yield {
            "task": f"{task.name}, {len(data.schema.divisions[0].domains)} domains",
            "ids": sum(field.size for field in data.schema.fields),
            "system": system.name,
            "version": system.version,
            **quartiles("rows_per_second", speeds[system.name], 0),
            "reference": system.reference,
            **quartiles("ratio", speeds[system.name] / speeds[system.reference], 3),
            **(quality(task, system) if judged else {"test_wauc": "", "test_auc": ""}),
            **circumstances(task.rounds),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    files = Path(os.environ.get("LORACTR_DATA", "../shared/data"), "ml-1m")
    parser.add_argument("--data", type=Path, default=files, help="folder of the official files")
    parser.add_argument("--tasks", nargs="+", default=["gender", "occupation", *LARGE])
    parser.add_argument("--rounds", type=int, default=60, help="of MovieLens; a sixth of others")
    parser.add_argument("--speed-only", action="store_true", help="leave out the AUCs: minutes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    table: list[dict[str, Any]] = []
    for name in options.tasks:
        with threads(1), TemporaryDirectory() as made:
            folder = Path(made)
            if name in LARGE:
                task = LARGE[name].task(name, folder, -(-options.rounds // 6))
            else:
                task = movielens(options.data, name, options.rounds, peers=name == "gender")
            table += lines(task, folder, judged=not options.speed_only)
        write(options.out, table)
    columns = ("task", "system", "rows_per_second", "ratio", "ratio_q1", "ratio_q3", "reference")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=40):
        print(pl.DataFrame(table).select(*columns, "test_wauc", "test_auc"))


if __name__ == "__main__":
    main()
