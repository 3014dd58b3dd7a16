"""An artifact is there whole or not at all."""

import subprocess
import sys
from collections import UserDict

import numpy as np
import pytest

from loractr import load, save
from loractr.errors import DataError, UnknownDomainError, UsageError


class Interrupting(UserDict):
    """Metrics during which someone presses Ctrl-C, or something breaks."""

    def __init__(self, error):
        super().__init__(validation=None)
        self.error = error

    def items(self):
        raise self.error


def test_an_existing_path_is_left_alone(mlora, finetune, tmp_path):
    mlora.save(tmp_path / "artifact")
    with pytest.raises(UsageError, match=r"exists already(?s:.)*replace=True") as caught:
        finetune.save(tmp_path / "artifact")
    assert caught.value.exit_code == 2
    assert load(tmp_path / "artifact").config.method.name == "mlora"


def test_an_artifact_is_replaced_when_asked_for(mlora, finetune, tmp_path):
    mlora.save(tmp_path / "artifact")
    finetune.save(tmp_path / "artifact", replace=True)
    scorer = load(tmp_path / "artifact")
    np.testing.assert_array_equal(scorer.predict(finetune.frame), finetune.probabilities())
    assert [file.name for file in tmp_path.iterdir()] == ["artifact"]
    assert not (tmp_path / "artifact/adapters").exists()


def test_only_an_artifact_is_ever_replaced(mlora, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(UsageError, match=r"is not replaced(?s:.)*is not an artifact"):
        mlora.save(tmp_path, replace=True)
    with pytest.raises(UsageError, match="is not replaced"):
        mlora.save(tmp_path / "thesis.txt", replace=True)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken"), OSError("gone")])
def test_a_failure_in_the_middle_leaves_nothing(mlora, tmp_path, error):
    wanted = DataError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        mlora.save(tmp_path / "run/artifact", metrics=Interrupting(error))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_failed_replacement_leaves_what_was_there(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    with pytest.raises(KeyboardInterrupt):
        mlora.save(tmp_path / "artifact", metrics=Interrupting(KeyboardInterrupt()), replace=True)
    assert [file.name for file in tmp_path.iterdir()] == ["artifact"]
    found = load(tmp_path / "artifact").predict(mlora.frame)
    np.testing.assert_array_equal(found, mlora.probabilities())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from loractr import load, save
from loractr.artifact import save
from loractr.errors import DataError

scorer, folder = load(sys.argv[1]), Path(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    path = folder / str(limit)
    try:
        save(scorer.model, scorer.schema, scorer.encoders, path, config=scorer.config)
    except DataError as error:
        print(str(error).splitlines()[0])
"""


def test_a_full_disk_leaves_nothing_and_says_so(mlora, tmp_path):
    """A limit on the size of a file stands in for a disk that fills up: at the first byte, in the
    first files, in the base model, not at all."""
    mlora.save(tmp_path / "artifact")
    limits = ["0", "500", "2000", "100000"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "artifact", tmp_path / "full", *limits],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = done.stdout.splitlines()
    for limit, line in zip(limits[:3], found, strict=True):
        assert f"the disk is full: {tmp_path}/full/{limit} could not be written" in line
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["100000"]


def test_what_cannot_be_loaded_again_is_not_saved(mlora, finetune, tmp_path):
    other = finetune.schema.model_copy(update={"weight": "w"})
    with pytest.raises(UsageError, match="with another schema"):
        save(mlora.model, other, mlora.encoders, tmp_path / "artifact", config=mlora.config)
    finetune.domain_models["unheard of"] = finetune.model
    with pytest.raises(UnknownDomainError, match="no domain 'unheard of'"):
        finetune.save(tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_saving_does_not_change_the_model(mlora, tmp_path):
    before = mlora.probabilities()
    modules = [type(module) for module in mlora.model.modules()]
    mlora.save(tmp_path / "artifact")
    assert [type(module) for module in mlora.model.modules()] == modules
    np.testing.assert_array_equal(mlora.probabilities(), before)


def test_everyone_may_read_what_the_umask_lets_them(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    (tmp_path / "any file").write_text("x")
    usual = (tmp_path / "any file").stat().st_mode
    modes = {f.stat().st_mode for f in (tmp_path / "artifact").rglob("*") if f.is_file()}
    assert modes == {usual}
