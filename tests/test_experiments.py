"""The experiments' runner: which run is which, what is chosen, what the tables say."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import yaml

from loractr.config import parse_config

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import plan as plans  # noqa: E402
import run as runner  # noqa: E402
import table as tables  # noqa: E402
from plan import Plan, PlanError  # noqa: E402

VALUES: dict[str, Any] = {
    "config": {
        "data": {"source": "synthetic", "path": "log", "synthetic": {"rows": 900, "domains": 2}},
        "model": {"embedding_size": 2, "hidden_sizes": [4]},
        "training": {"batch_size": 128, "epochs": 1, "select": "pooled_auc"},
    },
    "division": "domain",
    "measures": {"AUC": "test.pooled.auc", "log loss": "test.pooled.log_loss"},
    "compare_to": ["mix"],
    "seeds": [0, 1, 2],
    "arms": {
        "mix": {
            "config": {"method": {"name": "mix"}},
            "published": 0.61,
            "grid": {
                "training.learning_rate": [0.1, 0.01],
                "training.stages.train.dropout": [0.0, 0.5],
            },
        },
        "retune": {"config": {"method": {"name": "retune"}}, "start": "mix"},
    },
}
BACKBONES = {"mlp": {"model": {"backbone": "mlp"}}, "deepfm": {"model": {"backbone": "deepfm"}}}


def made(folder: Path, **changes: Any) -> Plan:
    """A plan in a folder of its own, with an empty README."""
    folder.mkdir(exist_ok=True)
    values = {key: value for key, value in (VALUES | changes).items() if value is not None}
    (folder / "plan.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "README.md").write_text(f"before\n{tables.BEGIN}\n{tables.END}\nafter\n")
    return Plan.read(folder)


def write(path: Path, config: dict[str, Any], auc: float, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {"pooled": {"auc": auc, "log_loss": 1 - auc}}
    told = {"test": scores, "validation": scores, "parameters": {"total": 1234, "backbone": 100}}
    path.write_text(json.dumps({"config": config, **told, "seconds": {"train": 2.0}, **more}))


def try_all(plan: Plan, arm: str = "mix", variant: str | None = None) -> None:
    """Trials of an arm, each better than the one before."""
    cell = plan.cell(arm, variant)
    for place, (path, point) in enumerate(cell.trials.items()):
        write(path, cell.chooser.config(point, 0), 0.5 + place / 100)


def digest(seed: int) -> str:
    """Of the artifact of a seed's run, as `keep` leaves it."""
    return f"{seed}" * 64


def run_seeds(plan: Plan, arm: str, aucs: list[float], variant: str | None = None) -> None:
    cell = plan.cell(arm, variant)
    for seed, auc in enumerate(aucs):
        more = {"artifact": digest(seed)} if cell.start is None else {"start_from": digest(seed)}
        write(cell.result(seed), cell.config(cell.choice() or {}, seed), auc, **more)


def test_a_grid_is_every_combination_in_the_order_of_the_plan(tmp_path):
    keys = ("training.learning_rate", "training.stages.train.dropout")
    pairs = [(0.1, 0.0), (0.1, 0.5), (0.01, 0.0), (0.01, 0.5)]
    assert made(tmp_path).cell("mix").grid == [dict(zip(keys, p, strict=True)) for p in pairs]
    assert made(tmp_path).cell("retune").grid == [{}]


def test_a_configuration_is_the_plans_then_the_variants_then_the_arms_then_the_points(tmp_path):
    arms = {
        "mix": {
            "config": {"method": {"name": "mix"}, "training": {"epochs": 7}},
            "grid": {"training.stages.train.dropout": [0.5], "training.epochs": [8, 9]},
        }
    }
    plan = made(tmp_path, arms=arms, variants=BACKBONES)
    cell = plan.cell("mix", "deepfm")
    config = cell.config(cell.grid[1], seed=3)
    assert config == {
        "data": VALUES["config"]["data"],
        "model": {"embedding_size": 2, "hidden_sizes": [4], "backbone": "deepfm"},
        "training": {
            **VALUES["config"]["training"],
            "epochs": 9,
            "stages": {"train": {"dropout": 0.5}},
        },
        "method": {"name": "mix"},
        "seed": 3,
    }
    assert parse_config(config).seed == 3
    assert VALUES["config"]["training"]["epochs"] == 1  # the plan itself is left alone


