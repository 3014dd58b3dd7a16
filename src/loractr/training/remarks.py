"""What the numbers of finished runs do not show, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loractr.errors import some
from loractr.stage import Stage
from loractr.training.events import StageResult
from loractr.training.fit import History

_REASON = "no validation was better than its start"


def undone(
    base: History, domains: Mapping[str, History], stages: Sequence[Stage], *, mixed: bool
) -> list[str]:
    """A sentence for each stage that changed nothing, as `keep_start` asks for: in the whole model,
    in some domains' adapters, or in some domains' own models.

    Args:
        base: What happened to the shared model.
        domains: Domain → what happened to its own model.
        stages: The recipe of the shared model.
        mixed: Whether mixers act in it.
    """
    recipe = {stage.name: stage for stage in stages}
    shared = [
        sentence
        for result in base.stages
        for sentence in _of_shared(result, recipe[result.stage], mixed=mixed)
    ]
    return [*shared, *_of_domains(domains)]


def _of_shared(result: StageResult, stage: Stage, *, mixed: bool) -> Iterator[str]:
    if result.kept_start:
        effect = ""
        if stage.independent:
            effect = "; its adapters have no effect"
        elif stage.route == "mixed" and not mixed:
            effect = "; its mixers do not act"
        yield f"stage {result.stage} changed nothing: {_REASON}{effect}"
    elif stage.keep_start:
        kept = [name for name, told in result.domains.items() if told["epoch"] == 0]
        if kept:
            yield (
                f"stage {result.stage}: in {len(kept)} of {len(result.domains)} domains"
                f" ({some(kept)}) the adapters were undone: {_REASON}"
            )


def _of_domains(domains: Mapping[str, History]) -> Iterator[str]:
    """Whole models of single domains, stage by stage."""
    kept: dict[str, list[str]] = {}
    for domain, history in domains.items():
        for result in history.stages:
            if result.kept_start:
                kept.setdefault(result.stage, []).append(domain)
    for stage, names in kept.items():
        yield (
            f"stage {stage} changed nothing in {len(names)} of {len(domains)} domains"
            f" ({some(names)}): {_REASON}"
        )


def shared_start(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the deviation between runs of several seeds does not contain: that of a model which they
    all start from.

    Args:
        summaries: What metrics.json holds, of each run.
    """
    starts = [summary.get("start_from") or {} for summary in summaries]
    if len(starts) < 2 or len({start.get("sha256") for start in starts}) > 1 or not starts[0]:
        return []
    return [
        f"the seeds share their start {starts[0]['path']}: the standard deviation does not contain"
        " that of the start"
    ]
