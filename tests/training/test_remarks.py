"""Stages that changed nothing are told, by themselves and domain by domain."""

from dataclasses import replace

import pytest

from loractr.stage import Stage
from loractr.training.events import StageResult
from loractr.training.fit import History
from loractr.training.remarks import shared_start, undone

RESULT = StageResult(
    stage="adapt",
    metric="mean_auc",
    value=0.7,
    epoch=2.0,
    kept_start=False,
    trainable=10,
    optimizer="Adam",
    rows_per_second=1.0,
    domains={},
)
UNDONE = replace(RESULT, kept_start=True, epoch=0.0)
ADAPT = Stage(name="adapt", independent=True)


def told(*results, stages=(ADAPT,), mixed=False):
    """Of a shared model."""
    return undone(History(stages=list(results)), {}, stages, mixed=mixed)


def by_domain(**epochs):
    """An independent stage in which the domains' best epochs were these."""
    domains = {name: {"epoch": e, "value": 0.6, "metric": "mean_auc"} for name, e in epochs.items()}
    return replace(RESULT, domains=domains)


def test_a_stage_of_adapters_that_changed_nothing():
    assert told(UNDONE) == [
        "stage adapt changed nothing: no validation was better than its start; its adapters have no"
        " effect"
    ]


def test_any_other_stage_that_changed_nothing():
    found = told(replace(UNDONE, stage="retrain"), stages=[Stage(name="retrain")])
    assert found == ["stage retrain changed nothing: no validation was better than its start"]


@pytest.mark.parametrize("mixed", [True, False])
def test_mixers_that_do_not_act(mixed):
    gate = Stage(name="gate", route="mixed")
    (only,) = told(replace(UNDONE, stage="gate"), stages=[gate], mixed=mixed)
    assert ("its mixers do not act" in only) != mixed


def test_domains_whose_adapters_were_undone_are_counted_and_named():
    (only,) = told(by_domain(a=1.0, b=0.0, c=2.5, d=0.0, e=0.5))
    assert only.startswith("stage adapt: in 2 of 5 domains ('b', 'd') the adapters were undone")


def test_many_domains_are_one_bounded_line():
    epochs = {f"d{n}": 0.0 for n in range(1000)}
    (only,) = told(by_domain(first=1.0, **epochs))
    assert "in 1000 of 1001 domains" in only
    assert len(only) < 250


def test_domains_without_a_rule_to_keep_their_start_were_trained():
    """An unjudged domain's epoch is 0 as well, but without `keep_start` its weights moved."""
    keeps_none = ADAPT.model_copy(update={"keep_start": False})
    assert told(by_domain(a=1.0, b=0.0), stages=[keeps_none]) == []


def test_whole_models_of_domains_are_counted_stage_by_stage():
    kept = replace(UNDONE, stage="finetune")
    results = {"a": kept, "b": replace(RESULT, stage="finetune"), "c": kept}
    histories = {name: History(stages=[result]) for name, result in results.items()}
    assert undone(History(), histories, [], mixed=False) == [
        "stage finetune changed nothing in 2 of 3 domains ('a', 'c'): no validation was better than"
        " its start"
    ]


def test_stages_that_learnt_something_are_not_remarked_on():
    assert told(RESULT) == []


def start(digest):
    return {"start_from": {"path": f"runs/{digest}", "sha256": digest}}


def test_seeds_that_share_their_start_say_so():
    (only,) = shared_start([start("x"), start("x")])
    assert only == (
        "the seeds share their start runs/x: the standard deviation does not contain that of the"
        " start"
    )


@pytest.mark.parametrize(
    "summaries",
    [[start("x"), start("y")], [start("x")], [{"start_from": None}] * 2, [{}, {}], []],
)
def test_seeds_with_starts_of_their_own_or_none_do_not(summaries):
    assert shared_start(summaries) == []
