"""What does not fit is refused by both kinds of kernels alike: compiled ones never see it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from loractr import native
from loractr.batch import Groups
from loractr.layers.attention import attend
from loractr.layers.fm import fm
from loractr.layers.grouped import grouped_linear
from loractr.layers.lookup import Touched, look_up_both
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
    "no field vectors": lambda: fm(ones(4)),
    "field vectors of fields": lambda: fm(ones(2, 3, 4, 5)),
    "linear terms of other rows": lambda: look_up_both(
        ones(5, 2), ones(3, 1), torch.tensor([[4]]), None
    ),
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


NORM, IDS = BatchNorm(4), torch.tensor([[2, 0], [4, 2]])
TABLE = torch.arange(5.0)[:, None]


@pytest.mark.parametrize(
    "call",
    [
        lambda: NORM(TABLE.expand(5, 4).contiguous()),
        lambda: look_up_both(TABLE, TABLE, IDS, None)[1],
        lambda: Touched.of(IDS.flatten(), TABLE).rows,
    ],
    ids=["norm", "look up", "grouped ids"],
)
def test_a_default_device_elsewhere_changes_nothing(call):
    expected = call()
    torch.set_default_device("meta")
    try:
        found = call()
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


def test_ids_without_memory_are_left_to_torch():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        vectors, terms = look_up_both(TABLE, TABLE, mode.from_tensor(IDS), None)
    assert (vectors.shape, terms.shape) == ((2, 2, 1), (2,))