def test_the_choice_is_the_best_trial_on_validation_once_all_are_there(tmp_path):
    plan = made(tmp_path)
    cell = plan.cell("mix")
    assert cell.choice() is None
    try_all(plan)
    assert cell.choice() == {"training.learning_rate": 0.01, "training.stages.train.dropout": 0.5}
    best = list(cell.trials)[1]
    write(best, cell.config(cell.trials[best], 0), 0.9)
    assert cell.choice() == {"training.learning_rate": 0.1, "training.stages.train.dropout": 0.5}
    list(cell.trials)[3].unlink()
    assert cell.choice() is None
    assert plan.cell("retune").choice() == {}


@pytest.mark.parametrize(
    ("select", "value"), [("pooled_auc", 0.7), ("log_loss", -0.4), ("wauc", 0.6)]
)
def test_a_trial_is_judged_by_its_own_select(select, value):
    trial = {
        "config": {"training": {"select": select}},
        "validation": {
            "pooled": {"auc": 0.7, "log_loss": 0.4},
            "divisions": {"domain": {"wauc": 0.6}},
        },
    }
    assert plans.judged(trial, "domain") == value


def test_a_failed_trial_is_not_chosen(tmp_path):
    plan = made(tmp_path)
    try_all(plan)
    *_, last = plan.cell("mix").trials.items()
    path, point = last
    failed = {"config": plan.cell("mix").config(point, 0), "failed": "TrainingError: loss is nan"}
    path.write_text(json.dumps(failed))
    assert plan.cell("mix").choice() == {
        "training.learning_rate": 0.01,
        "training.stages.train.dropout": 0.0,
    }


def test_one_variants_trials_choose_for_all(tmp_path):
    plan = made(tmp_path, variants=BACKBONES, choose_on="deepfm")
    trials = plan.cell("mix", "mlp").trials
    assert trials == plan.cell("mix", "deepfm").trials
    assert all(path.name.startswith("mix_deepfm_learning_rate=") for path in trials)
    assert plan.cell("mix", "mlp").result(2).name == "mix_mlp_seed-2.json"
    own = made(tmp_path, variants=BACKBONES)
    assert own.cell("mix", "mlp").trials.keys().isdisjoint(own.cell("mix", "deepfm").trials)


def queue(plan: Plan, arms: list[str] | None = None) -> runner.Queue:
    return runner.Queue(plan.cells(arms), Path("/data"), plan.folder / "cache")


def keep(plan: Plan, arm: str, seed: int) -> Path:
    """As if a run of `arm` had left its artifact in the cache."""
    cell = plan.cell(arm)
    folder = plan.folder / "cache" / plan.folder.name / cell.run(seed)
    folder.mkdir(parents=True)
    settings = cell.choice()
    assert settings is not None
    config = json.dumps(cell.config(settings, seed))
    (folder / runner.MADE_BY).write_text(config)
    (folder / "artifact").mkdir()
    (folder / "artifact" / "config.json").write_text(config)
    (folder / "artifact" / "manifest.json").write_text(json.dumps({"base": digest(seed)}))
    return folder


def names(tasks: list[runner.Task]) -> list[str]:
    return [task.target.stem for task in tasks]


def test_the_queue_begins_with_trials_and_ends_with_nothing_left(tmp_path):
    plan = made(tmp_path)
    assert names(queue(plan).open()) == [path.stem for path in plan.cell("mix").trials]
    try_all(plan)
    # one run of mix is what retune waits for; the others come seed by seed
    assert names(queue(plan).open()) == ["mix_seed-0", "mix_seed-1", "mix_seed-2"]
    run_seeds(plan, "mix", [0.6, 0.61, 0.62])
    for seed in (0, 1, 2):
        keep(plan, "mix", seed)
    assert names(queue(plan).open()) == ["retune_seed-0", "retune_seed-1", "retune_seed-2"]
    run_seeds(plan, "retune", [0.6, 0.61, 0.62])
    assert queue(plan).open() == []


def test_trials_of_a_later_arm_come_before_the_seeds_of_an_earlier_one(tmp_path):
    single = {
        "config": {"method": {"name": "single"}},
        "grid": {"training.learning_rate": [0.1, 0.2]},
    }
    plan = made(tmp_path, arms=VALUES["arms"] | {"single": single})
    try_all(plan)
    trials = [path.stem for path in plan.cell("single").trials]
    assert len(trials) == 2
    seeds = ["mix_seed-0", "mix_seed-1", "mix_seed-2"]
    assert names(queue(plan).open()) == trials + seeds


