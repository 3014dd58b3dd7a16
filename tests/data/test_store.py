"""The prepared data set on disk: what is written reads back, what is damaged is refused by name."""

import hashlib
import json
import threading
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from loractr.data.aside import written_aside
from loractr.data.config import DataConfig
from loractr.data.encode import Encoders
from loractr.data.piles import Piles
from loractr.data.prepare import prepare
from loractr.data.rows import FIXED, Rows
from loractr.data.store import FORMAT, SPLITS, SplitWriter, open_prepared, write_manifest
from loractr.errors import DataError, UsageError
from loractr.schema import Field, Schema

SCHEMA = Schema(
    fields=(
        Field(name="a", hash_buckets=3, size=5),
        Field(name="x", kind="numerical"),
        Field(name="tags/α", kind="sequence", hash_buckets=8, size=10),
    )
)


def some_rows(n, seed=0, *, weight=True):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, n)
    offsets = np.zeros(n + 1, dtype=np.int64)
    offsets[1:] = np.cumsum(lengths)
    return Rows(
        ids=rng.integers(0, 5, (n, 1)).astype(np.int32),
        numbers=rng.normal(size=(n, 1)).astype(np.float32),
        domains=np.zeros((n, 0), dtype=np.int32),
        row=np.arange(n, dtype=np.int64) + 1000 * seed,
        label=rng.integers(0, 2, n).astype(np.float32),
        weight=rng.random(n).astype(np.float32) if weight else None,
        sequences={"tags/α": (rng.integers(1, 10, offsets[-1]).astype(np.int32), offsets)},
    )


def records(rows):
    """Each row with all that belongs to it."""
    columns = [getattr(rows, name) for name in FIXED]
    fixed = [[None] * len(rows) if c is None else c.tolist() for c in columns]
    bags = [
        [values[a:b].tolist() for a, b in pairwise(offsets)]
        for values, offsets in rows.sequences.values()
    ]
    return list(zip(*fixed, *bags, strict=True))


@pytest.fixture
def prepared(tmp_path):
    """A data set of 70 training rows, written in three parts, and of 5 and of no others."""
    out = tmp_path / "prepared"
    out.mkdir()
    parts = {"train": [some_rows(n, n) for n in (40, 0, 30)], "validation": [some_rows(5, 1)]}
    for split in SPLITS:
        writer = SplitWriter(out / split, some_rows(0))
        for rows in parts.get(split, []):
            writer.append(rows)
        writer.close()
    Encoders(SCHEMA, {}, {}).save(out)
    write_manifest(out, {"schema": SCHEMA.model_dump(mode="json", exclude_defaults=True)})
    return out, parts


def test_rows_read_back_as_they_were_written(prepared):
    out, parts = prepared
    data = open_prepared(out)
    assert data.schema == SCHEMA
    assert records(data.train) == [r for part in parts["train"] for r in records(part)]
    assert records(data.validation) == records(parts["validation"][0])
    assert len(data.test) == 0
    assert data.test.ids.shape == (0, 1)
    assert data.train.domains.shape == (70, 0)
    assert data.train.oracle is None


def test_rows_are_mapped_and_in_memory_only_when_asked(prepared):
    data = open_prepared(prepared[0])
    assert isinstance(data.train.ids, np.memmap)
    assert not data.train.ids.flags.writeable
    held = data.rows("train", in_memory=True)
    assert not isinstance(held.ids, np.memmap)
    assert records(held) == records(data.train)


def test_arrays_are_plain_npy_files(prepared):
    out, parts = prepared
    ids = np.load(out / "train" / "ids.npy")
    assert ids.dtype == np.int32
    assert ids.tolist() == np.concatenate([p.ids for p in parts["train"]]).tolist()


def test_the_manifest_has_size_and_checksum_of_every_other_file(prepared):
    out, _ = prepared
    files = json.loads((out / "manifest.json").read_text())["files"]
    on_disk = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert set(files) == set(on_disk) - {"manifest.json"}
    for name, entry in files.items():
        data = on_disk[name].read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_truncated_file_is_refused_by_name(prepared):
    out, _ = prepared
    file = out / "train" / "numbers.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"damaged: train/numbers\.npy has 404 bytes; 408 bytes"):
        open_prepared(out)


