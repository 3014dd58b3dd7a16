"""Hidden sizes found for a number of weights: counts by hand, every method on every backbone, and
a whole run."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from loractr.artifact import load
from loractr.backbones import BACKBONES
from loractr.config import METHODS, RunConfig, parse_config
from loractr.errors import AdapterError, ConfigError, UsageError
from loractr.model import build
from loractr.run import dry_run, run
from loractr.schema import Division, Field, Schema
from loractr.search import match_parameters
from loractr.training.events import Event, Validated

DOMAINS = 3
SCHEMA = Schema(
    fields=(
        Field(name="user", size=90),
        Field(name="item", size=30),
        Field(name="tags", kind="sequence", size=6),
        Field(name="age", kind="numerical"),
    ),
    divisions=(
        Division(name="tab", column="tab", domains=("a", "b", "c")),
        Division(name="hour", column="hour", domains=("day", "night")),
    ),
)
WIDE = 3 * 8 + 1
"""Width of the tower's input: three fields of 8, one number."""


def config(method: dict[str, Any], backbone: str = "mlp", **model: Any) -> RunConfig:
    sizes = {"embedding_size": 8, "hidden_sizes": [64, 32]}
    several = {"divisions": ["tab", "hour"]} if method["name"].startswith("multilora") else {}
    return parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {"backbone": backbone, **sizes, **model},
            "method": {**several, **method},
        }
    )


def found(method: dict[str, Any], target: int, **model: Any) -> tuple[int, ...]:
    return match_parameters(config(method, **model), SCHEMA, target).model.hidden_sizes


def refused(asked: RunConfig, target: int, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        match_parameters(asked, SCHEMA, target, **options)
    return str(error.value)


MODELS = {"single": DOMAINS, "finetune": 1 + DOMAINS}
"""Whole models of the methods that make more than one: one per domain, with or without a base."""


def weights(asked: RunConfig, schema: Schema = SCHEMA) -> int:
    """All weights of a real model but its embeddings, counted one by one; PLATE's prompts once more
    for each domain, whose copies share all else."""
    sizes = {name: p.numel() for name, p in build(asked, schema).named_parameters()}
    one = sum(size for name, size in sizes.items() if not name.startswith("embedding."))
    if asked.method.name == "plate" and asked.method.per_domain:
        one += DOMAINS * sum(size for name, size in sizes.items() if name.startswith("front."))
    return one * MODELS.get(asked.method.name, 1)


HARD = {(method, backbone) for method in ("hamur", "plate") for backbone in BACKBONES}
HARD -= {("plate", "fibinet")}
HARD |= {(m, b) for m in ("single", "finetune") for b in ("autoint", "xdeepfm")}
"""Where what no hidden size scales has more weights than the whole of mix: HAMUR's core of 35 x 35,
PLATE's network of the user prompt in four copies (but for a FiBiNET, which is larger), and copies
of an autoint's or xdeepfm's own."""


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_the_number_of_weights_of_mix_or_says_that_it_cannot(method, backbone):
    target = weights(config({"name": "mix"}, backbone))
    asked = config({"name": method}, backbone)
    if (method, backbone) in HARD:
        said = refused(asked, target)
        least = weights(config({"name": method}, backbone, hidden_sizes=[1, 1]))
        assert least > 1.05 * target
        assert f"cannot have {target:,} weights" in said
        assert f"the nearest number is {least:,}, with hidden_sizes [1, 1]; the target" in said
        return
    sized = match_parameters(asked, SCHEMA, target)
    assert weights(sized) == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "hamur", "k": 3, "width": 4, "hyper_sizes": [8]},
        {"name": "plate", "per_domain": False},
    ],
)
def test_what_is_too_large_at_its_defaults_fits_with_smaller_sizes_of_its_own(method):
    target = weights(config({"name": "mix"}))
    sized = match_parameters(config(method), SCHEMA, target)
    assert weights(sized) == pytest.approx(target, rel=0.05)
    assert sized.method == config(method).method


def tower(wide: int, sizes: tuple[int, ...]) -> int:
    return sum(before * after + after for before, after in pairwise((wide, *sizes)))