def test_a_run_starts_from_the_run_of_its_seed_which_is_made_again_where_it_is_missing(tmp_path):
    plan = made(tmp_path)
    try_all(plan)
    run_seeds(plan, "mix", [0.6, 0.61, 0.62])
    kept = keep(plan, "mix", 1)
    tasks = {task.target.stem: task for task in queue(plan, ["retune"]).open()}
    assert sorted(tasks) == ["mix_seed-0", "mix_seed-2", "retune_seed-1"]
    assert tasks["retune_seed-1"].values["start_from"] == str(kept / "artifact")
    assert tasks["retune_seed-1"].shown["start_from"] == f"{tmp_path.name}/mix_seed-1"
    assert tasks["mix_seed-0"].keep == kept.parent / "mix_seed-0"
    (kept / runner.MADE_BY).write_text(json.dumps({"seed": 1}))  # by another configuration
    assert "mix_seed-1" in names(queue(plan, ["retune"]).open())


def test_an_artifact_that_this_version_cannot_read_is_made_again(tmp_path):
    plan = made(tmp_path)
    try_all(plan)
    run_seeds(plan, "mix", [0.6, 0.61, 0.62])
    kept = keep(plan, "mix", 1)
    assert "mix_seed-1" not in names(queue(plan, ["retune"]).open())
    (kept / "artifact" / "config.json").write_text(json.dumps({"a_key_of_another_version": 1}))
    assert "mix_seed-1" in names(queue(plan, ["retune"]).open())


@pytest.mark.parametrize("told", [{}, {"artifact": "f" * 64}], ids=["none", "another"])
def test_a_kept_artifact_that_is_not_the_one_of_the_runs_json_is_made_again(told, tmp_path):
    """Else what starts from it would tell of a start that no JSON knows, and be made for ever."""
    plan = made(tmp_path)
    try_all(plan)
    run_seeds(plan, "mix", [0.6, 0.61, 0.62])
    for seed in (0, 1, 2):
        keep(plan, "mix", seed)
    mix = plan.cell("mix")
    write(mix.result(1), mix.config(mix.choice(), 1), 0.6, **told)
    assert names(queue(plan, ["retune"]).open()) == ["retune_seed-0", "mix_seed-1", "retune_seed-2"]


def test_a_run_is_made_again_once_its_start_is_another(tmp_path):
    plan = made(tmp_path)
    try_all(plan)
    run_seeds(plan, "mix", [0.6, 0.61, 0.62])
    for seed in (0, 1, 2):
        keep(plan, "mix", seed)
    mix = plan.cell("mix")
    run_seeds(plan, "retune", [0.7, 0.7, 0.7])
    assert queue(plan).open() == []
    write(mix.result(1), mix.config(mix.choice(), 1), 0.6, artifact="f" * 64)
    kept = plan.folder / "cache" / plan.folder.name / mix.run(1)
    (kept / "artifact" / "manifest.json").write_text(json.dumps({"base": "f" * 64}))
    assert names(queue(plan).open()) == ["retune_seed-1"]
    assert "| retune | – | 0.7000 ± 0.0000 | 0.3000 ± 0.0000 | 1,234 | 2 | 2 |" in tables.tables(
        plan
    )


def test_an_arm_may_stand_in_another_folder(tmp_path):
    first = made(tmp_path / "first")
    arms = {"mix": {"see": "first", "published": 0.5}, "retune": VALUES["arms"]["retune"]}
    second = made(tmp_path / "second", arms=arms)
    assert second.cell("mix").result(0) == first.cell("mix").result(0)
    config = second.cell("retune").config({}, 1)
    assert config["start_from"] == "first/mix_seed-1"
    try_all(first)
    tasks = runner.Queue([second.cell("retune")], Path("/data"), tmp_path / "cache").open()
    assert [task.target for task in tasks] == [first.cell("mix").result(s) for s in (0, 1, 2)]
    assert tasks[0].keep == tmp_path / "cache" / "first" / "mix_seed-0"


def test_results_of_another_plan_are_refused(tmp_path):
    plan = made(tmp_path)
    try_all(plan)
    run_seeds(plan, "mix", [0.6])
    assert runner.checked(tmp_path).stale() == []
    config = {**VALUES["config"], "model": {"embedding_size": 3, "hidden_sizes": [4]}}
    made(tmp_path, config=config)
    with pytest.raises(PlanError, match=r"(?s)made by another plan.*mix_seed-0\.json"):
        runner.checked(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"measure": "test"}, "unknown key 'measure'"),
        ({"compare_to": ["base"]}, "compare_to: there is no arm 'base'"),
        ({"variants": BACKBONES, "choose_on": "dcn"}, "there is no variant 'dcn'"),
        ({"arms": {"mix": {"start": "base"}}}, "no arm 'base' to start from"),
        ({"arms": {"mix": {"configs": {}}}}, "arms.mix: unknown key 'configs'"),
        ({"arms": {"mix": {"see": "x", "grid": {}}}}, "stands in x, where its runs are"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changes, says, tmp_path):
    with pytest.raises(PlanError, match=says):
        made(tmp_path, **changes)


