"""What does a training step cost with an adapter per domain, against the plain tower's step?

    python benchmarks/bench_adapters.py [--rounds 15]

A step is forward, backward and Adam of a tower alone, on a batch of 2,048 rows of all domains, or,
of more than 64, of 16 of them, in every step others. joint: tower and adapters train (MLoRA).
frozen: adapters only (MultiLoRA's second stage).
One thread, all variants in turn within one process; README.md says what each column means.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from csv_file import circumstances, quartiles, write
from torch import Tensor, nn

from loractr import native
from loractr.adapters import LowRankLinear
from loractr.batch import Route
from loractr.layers.lookup import set_row_gradients
from loractr.layers.mlp import MLP
from loractr.stage import Stage
from loractr.training.expert_adam import ExpertAdam
from loractr.training.freeze import freeze_all_but
from loractr.training.optimizer import WholeAdam, stacks_by_rows, stacks_of

RESULTS = Path(__file__).parent / "results" / "adapters.csv"
NETS = {  # input, hidden layers, rank of each: the papers' towers
    "movielens": (144, (256, 128), (8, 8)),
    "amazon": (160, (1024, 512, 256, 64), (16, 16, 8, 8)),
    "ali-ccp": (368, (1024, 512, 512, 256, 256, 64, 64), (32, 32, 32, 16, 16, 8, 8)),
}
ROWS = 2048
MIXED, TOGETHER, BATCHES = 64, 16, 50
"""Up to so many domains, all are in a batch; of more, so many; so many batches, again and again."""


class Plain:
    """A tower with a head, and how to train it for a step."""

    def __init__(self, net: str) -> None:
        wide, hidden, _ = NETS[net]
        self.random = torch.Generator().manual_seed(0)
        tower = MLP(wide, hidden, generator=self.random)
        self.model = nn.ModuleDict({"tower": tower, "head": nn.Linear(hidden[-1], 1)})
        self.x = torch.randn(ROWS, wide, generator=self.random, requires_grad=True)
        self.label = (torch.rand(ROWS, generator=self.random) < 0.3).float()
        self.routes: list[Route | None] = [None]
        self.steps = 0
        self.adam: WholeAdam | ExpertAdam = self.optimizer()

    def optimizer(self) -> WholeAdam | ExpertAdam:
        """Adam of all that trains."""
        return WholeAdam(Stage(name="plain"), dict(self.model.named_parameters()), [])

    def __call__(self) -> None:
        """Forward, backward, Adam."""
        route = self.routes[self.steps % len(self.routes)]
        self.steps += 1
        self.adam.zero_grad()
        self.x.grad = None
        logit: Tensor = self.model["head"](self.model["tower"](self.x, route)).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logit, self.label).backward()
        self.update(route)

    def update(self, route: Route | None) -> None:
        """Adam."""
        assert isinstance(self.adam, WholeAdam)
        self.adam.step(0.0)


class Joint(Plain):
    """The same with an expert per domain beside each layer; all of it trains."""

    def __init__(self, net: str, domains: int) -> None:
        self.net, self.domains = net, domains
        super().__init__(net)
        few = domains if domains <= MIXED else TOGETHER
        ids = [torch.randperm(domains, generator=self.random)[:few] for _ in range(BATCHES)]
        rows = [torch.randint(few, (ROWS,), generator=self.random) for _ in range(BATCHES)]
        self.routes = [
            Route.to(some[row].sort().values, domains) for some, row in zip(ids, rows, strict=True)
        ]

    def optimizer(self) -> WholeAdam | ExpertAdam:
        """Experts beside the layers, and Adam of all."""
        self.adapt()
        stage = Stage(name="joint", domains_per_batch=TOGETHER if self.domains > MIXED else None)
        trained = freeze_all_but(self.model, ("*",))
        adam = WholeAdam(stage, trained, stacks_by_rows(stage, self.model, trained))
        set_row_gradients(self.model, adam.row_gradients)
        return adam

    def adapt(self) -> None:
        """Put experts beside the layers."""
        for block, rank in zip(self.model["tower"].children(), NETS[self.net][2], strict=True):
            block.linear = LowRankLinear(block.linear, experts=self.domains, rank=rank)


class Frozen(Joint):
    """The same, but only experts train; those of many domains each with an Adam of its own, as in
    an independent stage."""

    def optimizer(self) -> WholeAdam | ExpertAdam:
        """Experts beside the layers, and Adam of these."""
        self.adapt()
        self.x.requires_grad_(False)
        trained = freeze_all_but(self.model, ("*.down", "*.up", "*.offset"))
        stage = Stage(name="frozen")
        if self.domains <= MIXED:
            return WholeAdam(stage, trained, [])
        by_rows = stacks_of(self.model, trained, TOGETHER)
        adam = ExpertAdam(stage, trained, self.domains, by_rows)
        set_row_gradients(self.model, adam.row_gradients)
        return adam

    def update(self, route: Route | None) -> None:
        """Adam."""
        if isinstance(self.adam, WholeAdam):
            self.adam.step(0.0)
            return
        assert route is not None
        experts = route.acting()[1].present[0]
        self.adam.step(experts, torch.zeros(len(experts), dtype=torch.float64))


STAGES = {"joint": Joint, "frozen": Frozen}


def seconds(step: Callable[[], None], times: int) -> float:
    """Mean of a few steps."""
    started = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - started) / times


def compared(told: dict[str, object], plain: Plain, other: Plain, rounds: int) -> dict[str, object]:
    """A line of results: what two steps cost, made in turn."""
    times = max(1, int(0.1 / seconds(plain, 3)))
    few = max(1, int(0.1 / seconds(other, 2)))
    pairs = [(seconds(plain, times), seconds(other, few)) for _ in range(rounds + 1)][1:]
    ratios = [ours / alone for alone, ours in pairs]
    line = told | {
        "plain_ms": round(1e3 * statistics.median(alone for alone, _ in pairs), 2),
        **quartiles("ratio", ratios, 3),
    }
    print(*(f"{name}={value}" for name, value in line.items()), flush=True)
    return line | circumstances(rounds)


def measure(net: str, domains: int, stage: str, kernels: str, rounds: int) -> dict[str, object]:
    """A plain and an adapted step."""
    told: dict[str, object] = {
        "net": net,
        "domains": domains,
        "in_batch": domains if domains <= MIXED else TOGETHER,
        "stage": stage,
        "kernels": kernels,
    }
    with native.use(kernels):
        return compared(told, Plain(net), STAGES[stage](net, domains), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--domains", nargs="+", type=int, default=[3, 21, 300, 10_000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ("native", "torch") if native.library() is not None else ("torch",)
    lines = [
        measure(net, domains, stage, kernels, given.rounds)
        for net in given.nets
        for domains in given.domains
        if domains <= 1000 or net == "movielens"  # the others' experts and moments: 6 and 18 GB
        for stage in STAGES
        for kernels in kinds
    ]
    write(given.out, lines)


if __name__ == "__main__":
    main()
