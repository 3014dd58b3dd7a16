"""What does a training step cost with an adapter per domain, against the plain tower's step?

    python benchmarks/bench_adapters.py [--rounds 15]

A step is forward, backward and fused Adam of a tower alone, on a batch of 2,048 rows of all
domains. joint: tower and adapters train (MLoRA). frozen: adapters only (MultiLoRA's second stage).
One thread, all variants in turn within one process; README.md says what each column means.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from csv_file import circumstances, write
from torch import Tensor, nn

from loractr import native
from loractr.adapters import LowRankLinear
from loractr.batch import Route
from loractr.layers.mlp import MLP

RESULTS = Path(__file__).parent / "results" / "adapters.csv"
NETS = {  # input, hidden layers, rank of each: the papers' towers
    "movielens": (144, (256, 128), (8, 8)),
    "amazon": (160, (1024, 512, 256, 64), (16, 16, 8, 8)),
    "ali-ccp": (368, (1024, 512, 512, 256, 256, 64, 64), (32, 32, 32, 16, 16, 8, 8)),
}
ROWS = 2048


class Step:
    """One tower with a head, and how to train it for a step."""

    def __init__(self, net: str, domains: int | None, *, frozen: bool = False) -> None:
        wide, hidden, ranks = NETS[net]
        generator = torch.Generator().manual_seed(0)
        self.tower = MLP(wide, hidden, generator=generator)
        self.head = nn.Linear(hidden[-1], 1)
        self.x = torch.randn(ROWS, wide, generator=generator, requires_grad=not frozen)
        self.label = (torch.rand(ROWS, generator=generator) < 0.3).float()
        self.route = None
        if domains is not None:
            ids = torch.randint(domains, (ROWS,), generator=generator).sort().values
            self.route = Route.to(ids, domains)
            for block, rank in zip(self.tower.children(), ranks, strict=True):
                block.linear = LowRankLinear(block.linear, experts=domains, rank=rank)
        if frozen:
            self.tower.requires_grad_(False)
            self.head.requires_grad_(False)
            for block in self.tower.children():
                block.linear.requires_grad_(True)
                block.linear.base.requires_grad_(False)
        weights = (*self.tower.parameters(), *self.head.parameters())
        self.adam = torch.optim.Adam([w for w in weights if w.requires_grad], lr=1e-3, fused=True)

    def __call__(self) -> None:
        """Forward, backward, Adam."""
        self.adam.zero_grad()
        self.x.grad = None
        logit: Tensor = self.head(self.tower(self.x, self.route)).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logit, self.label).backward()
        self.adam.step()


def seconds(step: Callable[[], None], times: int) -> float:
    """Mean of a few steps."""
    started = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - started) / times


def measure(net: str, domains: int, rounds: int) -> list[dict[str, object]]:
    """All variants of one net and number of domains, in turn."""
    plain = Step(net, None)
    variants = {
        (kind, stage): Step(net, domains, frozen=stage == "frozen")
        for kind in ("native", "torch")
        for stage in ("joint", "frozen")
        if kind == "torch" or native.library() is not None
    }
    times = max(1, int(0.1 / seconds(plain, 3)))
    took: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in variants}
    for _ in range(rounds + 1):
        for (kind, stage), step in variants.items():
            with native.use(kind):
                took[kind, stage].append((seconds(plain, times), seconds(step, times)))
    lines = []
    for (kind, stage), pairs in took.items():
        ratios = sorted(adapted / alone for alone, adapted in pairs[1:])
        lines.append(
            {
                "net": net,
                "domains": domains,
                "stage": stage,
                "kernels": kind,
                "plain_ms": round(1e3 * statistics.median(alone for alone, _ in pairs[1:]), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_q1": round(ratios[rounds // 4], 3),
                "ratio_q3": round(ratios[3 * rounds // 4], 3),
                **circumstances(rounds),
            }
        )
        print(*(f"{name}={lines[-1][name]}" for name in list(lines[-1])[:8]), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--domains", nargs="+", type=int, default=[3, 21])
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        line
        for net in given.nets
        for domains in given.domains
        for line in measure(net, domains, given.rounds)
    ]
    write(RESULTS, lines)


if __name__ == "__main__":
    main()
