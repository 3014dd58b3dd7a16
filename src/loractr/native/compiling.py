"""Compiling the kernels, and where the compiled library lies."""

import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from loractr.environment import cache_folder, usual_cache_folder
from loractr.errors import UsageError

log = logging.getLogger(__name__)

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
WISHES = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-march=native", "-fopenmp-simd"),
    ("-mcpu=native", "-fopenmp-simd"),
    (),
)
"""Flags that not every compiler has: the first set that it takes is used."""

INSTRUCTIONS = re.compile(r"(avx|amx|s?sse|fma|f16c|bmi|abm|popcnt|movbe|asimd|sve|fp|neon)")
"""How the names of those processor features begin that a compiler may make use of."""


def place() -> Path:
    """The file of the library for these sources and this processor: the built one, be it in
    $LORACTR_CACHE or where it is without that variable; else the one that would be built."""
    target = build_target()
    usual = usual_cache_folder() / target.relative_to(cache_folder())
    # Path.exists raises where one may not look
    if not os.path.exists(target) and os.path.exists(usual):
        return usual
    return target


def build_target() -> Path:
    """The file that is written when the kernels are built."""
    digest = hashlib.sha256()
    for file in (*SOURCES, *HEADERS):
        digest.update(file.read_bytes())
    digest.update(repr((FLAGS, WISHES, platform.machine(), _instructions())).encode())
    return cache_folder() / "native" / f"{digest.hexdigest()[:16]}.so"


def compile_into(target: Path) -> None:
    """Compile the kernels for this processor into one file. Nothing half-written is ever there.

    Takes $CXX, else the first of c++, g++ and clang++ on the path.

    Raises:
        UsageError: there is no compiler, it cannot compile the kernels, or the file cannot be
            written.
    """
    compiler, said = _compiler(), ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            for wishes in WISHES:
                command = [*compiler, *FLAGS, *wishes, *map(str, SOURCES), "-o", str(made)]
                told = subprocess.run(command, capture_output=True, text=True, check=False)
                if told.returncode == 0:
                    made.replace(target)
                    log.info("kernels compiled by %s %s", compiler[0], " ".join(wishes))
                    return
                said = told.stderr
    except OSError as error:
        raise UsageError(
            f"the kernels cannot be written to {target.parent}: {error}.",
            fix="name a folder that can be written in the environment variable LORACTR_CACHE.",
        ) from error
    raise UsageError(
        f"{compiler[0]} could not compile the kernels; it said:\n{said.strip()[:2000]}",
        fix="name another compiler in the environment variable CXX, or do without: torch's"
        " operations compute the same.",
    )


def _compiler() -> list[str]:
    """The compiler and its own flags, if $CXX has some."""
    asked = shlex.split(os.environ.get("CXX", ""))
    if asked and shutil.which(asked[0]):
        return asked
    if asked:
        problem = f"the compiler {asked[0]!r}, named by CXX, is not there."
    else:
        found = [compiler for compiler in COMPILERS if shutil.which(compiler)]
        if found:
            return found[:1]
        problem = f"there is no C++ compiler: none of {', '.join(COMPILERS)} is on the path."
    raise UsageError(
        problem,
        fix="install one (Debian: apt install g++; macOS: xcode-select --install), or do without:"
        " torch's operations compute the same.",
    )


def _instructions() -> str:
    """What the processor can do: a library compiled for one must not run on a lesser one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.version()}"
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return " ".join(sorted(filter(INSTRUCTIONS.match, flags.split())))
