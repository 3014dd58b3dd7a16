"""When to stop, and which weights were best: one `Stopper` per optimisation."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass
class Stopper:
    """Keeps the best value of a metric and where it was; a strictly larger value is better.

    Args:
        patience: Epochs without improvement after which it is time to stop.
    """

    patience: float
    best: float | None = None
    best_epoch: float = 0.0
    stopped: bool = False

    def see(self, value: float | None, epoch: float) -> bool:
        """Take note of one validation; returns whether it is the best so far. An undefined value
        (None) is never the best, but lets patience run out."""
        better = value is not None and (self.best is None or value > self.best)
        if better:
            self.best, self.best_epoch = value, epoch
        elif epoch - self.best_epoch >= self.patience - 1e-9:
            self.stopped = True
        return better

    def dump(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def load(cls, values: dict[str, Any]) -> Self:
        """What `dump` wrote."""
        return cls(**values)
