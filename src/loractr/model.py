"""`CTRModel`: embedding, backbone, head; `build` makes one from configuration and schema."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from loractr.backbones import BACKBONES, Backbone, Hidden, ModelConfig
from loractr.batch import EVERY, Batch, Routing
from loractr.config import RunConfig
from loractr.errors import UsageError
from loractr.layers.dropout import Dropout
from loractr.layers.embedding import Embedding
from loractr.layers.linear import Linear
from loractr.method import ALL_ROWS, Front, Method
from loractr.schema import Schema
from loractr.stage import Precision, Stage, matches


class CTRModel(nn.Module):
    """Embedding, backbone, head: a batch of rows in, a logit per row out.

        features, route = front(embedding(batch), route)        where a method has a front
        hidden = backbone(features, route)
        logit  = head(hidden.vector, route) + hidden.logit

    It owns no optimiser, device, path or metric, and applies no sigmoid.

    Attributes:
        routing: The divisions that its layers read, none for a plain model, and what acts on a row:
            the route of its batches is made from this. A stage that trains mixers lets them act.
    """

    def __init__(
        self,
        embedding: Embedding,
        backbone: Backbone,
        *,
        front: Front | None = None,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.front = front
        self.backbone = backbone
        self.head: nn.Module = Linear(backbone.out_features, 1, generator=generator)
        self.routing = Routing()
        self._dropout = dropout
        self._embedding_dropout = embedding_dropout

    def forward(self, batch: Batch) -> Tensor:
        """Logits (N,)."""
        features, route = self.embedding(batch), batch.route
        if self.front is not None:
            features, route = self.front(features, route)
        hidden: Hidden = self.backbone(features, route)
        logit: Tensor = self.head(hidden.vector, route).squeeze(1)
        return logit if hidden.logit is None else logit + hidden.logit

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def set_dropout(
        self, dropout: float | None = None, embedding_dropout: float | None = None
    ) -> None:
        """Set the rates of hidden layers and of the backbone's input; None: as configured."""
        rate = self._dropout if dropout is None else dropout
        for module in self.backbone.modules():
            if isinstance(module, Dropout):
                module.p = rate
        self.embedding.dropout.p = (
            self._embedding_dropout if embedding_dropout is None else embedding_dropout
        )

    def set_precision(self, precision: Precision) -> None:
        """Let shared linear layers multiply in bfloat16 in training, or not. Experts and mixers,
        all else, and every score stay as they are."""
        own = {id(parameter) for parameter in _adapter_parameters(self.backbone)}
        for module in (*self.backbone.modules(), *self.head.modules()):
            if isinstance(module, Linear) and id(module.weight) not in own:
                module.rounds = precision == "bfloat16"

    def parameter_counts(self, stages: Sequence[Stage] | None = None) -> dict[str, int]:
        """Numbers of parameters: total = embedding + backbone (head included) + adapters.

        A frozen pretrained table counts as embedding. A layer that wraps another one as its `base`
        is an adapter: what it holds besides the base counts as adapters. With `stages`, only what
        these train is counted.
        """
        counted = {
            name: parameter
            for name, parameter in self.named_parameters()
            if stages is None or any(matches(name, stage.trains) for stage in stages)
        }
        adapters = {id(parameter) for parameter in _adapter_parameters(self.backbone)}
        if self.front is not None and self.front.mixes:
            adapters |= {id(parameter) for parameter in self.front.parameters()}
        counts = {"total": 0, "embedding": 0, "backbone": 0, "adapters": 0}
        for name, parameter in counted.items():
            tables = name.startswith("embedding.")
            part = "adapters" if id(parameter) in adapters else "backbone"
            counts["embedding" if tables else part] += parameter.numel()
        if stages is None:
            counts["embedding"] += sum(table.numel() for table in self.embedding.frozen())
        return counts | {"total": sum(counts.values())}


def build(
    config: RunConfig, schema: Schema, *, pretrained: Mapping[str, Tensor] | None = None
) -> CTRModel:
    """A fresh model with its method's adapters attached; the same seed gives the same weights.

    The shared part draws its weights first, so it starts alike under every method.

    Args:
        config: Its `model`, `method` and `seed` are read.
        schema: Fitted schema.
        pretrained: Field name → ready vectors, for fields with `pretrained`.

    Raises:
        UsageError: the schema is not fitted, or `model.parameters` not yet matched.
        ConfigError: pretrained vectors are missing, or do not fit their field.
        AdapterError: a target matches no layer, or a rank does not fit.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = build_plain(config.model, schema, generator, config.method, pretrained=pretrained)
    names = [division.name for division in schema.divisions]
    made = config.method.attach(model, schema, generator)
    places = tuple(EVERY if name == ALL_ROWS else names.index(name) for name in made.divisions)
    model.routing = Routing(divisions=places, mixed=made.mixed)
    return model


def count_parameters(config: RunConfig, model: CTRModel, owners: int) -> dict[str, int]:
    """`parameter_counts` of all that a run makes.

    Args:
        config: The run.
        model: The shared model, or one of its shape.
        owners: How many domains have a model of their own. Of one that starts as a copy of the
            shared model, what its stages train is counted: it shares all else.
    """
    whole = model.parameter_counts()
    fresh = config.method.domain_models == "fresh"
    own = whole if fresh else model.parameter_counts(config.domain_stages("", ""))
    shared = 1 if config.stages() else 0
    return {part: shared * whole[part] + owners * own[part] for part in whole}


def build_plain(
    config: ModelConfig,
    schema: Schema,
    generator: torch.Generator,
    method: Method | None = None,
    *,
    pretrained: Mapping[str, Tensor] | None = None,
) -> CTRModel:
    """A fresh model without adapters: embedding, backbone, head, drawn in this order; between
    embedding and backbone the front of `method`, where it has one."""
    if config.parameters is not None:
        raise UsageError(
            f"model.parameters asks for {config.parameters:,} weights, and the hidden_sizes that"
            " have them are not found yet.",
            fix="pass the configuration through loractr.search.match_parameters, as a run does.",
        )
    kind = BACKBONES[config.backbone]
    embedding = Embedding(
        schema,
        size=config.embedding_size,
        std=config.embedding_std,
        dropout=config.embedding_dropout,
        first_order=kind.uses_first_order,
        pretrained=pretrained,
        generator=generator,
    )
    # of a generator of its own, so that all else begins as it does without one
    aside = torch.Generator().manual_seed(generator.initial_seed() + 1)
    front = None if method is None else method.front(embedding.widths, schema, aside)
    widths = embedding.widths if front is None else front.widths
    return CTRModel(
        embedding,
        kind(config, widths, generator),
        front=front,
        dropout=config.dropout,
        embedding_dropout=config.embedding_dropout,
        generator=generator,
    )


def _adapter_parameters(backbone: nn.Module) -> list[Tensor]:
    """Parameters of wrappers (modules that hold another as `base`), those of the base left out."""
    found: dict[int, Tensor] = {}
    for module in backbone.modules():
        base = getattr(module, "base", None)
        if isinstance(base, nn.Module):
            shared = {id(parameter) for parameter in base.parameters()}
            found |= {id(p): p for p in module.parameters() if id(p) not in shared}
    return list(found.values())
