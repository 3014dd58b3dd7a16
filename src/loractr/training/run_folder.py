"""The folder of a run: what may begin there, what may go on, and what neither may change.

config.yaml                    the resolved configuration, written first
checkpoint/environment.json    versions and machine that the run began with
checkpoint/data.json           identity of the data that it trains on
checkpoint/<fit>/              checkpoints (`training.checkpoint`)
metrics.json                   written last: a run that has it is finished
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from loractr import native
from loractr.config import RunConfig, dump_config, load_config
from loractr.data.fingerprint import Identity
from loractr.environment import differences, environment
from loractr.errors import CheckpointError, UsageError, some
from loractr.training.checkpoint import STATE, write_file

log = logging.getLogger(__name__)

DATA = "checkpoint/data.json"
ENVIRONMENT = "checkpoint/environment.json"


def begin(config: RunConfig, out: Path, resume: bool) -> bool:
    """Make or check the run's folder; whether the run is finished already.

    Raises:
        UsageError: `out` is not empty, or holds a run with another configuration.
    """
    written = out / "config.yaml"
    if resume and written.exists():
        # read and dumped again: keys that are newer than the file have their defaults
        before, now = (yaml.safe_load(dump_config(one)) for one in (load_config(written), config))
        if before != now:
            raise UsageError(
                f"{out} holds a run with another configuration: {some(_differing(before, now))}"
                " differ.",
                fix="resume with the configuration in its config.yaml, or choose another folder.",
            )
        return (out / "metrics.json").exists()
    refuse_what_is_there(out)
    out.mkdir(parents=True, exist_ok=True)
    write_file(written, dump_config(config).encode())
    return False


def _differing(before: Any, now: Any, place: str = "") -> list[str]:
    """Dotted keys of the settings that are not the same."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [place]
    return [
        found
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        for found in _differing(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    ]


def refuse_what_is_there(out: Path) -> None:
    """Raise UsageError unless `out` is empty or not there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out} exists and is not empty.",
            fix="choose another folder, or continue the run in it with --resume.",
        )


@contextmanager
def nothing_left_of_a_false_start(out: Path) -> Iterator[None]:
    """A run that fails before its first checkpoint has nothing to go on from: what it wrote is
    removed, so that the same command works once the cause is mended. Other files of `out` stay."""
    try:
        yield
    except BaseException:
        if not _has_checkpoint(out):
            _remove(out)
        raise


def _remove(out: Path) -> None:
    for name in ("checkpoint", "artifact"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (
        "history.jsonl",
        ".predictions.parquet.partial",
        "predictions.parquet",
        "config.yaml",
    ):
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # it holds something else, or is a link
        out.rmdir()


def check_data(out: Path, identity: Identity) -> None:
    """Refuse to go on over other rows: the same index would mean another id.

    Raises:
        CheckpointError: the data are not those that the run began with; what changed is named.
    """
    if not _has_checkpoint(out):
        return
    path = out / DATA
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"format": 1}
    if changes := identity.changes(before):
        raise CheckpointError(
            f"{out} began with other data: {'; '.join(changes)}.",
            fix="train into a new folder, or put the data back as they were.",
        )


def note_data(out: Path, identity: Identity) -> None:
    """Write down which data the run trains on."""
    _write(out / DATA, asdict(identity))


def check_environment(out: Path, device: str) -> None:
    """Note the environment of the run; warn of every difference to the one it began in."""
    path, now = out / ENVIRONMENT, {**run_environment(), "device": device}
    if not path.exists():
        _write(path, now)
        return
    for difference in differences(json.loads(path.read_text(encoding="utf-8")), now):
        log.warning("%s since the run began: weights may differ in their last bits", difference)


def run_environment() -> dict[str, str | int]:
    """Versions and machine, and whether compiled kernels are at work."""
    return environment() | {"compiled": "no" if native.library() is None else "yes"}


def _has_checkpoint(out: Path) -> bool:
    return any((out / "checkpoint").glob(f"*/{STATE}"))


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(values).encode())
