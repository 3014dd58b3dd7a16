"""xDeepFM: a compressed interaction network beside a tower."""

import torch

from loractr.backbones.config import ModelConfig
from loractr.backbones.features import Backbone, Hidden, deep_tower, field_vectors
from loractr.batch import Route
from loractr.errors import ConfigError
from loractr.layers.cin import CIN
from loractr.layers.embedding import Embedded, Widths


class XDeepFM(Backbone):
    """logit = head([cin(e_1 … e_M), tower(flat)]) + linear.

    Source: Lian et al., xDeepFM, KDD 2018. The MLoRA authors' code runs DeepFM under this name: it
    looks for "deepfm" in the name first.
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
                ["backbone 'xdeepfm' multiplies field vectors, but has none"],
                fix="add a field, let numbers take part (model.numbers_in_interactions: true),"
                " or choose backbone 'mlp' or 'wide_deep'.",
            )
        self.cin = CIN(
            self.pairwise.fields,
            config.cin_sizes,
            split_half=config.cin_split_half,
            generator=generator,
        )
        self.out_features = self.cin.out_features + self.tower.out_features

    def forward(self, features: Embedded, route: Route) -> Hidden:
        """Feature maps and tower side by side; the linear term as a finished part of the logit."""
        maps = self.cin(self.pairwise(features, route), route)
        vector = torch.cat([maps, self.tower(features.flat(), route)], 1)
        return Hidden(vector=vector, logit=features.first_order)
