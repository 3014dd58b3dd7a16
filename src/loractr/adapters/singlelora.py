"""SingleLoRA: a pretrained backbone, then one low-rank expert per domain of one division.

Source: Song et al., MultiLoRA, CIKM 2024, the first two stages.
"""

from typing import Literal

from loractr.adapters.staged import OneBank
from loractr.method import OneDivision


class SingleLoRA(OneBank, OneDivision):
    """One expert per domain, trained alone on its domain's rows beside a frozen backbone."""

    name: Literal["singlelora"]
