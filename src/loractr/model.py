"""`CTRModel`: embedding, backbone, head; `build` makes one from configuration and schema."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from loractr.backbones import BACKBONES, Backbone, Hidden, ModelConfig
from loractr.batch import Batch
from loractr.config import RunConfig
from loractr.layers.dropout import Dropout
from loractr.layers.embedding import Embedding
from loractr.layers.linear import Linear
from loractr.schema import Schema


class CTRModel(nn.Module):
    """Embedding, backbone, head: a batch of rows in, a logit per row out.

        hidden = backbone(embedding(batch), route)
        logit  = head(hidden.vector) + hidden.logit

    It owns no optimiser, device, path or metric, and applies no sigmoid.

    Attributes:
        divisions: Places, in the schema, of the divisions that its adapters read; empty for a
            model without adapters. The route of a batch has one entry for each, in this order.
    """

    def __init__(
        self,
        embedding: Embedding,
        backbone: Backbone,
        *,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.backbone = backbone
        self.head = Linear(backbone.out_features, 1, generator=generator)
        self.divisions: tuple[int, ...] = ()
        self._dropout = dropout
        self._embedding_dropout = embedding_dropout

    def forward(self, batch: Batch) -> Tensor:
        """Logits (N,)."""
        hidden: Hidden = self.backbone(self.embedding(batch), batch.route)
        logit: Tensor = self.head(hidden.vector).squeeze(1)
        return logit if hidden.logit is None else logit + hidden.logit

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

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of parameters: total = embedding + backbone (head included) + adapters.

        A frozen pretrained table counts as embedding. A layer that wraps another one as its `base`
        is an adapter: what it holds besides the base counts as adapters.
        """
        embedding = _count([*self.embedding.parameters(), *self.embedding.frozen()])
        adapters = _count(_adapter_parameters(self.backbone))
        backbone = _count([*self.backbone.parameters(), *self.head.parameters()]) - adapters
        return {
            "total": embedding + backbone + adapters,
            "embedding": embedding,
            "backbone": backbone,
            "adapters": adapters,
        }


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
        UsageError: the schema is not fitted.
        ConfigError: pretrained vectors are missing, or do not fit their field.
        AdapterError: a target matches no layer, or a rank does not fit.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = build_plain(config.model, schema, generator, pretrained=pretrained)
    names = [division.name for division in schema.divisions]
    read = config.method.attach(model.backbone, schema, generator)
    model.divisions = tuple(names.index(name) for name in read)
    return model


def build_plain(
    config: ModelConfig,
    schema: Schema,
    generator: torch.Generator,
    *,
    pretrained: Mapping[str, Tensor] | None = None,
) -> CTRModel:
    """A fresh model without adapters: embedding, backbone, head, drawn in this order."""
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
    return CTRModel(
        embedding,
        kind(config, embedding.widths, generator),
        dropout=config.dropout,
        embedding_dropout=config.embedding_dropout,
        generator=generator,
    )


def _count(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _adapter_parameters(backbone: nn.Module) -> list[Tensor]:
    """Parameters of wrappers (modules that hold another as `base`), those of the base left out."""
    found: dict[int, Tensor] = {}
    for module in backbone.modules():
        base = getattr(module, "base", None)
        if isinstance(base, nn.Module):
            shared = {id(parameter) for parameter in base.parameters()}
            found |= {id(p): p for p in module.parameters() if id(p) not in shared}
    return list(found.values())
