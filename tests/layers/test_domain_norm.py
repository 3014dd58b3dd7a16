"""Norms per group of rows against torch's own batch norm on each group's rows alone."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from loractr.batch import Groups, Route, Routing
from loractr.data.loader import collate
from loractr.data.rows import Rows
from loractr.layers.norm import ROWS_WORTH_A_CALL, Average, BatchNorm, DomainNorm, NormBank

FEATURES, EXPERTS, MOMENTUM, EPS = 4, 5, 0.2, 1e-3
IDS = [3, 0, -1, 3, 1, 0, 3, -1, 4, 4, 0]  # expert 1 has one row, expert 2 none
NAMES = ("weight", "bias", "running_mean", "running_var")


def moved(module, seed=0):
    """The module in float64, every number of it away from its start."""
    random = torch.Generator().manual_seed(seed)
    module.double()
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=random)
        else:
            tensor.normal_(generator=random)
    return module


@pytest.fixture
def base():
    return moved(BatchNorm(FEATURES, momentum=MOMENTUM, eps=EPS))


@pytest.fixture
def bank():
    return moved(NormBank(FEATURES, EXPERTS, momentum=MOMENTUM, eps=EPS), seed=1)


def rows(count=11, features=FEATURES, seed=2):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=random, dtype=torch.double) * 3 + 1


def groups_of(ids, experts=EXPERTS):
    grouped = ids == sorted(ids)
    return Groups.of(torch.tensor(ids, dtype=torch.int64), experts, grouped=grouped)


def torchs(source, expert=None):
    """torch's batch norm with the values of a norm, or of one of a bank."""
    norm = nn.BatchNorm1d(FEATURES, eps=EPS, momentum=MOMENTUM).double()
    for name in NAMES:
        value = getattr(source, name).detach()
        getattr(norm, name).data.copy_(value if expert is None else value[expert])
    return norm


def reference(bank, base, x, ids, *, training):
    """(output, running mean (E, H), running variance (E, H)) by torch, group by group."""
    output, experts = torch.empty_like(x), len(bank.weight)
    norms = [torchs(bank, e) for e in range(experts)]
    for expert in range(-1, experts):
        own = [n for n, e in enumerate(ids) if e == expert]
        norm = torchs(base) if expert < 0 else norms[expert]
        norm.train(training and expert >= 0 and len(own) > 1)
        if own:
            output[own] = norm(x[own])
    return (
        output.detach(),
        torch.stack([norm.running_mean for norm in norms]),
        torch.stack([norm.running_var for norm in norms]),
    )


def graph(module):
    torch.compiler.reset()
    return torch.compile(module, fullgraph=True, backend="eager", dynamic=True)


