"""Take wanted files out of a zip or tar.gz from a stranger: nothing else, and nowhere else.

No member decides where it is written: a wanted file goes to its plain name in the target folder.
An archive that would need that care (a path that leaves its folder, an absolute path, a link, a
device) is refused as a whole, since no honest archive of a data set has such a member.
"""

import fnmatch
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from loractr.errors import DownloadError

_CHUNK = 1 << 20
_DAMAGED: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
    *(NotImplementedError, RuntimeError),  # zip: an unknown compression, a password
)


def unpack(
    archive: Path,
    target: Path,
    *,
    files: Sequence[str],
    notices: Sequence[str] = (),
    max_bytes: int,
) -> None:
    """Write the wanted files of `archive` into the folder `target`, without their folders.

    Args:
        archive: A .zip or .tar.gz file.
        target: An existing folder.
        files: Names or patterns; each must match something in the archive.
        notices: Names or patterns that are taken along when they are there.
        max_bytes: Most bytes to unpack in all: an archive that unpacks to more is refused.

    Raises:
        DownloadError: damaged, too large, not to be trusted, or a wanted file is not in it.
    """
    wanted = (*files, *notices)
    taken: set[str] = set()
    try:
        for name, stream in _members(archive, wanted, max_bytes):
            if name in taken:
                raise DownloadError(f"{archive.name} holds {name!r} twice.")
            taken.add(name)
            with (target / name).open("xb") as sink:
                while chunk := stream.read(_CHUNK):
                    sink.write(chunk)
    except _DAMAGED as error:
        problem = f"{archive.name} cannot be unpacked: {error}."
        raise DownloadError(problem, fix="fetch it again.") from error
    missing = [pattern for pattern in files if not fnmatch.filter(taken, pattern)]
    if missing:
        raise DownloadError(f"{archive.name} holds no {', '.join(missing)}.")


def _members(
    archive: Path, wanted: Sequence[str], max_bytes: int
) -> Iterator[tuple[str, IO[bytes]]]:
    """(plain name, content) of each wanted file. Every member is looked at, wanted or not."""
    allowance = _Allowance(archive.name, max_bytes)
    if zipfile.is_zipfile(archive):
        return _zip_members(archive, wanted, allowance)
    return _tar_members(archive, wanted, allowance)


def _zip_members(
    archive: Path, wanted: Sequence[str], allowance: "_Allowance"
) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = info.external_attr >> 28  # file type of a Unix mode: none kept, folder, file
            plain = _trusted(info.filename, archive, ordinary=kind in (0o00, 0o04, 0o10))
            if not info.is_dir() and _matches(plain, wanted):
                with _opened(file, info) as content:
                    yield plain, _Counting(content, allowance)


def _opened(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return file.open(info)
    except OSError as error:  # a damaged directory points outside the file
        raise zipfile.BadZipFile(str(error)) from error


def _tar_members(
    archive: Path, wanted: Sequence[str], allowance: "_Allowance"
) -> Iterator[tuple[str, IO[bytes]]]:
    """A tar is read from front to back, so all that it holds counts, wanted or not."""
    with (
        gzip.open(archive) as packed,
        tarfile.open(fileobj=_Counting(packed, allowance), mode="r|") as file,
    ):
        for info in file:
            plain = _trusted(info.name, archive, ordinary=info.isfile() or info.isdir())
            content = file.extractfile(info) if _matches(plain, wanted) else None
            if content is not None:  # None for folders
                yield plain, content


class _Allowance:
    """Bytes that may still be unpacked."""

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit, self.left = name, limit, limit

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise DownloadError(f"{self.name} unpacks to more than {self.limit:,} bytes.")


class _Counting(io.BufferedIOBase, IO[bytes]):
    """A stream that spends an allowance as it is read."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, allowance: _Allowance) -> None:
        self.stream, self.allowance = stream, allowance

    def read(self, size: int | None = -1, /) -> bytes:
        data = self.stream.read(-1 if size is None else size)
        self.allowance.spend(len(data))
        return data


def _trusted(name: str, archive: Path, *, ordinary: bool) -> str:
    """The plain name of a member that is a file or folder and stays where it is unpacked."""
    if not ordinary:
        raise DownloadError(f"{archive.name} holds {name!r}, which is a link or a device.")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise DownloadError(f"{archive.name} holds {name!r}, which would leave its folder.")
    return path.name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
