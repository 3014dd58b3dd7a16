"""How many rows a second does training take in, against FuxiCTR and against a bare torch loop?

    pip install -e '.[bench]' && python benchmarks/bench_training.py --data FOLDER/ml-1m

MovieLens-1M, label rating == 5, fields user, movie and domain; DeepFM, embedding 8, tower [256,
128, 64], batch 1024, Adam 1e-3, no dropout, one thread. Speed: in each of many rounds every system
trains for a tenth of an epoch, one after the other, and ratios are taken within a round. Quality: 2
epochs, the same for all, with three seeds. README.md says what results/training.csv holds.
"""

import argparse
import gc
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice, pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl
import torch
from csv_file import circumstances, quartiles, write
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from loractr import Prepared, build, evaluate, fit, predict, prepare
from loractr.config import RunConfig, parse_config
from loractr.data.rows import Rows
from loractr.environment import threads

SIZE, HIDDEN, BATCH, RATE = 8, [256, 128, 64], 1024, 1e-3
EPOCHS, SEEDS = 2, (0, 1, 2)
CHUNK = 0.1
"""Epochs that a system trains for in a round: short, so that all in a round meet the same load."""
RESULTS = Path(__file__).parent / "results" / "training.csv"


@dataclass(frozen=True)
class Trained:
    """The end of a training from scratch: its speed, and the test rows scored when asked."""

    rows_per_second: float
    predictions: Callable[[], pl.DataFrame]


@dataclass(frozen=True)
class System:
    """Something that trains, and what its speed is compared with."""

    name: str
    version: str
    reference: str
    train: Callable[[int, float], Trained]
    """(seed, epochs) → what came of it."""


def label_of(rows: Rows) -> NDArray[np.float32]:
    assert rows.label is not None
    return np.array(rows.label)


# Ours: the public way, from prepared data to predictions.


def configuration(path: Path, division: str, method: dict[str, Any]) -> RunConfig:
    return parse_config(
        {
            "data": {
                "source": "movielens-1m",
                "path": path,
                "label": {"column": "rating", "positive": "== 5"},
                "fields": ["user", "movie"],
                "divisions": {division: {"column": division}},
                "split": {"kind": "stratified", "fractions": [0.6, 0.2, 0.2], "seed": 123},
            },
            "model": {"backbone": "deepfm", "embedding_size": SIZE, "hidden_sizes": HIDDEN},
            "method": method,
            "training": {
                "batch_size": BATCH,
                "learning_rate": RATE,
                "epochs": EPOCHS,
                "validate_every": EPOCHS,  # once, at the end: the last weights are kept
                "keep_start": False,
            },
        }
    )


def ours(name: str, reference: str, config: RunConfig, data: Prepared) -> System:
    """`build` and `fit`; the speed is the one that the training loop itself reports."""

    def train(seed: int, epochs: float) -> Trained:
        model = build(config.model_copy(update={"seed": seed}), data.schema)
        stages = [stage.model_copy(update={"epochs": epochs}) for stage in config.stages()]
        speed = fit(model, data, stages, seed=seed).stages[-1].rows_per_second
        return Trained(speed, lambda: predict(model, data.test, data.schema))

    return System(name, version("loractr"), reference, train)


# The yardstick: what anyone would write for this one net, on tensors that lie ready.


class PlainDeepFM(nn.Module):
    """DeepFM of categorical fields whose ids are rows of one common table already."""

    def __init__(self, rows: int, fields: int) -> None:
        super().__init__()
        self.vectors, self.linear = nn.Embedding(rows, SIZE), nn.Embedding(rows, 1)
        nn.init.normal_(self.vectors.weight, std=0.01)
        nn.init.zeros_(self.linear.weight)
        widths = [fields * SIZE, *HIDDEN, 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
            nn.init.xavier_normal_(layers[-2].weight)
            nn.init.zeros_(layers[-2].bias)
        self.tower = nn.Sequential(*layers[:-1])

    def forward(self, ids: Tensor) -> Tensor:
        """(N, fields) → logits (N,)."""
        vectors = self.vectors(ids)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)
        deep: Tensor = self.tower(vectors.flatten(1)).squeeze(1)
        return deep + pairs + self.linear(ids).sum((1, 2))


