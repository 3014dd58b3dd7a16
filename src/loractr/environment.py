"""What a result depends on besides configuration and data: versions, processor, threads."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("loractr", "torch", "numpy", "polars")


def environment() -> dict[str, str | int]:
    """Versions and machine, as written into metrics.json. Results are bit-identical where all of
    this is the same."""
    found: dict[str, str | int] = {name: version(name) for name in PACKAGES}
    return found | {
        "python": platform.python_version(),
        "processor": _processor(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def differences(before: dict[str, str | int], now: dict[str, str | int]) -> list[str]:
    """What is not the same, in words."""
    return [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads meanwhile; None leaves torch's choice."""
    held = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(held)


def cache_folder() -> Path:
    """Where prepared data and compiled kernels are kept: $LORACTR_CACHE, else ~/.cache/loractr."""
    place = os.environ.get("LORACTR_CACHE")
    return Path(place) if place else Path.home() / ".cache" / "loractr"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
