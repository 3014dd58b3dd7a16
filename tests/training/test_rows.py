"""Tables updated by rows against torch's optimisers on the whole table, and against loops."""

import math

import pytest
import torch
from torch import nn

from loractr import native
from loractr.errors import CheckpointError
from loractr.layers.lookup import RowGradient, Touched
from loractr.stage import Stage
from loractr.training import optimizer as module
from loractr.training.optimizer import WholeAdam, average_decay, rate_factor, tables_by_rows

TABLE, HEAD = "embedding.tables.size_4.weight", "head.bias"
V, K, IDS = 300, 4, 40
STEPS, EPOCH = 900, 100
RATE = 0.01
KERNELS = ("native", "torch")


def stage(**settings):
    return Stage(name="s", **({"learning_rate": RATE, "epochs": 10} | settings))


def draw(step, dtype, rows=V):
    """Zipf ids, and a gradient for each of very different sizes: some near Adam's eps."""
    random = torch.Generator().manual_seed(step)
    share = 1.0 / torch.arange(1, rows + 1, dtype=torch.double) ** 1.3
    ids = torch.multinomial(share, IDS, replacement=True, generator=random)
    size = 10.0 ** (-6 * torch.rand(IDS, 1, generator=random, dtype=torch.double))
    return ids, (size * torch.randn(IDS, K, generator=random, dtype=torch.double)).to(dtype)


def fresh(dtype, rows=V):
    random = torch.Generator().manual_seed(99)
    weight = 0.1 * torch.randn(rows, K, generator=random, dtype=torch.double)
    return {TABLE: nn.Parameter(weight.to(dtype)), HEAD: nn.Parameter(torch.ones(2, dtype=dtype))}


def train(optimizer, trained, first=0, last=STEPS, validates=()):
    """Steps as the loop makes them: rows are announced, read, given their gradients, moved."""
    table = trained[TABLE]
    for step in range(first, last):
        optimizer.zero_grad()
        ids, values = draw(step, table.dtype, len(table))
        gradient = optimizer.row_gradients[TABLE]
        touched = Touched.of(ids, table)
        if gradient.before is not None:
            gradient.before(touched)
        gradient.add(touched, values)
        trained[HEAD].grad = torch.full_like(trained[HEAD], math.sin(step))
        optimizer.step(step / EPOCH)
        if step in validates:
            optimizer.catch_up()


def reference(settings, dtype, steps=STEPS, rows=V):
    """torch's own optimiser with a gradient as large as the table, and the moving average."""
    trained = fresh(dtype, rows)
    average = {name: value.detach().clone() for name, value in trained.items()}
    adam = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
    decays = {TABLE: settings.table_weight_decay, HEAD: settings.weight_decay}
    groups = [{"params": [trained[name]], "weight_decay": decays[name]} for name in trained]
    own = adam(groups, fused=True)
    for step in range(steps):
        ids, values = draw(step, dtype, rows)
        trained[TABLE].grad = torch.zeros(rows, K, dtype=dtype).index_add_(0, ids, values)
        trained[HEAD].grad = torch.full_like(trained[HEAD], math.sin(step))
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained.values(), settings.clip_norm)
        for group in own.param_groups:
            group["lr"] = RATE * rate_factor(settings, step / EPOCH)
        own.step()
        for name, value in trained.items():
            keep = 0.0 if settings.ema is None else average_decay(settings.ema, step + 1)
            average[name].lerp_(value.detach(), 1.0 - keep)
    return trained, average


