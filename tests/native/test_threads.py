"""Several threads compute what one computes."""

import pytest
import torch

from loractr.batch import Groups
from loractr.layers.attention import attend
from loractr.layers.cin import CIN
from loractr.layers.dropout import Dropout, Rectifier, relu_dropout
from loractr.layers.fm import fm
from loractr.layers.grouped import grouped_linear
from loractr.layers.norm import BatchNorm, NormBank
from loractr.layers.one_pass import Experts, in_one_pass

pytestmark = pytest.mark.usefixtures("kernels")

ROWS, EXPERTS = 6000, 4
GROUPS = Groups.of((torch.arange(ROWS) * 7) % EXPERTS, EXPERTS)
CALLS = {
    "dropout": Dropout(0.5),
    "relu and dropout": lambda x: relu_dropout(x * 1, Dropout(0.5)),
    "batch norm": BatchNorm(24),
    "norms of groups": lambda x: NormBank(24, EXPERTS)(x, GROUPS, BatchNorm(24)),
    "products of groups": lambda x: grouped_linear(x, torch.ones(EXPERTS, 5, 24), GROUPS),
    "attention": lambda x: attend(*[x.view(ROWS, 3, 8)] * 3, 2),
    "cin": lambda x: CIN(3, (6, 4), generator=torch.Generator().manual_seed(1))(x.view(ROWS, 3, 8)),
    "sums of inner products": lambda x: fm(x.view(ROWS, 3, 8)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_two_threads_compute_what_one_computes(call):
    held, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            x = torch.randn(ROWS, 24).requires_grad_()
            y = call(x)
            y.sin().sum().backward()
            found.append((y.detach(), x.grad))
    finally:
        torch.set_num_threads(held)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("rows", [0, 70, 700, 6000])
@pytest.mark.parametrize("per_expert", [100, 1300, 4000])
def test_gradients_of_a_whole_layer_are_those_of_one_thread(per_expert, rows, count):
    """Parts share experts, have several, or have rows of none only."""
    expert = torch.arange(rows) // per_expert - 1
    groups = Groups.of(expert, 60, grouped=True)
    shapes = [(rows, 24), (40, 24), (40,), (60, 3, 24), (60, 40, 3), (60, 40)]
    held, found = torch.get_num_threads(), []
    try:
        for threads in (1, count):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            leaves = [torch.randn(shape).double().requires_grad_() for shape in shapes]
            x, weight, bias, *bank = leaves
            ending = Rectifier(Dropout(0.5))
            y = in_one_pass(x, weight, bias, Experts(*bank, groups), ending)
            y.sin().sum().backward()
            found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    finally:
        torch.set_num_threads(held)
    for one, several in zip(*found, strict=True):
        torch.testing.assert_close(one, several, atol=1e-11, rtol=1e-11)
