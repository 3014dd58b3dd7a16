"""Fine-tune: a mix model, then all its weights trained on for each domain, one copy per domain."""

from typing import Literal

from loractr.method import OneDivision, regularised
from loractr.stage import Stage


class Finetune(OneDivision):
    """The best mix model, copied and fully trained on each domain's rows with its own stopping."""

    name: Literal["finetune"]
    recipe: Literal["paper", "tuned"] = "paper"
    """tuned: dropout on the input and the hidden layers and a moving average of the weights while
    domains are trained, where `training` says nothing else about them."""

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """The mix model that every domain starts from."""
        return (base.model_copy(update={"name": "pretrain"}),)

    def domain_stages(self, base: Stage, division: str, domain: str) -> tuple[Stage, ...]:
        """All weights, on the domain's rows."""
        more = {} if self.recipe == "paper" else regularised(base)
        role = {"name": "finetune", "rows": (division, domain)}
        return (base.model_copy(update=role | more),)

    @property
    def domain_models(self) -> Literal["none", "fresh", "from_base"]:
        """Every domain has its own copy of the mix model."""
        return "from_base"
