"""train, evaluate, predict and inspect of an artifact, on a small run over a Parquet file."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner

from loractr.artifact import load
from loractr.cli import app

CONFIG = """
data:
  source: table
  path: {path}/log.parquet
  fields: [user, item, {{name: price, kind: numerical}}]
  divisions:
    tab: {{column: tab}}
    age: {{column: age, thresholds: [30]}}
  split: {{kind: random}}
model: {{backbone: mlp, embedding_size: 4, hidden_sizes: [8, 4]}}
method: {{name: mlora, rank: {{fixed: 2}}}}
training: {{epochs: 2, batch_size: 128}}
"""


def loractr(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def click_log(rows, seed):
    """Three tabs; ids with leading zeros; `price` says something about the label."""
    random = np.random.default_rng(seed)
    price = random.normal(size=rows)
    return pl.DataFrame(
        {
            "note": [f"row {n}" for n in range(rows)],
            "user": random.integers(0, 20, rows),
            "item": [f"{n:04}" for n in random.integers(0, 30, rows)],
            "price": price,
            "tab": random.choice(["home", "feed", "kids"], rows),
            "age": random.integers(18, 60, rows),
            "label": (random.random(rows) < 1 / (1 + np.exp(-2 * price))).astype(int),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """log.parquet, config.yaml, and what the commands make of them: `run`, `prepared`."""
    path = tmp_path_factory.mktemp("cli")
    click_log(1200, seed=0).write_parquet(path / "log.parquet")
    (path / "config.yaml").write_text(CONFIG.format(path=path))
    done = loractr("train", path / "config.yaml", "--out", path / "run", "--plain")
    assert done.exit_code == 0, done.stderr
    (path / "shown.txt").write_text(done.stdout)
    done = loractr("prepare", path / "config.yaml", "--out", path / "prepared")
    assert done.exit_code == 0, done.stderr
    return path


@pytest.fixture
def artifact(folder):
    return folder / "run" / "artifact"


def table_of(text):
    """First cell → the other cells of each line of tables printed with --plain."""
    lines = [line.split("\t") for line in text.splitlines()]
    return {name: cells for name, *cells in lines}


def test_train_prints_what_metrics_json_says(folder):
    shown = table_of((folder / "shown.txt").read_text())
    test = json.loads((folder / "run" / "metrics.json").read_text())["test"]
    assert shown["all rows"][2] == f"{test['pooled']['auc']:.4f}"
    for division in test["divisions"].values():
        for name, domain in division["domains"].items():
            assert shown[name][:2] == [str(domain["rows"]), str(domain["positives"])]
            assert shown[name][2] == f"{domain['auc']:.4f}"


def test_a_run_that_exists_is_not_overwritten(folder):
    before = (folder / "run" / "metrics.json").read_bytes()
    done = loractr("train", folder / "config.yaml", "--out", folder / "run")
    assert done.exit_code == 2
    assert "--resume" in done.stderr
    assert (folder / "run" / "metrics.json").read_bytes() == before


def test_resuming_a_finished_run_prints_its_metrics(folder):
    done = loractr("train", folder / "config.yaml", "--out", folder / "run", "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "run" / "metrics.json").read_text())


def test_settings_of_the_command_line_are_part_of_the_run(folder, tmp_path):
    options = ("--set", "seed=7", "--set", "training.epochs=0.5", "--threads", "1")
    done = loractr("train", folder / "config.yaml", "--out", tmp_path / "run", *options, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["seed"] == 7
    assert "epochs: 0.5" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_dry_run_needs_no_folder_and_makes_none(folder):
    before = sorted(path.name for path in folder.iterdir())
    done = loractr("train", folder / "config.yaml", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["rows"] == {"train": 960, "validation": 120, "test": 120}
    # 21 users, 31 items and 4 domains (one unknown each), 4 wide.
    assert plan["parameters"]["embedding"] == 4 * (21 + 31 + 4)
    assert plan["rows_per_second"] > 0
    shown = table_of(loractr("train", folder / "config.yaml", "--dry-run", "--plain").stdout)
    assert shown["train rows"] == ["960"]
    assert sorted(path.name for path in folder.iterdir()) == before


def test_several_seeds_have_a_folder_and_a_line_each(folder, tmp_path):
    options = ("--seeds", 2, "--set", "seed=3", "--plain")
    done = loractr("train", folder / "config.yaml", "--out", tmp_path / "runs", *options)
    assert done.exit_code == 0, done.stderr
    shown = table_of(done.stdout)
    aucs = []
    for name in ("seed-3", "seed-4"):
        test = json.loads((tmp_path / "runs" / name / "metrics.json").read_text())["test"]
        aucs.append(test["pooled"]["auc"])
        assert shown[name][2] == f"{aucs[-1]:.4f}"
    assert shown["mean"][2] == f"{np.mean(aucs):.4f}"
    assert shown["standard deviation"][2] == f"{np.std(aucs, ddof=1):.4f}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "add --out RUN"),
        (["--out", "{tmp_path}/run", "--jobs", "2"], "add --seeds N"),
        (["--out", "{tmp_path}/run", "--seeds", "2", "--device", "toaster"], "cannot be used"),
        (["--out", "{tmp_path}/run", "--device", "toaster"], "device 'toaster' cannot be used"),
        (["--out", "{tmp_path}/run", "--seeds", "0"], "--seeds"),
        (["--out", "{tmp_path}/run", "--threads", "0"], "--threads"),
        (["--out", "{tmp_path}/run", "--set", "training.epochs"], "must look like"),
        (["--out", "{tmp_path}/run", "--set", "training.epoch=3"], "did you mean 'epochs'"),
        (["--out", "{tmp_path}/run", "--set", "model.hidden_sizes=[]", "--set", "seed=-1"], "seed"),
        (["--out", "{tmp_path}/run", "--set", "data.fields=[nobody]"], "nobody"),
        (["--out", "{tmp_path}/run", "--set", "method.rank.fixed=99"], "99"),
        (["--out", "{tmp_path}/run", "--set", "method.targets=[nothing.*]"], "nothing"),
    ],
)
def test_bad_options_of_train_have_status_2(folder, tmp_path, options, message):
    options = [option.format(tmp_path=tmp_path) for option in options]
    done = loractr("train", folder / "config.yaml", *options)
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("content", ["", "data: [", "- 1\n- 2", "data: {source: nothing}"])
def test_a_file_that_is_no_configuration_has_status_2(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    done = loractr("train", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "ConfigError" in done.stderr
    assert not (tmp_path / "run").exists()


def test_evaluate_of_the_prepared_data_is_the_test_of_the_run(folder, artifact):
    written = json.loads((folder / "run" / "metrics.json").read_text())
    for split, options in (("test", ()), ("validation", ("--split", "validation"))):
        done = loractr("evaluate", artifact, folder / "prepared", "--json", *options)
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        said = found.pop("warnings")
        assert found == written[split]
        assert any("chose the best epoch" in one for one in said) == (split == "validation")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_evaluate_measures_raw_rows_as_scikit_learn_does(artifact, tmp_path, kind):
    raw = click_log(200, seed=1)
    file = tmp_path / f"raw.{kind}"
    raw.write_parquet(file) if kind == "parquet" else raw.write_csv(file)
    found = json.loads(loractr("evaluate", artifact, file, "--json").stdout)
    probability = load(artifact).predict(raw)
    assert found["pooled"]["auc"] == pytest.approx(roc_auc_score(raw["label"], probability))
    assert found["pooled"]["log_loss"] == pytest.approx(log_loss(raw["label"], probability))
    kids = (raw["tab"] == "kids").to_numpy()
    expected = roc_auc_score(raw["label"].to_numpy()[kids], probability[kids])
    assert found["divisions"]["tab"]["domains"]["kids"]["auc"] == pytest.approx(expected)


def test_rows_of_an_unseen_domain_are_shown_apart(artifact, tmp_path):
    raw = click_log(200, seed=1).with_columns(
        tab=pl.when(pl.col("tab") == "kids").then(pl.lit("shop")).otherwise("tab")
    )
    raw.write_parquet(tmp_path / "raw.parquet")
    done = loractr("evaluate", artifact, tmp_path / "raw.parquet", "--by", "tab", "--plain")
    shown = table_of(done.stdout)
    assert shown["kids"] == ["0", "0", "", "", "", "no rows"]
    assert int(shown["(unseen)"][0]) == (raw["tab"] == "shop").sum()


def test_by_shows_one_division(folder, artifact):
    done = loractr("evaluate", artifact, folder / "prepared", "--by", "age")
    assert "by age" in done.stdout
    assert "by tab" not in done.stdout


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_predict_adds_a_column_to_the_raw_rows_in_their_order(artifact, tmp_path, kind):
    raw = click_log(300, seed=2).drop("label").sort("price")
    source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    raw.write_parquet(source) if kind == "parquet" else raw.write_csv(source)
    done = loractr("predict", artifact, source, "--out", target)
    assert done.exit_code == 0, done.stderr
    found = (
        pl.read_parquet(target)
        if kind == "parquet"
        else pl.read_csv(target, schema={**raw.schema, "probability": pl.Float32})
    )
    assert found.drop("probability").equals(raw)
    np.testing.assert_array_equal(found["probability"], load(artifact).predict(raw))
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, target.name]


def test_predict_of_prepared_data_is_the_prediction_of_the_run(folder, artifact, tmp_path):
    done = loractr("predict", artifact, folder / "prepared", "--out", tmp_path / "out.parquet")
    assert done.exit_code == 0, done.stderr
    expected = pl.read_parquet(folder / "run" / "predictions.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet").equals(expected)


def test_inspect_counts_parameters_and_names_versions(folder, artifact):
    found = json.loads(loractr("inspect", artifact, "--json").stdout)
    written = json.loads((folder / "run" / "metrics.json").read_text())
    counted = {key: written["parameters"][key] for key in found["parameters"]}
    assert found["parameters"] == counted
    assert found["active"]["adapters"] == {"tab": {"feed": "v1", "home": "v1", "kids": "v1"}}
    shown = table_of(loractr("inspect", artifact, "--plain").stdout)
    assert shown["method"] == ["mlora"]
    assert shown["feed"][0] == "v1"
    assert shown["item"] == ["categorical", "31"]


def other_run(folder, tmp_path):
    """Prepared data of other rows: the same schema, but other ids."""
    click_log(1200, seed=9).write_parquet(tmp_path / "log.parquet")
    (tmp_path / "config.yaml").write_text(CONFIG.format(path=tmp_path))
    loractr("prepare", tmp_path / "config.yaml", "--out", tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_data_prepared_for_another_model_is_refused(folder, artifact, tmp_path, verb):
    options = ["--out", tmp_path / "out.csv"] if verb == "predict" else []
    done = loractr(verb, artifact, other_run(folder, tmp_path), *options)
    assert done.exit_code == 2
    assert "its indices mean other ids" in done.stderr


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["{folder}/prepared", "--by", "sex"], 2, "no division 'sex'; it has 'tab', 'age'"),
        (["{folder}/log.parquet", "--split", "test"], 2, "has no splits"),
        (["{folder}/prepared", "--split", "all"], 2, "--split"),
        (["{folder}/nothing.parquet"], 2, "does not exist"),
        (["{folder}/config.yaml"], 1, "holds no Parquet or CSV file"),
        (["{tmp_path}"], 1, "holds no Parquet or CSV file"),
        (["{tmp_path}/unlabelled.csv"], 1, "column 'label', wanted by the label"),
        (["{tmp_path}/priceless.csv"], 1, "column 'price'"),
        (["{tmp_path}/broken.parquet"], 1, "cannot be read as Parquet"),
        (["{tmp_path}/empty.csv"], 1, "empty"),
    ],
)
def test_bad_data_of_evaluate(folder, artifact, tmp_path, options, status, message):
    if options[0] != "{tmp_path}":
        raw = click_log(20, seed=3)
        raw.drop("label").write_csv(tmp_path / "unlabelled.csv")
        raw.drop("price").write_csv(tmp_path / "priceless.csv")
        (tmp_path / "broken.parquet").write_text("PAR1 no")
        (tmp_path / "empty.csv").touch()
    options = [option.format(folder=folder, tmp_path=tmp_path) for option in options]
    done = loractr("evaluate", artifact, *options)
    assert done.exit_code == status, done.stderr
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("{folder}/log.parquet", "is the data itself"),
        ("{tmp_path}/out.json", "ends in none of"),
        ("{tmp_path}/no/out.csv", "there is no folder"),
        ("{tmp_path}", "is a directory"),
    ],
)
def test_bad_targets_of_predict(folder, artifact, tmp_path, out, message):
    out = out.format(folder=folder, tmp_path=tmp_path)
    done = loractr("predict", artifact, folder / "log.parquet", "--out", out)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_column_called_probability_is_not_overwritten(artifact, tmp_path):
    raw = click_log(20, seed=3).with_columns(probability=0.5)
    raw.write_parquet(tmp_path / "in.parquet")
    done = loractr("predict", artifact, tmp_path / "in.parquet", "--out", tmp_path / "out.parquet")
    assert done.exit_code == 2
    assert "has a column 'probability' already" in done.stderr


def test_a_damaged_artifact_is_a_failure_that_names_the_file(folder, artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "artifact")
    (tmp_path / "artifact" / "base" / "model.safetensors").write_bytes(b"not any more")
    for verb, options in (
        ("evaluate", [folder / "prepared"]),
        ("predict", [folder / "prepared", "--out", tmp_path / "out.csv"]),
        ("inspect", []),
    ):
        done = loractr(verb, tmp_path / "artifact", *options)
        assert done.exit_code == 1
        assert "model.safetensors is damaged" in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_run_is_not_taken_for_its_artifact(folder):
    done = loractr("inspect", folder / "run")
    assert done.exit_code == 1
    assert str(folder / "run" / "artifact") in done.stderr


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_run_can_be_resumed(folder, tmp_path):
    arguments = ["train", str(folder / "config.yaml"), "--out", str(tmp_path / "run")]
    arguments += ["--set", "training.epochs=10000", "--set", "training.patience=10000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "loractr", *arguments], stderr=subprocess.PIPE, text=True
    )
    history = tmp_path / "run" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not history.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; nothing half-written stays" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not list((tmp_path / "run").rglob("*.partial*"))
