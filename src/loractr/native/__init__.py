"""Compiled kernels for the processor: what they speed up computes the same without them.

They are C++ with a plain C interface, built by one command (`loractr kernels build`) with the
machine's own compiler, and never at import or in the middle of training. Where they are not built,
torch's operations do the work.

    from loractr import native
    with native.use("torch"):      # "auto" (where they are built), "native" or "torch"
        ...
"""

from loractr.native.compiling import COMPILERS, build
from loractr.native.library import Choice, Library, library, library_for, use

__all__ = ["COMPILERS", "Choice", "Library", "build", "library", "library_for", "use"]
