"""What lies where in an artifact, seen without loractr's own reader."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from loractr import Route, evaluate, load
from loractr.artifact.layout import folder_name
from loractr.model import build_plain

WEIRD = [
    "a/b",
    "..",
    ".",
    ".hidden",
    "",
    "ü",
    "x" * 300,
    "é" * 300,
    "A b",
    "100%",
    "+",
    "a\nb",
    "a\\b",
]


def files(path):
    return sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())


def test_every_file_has_its_place(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    assert files(tmp_path / "artifact") == [
        "activeness/activeness.parquet",
        "adapters/tab/feed/v1/adapter_config.json",
        "adapters/tab/feed/v1/adapter_model.safetensors",
        "adapters/tab/home/v1/adapter_config.json",
        "adapters/tab/home/v1/adapter_model.safetensors",
        "adapters/tab/kids/v1/adapter_config.json",
        "adapters/tab/kids/v1/adapter_model.safetensors",
        "base/model.safetensors",
        "config.json",
        "manifest.json",
        "schema.json",
        "vocabulary/item.parquet",
        "vocabulary/tags.parquet",
        "vocabulary/user.parquet",
    ]


def test_whole_models_have_a_folder_each(finetune, tmp_path):
    finetune.save(tmp_path / "artifact")
    found = [f for f in files(tmp_path / "artifact") if f.startswith(("domains", "adapters"))]
    assert found == [
        "domains/tab/home/v1/model.safetensors",
        "domains/tab/kids/v1/model.safetensors",
    ]


def test_the_manifest_has_the_sha256_of_every_other_file(mlora, tmp_path):
    path = tmp_path / "artifact"
    mlora.save(path)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["kind"], manifest["format"]) == ("loractr artifact", 1)
    assert manifest["active"] == {
        "adapters": {"tab": {"feed": "v1", "home": "v1", "kids": "v1"}},
        "domains": {},
        "mixers": {},
    }
    assert manifest["files"] == {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest()
        for name in files(path)
        if name != "manifest.json"
    }
    assert manifest["base"] == manifest["files"]["base/model.safetensors"]


def test_the_base_is_the_plain_model_by_name_and_shape(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    base = load_file(tmp_path / "artifact/base/model.safetensors")
    plain = build_plain(mlora.config.model, mlora.schema, torch.Generator()).state_dict()
    assert {name: value.shape for name, value in base.items()} == {
        name: tuple(value.shape) for name, value in plain.items()
    }


def test_the_files_of_a_domain_give_the_papers_formula(mlora, tmp_path):
    """y = W x + b + s * (B A x) + c, in numpy and float64, from the files alone."""
    path = tmp_path / "artifact"
    mlora.save(path)
    base = load_file(path / "base/model.safetensors")
    kids = load_file(path / "adapters/tab/kids/v1/adapter_model.safetensors")
    config = json.loads((path / "adapters/tab/kids/v1/adapter_config.json").read_text())
    x = np.random.default_rng(0).normal(size=6)
    layer, prefix = "backbone.tower.1.linear", "base_model.model.backbone.tower.1.linear"
    a, b = (kids[f"{prefix}.lora_{which}.weight"].astype(np.float64) for which in "AB")
    assert (a.shape, b.shape) == ((2, 6), (4, 2))
    alpha, rank = config["alpha_pattern"][layer], config["rank_pattern"][layer]
    update = kids[f"{prefix}.row_scale"] * (alpha / rank * b @ a @ x) + kids[f"{prefix}.offset"]
    expected = base[f"{layer}.weight"] @ x + base[f"{layer}.bias"] + update
    with torch.no_grad():
        found = mlora.model.backbone.tower.get_submodule("1.linear")(
            torch.from_numpy(x[None]).float(),
            Route.hard(torch.tensor([mlora.schema.divisions[0].domains.index("kids")]), 3),
        )
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_names_its_layers_ranks_and_owner(mlora, tmp_path):
    path = tmp_path / "artifact"
    mlora.save(path)
    folder = path / "adapters/tab/feed/v1"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == ["backbone.tower.0.linear", "backbone.tower.1.linear"]
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"backbone.tower.1.linear": 2}
    base = hashlib.sha256((path / "base/model.safetensors").read_bytes()).hexdigest()
    assert config["loractr"] == {"base": base, "division": "tab", "domain": "feed"}
    with safe_open(folder / "adapter_model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == [
            f"base_model.model.backbone.tower.{layer}.linear.{leaf}"
            for layer in (0, 1)
            for leaf in ("lora_A.weight", "lora_B.weight", "offset", "row_scale")
        ]


def test_a_domain_keeps_its_own_metrics(mlora, tmp_path):
    mlora.save(tmp_path / "without")
    assert not list((tmp_path / "without").rglob("metrics.json"))
    predictions = mlora.frame.select("tab").with_columns(
        label=pl.int_range(pl.len()) % 2, probability=pl.Series(mlora.probabilities())
    )
    metrics = evaluate(predictions.filter(pl.col("tab") != "feed"), ["tab"])
    mlora.save(tmp_path / "artifact", metrics={"validation": metrics})
    adapters = tmp_path / "artifact/adapters/tab"
    kids = json.loads((adapters / "kids/v1/metrics.json").read_text())
    assert kids["validation"]["rows"] == 20
    assert kids["validation"]["auc"] == metrics.divisions["tab"].domains["kids"].auc
    assert not (adapters / "feed/v1/metrics.json").exists()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("kids", "kids"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".", "%2E"),
        ("", "+"),
        ("+", "%2B"),
        ("ü", "%C3%BC"),
        ("100%", "100%25"),
    ],
)
def test_a_folder_is_called_like_its_domain_as_far_as_that_is_safe(name, folder):
    assert folder_name(name) == folder


def test_folders_are_distinct_short_and_inside():
    names = [*WEIRD, "%2E", "a%2Fb", "x" * 299 + "y", "x" * 120, "x" * 121, folder_name("x" * 300)]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert 0 < len(folder.encode()) <= 120
        assert not set(folder) & set("/\\\n\0")
        assert not folder.startswith(".")


@pytest.mark.parametrize("method", ["mlora", "single"])
def test_domains_of_any_name_come_back(finished, click_log, tmp_path, method):
    owners = WEIRD if method == "single" else ()
    saved = finished({"name": method}, frame=click_log(60, WEIRD), owners=owners)
    assert set(saved.schema.divisions[0].domains) == set(WEIRD)
    saved.save(tmp_path / "artifact")
    found = load(tmp_path / "artifact").predict(saved.frame)
    np.testing.assert_array_equal(found, saved.probabilities())
