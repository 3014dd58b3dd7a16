"""The whole way as one function: configuration → prepared data → fits → metrics and artifact."""

import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
import torch

from loractr import native
from loractr.artifact import save
from loractr.artifact.base import Base, read_base, start_of
from loractr.config import RunConfig
from loractr.data import profile
from loractr.data.fingerprint import Identity
from loractr.data.prepare import cached
from loractr.data.store import Prepared
from loractr.environment import cache_folder, threads
from loractr.errors import CheckpointError, UsageError
from loractr.evaluation import Metrics, evaluate, label_remarks
from loractr.model import count_parameters
from loractr.predict import assembled_logits, tabulate
from loractr.search import match_parameters
from loractr.stage import Stage
from loractr.training import fit
from loractr.training.checkpoint import write_file
from loractr.training.events import Callback, StageResult
from loractr.training.fit import check_precision
from loractr.training.fits import Data, Trained, build_model, ready_vectors, train
from loractr.training.remarks import undone
from loractr.training.run_folder import (
    begin,
    check_data,
    check_environment,
    note_data,
    nothing_left_of_a_false_start,
    refuse_what_is_there,
    run_environment,
)

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    thread_count: int | None = None,
    device: str = "cpu",
) -> Metrics:
    """Prepare, train, evaluate, save: everything of one run, into the folder `out`.

    `out` holds config.yaml, history.jsonl, predictions.parquet (test rows), artifact/ and, written
    last, metrics.json; checkpoint/ while it runs. The same configuration on the same machine gives
    the same metrics; `resume` continues a run that was killed at any moment.

    Args:
        config: The run.
        out: A folder that is empty or does not exist; with `resume`, of the interrupted run.
        resume: Go on with the run in `out`; one that is finished already is left as it is.
        callbacks: Called with each event of the training loop.
        thread_count: Threads to compute with; torch's choice when absent.
        device: Where the model trains, e.g. "cpu" or "cuda:0".

    Returns: the metrics on test rows.

    Raises:
        UsageError: `out` is not empty, or holds a run with another configuration.
        ConfigError: the model of `start_from` has other fields or another shape; this processor
            cannot do what a stage asks for.
        LoractrError: whatever goes wrong on the way.
    """
    if begin(config, out, resume):
        return _finished(out)
    with threads(thread_count), native.use(config.kernels), nothing_left_of_a_false_start(out):
        _check_precision(config, device)
        _start_folder(config)
        started = time.perf_counter()
        identity = Identity.of(config.data)
        check_data(out, identity)
        prepared = cached(config.data, cache_folder() / "prepared", identity)
        seconds = {"prepare": time.perf_counter() - started}
        for remark in _about_labels(config, prepared):
            log.warning("%s", remark)
        config = _sized(config, prepared)
        note_data(out, identity)
        check_environment(out, device)
        started = time.perf_counter()
        data = Data.of(prepared)
        base = _start(config, prepared, out / "checkpoint")
        trained = train(
            config,
            data,
            out,
            start=None if base is None else base.tensors,
            callbacks=callbacks,
            device=device,
        )
        seconds["train"] = time.perf_counter() - started
        return _conclude(config, data, trained, out, seconds, base)


def run_seeds(
    config: RunConfig,
    out: Path,
    *,
    seeds: int,
    jobs: int = 1,
    resume: bool = False,
    thread_count: int | None = None,
    device: str = "cpu",
) -> list[Metrics]:
    """The same run with seeds `config.seed`, `config.seed + 1`, …, into out/seed-<seed>.

    Args:
        config: The run; its data split does not depend on the seed.
        out: Folder of the runs.
        seeds: How many, ≥ 1.
        jobs: Runs side by side, each in a process of its own.
        resume: Go on where an interrupted call stopped; finished runs are left as they are.
        thread_count: Threads of each run; with several jobs, 1 when absent.
        device: Where the models train.

    Raises:
        UsageError: `seeds` or `jobs` below 1, `out` is not empty, or what `run` raises.
    """
    if seeds < 1 or jobs < 1:
        raise UsageError(f"seeds and jobs must be 1 or more, not {seeds} and {jobs}.")
    if not resume:
        refuse_what_is_there(out)
    if jobs > 1 and thread_count is None:
        thread_count = 1
    _check_precision(config, device)
    tasks = []
    for seed in range(config.seed, config.seed + seeds):
        folder = out / f"seed-{seed}"
        seeded = config.model_copy(update={"seed": seed})
        _start_folder(seeded)
        tasks.append((seeded, folder, resume, thread_count, device, native.chosen()))
    cached(config.data, cache_folder() / "prepared")  # once, before the runs want it all together
    if jobs == 1:
        return [_one_seed(*task) for task in tasks]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_one_seed, *zip(*tasks, strict=True)))