def rank(width: int) -> int:
    return max(width // 16, 1)


def expert(wide: int, width: int) -> int:
    """A low-rank expert beside a layer wide → width: down, up, offset."""
    return rank(width) * (wide + width) + width


def mix(a: int, b: int) -> int:
    return tower(WIDE, (a, b, 1))


def mlora(a: int, b: int) -> int:
    return mix(a, b) + DOMAINS * (expert(WIDE, a) + expert(a, b))


def mmoe(a: int, b: int) -> int:
    """As many experts as domains; a gate without bias, a tower and an output for each domain."""
    return DOMAINS * (tower(WIDE, (a,)) + WIDE * DOMAINS + tower(a, (b, 1)))


def ple(a: int, b: int) -> int:
    """Two levels: an expert for each domain and a shared one, gates on two of them; the first level
    has a shared gate on all four as well."""
    first = 4 * tower(WIDE, (a,)) + DOMAINS * WIDE * 2 + WIDE * 4
    second = 4 * tower(a, (a,)) + DOMAINS * a * 2
    return first + second + DOMAINS * tower(a, (b, 1))


def star(a: int, b: int) -> int:
    """Shared and own layers, a partitioned norm on the input, an auxiliary network of 32 that also
    sees 16 numbers of the domain."""
    norm, auxiliary = (1 + DOMAINS) * 2 * WIDE, tower(WIDE + 16, (32, 1))
    return (1 + DOMAINS) * mix(a, b) + norm + DOMAINS * 16 + auxiliary


def singlelora(a: int, b: int) -> int:
    """MLoRA's experts and a factor per output each."""
    return mlora(a, b) + DOMAINS * (a + b)


BY_HAND = {
    "mix": mix,
    "single": lambda a, b: DOMAINS * mix(a, b),
    "finetune": lambda a, b: (1 + DOMAINS) * mix(a, b),
    "retune": mix,
    "mlora": mlora,
    "singlelora": singlelora,
    "shared_bottom": lambda a, b: DOMAINS * mix(a, b),
    "mmoe": mmoe,
    "ple": ple,
    "star": star,
}


@pytest.mark.parametrize("method", BY_HAND)
@pytest.mark.parametrize("target", [2500, 9000, 60_001])
def test_no_factor_of_a_fine_grid_comes_nearer_by_hand(method, target):
    """The sizes are those of one factor, and of all factors the nearest."""
    count = BY_HAND[method]
    grid = [step / 512 for step in range(1, 512 * 16)]
    by_factor = [(max(1, int(64 * f + 0.5)), max(1, int(32 * f + 0.5))) for f in grid]
    best = min(abs(count(*sizes) - target) for sizes in by_factor)
    sizes = found({"name": method}, target)
    assert sizes in by_factor
    assert abs(count(*sizes) - target) == best


def test_the_sizes_that_are_written_stay_where_they_have_the_number_already():
    assert found({"name": "mix"}, mix(64, 32)) == (64, 32)
    assert found({"name": "finetune"}, 4 * mix(64, 32)) == (64, 32)


def test_what_comes_out_is_the_same_run_with_plain_sizes():
    asked = config({"name": "mlora"}, parameters=7000, dropout=0.3)
    sized = match_parameters(asked, SCHEMA, 7000)
    values, before = sized.model_dump(), asked.model_dump()
    assert values["model"].pop("hidden_sizes") != before["model"].pop("hidden_sizes")
    assert (values["model"].pop("parameters"), before["model"].pop("parameters")) == (None, 7000)
    assert values == before


def test_neither_the_seed_nor_the_order_of_calls_matters():
    asked = config({"name": "star"})
    first = match_parameters(asked, SCHEMA, 20_000)
    random = torch.random.get_rng_state()
    other = match_parameters(asked.model_copy(update={"seed": 9}), SCHEMA, 20_000)
    assert other.model == first.model
    assert torch.equal(torch.random.get_rng_state(), random)


def test_tables_of_any_size_cost_nothing_and_change_nothing():
    huge = (Field(name="user", size=10**11), *SCHEMA.fields[1:])  # 3 terabytes
    asked = config({"name": "mlora"})
    sized = match_parameters(asked, SCHEMA.model_copy(update={"fields": huge}), 7000)
    assert sized == match_parameters(asked, SCHEMA, 7000)


def test_norms_are_weights_too():
    sizes = found({"name": "mix"}, 9000, batch_norm=True)
    assert mix(*sizes) + 2 * sum(sizes) == pytest.approx(9000, rel=0.02)


def test_sizes_that_a_method_has_of_its_own_stay_and_the_others_are_scaled():
    own = {"name": "mmoe", "experts": 2, "expert_sizes": [20]}
    a, b = found(own, 9000)
    fixed = 2 * tower(WIDE, (20,)) + DOMAINS * WIDE * 2
    assert a == pytest.approx(2 * b, abs=1)
    assert fixed + DOMAINS * tower(20, (b, 1)) == pytest.approx(9000, rel=0.05)
    bottom = {"name": "shared_bottom", "bottom_sizes": [20]}
    sizes = found(bottom, 9000)
    counted = tower(WIDE, (20,)) + DOMAINS * tower(20, (*sizes, 1))
    assert counted == pytest.approx(9000, rel=0.05)


@pytest.mark.parametrize("target", [10, 10**6])
def test_a_method_that_reads_no_hidden_size_is_told_its_only_number(target):
    own = {"name": "mmoe", "experts": 2, "expert_sizes": [20], "tower_sizes": [5]}
    only = 2 * tower(WIDE, (20,)) + DOMAINS * (WIDE * 2 + tower(20, (5, 1)))
    assert f"the nearest number is {only:,}, with" in refused(config(own), target)


def test_a_target_too_small_for_a_fixed_rank_says_so():
    ranked = config({"name": "mlora", "rank": {"fixed": 6}})
    # the second layer has half the width of the first: 12 and 6 are the least that rank 6 fits
    least = mix(12, 6) + DOMAINS * (6 * (WIDE + 12) + 12 + 6 * (12 + 6) + 6)
    said = refused(ranked, 500)
    assert "the target is too small for the adapters: rank 6 is larger than layer" in said
    nearest = int(said.split("the nearest number is ")[1].split(", with")[0].replace(",", ""))
    assert nearest <= least
    assert match_parameters(ranked, SCHEMA, nearest).model.hidden_sizes[1] == 6


def test_an_adapter_that_does_not_fit_the_sizes_as_written_is_an_error_of_its_own():
    with pytest.raises(AdapterError, match="rank 40 is larger than layer"):
        match_parameters(config({"name": "mlora", "rank": {"fixed": 40}}), SCHEMA, 9000)


@pytest.mark.parametrize(("target", "width"), [(36, 1), (42, 2)])
def test_where_one_unit_is_more_than_five_percent_the_nearest_number_is_told(target, width):
    """One hidden layer of 1 has 25 + 1 + 1 + 1 = 28 weights, of 2 has 55."""
    narrow = config({"name": "mix"}, hidden_sizes=[1])
    nearest = {1: 28, 2: 55}[width]
    said = refused(narrow, target)
    assert f"nearest number is {nearest}, with hidden_sizes [{width}]" in said
    assert "too small" not in said
    wide = match_parameters(narrow, SCHEMA, target, within=abs(nearest - target) / target + 1e-9)
    assert wide.model.hidden_sizes == (width,)


def test_ready_embeddings_have_the_width_of_their_vectors():
    item = Field(name="item", size=30, pretrained="vectors.parquet")
    ready = SCHEMA.model_copy(update={"fields": (SCHEMA.fields[0], item, *SCHEMA.fields[2:])})
    asked = config({"name": "mix"})
    sized = match_parameters(asked, ready, 9000, pretrained={"item": torch.zeros(30, 50)})
    assert tower(WIDE - 8 + 50, (*sized.model.hidden_sizes, 1)) == pytest.approx(9000, rel=0.02)
    with pytest.raises(ConfigError, match=r"'item' needs the vectors of 'vectors.parquet'"):
        match_parameters(asked, ready, 9000)


def test_a_model_is_not_built_before_its_sizes_are_found():
    asked = config({"name": "mix"}, parameters=9000)
    with pytest.raises(UsageError, match=r"model.parameters asks for 9,000 weights"):
        build(asked, SCHEMA)
    assert build(match_parameters(asked, SCHEMA, 9000), SCHEMA)


@pytest.mark.parametrize("value", [0, -3, 1.5, "many"])
def test_a_number_that_no_network_has_is_refused(value):
    with pytest.raises(ConfigError, match=r"model\.parameters: "):
        config({"name": "mix"}, parameters=value)


def test_a_method_of_domains_needs_some():
    plain = SCHEMA.model_copy(update={"divisions": ()})
    with pytest.raises(UsageError, match="the data has none"):
        match_parameters(config({"name": "single"}), plain, 9000)


LOG = {
    "source": "synthetic",
    "synthetic": {"rows": 1500, "users": 40, "items": 20, "domains": 3},
}


def small(method: dict[str, Any], **changes: Any) -> RunConfig:
    return parse_config(
        {
            "data": LOG,
            "model": {
                "backbone": "deepfm",
                "embedding_size": 3,
                "hidden_sizes": [32, 16],
                "parameters": 3000,
            },
            "method": method,
            "training": {"batch_size": 128, "epochs": 2},
            **changes,
        }
    )


def counted(out: Path) -> int:
    parameters = json.loads((out / "metrics.json").read_text())["parameters"]
    assert parameters["total"] == sum(
        parameters[part] for part in ("embedding", "backbone", "adapters")
    )
    return parameters["backbone"] + parameters["adapters"]


@pytest.mark.parametrize("method", ["mix", "single", "finetune", "mlora", "mmoe", "star"])
def test_a_run_has_the_parameters_it_was_asked_for(method, tmp_path):
    run(small({"name": method}), tmp_path / "run")
    assert counted(tmp_path / "run") == pytest.approx(3000, rel=0.05)


def test_a_run_keeps_what_was_asked_and_its_artifact_what_was_found(tmp_path):
    out = tmp_path / "run"
    run(small({"name": "mlora"}), out)
    written = yaml.safe_load((out / "config.yaml").read_text())["model"]
    assert (written["parameters"], written["hidden_sizes"]) == (3000, [32, 16])
    model = load(out / "artifact").config.model
    assert model.parameters is None
    assert model.hidden_sizes != (32, 16)
    plain = small({"name": "mlora"}, model={**written, "parameters": None} | sizes_of(out))
    run(plain, tmp_path / "plain")
    assert predictions(tmp_path / "plain") == predictions(out)


def sizes_of(out: Path) -> dict[str, list[int]]:
    return {"hidden_sizes": list(load(out / "artifact").config.model.hidden_sizes)}


def predictions(out: Path) -> bytes:
    return (out / "predictions.parquet").read_bytes()


@pytest.mark.parametrize("method", ["mlora", "finetune"])
def test_the_artifact_scores_as_the_run_did_to_the_bit(method, tmp_path):
    from loractr.data.prepare import cached
    from loractr.environment import cache_folder
    from loractr.predict import assembled_logits, tabulate

    asked = small({"name": method})
    run(asked, tmp_path / "run")
    scorer = load(tmp_path / "run" / "artifact")
    prepared = cached(asked.data, cache_folder() / "prepared")
    division = scorer.schema.divisions[0].name
    logit = assembled_logits(
        scorer.model, scorer.domain_models, prepared.test, scorer.schema, division
    )
    tabulate(logit, prepared.test, scorer.schema).write_parquet(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == predictions(tmp_path / "run")


def test_an_interrupted_run_goes_on_with_the_same_sizes(tmp_path):
    asked, seen = small({"name": "mlora"}), []

    def interrupt(event: Event) -> None:
        if isinstance(event, Validated):
            seen.append(event)
            if len(seen) == 2:
                raise KeyboardInterrupt

    run(asked, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "cut", callbacks=[interrupt])
    run(asked, tmp_path / "cut", resume=True)
    assert predictions(tmp_path / "cut") == predictions(tmp_path / "whole")
    assert sizes_of(tmp_path / "cut") == sizes_of(tmp_path / "whole")
    run(asked, tmp_path / "cut", resume=True)  # finished: stays as it is
    other = small({"name": "mlora"}, model={**asked.model.model_dump(), "parameters": 3100})
    with pytest.raises(UsageError, match=r"another configuration: 'model\.parameters' differ"):
        run(other, tmp_path / "cut", resume=True)


def test_a_run_starts_from_a_model_of_the_sizes_that_it_finds(tmp_path):
    run(small({"name": "mix"}), tmp_path / "mix")
    start = {"start_from": str(tmp_path / "mix")}
    run(small({"name": "retune"}, **start), tmp_path / "retune")
    assert sizes_of(tmp_path / "retune") == sizes_of(tmp_path / "mix")
    with pytest.raises(ConfigError, match=r"model\.hidden_sizes is"):
        run(small({"name": "finetune"}, **start), tmp_path / "finetune")


def test_a_number_out_of_reach_leaves_no_run_behind(tmp_path):
    with pytest.raises(ConfigError, match="the nearest number is"):
        run(small({"name": "hamur"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_the_sizes():
    plan = dry_run(small({"name": "mlora"}), steps=2)
    parameters = plan["parameters"]
    assert parameters["backbone"] + parameters["adapters"] == pytest.approx(3000, rel=0.05)
    assert plan["hidden_sizes"] != [32, 16]