def gap(found, expected):
    """Largest difference, relative to the largest number."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


COURSES = {
    "constant": {},
    "warm-up, cosine": {"warmup": 1.5, "decay": "cosine"},
    "linear": {"decay": "linear"},
}
DECAYS = {
    "none": {},
    "coupled": {"weight_decay": 0.01},
    "decoupled": {"weight_decay": 0.3, "decoupled": True},
}
AVERAGES = {"": {}, "average": {"ema": 0.99}}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("course", COURSES)
def test_adam_by_rows_is_adam_on_the_whole_table(course, decay, average, dtype):
    settings = stage(**COURSES[course], **DECAYS[decay], **AVERAGES[average])
    trained = fresh(dtype)
    optimizer = WholeAdam(settings, trained, [TABLE])
    train(optimizer, trained, validates=(3, 250, 800))
    optimizer.catch_up()
    weights, averages = reference(settings, dtype)
    assert gap(trained[TABLE], weights[TABLE]) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert gap(trained[HEAD], weights[HEAD]) < 1e-6
    if average:
        bound = 1e-5 if dtype == torch.float32 else 1e-12
        assert gap(optimizer.average[TABLE], averages[TABLE]) < bound


@pytest.mark.usefixtures("kernels")
def test_rows_that_stand_still_for_thousands_of_steps_are_adams_too():
    """Longer than a first moment lives, and than the first room for the history."""
    settings = stage(epochs=30, decay="cosine", weight_decay=0.1, decoupled=True)
    trained = fresh(torch.float32, rows=20_000)
    optimizer = WholeAdam(settings, trained, [TABLE])
    train(optimizer, trained, last=2500)
    optimizer.catch_up()
    weights, _ = reference(settings, torch.float32, 2500, rows=20_000)
    assert gap(trained[TABLE], weights[TABLE]) < 1e-5


@pytest.mark.usefixtures("kernels")
def test_a_row_is_up_to_date_when_it_is_read_and_reading_it_again_changes_nothing():
    trained, settings = fresh(torch.float64), stage(decay="linear")
    optimizer = WholeAdam(settings, trained, [TABLE])
    train(optimizer, trained, last=60)
    weights, _ = reference(settings, torch.float64, 60)
    gradient = optimizer.row_gradients[TABLE]
    touched = Touched.of(torch.tensor([1, 5, 77, 5]), trained[TABLE])
    for _ in range(2):
        gradient.before(touched)
        assert gap(trained[TABLE][touched.rows], weights[TABLE][touched.rows]) < 1e-12


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("mode", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_weights_are_the_same_bits_for_any_number_of_threads(mode):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            trained = fresh(torch.float32, rows=30_000)
            optimizer = WholeAdam(stage(embedding_optimizer=mode), trained, [TABLE])
            train(optimizer, trained, last=20)
            optimizer.catch_up()
            found.append(trained[TABLE])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def any_kernels(kind, request):
    """Compiled kernels are built only where they are asked for."""
    if kind == "native":
        request.getfixturevalue("kernels")
    return native.use(kind)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_lazy_adam_is_torchs_sparse_adam(kind, clip_norm, request):
    settings = stage(embedding_optimizer="lazy_adam", decay="linear", clip_norm=clip_norm)
    trained = fresh(torch.float64)
    with any_kernels(kind, request):
        train(WholeAdam(settings, trained, [TABLE]), trained, last=200)
    table = fresh(torch.float64)[TABLE]
    lazy = torch.optim.SparseAdam([table], lr=RATE)
    for step in range(200):
        ids, values = draw(step, torch.float64)
        summed = torch.zeros(V, K).double().index_add_(0, ids, values)
        norm = math.sqrt(float(summed.square().sum()) + 2 * math.sin(step) ** 2)
        scale = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))
        table.grad = torch.sparse_coo_tensor(
            ids[None], values * scale, (V, K), check_invariants=True
        )
        lazy.param_groups[0]["lr"] = RATE * rate_factor(settings, step / EPOCH)
        lazy.step()
    torch.testing.assert_close(trained[TABLE], table, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kind", KERNELS)
def test_rowwise_adagrad_is_its_formula_row_by_row(kind, request):
    settings = stage(embedding_optimizer="rowwise_adagrad", warmup=1.0)
    trained = fresh(torch.float64)
    with any_kernels(kind, request):
        train(WholeAdam(settings, trained, [TABLE]), trained, last=150)
    table, total = fresh(torch.float64)[TABLE].tolist(), [0.0] * V
    for step in range(150):
        ids, values = draw(step, torch.float64)
        summed = {}
        for row, value in zip(ids.tolist(), values.tolist(), strict=True):
            known = summed.get(row, [0.0] * K)
            summed[row] = [a + b for a, b in zip(known, value, strict=True)]
        rate = RATE * min(1.0, step / EPOCH)
        for row, g in summed.items():
            total[row] += sum(x * x for x in g) / K
            scale = rate / (math.sqrt(total[row]) + 1e-8)
            table[row] = [w - scale * x for w, x in zip(table[row], g, strict=True)]
    expected = torch.tensor(table, dtype=torch.float64)
    torch.testing.assert_close(trained[TABLE].data, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("mode", ["lazy_adam", "rowwise_adagrad"])
def test_the_average_of_lazy_rows_is_the_average_of_all_rows_after_every_step(mode):
    settings = stage(embedding_optimizer=mode, ema=0.95)
    trained = fresh(torch.float64)
    optimizer = WholeAdam(settings, trained, [TABLE])
    average = trained[TABLE].detach().clone()
    for step in range(120):
        train(optimizer, trained, step, step + 1)
        average.lerp_(trained[TABLE].detach(), 1.0 - average_decay(0.95, step + 1))
    weights = trained[TABLE].detach().clone()
    optimizer.swap_average()
    torch.testing.assert_close(trained[TABLE].data, average, atol=1e-13, rtol=0)
    optimizer.swap_average()
    assert torch.equal(trained[TABLE].data, weights)


@pytest.mark.usefixtures("kernels")
def test_clipping_takes_the_norm_of_summed_rows():
    settings = stage(clip_norm=0.05)
    trained = fresh(torch.float64)
    optimizer = WholeAdam(settings, trained, [TABLE])
    train(optimizer, trained, last=200)
    optimizer.catch_up()
    weights, _ = reference(settings, torch.float64, 200)
    for name, value in trained.items():
        assert gap(value, weights[name]) < 1e-10


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("mode", ["adam", "lazy_adam", "rowwise_adagrad"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_restored_optimiser_goes_on_to_the_same_bits(mode, ema):
    """Its rows stand at different steps, and a validation lies behind it."""
    settings = stage(embedding_optimizer=mode, ema=ema, decay="cosine")
    whole = fresh(torch.float32)
    optimizer = WholeAdam(settings, whole, [TABLE])
    train(optimizer, whole, last=620, validates=(500,))
    saved = {name: value.clone() for name, value in optimizer.state().items()}
    again = {name: nn.Parameter(value.detach().clone()) for name, value in whole.items()}
    after = WholeAdam(settings, again, [TABLE])
    after.restore(saved)
    for one, trained in ((optimizer, whole), (after, again)):
        train(one, trained, 620, 700)
        one.catch_up()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    states = optimizer.state(), after.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("by_rows", [[], [TABLE]])
def test_a_state_of_other_kernels_is_refused(by_rows):
    one = WholeAdam(stage(), fresh(torch.float32), by_rows)
    other = WholeAdam(stage(), fresh(torch.float32), [] if by_rows else [TABLE])
    with pytest.raises(CheckpointError, match="updated with other kernels than this run's") as told:
        other.restore(one.state())
    assert "Fix: resume with the kernels that the run began with" in str(told.value)


NAMES = {
    "small": "embedding.tables.size_4.weight",
    "large": "embedding.tables.size_2.weight",
    "first_order": "embedding.tables.size_2.first_order",
}
EVERY = ["small", "large", "first_order"]


def trained_names():
    rows = {"small": 5, "large": 6, "first_order": 6}
    trained = {NAMES[key]: nn.Parameter(torch.zeros(rows[key], 2)) for key in NAMES}
    return trained | {"backbone.tower.0.linear.weight": nn.Parameter(torch.zeros(99, 2))}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("settings", "by_rows"),
    [
        ({}, ["large", "first_order"]),
        ({"weight_decay": 0.1, "ema": 0.9, "clip_norm": 1.0}, ["large", "first_order"]),
        ({"weight_decay": 100.0, "decoupled": True}, []),
        ({"embedding_optimizer": "lazy_adam"}, EVERY),
        ({"embedding_optimizer": "rowwise_adagrad"}, EVERY),
    ],
)
def test_adam_goes_by_rows_on_large_tables_and_others_on_all(monkeypatch, settings, by_rows):
    monkeypatch.setattr(module, "LARGE", 6)
    found = tables_by_rows(stage(**settings), trained_names())
    assert found == [NAMES[key] for key in by_rows]


def test_without_compiled_kernels_adam_is_dense_and_says_what_would_be_faster(monkeypatch, caplog):
    monkeypatch.setattr(module, "LARGE", 6)
    with caplog.at_level("INFO", "loractr.training.optimizer"), native.use("torch"):
        assert tables_by_rows(stage(), trained_names()) == []
    assert [record.getMessage() for record in caplog.records] == [
        "Adam moves all 6 rows of embedding.tables.size_2.weight in every step; with compiled"
        " kernels (`loractr kernels build`) it does so only for those of the batch, to the same"
        " weights"
    ]


def test_a_gradient_of_no_lookup_moves_nothing():
    trained = fresh(torch.float32)
    before = trained[TABLE].detach().clone()
    for mode in ("lazy_adam", "rowwise_adagrad"):
        optimizer = WholeAdam(stage(embedding_optimizer=mode, clip_norm=1.0), trained, [TABLE])
        optimizer.zero_grad()
        trained[HEAD].grad = torch.ones(2)
        optimizer.step(0.0)
    assert torch.equal(trained[TABLE], before)
    assert isinstance(optimizer.row_gradients[TABLE], RowGradient)
