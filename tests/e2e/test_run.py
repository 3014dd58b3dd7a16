"""The whole way: configuration → run folder, on small synthetic logs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from loractr.artifact import load
from loractr.config import RunConfig, dump_config, parse_config
from loractr.data.sources.synthetic import generate
from loractr.demo import demo_config
from loractr.errors import AdapterError, DataError, UsageError
from loractr.run import dry_run, run, run_seeds
from loractr.training.events import Event, Validated

SMALL: dict[str, Any] = {
    "data": {
        "source": "synthetic",
        "synthetic": {"rows": 4000, "users": 200, "items": 60, "domains": 3},
        "group": "user",
    },
    "model": {"backbone": "deepfm", "embedding_size": 4, "hidden_sizes": [16, 8]},
    "method": {"name": "mlora", "rank": {"fixed": 2}},
    "training": {"batch_size": 256, "epochs": 3, "patience": 2},
}


def small(**changes: dict[str, Any]) -> RunConfig:
    return parse_config({part: {**SMALL[part], **changes.get(part, {})} for part in SMALL})


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """All that must be identical between two runs of one configuration."""
    clock = {"seconds", "rows_per_second", "versions"}
    return {key: value for key, value in metrics.items() if key not in clock}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mlora"
    run(small(), out)
    return out


def test_a_run_leaves_exactly_the_promised_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml",
        "history.jsonl",
        "metrics.json",
        "predictions.parquet",
        "artifact",
    }


def test_metrics_json_has_the_promised_keys(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert {"test", "validation", "selection", "parameters", "seconds", "seed", "versions"} <= set(
        metrics
    )
    for split in ("test", "validation"):
        assert set(metrics[split]["pooled"]) == {"auc", "auc_se", "log_loss", "gauc", "rows"}
        assert set(metrics[split]["divisions"]["domain"]["domains"]) == {
            f"domain_0{d}" for d in range(3)
        }
        assert metrics[split]["best_possible"]["pooled"]["auc"] > metrics[split]["pooled"]["auc"]
    assert metrics["test"]["pooled"]["gauc"] is not None
    assert metrics["parameters"]["trainable_by_stage"] == {"joint": metrics["parameters"]["total"]}
    assert {"torch", "threads", "processor", "kernels"} <= set(metrics["versions"])


def test_predictions_are_those_of_the_saved_artifact_to_the_bit(finished):
    predictions = pl.read_parquet(finished / "predictions.parquet")
    raw = generate(small().data.synthetic)[predictions["row"].to_list()]
    assert np.array_equal(load(finished / "artifact").predict(raw), predictions["probability"])


def test_the_same_configuration_gives_identical_metrics(finished, tmp_path):
    run(small(), tmp_path / "again")
    one, two = (
        json.loads((p / "metrics.json").read_text()) for p in (finished, tmp_path / "again")
    )
    assert timeless(one) == timeless(two)
    assert pl.read_parquet(finished / "predictions.parquet").equals(
        pl.read_parquet(tmp_path / "again" / "predictions.parquet")
    )


def test_another_seed_keeps_the_split_and_changes_the_weights(finished, tmp_path):
    runs = run_seeds(small(), tmp_path, seeds=2)
    one, two = (pl.read_parquet(tmp_path / f"seed-{s}" / "predictions.parquet") for s in (0, 1))
    assert len(runs) == 2
    assert one["row"].equals(two["row"])
    assert not one["probability"].equals(two["probability"])
    assert one.equals(pl.read_parquet(finished / "predictions.parquet"))


def test_seeds_in_processes_of_their_own_give_the_same(finished, tmp_path):
    run_seeds(small(), tmp_path, seeds=2, jobs=2)
    here = pl.read_parquet(tmp_path / "seed-0" / "predictions.parquet")
    assert here.equals(pl.read_parquet(finished / "predictions.parquet"))


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(finished):
    before = sorted(finished.rglob("*"))
    with pytest.raises(UsageError, match=r"(?s)not empty.*--resume"):
        run(small(), finished)
    assert sorted(finished.rglob("*")) == before


def test_resuming_a_finished_run_changes_nothing(finished):
    written = (finished / "metrics.json").stat().st_mtime_ns
    (finished / "checkpoint").mkdir()  # a kill between the last two steps of a run
    metrics = run(small(), finished, resume=True)
    assert metrics.as_dict() == json.loads((finished / "metrics.json").read_text())["test"]
    assert (finished / "metrics.json").stat().st_mtime_ns == written
    assert not (finished / "checkpoint").exists()


def test_resuming_with_another_configuration_names_what_differs(finished):
    with pytest.raises(UsageError, match=r"'training\.epochs'"):
        run(small(training={"epochs": 4}), finished, resume=True)


@pytest.mark.parametrize("method", ["mix", "single", "finetune"])
def test_methods_with_whole_models_go_the_whole_way(method, tmp_path):
    run(parse_config({**SMALL, "method": {"name": method}}), tmp_path / "r")
    predictions = pl.read_parquet(tmp_path / "r" / "predictions.parquet")
    raw = generate(small().data.synthetic)[predictions["row"].to_list()]
    assert np.array_equal(
        load(tmp_path / "r" / "artifact").predict(raw), predictions["probability"]
    )
    folders = list((tmp_path / "r" / "artifact").glob("domains/domain/*/v1/model.safetensors"))
    assert len(folders) == (0 if method == "mix" else 3)


def test_two_stage_mlora_trains_experts_on_a_frozen_backbone(tmp_path):
    config = small(method={"recipe": "two_stage"}, training={"keep_start": False})
    run(config, tmp_path / "r")
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    trained = metrics["parameters"]["trainable_by_stage"]
    assert trained == {
        "pretrain": metrics["parameters"]["total"] - metrics["parameters"]["adapters"],
        "adapt": metrics["parameters"]["adapters"],
    }
    assert metrics["selection"]["stage"] == "adapt"
    assert set(metrics["selection"]["domains"]) == {"domain_00", "domain_01", "domain_02"}


def one_class_log(path: Path) -> Path:
    """Four domains: one whose rows are never clicked, one that occurs on the last day only."""
    rng = np.random.default_rng(0)
    n = 3000
    scene = rng.choice(["home", "search", "cold"], n, p=[0.5, 0.4, 0.1])
    day = np.sort(rng.integers(0, 10, n))
    scene[(day == 9) & (rng.random(n) < 0.2)] = "new"
    user = rng.integers(0, 50, n)
    label = (rng.random(n) < np.where(user % 2, 0.7, 0.2)).astype(int)
    label[scene == "cold"] = 0
    pl.DataFrame({"user": user, "scene": scene, "day": day, "label": label}).write_parquet(path)
    return path


@pytest.mark.parametrize("method", ["mix", "single", "finetune", "mlora", "mlora two_stage"])
def test_one_class_and_unseen_domains_stop_nothing(method, tmp_path):
    name, _, recipe = method.partition(" ")
    config = parse_config(
        {
            **SMALL,
            "data": {
                "source": "table",
                "path": str(one_class_log(tmp_path / "log.parquet")),
                "label": {"column": "label"},
                "fields": ["user"],
                "divisions": {"scene": {"column": "scene"}},
                "split": {
                    "kind": "temporal",
                    "column": "day",
                    "validation_from": 8,
                    "test_from": 9,
                },
            },
            "method": {
                "name": name,
                **({"recipe": recipe, "rank": {"fixed": 2}} if recipe else {}),
            },
        }
    )
    run(config, tmp_path / "run")
    scene = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["divisions"][
        "scene"
    ]
    assert scene["domains"]["cold"]["auc"] is None
    assert scene["domains"]["cold"]["undefined"] == "one class"
    assert scene["undefined"] == 1
    assert scene["wauc"] is not None
    assert scene["unseen"]["rows"] > 0


def test_dry_run_measures_and_writes_nothing(tmp_path):
    found = dry_run(small())
    assert sum(found["rows"].values()) == SMALL["data"]["synthetic"]["rows"]
    assert found["rows_per_second"] > 0
    assert found["parameters"]["adapters"] > 0
    assert not list(tmp_path.iterdir())


def test_dry_run_counts_the_fits_of_single_domains():
    found = dry_run(parse_config({**SMALL, "method": {"name": "finetune"}}))
    assert found["stages"] == ["pretrain", "finetune"]
    epochs = 2 * SMALL["training"]["epochs"]
    assert found["most_seconds"] == pytest.approx(epochs * found["seconds_per_epoch"])


def test_labels_outside_zero_and_one_stop_the_run_and_say_so(tmp_path):
    path = one_class_log(tmp_path / "log.parquet")
    pl.read_parquet(path).with_columns(label=pl.col("label") * 2).write_parquet(path)
    data = {"source": "table", "path": str(path), "fields": ["user"]}
    with pytest.raises(DataError, match="2"):
        run(parse_config({**SMALL, "data": data, "method": {"name": "mix"}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_false_start_leaves_no_folder_behind(tmp_path):
    with pytest.raises(AdapterError, match="rank 500 is larger than layer"):
        run(small(method={"rank": {"fixed": 500}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interruption_after_a_checkpoint_leaves_a_run_that_resumes(finished, tmp_path):
    def interrupt(event: Event) -> None:
        if isinstance(event, Validated) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small(), tmp_path / "run", callbacks=[interrupt])
    assert not (tmp_path / "run" / "metrics.json").exists()
    run(small(), tmp_path / "run", resume=True)
    assert pl.read_parquet(tmp_path / "run" / "predictions.parquet").equals(
        pl.read_parquet(finished / "predictions.parquet")
    )
    histories = [(folder / "history.jsonl").read_text() for folder in (finished, tmp_path / "run")]
    assert histories[0] == histories[1]


def checkpoint_time(run_folder: Path) -> int:
    """When the newest checkpoint was written; 0 without any."""
    states = run_folder.glob("checkpoint/*/state.json")
    return max((state.stat().st_mtime_ns for state in states), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mlora joint", "mlora two_stage", "single"])
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(method, tmp_path):
    name, _, recipe = method.partition(" ")
    own = {"recipe": recipe, "rank": {"fixed": 2}} if recipe else {}
    changes = {
        "method": {"name": name, **own},
        "model": {**SMALL["model"], "dropout": 0.2},
        "training": {
            **SMALL["training"],
            "ema": 0.9,
            "checkpoint_minutes": 0.0,
            "validate_every": 0.5,
            "epochs": 6,
        },
    }
    config = parse_config({**SMALL, **changes})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    train = [
        sys.executable,
        "-m",
        "loractr",
        "train",
        str(tmp_path / "config.yaml"),
        "--threads",
        "1",
    ]
    subprocess.run([*train, "--out", tmp_path / "whole"], check=True, capture_output=True)
    rng, kills = np.random.default_rng(len(method)), 0
    while not (tmp_path / "cut" / "metrics.json").exists():
        resume = ["--resume"] if (tmp_path / "cut" / "config.yaml").exists() else []
        process = subprocess.Popen(
            [*train, "--out", tmp_path / "cut", *resume],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = checkpoint_time(tmp_path / "cut")
        while kills < 5 and process.poll() is None and checkpoint_time(tmp_path / "cut") == before:
            time.sleep(0.005)
        if kills < 5 and process.poll() is None:
            time.sleep(float(rng.uniform(0, 0.3)))  # training is under way: now at any moment
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 3
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for file in sorted((whole / "artifact").rglob("*.safetensors")):
        assert file.read_bytes() == (cut / file.relative_to(whole)).read_bytes(), file
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (whole, cut)
    ]
    assert histories[0] == histories[1]
    assert timeless(json.loads((whole / "metrics.json").read_text())) == timeless(
        json.loads((cut / "metrics.json").read_text())
    )


@pytest.mark.slow
def test_mlora_finds_the_planted_structure_beyond_the_noise_of_seeds(tmp_path):
    started = time.perf_counter()
    wauc = {
        method: [
            run(demo_config(method, seed=seed), tmp_path / f"{method}-{seed}")
            .divisions["domain"]
            .wauc
            for seed in range(3)
        ]
        for method in ("mix", "single", "mlora")
    }
    gaps = {m: np.array(wauc["mlora"]) - np.array(wauc[m]) for m in ("mix", "single")}
    for gap in gaps.values():
        assert gap.mean() > 3 * gap.std(ddof=1), wauc
        assert gap.min() > 0.01, wauc
    print(f"{wauc}, {time.perf_counter() - started:.0f} s", file=sys.stderr)


def test_the_resolved_configuration_reads_back(finished):
    values = yaml.safe_load((finished / "config.yaml").read_text())
    assert parse_config(values) == small()
