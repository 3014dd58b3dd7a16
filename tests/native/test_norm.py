"""Compiled norms against torch's operations and finite differences."""

import copy

import pytest
import torch

from loractr import native
from loractr.baselines.star import PartitionedNorm
from loractr.batch import Groups
from loractr.layers.norm import BatchNorm, NormBank
from native.agreement import gap

pytestmark = pytest.mark.usefixtures("kernels")

PRECISE = {torch.float32: 1e-5, torch.float64: 1e-12}
EXPERTS = 4
ROWS = {
    "unsorted": [2, 0, 0, 2, 2, 1, 0],  # expert 1 has one row, expert 3 none
    "sorted": [0, 0, 0, 1, 2, 2],
    "some of none": [-1, 2, 2, -1, 0, 0],
    "nobody": [-1, -1],
    "no rows": [],
    "many": [(n * 7) % 4 for n in range(700)],
}


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def moved(norm, dtype):
    """The norm as training might leave it."""
    norm = norm.to(dtype)
    with torch.no_grad():
        for seed, tensor in enumerate((*norm.parameters(), *norm.buffers())):
            tensor.copy_(normal(*tensor.shape, dtype=dtype, seed=seed).abs() + 0.5)
    return norm


def applied(norm, *arguments):
    """A function of x, weight and bias; every call begins with the same running statistics."""

    def function(x, weight, bias):
        fresh = copy.deepcopy(norm)
        given = {"weight": weight, "bias": bias}
        return torch.func.functional_call(fresh, given, (x, *arguments))

    return function


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (6, 5), (600, 300)])
def test_batch_norm_agrees_with_torchs(shape, training, dtype):
    norm = moved(BatchNorm(shape[1]), dtype).train(training)
    x = 3 * normal(*shape, dtype=dtype, seed=7) + 20
    weights = [w.detach() for w in (norm.weight, norm.bias)]
    assert gap(applied(norm), x, *weights) < PRECISE[dtype]


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_norms_of_groups_agree_with_torchs(ids, training, dtype):
    groups = Groups.of(torch.tensor(ids).long(), EXPERTS, grouped=ids == sorted(ids))
    bank = moved(NormBank(6, EXPERTS), dtype).train(training)
    base = moved(BatchNorm(6), dtype)
    x = normal(len(ids), 6, dtype=dtype, seed=7)
    weights = [w.detach() for w in (bank.weight, bank.bias)]
    assert gap(applied(bank, groups, base), x, *weights) < PRECISE[dtype]


@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_running_statistics_move_as_torchs_do(ids):
    groups = Groups.of(torch.tensor(ids).long(), EXPERTS, grouped=ids == sorted(ids))
    x = normal(len(ids), 6, seed=7)
    found = []
    for kind in ("native", "torch"):
        bank, one = moved(NormBank(6, EXPERTS), x.dtype), moved(BatchNorm(6), x.dtype)
        with native.use(kind):
            bank(x, groups, BatchNorm(6).double())
            one(x)
        found.append([*bank.buffers(), *one.buffers()])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-12, rtol=1e-12)


def test_a_frozen_norm_keeps_its_statistics_and_passes_gradients_on():
    norm = moved(BatchNorm(4), torch.float64).requires_grad_(False)
    before = [buffer.clone() for buffer in norm.buffers()]
    x = normal(9, 4).requires_grad_()
    norm(x).sum().backward()
    assert all(map(torch.equal, norm.buffers(), before))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(x.grad, scale.expand(9, 4), atol=1e-13, rtol=0)


@pytest.mark.parametrize("ids", [[0, 0, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1, 1]])
def test_gradients_are_those_of_finite_differences(ids):
    groups = Groups.of(torch.tensor(ids), 2, grouped=ids == sorted(ids))
    bank = moved(NormBank(3, 2), torch.float64)
    weights = [w.detach().clone().requires_grad_() for w in (bank.weight, bank.bias)]
    x = normal(len(ids), 3).requires_grad_()
    assert torch.autograd.gradcheck(applied(bank, groups, BatchNorm(3).double()), [x, *weights])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_stars_partitioned_norm_agrees_with_torchs(rows, training):
    groups = Groups.of(torch.tensor(rows, dtype=torch.int64), EXPERTS)
    norm = moved(PartitionedNorm(5, EXPERTS), torch.float64).train(training)
    names = [name for name, _ in norm.named_parameters()]
    moments = {}

    def function(x, *weights):
        fresh = copy.deepcopy(norm)
        y = torch.func.functional_call(fresh, dict(zip(names, weights, strict=True)), (x, groups))
        moments[native.chosen()] = [fresh.running_mean, fresh.running_var]
        return y

    x = 3 * normal(len(rows), 5, seed=7) + 20
    assert gap(function, x, *(w.detach() for w in norm.parameters())) < 1e-9
    for one, other in zip(moments["native"], moments["torch"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
