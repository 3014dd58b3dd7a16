"""Mix: one model for all domains, trained on all rows. The baseline that everything must beat."""

from typing import Literal

from loractr.method import OneDivision
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

    def stages(self, base: Stage) -> tuple[Stage, ...]:
        """train; with `tuned` also retrain, whose settings `training.stages` can change."""
        train = base.model_copy(update={"name": "train"})
        if self.recipe == "paper":
            return (train,)
        retrain = {
            "name": "retrain",
            "learning_rate": base.learning_rate * 0.3,
            "embedding_learning_rate": base.table_learning_rate * 0.3,
            "dropout": 0.3 if base.dropout is None else base.dropout,
            "embedding_dropout": 0.4 if base.embedding_dropout is None else base.embedding_dropout,
            "ema": base.ema or 0.99,
        }
        return (train, base.model_copy(update=retrain))
