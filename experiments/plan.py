"""A plan as it stands in plan.yaml: arms, variants, grids, and where each run's JSON lies.

Pure functions of the plan and of the JSON files in results/: nothing is trained here.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

Settings = dict[str, Any]
"""Dotted key of a configuration → value, e.g. {"training.learning_rate": 0.001}."""

KEYS = {"config", "variants", "choose_on", "division", "measures", "grid", "seeds", "arms"}
KEYS |= {"compare_to", "counts"}
ARM_KEYS = {"config", "published", "grid", "start", "seeds", "see", "settings_of"}


class PlanError(ValueError):
    """The plan contradicts itself, or what lies in results/."""


@dataclass(frozen=True, eq=False)
class Plan:
    """plan.yaml and the folder it stands in."""

    folder: Path
    values: Mapping[str, Any]

    @staticmethod
    def read(folder: Path) -> "Plan":
        """Read plan.yaml.

        Raises:
            PlanError: a key is unknown, or names an arm or variant that is not there.
        """
        plan = Plan(folder, yaml.safe_load((folder / "plan.yaml").read_text()))
        problems = list(plan.problems())
        if problems:
            raise PlanError(f"{folder / 'plan.yaml'}: {'; '.join(problems)}")
        return plan

    def problems(self) -> Iterator[str]:
        """Names that mean nothing: they would be ignored in silence."""
        yield from (f"unknown key {key!r}" for key in sorted(self.values.keys() - KEYS))
        if self.values.get("choose_on", self.variants[0]) not in self.variants:
            yield f"choose_on: there is no variant {self.values['choose_on']!r}"
        for name in self.references:
            if name not in self.arms:
                yield f"compare_to: there is no arm {name!r}"
        for name, arm in self.arms.items():
            yield from (
                f"arms.{name}: unknown key {key!r}" for key in sorted(arm.keys() - ARM_KEYS)
            )
            if arm.get("start", name) not in self.arms:
                yield f"arms.{name}: there is no arm {arm['start']!r} to start from"
            if "settings_of" in arm and "grid" in arm:
                yield f"arms.{name}: its settings are those of {arm['settings_of']}; it has no grid"
            if "see" in arm and arm.keys() - {"see", "published"}:
                yield f"arms.{name}: all that it is stands in {arm['see']}, where its runs are"

    @property
    def arms(self) -> Mapping[str, Any]:
        """Arms by name."""
        return self.values["arms"]

    @property
    def variants(self) -> tuple[str | None, ...]:
        """Names of the variants; (None,) where the plan has none."""
        return tuple(self.values.get("variants", {})) or (None,)

    @property
    def references(self) -> list[str]:
        """Arms that the others are compared with, seed by seed."""
        return self.values.get("compare_to", [])

    @property
    def measures(self) -> Mapping[str, str]:
        """Name → dotted path in a run's JSON; published figures are of the first."""
        return self.values.get("measures", {})

    @property
    def results(self) -> Path:
        """Where the JSON files lie."""
        return self.folder / "results"

    def cell(self, arm: str, variant: str | None = None) -> "Cell":
        """A cell; of an arm that another folder has (`see`), that folder's."""
        other = self.arms[arm].get("see")
        return Cell(self if other is None else self.others[other], arm, variant)

    def cells(
        self, arms: list[str] | None = None, variants: list[str] | None = None
    ) -> list["Cell"]:
        """The cells of some arms and variants, of all where none are named.

        Raises:
            PlanError: there is no such arm or variant.
        """
        for asked, known in ((arms, self.arms), (variants, self.variants)):
            missing = [name for name in asked or () if name not in known]
            if missing:
                raise PlanError(f"no such arm or variant: {', '.join(missing)}")
        return [
            self.cell(arm, variant)
            for arm in arms or self.arms
            for variant in variants or self.variants
        ]

    @cached_property
    def others(self) -> dict[str, "Plan"]:
        """The plans of the folders that arms refer to."""
        names = {arm["see"] for arm in self.arms.values() if "see" in arm}
        names |= {folder for folder, _ in self._settings_of()}
        return {name: Plan.read(self.folder.parent / name) for name in names}

    def _settings_of(self) -> Iterator[tuple[str, str]]:
        for arm in self.arms.values():
            if "settings_of" in arm:
                folder, _, other = arm["settings_of"].partition("/")
                yield folder, other

    @cached_property
    def starts(self) -> set[str]:
        """Arms that others start from."""
        return {arm["start"] for arm in self.arms.values() if "start" in arm}

    def stale(self) -> list[Path]:
        """Files of results/ that another plan has made: their runs would not be these."""
        expected = [pair for cell in self.cells() if cell.plan is self for pair in cell.expected()]
        return [
            path
            for path, config in dict(expected).items()
            if (told := read(path)) is not None and told["config"] != config
        ]


