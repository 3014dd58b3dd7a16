"""Training with bfloat16 products: what rounds, when, and where it is refused."""

import pytest
import torch

from loractr import environment
from loractr.adapters.mlora import EXPERTS, Rank
from loractr.adapters.moe_mlora import MoEMLoRA
from loractr.adapters.multilora import MultiLoRA
from loractr.config import parse_config
from loractr.errors import ConfigError
from loractr.layers.linear import Linear
from loractr.run import run, run_seeds
from loractr.stage import Stage
from loractr.training import fit

SEED = 2


@pytest.fixture
def world(make_data, make_model, mlora):
    data = make_data()
    return data, make_model(data, mlora())


def flags(monkeypatch, told):
    """As if Linux said this of the processor."""
    lines = [("processor", "0"), ("model name", "X"), ("flags", told)]
    monkeypatch.setattr(environment, "_lines_of_cpuinfo", lambda: lines)


@pytest.fixture
def able(monkeypatch):
    """Without bfloat16 products of its own, any processor computes the same, only slower."""
    flags(monkeypatch, "amx_bf16")


def stage(**settings):
    return Stage(**({"name": "train", "epochs": 1, "precision": "bfloat16"} | settings))


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("independent", [False, True])
def test_every_linear_layer_rounds_in_the_stage_and_none_after_it(world, independent):
    data, model = world
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(layers) == 3
    trains = EXPERTS if independent else ("*",)
    seen = []
    model.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, [layer.rounds for layer in layers]))
    )
    fit(model, data, [stage(independent=independent, trains=trains)], seed=SEED)
    assert any(training for training, _ in seen)
    assert all(all(rounding) for training, rounding in seen if training)
    assert not any(layer.rounds for layer in layers)


@pytest.mark.parametrize(
    "method",
    [
        MultiLoRA(name="multilora", divisions=("tab",), rank=Rank(fixed=2)),
        MoEMLoRA(name="moe_mlora", gate_input="fields", gate_scope="layer", gate_sizes=(3,)),
    ],
    ids=lambda method: method.name,
)
def test_experts_and_mixers_do_not_round(make_data, make_model, method):
    model = make_model(make_data(), method)
    model.set_precision("bfloat16")
    rounding = {name for name, module in model.named_modules() if getattr(module, "rounds", False)}
    assert rounding == {"backbone.tower.0.linear.base", "backbone.tower.1.linear.base", "head"}
    model.set_precision("float32")
    assert not any(getattr(module, "rounds", False) for module in model.modules())


@pytest.mark.usefixtures("able")
def test_weights_move_a_little_differently(make_data, make_model):
    data, found = make_data(), []
    for precision in ("float32", "bfloat16"):
        model = make_model(data).float()
        fit(model, data, [stage(precision=precision)], seed=SEED)
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    exact, rounded = found
    assert all(value.dtype == exact[name].dtype for name, value in rounded.items())
    name = next(key for key in exact if key.endswith("linear.weight"))
    assert not torch.equal(rounded[name], exact[name])
    torch.testing.assert_close(rounded[name], exact[name], rtol=0, atol=0.02)


def test_it_is_refused_where_the_processor_has_no_such_products(world, monkeypatch):
    data, model = world
    flags(monkeypatch, "avx2")
    with pytest.raises(ConfigError, match="'train' asks for bfloat16, which X does not") as told:
        fit(model, data, [stage()], seed=SEED)
    assert "training.precision: float32" in str(told.value)
    fit(model, data, [stage(precision="float32")], seed=SEED)


@pytest.mark.parametrize(
    ("told", "has"),
    [
        ("fma avx2 avx512f", False),
        ("avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
        ("asimd i8mm bf16", True),
        ("abf16", False),
    ],
)
def test_a_processor_says_in_its_flags_whether_it_has_them(monkeypatch, told, has):
    flags(monkeypatch, told)
    assert environment.has_bfloat16(torch.device("cpu")) is has


def test_a_system_that_says_nothing_has_none(monkeypatch):
    monkeypatch.setattr(environment, "_lines_of_cpuinfo", list)
    assert not environment.has_bfloat16(torch.device("cpu"))


def test_a_run_is_refused_before_anything_is_read_or_written(tmp_path, monkeypatch):
    flags(monkeypatch, "avx2")
    config = parse_config(
        {
            "data": {"source": "table", "path": str(tmp_path / "not there.parquet")},
            "method": {"name": "mix"},
            "training": {"precision": "bfloat16"},
        }
    )
    for call in (
        lambda: run(config, tmp_path / "a"),
        lambda: run_seeds(config, tmp_path / "b", seeds=2),
    ):
        with pytest.raises(ConfigError, match="asks for bfloat16"):
            call()
    assert list(tmp_path.iterdir()) == []