def test_an_arm_that_is_no_configuration_is_left_out_and_the_others_go_on(tmp_path, capsys):
    arms = {"odd": {"config": {"method": {"name": "mixx"}}}, **VALUES["arms"]}
    plan = made(tmp_path, arms=arms)
    asked = queue(plan)
    assert names(asked.open()) == [path.stem for path in plan.cell("mix").trials]
    assert list(asked.wrong) == ["odd"]
    assert "did you mean 'mix'" in capsys.readouterr().err


def test_a_table_has_published_ours_and_what_has_not_been_run(tmp_path):
    plan = made(tmp_path)
    try_all(plan)
    run_seeds(plan, "mix", [0.6, 0.62, 0.64])
    runner.write_readme(plan)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines[2:6] == [
        "| arm | published AUC | AUC | log loss | parameters | seconds | seeds |",
        "|---|--:|--:|--:|--:|--:|--:|",
        "| mix | 0.6100 | 0.6200 ± 0.0200 | 0.3800 ± 0.0200 | 1,234 | 2 | 3 |",
        "| retune | – | not run |  |  |  |  |",
    ]
    assert "- `mix`: learning_rate 0.01, dropout 0.5 (4 of 4 trials)" in lines
    assert (lines[0], lines[-1]) == ("before", "after")
    runner.write_readme(plan)
    assert (tmp_path / "README.md").read_text().splitlines() == lines


def test_a_failed_run_is_shown_as_failed_with_what_it_said(tmp_path):
    plan = made(tmp_path)
    cell = plan.cell("retune")
    write(cell.result(0), cell.config({}, 0), 0.5, failed="TrainingError: the loss is nan\nFix: …")
    shown = tables.tables(plan)
    assert "| retune | – | failed |" in shown
    assert "- `retune_seed-0`: TrainingError: the loss is nan" in shown.splitlines()


def test_variants_stand_side_by_side_with_their_mean(tmp_path):
    arms = {"mix": {**VALUES["arms"]["mix"], "published": {"mlp": 0.5, "deepfm": 0.7}}}
    plan = made(tmp_path, arms=arms, variants=BACKBONES, choose_on="mlp")
    try_all(plan, variant="mlp")
    run_seeds(plan, "mix", [0.6, 0.62], "mlp")
    shown = tables.tables(plan).splitlines()
    assert shown[0] == "| arm |  | mlp | deepfm | mean |"
    assert shown[2] == "| mix | published AUC | 0.5000 | 0.7000 | 0.6000 |"
    assert shown[3] == "| mix | AUC | 0.6100 ± 0.0141 | not run |  |"
    run_seeds(plan, "mix", [0.8], "deepfm")
    shown = tables.tables(plan).splitlines()
    assert shown[3] == "| mix | AUC | 0.6100 ± 0.0141 | 0.8000 (1 seed) | 0.7050 |"


def test_differences_are_paired_by_seed_with_students_interval(tmp_path):
    plan = made(tmp_path)
    try_all(plan)
    run_seeds(plan, "mix", [0.60, 0.65, 0.70])
    run_seeds(plan, "retune", [0.61, 0.67, 0.71])
    values = tables.paired(plan.cell("retune"), plan.cell("mix"), "test.pooled.auc")
    assert values == pytest.approx([0.01, 0.02, 0.01])
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=statistics.mean(values), scale=scipy.stats.sem(values)
    )
    shown = tables.tables(plan).splitlines()
    assert f"| retune | {statistics.mean(values):+.4f} [{low:+.4f}, {high:+.4f}] |" in shown
    plan.cell("mix").result(1).unlink()
    assert tables.paired(plan.cell("retune"), plan.cell("mix"), "test.pooled.auc") == pytest.approx(
        [0.01, 0.01]
    )


def test_references_stand_across_and_each_pair_is_told_once(tmp_path):
    plan = made(
        tmp_path,
        arms={**VALUES["arms"], "other": VALUES["arms"]["retune"]},
        compare_to=["mix", "retune"],
    )
    try_all(plan)
    run_seeds(plan, "mix", [0.5])
    run_seeds(plan, "retune", [0.75])
    run_seeds(plan, "other", [0.25])
    shown = tables.tables(plan).splitlines()
    head = shown.index("| arm | minus mix | minus retune |")
    assert shown[head + 1 : head + 4] == [
        "|---|--:|--:|",
        "| retune | +0.2500 (1 seed) |  |",
        "| other | -0.2500 (1 seed) | -0.5000 (1 seed) |",
    ]


