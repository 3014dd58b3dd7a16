"""What does a training step of a tower cost with bfloat16 products, against float32?

    python benchmarks/bench_precision.py [--rounds 15]

Towers and steps are those of bench_adapters.py, without adapters and with an adapter for each of
three domains. One thread, all in turn within one process; README.md says what each column means.
"""

import argparse
from pathlib import Path

import torch
from bench_adapters import NETS, Joint, Plain, compared
from csv_file import write

from loractr import native
from loractr.environment import has_bfloat16
from loractr.layers.linear import Linear

RESULTS = Path(__file__).parent / "results" / "precision.csv"


def rounding(step: Plain) -> Plain:
    """The same with bfloat16 products."""
    for module in step.model.modules():
        if isinstance(module, Linear):
            module.rounds = True
    return step


def measure(net: str, domains: int, rounds: int) -> dict[str, object]:
    """A step in bfloat16 and the same in float32."""

    def step() -> Plain:
        return Joint(net, domains) if domains else Plain(net)

    told: dict[str, object] = {
        "net": net,
        "domains": domains,
        "kernels": "native" if native.library() else "torch",
    }
    return compared(told, step(), rounding(step()), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not has_bfloat16(torch.device("cpu")):
        parser.error("this processor has no bfloat16 products: nothing to measure")
    write(given.out, [measure(net, domains, given.rounds) for net in NETS for domains in (0, 3)])


if __name__ == "__main__":
    main()
