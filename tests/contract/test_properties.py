"""What every method promises on every backbone. New ones join by being in the registries."""

import copy
import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch.export import Dim, ShapesCollection

from loractr.adapters import adapted, detach, merge
from loractr.adapters.low_rank import Bank
from loractr.artifact.tensors import base_tensors
from loractr.backbones import BACKBONES
from loractr.batch import EVERY, Routing
from loractr.config import METHODS, parse_config
from loractr.data.loader import collate, sizes_of
from loractr.data.rows import Rows
from loractr.layers.norm import DomainNorm, NormBank
from loractr.model import build, build_plain
from loractr.predict import logits
from loractr.schema import Division, Field, Schema
from loractr.training import fit
from loractr.training.freeze import matches
from loractr.training.loop import routing_of

SCHEMA = Schema(
    fields=(
        Field(name="user", size=9, unknown_rows=1),
        Field(name="item", size=7, unknown_rows=1),
        Field(name="shop", size=5, unknown_rows=1, embedding_size=2),
        Field(name="age", kind="numerical"),
        Field(name="tags", kind="sequence", size=6, unknown_rows=1),
    ),
    divisions=(
        Division(name="tab", column="tab", domains=("a", "b", "c")),
        Division(name="hour", column="hour", domains=("day", "night")),
    ),
)
ROWS = 40

pytestmark = [
    pytest.mark.parametrize("backbone", BACKBONES),
    pytest.mark.parametrize("method", METHODS),
]


OPTIONS = {
    name: {"divisions": ["tab", "hour"]} for name in ("multilora", "multilora_add", "multilora_avg")
}
"""What a method needs said besides its name."""

ADAPTERS = {name for name, kind in METHODS.items() if "adapters" in kind.__module__}
PLAIN = {"mix", "single", "finetune", "retune"}
"""Methods whose fresh model is the backbone, besides the adapters."""


def config_of(method, backbone, **options):
    return parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {
                "backbone": backbone,
                "embedding_size": 3,
                "hidden_sizes": [8, 5],
                "embedding_std": 0.3,
                **options,
            },
            "method": {"name": method, **OPTIONS.get(method, {})},
            "training": {"batch_size": 16, "epochs": 2, "patience": 2, "learning_rate": 0.02},
        }
    )


def fresh(method, backbone, **options):
    return build(config_of(method, backbone, **options), SCHEMA).double()


def moved(method, backbone, seed=1, **options):
    """A model away from its start, so that everything in it counts."""
    model = fresh(method, backbone, **options)
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.double)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.add_(torch.rand(buffer.shape, generator=random, dtype=torch.double))
    if any(stage.route == "mixed" for stage in config_of(method, backbone, **options).stages()):
        model.routing = replace(model.routing, mixed=True)
    return model.eval()


