"""The shared part of every model, by name."""

from loractr.backbones.autoint import AutoInt
from loractr.backbones.config import ModelConfig
from loractr.backbones.dcn import DCN
from loractr.backbones.deepfm import DeepFM
from loractr.backbones.features import Backbone, Hidden
from loractr.backbones.fibinet import FiBiNET
from loractr.backbones.mlp import MLPBackbone
from loractr.backbones.nfm import NFM
from loractr.backbones.pnn import PNN
from loractr.backbones.wide_deep import WideDeep
from loractr.backbones.xdeepfm import XDeepFM

BACKBONES: dict[str, type[Backbone]] = {
    "mlp": MLPBackbone,
    "wide_deep": WideDeep,
    "nfm": NFM,
    "autoint": AutoInt,
    "pnn": PNN,
    "dcn": DCN,
    "fibinet": FiBiNET,
    "deepfm": DeepFM,
    "xdeepfm": XDeepFM,
}
"""Every backbone by the name that a configuration gives it."""

__all__ = ["BACKBONES", "Backbone", "Hidden", "ModelConfig"]