def dry_run(config: RunConfig, *, steps: int = 50) -> dict[str, Any]:
    """What a run would be: schema, parameter counts, measured rows/s and a time estimate.

    Prepares the data (kept for the run itself) and trains a copy of the model for a few steps.
    """
    data = Data.of(cached(config.data, cache_folder() / "prepared"))
    config = _sized(config, data.prepared)
    base = _start(config, data.prepared)
    model = build_model(config, data)
    recipe = (*config.stages(), *_first_domain_stages(config, data))[0 if base is None else 1 :]
    batches = math.ceil(len(data.train) / config.training.batch_size)
    short = {"epochs": min(steps / batches, 1.0), "keep_start": False, "independent": False}
    probe = recipe[0].model_copy(update={**short, "rows": None, "trains": ("*",)})
    with native.use(config.kernels):
        speed = fit(model, data, (probe,), seed=config.seed).stages[0].rows_per_second
    epoch = len(data.train) / speed
    return {
        "schema": data.schema.model_dump(mode="json"),
        "rows": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
        "hidden_sizes": list(config.model.hidden_sizes),
        "parameters": count_parameters(config, model, len(config.method.owners(data.schema))),
        "stages": [stage.name for stage in recipe],
        "rows_per_second": speed,
        "seconds_per_epoch": epoch,
        "most_seconds": epoch * sum(stage.epochs for stage in recipe),
        "warnings": _about_labels(config, data.prepared),
    }


def _one_seed(
    config: RunConfig,
    folder: Path,
    resume: bool,
    thread_count: int | None,
    device: str,
    kernels: native.Choice,
) -> Metrics:
    with native.use(kernels):  # of the caller: a new process knows nothing of them
        return run(config, folder, resume=resume, thread_count=thread_count, device=device)


def _first_domain_stages(config: RunConfig, data: Data) -> tuple[Stage, ...]:
    owners = config.method.owners(data.schema)
    if not owners:
        return ()
    return config.domain_stages(config.method.natural(data.schema), owners[0])


def _check_precision(config: RunConfig, device: str) -> None:
    """Before hours of preparation rather than after them."""
    check_precision((*config.stages(), *config.domain_stages("", "")), torch.device(device))


def _sized(config: RunConfig, prepared: Prepared) -> RunConfig:
    """The run with the hidden sizes that `model.parameters` asks for."""
    target = config.model.parameters
    if target is None:
        return config
    vectors = ready_vectors(prepared)
    sized = match_parameters(config, prepared.schema, target, pretrained=vectors)
    log.info("hidden_sizes %s for %d weights", list(sized.model.hidden_sizes), target)
    return sized


def _about_labels(config: RunConfig, prepared: Prepared) -> list[str]:
    return label_remarks(prepared.manifest["splits"], config.training.select)


def _start_folder(config: RunConfig) -> Path | None:
    return None if config.start_from is None else start_of(config.start_from, config.seed)


def _start(config: RunConfig, prepared: Prepared, checkpoints: Path | None = None) -> Base | None:
    """The model that the run starts with; one that was interrupted goes on with the same only."""
    folder = _start_folder(config)
    if folder is None:
        return None
    base = read_base(folder, config.model, prepared.encoders)
    if checkpoints is None:
        return base
    path = checkpoints / "start_from.sha256"
    if path.exists() and path.read_text() != base.digest:
        raise CheckpointError(
            f"{folder} is another model than when this run began.",
            fix="train into a new folder, or put the former model back.",
        )
    write_file(path, base.digest.encode())
    return base


