"""A fit that is interrupted anywhere and continued ends with the same bits and the same history."""

import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loractr.baselines.mix import Mix
from loractr.errors import CheckpointError
from loractr.stage import Stage
from loractr.training import fit, optimizer
from loractr.training.checkpoint import CheckpointFolder
from loractr.training.events import Stepped

SEED = 4
BASE = Stage(
    name="",
    epochs=1.5,
    batch_size=24,
    learning_rate=0.03,
    patience=1,
    validate_every=0.5,
    weight_decay=0.01,
    clip_norm=1.0,
    ema=0.9,
    warmup=0.5,
    decay="cosine",
    dropout=0.3,
    embedding_dropout=0.2,
    domains_per_step=2,
)


class PowerCutError(Exception):
    """What stands for the power cut."""


@dataclass(frozen=True)
class Cut(CheckpointFolder):
    """A folder that loses power instead of making its n-th write, n counting from 0."""

    at: int = -1
    writes: list[int] = field(default_factory=list)

    def write(self, checkpoint):
        if len(self.writes) == self.at:
            raise PowerCutError
        super().write(checkpoint)
        self.writes.append(1)


@dataclass
class CutAtEvent:
    """A callback that loses power at the n-th event; those that only time decides do not count."""

    at: int
    seen: int = 0

    def __call__(self, event):
        if not isinstance(event, Stepped):
            if self.seen == self.at:
                raise PowerCutError
            self.seen += 1


@pytest.fixture(
    params=["mix", "lazy_adam", "rowwise_adagrad", "by rows", "joint", "experts", "two_stage"]
)
def world(request, monkeypatch, make_data, make_model, mlora):
    """(data, a function that makes the fresh model, the recipe)"""
    data, base = make_data(), BASE
    method = {
        "mix": Mix(name="mix", recipe="tuned"),
        "lazy_adam": Mix(name="mix"),
        "rowwise_adagrad": Mix(name="mix"),
        "by rows": Mix(name="mix"),
        "joint": mlora(row_scale=True),
        "experts": mlora(row_scale=True),
        "two_stage": mlora(recipe="two_stage"),
    }[request.param]
    if request.param in ("lazy_adam", "rowwise_adagrad"):
        lazy = {"embedding_optimizer": request.param, "embedding_weight_decay": 0.0}
        base = base.model_copy(update=lazy)
    if request.param == "by rows":
        request.getfixturevalue("kernels")
        monkeypatch.setattr(optimizer, "LARGE", 1)
    if request.param == "experts":
        request.getfixturevalue("kernels")
        base = base.model_copy(update={"domains_per_batch": 1})
    return data, lambda: make_model(data, method, batch_norm=True), method.stages(base, norm=True)


def comparable(history):
    """All of a history but its clock."""
    dump = history.dump()
    for stage in dump["stages"]:
        del stage["rows_per_second"]
    return dump


def run(world, folder, callbacks=()):
    data, make, stages = world
    model = make()
    history = fit(model, data, stages, seed=SEED, checkpoints=folder, callbacks=callbacks)
    return {name: value.clone() for name, value in model.state_dict().items()}, comparable(history)


def assert_same(found, expected):
    assert found[1] == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name


def test_checkpoints_change_nothing(world, tmp_path):
    expected = run(world, None)
    folder = Cut(tmp_path, minutes=0)
    assert_same(run(world, folder), expected)
    assert len(folder.writes) > 5


@pytest.mark.slow
@pytest.mark.parametrize("every_step", [True, False])
def test_a_power_cut_before_any_write_of_a_checkpoint(world, tmp_path, every_step):
    expected = run(world, None)
    minutes = 0 if every_step else 1e9
    whole = Cut(tmp_path / "whole", minutes=minutes)
    run(world, whole)
    for at in range(0, len(whole.writes), 4 if every_step else 1):
        path = tmp_path / str(at)
        with pytest.raises(PowerCutError):
            run(world, Cut(path, minutes=minutes, at=at))
        assert_same(run(world, CheckpointFolder(path, minutes=minutes)), expected)


def test_a_power_cut_at_any_event(world, tmp_path):
    """Stage begins, validations, stage ends: between two checkpoints, then."""
    expected = run(world, None)
    counter = CutAtEvent(at=-1)
    run(world, None, [counter])
    for at in range(0, counter.seen, 2):
        path = tmp_path / str(at)
        with pytest.raises(PowerCutError):
            run(world, CheckpointFolder(path, minutes=1e9), [CutAtEvent(at)])
        assert_same(run(world, CheckpointFolder(path, minutes=1e9)), expected)


