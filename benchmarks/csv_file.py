"""What the CSV files of several benchmarks have in common."""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from loractr.environment import environment


def circumstances(rounds: int) -> dict[str, Any]:
    """The last columns of a line: how, where and when."""
    return {
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": environment()["processor"],
        "date": datetime.now(UTC).date().isoformat(),
    }


def quartiles(name: str, values: ArrayLike, digits: int) -> dict[str, float]:
    """Median and quartiles as the columns `name`, `name`_q1 and `name`_q3."""
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75]).round(digits).tolist()
    return {name: median, f"{name}_q1": q1, f"{name}_q3": q3}


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """One line each, the columns of the first."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
