"""Get a public data set: the official download, or a copy of a folder that you have already.

Nothing is redistributed here: files come from their publisher, whose terms are shown. Of a download
only the files that the source reads are kept, with the publisher's notices.
"""

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from loractr.data.aside import written_aside
from loractr.data.catalogue import DATASETS, Archive, Dataset
from loractr.data.unpack import unpack
from loractr.errors import DownloadError, UsageError, meant, shown, some

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and in all (None when the server does not say)."""

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


def get(
    name: str,
    out: Path,
    *,
    source_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Put the files of a data set into the new folder `out`: all of them, or nothing at all.

    Args:
        name: A key of `DATASETS`.
        out: Folder to make; it may exist if it is empty.
        source_dir: Copy from this folder instead of downloading; checksums are not asked for, so
            that files that were repaired, cut or joined can be used.
        progress: Called as bytes arrive.

    Returns:
        `out`, ready to be `data.path` of a configuration.

    Raises:
        UsageError: no such data set, `out` is in use, files are missing from `source_dir`, or the
            data set has no direct download; then the message says how to get it by hand.
        DownloadError: the download failed, grew too large, has the wrong checksum, or is no archive
            that can be trusted.
        DataError: the disk is full or may not be written to.
    """
    dataset = _named(name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already.", fix="name a new folder, or remove that one.")
    if source_dir is not None:
        wanted = _found(dataset, source_dir)
        with written_aside(out) as folder:
            for path in wanted:
                shutil.copyfile(path, folder / path.name)
            _sync(folder)
        return out
    if dataset.archive is None:
        raise UsageError(
            f"{name} has no direct download. {dataset.instructions}",
            fix=f"then run: loractr data get {name} --from FOLDER --out {out}",
        )
    with written_aside(out) as folder:
        archive = folder / dataset.archive.url.rpartition("/")[2]
        download(dataset.archive, archive, progress=progress)
        unpack(
            archive,
            folder,
            files=dataset.files,
            notices=dataset.notices,
            max_bytes=dataset.archive.max_unpacked_bytes,
        )
        archive.unlink()
        _sync(folder)
    return out


def download(archive: Archive, path: Path, *, progress: Progress | None = None) -> None:
    """Stream `archive.url` to `path`, within its size limit, and check its checksum.

    Raises:
        DownloadError: no answer, cut short, too large, sent elsewhere without encryption, or the
            checksum is not the published one.
    """
    digest = hashlib.md5(usedforsecurity=False)  # what the publishers give
    try:
        with urllib.request.urlopen(archive.url, timeout=_TIMEOUT_SECONDS) as response:
            _stream(response, path, archive, digest.update, progress)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{archive.url} could not be fetched: {reason}.",
            fix="try again later, or get the files by hand and use --from FOLDER.",
        ) from error
    if archive.md5 is not None and digest.hexdigest() != archive.md5:
        raise DownloadError(
            f"{archive.url} has MD5 {digest.hexdigest()}; its publisher states {archive.md5}.",
            fix="fetch it again; if it stays so, the file was replaced or tampered with.",
        )


def _stream(
    response: HTTPResponse,
    path: Path,
    archive: Archive,
    digest: Callable[[bytes], None],
    progress: Progress | None,
) -> None:
    if archive.url.startswith("https:") and not response.url.startswith("https:"):
        raise DownloadError(f"{archive.url} leads to {response.url}, which is not encrypted.")
    announced = response.headers.get("Content-Length")
    total = int(announced) if announced is not None and announced.isdigit() else None
    done = 0
    with path.open("xb") as file:
        while done <= archive.max_bytes and (chunk := response.read(_CHUNK)):
            done += len(chunk)
            file.write(chunk)
            digest(chunk)
            if progress is not None:
                progress(done, total)
    if done > archive.max_bytes:
        raise DownloadError(
            f"{archive.url} is larger than {archive.max_bytes:,} bytes; fetching it was stopped.",
            fix="the publisher may have replaced it; see its page.",
        )
    if total is not None and done < total:
        raise DownloadError(
            f"{archive.url} broke off after {done:,} of {total:,} bytes.", fix="try again."
        )


def _sync(folder: Path) -> None:
    """Have the files on the disk before the folder gets its name."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _named(name: str) -> Dataset:
    if name not in DATASETS:
        raise UsageError(
            f"no data set {shown(name)}; {meant(name, DATASETS)}",
            fix="list them: loractr data list",
        )
    return DATASETS[name]


def _found(dataset: Dataset, folder: Path) -> list[Path]:
    """The wanted files of a local folder, or of the folder inside it that downloads have."""
    places = [folder, *(folder / inner for inner in dataset.folders)]
    for place in places:
        found = {pattern: sorted(place.glob(pattern)) for pattern in dataset.files}
        if all(found.values()):
            notices = [path for pattern in dataset.notices for path in place.glob(pattern)]
            return [path for paths in found.values() for path in paths] + notices
    missing = [pattern for pattern in dataset.files if not any(folder.glob(pattern))]
    raise UsageError(
        f"{folder} lacks {some(missing)} of {dataset.name}.",
        fix=f"name the folder that holds {some(dataset.files)}.",
    )
