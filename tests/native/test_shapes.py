"""What does not fit is refused by both kinds of kernels alike: compiled ones never see it."""

import pytest
import torch

from loractr import native
from loractr.batch import Groups
from loractr.layers.attention import attend
from loractr.layers.grouped import grouped_linear
from loractr.layers.norm import BatchNorm, NormBank

pytestmark = pytest.mark.usefixtures("kernels")


def ones(*shape):
    return torch.ones(shape)


def groups(rows, experts):
    return Groups.of(torch.arange(rows) % experts, experts, grouped=rows <= experts)


WRONG = {
    "batch norm of another width": lambda: BatchNorm(4)(ones(8, 3000)),
    "more domains than norms": lambda: NormBank(4, 2)(
        ones(2000, 4), groups(2000, 2000), BatchNorm(4)
    ),
    "a matrix of another width": lambda: grouped_linear(ones(4, 3), ones(2, 5, 7), groups(4, 2)),
    "groups of more rows": lambda: grouped_linear(ones(2, 7), ones(2, 5, 7), groups(4, 2)),
    "more experts than matrices": lambda: grouped_linear(ones(4, 7), ones(2, 5, 7), groups(4, 3)),
    "keys of another width": lambda: attend(ones(2, 3, 8), ones(2, 3, 4), ones(2, 3, 8), 2),
    "heads that do not divide": lambda: attend(*(ones(2, 3, 8) for _ in range(3)), 3),
}


@pytest.mark.parametrize("kind", ["native", "torch"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_shapes_raise(wrong, kind):
    with native.use(kind), pytest.raises((RuntimeError, IndexError)):
        wrong()


def test_weights_without_memory_of_their_own_are_read_as_they_are():
    norm = BatchNorm(8).eval()
    norm.bias.data = torch.zeros(1).expand(8)
    assert norm(ones(3, 8)).isfinite().all()


def test_a_default_device_elsewhere_changes_nothing():
    norm, x = BatchNorm(4), torch.randn(5, 4)
    expected = norm(x)
    torch.set_default_device("meta")
    try:
        found = norm(x)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
