"""The `model` section of a configuration."""

from typing import Annotated, Literal, Self

from pydantic import Field as Bound
from pydantic import NonNegativeFloat, PositiveInt, model_validator

from loractr.layers.cross import CrossKind
from loractr.layers.mlp import DropoutPosition
from loractr.layers.product import BilinearKind, ProductKind
from loractr.schema import Record
from loractr.stage import Probability

BackboneName = Literal[
    "mlp", "wide_deep", "nfm", "autoint", "pnn", "dcn", "fibinet", "deepfm", "xdeepfm"
]


class ModelConfig(Record):
    """Which backbone, and its sizes."""

    backbone: BackboneName = "deepfm"
    """Which backbone; a key of `loractr.backbones.BACKBONES`."""
    embedding_size: PositiveInt = 16
    """Width of the embeddings (K) of fields that ask for none of their own."""
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (256, 128, 64)
    """Widths of the deep tower's layers, first to last."""
    parameters: PositiveInt | None = None
    """Scale hidden_sizes by one factor until the network has this number of weights, embeddings
    aside, within 5 %; see `loractr.search.match_parameters`."""
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
    """Numbers take part in pairwise interactions, as value x a learned vector. Nothing to mlp,
    wide_deep and dcn, which have no such pairs."""
    cross_layers: PositiveInt = 2
    """dcn: number of crosses."""
    cross: CrossKind = "vector"
    """dcn: vector (DCN) or matrix (DCN-V2)."""
    attention_layers: PositiveInt = 3
    """autoint: number of interacting layers."""
    attention_size: PositiveInt = 8
    """autoint: width of one head."""
    attention_heads: PositiveInt = 4
    """autoint: heads of each layer."""
    products: ProductKind = "inner"
    """pnn: inner, outer, or both, of all pairs of fields."""
    bilinear: BilinearKind = "interaction"
    """fibinet: one matrix for all pairs, for each field, or for each pair (interaction)."""
    senet_reduction: PositiveInt = 3
    """fibinet: fields per unit of the squeeze layer."""
    cin_sizes: Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] = (128, 128)
    """xdeepfm: feature maps of each layer of the compressed interaction network."""
    cin_split_half: bool = True
    """xdeepfm: one half of a layer's maps goes on to the next layer, the other to the output."""

    @model_validator(mode="after")
    def _options_fit_the_backbone(self) -> Self:
        idle = [
            name
            for name, readers in READ_BY.items()
            if self.backbone not in readers
            and getattr(self, name) != type(self).model_fields[name].default
        ]
        if idle:
            says = "means" if len(idle) == 1 else "mean"
            raise ValueError(f"{' and '.join(idle)} {says} nothing for backbone {self.backbone!r}")
        odd = [size for size in self.cin_sizes[:-1] if size % 2]
        if odd and self.cin_split_half:
            raise ValueError(f"cin_split_half needs even cin_sizes but for the last, not {odd[0]}")
        return self


READ_BY: dict[str, tuple[BackboneName, ...]] = {
    "numbers_in_interactions": ("nfm", "autoint", "pnn", "fibinet", "deepfm", "xdeepfm"),
    "cross_layers": ("dcn",),
    "cross": ("dcn",),
    "attention_layers": ("autoint",),
    "attention_size": ("autoint",),
    "attention_heads": ("autoint",),
    "products": ("pnn",),
    "bilinear": ("fibinet",),
    "senet_reduction": ("fibinet",),
    "cin_sizes": ("xdeepfm",),
    "cin_split_half": ("xdeepfm",),
}
"""Setting → the backbones that read it, where not all do."""
