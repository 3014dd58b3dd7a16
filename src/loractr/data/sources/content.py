"""What a file holds, by its first bytes and whatever it is called."""

import codecs
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from loractr.errors import DataError

_HEAD = 1 << 16
_PACKINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_MARKS = {  # in this order: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as Excel's .xlsx files are",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"\xfd7zXZ\x00": "packed by xz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"ARROW1\x00\x00": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\x00": "an SQLite data base",
}


@dataclass(frozen=True)
class Content:
    """The beginning of a file."""

    path: Path
    packing: str | None
    """gzip, zstd, bz2, or none."""
    head: bytes
    """Its first bytes, unpacked; none when the file is empty."""

    @property
    def is_parquet(self) -> bool:
        """Whether it is a Parquet file."""
        return self.head.startswith(b"PAR1")

    @property
    def marked_encoding(self) -> str | None:
        """The encoding that a byte-order mark says."""
        return next((name for mark, name in _MARKS.items() if self.head.startswith(mark)), None)

    @property
    def foreign(self) -> str | None:
        """What it is, where it is neither text nor Parquet."""
        for magic, what in _FOREIGN.items():
            if self.head.startswith(magic):
                return what
        begin = self.head.lstrip()
        return "JSON" if begin.startswith((b'{"', b'[{"', b"{}")) else None

    @property
    def has_nulls(self) -> bool:
        """Whether NUL bytes abound: it is binary, or UTF-16 without a mark."""
        return self.head.count(0) > len(self.head) / 8


def look(path: Path) -> Content:
    """Look at the file at `path`.

    Raises:
        DataError: it cannot be opened, or not unpacked.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(_HEAD)
        packing = next((name for magic, name in _PACKINGS.items() if begin.startswith(magic)), None)
        if packing == "bz2" and begin[4:10] != b"1AY&SY":
            packing = None  # text that begins with these letters
        if packing is None:
            return Content(path, None, begin)
        with unpacked(path, packing) as stream:
            return Content(path, packing, stream.read(_HEAD))
    except OSError as error:
        raise unreadable(path, error) from error


def unpacked(path: Path, packing: str | None) -> pa.NativeFile:
    """The bytes of a file, unpacked as they are read. Damage shows as an OSError."""
    return pa.input_stream(str(path), compression=packing)


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that cannot be opened or is cut short."""
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return DataError(
        f"{path} cannot be read: {str(reason)[:200].rstrip('.')}.",
        fix="check that it is there, whole, and that you may read it; or fetch it again.",
    )
