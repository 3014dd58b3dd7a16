"""Run an experiment's plan: choose settings on validation, then score test once per seed.

    python experiments/run.py experiments/multilora-table3 [--jobs 2] [--arms mix_paper mix_tuned]

Every run is one JSON file in the experiment's results/ and is skipped when it is there, so the
script can be stopped and started at any time, with other arms, variants or jobs. `trials/` holds
the runs that choose (validation numbers only: a run always scores its test rows, but a trial's test
numbers are thrown away unread), `results/` itself the chosen setting, seed by seed. The tables in
the experiment's README are written anew after every run.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from plan import Cell, Plan, PlanError, Settings, read
from table import write_readme

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a thread for each run

from loractr.artifact.layout import MANIFEST, Contents
from loractr.config import parse_config
from loractr.environment import cache_folder
from loractr.errors import ConfigError
from loractr.run import run

OF_TRIAL = ("validation", "selection", "seconds")
OF_RUN = ("test", *OF_TRIAL, "parameters", "rows_per_second", "seed", "versions")
"""Parts of metrics.json that are kept of a run."""

MADE_BY = "made-by.json"
"""In a kept run's folder: the configuration that made its artifact. Written last."""


@dataclass(frozen=True)
class Task:
    """One run that can begin now."""

    shown: Settings
    """Its configuration as its JSON shows it."""
    values: Settings
    """The same with the paths of this machine."""
    target: Path
    parts: tuple[str, ...]
    keep: Path | None
    """Where its artifact goes, if others start from it."""


@dataclass
class Queue:
    """What is left to run. The files are the state: asked again, it looks again."""

    cells: list[Cell]
    data: Path
    cache: Path
    wrong: dict[str, str] = field(default_factory=dict)
    """Arm → why its configuration is none."""
    foreign: set[Path] = field(default_factory=set)
    """Kept starts that this version cannot read."""

    def open(self) -> list[Task]:
        """All runs that can begin now: trials of all arms first, then the chosen settings, seed by
        seed; before each the run that it starts from, where that is missing."""
        found = [task for cell in self.cells for task in self._trials(cell)]
        for seed in sorted({seed for cell in self.cells for seed in cell.seeds}):
            for cell in self.cells:
                if seed in cell.seeds and not cell.done(seed):
                    found += self._chosen(cell, seed)
        return list({task.target: task for task in found}.values())

    def _trials(self, cell: Cell) -> list[Task]:
        """What is left of the trials, or what has to be run before them."""
        seed = cell.seeds[0]
        return [
            task
            for path, point in cell.trials.items()
            if not path.exists()
            for task in self._task(cell.chooser, point, seed, path, OF_TRIAL)
        ]

    def _chosen(self, cell: Cell, seed: int, *, keep: bool = False) -> list[Task]:
        """The run of the chosen setting, or what has to be run before it."""
        settings = cell.choice()
        if settings is None:
            return self._trials(cell)
        keep = keep or cell.arm in cell.plan.starts
        return self._task(cell, settings, seed, cell.result(seed), OF_RUN, keep=keep)

    def _task(
        self,
        cell: Cell,
        settings: Settings,
        seed: int,
        target: Path,
        parts: tuple[str, ...],
        *,
        keep: bool = False,
    ) -> list[Task]:
        """One run, or what has to be run before it."""
        if cell.arm in self.wrong:
            return []
        shown = cell.config(settings, seed)
        values = json.loads(json.dumps(shown))
        values["data"]["path"] = str(self.data / values["data"]["path"])
        if cell.start is not None:
            if not self._made(cell.start, seed):
                told = read(cell.start.result(seed))
                failed = told is not None and "failed" in told
                return [] if failed else self._chosen(cell.start, seed, keep=True)
            values["start_from"] = str(self._kept(cell.start, seed) / "artifact")
        try:
            parse_config(values)
        except ConfigError as error:
            self.wrong[cell.arm] = str(error)
            print(f"{cell} is left out: {error}", file=sys.stderr)
            return []
        return [Task(shown, values, target, parts, self._kept(cell, seed) if keep else None)]

    def _made(self, cell: Cell, seed: int) -> bool:
        """Whether the cache has the artifact that the JSON of the chosen setting's run names, and
        this version of loractr reads it."""
        settings, kept = cell.choice(), self._kept(cell, seed)
        if settings is None or read(kept / MADE_BY) != cell.config(settings, seed):
            return False
        manifest, told = read(kept / "artifact" / MANIFEST), read(cell.result(seed))
        if not manifest or not told or manifest.get("base") != told.get("artifact"):
            return False
        try:
            parse_config(read(kept / "artifact" / "config.json") or {})
        except ConfigError:
            if kept not in self.foreign:
                self.foreign.add(kept)
                print(f"{kept} is of another version, and is made again", file=sys.stderr)
            return False
        return True

    def _kept(self, cell: Cell, seed: int) -> Path:
        return self.cache / cell.plan.folder.resolve().name / cell.run(seed)


