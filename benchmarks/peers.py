"""Libraries that also train CTR models, put to our task: the same net, ids, rows and batches.

Each as its users run it: its loader, its training step, its layers. Where a library has no such net
whole, it is put together of its parts; where it adds what the others lack (norms, regularisation),
that is left out, which only makes it faster.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DeepFM as DeepCtrDeepFM
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch_rechub.basic.features import SparseFeature
from torch_rechub.basic.layers import MLP, EmbeddingLayer
from torch_rechub.models.ranking import DeepFM as RechubDeepFM
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

from loractr import Prepared
from loractr.data.rows import Rows


@dataclass(frozen=True)
class Net:
    """What is trained: DeepFM, or with `fm` off its tower alone."""

    fm: bool
    embedding_size: int
    hidden: tuple[int, ...]
    batch: int
    rate: float = 1e-3
    std: float = 1e-4
    """Of the initial vectors: what all three libraries begin with."""


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
    """(seed, epochs) → what came of it; parts of an epoch, or whole ones."""


def label_of(rows: Rows) -> NDArray[np.float32]:
    assert rows.label is not None
    return np.array(rows.label)


def columns_of(data: Prepared, rows: Rows) -> dict[str, NDArray[np.int32]]:
    return {
        field.name: np.ascontiguousarray(rows.ids[:, place])
        for place, field in enumerate(data.schema.fields)
    }


@contextmanager
def silence() -> Iterator[None]:
    """What libraries print while they train is not shown."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def predictions(probability: NDArray[Any], data: Prepared) -> pl.DataFrame:
    """A table to evaluate, of these probabilities of the test rows."""
    (division,) = data.schema.divisions
    names = np.array(division.domains)[data.test.domains[:, 0]]
    columns = {"label": label_of(data.test), "probability": probability, division.name: names}
    return pl.DataFrame(columns)


# The yardstick: what anyone would write for this one net, on tensors that lie ready.


