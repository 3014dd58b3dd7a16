"""Mix: one model for all domains, trained on all rows. The baseline that everything must beat."""

from typing import Literal

from loractr.method import OneDivision, train_and_retrain
from loractr.stage import Stage


class Mix(OneDivision):
    """One shared model on the rows of all domains.

    `recipe: tuned` memorises first, then trains all weights again from there with dropout on the
    input and a moving average: the strongest plain recipe we know on MovieLens-1M.
    """

    name: Literal["mix"]
    recipe: Literal["paper", "tuned"] = "paper"
    """paper: one stage. tuned: a second stage with a smaller step, dropout and weight average,
    where `training` says nothing else about them."""

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """train; with `tuned` also retrain, whose settings `training.stages` can change."""
        train, retrain = train_and_retrain(base)
        return (train,) if self.recipe == "paper" else (train, retrain)