def execute(task: Task) -> None:
    """One run; keeps the named parts of its metrics.json and the configuration. A run that raises
    leaves a JSON as well, with what it said."""
    with tempfile.TemporaryDirectory() as folder:
        out, before = Path(folder) / "run", time.process_time()
        try:
            run(parse_config(task.values), out, thread_count=1)
        except (OSError, MemoryError):
            raise  # the machine's fault, not the method's
        except Exception as error:  # a table has to say so, whatever it is
            told: dict[str, Any] = {"failed": f"{type(error).__name__}: {error}"}
        else:
            metrics = json.loads((out / "metrics.json").read_text())
            metrics["seconds"]["processor"] = time.process_time() - before
            told = {name: metrics[name] for name in task.parts}
            if metrics["start_from"] is not None:
                told["start_from"] = metrics["start_from"]["sha256"]
            if task.keep is not None:
                told["artifact"] = _keep(out / "artifact", task.keep, task.shown)
    _write(task.target, {"config": task.shown, **told})
    print(task.target, "failed" if "failed" in told else "", flush=True)


def _keep(artifact: Path, folder: Path, shown: Settings) -> str:
    """Move an artifact into the cache; the SHA-256 of its base model, as runs that start from it
    tell it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.move(artifact, folder / "artifact")
    _write(folder / MADE_BY, shown)
    return Contents.open(folder / "artifact").manifest.base


def _write(path: Path, values: Settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(values, indent=1) + "\n")
    aside.replace(path)


def work(plan: Plan, queue: Queue, jobs: int) -> None:
    """Run all that is open, `jobs` side by side, until nothing is."""
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=os.nice, initargs=(10,)) as pool:
        running: dict[Future[None], Path] = {}
        while True:
            for task in queue.open():
                if len(running) < jobs and task.target not in running.values():
                    running[pool.submit(execute, task)] = task.target
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                future.result()
            write_choices(plan)
            write_readme(plan)


def write_choices(plan: Plan) -> None:
    """What was chosen, beside the trials that chose it."""
    for cell in {cell.chooser for cell in plan.cells() if cell.plan is plan}:
        path, settings = plan.results / "chosen" / f"{cell}.json", cell.choice()
        if settings is not None and read(path) != {"settings": settings}:
            _write(path, {"settings": settings})


def checked(folder: Path) -> Plan:
    """The plan of a folder, if what lies in its results/ was made by it.

    Raises:
        PlanError: it was not, or the plan contradicts itself.
    """
    plan = Plan.read(folder)
    stale = [path for one in (plan, *plan.others.values()) for path in one.stale()]
    if stale:
        listed = "\n  ".join(str(path) for path in stale)
        raise PlanError(f"made by another plan: remove them, or mend the plan\n  {listed}")
    return plan


def main() -> None:
    """Trials, choices, seeds, tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--table", action="store_true", help="run nothing, write the README anew")
    parser.add_argument("--again", action="store_true", help="forget failed runs first")
    default = os.environ.get("LORACTR_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the data sets")
    given = parser.parse_args()
    plan = checked(given.folder)
    if given.again:
        for path in plan.results.rglob("*.json"):
            if "failed" in (read(path) or {}):
                path.unlink()
    cells = [c for c in plan.cells(given.arms, given.variants) if c.plan is plan]
    queue = Queue(cells, given.data, cache_folder() / "experiments")
    if not given.table:
        work(plan, queue, given.jobs)
    write_choices(plan)
    write_readme(plan)
    if queue.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
