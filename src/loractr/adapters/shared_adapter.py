"""Shared adapter, a control: what SingleLoRA does, but one expert for all rows.

Whatever this one gains is not owed to domains: it is owed to training longer, with other
regularisation. No published comparison has it; ours does.
"""

from typing import Literal

from loractr.adapters.staged import OneBank
from loractr.method import ALL_ROWS, OneDivision
from loractr.schema import Schema


class SharedAdapter(OneBank, OneDivision):
    """The adapter, stages and regularisation of SingleLoRA, with a single expert."""

    name: Literal["shared_adapter"]

    def read(self, schema: Schema) -> tuple[str, ...]:
        """One domain of all rows."""
        return (ALL_ROWS,)
