"""Single: one whole model per domain, each on its own domain's rows, nothing shared."""

from typing import Literal

from loractr.method import OneDivision
from loractr.stage import Stage


class Single(OneDivision):
    """D independent models, embeddings included."""

    name: Literal["single"]

    def stages(self, base: Stage, *, norm: bool) -> tuple[Stage, ...]:
        """Nothing is shared, so there is nothing to train in common."""
        return ()

    def domain_stages(self, base: Stage, division: str, domain: str) -> tuple[Stage, ...]:
        """An ordinary fit on the domain's rows."""
        return (base.model_copy(update={"name": "single", "rows": (division, domain)}),)

    @property
    def domain_models(self) -> Literal["none", "fresh", "from_base"]:
        """Every domain has its own model, from scratch."""
        return "fresh"
