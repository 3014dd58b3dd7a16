"""What a YAML file may say, and what is said back when it is wrong: places, hints, all at once."""

import copy
import math
import re
import typing
from types import NoneType, UnionType

import pytest
import yaml
from pydantic import BaseModel

from loractr.adapters.mlora import MLoRA
from loractr.backbones import BACKBONES
from loractr.backbones.config import BackboneName
from loractr.config import METHODS, MethodConfig, RunConfig, dump_config, load_config, parse_config
from loractr.config.text import read_values
from loractr.errors import ConfigError
from loractr.method import Method
from loractr.stage import Settings, Stage

MINIMAL = {"data": {"source": "synthetic"}, "method": {"name": "mlora"}}
FULL = """
data:
  source: movielens-1m
  path: ../shared/data/ml-1m
  label: {column: rating, positive: "== 5"}
  fields: [user, {name: year, kind: numerical, missing: mean}, {name: genres, kind: sequence}]
  divisions:
    gender: {column: gender, unseen: backbone}
    ages: {column: age, groups: {young: [1, 18], middle: [25], old: [35, 45]}, unseen: error}
  domain_as_field: true
  split: {kind: stratified, fractions: [0.6, 0.2, 0.2], seed: 123}
model: {backbone: deepfm, embedding_size: 8, hidden_sizes: [256, 128], dropout: 0.1}
method: {name: mlora, divisions: [gender], rank: {divisor: 32}, recipe: two_stage}
training:
  batch_size: 64
  learning_rate: 1e-3
  clip_norm: 2.0
  patience: 0.5
  stages: {adapt: {learning_rate: 1e-4, clip_norm: null}}
seed: 3
"""


def changed(**values):
    """The smallest configuration with some values: method__rank sets method.rank."""
    result = copy.deepcopy(MINIMAL)
    for path, value in values.items():
        place = result
        *sections, key = path.split("__")
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return result


def problems(values):
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    return list(caught.value.problems)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_says_what_it_says(file):
    config = load_config(file(FULL))
    assert config.seed == 3
    assert config.data.divisions["ages"].groups["old"] == (35, 45)
    assert config.method == MLoRA(
        name="mlora", divisions=("gender",), rank={"divisor": 32}, recipe="two_stage"
    )
    assert config.training.learning_rate == 1e-3  # YAML reads 1e-3 as a text


def test_the_smallest_configuration_is_complete():
    config = parse_config(MINIMAL)
    assert [stage.name for stage in config.stages()] == ["joint"]
    assert config.model.backbone == "deepfm"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"trainin": {}}, "trainin: unknown key; did you mean 'training'?"),
        ({"training__batchsize": 3}, "training.batchsize: unknown key; did you mean 'batch_size'?"),
        (
            {"training__embedding_updates": "sparse"},
            "training.embedding_updates: unknown key; did you mean 'embedding_optimizer'?",
        ),
        ({"method__rank": {"divsor": 2}}, "method.rank.divsor: unknown key; did you mean 'divisor"),
        ({"method__target": []}, "method.target: unknown key; did you mean 'targets'?"),
        (
            {"training__stages": {"joint": {"epoch": 3}}},
            "training.stages.joint.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            {"training__sampling": {"temperatur": 2}},
            "training.sampling.temperatur: unknown key; did you mean 'temperature'?",
        ),
        (
            {"data__split": {"kind": "stratified", "fraction": []}},
            "data.split.fraction: unknown key; did you mean 'fractions'?",
        ),
        (
            {"data__fields": ["a", {"name": "b", "knd": "numerical"}]},
            "data.fields.1.knd: unknown key; did you mean 'kind'?",
        ),
        (
            {"data__divisions": {"g": {"column": "x", "group": {}}}},
            "data.divisions.g.group: unknown key; did you mean 'groups'?",
        ),
        (
            {"zzz": 1},
            "zzz: unknown key; known keys: data, kernels, method, model, seed, start_from, train",
        ),
    ],
)
def test_a_misspelt_key_is_told_with_its_place_and_what_was_meant(values, expected):
    (problem,) = problems(changed(**values))
    assert problem.startswith(expected)


