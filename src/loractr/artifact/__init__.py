"""Saved models: `save` writes one, `load` reads it back as a `Scorer`."""

from loractr.artifact.load import load
from loractr.artifact.save import save
from loractr.artifact.scorer import Scorer

__all__ = ["Scorer", "load", "save"]
