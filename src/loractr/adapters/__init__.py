"""Low-rank experts beside shared layers, and the methods that train them."""

from loractr.adapters.attach import adapted, attach, detach, merge
from loractr.adapters.low_rank import LowRankLinear

__all__ = ["LowRankLinear", "adapted", "attach", "detach", "merge"]