def test_a_key_of_another_method_is_unknown():
    """Only the chosen method's keys count, though other methods have that one."""
    (problem,) = problems(changed(method={"name": "single", "rank": {"divisor": 2}}))
    assert problem == "method.rank: unknown key; known keys: divisions, name"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seed": -1}, "seed: input should be greater than or equal to 0, not -1"),
        ({"seed": 1.5}, "seed: input should be a valid integer"),
        ({"seed": 2**63}, "seed: input should be less than 9223372036854775808"),
        ({"training__batch_size": "many"}, "training.batch_size: input should be a valid integer"),
        ({"training__epochs": 0}, "training.epochs: input should be greater than 0, not 0"),
        ({"training__epochs": float("inf")}, "training.epochs: input should be a finite number"),
        ({"training__patience": float("nan")}, "training.patience: input should be"),
        ({"training__ema": 1.0}, "training.ema: input should be less than 1, not 1.0"),
        ({"training__select": "auc"}, "training.select: input should be 'mean_auc', 'wauc'"),
        ({"training__sampling": 3}, "training.sampling: expected settings, as `key: value`, not 3"),
        ({"training__stages": {"joint": {"epochs": "x"}}}, "training.stages.joint.epochs: input"),
        ({"model__backbone": "deefm"}, "model.backbone: input should be 'mlp', 'wide_deep', 'nfm'"),
        ({"model__dropout": 1.0}, "model.dropout: input should be less than 1, not 1.0"),
        ({"model__hidden_sizes": []}, "model.hidden_sizes: tuple should have at least 1 item"),
        ({"model__hidden_sizes": 5}, "model.hidden_sizes: expected a list, not 5"),
        ({"method__divisions": "tab"}, "method.divisions: expected a list, not 'tab'"),
        ({"method__rank": 3}, "method.rank: expected settings, as `key: value`, not 3"),
        ({"method__rank": {}}, "method.rank: give either fixed or divisor"),
        ({"method__rank": {"fixed": [1, "a"]}}, "method.rank.fixed.1: input should be a valid int"),
        ({"data__fields": ["a", {"kind": "numerical"}]}, "data.fields.1.name: missing"),
        ({"data__fields": [{"name": "b", "kind": "nm"}]}, "data.fields.0.kind: input should be 'c"),
        ({"data__divisions": {"g": {"unseen": "error"}}}, "data.divisions.g.column: missing"),
        ({"data__divisions": {"g": 3}}, "data.divisions.g: expected settings"),
        ({"data__divisions": ["g"]}, "data.divisions: expected settings"),
        ({"data__label": {"positive": "=5"}}, "data.label.positive: expected a comparison with"),
        ({"data__path": 3}, "data.path: expected a path, not 3"),
        ({"data": None}, "data: expected settings, as `key: value`, not None"),
        (
            {"data__split": {"kind": "random", "fractions": [0.5, 0.3, 0.1]}},
            "data.split.fractions: train, validation and test must sum to 1, not 0.9",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_place(values, expected):
    (problem,) = problems(changed(**values))
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"method__name": "mlroa"}, "method.name: unknown 'mlroa'; did you mean 'mlora'?"),
        ({"method__name": "zzz"}, "method.name: unknown 'zzz'; known: mix, single, finetune, ret"),
        ({"method": {}}, "method.name: missing"),
        ({"method": 3}, "method: expected settings, as `key: value`, not 3"),
        ({"data__split": {"kind": "stratifid"}}, "data.split.kind: unknown 'stratifid'; did you m"),
        ({"data__split": {"seed": 1}}, "data.split.kind: missing"),
    ],
)
def test_an_unknown_name_is_told_with_the_one_that_was_meant(values, expected):
    (problem,) = problems(changed(**values))
    assert problem.startswith(expected)


def test_where_several_kinds_are_allowed_all_are_told():
    (problem,) = problems(changed(data__fields=["a", 3]))
    assert problem.startswith("data.fields.1: input should be a valid string, not 3; or expected ")
    (problem,) = problems(changed(data__deduplicate=3))
    assert "valid boolean" in problem
    assert "expected a list" in problem


def test_all_problems_come_at_once():
    found = problems(
        changed(
            data__domain_as_field="maybe",
            model__dropout=-0.5,
            method__recipe="jont",
            training__epochs=-1,
            training__batchsize=3,
            seed="x",
        )
    )
    places = [problem.split(":")[0] for problem in found]
    assert sorted(places) == [
        "data.domain_as_field",
        "method.recipe",
        "model.dropout",
        "seed",
        "training.batchsize",
        "training.epochs",
    ]


def test_the_error_counts_its_problems_and_lists_them():
    with pytest.raises(ConfigError, match=r"2 configuration problems:\n  - seed: .*\n  - zzz: "):
        parse_config(changed(seed=-1, zzz=1))


