"""Several threads compute what one computes."""

import pytest
import torch

from loractr.batch import Groups
from loractr.layers.attention import attend
from loractr.layers.cin import CIN
from loractr.layers.dropout import Dropout, Rectifier, relu_dropout
from loractr.layers.grouped import grouped_linear
from loractr.layers.norm import BatchNorm, NormBank
from loractr.layers.one_pass import Experts, in_one_pass

pytestmark = pytest.mark.usefixtures("kernels")

ROWS, EXPERTS = 6000, 4
GROUPS = Groups.of((torch.arange(ROWS) * 7) % EXPERTS, EXPERTS)
BANK = Experts(
    torch.linspace(-1, 1, EXPERTS * 3 * 24).view(EXPERTS, 3, 24),
    torch.linspace(-1, 1, EXPERTS * 40 * 3).view(EXPERTS, 40, 3).requires_grad_(),
    torch.ones(EXPERTS, 40),
    Groups.of((torch.arange(ROWS) // 1300) - 1, EXPERTS, grouped=True),
)
WEIGHT = torch.linspace(-1, 1, 40 * 24).view(40, 24)
CALLS = {
    "dropout": Dropout(0.5),
    "layer": lambda x: in_one_pass(x, WEIGHT, None, BANK, Rectifier(Dropout(0.5))),
    "relu and dropout": lambda x: relu_dropout(x * 1, Dropout(0.5)),
    "batch norm": BatchNorm(24),
    "norms of groups": lambda x: NormBank(24, EXPERTS)(x, GROUPS, BatchNorm(24)),
    "products of groups": lambda x: grouped_linear(x, torch.ones(EXPERTS, 5, 24), GROUPS),
    "attention": lambda x: attend(*[x.view(ROWS, 3, 8)] * 3, 2),
    "cin": lambda x: CIN(3, (6, 4), generator=torch.Generator().manual_seed(1))(x.view(ROWS, 3, 8)),
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
