"""The `model` section of a configuration."""

from typing import Annotated, Literal, Self

from pydantic import Field as Bound
from pydantic import NonNegativeFloat, PositiveInt, model_validator

from loractr.layers.cross import CrossKind
from loractr.layers.mlp import DropoutPosition
from loractr.schema import Record
from loractr.stage import Probability

BackboneName = Literal["mlp", "deepfm", "dcn"]


class ModelConfig(Record):
    """Which backbone, and its sizes."""

    backbone: BackboneName = "deepfm"
    """Which backbone; a key of `loractr.backbones.BACKBONES`."""
    embedding_size: PositiveInt = 16
    """Width of the embeddings (K) of fields that ask for none of their own."""
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (256, 128, 64)
    """Widths of the deep tower's layers, first to last."""
    dropout: Probability = 0.0
    """Dropout of the tower's hidden layers."""
    embedding_dropout: Probability = 0.0
    """Elementwise dropout of the backbone's input: embeddings and numbers."""
    batch_norm: bool = False
    """Batch normalisation in the tower, before each activation."""
    dropout_position: DropoutPosition = "after_activation"
    """shared_path: on x W + b, before an adapter's update is added and before the norm and the
    activation, as in the MLoRA authors' code."""
    embedding_std: NonNegativeFloat = 0.01
    """Standard deviation of the initial embeddings."""
    numbers_in_interactions: bool = True
    """Numbers take part in pairwise interactions, as value x a learned vector."""
    cross_layers: PositiveInt = 2
    """dcn: number of crosses."""
    cross: CrossKind = "vector"
    """dcn: vector (DCN) or matrix (DCN-V2)."""

    @model_validator(mode="after")
    def _options_fit_the_backbone(self) -> Self:
        if self.backbone != "dcn" and (self.cross_layers, self.cross) != (2, "vector"):
            raise ValueError(f"cross and cross_layers mean nothing for backbone {self.backbone!r}")
        return self