def test_a_long_value_is_shortened():
    (problem,) = problems(changed(seed=list(range(1000))))
    assert len(problem) < 200


def test_a_message_never_names_a_class_of_ours():
    for values in ({"data__fields": [{"kind": 1}]}, {"method__rank": {"fixed": "a"}}):
        text = "\n".join(problems(changed(**values)))
        assert not re.search(r"Field|Rank|function|tuple\[|constrained", text), text


@pytest.mark.parametrize("method", ["mix", "single", "finetune", "mlora"])
def test_a_method_works_on_divisions_that_exist(method):
    values = changed(data__divisions={"tab": {"column": "tab"}})
    values["method"] = {"name": method, "divisions": ["hour"]}
    (problem,) = problems(values)
    assert problem.endswith("method.divisions names 'hour'; data.divisions has 'tab'")


def test_the_sources_own_divisions_are_not_known_yet_and_not_refused():
    assert parse_config(changed(method__divisions=["gender"])).method.divisions == ("gender",)


def test_settings_of_a_stage_come_from_training_where_it_has_none_of_its_own(file):
    pretrain, adapt = load_config(file(FULL)).stages()
    assert (pretrain.learning_rate, adapt.learning_rate) == (1e-3, 1e-4)
    assert (pretrain.clip_norm, adapt.clip_norm) == (2.0, None)  # null is a setting
    assert (pretrain.batch_size, adapt.batch_size) == (64, 64)
    assert (pretrain.name, adapt.name) == ("pretrain", "adapt")
    assert adapt.independent


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"data__source": "table", "data__synthetic": {"rows": 5}},
            "data: synthetic: means nothing for source 'table'",
        ),
        (
            {"data__source": "movielens-1m", "data__domains": ["a"]},
            "data: domains: means nothing for source 'movielens-1m'",
        ),
        (
            {"model__backbone": "mlp", "model__cross": "matrix"},
            "model: cross means nothing for backbone 'mlp'",
        ),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(values, expected):
    assert problems(changed(**values)) == [expected]


def test_the_tuned_recipe_leaves_alone_what_training_says():
    values = changed(method={"name": "mix", "recipe": "tuned"}, training={"learning_rate": 0.01})
    retrain = parse_config(values).stages()[1]
    assert (retrain.dropout, retrain.embedding_dropout, retrain.ema) == (0.3, 0.4, 0.99)
    assert retrain.learning_rate == pytest.approx(0.003)
    values["training"] |= {"dropout": 0.1, "embedding_dropout": 0.2, "ema": 0.9}
    values["training"]["embedding_learning_rate"] = 0.1
    retrain = parse_config(values).stages()[1]
    assert (retrain.dropout, retrain.embedding_dropout, retrain.ema) == (0.1, 0.2, 0.9)
    assert retrain.table_learning_rate == pytest.approx(0.03)


def test_a_setting_equal_to_the_default_still_counts_as_written():
    values = changed(training__epochs=5, training__stages={"joint": {"epochs": 100}})
    assert parse_config(values).stages()[0].epochs == 100


@pytest.mark.parametrize(
    ("method", "stage", "known"),
    [
        ({"name": "mlora"}, "adapt", "'joint'"),
        ({"name": "mlora", "recipe": "two_stage"}, "joint", "'pretrain', 'adapt'"),
        ({"name": "single"}, "train", "'single'"),
        ({"name": "finetune"}, "tune", "'pretrain', 'finetune'"),
        ({"name": "mix", "recipe": "tuned"}, "retain", "'train', 'retrain'"),
    ],
)
def test_a_stage_that_the_recipe_does_not_have_is_refused(method, stage, known):
    (problem,) = problems(changed(method=method, training__stages={stage: {"epochs": 3}}))
    expected = f"training.stages: method {method['name']!r} has no stage {stage!r}; it has {known}"
    assert problem == expected


