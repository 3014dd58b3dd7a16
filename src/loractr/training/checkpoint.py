"""Checkpoints: everything that a killed run needs to go on to bit-identical weights.

A checkpoint is one safetensors file and one JSON file that names it with its SHA-256. The JSON is
written last and renamed into place, so that at any moment the newest complete one counts.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from loractr.errors import CheckpointError

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
        """Make `checkpoint` the newest one; the one before stays until this one is complete."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in checkpoint.tensors.items()}
        content = save(tensors)
        digest = hashlib.sha256(content).hexdigest()
        name = f"{digest[:16]}.safetensors"
        write_file(self.path / name, content)
        state = {"tensors": name, "sha256": digest, "values": checkpoint.values}
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
            state = json.loads((self.path / STATE).read_text())
            content = (self.path / state["tensors"]).read_bytes()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self.path} holds no complete checkpoint: {error}.",
                fix="remove that folder: the run then starts this fit from its beginning.",
            ) from error
        if hashlib.sha256(content).hexdigest() != state["sha256"]:
            raise CheckpointError(
                f"{self.path / state['tensors']} is not the file that was written there.",
                fix="remove that folder: the run then starts this fit from its beginning.",
            )
        # cloned: results may depend in their last bit on how a tensor lies in memory
        tensors = {name: value.clone() for name, value in load(content).items()}
        return Checkpoint(values=state["values"], tensors=tensors)


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


def random_state() -> Tensor:
    """State of torch's random numbers."""
    return torch.get_rng_state()
