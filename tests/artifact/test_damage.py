"""Whatever was done to an artifact's files: it is refused by name, or it changes nothing."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loractr import load
from loractr.errors import ArtifactError


@pytest.fixture
def artifact(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def empty(file):
    file.write_bytes(b"")


def append(file):
    file.write_bytes(file.read_bytes() + b" ")


def make_a_folder(file):
    file.unlink()
    file.mkdir()


def reseal(path):
    """Give every file the digest that it has now, as someone would who changes files on purpose."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        if (path / name).exists():
            manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    manifest["base"] = manifest["files"]["base/model.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


OTHERS = {"home": "v1", "kids": "v1"}
DAMAGES = [flip, truncate, empty, append, Path.unlink, make_a_folder]
FILES = [
    "config.json",
    "schema.json",
    "base/model.safetensors",
    "vocabulary/item.parquet",
    "activeness/activeness.parquet",
    "adapters/tab/feed/v1/adapter_config.json",
    "adapters/tab/kids/v1/adapter_model.safetensors",
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_name(artifact, name, damage):
    damage(artifact / name)
    with pytest.raises(ArtifactError, match=re.escape(str(artifact / name))) as caught:
        load(artifact)
    assert "missing" in str(caught.value) or "SHA-256" in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_whole_model_is_refused_by_name(finetune, tmp_path, damage):
    finetune.save(tmp_path / "artifact")
    name = tmp_path / "artifact/domains/tab/kids/v1/model.safetensors"
    damage(name)
    with pytest.raises(ArtifactError, match=re.escape(str(name))):
        load(tmp_path / "artifact")


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink, make_a_folder])
def test_a_damaged_manifest_is_refused(artifact, damage):
    damage(artifact / "manifest.json")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load(artifact)


def test_no_changed_byte_of_the_manifest_changes_a_probability(mlora, artifact):
    """Every third byte in turn: refused, or without effect, as in white space."""
    content = (artifact / "manifest.json").read_bytes()
    expected, refused, places = mlora.probabilities(), 0, range(0, len(content), 3)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        (artifact / "manifest.json").write_bytes(changed)
        try:
            scorer = load(artifact)
        except ArtifactError:
            refused += 1
        else:
            np.testing.assert_array_equal(scorer.predict(mlora.frame), expected)
    assert refused > 0.8 * len(places)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "artifact of format 2; this version of loractr reads format 1"),
        ({"format": "1"}, "artifact of format '1'"),
        ({"kind": "loractr prepared data"}, "is not an artifact: its manifest.json is that of"),
        ({"base": "0" * 64}, "its base is not the SHA-256 of base/model"),
        ({"base": "short"}, "base: "),
        ({"files": {}}, "its base is not the SHA-256"),
        ({"extra": 1}, "extra: "),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(artifact, change, message):
    edit(artifact / "manifest.json", lambda values: values.update(change))
    with pytest.raises(ArtifactError, match=message):
        load(artifact)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}"])
def test_any_other_json_is_no_manifest(artifact, text):
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        load(artifact)


@pytest.mark.parametrize(
    ("active", "message"),
    [
        ({"tab": {"feed": "v1", "home": "v1"}}, "it names no adapters of 'tab: kids'"),
        ({}, "it names no adapters of 'tab: feed', 'tab: home', 'tab: kids'"),
        ({"tab": {"x": "v1"}}, "adapters of 'tab: x', which schema.json does not have"),
        ({"hour": {"<12": "v1"}}, "adapters of 'hour: <12', which"),
        (
            {"tab": {"feed": "v2", "home": "v1", "kids": "v1"}},
            "does not list 'adapters/tab/feed/v2",
        ),
        ({"tab": {"feed": "../v1", "home": "v1", "kids": "v1"}}, "active.adapters.tab.feed: "),
        ({"tab": {"feed": "v0", "home": "v1", "kids": "v1"}}, "active.adapters.tab.feed: "),
    ],
)
def test_active_versions_must_fit_the_schema_and_the_files(artifact, active, message):
    edit(artifact / "manifest.json", lambda values: values["active"].update(adapters=active))
    with pytest.raises(ArtifactError, match=message):
        load(artifact)