def test_domain_stages_have_settings_of_their_own_too():
    values = changed(method={"name": "finetune"}, training__stages={"finetune": {"epochs": 2}})
    config = parse_config(values)
    (stage,) = config.domain_stages("tab", "home")
    assert (stage.epochs, stage.rows) == (2, ("tab", "home"))
    assert config.stages()[0].epochs == 100


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"embedding_optimizer": "lazy_adam", "weight_decay": 0.1}, r"no weight decay \(0.1\)"),
        (
            {
                "embedding_optimizer": "rowwise_adagrad",
                "embedding_weight_decay": 0.2,
                "decoupled": True,
            },
            r"rowwise_adagrad moves only .* no weight decay \(0.2\)",
        ),
        ({"sampling": {"temperature": 2}, "domain_sequential": True}, "are orders of the rows"),
        ({"domains_per_batch": 4, "domain_sequential": True}, "domain_sequential and domains_per"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_before_any_work(training, expected):
    (problem,) = problems(changed(training=training))
    assert problem.startswith("training, in stage 'joint': ")
    assert re.search(expected, problem)


def test_settings_are_judged_as_each_stage_has_them():
    """Lazy rows are fine once the stage itself says that its embeddings do not decay."""
    training = {"embedding_optimizer": "lazy_adam", "weight_decay": 0.1, "clip_norm": 1.0}
    training["stages"] = {"joint": {"embedding_weight_decay": 0}}
    assert not parse_config(changed(training=training)).stages()[0].conflicts()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("2026-03-12", "2026-03-12 10:30:00", "2026-03-12T10:30:00Z")),
        *(
            (text, text)
            for text in ("10:30", "1:30:00", "007", "NO", "no", "yes", "on", "Off", "y")
        ),
        *((text, text) for text in ("0x1F", "0o17", "0b1", "1e-3", "=", "1.2.3", "+")),
        *((text, text) for text in ("100_000", "2024_01", "1_0.5")),
        *((text, None) for text in ("null", "~", "NULL", "")),
        *((text, True) for text in ("true", "True", "TRUE")),
        *((text, False) for text in ("false", "False", "FALSE")),
        *((text, int(text)) for text in ("0", "12", "-3", "+4")),
        *((text, float(text)) for text in ("0.5", "-.5", "3.", "1.5e3", "1.5e-3")),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("'12'", "12"),
    ],
)
def test_only_what_is_a_number_true_false_or_null_is_no_text(file, text, value):
    (read,) = read_values(file(f"key: {text}")).values()
    assert (read, type(read)) == (value, type(value))
    assert read_values(file("{}"), [f"key={text}"]) == {"key": value}
    assert read_values(file(yaml.safe_dump({"key": value}))) == {"key": value}


def test_keys_may_be_days_and_mappings_may_be_merged(file):
    text = "base: &base {2026-03-12: 1, a: 2}\nmore: {<<: *base, a: 3}\n"
    assert read_values(file(text)) == {
        "base": {"2026-03-12": 1, "a": 2},
        "more": {"2026-03-12": 1, "a": 3},
    }


@pytest.mark.parametrize("values", [{"domain_as_field": word} for word in ("yes", "no", "on")])
def test_a_switch_may_still_be_yes_or_no(file, values):
    path = file(
        f"data: {{source: synthetic, domain_as_field: {values['domain_as_field']}}}\nmethod: mix"
    )
    assert load_config(path).data.domain_as_field == (values["domain_as_field"] != "no")


def test_a_name_in_place_of_a_section_is_not_kept_as_one(file):
    values = {"data": {"source": "synthetic", "split": "random"}, "method": "mlora"}
    before = copy.deepcopy(values)
    config = parse_config(values)
    assert values == before
    assert config.method == MLoRA(name="mlora")
    assert config.data.split.kind == "random"
    path = file("data: {source: synthetic}\nmethod: {name: multilora, divisions: [a]}")
    assert load_config(path, ["method=mlora", "method.rank.fixed=2"]).method.rank.fixed == 2


def test_a_long_key_leaves_room_for_the_hint():
    (problem,) = problems(changed(**{"training__" + "epochs" * 5_000: 1}))
    assert len(problem) < 1_000
    assert "unknown key; known keys" in problem


def test_overrides_win_over_the_file(file):
    config = load_config(
        file(FULL),
        [
            "training.learning_rate=1e-2",
            "model.hidden_sizes=[32, 16]",
            "method.rank={fixed: 4}",
            "training.stages.pretrain.epochs=2",
            "data.path=/elsewhere/a=b",
            "training.clip_norm=null",
            "seed = 7",
        ],
    )
    assert config.training.learning_rate == 1e-2
    assert config.model.hidden_sizes == (32, 16)
    assert (config.method.rank.fixed, config.method.rank.divisor) == (4, None)
    assert [stage.epochs for stage in config.stages()] == [2, 100]
    assert str(config.data.path) == "/elsewhere/a=b"
    assert config.training.clip_norm is None
    assert config.seed == 7


