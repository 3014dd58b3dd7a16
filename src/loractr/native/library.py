"""The compiled library: found, chosen, called."""

import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from loractr.errors import UsageError
from loractr.native.compiling import place

log = logging.getLogger(__name__)

Choice = Literal["auto", "native", "torch"]

VARIABLE = "LORACTR_KERNELS"
"""Environment variable that makes the choice where nobody calls `use`."""


# What each function takes: pointers, int64_t, double.
SIGNATURES = {
    "dropout": "ppiiid",
    "relu_dropout": "piiid",
    "relu_dropout_backward": "pppid",
    "adam_tails": "pppiii",
    "adam_catch_up": "pppppipppiiiddddipi",
    "adam_step": "pppppipppiiiddddipipppd",
    "grouped_product": "pppppiiii",
    "grouped_outer": "pppppiii",
    "attention": "pppppiiii",
    "attention_backward": "ppppppppiiii",
    "cin": "ppppiiiiii",
    "cin_backward": "ppppppiiiiii",
    "fm": "ppiii",
    "fm_backward": "pppiii",
    "layer": "pppppppppiiiiiiiid",
    "layer_backward": "ppppppppppppppiiiiiid",
    "norm": "ppppiiddppppipp",
    "norm_backward": "pppppiipppipp",
    "look_up": "pppppiiiip",
    "look_up_backward": "pppppiiii",
    "group_ids": "pipppp",
    "row_sums": "pppiip",
    "lazy_adam": "ppppiipppddddd",
    "rowwise_adagrad": "pppiipppddd",
    "expert_adam": "pppppiippdddd",
}
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


class Library:
    """Calls compiled functions. A tensor goes over as a pointer, None as a null pointer, and the
    name gets the element type of the first tensor: `call("dropout", x, …)` is
    `dropout_float32(x, …)`.

    Nothing is checked here: who calls has looked at types and layouts (`library_for`) and at
    shapes, and leaves what does not fit to torch's operations, which say what is wrong.

    Raises:
        OSError: the file cannot be loaded here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        self._known: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
        self._threads = 0
        self.multiplies = self._take_products()
        """Whether there are products: their inner loops are those of the library beside torch."""

    def call(self, name: str, first: Tensor, *others: Tensor | float | None) -> None:
        """One call on torch's number of threads, with the interpreter's lock released meanwhile."""
        threads = torch.get_num_threads()
        if threads != self._threads:
            self._functions.use_threads(threads)
            self._threads = threads
        function = self._known.get((name, first.dtype)) or self._find(name, first.dtype)
        function(*[v.data_ptr() if isinstance(v, Tensor) else v for v in (first, *others)])

    def _find(self, name: str, dtype: torch.dtype) -> Callable[..., None]:
        function = getattr(self._functions, f"{name}_{str(dtype).removeprefix('torch.')}")
        function.argtypes, function.restype = [TYPES[kind] for kind in SIGNATURES[name]], None
        found: Callable[..., None] = function
        self._known[name, dtype] = found
        return found

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


@cache
def _opened(path: Path) -> Library:
    """One for all of a process: how many threads work is known to the compiled code only once."""
    return Library(path)


Used = Library | None | Literal["not chosen"]

_used: ContextVar[Used] = ContextVar("loractr_kernels", default="not chosen")


@contextmanager
def use(choice: Choice) -> Iterator[None]:
    """Compute with these kernels meanwhile, in this thread: `native`, `torch`, or, with `auto`, the
    choice made outside: by another `use`, by the environment variable LORACTR_KERNELS, else the
    compiled ones where they are built.

    Raises:
        UsageError: there is no such choice, or "native" without compiled kernels.
    """
    if _checked(choice) == "auto":
        library()
        yield
        return
    token = _used.set(_insisted() if choice == "native" else None)
    try:
        yield
    finally:
        _used.reset(token)


def library() -> Library | None:
    """The compiled library, if it is there and wanted.

    Raises:
        UsageError: LORACTR_KERNELS is no choice, or "native" without compiled kernels.
    """
    used = _used.get()
    return by_default() if used == "not chosen" else used


def chosen() -> Choice:
    """The choice that `use` has made here; `auto` where it has made none."""
    used = _used.get()
    return "auto" if used == "not chosen" else "torch" if used is None else "native"


def library_for(*tensors: Tensor) -> Library | None:
    """The compiled library, if it can compute with these tensors: contiguous, in the processor's
    memory, all float32 or all float64. None while torch traces a graph or transforms a function
    (torch.func), too."""
    if torch.compiler.is_compiling() or _looks_inside():
        return None
    kind = tensors[0].dtype
    if kind not in (torch.float32, torch.float64):
        return None
    for one in tensors:
        if one.dtype != kind or one.device.type != "cpu" or not one.is_contiguous():
            return None
        if type(one) not in (Tensor, nn.Parameter):  # a stand-in that has no memory
            return None
    return library()


def _looks_inside() -> bool:
    """Whether torch.jit.trace or torch.func runs this: their tensors cannot be read as memory."""
    tracing = torch._C._get_tracing_state() is not None
    return tracing or torch._C._functorch.peek_interpreter_stack() is not None


@cache
def by_default() -> Library | None:
    """What is used where nobody chose: looked up once, and again after `build`."""
    choice = _checked(os.environ.get(VARIABLE, "auto"))
    if choice == "torch":
        return None
    if choice == "native":
        return _insisted()
    path = place()
    if not path.exists():
        _say_once(path.with_suffix(".missing"))
        return None
    try:
        return _opened(path)
    except OSError as error:
        log.warning(
            "the compiled kernels do not load (%s): torch's are used; `loractr kernels build`"
            " makes them anew",
            error,
        )
        return None


def _say_once(marker: Path) -> None:
    """That there are none: once on a machine, or, where no marker can be left, in a process."""
    if not log.isEnabledFor(logging.INFO):
        return  # nobody would hear it
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    except OSError:
        pass
    log.info("no compiled kernels here (`loractr kernels build` makes them): torch's are used")


def _insisted() -> Library:
    path = place()
    try:
        return _opened(path)
    except OSError as error:
        why = str(error) if path.exists() else f"there is no {path}"
        raise UsageError(
            "kernels: native was asked for, but there are none for these sources and this"
            f" processor: {why}.",
            fix="run `loractr kernels build`, or leave the choice at auto.",
        ) from error


def _checked(choice: str) -> Choice:
    for one in get_args(Choice):
        if choice == one:
            found: Choice = one
            return found
    raise UsageError(
        f"kernels are 'auto', 'native' or 'torch', not {choice!r}.",
        fix=f"correct `kernels` in the configuration, or the environment variable {VARIABLE}.",
    )
