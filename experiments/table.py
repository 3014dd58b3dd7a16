"""Results as Markdown: published beside ours, and paired differences with their intervals."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from plan import Cell, Plan, read, short

BEGIN, END = "<!-- results: written by experiments/run.py -->", "<!-- end of results -->"

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom."""


def write_readme(plan: Plan) -> None:
    """Put the tables between their marks in the README."""
    readme = plan.folder / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n{tables(plan)}\n{END}{after}"
    if text != readme.read_text():
        aside = readme.with_suffix(".partial")
        aside.write_text(text)
        aside.replace(readme)


def tables(plan: Plan) -> str:
    """All that a README shows of the results."""
    if "counts" in plan.values:
        parts = [_counts(plan)]
    else:
        parts = [_by_arm(plan) if plan.variants == (None,) else _by_variant(plan)]
    parts += [_choices(plan), *(_differences(plan, name) for name in plan.measures)]
    return "\n\n".join(part for part in [*parts, _failures(plan)] if part)


def _by_arm(plan: Plan) -> str:
    first, *others = plan.measures
    rows = [["arm", f"published {first}", first, *others, "parameters", "seconds", "seeds"]]
    for arm, told in plan.arms.items():
        cell = plan.cell(arm)
        rows.append([arm, _published(told.get("published")), *_measured(plan, cell)])
    return _markdown(rows, left=1)


def _measured(plan: Plan, cell: Cell) -> list[str]:
    runs = _runs(cell)
    if not runs:
        return [_missing(cell), *[""] * (len(plan.measures) + 2)]
    shown = [spread([at(run, path) for run in runs.values()]) for path in plan.measures.values()]
    seconds = statistics.mean(_seconds(run) for run in runs.values())
    parameters = _parameters(next(iter(runs.values())))
    return [*shown, f"{parameters:,}", f"{seconds:.0f}", str(len(runs))]


def _by_variant(plan: Plan) -> str:
    """Arms and measures downwards, variants across, their mean last."""
    rows = [["arm", "", *(str(variant) for variant in plan.variants), "mean"]]
    first = next(iter(plan.measures))
    for arm, told in plan.arms.items():
        cells = [plan.cell(arm, variant) for variant in plan.variants]
        figures = told.get("published", {})
        published = [figures.get(variant) for variant in plan.variants]
        if any(published):
            mean = statistics.mean(published) if all(published) else None
            shown = [_published(value) for value in (*published, mean)]
            rows.append([arm, f"published {first}", *shown])
        for name, path in plan.measures.items():
            found = [[at(run, path) for run in _runs(cell).values()] for cell in cells]
            shown = [
                spread(values) if values else _missing(cell)
                for values, cell in zip(found, cells, strict=True)
            ]
            means = [statistics.mean(values) for values in found if values]
            whole = f"{statistics.mean(means):.4f}" if len(means) == len(cells) else ""
            rows.append([arm, name, *shown, whole])
        for name, number in (("parameters", _parameters), ("seconds", _seconds)):
            numbers = [[number(run) for run in _runs(cell).values()] for cell in cells]
            shown = [f"{statistics.mean(values):,.0f}" if values else "" for values in numbers]
            rows.append([arm, name, *shown, ""])
    return _markdown(rows, left=2)


def _choices(plan: Plan) -> str:
    """What was chosen on validation, of how many."""
    lines = []
    for cell in dict.fromkeys(cell.chooser for cell in plan.cells()):
        trials, choice = cell.trials, cell.choice() or {}
        if trials:
            done = sum(path.exists() for path in trials)
            words = ", ".join(f"{short(key)} {value}" for key, value in choice.items())
            lines.append(f"- `{cell}`: {words or 'open'} ({done} of {len(trials)} trials)")
    return "Chosen on validation:\n\n" + "\n".join(lines) if lines else ""


