"""The shared part of every model, by name."""

from loractr.backbones.config import ModelConfig
from loractr.backbones.dcn import DCN
from loractr.backbones.deepfm import DeepFM
from loractr.backbones.features import Backbone, Hidden
from loractr.backbones.mlp import MLPBackbone

BACKBONES: dict[str, type[Backbone]] = {"mlp": MLPBackbone, "deepfm": DeepFM, "dcn": DCN}
"""Every backbone by the name that a configuration gives it."""

__all__ = ["BACKBONES", "Backbone", "Hidden", "ModelConfig"]
