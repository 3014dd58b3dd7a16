"""What does a training step of adapters cost, against PEFT and against a loop over masks?

    pip install -e '.[bench]'; python benchmarks/bench_peft.py [--rounds 9]

All train one low-rank adapter per domain beside every layer of a frozen tower, on the same 2,048
rows of all domains. PEFT: its own wrapper, an adapter per domain, `set_adapter` and a pass for each
domain's rows. masks: torch in a few lines, in each layer a loop over the domains: index, two
products, add. ours: one pass. Towers are those of bench_adapters.py. One thread; README.md says
what each column means.
"""

import argparse
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from bench_adapters import NETS, ROWS, Frozen, seconds
from csv_file import circumstances, quartiles, write
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from loractr import native

RESULTS = Path(__file__).parent / "results" / "peft.csv"


def batch(net: str, domains: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by domain, their labels, their domains."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, NETS[net][0], generator=random)
    label = (torch.rand(ROWS, generator=random) < 0.3).float()
    return x, label, torch.randint(domains, (ROWS,), generator=random).sort().values


def tower(net: str) -> nn.Sequential:
    """Layers, ReLUs and a head of plain torch."""
    wide, hidden, _ = NETS[net]
    layers: list[nn.Module] = []
    for before, after in zip((wide, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 1))


def adam(model: nn.Module) -> torch.optim.Adam:
    """Of what trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=1e-3, fused=True)


def trained_by_peft(net: str, domains: int) -> Callable[[], None]:
    """A step with PEFT."""
    x, label, domain = batch(net, domains)
    ranks = {str(2 * place): rank for place, rank in enumerate(NETS[net][2])}

    def config() -> LoraConfig:
        return LoraConfig(
            target_modules=list(ranks), rank_pattern=ranks, lora_dropout=0.0, bias="none"
        )

    model = get_peft_model(tower(net), config(), adapter_name="0")
    for d in range(1, domains):
        model.add_adapter(str(d), config())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    optimizer = adam(model)
    rows = [(str(d), (domain == d).nonzero().squeeze(1)) for d in range(domains)]

    def step() -> None:
        optimizer.zero_grad()
        total = x.new_zeros(())
        for name, index in rows:
            model.set_adapter(name)
            logit = model(x[index]).squeeze(1)
            total = total + nn.functional.binary_cross_entropy_with_logits(
                logit, label[index], reduction="sum"
            )
        (total / ROWS).backward()
        optimizer.step()

    return step


class Masked(nn.Module):
    """A frozen layer with an adapter per domain, chosen by masks."""

    def __init__(self, base: nn.Linear, domains: int, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        wide, tall = base.in_features, base.out_features
        self.down = nn.ParameterList(torch.randn(rank, wide) / wide**0.5 for _ in range(domains))
        self.up = nn.ParameterList(torch.zeros(tall, rank) for _ in range(domains))

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """The base and each row's own adapter."""
        y: Tensor = self.base(x)
        for d, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            index = (domain == d).nonzero().squeeze(1)
            y = y.index_add(0, index, x[index] @ down.T @ up.T)
        return y


def trained_by_masks(net: str, domains: int) -> Callable[[], None]:
    """A step with loops over masks."""
    x, label, domain = batch(net, domains)
    *layers, head = (module for module in tower(net) if isinstance(module, nn.Linear))
    pairs = zip(layers, NETS[net][2], strict=True)
    model = nn.ModuleList(Masked(layer, domains, rank) for layer, rank in pairs)
    head.requires_grad_(False)
    optimizer = adam(model)

    def step() -> None:
        optimizer.zero_grad()
        hidden = x
        for layer in model:
            hidden = layer(hidden, domain).relu()
        logit = head(hidden).squeeze(1)
        nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
        optimizer.step()

    return step


def measure(net: str, domains: int, rounds: int) -> list[dict[str, object]]:
    """All in turn."""
    kinds = ["torch"] if native.library() is None else ["native", "torch"]
    steps: dict[str, tuple[str, Callable[[], None]]] = {
        f"PEFT {version('peft')}": ("torch", trained_by_peft(net, domains)),
        "masks": ("torch", trained_by_masks(net, domains)),
        **{f"loractr, {kind}": (kind, Frozen(net, domains)) for kind in kinds},
    }
    took: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, (kernels, step) in steps.items():
            with native.use(kernels):
                took[name].append(seconds(step, 3))
    ours = took[f"loractr, {kinds[0]}"][1:]
    lines: list[dict[str, object]] = []
    for name, found in took.items():
        ratios = [theirs / own for theirs, own in zip(found[1:], ours, strict=True)]
        line: dict[str, object] = {
            "net": net,
            "domains": domains,
            "system": name,
            "ms": round(1e3 * statistics.median(found[1:]), 2),
            **quartiles("ratio", ratios, 2),
        }
        print(*(f"{key}={value}" for key, value in line.items()), flush=True)
        lines.append(line | circumstances(rounds))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--domains", nargs="+", type=int, default=[3, 21])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    write(
        given.out,
        [
            line
            for net in given.nets
            for domains in given.domains
            for line in measure(net, domains, given.rounds)
        ],
    )


if __name__ == "__main__":
    main()
