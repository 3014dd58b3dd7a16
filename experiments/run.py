"""Run an experiment's plan: choose settings on validation, then score test once per seed.

    python experiments/run.py experiments/moe_mlora-table1 [--jobs 2] [--data ../shared/data]

Every run is one JSON file in the experiment's results/ and is skipped when it is there, so the
script can be stopped and started at any time. `trials/` holds the runs that choose (validation
numbers only: a run always scores its test rows, but a trial's test numbers are thrown away unread),
`results/` itself the chosen setting, seed by seed. At the end the table in the experiment's README
is written anew.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from loractr.config import parse_config
from loractr.run import run

BEGIN, END = "<!-- results: written by experiments/run.py -->", "<!-- end of results -->"

OF_TRIAL = ("validation", "selection", "seconds")
OF_RUN = ("test", *OF_TRIAL, "parameters", "rows_per_second", "seed", "versions")
"""Parts of metrics.json that are kept of a run."""

Settings = dict[str, Any]


def settings_of(plan: Settings, arm: str) -> list[Settings]:
    """Every point of an arm's grid, as {dotted key: value}."""
    grid: Settings = plan["arms"][arm].get("grid", plan.get("grid", {}))
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def configured(plan: Settings, arm: str, settings: Settings, seed: int, data: Path) -> Settings:
    """The configuration of one run as plain values."""
    values = json.loads(json.dumps(plan["config"]))
    for part, own in plan["arms"][arm].get("config", {}).items():
        values[part] = {**values.get(part, {}), **own}
    for key, value in settings.items():
        place = values
        *path, last = key.split(".")
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    values["data"]["path"] = str(data / values["data"]["path"])
    return {**values, "seed": seed}


def execute(values: Settings, shown_path: str, target: Path, parts: tuple[str, ...]) -> None:
    """One run; keeps the named parts of its metrics.json and the configuration."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run(parse_config(values), out, thread_count=1)
        metrics = json.loads((out / "metrics.json").read_text())
    shown = json.loads(json.dumps(values))
    shown["data"]["path"] = shown_path
    kept = {name: metrics[name] for name in parts}
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(".partial")
    aside.write_text(json.dumps({"config": shown, **kept}, indent=1) + "\n")
    aside.replace(target)
    print(target, flush=True)


def name_of(arm: str, settings: Settings) -> str:
    """File name of a trial."""
    parts = [f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()]
    return "_".join([arm, *parts])


def judged(trial: Path, select: str, division: str) -> float:
    """Validation value of a trial, larger is better."""
    found = json.loads(trial.read_text())["validation"]
    if select == "pooled_auc":
        return float(found["pooled"]["auc"])
    if select == "log_loss":
        return -float(found["pooled"]["log_loss"])
    return float(found["divisions"][division][select])


def table(folder: Path, plan: Settings) -> str:
    """The results as Markdown: published beside ours, mean ± standard deviation over seeds."""
    where = plan["measure"].split(".")
    lines = [
        f"| arm | published {plan['shown']} | {plan['shown']} | log loss | seeds | chosen |"
        " seconds |",
        "|---|--:|--:|--:|--:|---|--:|",
    ]
    for arm, told in plan["arms"].items():
        files = sorted((folder / "results").glob(f"{arm}_*.json"))
        results = [json.loads(file.read_text()) for file in files]
        if not results:
            lines.append(f"| {arm} | {told.get('published', '–')} | not run | | | | |")
            continue
        values, losses = [], []
        for result in results:
            value: Any = result
            for key in where:
                value = value[key]
            values.append(value)
            losses.append(result["test"]["pooled"]["log_loss"])
        chosen = json.loads((folder / "results" / "chosen" / f"{arm}.json").read_text())["settings"]
        words = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())
        seconds = statistics.mean(result["seconds"]["train"] for result in results)
        lines.append(
            f"| {arm} | {told.get('published', '–')} | {spread(values)} | {spread(losses)} |"
            f" {len(results)} | {words or '–'} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def write_table(folder: Path, plan: Settings) -> None:
    """Put the table between its marks in the README."""
    readme = folder / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{table(folder, plan)}\n{END}{after}")


def main() -> None:
    """Trials, choice, seeds, table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--arms", nargs="*")
    default = os.environ.get("LORACTR_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the data sets")
    given = parser.parse_args()
    folder: Path = given.folder
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    arms = given.arms or list(plan["arms"])
    shown = plan["config"]["data"]["path"]
    select, division = plan["config"]["training"]["select"], plan["division"]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        for arm in arms:
            points = settings_of(plan, arm)
            trials = {folder / "results" / "trials" / f"{name_of(arm, p)}.json": p for p in points}
            jobs = [
                pool.submit(
                    execute,
                    configured(plan, arm, point, plan["seeds"][0], given.data),
                    shown,
                    target,
                    OF_TRIAL,
                )
                for target, point in trials.items()
                if len(points) > 1 and not target.exists()
            ]
            for job in jobs:
                job.result()
            best = points[0]
            if len(points) > 1:
                best = trials[max(trials, key=lambda t: judged(t, select, division))]
            chosen = folder / "results" / "chosen" / f"{arm}.json"
            chosen.parent.mkdir(parents=True, exist_ok=True)
            chosen.write_text(json.dumps({"settings": best}, indent=1) + "\n")
            finals = {s: folder / "results" / f"{arm}_seed-{s}.json" for s in plan["seeds"]}
            jobs = [
                pool.submit(
                    execute,
                    configured(plan, arm, best, seed, given.data),
                    shown,
                    target,
                    OF_RUN,
                )
                for seed, target in finals.items()
                if not target.exists()
            ]
            for job in jobs:
                job.result()
            write_table(folder, plan)
    shutil.rmtree(folder / "results" / "partial", ignore_errors=True)


if __name__ == "__main__":
    main()