def test_the_last_of_two_overrides_counts(file):
    assert load_config(file(FULL), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set 'seed' must look like training.epochs=3"),
        ("=3", "must look like training.epochs=3"),
        ("a..b=3", "must look like training.epochs=3"),
        ("seed.x=3", "'seed' holds a value, not settings"),
        ("data.fields.0=a", "'fields' holds a value, not settings"),
        ("seed=[1", "'[1' is not valid YAML"),
        ("training.epoch=3", "training.epoch: unknown key; did you mean 'epochs'?"),
        ("seed=x", "seed: input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_told(file, override, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(file(FULL), [override])


def test_a_file_that_cannot_be_read_is_told_by_name(tmp_path, file):
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    bad = file("")
    bad.write_bytes(b"seed: \xff\xfe")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(bad)


@pytest.mark.parametrize("text", ["data: [", "a: b: c", "\tdata:", "data: {source: synthetic"])
def test_bad_yaml_is_told_with_its_line(file, text):
    with pytest.raises(ConfigError, match=r"config.yaml is not valid YAML: (.|\n)*line 1"):
        load_config(file(text))


def test_a_key_given_twice_is_told_with_its_line(file):
    path = file("data: {source: synthetic}\nmethod: {name: mix}\nseed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"(?s)'seed' is there more than once.*line 3"):
        load_config(path)


@pytest.mark.parametrize("text", ["", "3", "[data, method]", "# all commented out"])
def test_a_file_without_sections_is_told(file, text):
    with pytest.raises(ConfigError, match=r"must hold `data:`, `method:` and so on, not"):
        load_config(file(text))


def test_python_objects_in_yaml_are_refused(file):
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(file("data: !!python/object/apply:os.system [true]"))


@pytest.mark.parametrize("text", [FULL, yaml.safe_dump(MINIMAL)])
def test_what_is_dumped_reads_back_as_the_same_run(file, text):
    config = load_config(file(text))
    again = load_config(file(dump_config(config)))
    assert again == config
    assert again.stages() == config.stages()
    assert dump_config(again) == dump_config(config)


def test_a_dump_shows_defaults_too():
    values = yaml.safe_load(dump_config(parse_config(MINIMAL)))
    assert values["training"]["patience"] == 3.0
    assert values["model"]["hidden_sizes"] == [256, 128, 64]
    assert values["data"]["split"]["kind"] == "stratified"


def test_a_dump_keeps_apart_what_a_stage_says_and_what_it_inherits(file):
    """A default written out would come back as the stage's own, and win over `training`."""
    again = load_config(file(dump_config(load_config(file(FULL)))))
    assert again.training.stages["adapt"].model_fields_set == {"learning_rate", "clip_norm"}
    assert again.stages()[1].batch_size == 64
    assert again.stages()[1].clip_norm is None
    dumped = load_config(file(FULL)).model_dump(mode="json")
    assert dumped["training"]["stages"] == {"adapt": {"learning_rate": 1e-4, "clip_norm": None}}


def test_a_dump_keeps_what_a_field_leaves_to_its_source(file):
    again = load_config(file(dump_config(load_config(file(FULL)))))
    assert again.data.fields[1].model_fields_set == {"name", "kind", "missing"}


def test_leaving_nulls_out_of_a_dump_loses_nothing():
    """No setting has another default than null and null as a choice, stages and fields aside."""
    seen, todo = set(), [RunConfig]
    while todo:
        record = todo.pop()
        seen.add(record)
        for name, info in record.model_fields.items():
            parts = list(_parts(info.annotation))
            optional = NoneType in typing.get_args(info.annotation)
            assert not optional or info.default is None, (record, name)
            found = {p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)}
            todo += found - seen
    assert len(seen) > 10


def _parts(hint):
    yield hint
    if typing.get_origin(hint) is not None or isinstance(hint, UnionType):
        for part in typing.get_args(hint):
            yield from _parts(part)


def test_the_names_of_methods_are_one_list():
    """The registry, the union that a file is checked against, and each method's own name."""
    union = typing.get_args(typing.get_args(MethodConfig)[0])
    assert set(union) == set(METHODS.values())
    for name, method in METHODS.items():
        assert issubclass(method, Method)
        assert typing.get_args(method.model_fields["name"].annotation) == (name,)


def test_the_names_of_backbones_are_one_list():
    assert set(typing.get_args(BackboneName)) == set(BACKBONES)


def test_every_setting_of_a_stage_but_its_role_can_be_configured():
    roles = set(Stage.model_fields) - set(Settings.model_fields)
    assert roles == {
        *("name", "trains", "rows", "route", "division", "independent"),
        *("experts_per_domain", "inherits"),
    }


def test_configurations_cannot_be_changed():
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
