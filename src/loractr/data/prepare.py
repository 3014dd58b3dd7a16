"""Raw table + schema → prepared data set, streaming, in bounded memory.

stage      the needed columns, once, to Parquet
keep       without repeats, where asked for
split      one code a row
fit        vocabularies, normalising constants, domains: training rows only
encode     batch by batch; training rows to piles that are shuffled one by one
"""

import logging
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.selectors import by_name

from loractr.data import canonical, outcome, profile, split
from loractr.data.aside import written_aside
from loractr.data.canonical import column_of
from loractr.data.config import DataConfig, Negatives
from loractr.data.deduplicate import first_of_each
from loractr.data.encode import Encoders, is_domain_field
from loractr.data.fingerprint import Identity, cache_key, fingerprint
from loractr.data.fit import Fit
from loractr.data.negatives import draw_negatives
from loractr.data.piles import Piles, record_type
from loractr.data.resolve import resolve
from loractr.data.rows import Rows
from loractr.data.sources import Table, open_source
from loractr.data.staging import Staged, stage
from loractr.data.store import (
    SPLITS,
    Prepared,
    SplitWriter,
    open_prepared,
    read_manifest,
    write_manifest,
)
from loractr.data.vocabulary import IdCounts, Vocabulary
from loractr.errors import ConfigError, DataError, MissingColumnError, UsageError, shown, some
from loractr.schema import Label, Schema

log = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    out: Path,
    *,
    frame: pl.DataFrame | pl.LazyFrame | None = None,
    schema: Schema | None = None,
    identity: Identity | None = None,
) -> Prepared:
    """Prepare the rows of a source, or of a frame, for training.

    What lies at `out` already is used again when it was made from the same configuration and files.

    Args:
        config: The `data` section: source, fields, divisions, label, split.
        out: Directory of the prepared data set. Written aside, then renamed: whole or not there.
        frame: Rows to prepare instead of the source's; needs `schema`.
        schema: Fields, divisions and label, instead of those that `config` asks for.
        identity: `Identity.of(config)`, where it is known already.

    Raises:
        ConfigError: The configuration does not fit the source.
        DataError: The rows are not what the schema says, or the disk is full.
        UsageError: `out` is there and is no prepared data set; a frame without a schema.
    """
    if frame is not None and schema is None:
        raise UsageError("a frame was given without a schema.", fix="pass schema=Schema(...) too.")
    if frame is not None and config.negatives is not None:
        raise UsageError(
            "negatives are drawn for a source, not for a frame.",
            fix="call loractr.data.negatives.draw_negatives on the frame, and leave them out here.",
        )
    if frame is not None:
        source, key = [], None
    elif identity is not None and schema is None:
        source, key = identity.files, identity.key
    else:
        source = fingerprint(config)
        key = cache_key(config, schema, source)
    if (found := _reusable(out, key)) is not None:
        log.info("%s: prepared before from the same configuration and files; used again", out)
        return found
    table, schema, oracle = _table(config, frame, schema)
    log.info("%s: preparing", out)
    with written_aside(out) as directory:
        manifest = {"key": key, "source": {"name": config.source, "files": source}}
        manifest |= _Preparation(config, table, schema, oracle, directory).run(source)
        write_manifest(directory, manifest)
    return open_prepared(out)


def cached(config: DataConfig, directory: Path, identity: Identity | None = None) -> Prepared:
    """Prepare the source of `config` in `directory / <key>`, or use what lies there already.

    Args:
        config: The `data` section.
        directory: The cache, made when it is not there.
        identity: `Identity.of(config)`, where it is known already.
    """
    identity = identity or Identity.of(config)
    return prepare(config, directory / identity.key[:32], identity=identity)