def plain_loop(reference: str, data: Prepared) -> System:
    """A bare loop with fused Adam over tensors in memory: no loader, no library."""
    sizes = torch.tensor([field.size for field in data.schema.fields])
    starts = sizes.cumsum(0) - sizes
    ids, test = (torch.tensor(rows.ids).long() + starts for rows in (data.train, data.test))
    label = torch.tensor(label_of(data.train))

    def train(seed: int, epochs: float) -> Trained:
        torch.manual_seed(seed)
        model = PlainDeepFM(int(sizes.sum()), len(sizes))
        adam = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
        order = torch.cat([torch.randperm(len(ids)) for _ in range(math.ceil(epochs))])
        order = order[: round(epochs * len(ids))]
        start = perf_counter()
        for index in order.split(BATCH):
            adam.zero_grad()
            F.binary_cross_entropy_with_logits(model(ids[index]), label[index]).backward()
            adam.step()
        return Trained(len(order) / (perf_counter() - start), lambda: scores(model))

    @torch.inference_mode()
    def scores(model: PlainDeepFM) -> pl.DataFrame:
        probability = torch.cat([model(part) for part in test.split(BATCH)]).sigmoid()
        return predictions(probability.numpy(), data)

    return System("plain torch loop", torch.__version__, reference, train)


def predictions(probability: NDArray[Any], data: Prepared) -> pl.DataFrame:
    """A table to evaluate, of these probabilities of the test rows."""
    (division,) = data.schema.divisions
    names = np.array(division.domains)[data.test.domains[:, 0]]
    columns = {"label": label_of(data.test), "probability": probability, division.name: names}
    return pl.DataFrame(columns)


# FuxiCTR as its users run it: its loader of rows, its train_step, its layers.


class FuxiDeepFM(BaseModel):
    """DeepFM of FuxiCTR's own layers, as its model zoo has it (which its wheel leaves out)."""

    def __init__(self, features: FeatureMap, folder: str) -> None:
        super().__init__(features, model_root=folder, verbose=0, metrics=["AUC"])
        self.embedding = FeatureEmbedding(features, SIZE)
        self.fm = FactorizationMachine(features)
        self.tower = MLP_Block(features.sum_emb_out_dim(), HIDDEN, output_dim=1)
        self.compile("adam", "binary_crossentropy", RATE)
        self.reset_parameters()
        self._max_gradient_norm = 10.0  # the default of its `fit`

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Columns of a batch → probabilities (N, 1)."""
        columns = self.get_inputs(inputs)
        vectors = self.embedding(columns)
        logit = self.fm(columns, vectors)
        logit += self.tower(vectors.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}


class Fuxi:
    """FuxiCTR on the same rows, with the same ids, from the files that its loader reads."""

    def __init__(self, data: Prepared, folder: str) -> None:
        self.data, self.folder = data, folder
        self.features = FeatureMap("movielens", folder)
        for field in data.schema.fields:
            spec = {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": field.size}
            self.features.features[field.name] = spec
        self.features.labels, self.features.default_emb_dim = ["label"], SIZE
        self.features.num_fields = self.features.get_num_fields()
        self.features.set_column_index()
        for name in ("train", "test"):
            self._write(name, data.rows(name))
        files = {f"{name}_data": f"{folder}/{name}.npz" for name in ("train", "test")}
        self.loader, _, self.test = RankDataLoader(
            self.features, batch_size=BATCH, num_workers=0, **files
        )

    def _write(self, name: str, rows: Rows) -> None:
        columns = {f.name: rows.ids[:, place] for place, f in enumerate(self.data.schema.fields)}
        np.savez(f"{self.folder}/{name}.npz", **columns, label=label_of(rows))

    def system(self, name: str, *, loader: bool = True) -> System:
        """Its loop: `train_step` on every batch, the loss read. Without `loader` the clock runs
        over batches that its loader made before: no loader could be faster."""

        def train(seed: int, epochs: float) -> Trained:
            torch.manual_seed(seed)
            model = FuxiDeepFM(self.features, self.folder).train()
            batches = self._batches(round(epochs * len(self.loader)))
            if not loader:
                batches = iter(list(batches))
            rows = len(next(batches)["label"])  # the first one draws the order of the whole epoch
            start = perf_counter()
            for batch in batches:
                model.train_step(batch).item()
                rows += len(batch["label"])
            speed = (rows - BATCH) / (perf_counter() - start)
            return Trained(speed, lambda: predictions(model.predict(self.test), self.data))

        return System(name, version("fuxictr"), "fuxictr", train)

    def _batches(self, steps: int) -> Iterator[Any]:
        epochs = -(-steps // len(self.loader))
        return islice(chain.from_iterable(self.loader for _ in range(epochs)), steps)


# Rounds, and what is written about them.


def race(systems: list[System], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Rows per second of each system in each round; one more round before them warms up."""
    speeds = np.zeros((rounds + 1, len(systems)))
    for number in range(rounds + 1):
        for place, system in enumerate(systems):
            gc.collect()
            speeds[number, place] = system.train(number, CHUNK).rows_per_second
    return dict(zip((system.name for system in systems), speeds[1:].T, strict=True))