def _differences(plan: Plan, measure: str) -> str:
    """Mean over seeds of the difference to each reference, with the 95 % t-interval. References
    stand across; with variants downwards, and the variants across."""
    arms, references = plan.arms, plan.references
    if plan.variants == (None,):
        left, head = 1, ["arm", *(f"minus {reference}" for reference in references)]
        rows = [[a, *(_difference(plan, a, r, None, measure) for r in references)] for a in arms]
    else:
        left, head = 2, ["arm", "minus", *(str(variant) for variant in plan.variants)]
        rows = [
            [a, r, *(_difference(plan, a, r, variant, measure) for variant in plan.variants)]
            for r in references
            for a in arms
        ]
    rows = [row for row in rows if any(row[left:])]
    title = f"Paired differences in {measure}, seed by seed, with 95 % t-intervals:\n\n"
    return title + _markdown([head, *rows], left=left) if rows else ""


def _difference(plan: Plan, arm: str, reference: str, variant: str | None, measure: str) -> str:
    """Nothing of an arm and itself, and where the pair is told already with its sign turned."""
    references = plan.references
    if arm in references[: references.index(reference) + 1]:
        return ""
    one, two = plan.cell(arm, variant), plan.cell(reference, variant)
    values = paired(one, two, plan.measures[measure])
    return interval(values) if values else ""


def paired(one: Cell, two: Cell, path: str) -> list[float]:
    """Differences of a measure, one for each seed that both have run."""
    ours, theirs = _runs(one), _runs(two)
    return [at(ours[seed], path) - at(theirs[seed], path) for seed in ours if seed in theirs]


def _counts(plan: Plan) -> str:
    """Numbers of parameters, and their shares of the whole model and of its part behind the
    embeddings, both of the first arm."""
    rows = [["module", "published", "ours", "of all", "of tower and output", "counted in"]]
    whole = _runs(plan.cell(next(iter(plan.arms))))
    base = next(iter(whole.values()))["parameters"] if whole else None
    for row in plan.values["counts"]:
        runs = list(_runs(plan.cell(row["arm"])).values())
        start = [row["module"], row["published"]]
        if not runs or base is None:
            rows.append([*start, "not run", "", "", ""])
            continue
        count = at(runs[0], row["path"])
        shares = [f"{100 * count / base[part]:.2f} %" for part in ("total", "backbone")]
        rows.append([*start, f"{count:,}", *shares, f"`{row['arm']}`: `{row['path']}`"])
    return _markdown(rows, left=1)


def _failures(plan: Plan) -> str:
    """What the failed runs said."""
    found = {path: read(path) for cell in plan.cells() for path in cell.files}
    lines = [
        f"- `{path.stem}`: {told['failed'].splitlines()[0]}"
        for path, told in found.items()
        if told is not None and "failed" in told
    ]
    return "Failed:\n\n" + "\n".join(lines) if lines else ""


def _runs(cell: Cell) -> dict[int, dict[str, Any]]:
    """Seed → the run's JSON, of the runs that are done and did not fail."""
    found = {seed: read(cell.result(seed)) for seed in cell.seeds if cell.done(seed)}
    return {seed: told for seed, told in found.items() if told and "failed" not in told}


def _missing(cell: Cell) -> str:
    told = (read(path) for path in cell.files)
    return "failed" if any(one is not None and "failed" in one for one in told) else "not run"


def _parameters(run: dict[str, Any]) -> int:
    return int(run["parameters"]["total"])


def _seconds(run: dict[str, Any]) -> float:
    """Processor seconds of the run; of an older one the wall clock's, on a shared machine."""
    seconds = run["seconds"]
    return float(seconds.get("processor", seconds["train"]))


def at(run: dict[str, Any], path: str) -> Any:
    """The value at a dotted path."""
    value: Any = run
    for key in path.split("."):
        value = value[key]
    return value


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; of one value, the value."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{mean} (1 seed)"


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t-interval: mean ± t(n - 1) s / √n."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:+.4f} (1 seed)"
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def _published(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _markdown(rows: list[list[str]], *, left: int) -> str:
    """The first row is the head; the first `left` columns are text."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    width = len(rows[0])
    rule = "|" + "|".join(["---"] * left + ["--:"] * (width - left)) + "|"
    return "\n".join([head, rule, *body])
