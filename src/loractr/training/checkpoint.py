"""Checkpoints: everything that a killed run needs to go on to bit-identical weights.

A checkpoint is one safetensors file and one JSON file that names it, with the SHA-256 of both. The
JSON is written last and renamed into place, so that at any moment the newest complete one counts.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from loractr.errors import CheckpointError, TrainingError

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a fit: plain values and tensors."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class CheckpointFolder:
    """Where the checkpoints of one fit live; holds the newest only."""

    path: Path
    minutes: float = 5.0
    """Most minutes between two checkpoints within an epoch."""

    def write(self, checkpoint: Checkpoint) -> None:
        """Make `checkpoint` the newest one; the one before stays until this one is complete.

        Raises:
            TrainingError: the disk is full or may not be written to.
        """
        try:
            self._write(checkpoint)
        except OSError as error:
            raise TrainingError(
                f"no checkpoint could be written to {self.path}: {error}.",
                fix="make room, then resume: the checkpoint before this one is whole.",
            ) from error

    def _write(self, checkpoint: Checkpoint) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in checkpoint.tensors.items()}
        content = save(tensors)
        digest = hashlib.sha256(content).hexdigest()
        name = f"{digest[:16]}.safetensors"
        write_file(self.path / name, content)
        state = {"tensors": name, "sha256": digest, "values": checkpoint.values}
        state["values_sha256"] = _digest(checkpoint.values)
        write_file(self.path / STATE, json.dumps(state).encode())
        for other in self.path.iterdir():
            if other.name not in (name, STATE):
                other.unlink()

    def read(self) -> Checkpoint | None:
        """The newest checkpoint; None where there is none yet.

        Raises:
            CheckpointError: it is damaged.
        """
        if not (self.path / STATE).exists():
            return None
        try:
            state = json.loads((self.path / STATE).read_text(encoding="utf-8"))
            file, values = self.path / state["tensors"], state["values"]
            content, digests = file.read_bytes(), (state["sha256"], state["values_sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(f"{self.path} holds no complete checkpoint: {error!r}.") from error
        found = (hashlib.sha256(content).hexdigest(), _digest(values))
        for path, expected, is_now in zip((file, self.path / STATE), digests, found, strict=True):
            if is_now != expected:
                raise _damaged(f"{path} is not what was written there.")
        # cloned: results may depend in their last bit on how a tensor lies in memory
        tensors = {name: value.clone() for name, value in load(content).items()}
        return Checkpoint(values=values, tensors=tensors)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _damaged(problem: str) -> CheckpointError:
    fix = "remove that folder: the run then starts this fit from its beginning."
    return CheckpointError(problem, fix=fix)


def write_file(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: at `path` there is all of it or what was there before."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, must be there after the power has failed
    finally:
        os.close(folder)
