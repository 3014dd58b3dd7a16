"""How much faster than torch's is a dropout of ours, forward and backward, on the CPU?

    python benchmarks/bench_dropout.py

Both in turn within one process, one thread, on activations of three sizes; README.md says what each
column of results/dropout.csv means.
"""

import itertools
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from csv_file import circumstances, quartiles, write
from torch import Tensor

from loractr import native
from loractr.layers.dropout import Dropout

RESULTS = Path(__file__).parent / "results" / "dropout.csv"
SHAPES = ((1024, 64), (2048, 256), (4096, 1024))
RATE, ROUNDS = 0.2, 41


def seconds(layer: torch.nn.Module, x: Tensor) -> float:
    """One forward and backward pass."""
    started = time.perf_counter()
    layer(x).sum().backward()
    return time.perf_counter() - started


class Torchs(torch.nn.Module):
    """torch.nn.functional.dropout, as torch.nn.Dropout calls it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, RATE)


def main() -> None:
    torch.set_num_threads(1)
    ours, theirs = Dropout(RATE), Torchs()
    lines = []
    kinds = ("native", "torch") if native.library() else ("torch",)
    for shape, kind in itertools.product(SHAPES, kinds):
        x = torch.randn(shape, requires_grad=True)
        with native.use(kind):
            seconds(ours, x), seconds(theirs, x)  # warm
            pairs = [(seconds(theirs, x), seconds(ours, x)) for _ in range(ROUNDS)]
        ratios = [slow / fast for slow, fast in pairs]
        lines.append(
            {
                "rows": shape[0],
                "width": shape[1],
                "kernels": kind,
                "torch_ms": round(1e3 * statistics.median(slow for slow, _ in pairs), 3),
                "loractr_ms": round(1e3 * statistics.median(fast for _, fast in pairs), 3),
                **quartiles("ratio", ratios, 2),
                **circumstances(ROUNDS),
            }
        )
        print(lines[-1])
    write(RESULTS, lines)


if __name__ == "__main__":
    main()