def test_a_version_that_is_not_active_is_not_read(mlora, artifact):
    folder = artifact / "adapters/tab/feed"
    shutil.copytree(folder / "v1", folder / "v2")
    flip(folder / "v2/adapter_model.safetensors")
    expected = mlora.probabilities()
    np.testing.assert_array_equal(load(artifact).predict(mlora.frame), expected)
    unread = {"adapters/tab/feed/v2/adapter_model.safetensors": "0" * 64}
    edit(artifact / "manifest.json", lambda values: values["files"].update(unread))
    np.testing.assert_array_equal(load(artifact).predict(mlora.frame), expected)


def test_the_active_version_is_the_one_that_scores(mlora, artifact):
    """v2 of one domain, its offset raised: the scores of that domain alone change."""
    folder = artifact / "adapters/tab/feed"
    shutil.copytree(folder / "v1", folder / "v2")
    tensors = load_file(folder / "v2/adapter_model.safetensors")
    tensors["base_model.model.backbone.tower.1.linear.offset"] += 1
    save_file(tensors, folder / "v2/adapter_model.safetensors")

    def activate(values):
        values["active"]["adapters"]["tab"]["feed"] = "v2"
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            values["files"][f"adapters/tab/feed/v2/{name}"] = "0" * 64

    edit(artifact / "manifest.json", activate)
    reseal(artifact)
    changed = load(artifact).predict(mlora.frame) != mlora.probabilities()
    feed = (mlora.frame["tab"] == "feed").to_numpy()
    assert changed[feed].any()
    assert not changed[~feed].any()


def test_an_adapter_of_another_base_is_refused(artifact):
    tensors = load_file(artifact / "base/model.safetensors")
    tensors["head.weight"] += 1
    save_file(tensors, artifact / "base/model.safetensors")
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"feed/v1/adapter_config\.json: this adapter belongs"):
        load(artifact)


def test_another_domains_adapter_is_refused(artifact):
    folder = artifact / "adapters/tab"
    shutil.rmtree(folder / "kids/v1")
    shutil.copytree(folder / "feed/v1", folder / "kids/v1")
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"belongs to .*'feed'.*, not to .*'kids'"):
        load(artifact)


def test_tensors_that_do_not_fit_the_configuration_are_refused(artifact):
    edit(artifact / "config.json", lambda values: values["model"].update(hidden_sizes=[6, 5]))
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"is .*\(4, 6\), not .*\(5, 6\)"):
        load(artifact)


def test_missing_tensors_are_named(artifact):
    tensors = load_file(artifact / "base/model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, artifact / "base/model.safetensors")
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"one of the two lacks 'head\.bias'"):
        load(artifact)


def test_a_pickle_in_the_place_of_tensors_is_not_opened(artifact):
    content = b"cos\nsystem\n(S'touch /tmp/opened'\ntR."
    (artifact / "base/model.safetensors").write_bytes(content)
    reseal(artifact)
    with pytest.raises(ArtifactError, match="is not a safetensors file"):
        load(artifact)


@pytest.mark.parametrize("name", ["config.json", "schema.json"])
def test_settings_of_another_version_are_refused_with_a_reason(artifact, name):
    edit(artifact / name, lambda values: values.update(of_tomorrow=1))
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"cannot be used by this version(?s:.)*of_tomorrow"):
        load(artifact)


def test_a_path_that_is_no_artifact_is_refused_with_a_hint(mlora, tmp_path):
    with pytest.raises(ArtifactError, match=r"it does not exist(?s:.)*RUN/artifact"):
        load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"it has no manifest\.json"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"it has no manifest\.json"):
        load(tmp_path / "file")
    mlora.save(tmp_path / "run/artifact")
    with pytest.raises(
        ArtifactError,
        match=re.escape(f"Fix: name the artifact within that run: {tmp_path}/run/artifact"),
    ):
        load(str(tmp_path / "run"))
