"""Retune, a control: a mix model whose backbone is simply trained on, on all rows.

Whatever this one gains is not owed to domains or adapters: it is owed to training longer, with
other regularisation. No published comparison has it; ours does.
"""

from typing import Literal

from loractr.method import OneDivision, regularised
from loractr.stage import Stage


class Retune(OneDivision):
    """Two stages, as adapters have them; the second trains backbone and output once more."""

    name: Literal["retune"]
    recipe: Literal["paper", "tuned"] = "paper"
    """tuned: the second stage has dropout on the input and the hidden layers and a moving average
    of the weights, where `training` says nothing else about them."""

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """pretrain: everything. retune: all but the embeddings, which adapters leave alone too;
        the output layer, which they do not adapt, trains as well, to the control's advantage."""
        more = {} if self.recipe == "paper" else regularised(base)
        role = {"name": "retune", "trains": ("backbone.*", "head.*")}
        return (
            base.model_copy(update={"name": "pretrain"}),
            base.model_copy(update=role | more),
        )
