"""A run that starts from a finished model ends as the run that trained it first."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from loractr.artifact import load
from loractr.config import RunConfig, parse_config
from loractr.errors import ArtifactError, CheckpointError, ConfigError, UsageError
from loractr.run import dry_run, run, run_seeds
from loractr.training.events import Event, Validated

SMALL: dict[str, Any] = {
    "data": {
        "source": "table",
        "fields": ["user", "item"],
        "divisions": {"site": {"column": "site"}, "device": {"column": "device"}},
        "split": {"kind": "random", "fractions": [0.6, 0.2, 0.2], "seed": 1},
    },
    "model": {
        "backbone": "mlp",
        "embedding_size": 3,
        "hidden_sizes": [8, 4],
        "batch_norm": True,
        "dropout": 0.2,
    },
    "training": {"batch_size": 128, "epochs": 2, "keep_start": False},
}
LORA: dict[str, Any] = {"rank": {"fixed": 2}}
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"name": "finetune"},
    "retune": {"name": "retune"},
    "mix tuned": {"name": "mix", "recipe": "tuned"},
    "mlora": {"name": "mlora", "recipe": "two_stage", **LORA},
    "singlelora": {"name": "singlelora", **LORA},
    "singlelora tuned": {"name": "singlelora", "recipe": "tuned", **LORA},
    "shared_adapter": {"name": "shared_adapter", **LORA},
    "multilora": {"name": "multilora", "divisions": ["site", "device"], **LORA},
    "multilora_add": {"name": "multilora_add", "divisions": ["site", "device"], **LORA},
    "multilora_avg": {"name": "multilora_avg", "divisions": ["site", "device"], **LORA},
    "moe_mlora": {"name": "moe_mlora", **LORA},
}


def clicks(path: Path, *, users: int = 30) -> Path:
    """A log of two sites and two devices, whose users click differently."""
    rng = np.random.default_rng(7)
    n = 1500
    user, site = rng.integers(0, users, n), rng.choice(["home", "search"], n)
    table = {
        "user": user,
        "item": rng.integers(0, 20, n),
        "site": site,
        "device": rng.choice(["phone", "desk"], n),
        "label": (rng.random(n) < np.where((user % 2 == 0) == (site == "home"), 0.7, 0.3)),
    }
    pl.DataFrame(table).with_columns(pl.col("label").cast(pl.Int8)).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clicks(tmp_path_factory.mktemp("data") / "log.parquet")


def config(log: Path, method: dict[str, Any], **changes: Any) -> RunConfig:
    values = {**SMALL, "data": {**SMALL["data"], "path": str(log)}, "method": method}
    for part, own in changes.items():
        values[part] = {**values[part], **own} if isinstance(own, dict) else own
    return parse_config(values)


@pytest.fixture(scope="module")
def mix(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mix"
    run(config(log, {"name": "mix"}), out)
    return out


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def files(out: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted((out / "artifact").rglob("*.safetensors"))
    }


@pytest.mark.parametrize("method", METHODS)
def test_starting_from_the_mix_run_ends_as_the_whole_recipe_to_the_bit(method, log, mix, tmp_path):
    run(config(log, METHODS[method]), tmp_path / "whole")
    run(config(log, METHODS[method], start_from=str(mix)), tmp_path / "started")
    assert files(tmp_path / "started") == files(tmp_path / "whole")
    tables = [
        pl.read_parquet(tmp_path / name / "predictions.parquet") for name in ("whole", "started")
    ]
    assert tables[0].equals(tables[1])
    whole, started = (metrics(tmp_path / name) for name in ("whole", "started"))
    for part in ("test", "validation"):
        assert started[part] == whole[part]
    for part in ("total", "embedding", "backbone", "adapters"):
        assert started["parameters"][part] == whole["parameters"][part]
    first = {"mix tuned": "train"}.get(method, "pretrain")
    told = [stage["stage"] for stage in whole["selection"]["stages"]]
    assert [first, *(s["stage"] for s in started["selection"]["stages"])] == told


def test_a_method_with_parts_of_its_own_starts_from_a_run_of_itself(log, tmp_path):
    run(config(log, {"name": "star"}), tmp_path / "star")
    tuned = {"name": "star", "recipe": "tuned"}
    run(config(log, tuned), tmp_path / "whole")
    run(config(log, tuned, start_from=str(tmp_path / "star")), tmp_path / "started")
    assert files(tmp_path / "started") == files(tmp_path / "whole")


def test_the_metrics_name_the_model_that_a_run_started_from(log, mix, tmp_path):
    run(config(log, METHODS["retune"], start_from=str(mix / "artifact")), tmp_path / "r")
    manifest = json.loads((mix / "artifact" / "manifest.json").read_text())
    told = metrics(tmp_path / "r")["start_from"]
    assert told == {"path": str(mix / "artifact"), "sha256": manifest["base"]}
    assert metrics(mix)["start_from"] is None


def test_an_adapter_run_serves_as_well_as_a_plain_one(log, mix, tmp_path):
    run(config(log, METHODS["singlelora"], start_from=str(mix)), tmp_path / "single")
    method = METHODS["shared_adapter"]
    run(config(log, method, start_from=str(mix)), tmp_path / "one")
    run(config(log, method, start_from=str(tmp_path / "single")), tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_an_interrupted_run_goes_on_to_the_same_bits(log, mix, tmp_path):
    asked = config(log, METHODS["finetune"], start_from=str(mix))
    run(asked, tmp_path / "whole")
    seen: list[Event] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, Validated) and event.domain == "search":
            seen.append(event)
            if len(seen) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "cut", callbacks=[interrupt])
    run(asked, tmp_path / "cut", resume=True)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    histories = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "cut")]
    assert histories[0] == histories[1]


def test_an_interrupted_run_refuses_to_go_on_from_another_model(log, tmp_path):
    start = tmp_path / "mix"
    run(config(log, {"name": "mix"}), start)
    asked = config(log, METHODS["retune"], start_from=str(start))

    def interrupt(event: Event) -> None:
        if isinstance(event, Validated) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "run", callbacks=[interrupt])
    start.rename(tmp_path / "former")
    run(config(log, {"name": "mix"}, seed=1), start)
    with pytest.raises(CheckpointError, match="another model than when this run began"):
        run(asked, tmp_path / "run", resume=True)


def test_a_dry_run_leaves_the_skipped_stage_out(log, mix):
    found = dry_run(config(log, METHODS["singlelora"], start_from=str(mix)))
    assert found["stages"] == ["adapt"]
    assert found["most_seconds"] == pytest.approx(2 * found["seconds_per_epoch"])


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "single"}, "start_from: method 'single' trains no shared model"),
        ({"name": "mix"}, "start_from takes the place of stage 'train', which is all"),
        ({"name": "mlora", **LORA}, "start_from takes the place of stage 'joint', which is all"),
    ],
)
def test_a_recipe_that_would_have_nothing_left_to_train_is_refused(method, says, log, mix):
    with pytest.raises(ConfigError, match=says):
        config(log, method, start_from=str(mix))


def test_another_model_is_refused_with_every_difference_named(log, mix, tmp_path):
    model = {"backbone": "deepfm", "hidden_sizes": [8, 4, 2], "dropout": 0.0}
    asked = config(log, METHODS["retune"], model=model, start_from=str(mix))
    with pytest.raises(ConfigError) as caught:
        run(asked, tmp_path / "r")
    assert caught.value.problems == (
        "start_from: model.backbone is 'mlp' there and 'deepfm' here",
        "start_from: model.hidden_sizes is (8, 4) there and (8, 4, 2) here",
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"fields": ["item", "user"]}, "the fields are user, item, domain_site there and item"),
        ({"domain_as_field": False}, "the fields are user, item, domain_site there and user, item"),
        ({"split": {**SMALL["data"]["split"], "seed": 2}}, "has other values there"),
        (
            {"divisions": {"site": {"column": "site", "groups": {"home": ["search"]}}}},
            "field 'domain_site'",
        ),
    ],
)
def test_other_fields_or_vocabularies_are_refused(data, says, log, mix, tmp_path):
    asked = config(log, METHODS["retune"], data=data, start_from=str(mix))
    with pytest.raises(ConfigError, match=says):
        run(asked, tmp_path / "r")


def test_another_number_of_users_is_refused(mix, tmp_path):
    other = clicks(tmp_path / "log.parquet", users=40)
    asked = config(other, METHODS["retune"], start_from=str(mix))
    with pytest.raises(ConfigError, match="field 'user': size is 31 there and 41 here"):
        run(asked, tmp_path / "r")


def test_a_model_that_lacks_what_the_first_stage_trains_is_refused(log, mix, tmp_path):
    asked = config(log, {"name": "star", "recipe": "tuned"}, start_from=str(mix))
    with pytest.raises(ArtifactError, match="does not hold what stage 'train' would train"):
        run(asked, tmp_path / "r")


def test_a_folder_without_a_model_is_refused(log, tmp_path):
    (tmp_path / "empty").mkdir()
    asked = config(log, METHODS["retune"], start_from=str(tmp_path / "empty"))
    with pytest.raises(ArtifactError, match="is not an artifact"):
        run(asked, tmp_path / "r")


def test_a_division_that_the_first_run_did_not_have_may_be_adapted_to(log, mix, tmp_path):
    divisions = {"site": {"column": "site"}, "kind": {"column": "device"}}
    method = {"name": "singlelora", "divisions": ["kind"], **LORA}
    run(config(log, method, data={"divisions": divisions}, start_from=str(mix)), tmp_path / "r")
    assert load(tmp_path / "r" / "artifact").division == "kind"


@pytest.fixture(scope="module")
def mixes(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mixes"
    run_seeds(config(log, {"name": "mix"}), out, seeds=2)
    return out


def test_seeds_start_from_the_runs_of_their_own_seeds(log, mixes, tmp_path):
    asked = config(log, METHODS["singlelora"], start_from=str(mixes))
    run_seeds(asked, tmp_path / "own", seeds=2)
    for seed in range(2):
        told = metrics(tmp_path / "own" / f"seed-{seed}")["start_from"]
        manifest = json.loads((mixes / f"seed-{seed}/artifact/manifest.json").read_text())
        assert told == {"path": str(mixes / f"seed-{seed}"), "sha256": manifest["base"]}
    run(config(log, METHODS["singlelora"], seed=1, start_from=str(mixes)), tmp_path / "one")
    assert files(tmp_path / "one") == files(tmp_path / "own" / "seed-1")
    assert dry_run(asked)["stages"] == ["adapt"]


def test_a_seed_without_a_run_to_start_from_is_named_before_any_work(log, mixes, tmp_path):
    asked = config(log, METHODS["singlelora"], start_from=str(mixes))
    with pytest.raises(UsageError, match=r"has no run seed-2; it has 'seed-0', 'seed-1'"):
        run_seeds(asked, tmp_path / "runs", seeds=3)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="has no run seed-7"):
        run(config(log, METHODS["singlelora"], seed=7, start_from=str(mixes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_seed_resumes_from_the_same_start_only(log, tmp_path):
    for seed in range(2):
        run(config(log, {"name": "mix"}, seed=seed), tmp_path / "mixes" / f"seed-{seed}")
    asked = config(log, METHODS["retune"], start_from=str(tmp_path / "mixes"))

    def interrupt(event: Event) -> None:
        if isinstance(event, Validated) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "run", callbacks=[interrupt])
    (tmp_path / "mixes" / "seed-0").rename(tmp_path / "former")
    (tmp_path / "mixes" / "seed-1").rename(tmp_path / "mixes" / "seed-0")
    with pytest.raises(CheckpointError, match="seed-0 is another model than when"):
        run(asked, tmp_path / "run", resume=True)
