"""A training recipe is a tuple of stages, run in order by one loop (`training.fit`). Plain data."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic import Field as Bound

from loractr.schema import Record

Select = Literal["mean_auc", "wauc", "pooled_auc", "log_loss"]
Loss = Literal["row_mean", "domain_mean"]
EmbeddingOptimizer = Literal["adam", "lazy_adam", "rowwise_adagrad"]
Precision = Literal["float32", "bfloat16"]
Probability = Annotated[float, Bound(ge=0.0, lt=1.0)]


class Sampling(Record):
    """Domain-balanced sampling: an epoch draws as many rows as there are, each domain in proportion
    to rows ** (1 / temperature); 1 is the natural share, larger is more even."""

    temperature: Annotated[float, Bound(ge=1.0)] = 1.0
    """1: the natural share of each domain; the larger, the more even."""


class Settings(Record):
    """What the loop needs to know about one optimisation. Base of `Stage` and of the config's
    `training` section; never used by itself."""

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: PositiveFloat = 100
    """Most passes over the rows; may be fractional."""
    batch_size: PositiveInt = 1024
    """Rows of a step (in an independent stage: rows of each domain of the step)."""
    loss: Loss = "row_mean"
    """row_mean: mean over the rows of a batch. domain_mean: mean over its domains of their own
    means (MultiLoRA, eq. 2)."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's step size."""
    embedding_learning_rate: PositiveFloat | None = None
    """Step size of embedding tables; `learning_rate` when absent."""
    weight_decay: NonNegativeFloat = 0.0
    """Coupled L2, added to the gradient as in the papers; with `decoupled` it is AdamW's."""
    embedding_weight_decay: NonNegativeFloat | None = None
    """The same for embedding tables; `weight_decay` when absent."""
    decoupled: bool = False
    """Decoupled weight decay (AdamW)."""
    patience: NonNegativeFloat = 3.0
    """Stop when `select` has not improved for this many epochs; may be fractional."""
    validate_every: PositiveFloat = 1.0
    """Epochs between two validations; may be fractional."""
    select: Select = "mean_auc"
    """Validation metric that chooses the kept weights."""
    keep_start: bool = True
    """Keep the model as it was before the stage when the stage's best is worse on `select`."""
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm over all trained weights (per expert in an independent stage)."""
    ema: Annotated[float, Bound(gt=0.0, lt=1.0)] | None = None
    """Decay of the moving average of the weights, warmed up as min(ema, (1 + t) / (10 + t))."""
    warmup: NonNegativeFloat = 0.0
    """Epochs of linear warm-up of the learning rate."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up, down to 0 at the end of `epochs`."""
    dropout: Probability | None = None
    """Dropout of hidden layers in this stage; the model's when absent."""
    embedding_dropout: Probability | None = None
    """Dropout of the backbone's input in this stage; the model's when absent."""
    sampling: Sampling | None = None
    """Domain-balanced sampling; every row once an epoch when absent."""
    domains_per_step: PositiveInt = 16
    """Independent stages: most domains that take part in one step."""
    domain_sequential: bool = False
    """The authors' order: one domain after the other within an epoch, batches of one domain."""
    domains_per_batch: PositiveInt | None = None
    """Rows come in runs of one domain, about this many domains a batch: with hundreds of domains a
    step then costs what it costs with few (with compiled kernels; without, Adam still moves all
    experts). Batches mix all domains when absent."""
    precision: Precision = "float32"
    """bfloat16: linear layers multiply numbers of 8 bits of mantissa, and round each product to as
    many, for speed where the processor has such products. Weights, optimiser, norms, adapters and
    scores stay float32."""
    embedding_optimizer: EmbeddingOptimizer = "adam"
    """Optimiser of embedding tables; three different ones, never exchanged for speed.
    adam: as for all other weights. lazy_adam: a row's moments move and decay only in batches that
    read the row. rowwise_adagrad: one accumulator a row, the mean of its squared gradients."""

    @property
    def table_weight_decay(self) -> float:
        """Weight decay of embedding tables."""
        own = self.embedding_weight_decay
        return self.weight_decay if own is None else own

    @property
    def table_learning_rate(self) -> float:
        """Step size of embedding tables."""
        own = self.embedding_learning_rate
        return self.learning_rate if own is None else own

    def conflicts(self) -> list[str]:
        """What is asked for but cannot be had together, in words."""
        found = []
        if self.embedding_optimizer != "adam" and self.table_weight_decay:
            found.append(
                f"embedding_optimizer: {self.embedding_optimizer} moves only the rows of a batch,"
                f" so the embeddings can have no weight decay ({self.table_weight_decay:g}); use"
                " embedding_weight_decay: 0, or embedding_optimizer: adam"
            )
        orders = {
            "sampling": self.sampling is not None,
            "domain_sequential": self.domain_sequential,
            "domains_per_batch": self.domains_per_batch is not None,
        }
        asked = [name for name, wanted in orders.items() if wanted]
        if len(asked) > 1:
            found.append(f"{' and '.join(asked)} are orders of the rows: choose one")
        return found


class Stage(Settings):
    """One step of a recipe: what trains, on which rows, with which route, and how."""

    name: str
    """Name of the stage, unique in its recipe."""
    trains: tuple[str, ...] = ("*",)
    """Globs over parameter names; all else, buffers included, stays bit-identical."""
    rows: tuple[str, str] | None = None
    """(division, domain): only that domain's rows; all rows when absent."""
    route: Literal["none", "hard", "mixed"] = "hard"
    """none: adapters are inert, the backbone alone. hard: each row goes to its domain's expert of
    `division`. mixed: mixers combine the experts of all divisions."""
    division: str | None = None
    """Division whose experts act on a hard route; the first that the model reads when absent."""
    independent: bool = False
    """Each expert trains by itself (own rows, moments, stopping), several stacked in a step."""
    experts_per_domain: PositiveInt = 1
    """Independent stages: experts that each domain trains, with row orders of their own; expert
    e belongs to domain e mod D."""
    inherits: Literal["none", "domains", "cells"] = "none"
    """Norms that begin the stage as copies: those of the domains of `division` from the shared
    norm, or those of cells from the first division's domains."""


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether `name` is chosen: the last glob that matches decides, `!glob` takes away."""
    chosen = False
    for glob in globs:
        if fnmatchcase(name, glob.removeprefix("!")):
            chosen = not glob.startswith("!")
    return chosen
