"""AutoInt: self-attention of the fields beside a tower."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower, field_vectors
from loractr.batch import Route
from loractr.errors import ConfigError
from loractr.layers.attention import Attention
from loractr.layers.embedding import Embedded, Widths


class AutoInt(Backbone):
    """logit = head([attention(e_1 … e_M), tower(flat)]) + linear.

    Source: Song et al., AutoInt, CIKM 2019 (AutoInt+, the form with a tower). The linear term is
    DeepCTR's.
    Raises: ConfigError: there are numbers only, and they take no part in interactions.
    """

    uses_first_order = True

    def __init__(
        self, config: ModelConfig, widths: Widths, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, widths, generator)
        self.tower = deep_tower(config, widths.flat, generator)
        self.pairwise = field_vectors(config, widths, generator)
        if not self.pairwise.fields:
            raise ConfigError(
                ["backbone 'autoint' lets field vectors attend to each other, but has none"],
                fix="add a field, let numbers take part (model.numbers_in_interactions: true),"
                " or choose backbone 'mlp' or 'wide_deep'.",
            )
        self.attention = Attention(
            widths.size,
            config.attention_layers,
            size=config.attention_size,
            heads=config.attention_heads,
            generator=generator,
        )
        attended = self.pairwise.fields * self.attention.out_features
        self.out_features = attended + self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """Attention and tower side by side; the linear term as a finished part of the logit."""
        attended = self.attention(self.pairwise(features, route), route).flatten(1)
        vector = torch.cat([attended, self.tower(features.flat(), route)], 1)
        return Hidden(vector=vector, logit=features.first_order)