def _reusable(out: Path, key: str | None) -> Prepared | None:
    """The data set at `out` if it is what would be prepared; None if it may be written anew."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = read_manifest(out)
    if manifest is None:
        raise UsageError(
            f"{out} exists and is no prepared data set; it is not overwritten.",
            fix="choose another directory, or remove that one.",
        )
    if key is None or manifest.get("key") != key:
        log.info("%s: made from another configuration or other files; prepared anew", out)
        return None
    try:
        return open_prepared(out)
    except DataError as error:
        log.warning("%s Prepared anew.", error.problem)
        return None


def _table(
    config: DataConfig, frame: pl.DataFrame | pl.LazyFrame | None, schema: Schema | None
) -> tuple[pl.LazyFrame, Schema, str | None]:
    """Raw rows, what to make of them, and the column of true probabilities if there is one."""
    if frame is not None and schema is not None:
        return frame.lazy(), schema, None
    table = open_source(config)
    if config.negatives is not None:
        return _with_negatives(table, config, config.negatives, schema)
    return table.frame, schema or resolve(config, table), table.oracle


def _with_negatives(
    table: Table, config: DataConfig, wanted: Negatives, schema: Schema | None
) -> tuple[pl.LazyFrame, Schema, str | None]:
    """The clicks of `table` together with drawn negatives: the columns that will be read."""
    user, item, domain = _roles(table, config, wanted)
    said = config.label if schema is None else schema.label
    if said is not None and said.column != "label":
        raise ConfigError(
            [
                "data.label: with negatives the label is the column 'label', not"
                f" {shown(said.column)}: every row of the log is a click"
            ],
            fix="leave data.label out.",
        )
    own = {"label": pl.lit(1, pl.Int64), "split": pl.lit("train")}
    if schema is None:
        schema = resolve(
            config, replace(table, frame=table.frame.with_columns(**own), label=Label())
        )
    read = {user, item, domain, *own, *_wanted(config, schema, table.oracle)}
    present = table.frame.collect_schema().names()
    frame = table.frame.select(by_name(*(name for name in present if name in read)))
    clicks = frame.collect(engine="streaming")
    for column in (user, item, domain):  # one id, whatever its spelling
        values = column_of(clicks, column)
        reading = canonical.decided(values, f"column {column!r}", schema.missing_values)
        ids = canonical.ids(values, f"column {column!r}", reading)
        clicks = clicks.with_columns(ids.alias(column))
    drawn = draw_negatives(
        clicks,
        user=user,
        item=item,
        domain=domain,
        config=wanted,
        fractions=wanted.fractions,
    )
    return drawn.lazy(), schema, table.oracle


def _roles(table: Table, config: DataConfig, wanted: Negatives) -> tuple[str, str, str]:
    """Columns of the user, the item and the domain."""
    user, item = wanted.user or table.user, wanted.item or table.item
    divisions = tuple(config.divisions.values()) or table.divisions
    if user is None or item is None or not divisions:
        raise ConfigError(
            ["data.negatives: negatives are drawn for users, from the items of a domain"],
            fix="name the columns `user` and `item` in data.negatives, and a division.",
        )
    roles, columns = (user, item, divisions[0].column), table.frame.collect_schema().names()
    for column in (*roles, *(wanted.item_columns or ())):
        if column not in columns:
            raise MissingColumnError(column, columns, wanted_by="`negatives`")
    if len(set(roles)) < len(roles):
        raise ConfigError(
            [f"data.negatives: user, item and domain are three columns, not {some(roles)}"]
        )
    return roles


class _Preparation:
    """One run of `prepare`: the steps, and how long each took."""

    def __init__(
        self,
        config: DataConfig,
        table: pl.LazyFrame,
        schema: Schema,
        oracle: str | None,
        directory: Path,
    ) -> None:
        self.config, self.table, self.schema, self.oracle = config, table, schema, oracle
        self.directory = directory
        self.scratch = directory / "scratch"
        self.seconds: dict[str, float] = {}

    def run(self, source: list[dict[str, Any]]) -> dict[str, Any]:
        """Write everything but the manifest, and return what it shall say. `source`: the files that
        the rows come from."""
        self.scratch.mkdir()
        with self._step("stage"):
            staged = self._stage()
        with self._step("deduplicate"):
            keep = self._kept(staged)
        with self._step("split"):
            codes = split.codes(self.config.split, staged, self.schema, keep, self.scratch)
        with self._step("fit"):
            encoders, groups = self._fit(staged, codes)
        with self._step("encode"):
            profiler = self._encode(staged, codes, encoders, groups)
            profile.write(profiler.profile(source), self.directory)
            encoders.save(self.directory)
            shutil.rmtree(self.scratch)
        return {
            "schema": encoders.schema.model_dump(mode="json", exclude_defaults=True),
            "splits": {name: tally.summary() for name, tally in profiler.tallies.items()},
            "vocabulary": {f.name: f.size for f in encoders.schema.fields if f.size},
            "dropped": {"duplicates": int(staged.rows - keep.sum())},
            "seconds": self.seconds,
            "versions": _versions(),
        }

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        log.info("%s: %.1f s", name, self.seconds[name])

    def _stage(self) -> Staged:
        present = self.table.collect_schema().names()
        wanted = _wanted(self.config, self.schema, self.oracle)
        for column, wanted_by in wanted.items():
            if column not in present:
                raise MissingColumnError(column, present, wanted_by=wanted_by)
        columns = present if self.config.deduplicate is True else list(wanted)
        return stage(self.table, columns, self.scratch / "staged.parquet")

    def _kept(self, staged: Staged) -> NDArray[np.bool_]:
        chosen = self.config.deduplicate
        if chosen is False or chosen == ():
            return np.ones(staged.rows, dtype=np.bool_)
        columns = list(staged.types) if chosen is True else list(chosen)
        return first_of_each(staged, columns, self.scratch, self.schema.missing_values)

    def _fit(self, staged: Staged, codes: split.Codes) -> tuple[Encoders, "_Groups | None"]:
        """The encoders, and the keys of the groups of all rows: they are names, nothing is learnt
        from them."""
        schema, fit = self.schema, Fit(self.schema)
        groups = IdCounts("`group`", canonical.Reading(None, schema.missing_values))
        for rows, frame in staged.batches(
            list(_columns(schema, self.oracle)), codes != split.DROPPED
        ):
            outcome.labels(
                column_of(frame, schema.label.column), schema.label, rows, schema.missing_values
            )
            fit.observe(frame, codes[rows] == split.TRAIN, rows)
            if schema.group is not None:
                groups.add(column_of(frame, schema.group))
        if schema.group is None:
            return fit.encoders(), None
        return fit.encoders(), _Groups(Vocabulary.fit(groups.table()), groups.reading())

    def _encode(
        self, staged: Staged, codes: split.Codes, encoders: Encoders, groups: "_Groups | None"
    ) -> profile.Profiler:
        schema = encoders.schema
        profiler = profile.Profiler(encoders)
        output: _Output | None = None
        for rows, frame in staged.batches(
            list(_columns(schema, self.oracle)), codes != split.DROPPED
        ):
            encoded = outcome.add(
                encoders.encode(frame, rows=rows), frame, schema, oracle=self.oracle
            )
            if groups is not None and schema.group is not None:
                encoded = replace(encoded, group=groups.keys(column_of(frame, schema.group)))
            if output is None:
                output = self._output(encoded, int((codes == split.TRAIN).sum()))
            splits = {n: np.flatnonzero(codes[rows] == code) for code, n in enumerate(SPLITS)}
            profiler.add(encoded, frame, splits)
            for name, where in splits.items():
                output.add(name, encoded, where)
        assert output is not None  # a staged table has rows
        output.close()
        return profiler

    def _output(self, like: Rows, train_rows: int) -> "_Output":
        seed = getattr(self.config.split, "seed", 0)
        return _Output(self.directory, self.scratch, like, train_rows, seed)


@dataclass(frozen=True)
class _Groups:
    """Keys of the groups that the grouped AUC averages over."""

    vocabulary: Vocabulary
    reading: canonical.Reading

    def keys(self, values: pl.Series) -> NDArray[np.int64]:
        """Key of each row (N,), from 0."""
        index = self.vocabulary.encode(values, what="`group`", reading=self.reading)
        return index.astype(np.int64) - 1


class _Output:
    """Where encoded rows go: training rows by way of piles, the others straight to their files."""

    def __init__(
        self, directory: Path, scratch: Path, like: Rows, train_rows: int, seed: int
    ) -> None:
        none = like.take(np.zeros(0, dtype=np.int64))
        ids = sum(len(values) for values, _ in like.sequences.values())
        row_bytes = record_type(like).itemsize + 4 * ids / max(1, len(like))
        self._writers = {name: SplitWriter(directory / name, none) for name in SPLITS}
        self._piles = Piles(scratch, none, int(train_rows * row_bytes), seed)

    def add(self, name: str, rows: Rows, where: canonical.Positions) -> None:
        if name == "train":
            self._piles.throw(rows, where)
        else:
            self._writers[name].append(rows.take(where))

    def close(self) -> None:
        for pile in self._piles:
            self._writers["train"].append(pile)
        for writer in self._writers.values():
            writer.close()


def _columns(schema: Schema, oracle: str | None) -> dict[str, str]:
    """Columns to read for encoding, and who wants each."""
    wanted = {
        f.source_column: f"field {f.name!r}"
        for f in schema.fields
        if not is_domain_field(f, schema)
    }
    wanted |= {d.column: f"division {d.name!r}" for d in schema.divisions}
    wanted[schema.label.column] = "the label"
    optional = ((schema.weight, "`weight`"), (schema.group, "`group`"), (oracle, "the source"))
    return wanted | {column: who for column, who in optional if column is not None}


def _wanted(config: DataConfig, schema: Schema, oracle: str | None) -> dict[str, str]:
    """Columns to read for whatever purpose, and who wants each."""
    wanted = _columns(schema, oracle) | split.columns(config.split, schema)
    if isinstance(config.deduplicate, tuple):
        wanted |= dict.fromkeys(config.deduplicate, "`deduplicate`")
    return wanted


def _versions() -> dict[str, str]:
    names = ("loractr", "polars", "numpy", "pyarrow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