@pytest.mark.parametrize("form", [lambda m: m, graph], ids=["eager", "compiled"])
@pytest.mark.parametrize("training", [True, False])
def test_each_group_is_torchs_batch_norm_on_its_rows_alone(bank, base, training, form):
    """Batch after batch, so that the running statistics of one are those that the next finds."""
    ours, before = form(bank.train(training)), copy.deepcopy(base.state_dict())
    for ids in (IDS, sorted(IDS), [-1, -1, -1], [2, 2], [1]):
        x = rows(len(ids))
        expected, mean, variance = reference(bank, base, x, ids, training=training)
        torch.testing.assert_close(ours(x, groups_of(ids), base), expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(bank.running_mean, mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(bank.running_var, variance, atol=1e-12, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize("mode", ["evaluation", "frozen"])
@pytest.mark.parametrize("share", [1.0, 0.99])
def test_many_rows_in_evaluation_are_the_same_as_few(bank, base, mode, share):
    """On either side of the size from which groups are normalised one by one."""
    bank.train(mode == "frozen").requires_grad_(mode != "frozen")
    before = copy.deepcopy(bank.state_dict())
    count = int(share * ROWS_WORTH_A_CALL * EXPERTS)
    random = torch.Generator().manual_seed(6)
    ids = torch.randint(-1, EXPERTS, (count,), generator=random)
    ids[ids == 2] = 3  # and one expert without rows
    ids[ids == 1] = -1
    ids[0] = 1  # and one with a single row
    expected, _, _ = reference(bank, base, rows(count), ids.tolist(), training=False)
    for each in (ids.tolist(), sorted(ids.tolist())):
        x = rows(count) if each == ids.tolist() else rows(count)[ids.argsort(stable=True)]
        wanted = expected if each == ids.tolist() else expected[ids.argsort(stable=True)]
        found = bank(x, groups_of(each), base)
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())


def test_groups_of_fewer_than_two_rows_keep_their_running_statistics(bank, base):
    before = copy.deepcopy(bank.state_dict())
    bank(rows(), groups_of(IDS), base)
    for name in ("running_mean", "running_var"):
        same = [
            torch.equal(now, then)
            for now, then in zip(getattr(bank, name), before[name], strict=True)
        ]
        assert same == [False, True, True, False, False]  # rows: 3, 1, 0, 3, 2


@pytest.mark.parametrize("form", [lambda m: m, graph], ids=["eager", "compiled"])
def test_a_frozen_bank_uses_running_statistics_and_leaves_its_buffers_alone(bank, base, form):
    bank.train().requires_grad_(False)
    before = copy.deepcopy(bank.state_dict())
    expected, _, _ = reference(bank, base, rows(), IDS, training=False)
    torch.testing.assert_close(
        form(bank)(rows(), groups_of(IDS), base), expected, atol=1e-10, rtol=0
    )
    assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_one_trained_parameter_is_enough_to_train(bank, base, trained):
    bank.requires_grad_(False)
    getattr(bank, trained).requires_grad_()
    before = bank.running_mean.clone()
    bank(rows(), groups_of(IDS), base)
    assert not torch.equal(bank.running_mean, before)


@pytest.mark.parametrize("training", [True, False])
def test_no_rows_have_no_output_and_leave_the_buffers(bank, base, training):
    before = copy.deepcopy(bank.state_dict())
    found = bank.train(training)(rows(0), groups_of([]), base)
    assert found.shape == (0, FEATURES)
    assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_finite_differences(bank, base, training):
    bank.train(training)
    names, groups = ("weight", "bias"), groups_of(IDS)

    def output(x, *values):
        tensors = dict(zip(names, values, strict=True))
        return torch.func.functional_call(bank, tensors, (x, groups, base))

    values = [getattr(bank, name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(output, (rows().requires_grad_(), *values))


def test_gradients_are_torchs_group_by_group(bank, base):
    """In training: the statistics of a group are part of what is differentiated."""
    ends = []
    for torchs_own in (True, False):
        x = rows().requires_grad_()
        norms = [torchs(bank, e) for e in range(EXPERTS)]
        if torchs_own:
            parts = torch.zeros_like(x)
            for expert in range(-1, EXPERTS):
                own = [n for n, e in enumerate(IDS) if e == expert]
                norm = torchs(base) if expert < 0 else norms[expert]
                norm.train(expert >= 0 and len(own) > 1)
                if own:
                    parts = parts.index_copy(0, torch.tensor(own), norm(x[own]))
            output = parts
        else:
            output = bank(x, groups_of(IDS), base)
        (output * rows(seed=5)).sum().backward()
        own = [n.weight.grad if n.weight.grad is not None else x.new_zeros(FEATURES) for n in norms]
        ends.append([x.grad, torch.stack(own) if torchs_own else bank.weight.grad])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_the_compiled_form_has_the_gradients_of_the_eager_one(bank, base):
    ends = []
    for form in (lambda m: m, graph):
        one, x = copy.deepcopy(bank), rows().requires_grad_()
        (form(one)(x, groups_of(IDS), base) * rows(seed=5)).sum().backward()
        ends.append([x.grad, one.weight.grad, one.bias.grad])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_every_norm_on_every_row_is_each_norm_on_all_rows(bank, base, training):
    """`every`: what a tower per domain needs for rows of no domain; the average stands first."""
    bank.train(training)
    x = rows(7, FEATURES * (EXPERTS + 1)).view(7, EXPERTS + 1, FEATURES)
    norms = [torchs(bank, e).train(training) for e in range(EXPERTS)]
    average = torchs(bank, 0).eval()
    for name in NAMES:
        getattr(average, name).data.copy_(getattr(bank, name).detach().mean(0))
    expected = [average(x[:, 0]), *(norm(x[:, e + 1]) for e, norm in enumerate(norms))]
    found = bank.every(x)
    torch.testing.assert_close(found, torch.stack(expected, 1), atol=1e-10, rtol=0)
    mean = torch.stack([norm.running_mean for norm in norms])
    torch.testing.assert_close(bank.running_mean, mean, atol=1e-12, rtol=0)


def test_rows_of_no_group_may_go_through_the_average(bank):
    average = bank.eval().average()
    assert isinstance(average, Average)
    x = rows(3)
    scale = average.weight / (average.running_var + EPS).sqrt()
    expected = (x - average.running_mean) * scale + average.bias
    found = bank(x, groups_of([-1, -1, -1]), average)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


# --- DomainNorm ---

SIZES = (3, 2)
CELLS = 4 * 3 - 1


@pytest.fixture
def norm(base):
    """Two divisions and cells, all of them away from the shared norm."""
    layer = DomainNorm(base, SIZES, cells=True)
    return moved(layer, seed=3)


def loaded(domains, *, mixed=True, only=0, sizes=SIZES):
    """(order of the rows in the batch, its route), from the loader."""
    domains = np.asarray(domains, dtype=np.int32)
    count = len(domains)
    table = Rows(
        ids=np.zeros((count, 0), np.int32),
        numbers=np.zeros((count, 0), np.float32),
        domains=domains,
        row=np.arange(count),
    )
    places = tuple(range(len(sizes)))
    routing = Routing(divisions=places, mixed=mixed, only=only)
    batch = collate(table, np.arange(count), routing, sizes)
    return batch.row, batch.route


EVERY_CELL = list(itertools.product((-1, 0, 1, 2), (-1, 0, 1)))


def one(bank, place, x):
    """x by one norm of a bank (None: a whole norm), with its running statistics."""
    return torchs(bank, place).eval()(x).detach()


def test_without_a_route_it_is_the_shared_norm(norm, base):
    norm.eval()
    for route in (None, Route.none()):
        torch.testing.assert_close(norm(rows(), route), one(base, None, rows()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("only", [0, 1])
def test_the_acting_divisions_norm_serves_each_row(norm, base, only):
    order, route = loaded(EVERY_CELL, mixed=False, only=only)
    x = rows(len(order))
    found = norm.eval()(x, route)
    for n, row in enumerate(order.tolist()):
        domain = EVERY_CELL[row][only]
        own = one(base, None, x[[n]])
        if domain >= 0:
            own = one(norm.divisions[only], domain, x[[n]])
        torch.testing.assert_close(found[[n]], own, atol=1e-12, rtol=0)


def test_every_combination_of_domains_has_a_cell_of_its_own(norm, base):
    """Π (D + 1) - 1 cells: |A| × |B| as in the paper, and those of rows unseen in one division."""
    assert len(norm.cell.weight) == CELLS
    order, route = loaded(EVERY_CELL)
    cell = dict(zip(order.tolist(), route.cell.expert.tolist(), strict=True))
    assert sorted(cell.values()) == list(range(-1, CELLS))
    assert EVERY_CELL[next(row for row, c in cell.items() if c == -1)] == (-1, -1)
    x = rows(len(order))
    found = norm.eval()(x, route)
    for n, row in enumerate(order.tolist()):
        own = one(base, None, x[[n]]) if cell[row] < 0 else one(norm.cell, cell[row], x[[n]])
        torch.testing.assert_close(found[[n]], own, atol=1e-12, rtol=0)


def test_without_cells_the_first_divisions_norms_serve_mixed_rows(base):
    norm = moved(DomainNorm(base, SIZES), seed=3).eval()
    assert norm.cell is None
    order, route = loaded(EVERY_CELL)
    x = rows(len(order))
    found = norm(x, route)
    for n, row in enumerate(order.tolist()):
        domain = EVERY_CELL[row][0]
        own = one(base, None, x[[n]]) if domain < 0 else one(norm.divisions[0], domain, x[[n]])
        torch.testing.assert_close(found[[n]], own, atol=1e-12, rtol=0)


@pytest.mark.parametrize("place", [0, 1])
def test_a_division_inherits_the_shared_norm(norm, base, place):
    others = copy.deepcopy(norm.state_dict())
    norm.inherit(place)
    order, route = loaded(EVERY_CELL, mixed=False, only=place)
    x = rows(len(order))
    torch.testing.assert_close(norm.eval()(x, route), one(base, None, x), atol=1e-12, rtol=0)
    for name, value in norm.state_dict().items():
        own = name.startswith(f"divisions.{place}.")
        assert torch.equal(value, others[name]) != own, name


@pytest.mark.parametrize("sizes", [(3, 2), (2, 3), (1, 1), (3,), (2, 1, 2)])
def test_cells_inherit_the_norm_of_their_first_domain(base, sizes):
    """The mapping cell → domain, read off the loader's own batches."""
    norm = moved(DomainNorm(base, sizes, cells=True), seed=3).eval()
    norm.inherit(None)
    every = list(itertools.product(*(range(-1, size) for size in sizes)))
    order, route = loaded(every, sizes=sizes)
    _, unmixed = loaded(every, mixed=False, sizes=sizes)
    x = rows(len(order))
    found = norm(x, route)
    torch.testing.assert_close(found, norm(x, unmixed), atol=1e-12, rtol=0)
    for n, row in enumerate(order.tolist()):
        domain = every[row][0]
        own = one(base, None, x[[n]]) if domain < 0 else one(norm.divisions[0], domain, x[[n]])
        torch.testing.assert_close(found[[n]], own, atol=1e-12, rtol=0)


def test_a_fresh_one_is_its_shared_norm_in_every_domain_and_cell(base):
    norm = DomainNorm(base, SIZES, cells=True).double().eval()
    for mixed, only in ((False, 0), (False, 1), (True, 0)):
        _, route = loaded(EVERY_CELL, mixed=mixed, only=only)
        x = rows(len(EVERY_CELL))
        torch.testing.assert_close(norm(x, route), one(base, None, x), atol=1e-12, rtol=0)


def test_it_takes_momentum_and_eps_from_the_shared_norm(base):
    norm = DomainNorm(base, SIZES, cells=True)
    assert {(bank.momentum, bank.eps) for bank in (*norm.divisions, norm.cell)} == {(MOMENTUM, EPS)}


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_it_has_the_type_of_the_shared_norm(base, dtype):
    norm = DomainNorm(base.to(dtype), SIZES, cells=True)
    assert {tensor.dtype for tensor in norm.state_dict().values()} == {dtype}


def test_a_copy_does_not_change_with_what_it_was_copied_from(base):
    norm = DomainNorm(base, SIZES)
    before = copy.deepcopy(norm.divisions.state_dict())
    with torch.no_grad():
        base.weight.add_(1)
        base.running_mean.add_(1)
    assert all(
        torch.equal(value, before[name]) for name, value in norm.divisions.state_dict().items()
    )


def test_only_the_norms_that_act_train(norm):
    """Of two divisions and cells: one bank's parameters get gradients, its buffers alone move."""
    acting = {(False, 0): "divisions.0.", (False, 1): "divisions.1.", (True, 0): "cell."}
    for (mixed, only), prefix in acting.items():
        norm.train().zero_grad()
        before = copy.deepcopy(norm.state_dict())
        order, route = loaded(EVERY_CELL * 3, mixed=mixed, only=only)
        norm(rows(len(order)), route).square().sum().backward()
        for name, value in norm.state_dict().items():
            moves = name.startswith(prefix) and "running" in name
            assert torch.equal(value, before[name]) != moves, name
        for name, parameter in norm.named_parameters():
            if parameter.grad is not None and not name.startswith("base."):
                assert name.startswith(prefix), name
