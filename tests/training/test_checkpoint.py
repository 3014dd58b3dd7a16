"""Checkpoints on disk: what is read is what was written, and damage is never read."""

import json
import math
import resource
from contextlib import contextmanager

import pytest
import torch

from loractr.errors import CheckpointError, TrainingError
from loractr.training.checkpoint import STATE, Checkpoint, CheckpointFolder, write_file

VALUES = {
    "stage": 1,
    "loop": {"step": 40, "third": 1 / 3, "none": None, "queue": [2, 0], "best": True},
    "name": "Straße",
    "tiny": 5e-324,
    "odd": [math.inf, -0.0],
}


def tensors(seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(3, 4, generator=random),
        "model.double": torch.randn(5, generator=random, dtype=torch.double),
        "model.turned": torch.randn(4, 3, generator=random).T,
        "random": torch.get_rng_state(),
        "updates": torch.tensor(7),
        "nothing": torch.zeros(0, 3),
    }


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "deep" / "checkpoint")


def write(folder, **values):
    folder.write(Checkpoint({**VALUES, **values}, tensors()))


def test_what_is_read_is_what_was_written(folder):
    write(folder)
    found = folder.read()
    assert found.values == VALUES
    assert math.copysign(1, found.values["odd"][1]) == -1
    assert found.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert torch.equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype


def test_a_folder_without_a_checkpoint_holds_none(folder):
    assert folder.read() is None
    folder.path.mkdir(parents=True)
    (folder.path / "0123456789abcdef.safetensors").write_bytes(b"of a write that never ended")
    assert folder.read() is None


def test_only_the_newest_stays(folder):
    for stage in range(3):
        folder.write(Checkpoint({"stage": stage}, tensors(stage)))
        assert len(list(folder.path.iterdir())) == 2
        assert folder.read().values == {"stage": stage}


def test_what_an_interrupted_write_left_is_swept_away(folder):
    write(folder)
    (folder.path / ".state.json.partial").write_bytes(b"{")
    (folder.path / "0123456789abcdef.safetensors").write_bytes(b"half")
    assert folder.read().values == VALUES
    write(folder, stage=2)
    assert len(list(folder.path.iterdir())) == 2


def the_tensors(folder):
    (file,) = folder.path.glob("*.safetensors")
    return file


@pytest.mark.parametrize("place", [0, 8, 200, -1])
def test_one_changed_byte_of_the_tensors_is_noticed(folder, place):
    write(folder)
    content = bytearray(the_tensors(folder).read_bytes())
    content[place] ^= 1
    the_tensors(folder).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"safetensors is not what was written there") as e:
        folder.read()
    assert "Fix: remove that folder" in str(e.value)


@pytest.mark.parametrize("size", [0, 10, -1])
def test_truncated_tensors_are_noticed(folder, size):
    write(folder)
    content = the_tensors(folder).read_bytes()
    the_tensors(folder).write_bytes(content[:size])
    with pytest.raises(CheckpointError, match="is not what was written there"):
        folder.read()


def test_missing_tensors_are_noticed(folder):
    write(folder)
    the_tensors(folder).unlink()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        folder.read()


def test_one_changed_number_of_the_state_is_noticed(folder):
    """It is still JSON, and would go on from another step without a word."""
    write(folder)
    text = (folder.path / STATE).read_text(encoding="utf-8")
    (folder.path / STATE).write_text(text.replace('"step": 40', '"step": 41'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"state\.json is not what was written there"):
        folder.read()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "\ud800".encode("utf-8", "replace")])
def test_a_state_that_is_none_is_noticed(folder, text):
    write(folder)
    content = text if isinstance(text, bytes) else text.encode()
    (folder.path / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        folder.read()


@pytest.mark.parametrize("key", ["tensors", "sha256", "values", "values_sha256"])
def test_a_state_without_one_of_its_parts_is_noticed(folder, key):
    write(folder)
    state = json.loads((folder.path / STATE).read_text())
    del state[key]
    (folder.path / STATE).write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        folder.read()


def test_bytes_that_are_no_text_are_noticed(folder):
    write(folder)
    (folder.path / STATE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        folder.read()


@contextmanager
def full_disk():
    """No file may grow beyond 200 bytes: as on a full disk, a write ends with an OSError. For a
    moment only, because it holds for pytest's own output too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(folder):
    write(folder)
    told = r"no checkpoint could be written to .*File too large"
    with pytest.raises(TrainingError, match=told), full_disk():
        write(folder, stage=2)
    assert folder.read().values == VALUES
    assert len(list(folder.path.iterdir())) == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"before")
    with pytest.raises(OSError, match="File too large"), full_disk():
        write_file(path, b"x" * 1000)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="no checkpoint could be written"):
        write(CheckpointFolder(tmp_path / "file" / "checkpoint"))