def test_one_power_cut_after_the_other(world, tmp_path):
    expected = run(world, None)
    for _ in range(100):
        try:
            found = run(world, Cut(tmp_path, minutes=0, at=4))  # four more writes each time
            break
        except PowerCutError:
            continue
    assert_same(found, expected)


def test_a_finished_fit_is_not_run_again(world, tmp_path):
    expected = run(world, CheckpointFolder(tmp_path))
    events = CutAtEvent(at=0)
    assert_same(run(world, CheckpointFolder(tmp_path), [events]), expected)


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.04}, {"epochs": 3}, {"trains": ("head.*",)}, {"name": "other"}],
)
def test_a_checkpoint_of_another_recipe_is_refused(make_data, make_model, tmp_path, change):
    data, stage = make_data(), BASE.model_copy(update={"name": "s"})
    fit(make_model(data), data, [stage], seed=SEED, checkpoints=CheckpointFolder(tmp_path))
    other = stage.model_copy(update=change)
    with pytest.raises(CheckpointError, match="a run with another recipe or seed") as caught:
        fit(make_model(data), data, [other], seed=SEED, checkpoints=CheckpointFolder(tmp_path))
    assert "Fix: train into a new folder" in str(caught.value)


def test_a_checkpoint_of_another_seed_is_refused(make_data, make_model, tmp_path):
    data, stage = make_data(), BASE.model_copy(update={"name": "s"})
    fit(make_model(data), data, [stage], seed=SEED, checkpoints=CheckpointFolder(tmp_path))
    with pytest.raises(CheckpointError, match="a run with another recipe or seed"):
        fit(make_model(data), data, [stage], seed=9, checkpoints=CheckpointFolder(tmp_path))


@pytest.mark.parametrize("options", [{"hidden_sizes": (6, 4)}, {"backbone": "deepfm"}])
@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_of_another_model_is_refused(
    make_data, make_model, tmp_path, options, finished
):
    data, stage = make_data(), BASE.model_copy(update={"name": "s"})
    if finished:
        fit(make_model(data), data, [stage], seed=SEED, checkpoints=CheckpointFolder(tmp_path))
    else:
        folder = Cut(tmp_path, minutes=0, at=3)
        with pytest.raises(PowerCutError):
            fit(make_model(data), data, [stage], seed=SEED, checkpoints=folder)
    other = make_model(data, **options)
    with pytest.raises(CheckpointError, match="the checkpoint belongs to another model"):
        fit(other, data, [stage], seed=SEED, checkpoints=CheckpointFolder(tmp_path))


SCRIPT = """
    import runpy, sys
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from loractr.stage import Stage
    from loractr.training import fit
    from loractr.training.checkpoint import CheckpointFolder

    class Told(CheckpointFolder):
        def write(self, checkpoint):
            super().write(checkpoint)
            print("written", flush=True)

    torch.set_num_threads(1)
    toys, out = runpy.run_path(sys.argv[1]), Path(sys.argv[2])
    data = toys["toy_data"](train=(400, 200, 80))
    method = toys["toy_mlora"](recipe="two_stage", row_scale=True)
    model = toys["toy_model"](data, method, batch_norm=True)
    base = Stage(name="", epochs=4, batch_size=20, patience=9, validate_every=0.5, ema=0.9,
                 dropout=0.3, learning_rate=0.01, keep_start=False, domains_per_step=2)
    folder = Told(out / "checkpoint", minutes=0)
    fit(toys["toy_model"](data), data, [Stage(name="warm", epochs=0.1)], seed=0)
    print("begins", flush=True)
    fit(model, data, method.stages(base, norm=True), seed=1, checkpoints=folder)
    save_file(model.state_dict(), out / "final.safetensors")
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_of_a_real_process(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    toys = str(Path(__file__).with_name("conftest.py"))

    def start(out):
        out.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, str(script), toys, str(out)], stdout=subprocess.PIPE, text=True
        )

    with start(tmp_path / "whole") as process:
        assert process.stdout.readline() == "begins\n"
        began = time.monotonic()
        written = len(process.stdout.readlines())
        seconds = (time.monotonic() - began) / written
        assert process.wait() == 0
    # counted in checkpoints, not in seconds: a machine slow just now may be quick next time
    moment, kills = random.Random(0), 0
    while not (tmp_path / "killed" / "final.safetensors").exists():
        with start(tmp_path / "killed") as process:
            assert process.stdout.readline() == "begins\n"
            for _ in range(moment.randint(0, written // 4)):
                process.stdout.readline()
            time.sleep(moment.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            finished = process.wait() == 0
            assert finished or process.returncode == -signal.SIGKILL
            kills += not finished
    assert kills >= 2
    whole, killed = (
        load_file(tmp_path / name / "final.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
