"""A prepared data set on disk.

    out/manifest.json                 format, schema, counts, checksums; written last
    out/vocabulary/<field>.parquet    and activeness/<division>.parquet: the encoders
    out/<split>/ids.npy numbers.npy domains.npy row.npy label.npy [weight.npy group.npy oracle.npy]
    out/<split>/<field>.values.npy    and <field>.offsets.npy: sequences

Arrays are written by appending and read memory-mapped. `FORMAT` changes whenever what is written
for the same input does.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from loractr.data.encode import Encoders, file_name
from loractr.data.rows import FIXED, Rows
from loractr.errors import DataError, UsageError
from loractr.schema import Schema

FORMAT = 2
KIND = "loractr prepared data"
SPLITS = ("train", "validation", "test")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Args:
        path: Its directory.
        schema: Fitted.
        encoders: Encode further raw rows in the same way.
        manifest: Counts, checksums, versions, seconds.
    """

    path: Path
    schema: Schema
    encoders: Encoders
    manifest: Manifest = field(repr=False)

    @cached_property
    def train(self) -> Rows:
        """Training rows, in a random order, memory-mapped."""
        return self.rows("train")

    @cached_property
    def validation(self) -> Rows:
        """Validation rows, in the order of the source, memory-mapped."""
        return self.rows("validation")

    @cached_property
    def test(self) -> Rows:
        """Test rows, in the order of the source, memory-mapped."""
        return self.rows("test")

    def rows(self, split: str, *, in_memory: bool = False) -> Rows:
        """Rows of a split: train, validation or test."""
        folder = self.path / split

        def load(name: str) -> NDArray[Any]:
            array = np.load(folder / f"{name}.npy", mmap_mode=None if in_memory else "r")
            return np.asarray(array) if in_memory or not array.size else array

        fixed = {name: load(name) for name in FIXED if (folder / f"{name}.npy").exists()}
        names = {f.name: file_name(f.name) for f in self.schema.sequences}
        bags = {n: (load(f"{file}.values"), load(f"{file}.offsets")) for n, file in names.items()}
        return Rows(**fixed, sequences=bags)


def open_prepared(path: Path) -> Prepared:
    """Open a prepared data set, after checking its format and that each file has its size.

    Raises:
        UsageError: `path` is no prepared data set.
        DataError: It is of another format, a file is missing or truncated, or a vocabulary is not
            the one that was written.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(
            f"{path} is no prepared data set.", fix="make one: loractr prepare CONFIG --out DIR"
        )
    if manifest["format"] != FORMAT:
        raise DataError(
            f"{path} is prepared data of format {manifest['format']}; this version reads {FORMAT}.",
            fix="prepare it again.",
        )
    for name, expected in manifest["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(
                f"{path} is damaged: {name} {found}; {expected['bytes']} bytes were written.",
                fix="prepare it again.",
            )
        # rows are too many to read through on each opening; what gives them their meaning is not
        if file.suffix != ".npy" and _digest(file) != expected["sha256"]:
            raise DataError(
                f"{path} is damaged: {name} is not what was written.", fix="prepare it again."
            )
    schema = Schema.model_validate(manifest["schema"])
    return Prepared(path, schema, Encoders.load(path, schema), manifest)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the prepared data set at `path`; None where there is none."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == KIND else None


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with size and SHA-256 of every other file under `path`; sync them all."""
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        told = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        files[file.relative_to(path).as_posix()] = told
    whole = {"kind": KIND, "format": FORMAT, **manifest, "files": files}
    with (path / "manifest.json").open("w", encoding="utf-8") as stream:
        json.dump(whole, stream, indent=1, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class SplitWriter:
    """Writes the rows of one split, by appending.

    Args:
        folder: Directory of the split; made here.
        like: Any rows, even none, with the columns of those to come.
    """

    def __init__(self, folder: Path, like: Rows) -> None:
        folder.mkdir()
        columns = {name: getattr(like, name) for name in FIXED}
        self._fixed = {
            name: _ArrayWriter(folder / f"{name}.npy", column.dtype, column.shape[1:])
            for name, column in columns.items()
            if column is not None
        }
        self._bags = {}
        for name in like.sequences:
            stem = file_name(name)
            values = _ArrayWriter(folder / f"{stem}.values.npy", np.dtype(np.int32), ())
            offsets = _ArrayWriter(folder / f"{stem}.offsets.npy", np.dtype(np.int64), ())
            offsets.append(np.zeros(1, dtype=np.int64))
            self._bags[name] = (values, offsets)

    def append(self, rows: Rows) -> None:
        """Write further rows."""
        for name, writer in self._fixed.items():
            writer.append(getattr(rows, name))
        for name, (values, offsets) in self._bags.items():
            ids, bounds = rows.sequences[name]
            offsets.append(bounds[1:] + values.length)
            values.append(ids)

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers():
            writer.close()

    def _writers(self) -> "list[_ArrayWriter]":
        return [*self._fixed.values(), *(w for pair in self._bags.values() for w in pair)]


class _ArrayWriter:
    """One .npy file. Its header leaves room for the number of rows, which `close` fills in."""

    def __init__(self, path: Path, dtype: np.dtype[Any], tail: tuple[int, ...]) -> None:
        self.dtype, self.tail, self.length = dtype, tail, 0
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, array: NDArray[Any]) -> None:
        np.ascontiguousarray(array, dtype=self.dtype).tofile(self._file)
        self.length += len(array)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.length, *self.tail),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