def rows_of(count=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sizes = [(9, 7, 5), (3, 2)]
    return Rows(
        ids=np.stack([rng.integers(0, n, count) for n in sizes[0]], 1).astype(np.int32),
        numbers=rng.normal(size=(count, 1)).astype(np.float32),
        domains=np.stack([rng.integers(-1, n, count) for n in sizes[1]], 1).astype(np.int32),
        row=np.arange(count),
        label=rng.integers(0, 2, count).astype(np.float32),
        sequences={"tags": (rng.integers(0, 6, offsets[-1]).astype(np.int32), offsets)},
    )


def batch_of(model, rows, index=None):
    index = np.arange(len(rows)) if index is None else np.asarray(index, dtype=np.int64)
    return collate(rows, index, model.routing, sizes_of(SCHEMA, model.routing))


def scores(model, rows, index=None):
    """Logits by row position, of one batch of the rows at `index`."""
    batch = batch_of(model, rows, index)
    with torch.no_grad():
        return dict(zip(batch.row.tolist(), model(batch).tolist(), strict=True))


def assert_close(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for row, value in expected.items():
        assert found[row] == pytest.approx(value, abs=tolerance, rel=0)


def test_a_fresh_model_is_the_plain_backbone_to_the_bit(method, backbone):
    """Before the first step nothing that an adapter adds has any effect."""
    if method not in ADAPTERS | PLAIN:
        return
    config = config_of(method, backbone)
    plain = build_plain(config.model, SCHEMA, torch.Generator().manual_seed(config.seed)).eval()
    model = build(config, SCHEMA).eval()
    assert scores(model, rows_of()) == scores(plain, rows_of())


def test_adapters_on_a_finished_backbone_leave_its_scores_as_they_are(method, backbone):
    """Step 0 of an adapter stage, in eval mode: norms of domains and cells are copies as well."""
    if method not in ADAPTERS:
        return
    model, rows = fresh(method, backbone, batch_norm=True).eval(), rows_of()
    random = torch.Generator().manual_seed(1)
    shared = base_tensors(model)
    for name, tensor in shared.items():
        step = torch.randn(tensor.shape, generator=random, dtype=torch.double)
        tensor.add_(step.abs() if "running_var" in name else 0.3 * step)
    for module in model.modules():
        if isinstance(module, DomainNorm):
            for place in (*range(len(module.sizes)), None):
                module.inherit(place)
    plain = copy.deepcopy(model)
    detach(plain)
    plain.front, plain.routing = None, Routing()
    expected = scores(plain, rows)
    for mixed, only in ((False, 0), (False, len(model.routing.divisions) - 1), (True, 0)):
        model.routing = replace(model.routing, mixed=mixed, only=only)
        assert_close(scores(model, rows), expected, 1e-12)
    assert plain.state_dict().keys() == shared.keys()


def test_the_seed_decides_the_fresh_weights(method, backbone):
    config = config_of(method, backbone)
    one, again = (build(config, SCHEMA).state_dict() for _ in range(2))
    other = build(config.model_copy(update={"seed": 7}), SCHEMA).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_state_carries_all_that_scores_depend_on(method, backbone):
    model = moved(method, backbone, batch_norm=True)
    other = moved(method, backbone, seed=2, batch_norm=True)
    assert scores(other, rows_of()) != scores(model, rows_of())
    other.load_state_dict(model.state_dict())
    assert scores(other, rows_of()) == scores(model, rows_of())


@pytest.mark.parametrize("training", [False, True])
def test_no_rows_have_no_scores_and_no_gradient(method, backbone, training):
    model = moved(method, backbone, batch_norm=True).train(training)
    output = model(batch_of(model, rows_of(), []))
    output.sum().backward()
    assert output.shape == (0,)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(not gradient.any() for gradient in gradients)


def test_the_order_of_the_rows_does_not_matter(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    shuffled = np.random.default_rng(1).permutation(ROWS)
    assert_close(scores(model, rows, shuffled), scores(model, rows))


def test_a_mixed_batch_is_one_batch_per_domain(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    apart = {}
    for place in itertools.product([-1, 0, 1, 2], [-1, 0, 1]):
        apart |= scores(model, rows, np.flatnonzero((rows.domains == place).all(1)))
    assert_close(apart, scores(model, rows))


def test_a_row_does_not_feel_its_batch_mates(method, backbone):
    model, rows = moved(method, backbone, batch_norm=True), rows_of()
    together, alone = scores(model, rows), {}
    for n in range(ROWS):
        alone |= scores(model, rows, [n])
    assert_close(alone, together)
    others = scores(model, rows_of(seed=9))
    assert others.keys() == together.keys()
    assert sum(others[n] != together[n] for n in together) > 0.8 * ROWS  # some ReLUs are all dead


def test_merged_is_routed(method, backbone):
    """One domain's experts folded into plain weights; no route is read any more."""
    model, rows = moved(method, backbone, batch_norm=True), rows_of(200)
    if not list(adapted(model)):
        return  # nothing to merge; what cannot be merged refuses, see tests/adapters
    if model.routing.divisions == (EVERY,):
        rows = replace(rows, domains=np.zeros_like(rows.domains))
        expected = scores(model, rows)
        merge(model, 0)
        model.routing = Routing()
        assert_close(scores(model, rows), expected)
        return
    for domain in range(len(SCHEMA.divisions[model.routing.divisions[0]].domains)):
        index = np.flatnonzero(rows.domains[:, model.routing.divisions[0]] == domain)
        for dtype, tolerance in ((torch.double, 1e-10), (torch.float, 1e-5)):
            one = copy.deepcopy(model).to(dtype)
            expected = scores(one, rows, index)
            merge(one, domain)
            one.routing = Routing()
            found = scores(one, rows, index)
            if dtype is torch.float:
                found, expected = (
                    {n: 1 / (1 + np.exp(-z)) for n, z in each.items()} for each in (found, expected)
                )
            assert len(found) > 5
            assert_close(found, expected, tolerance)
            assert not list(adapted(one))


def test_scores_have_the_models_precision(method, backbone):
    model, rows = moved(method, backbone), rows_of()
    exact = scores(model, rows)
    assert model(batch_of(model, rows)).dtype == torch.double
    assert_close(scores(model.float(), rows), exact, 1e-4)
    assert model(batch_of(model, rows)).dtype == torch.float


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_compiles_without_a_graph_break(method, backbone, training):
    torch.compiler.reset()
    model = moved(method, backbone, batch_norm=True).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for count in (ROWS, 17):
        batch = batch_of(model, rows_of(count))
        expected = copy.deepcopy(model)(batch)
        torch.testing.assert_close(compiled(batch), expected, atol=1e-10, rtol=0)


@pytest.mark.slow
def test_it_exports_strictly_for_batches_of_any_size(method, backbone):
    model = moved(method, backbone, batch_norm=True)
    batch = batch_of(model, rows_of())
    shapes = ShapesCollection()
    bag, groups = batch.sequences["tags"], batch.route.divisions
    for tensor in (batch.ids, batch.numbers, batch.row, batch.label, bag.values, bag.offsets):
        shapes[tensor] = {0: Dim.AUTO}
    for group in (*groups, batch.route.cell):
        if group is not None:
            shapes[group.expert] = {0: Dim.AUTO}
            if group.order is not None:
                shapes[group.order] = {0: Dim.AUTO}
    program = torch.export.export(model, (batch,), dynamic_shapes=shapes, strict=True)
    for count in (ROWS, 3, 101):
        other = batch_of(model, rows_of(count, seed=5))
        found = program.module()(other)
        torch.testing.assert_close(found, model(other), atol=1e-10, rtol=0)


class Data:
    """What `fit` reads of a prepared data set."""

    schema = SCHEMA
    train = rows_of(90, seed=1)
    validation = rows_of(60, seed=2)


def stages_of(method, backbone):
    """Every stage of every recipe: the shared model's, then that of one domain's own model."""
    field = METHODS[method].model_fields.get("recipe")
    for recipe in get_args(field.annotation) if field else [None]:
        config = config_of(method, backbone, batch_norm=True)
        if recipe:
            chosen = config.method.model_copy(update={"recipe": recipe})
            config = config.model_copy(update={"method": chosen})
        yield from (*config.stages(), *config.domain_stages("tab", "b"))


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_what_a_stage_does_not_train_stays_bit_identical(method, backbone):
    """Parameters and buffers, in every stage of the recipe; what it trains does move."""
    model = moved(method, backbone, batch_norm=True)
    parameters = dict(model.named_parameters())
    for stage in stages_of(method, backbone):
        trained = {name for name in parameters if matches(name, stage.trains)}
        norms = {name.rpartition(".")[0] for name in trained if ".norm." in name}
        before = states(model)
        options = {"weight_decay": 0.1, "ema": 0.5, "keep_start": False, "select": "log_loss"}
        fit(model, Data(), [stage.model_copy(update=options)], seed=0)
        after = states(model)
        for name, value in before.items():
            may_move = name in trained or (
                name not in parameters and name.rpartition(".")[0] in norms
            )
            assert torch.equal(after[name], value) != may_move, (stage.name, name)


def test_experts_without_rows_get_no_gradient_and_do_not_move(method, backbone):
    """In every stage, whatever else it trains, when all rows are of one domain."""
    model = moved(method, backbone, batch_norm=True)
    if method == "shared_adapter":
        return  # its one expert has every row
    for stage in stages_of(method, backbone):
        before = of_domains(model)
        one = stage.model_copy(update={"rows": ("tab", "b"), "keep_start": False})
        fit(model, Data(), [one.model_copy(update={"inherits": "none"})], seed=0)
        for name, value in of_domains(model).items():
            assert torch.equal(value[[0, 2]], before[name][[0, 2]]), (stage.name, name)


def of_domains(model):
    """Everything in the adapters that has a row per domain of the first division."""
    found = {}
    for name, module in model.named_modules():
        second = name.endswith((".banks.1", ".divisions.1", ".cell"))
        if isinstance(module, Bank | NormBank) and not second:
            found |= {
                f"{name}.{leaf}": t.clone() for leaf, t in module.named_parameters(recurse=False)
            }
            found |= {
                f"{name}.{leaf}": t.clone() for leaf, t in module.named_buffers(recurse=False)
            }
    return found


def test_each_stage_keeps_its_best_and_not_its_last(method, backbone):
    model = moved(method, backbone, batch_norm=True)
    for stage in stages_of(method, backbone):
        wild = {"learning_rate": 0.3, "epochs": 5, "patience": 5, "select": "log_loss"}
        (result,) = fit(model, Data(), [stage.model_copy(update=wild)], seed=0).stages
        if stage.rows is not None:
            continue  # judged on that domain's rows
        mixed = stage.route == "mixed"
        routing = model.routing if mixed else routing_of(model, SCHEMA, stage)
        z = logits(model, Data.validation, SCHEMA, routing=routing)
        p = 1 / (1 + np.exp(-z))
        label = Data.validation.label
        found = -np.log(np.where(label == 1, p, 1 - p)).mean()
        assert -found == pytest.approx(result.value, abs=1e-9)


def test_the_same_seed_trains_the_same_weights(method, backbone):
    ends = []
    for _ in range(2):
        model = moved(method, backbone, batch_norm=True)
        for stage in stages_of(method, backbone):
            fit(model, Data(), [stage.model_copy(update={"dropout": 0.3})], seed=0)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
