"""`loractr train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loractr.cli.console import say, show, show_json
from loractr.cli.options import AsJson, ConfigFile, Overrides, Plain
from loractr.errors import UsageError

if TYPE_CHECKING:
    from loractr.config import RunConfig


def train(
    config: ConfigFile,
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder of the run; new or empty.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN.")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Train with this many seeds, into RUN/seed-….")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="With --seeds: runs side by side.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run would be; needs no RUN.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:0, …")] = "cpu",
    as_json: AsJson = False,
    plain: Plain = False,
) -> None:
    """Prepare, train, evaluate, save: raw files in, RUN with metrics and artifact out."""
    from loractr.config import load_config

    loaded = load_config(config, overrides or ())
    if dry_run:
        _plan(loaded, threads, as_json=as_json, plain=plain)
        return
    if out is None:
        raise UsageError("train needs a folder for the run.", fix="add --out RUN.")
    if resume:
        _check_begun(out, "config.yaml" if seeds is None else "seed-*/config.yaml")
    _check_device(device)
    if seeds is None:
        if jobs is not None:
            raise UsageError(f"--jobs {jobs} means nothing for one run.", fix="add --seeds N.")
        _one(
            loaded, out, resume=resume, threads=threads, device=device, as_json=as_json, plain=plain
        )
        return
    _several(
        loaded,
        out,
        seeds,
        jobs or 1,
        resume=resume,
        threads=threads,
        device=device,
        as_json=as_json,
        plain=plain,
    )


def _one(
    config: "RunConfig",
    out: Path,
    *,
    resume: bool,
    threads: int | None,
    device: str,
    as_json: bool,
    plain: bool,
) -> None:
    from loractr.evaluation import division_table, runs_table
    from loractr.run import run
    from loractr.tracking import ProgressBar

    with ProgressBar() as bar:
        metrics = run(
            config, out, resume=resume, callbacks=(bar,), thread_count=threads, device=device
        )
    if as_json:
        show_json(_written(out))
        return
    tables = [division_table(metrics, name) for name in metrics.divisions]
    show(tables or [runs_table({out.name: metrics})], plain=plain)
    for remark in _written(out).get("warnings", ()):  # older runs have none
        say(remark)
    say(f"run: {out}\nartifact: {out / 'artifact'}")


def _several(
    config: "RunConfig",
    out: Path,
    seeds: int,
    jobs: int,
    *,
    resume: bool,
    threads: int | None,
    device: str,
    as_json: bool,
    plain: bool,
) -> None:
    from loractr.evaluation import runs_table
    from loractr.run import run_seeds

    results = run_seeds(
        config,
        out,
        seeds=seeds,
        jobs=jobs,
        resume=resume,
        thread_count=threads,
        device=device,
    )
    names = [f"seed-{config.seed + place}" for place in range(seeds)]
    written = {name: _written(out / name) for name in names}
    if as_json:
        show_json(written)
    else:
        show([runs_table(dict(zip(names, results, strict=True)))], plain=plain)
    for remark in _remarks(written):
        say(remark)
    say(f"runs: {out}")


def _remarks(written: dict[str, Any]) -> list[str]:
    """What the runs say, each sentence once, with the seeds that do not share it with all others;
    then what they say together."""
    from loractr.errors import some
    from loractr.training.remarks import shared_start

    saying: dict[str, list[str]] = {}
    for name, summary in written.items():
        for remark in summary.get("warnings", ()):
            saying.setdefault(remark, []).append(name)
    return [
        *(
            r if len(names) == len(written) else f"{some(names)}: {r}"
            for r, names in saying.items()
        ),
        *shared_start(list(written.values())),
    ]


def _plan(config: "RunConfig", threads: int | None, *, as_json: bool, plain: bool) -> None:
    from loractr.cli.describe import plan_tables
    from loractr.environment import threads as computing_with
    from loractr.run import dry_run

    with computing_with(threads):
        plan = dry_run(config)
    if as_json:
        show_json(plan)
    else:
        show(plan_tables(plan), plain=plain)
        for remark in plan["warnings"]:
            say(remark)


def _check_begun(out: Path, written: str) -> None:
    """A misspelt folder would begin the run anew, in silence."""
    if not any(out.glob(written)):
        why = "holds no run" if out.is_dir() else "is not there"
        raise UsageError(
            f"{out} {why}: nothing to resume.",
            fix="correct the name of the folder, or leave out --resume to begin a run in it.",
        )


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # unknown, not built in, or not there
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used: {reason}", fix="use cpu.") from error


def _written(run: Path) -> Any:
    import json

    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))