def test_an_altered_vocabulary_is_refused_by_name(tmp_path):
    out = tmp_path / "prepared"
    schema = Schema(fields=(Field(name="a"),))
    data = DataConfig(source="table", split={"kind": "random"})
    frame = pl.DataFrame({"a": list(range(40)), "label": [0, 1] * 20})
    prepare(data, out, frame=frame, schema=schema)
    file = out / "vocabulary" / "a.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged: vocabulary/a\.parquet is not what was written"):
        open_prepared(out)


def test_a_missing_file_is_refused_by_name(prepared):
    out, _ = prepared
    (out / "validation" / "label.npy").unlink()
    with pytest.raises(DataError, match=r"damaged: validation/label\.npy is missing"):
        open_prepared(out)


def test_another_format_is_refused(prepared):
    out, _ = prepared
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "format": FORMAT + 1}))
    with pytest.raises(DataError, match=f"of format {FORMAT + 1}; this version reads {FORMAT}"):
        open_prepared(out)


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"kind": "something else"}'])
def test_what_is_no_prepared_data_set_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match="is no prepared data set"):
        open_prepared(tmp_path)


def piled(tmp_path, rows, seed, piles):
    shuffler = Piles(tmp_path, rows.take(np.zeros(0, dtype=np.int64)), 0, seed)
    shuffler.count = piles
    for part in np.array_split(np.arange(len(rows)), 3):
        shuffler.throw(rows, part)
    return [record for pile in shuffler for record in records(pile)]


@pytest.mark.parametrize("piles", [1, 5])
@pytest.mark.parametrize("weight", [True, False])
def test_piles_give_every_row_once_with_all_that_belongs_to_it(tmp_path, piles, weight):
    rows = some_rows(50, weight=weight)
    shuffled = piled(tmp_path, rows, 0, piles)
    assert shuffled != records(rows)
    assert sorted(shuffled, key=repr) == sorted(records(rows), key=repr)
    assert not list(tmp_path.iterdir())


def test_piles_give_the_same_order_for_the_same_seed_only(tmp_path):
    rows = some_rows(50)
    assert piled(tmp_path, rows, 1, 4) == piled(tmp_path, rows, 1, 4)
    assert piled(tmp_path, rows, 1, 4) != piled(tmp_path, rows, 2, 4)


def test_every_order_is_equally_likely_whatever_the_piles(tmp_path):
    rows = some_rows(4)
    place = {row: i for i, row in enumerate(rows.row.tolist())}
    counts = np.zeros(24)
    orders = {}
    for seed in range(1200):
        order = tuple(place[r[3]] for r in piled(tmp_path, rows, seed, 3))
        counts[orders.setdefault(order, len(orders))] += 1
    chi_square = ((counts - 50) ** 2 / 50).sum()
    assert chi_square < 49.7  # 99.9 % of a chi-square with 23 degrees of freedom


def test_a_directory_takes_its_place_only_when_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with written_aside(out) as aside:
        (aside / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    with written_aside(out) as aside:
        (aside / "a").write_text("2")
        assert (out / "a").read_text() == "1"
    assert (out / "a").read_text() == "2"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_half_written_stays_after_an_error_or_ctrl_c(tmp_path, error, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "old").touch()

    def write():
        with written_aside(out) as aside:
            (aside / "half").touch()
            raise error

    with pytest.raises(error):
        write()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == (
        ["out", "out/old"] if there else []
    )


def test_two_threads_may_write_the_same_directory(tmp_path):
    out, together = tmp_path / "out", threading.Barrier(2)

    def write(text):
        with written_aside(out) as aside:
            (aside / "a").write_text(text)
            together.wait()

    threads = [threading.Thread(target=write, args=(text,)) for text in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (out / "a").read_text() in ("1", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"file/out could not be written"),
        written_aside(tmp_path / "file" / "out"),
    ):
        pass


def test_an_interrupt_that_comes_as_a_panic_of_polars_is_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "out"):
        raise pl.exceptions.PanicException("called `Result::unwrap()`: KeyboardInterrupt()")
    with pytest.raises(pl.exceptions.PanicException), written_aside(tmp_path / "out"):
        raise pl.exceptions.PanicException("something else")
    assert list(tmp_path.iterdir()) == []
