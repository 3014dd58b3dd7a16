"""Compiled kernels for the processor: what they speed up computes the same without them.

They are C++ with a plain C interface, built by one command (`loractr kernels build`) with the
machine's own compiler, and never at import or in the middle of training. Where they are not built,
torch's operations do the work.

    from loractr import native
    with native.use("torch"):      # "auto" (where they are built), "native" or "torch"
        ...
"""

from pathlib import Path

from loractr.native.compiling import COMPILERS, build_target, compile_into
from loractr.native.library import Choice, Library, by_default, chosen, library, library_for, use

__all__ = ["COMPILERS", "Choice", "Library", "build", "chosen", "library", "library_for", "use"]


def build() -> Path:
    """Compile the kernels for this processor; who has chosen no others computes with them from now
    on. What is built already is built again.

    Returns: the compiled library.

    Raises:
        UsageError: there is no compiler, it cannot compile the kernels, or the cache folder cannot
            be written.
    """
    path = build_target()
    compile_into(path)
    by_default.cache_clear()
    return path
