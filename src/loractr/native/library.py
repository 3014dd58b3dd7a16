"""The compiled library: found, chosen, called."""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from loractr.errors import UsageError
from loractr.native.compiling import place

log = logging.getLogger(__name__)

Choice = Literal["auto", "native", "torch"]

VARIABLE = "LORACTR_KERNELS"
"""Environment variable that makes the choice where nobody calls `use`."""


class Library:
    """Calls compiled functions. A convention instead of a list of signatures: a tensor goes over as
    a pointer, None as a null pointer, an int as int64_t, a float as double, and the name gets the
    element type of the first tensor: `call("dropout", x, …)` is `dropout_float32(x, …)`.

    Pointers are not checked: who calls knows shapes and layouts, see `library_for`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        self.multiplies = self._take_products()
        """Whether there are products: their inner loops are those of the library beside torch."""

    def call(self, name: str, first: Tensor, *others: Tensor | float | None) -> None:
        """One call, with the interpreter's lock released meanwhile."""
        suffix = "float32" if first.dtype == torch.float32 else "float64"
        function = getattr(self._functions, f"{name}_{suffix}")
        function(_argument(first), *map(_argument, others))

    def _take_products(self) -> bool:
        """Matrix products come from what torch itself multiplies with, where it can be reached."""
        found = [*Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")]
        try:
            products = ctypes.CDLL(str(found[0]))
            single, double = products.sgemm_, products.dgemm_
        except (IndexError, OSError, AttributeError):
            log.info("torch brings no sgemm_ along: products of groups are made by torch")
            return False
        pointers = [ctypes.cast(function, ctypes.c_void_p) for function in (single, double)]
        self._functions.use_products(*pointers)
        return True


def _argument(value: Tensor | float | None) -> object:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value)


@cache
def _loaded(path: Path) -> Library | None:
    if not path.exists():
        log.info("no compiled kernels here (`loractr kernels build` makes them): torch's are used")
        return None
    return Library(path)


def _checked(choice: str) -> Choice:
    for one in get_args(Choice):
        if choice == one:
            found: Choice = one
            return found
    raise UsageError(f"kernels are 'auto', 'native' or 'torch', not {choice!r} (see {VARIABLE}).")


class _Chosen:
    """What this process computes with; looked up once, and again when the choice changes."""

    def __init__(self) -> None:
        self.choice: Choice | None = None
        self._library: Library | None = None
        self._known = False

    def choose(self, choice: Choice | None) -> None:
        self.choice, self._known = choice, False

    def library(self) -> Library | None:
        if not self._known:
            choice = self.choice or _checked(os.environ.get(VARIABLE, "auto"))
            self._library = None if choice == "torch" else _loaded(place())
            if choice == "native" and self._library is None:
                raise UsageError(
                    "kernels: native was asked for, but they are not built for these sources and"
                    f" this processor: there is no {place()}.",
                    fix="run `loractr kernels build`, or leave the choice at auto.",
                )
            self._known = True
        return self._library


_chosen = _Chosen()


@contextmanager
def use(choice: Choice) -> Iterator[None]:
    """Compute with these kernels meanwhile: `native`, `torch`, or, with `auto`, the choice that was
    made outside: by another `use`, by the environment variable LORACTR_KERNELS, else the compiled
    ones where they are built.

    Raises:
        UsageError: there is no such choice, or "native" without compiled kernels.
    """
    before = _chosen.choice
    if choice != "auto":
        _chosen.choose(_checked(choice))
    try:
        library()
        yield
    finally:
        _chosen.choose(before)


def library() -> Library | None:
    """The compiled library, if it is there and wanted.

    Raises:
        UsageError: "native" was asked for without compiled kernels.
    """
    return _chosen.library()


def library_for(*tensors: Tensor) -> Library | None:
    """The compiled library, if it can compute with these tensors: contiguous, in the processor's
    memory, all float32 or all float64. None while torch traces a graph, too."""
    if torch.compiler.is_compiling():
        return None
    kind = tensors[0].dtype
    if kind not in (torch.float32, torch.float64):
        return None
    for one in tensors:
        if one.dtype != kind or one.device.type != "cpu" or not one.is_contiguous():
            return None
    return library()
