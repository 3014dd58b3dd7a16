"""Compiling the kernels, and where the compiled library lies."""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from loractr.environment import cache_folder
from loractr.errors import UsageError

log = logging.getLogger(__name__)

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
WISHES = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-mcpu=native",),
    (),
)
"""Flags that not every compiler has: the first set that it takes is used."""


def place() -> Path:
    """The file of the library for these sources and this processor, built or not."""
    digest = hashlib.sha256()
    for file in (*SOURCES, *HEADERS):
        digest.update(file.read_bytes())
    digest.update("\n".join((*FLAGS, platform.machine(), _instructions())).encode())
    return cache_folder() / "native" / f"{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compile the kernels for this processor and put them where `library()` finds them.

    Takes $CXX, else the first of c++, g++ and clang++ on the path. What is built already is built
    again. Nothing half-written is ever found.

    Raises:
        UsageError: there is no compiler, or it cannot compile the kernels.
    """
    compiler = _compiler()
    target = place()
    target.parent.mkdir(parents=True, exist_ok=True)
    said = ""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for wishes in WISHES:
            command = [compiler, *FLAGS, *wishes, *map(str, SOURCES), "-o", str(made)]
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            if told.returncode == 0:
                made.replace(target)
                log.info("kernels compiled by %s %s", compiler, " ".join(wishes))
                return target
            said = said or told.stderr
    raise UsageError(
        f"{compiler} could not compile the kernels; it said:\n{said.strip()[:2000]}",
        fix="name another compiler in the environment variable CXX, or do without: torch's"
        " operations compute the same.",
    )


def _compiler() -> str:
    asked = os.environ.get("CXX")
    found = [c for c in ((asked,) if asked else COMPILERS) if shutil.which(c)]
    if found:
        return found[0]
    raise UsageError(
        f"the compiler {asked!r}, named by CXX, is not there."
        if asked
        else f"there is no C++ compiler: none of {', '.join(COMPILERS)} is on the path.",
        fix="install one (Debian: apt install g++; macOS: xcode-select --install), or do without:"
        " torch's operations compute the same.",
    )


def _instructions() -> str:
    """What the processor can do: a library compiled for one must not run on a lesser one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
