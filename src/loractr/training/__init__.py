"""The one training loop: model + prepared rows + a recipe of stages → trained model."""

from loractr.training.fit import History, fit

__all__ = ["History", "fit"]