class PlainNet(nn.Module):
    """The net of categorical fields whose ids are rows of one common table already."""

    def __init__(self, net: Net, rows: int, fields: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(rows, net.embedding_size)
        self.linear = nn.Embedding(rows, 1) if net.fm else None
        nn.init.normal_(self.vectors.weight, std=net.std)
        widths = [fields * net.embedding_size, *net.hidden, 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
            nn.init.xavier_normal_(layers[-2].weight)
            nn.init.zeros_(layers[-2].bias)
        self.tower = nn.Sequential(*layers[:-1])
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, fields) → logits (N,)."""
        vectors = self.vectors(ids)
        logit: Tensor = self.tower(vectors.flatten(1)).squeeze(1)
        if self.linear is None:
            return logit
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)
        return logit + pairs + self.linear(ids).sum((1, 2))


def plain_loop(net: Net, data: Prepared) -> System:
    """A bare loop with fused Adam over tensors in memory: no loader, no library."""
    sizes = torch.tensor([field.size for field in data.schema.fields])
    starts = sizes.cumsum(0) - sizes
    ids, test = (torch.tensor(rows.ids).long() + starts for rows in (data.train, data.test))
    label = torch.tensor(label_of(data.train))

    def train(seed: int, epochs: float) -> Trained:
        torch.manual_seed(seed)
        model = PlainNet(net, int(sizes.sum()), len(sizes))
        adam = torch.optim.Adam(model.parameters(), lr=net.rate, fused=True)
        order = torch.cat([torch.randperm(len(ids)) for _ in range(math.ceil(epochs))])
        order = order[: round(epochs * len(ids))]
        start = perf_counter()
        for index in order.split(net.batch):
            adam.zero_grad()
            F.binary_cross_entropy_with_logits(model(ids[index]), label[index]).backward()
            adam.step()
        return Trained(len(order) / (perf_counter() - start), lambda: scores(model))

    @torch.inference_mode()
    def scores(model: PlainNet) -> pl.DataFrame:
        probability = torch.cat([model(part) for part in test.split(net.batch)]).sigmoid()
        return predictions(probability.numpy(), data)

    return System("plain torch loop", torch.__version__, "fuxictr", train)


# FuxiCTR: its loader of rows, its train_step (its wheel leaves the model zoo out).


class FuxiNet(BaseModel):
    """The net of FuxiCTR's own layers, as its model zoo has it."""

    def __init__(self, net: Net, features: FeatureMap, folder: str) -> None:
        super().__init__(features, model_root=folder, verbose=0, metrics=["AUC"])
        self.embedding = FeatureEmbedding(features, net.embedding_size)
        self.fm = FactorizationMachine(features) if net.fm else None
        self.tower = MLP_Block(features.sum_emb_out_dim(), list(net.hidden), output_dim=1)
        self.compile("adam", "binary_crossentropy", net.rate)
        self.reset_parameters()
        self._max_gradient_norm = 10.0  # the default of its `fit`

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Columns of a batch → probabilities (N, 1)."""
        columns = self.get_inputs(inputs)
        vectors = self.embedding(columns)
        logit = self.tower(vectors.flatten(start_dim=1))
        if self.fm is not None:
            logit += self.fm(columns, vectors)
        return {"y_pred": self.output_activation(logit)}


class Fuxi:
    """FuxiCTR on the same rows, with the same ids, from the files that its loader reads."""

    def __init__(self, net: Net, data: Prepared, folder: str) -> None:
        self.net, self.data, self.folder = net, data, folder
        self.features = FeatureMap("rows", folder)
        for field in data.schema.fields:
            spec = {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": field.size}
            self.features.features[field.name] = spec
        self.features.labels, self.features.default_emb_dim = ["label"], net.embedding_size
        self.features.num_fields = self.features.get_num_fields()
        self.features.set_column_index()
        for name in ("train", "test"):
            rows = data.rows(name)
            np.savez(f"{folder}/{name}.npz", **columns_of(data, rows), label=label_of(rows))
        files = {f"{name}_data": f"{folder}/{name}.npz" for name in ("train", "test")}
        self.loader, _, self.test = RankDataLoader(
            self.features, batch_size=net.batch, num_workers=0, **files
        )

    def system(self, name: str, *, loader: bool = True) -> System:
        """Its loop: `train_step` on every batch, the loss read. Without `loader` the clock runs
        over batches that its loader made before: no loader could be faster."""

        def train(seed: int, epochs: float) -> Trained:
            torch.manual_seed(seed)
            model = FuxiNet(self.net, self.features, self.folder).train()
            batches = self._batches(round(epochs * len(self.loader)))
            if not loader:
                batches = iter(list(batches))
            rows = len(next(batches)["label"])  # the first one draws the order of the whole epoch
            start = perf_counter()
            for batch in batches:
                model.train_step(batch).item()
                rows += len(batch["label"])
            speed = (rows - self.net.batch) / (perf_counter() - start)
            return Trained(speed, lambda: predictions(model.predict(self.test), self.data))

        return System(name, version("fuxictr"), "fuxictr", train)

    def _batches(self, steps: int) -> Iterator[Any]:
        epochs = -(-steps // len(self.loader))
        return islice(chain.from_iterable(self.loader for _ in range(epochs)), steps)


# DeepCTR-Torch: its model and its `fit`, its L2 on embeddings off.


def deepctr(net: Net, data: Prepared) -> System:
    """`fit` of its DeepFM on arrays in memory, of as many rows as are asked for."""
    fields = [SparseFeat(f.name, f.size, net.embedding_size) for f in data.schema.fields]
    columns, label = columns_of(data, data.train), label_of(data.train)
    quiet = {"verbose": 0, "batch_size": net.batch}

    def train(seed: int, epochs: float) -> Trained:
        model = DeepCtrDeepFM(
            fields if net.fm else [],
            fields,
            use_fm=net.fm,
            dnn_hidden_units=net.hidden,
            l2_reg_linear=0,
            l2_reg_embedding=0,
            seed=seed,
        )
        model.compile(torch.optim.Adam(model.parameters(), lr=net.rate), "binary_crossentropy")
        rows = np.random.default_rng(seed).permutation(len(label))
        rows = rows[: round(min(epochs, 1) * len(label))]
        some = {name: column[rows] for name, column in columns.items()}
        times = math.ceil(epochs)
        with silence():
            start = perf_counter()
            model.fit(some, label[rows], epochs=times, **quiet)
            took = perf_counter() - start
        return Trained(times * len(rows) / took, lambda: scores(model))

    def scores(model: DeepCtrDeepFM) -> pl.DataFrame:
        return predictions(model.predict(columns_of(data, data.test), net.batch).ravel(), data)

    return System("deepctr-torch", version("deepctr-torch"), "fuxictr", train)


# torch-rechub: its model, loader and `train_one_epoch`, its norms, dropouts and L2 left out.


class RechubTower(nn.Module):
    """Its embedding and its tower alone."""

    def __init__(self, fields: list[SparseFeature], hidden: list[int]) -> None:
        super().__init__()
        self.fields, self.embedding = fields, EmbeddingLayer(fields)
        self.mlp = MLP(sum(field.embed_dim for field in fields), dims=hidden)

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        """Columns of a batch → probabilities (N,)."""
        vectors = self.embedding(columns, self.fields, squeeze_dim=True)
        return torch.sigmoid(self.mlp(vectors).squeeze(1))


def rechub(net: Net, data: Prepared) -> System:
    """Its trainer over its loader, of as many rows as are asked for."""
    columns, label = columns_of(data, data.train), label_of(data.train)
    test, hidden = columns_of(data, data.test), list(net.hidden)

    def train(seed: int, epochs: float) -> Trained:
        torch.manual_seed(seed)
        fields = [SparseFeature(f.name, f.size, net.embedding_size) for f in data.schema.fields]
        deep = {"dims": hidden}
        model = RechubDeepFM(fields, fields, deep) if net.fm else RechubTower(fields, hidden)
        for name, part in list(model.mlp.mlp.named_children()):
            if isinstance(part, nn.BatchNorm1d | nn.Dropout):
                setattr(model.mlp.mlp, name, nn.Identity())
        trainer = CTRTrainer(model, optimizer_params={"lr": net.rate})
        rows = np.random.default_rng(seed).permutation(len(label))
        rows = rows[: round(min(epochs, 1) * len(label))]
        some = {name: column[rows] for name, column in columns.items()}
        loader = loader_of(some, label[rows])
        times = math.ceil(epochs)
        with silence():
            start = perf_counter()
            for _ in range(times):
                trainer.train_one_epoch(loader)
            took = perf_counter() - start
        return Trained(times * len(rows) / took, lambda: scores(trainer))

    def loader_of(some: dict[str, NDArray[np.int32]], label: NDArray[np.float32]) -> Any:
        none = {"x_val": some, "y_val": label, "x_test": some, "y_test": label}
        loaders = DataGenerator(some, label).generate_dataloader(**none, batch_size=net.batch)
        return loaders[0]

    def scores(trainer: CTRTrainer) -> pl.DataFrame:
        zeros = np.zeros(len(data.test), np.float32)
        none = {"x_val": test, "y_val": zeros, "x_test": test, "y_test": zeros}
        _, _, loader = DataGenerator(test, zeros).generate_dataloader(**none, batch_size=net.batch)
        with silence():
            probability = trainer.predict(trainer.model, loader)
        return predictions(np.array(probability), data)

    return System("torch-rechub", version("torch-rechub"), "fuxictr", train)