@dataclass(frozen=True)
class Cell:
    """One arm on one variant: what a cell of a table is about."""

    plan: Plan
    arm: str
    variant: str | None = None

    def __str__(self) -> str:
        return self.arm if self.variant is None else f"{self.arm}_{self.variant}"

    @property
    def told(self) -> Mapping[str, Any]:
        """What the plan says of the arm."""
        return self.plan.arms[self.arm]

    @property
    def seeds(self) -> list[int]:
        """Its seeds; the first is that of the trials."""
        return self.told.get("seeds", self.plan.values["seeds"])

    @property
    def grid(self) -> list[Settings]:
        """Every point of its grid, or of the grid of the arm whose choice it takes over."""
        if "settings_of" in self.told:
            return self.chooser.grid
        grid: Settings = self.told.get("grid", self.plan.values.get("grid", {}))
        points = itertools.product(*grid.values())
        return [dict(zip(grid, values, strict=True)) for values in points]

    @property
    def chooser(self) -> "Cell":
        """The cell whose trials choose the settings; `settings_of` names one of another folder."""
        if "settings_of" in self.told:
            folder, _, arm = self.told["settings_of"].partition("/")
            other = self.plan.others[folder]
            return other.cell(arm, other.variants[0]).chooser
        return self.plan.cell(self.arm, self.plan.values.get("choose_on", self.variant))

    @property
    def start(self) -> "Cell | None":
        """The cell whose run, with the same seed, it starts from."""
        arm = self.told.get("start")
        return None if arm is None else self.plan.cell(arm, self.variant)

    def config(self, settings: Settings, seed: int) -> Settings:
        """The configuration of one run, as its JSON shows it: `data.path` as in the plan, and
        `start_from` by the name of the run that it starts from."""
        values = json.loads(json.dumps(self.plan.values["config"]))
        variant = self.plan.values.get("variants", {}).get(self.variant, {})
        for own in (variant, self.told.get("config", {})):
            for part, changes in own.items():
                values[part] = {**values.get(part, {}), **changes}
        for key, value in settings.items():
            place = values
            *path, last = key.split(".")
            for name in path:
                place = place.setdefault(name, {})
            place[last] = value
        if self.start is not None:
            values["start_from"] = f"{self.start.plan.folder.name}/{self.start.run(seed)}"
        return {**values, "seed": seed}

    def run(self, seed: int) -> str:
        """Name of a run: of its JSON, and of its folder in the cache."""
        return f"{self}_seed-{seed}"

    def result(self, seed: int) -> Path:
        """JSON of the chosen setting's run with a seed."""
        return self.plan.results / f"{self.run(seed)}.json"

    def done(self, seed: int) -> bool:
        """Whether the run with a seed is there, and started from the run that its start has now."""
        told = read(self.result(seed))
        if told is None or self.start is None or "failed" in told:
            return told is not None
        start = read(self.start.result(seed)) or {}
        return self.start.done(seed) and start.get("artifact") == told.get("start_from")

    def trial(self, settings: Settings) -> Path:
        """JSON of the trial of a point."""
        parts = [str(self), *(f"{short(key)}={value}" for key, value in settings.items())]
        return self.plan.results / "trials" / f"{'_'.join(parts)}.json"

    @property
    def trials(self) -> dict[Path, Settings]:
        """JSON file → point, of the trials that choose; none where there is nothing to choose."""
        chooser, points = self.chooser, self.grid
        return {chooser.trial(p): p for p in points} if len(points) > 1 else {}

    @property
    def files(self) -> list[Path]:
        """All that there is to run: trials, then seeds."""
        return [*self.trials, *(self.result(seed) for seed in self.seeds)]

    def choice(self) -> Settings | None:
        """The point that is best on validation; None while a trial is missing, or all failed."""
        trials = self.trials
        if not trials:
            return self.grid[0]
        found = {path: read(path) for path in trials}
        if None in found.values():
            return None
        whole = {path: told for path, told in found.items() if told and "failed" not in told}
        if not whole:
            return None
        division = self.chooser.plan.values["division"]
        return trials[max(whole, key=lambda path: judged(whole[path], division))]

    def expected(self) -> Iterator[tuple[Path, Settings]]:
        """Each JSON file with the configuration that its run has by this plan."""
        for path, point in self.trials.items():
            yield path, self.chooser.config(point, self.seeds[0])
        choice = self.choice()
        if choice is not None:
            for seed in self.seeds:
                yield self.result(seed), self.config(choice, seed)


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def read(path: Path) -> dict[str, Any] | None:
    """A run's JSON; None where it has not been run."""
    return json.loads(path.read_text()) if path.exists() else None


def judged(trial: dict[str, Any], division: str) -> float:
    """Validation value of a trial by its own `select`, larger is better."""
    select, found = trial["config"]["training"]["select"], trial["validation"]
    if select == "pooled_auc":
        return float(found["pooled"]["auc"])
    if select == "log_loss":
        return -float(found["pooled"]["log_loss"])
    return float(found["divisions"][division][select])
