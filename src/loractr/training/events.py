"""What the loop tells its callbacks: plain values, at most a few times a second."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StageStarted:
    """A stage begins (or goes on, after a resume)."""

    stage: str
    rows: int
    trainable: int
    optimizer: str


@dataclass(frozen=True)
class Stepped:
    """Training is on its way; sent at most five times a second."""

    stage: str
    epoch: float
    epochs: float
    loss: float
    rows_per_second: float


@dataclass(frozen=True)
class Validated:
    """One validation: a line of history.jsonl."""

    stage: str
    epoch: float
    step: int
    rows: int
    """Rows trained on so far in this stage."""
    loss: float | None
    """Mean training loss since the validation before; None before the first step."""
    metric: str
    value: float | None
    """What `select` compares, larger is better (log loss with its sign turned)."""
    best: bool
    scores: dict[str, float | None]
    domain: str | None = None
    """Whose expert or model this is about, where it is one domain's."""

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class StageResult:
    """What a stage ended with."""

    stage: str
    metric: str
    value: float | None
    epoch: float
    """Epoch of the kept weights; 0 is the start."""
    kept_start: bool
    trainable: int
    optimizer: str
    rows_per_second: float
    domains: dict[str, dict[str, Any]]
    """Independent stages: per domain the kept epoch, value and metric."""

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


Event = StageStarted | Stepped | Validated | StageResult
Callback = Callable[[Event], None]