def _finished(out: Path) -> Metrics:
    log.info("%s is finished already", out)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # where it was killed just before this
    schema = json.loads((out / "artifact" / "schema.json").read_text())
    divisions = {division["name"]: division["domains"] for division in schema["divisions"]}
    return evaluate(pl.read_parquet(out / "predictions.parquet"), divisions)


def _conclude(
    config: RunConfig,
    data: Data,
    trained: Trained,
    out: Path,
    seconds: dict[str, float],
    base: Base | None,
) -> Metrics:
    """Score validation and test rows (test for the first and only time), save, write metrics."""
    scored = {name: _predict(config, data, trained, name) for name in ("test", "validation")}
    divisions = {division.name: division.domains for division in data.schema.divisions}
    metrics = {name: evaluate(table, divisions) for name, table in scored.items()}
    prepared: Prepared = data.prepared
    shutil.rmtree(out / "artifact", ignore_errors=True)
    save(
        trained.model,
        data.schema,
        prepared.encoders,
        out / "artifact",
        config=config,
        domain_models=trained.domain_models,
        metrics=metrics,
        profile=profile.read(prepared.path),
    )
    aside = out / ".predictions.parquet.partial"
    scored["test"].write_parquet(aside)
    aside.replace(out / "predictions.parquet")
    summary = {
        **{name: found.as_dict() for name, found in metrics.items()},
        "selection": _selection(trained),
        "parameters": _parameters(config, trained),
        "seconds": seconds,
        "rows_per_second": _by_stage(trained, "rows_per_second", statistics.mean),
        "optimizer": {stage.stage: stage.optimizer for stage in trained.results},
        "seed": config.seed,
        "start_from": _origin(config, base),
        "warnings": [*_about_labels(config, prepared), *_undone(config, trained)],
        "versions": run_environment(),
    }
    write_file(out / "metrics.json", (json.dumps(summary, indent=2) + "\n").encode())
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    return metrics["test"]


def _predict(config: RunConfig, data: Data, trained: Trained, split: str) -> pl.DataFrame:
    division = config.method.natural(data.schema) if data.schema.divisions else None
    rows = getattr(data, split)
    logit = assembled_logits(trained.model, trained.domain_models, rows, data.schema, division)
    return tabulate(logit, rows, data.schema)


def _selection(trained: Trained) -> dict[str, Any]:
    """What the last stage selected; per domain where each domain selects by itself."""
    last = trained.results[-1]
    domains = {
        name: {"epoch": told.stages[-1].epoch, "metric": told.stages[-1].metric}
        for name, told in trained.domains.items()
    }
    return {
        "metric": last.metric,
        "stage": last.stage,
        "epoch": last.epoch,
        "kept_start": last.kept_start,
        "stages": [_without_speed(stage) for stage in trained.base.stages],
        "domains": domains or last.domains,
    }


def _undone(config: RunConfig, trained: Trained) -> list[str]:
    mixed = trained.model.routing.mixed
    return undone(trained.base, trained.domains, config.stages(), mixed=mixed)


def _without_speed(stage: StageResult) -> dict[str, Any]:
    """What is the same in every run of one configuration; speeds have their own place."""
    return {name: value for name, value in stage.dump().items() if name != "rows_per_second"}


def _origin(config: RunConfig, base: Base | None) -> dict[str, str] | None:
    """What the run started from: where it lay, and its SHA-256, which outlives the place."""
    return None if base is None else {"path": str(_start_folder(config)), "sha256": base.digest}


def _parameters(config: RunConfig, trained: Trained) -> dict[str, Any]:
    """Numbers of parameters of everything that was trained: the shared model, each domain's own."""
    counts = count_parameters(config, trained.model, len(trained.domain_models))
    return {**counts, "trainable_by_stage": _by_stage(trained, "trainable", sum)}


def _by_stage(trained: Trained, name: str, over_fits: Callable[[list[Any]], Any]) -> dict[str, Any]:
    """A number of every stage; where several fits have the stage, over all of them."""
    found: dict[str, list[Any]] = {}
    for result in trained.results:
        found.setdefault(result.stage, []).append(getattr(result, name))
    return {stage: over_fits(values) for stage, values in found.items()}