def test_with_variants_across_references_stand_downwards(tmp_path):
    arms = {**VALUES["arms"], "mix": {**VALUES["arms"]["mix"], "published": {}}}
    plan = made(tmp_path, arms=arms, variants=BACKBONES, choose_on="mlp")
    try_all(plan, variant="mlp")
    run_seeds(plan, "mix", [0.5], "deepfm")
    run_seeds(plan, "retune", [0.75], "deepfm")
    shown = tables.tables(plan).splitlines()
    head = shown.index("| arm | minus | mlp | deepfm |")
    assert shown[head + 1 : head + 3] == [
        "|---|---|--:|--:|",
        "| retune | mix |  | +0.2500 (1 seed) |",
    ]


def test_the_quantiles_are_students():
    degrees = range(1, len(tables.T_975) + 1)
    assert list(tables.T_975) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), abs=5e-4)


def test_counts_are_shown_with_both_shares(tmp_path):
    counts = [{"module": "one", "published": "6k", "arm": "retune", "path": "parameters.backbone"}]
    plan = made(tmp_path, counts=counts, measures=None, compare_to=None)
    try_all(plan)
    run_seeds(plan, "mix", [0.6])
    run_seeds(plan, "retune", [0.6])
    line = "| one | 6k | 100 | 8.10 % | 100.00 % | `retune`: `parameters.backbone` |"
    assert line in tables.tables(plan).splitlines()


def test_a_plan_runs_to_its_end_and_again_runs_nothing(tmp_path, capsys):
    arms = {
        "mix": {"config": {"method": {"name": "mix"}}, "grid": {"training.epochs": [1, 2]}},
        "retune": {"config": {"method": {"name": "retune"}}, "start": "mix"},
        "broken": {"config": {"method": {"name": "mlora", "rank": {"fixed": 400}}}},
    }
    plan = made(tmp_path / "plan", arms=arms, seeds=[0])
    waiting = runner.Queue(plan.cells(), Path("/data"), tmp_path / "cache")
    while tasks := waiting.open():
        runner.execute(tasks[0])
        runner.write_choices(plan)
    told = json.loads(plan.cell("retune").result(0).read_text())
    assert told["config"]["start_from"] == "plan/mix_seed-0"
    kept = tmp_path / "cache" / "plan" / "mix_seed-0" / "artifact"
    assert told["start_from"] == json.loads((kept / "manifest.json").read_text())["base"]
    assert told["start_from"] == json.loads(plan.cell("mix").result(0).read_text())["artifact"]
    assert (
        "AdapterError: rank 400" in json.loads(plan.cell("broken").result(0).read_text())["failed"]
    )
    assert "test" not in json.loads(next(iter(plan.cell("mix").trials)).read_text())
    assert (plan.results / "chosen" / "mix.json").exists()
    assert capsys.readouterr().out.count(".json") == 5


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in EXPERIMENTS.glob("*/plan.yaml"))
)
def test_every_plan_is_whole_and_its_results_are_its_own(folder):
    plan = runner.checked(EXPERIMENTS / folder)
    own = [cell for cell in plan.cells() if cell.plan is plan]
    for cell in own:
        parse_config(cell.config(cell.grid[-1], seed=0))
    expected = {path for cell in own for path in cell.files}
    found = {p for p in plan.results.rglob("*.json") if p.parent.name != "chosen"}
    assert found <= expected
    assert tables.BEGIN in (EXPERIMENTS / folder / "README.md").read_text()


def test_an_arm_may_take_over_what_another_folders_arm_has_chosen(tmp_path):
    first = made(tmp_path / "first")
    taken = {"config": {"method": {"name": "retune"}}, "settings_of": "first/mix"}
    plan = made(tmp_path / "second", arms={"retune": taken}, compare_to=None)
    cell = plan.cell("retune")
    assert cell.choice() is None
    for place, (path, point) in enumerate(first.cell("mix").trials.items()):
        write(path, first.cell("mix").config(point, 0), auc=0.5 + 0.1 * (place == 2))
    assert cell.choice() == first.cell("mix").choice() == cell.grid[2]
    assert cell.config(cell.choice(), 1)["method"] == {"name": "retune"}
    assert not (plan.results / "trials").exists()


def test_an_arm_with_the_settings_of_another_has_no_grid_of_its_own(tmp_path):
    made(tmp_path / "first")
    taken = VALUES["arms"]["mix"] | {"settings_of": "first/mix"}
    with pytest.raises(PlanError, match="its settings are those of first/mix; it has no grid"):
        made(tmp_path / "second", arms={"mix": taken})
