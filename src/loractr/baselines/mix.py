"""Mix: one model for all domains, trained on all rows. The baseline that everything must beat."""

from typing import Literal

from loractr.method import TrainedOnAllRows


class Mix(TrainedOnAllRows):
    """One shared model on the rows of all domains.

    `recipe: tuned` memorises first, then trains all weights again from there with dropout on the
    input and a moving average: the strongest plain recipe we know on MovieLens-1M.
    """

    name: Literal["mix"]