def quality(system: System) -> dict[str, float]:
    """Medians over the seeds."""
    tables = [system.train(seed, EPOCHS).predictions() for seed in SEEDS]
    metrics = [evaluate(table.drop("row", strict=False)) for table in tables]
    wauc = [division.wauc for m in metrics for division in m.divisions.values()]
    return {
        "test_wauc": round(median(wauc), 4),
        "test_auc": round(median(m.pooled.auc for m in metrics), 4),
    }


def lines(
    task: str, systems: list[System], rounds: int, *, judged: bool
) -> Iterator[dict[str, Any]]:
    """One line of the CSV for each system."""
    speeds = race(systems, rounds)
    for system in systems:
        yield {
            "task": task,
            "system": system.name,
            "version": system.version,
            **quartiles("rows_per_second", speeds[system.name], 0),
            "reference": system.reference,
            **quartiles("ratio", speeds[system.name] / speeds[system.reference], 3),
            **(quality(system) if judged else {}),
            **circumstances(rounds),
        }


def run(path: Path, rounds: int, *, judged: bool) -> list[dict[str, Any]]:
    mlora = {"name": "mlora", "rank": {"divisor": 32}}
    table = []
    with TemporaryDirectory() as folder:
        for division in ("gender", "occupation"):
            mix = configuration(path, division, {"name": "mix"})
            adapted = configuration(path, division, mlora)
            data = prepare(mix.data, Path(folder) / division)
            task = f"{division}, {len(data.schema.divisions[0].domains)} domains"
            systems = [ours("mix", "mix", mix, data), ours("mlora", "mix", adapted, data)]
            if division == "gender":
                fuxi = Fuxi(data, folder)
                systems = [
                    fuxi.system("fuxictr"),
                    fuxi.system("fuxictr, no loader", loader=False),
                    plain_loop("fuxictr", data),
                    ours("mix", "fuxictr", mix, data),
                    ours("mlora", "mix", adapted, data),
                ]
            table += lines(task, systems, rounds, judged=judged)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    files = Path(os.environ.get("LORACTR_DATA", "../shared/data"), "ml-1m")
    parser.add_argument("--data", type=Path, default=files, help="folder of the official files")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--speed-only", action="store_true", help="leave out the AUCs: minutes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with threads(1):
        table = run(options.data, options.rounds, judged=not options.speed_only)
    write(options.out, table)
    columns = ("task", "system", "rows_per_second", "ratio", "ratio_q1", "ratio_q3", "reference")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=40):
        print(pl.DataFrame(table).select(*columns, pl.selectors.starts_with("test_")))


if __name__ == "__main__":
    main()
