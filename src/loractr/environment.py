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


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has products of bfloat16 numbers (AVX512-BF16, AMX, Arm's BF16; CUDA from
    compute capability 8 on); elsewhere they are slower than those of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = {flag for _, values in _lines_of_cpuinfo() for flag in values.split()}
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def cache_folder() -> Path:
    """Where prepared data and compiled kernels are kept: $LORACTR_CACHE, else the folder that is
    used without it."""
    place = os.environ.get("LORACTR_CACHE")
    return Path(place) if place else usual_cache_folder()


def usual_cache_folder() -> Path:
    """~/.cache/loractr."""
    return Path.home() / ".cache" / "loractr"


def _processor() -> str:
    names = [value for name, value in _lines_of_cpuinfo() if name == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def _lines_of_cpuinfo() -> list[tuple[str, str]]:
    """What Linux says of the processors; elsewhere nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    parts = [line.partition(":") for line in lines]
    return [(name.strip(), value.strip()) for name, _, value in parts]
