"""What does a training step cost with experts that mixers put together, against a plain step?

    python benchmarks/bench_mixers.py [--rounds 15]

Towers and steps are those of bench_adapters.py. fusion: MultiLoRA's last stage, experts of three
and of two domains, attention over both; only the mixers train. gate: MoE-MLoRA's third stage, three
experts weighted by a gate that looks at the domain; only the gate trains. …, joint: tower, experts
and mixers or gate train. One thread; README.md says what each column means.
"""

import argparse
from pathlib import Path

import torch
from bench_adapters import NETS, ROWS, Plain, compared
from csv_file import write

from loractr import native
from loractr.adapters.fusion import FusedLinear, Fusion
from loractr.adapters.gate import Gate, GatedLinear
from loractr.adapters.low_rank import Bank
from loractr.batch import Groups, Route
from loractr.layers.linear import Linear
from loractr.stage import Stage
from loractr.training.freeze import freeze_all_but
from loractr.training.optimizer import WholeAdam

RESULTS = Path(__file__).parent / "results" / "mixers.csv"
DOMAINS = (3, 2)


class Mixed(Plain):
    """A tower with experts and mixers beside each layer."""

    trains = ("*",)

    def __init__(self, net: str) -> None:
        self.net = net
        super().__init__(net)
        first, second = (torch.randint(n, (ROWS,), generator=self.random) for n in DOMAINS)
        order = (first * DOMAINS[1] + second).argsort()
        first, second = first[order], second[order]
        cell = first * DOMAINS[1] + second
        self.routes = [self.route(first, second, Groups.of(cell, 6, grouped=True))]

    def optimizer(self) -> WholeAdam:
        """Experts and mixers beside the layers, and Adam of what trains."""
        for block, rank in zip(self.model["tower"].children(), NETS[self.net][2], strict=True):
            block.linear = self.wrap(block.linear, rank)
        return WholeAdam(Stage(name="mixed"), freeze_all_but(self.model, self.trains), [])

    def wrap(self, base: Linear, rank: int) -> torch.nn.Module:
        """A layer with its experts and their mixer."""
        banks = [Bank(base, experts=n, rank=rank, row_scale=True) for n in DOMAINS]
        return FusedLinear(base, banks, Fusion(base.out_features, rank))

    def route(self, first: torch.Tensor, second: torch.Tensor, cell: Groups) -> Route:
        """Both divisions' domains."""
        divisions = (Groups.of(first, DOMAINS[0], grouped=True), Groups.of(second, DOMAINS[1]))
        return Route(divisions=divisions, cell=cell)


class MixersAlone(Mixed):
    """The same as in MultiLoRA's last stage: the mixers train alone."""

    trains = ("*.mixer.*",)

    def optimizer(self) -> WholeAdam:
        """What lies before the tower is frozen too."""
        self.x.requires_grad_(False)
        return super().optimizer()


class GatedJointly(Mixed):
    """Three experts beside each layer, weighted by a gate for each."""

    def wrap(self, base: Linear, rank: int) -> torch.nn.Module:
        """A layer with its experts and their gate."""
        return GatedLinear(base, Gate(DOMAINS[0]), experts=DOMAINS[0], rank=rank)

    def route(self, first: torch.Tensor, second: torch.Tensor, cell: Groups) -> Route:
        """The first division's domains."""
        return Route(divisions=(Groups.of(first, DOMAINS[0], grouped=True),), cell=cell)


class Gated(GatedJointly):
    """The same, of which the gate trains alone."""

    trains = ("*.gate.table",)

    def optimizer(self) -> WholeAdam:
        """What lies before the tower is frozen too."""
        self.x.requires_grad_(False)
        return super().optimizer()


MIXERS = {"fusion": MixersAlone, "fusion, joint": Mixed, "gate": Gated, "gate, joint": GatedJointly}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for net in given.nets:
        for name, mixed in MIXERS.items():
            for kernels in ("native", "torch"):
                if kernels == "native" and native.library() is None:
                    continue
                with native.use(kernels):
                    told = {"net": net, "mixer": name, "kernels": kernels}
                    lines.append(compared(told, Plain(net), mixed(net), given.rounds))
    write(given.out, lines)


if __name__ == "__main__":
    main()
